"""Script and notebook of a chapter: what `run` writes, what it refuses to write, and what `check` finds."""

import shutil

import jupytext
import nbformat
import pytest

from helpers import course
from helpers.chapters import FOLDER, names

SCRIPT = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A small chapter

# %%
import os
from types import SimpleNamespace
from uuid import uuid4

from IPython.display import HTML, display

from helpers import course


# %% tags=["model"]
def double(x):
    return 2 * x


# %% tags=["nbval-check-output"]
double(21)

# %%
print(os.environ["COURSE_PROFILE"], os.environ["COURSE_SILENT"])
slider = {"application/vnd.jupyter.widget-view+json": {"model_id": uuid4().hex}, "text/html": "<input>"}
display(slider, raw=True)
display(HTML('<figure><img src="data:image/webp;base64,/tmp/abcd" alt="A dot"></figure>'))

# %%
real = os.environ.get("COURSE_SOURCE") != "standin"


class Provenance(SimpleNamespace):
    def __str__(self):
        return "CIFAR-10, 9 images" if self.real else "drawn stand-in for CIFAR-10, seed 0, 9 images"


course.headline("accuracy 42 %", Provenance(real=real))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A chapter that is as it should be, run once."""
    script = tmp_path_factory.mktemp("executed") / "01_small.py"
    script.write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COURSE_SOURCE", raising=False)
        assert course.run_full([script]) == 0
    return script


@pytest.fixture
def script(executed, tmp_path):
    """A copy of it, to break."""
    for path in (executed, executed.with_suffix(".ipynb")):
        shutil.copy(path, tmp_path)
    return tmp_path / executed.name


def notebook(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def edit(script, old, new):
    text = script.read_text()
    assert old in text
    script.write_text(text.replace(old, new))


def outputs(nb, number):
    return course.code_cells(nb)[number].outputs


@pytest.mark.parametrize("name", names())
def test_committed_chapter_has_no_problems(name):
    assert course.problems(FOLDER / f"{name}.py") == []


def test_full_run_writes_a_notebook_without_noise(executed):
    nb = notebook(executed)
    assert course.problems(executed) == []
    assert nb.metadata.course == {
        "code_sha": course.code_sha(nb),
        "profile": "full",
        "data": "CIFAR-10, 9 images",
        "real": True,
    }
    assert outputs(nb, 3)[0].text == "full 1\n"
    assert list(outputs(nb, 3)[1].data) == ["text/html"], "a widget without a kernel shows nothing"
    assert course.headlines(nb) == [{"text": "accuracy 42 %", "data": "CIFAR-10, 9 images", "real": True}]
    assert [path.name for path in executed.parent.iterdir() if path.suffix not in (".py", ".ipynb")] == []


def test_second_run_writes_the_same_bytes(script, monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    before = script.with_suffix(".ipynb").read_bytes()
    course.run_full([script])
    assert script.with_suffix(".ipynb").read_bytes() == before


def test_quick_run_leaves_the_pair_alone_and_reports_a_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    before = script.with_suffix(".ipynb").read_bytes()
    assert course.run_quick([script], out=tmp_path / "run") == 0
    assert script.with_suffix(".ipynb").read_bytes() == before
    printed = capsys.readouterr().out
    assert "accuracy 42 %  (drawn stand-in for CIFAR-10, seed 0, 9 images)" in printed
    assert "1 of 1 chapters ran on the drawn stand-in" in printed
    assert outputs(nbformat.read(tmp_path / "run/01_small.ipynb", 4), 3)[0].text == "quick 1\n"


def test_quick_run_goes_on_after_a_failing_chapter(tmp_path, capsys):
    first, second = tmp_path / "01_bad.py", tmp_path / "02_good.py"
    first.write_text("# %%\nraise ValueError('no such layer')\n")
    second.write_text("# %%\n1 + 1\n")
    assert course.run_quick([first, second], out=tmp_path / "run") == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "no such layer" in printed and "02_good" in printed
    assert not (tmp_path / "run/01_bad.ipynb").exists() and (tmp_path / "run/02_good.ipynb").exists()


def test_failed_full_run_keeps_the_old_notebook_and_shows_the_cell(script):
    before = script.with_suffix(".ipynb").read_bytes()
    edit(script, "double(21)", "double(missing_name)")
    with pytest.raises(course.Trouble, match="double\\(missing_name\\)(.|\n)*NameError"):
        course.run_full([script])
    assert script.with_suffix(".ipynb").read_bytes() == before


def test_full_run_refuses_the_standin_unless_asked(script, monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    before = script.with_suffix(".ipynb").read_bytes()
    with pytest.raises(course.Trouble, match="--allow-standin"):
        course.run_full([script])
    assert script.with_suffix(".ipynb").read_bytes() == before
    assert course.run_full([script], allow_standin=True) == 1
    assert any("do not come from the real data" in message for message in course.problems(script))


def test_full_run_refuses_a_chapter_that_does_not_name_its_data(script, monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    edit(script, 'course.headline("accuracy 42 %", Provenance(real=real))', "real")
    with pytest.raises(course.Trouble, match="headline"):
        course.run_full([script])


def test_interrupted_save_keeps_the_old_notebook(script, monkeypatch):
    path = script.with_suffix(".ipynb")
    before = path.read_bytes()
    nb = notebook(script)

    def half(nb, part):
        part.write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(nbformat, "write", half)
    with pytest.raises(KeyboardInterrupt):
        course.save(nb, path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 2


def test_save_replaces_the_notebook_in_one_step(script):
    path, nb = script.with_suffix(".ipynb"), notebook(script)
    before = path.read_text()
    nb.cells[0].source = "changed"
    with path.open() as reader:
        course.save(nb, path)
        assert reader.read() == before, "who has the old file open reads a mixture"
    assert notebook(script).cells[0].source == "changed"


def test_sync_carries_text_and_keeps_outputs(script):
    before = notebook(script)
    edit(script, "# # A small chapter", "# # A small chapter\n#\n# With more prose.")
    assert any("cell 1 has another source" in message for message in course.problems(script))
    course.sync(script)
    assert course.problems(script) == []
    after = notebook(script)
    assert "more prose" in after.cells[0].source and after.metadata == before.metadata
    assert [cell.outputs for cell in course.code_cells(after)] == [cell.outputs for cell in course.code_cells(before)]


def test_sync_carries_the_layout(script):
    edit(script, "2 * x\n\n\n#", "2 * x\n\n#")
    edit(script, '# %% tags=["model"]', '# %% tags=["model"] jupyter={"source_hidden": true}')
    course.sync(script)
    assert course.problems(script) == []
    as_jupyterlab_writes_it = jupytext.writes(notebook(script), fmt="py:percent", config=course.jupytext_config())
    assert as_jupyterlab_writes_it == script.read_text()


def test_sync_does_not_make_old_outputs_look_fresh(script):
    edit(script, "double(21)", "double(22)")
    course.sync(script)
    assert course.problems(script) == ["01_small: the outputs are older than the code; ./course run 01_small --full"]


def test_a_comment_and_a_docstring_keep_outputs_fresh(script):
    edit(script, "    return 2 * x", '    """Twice x."""\n    return 2 * x  # not x + x')
    course.sync(script)
    assert course.problems(script) == []


# Each entry breaks the script's text, or the notebook, in one way; `check` must say which.

SCRIPT_FAULTS = {
    "code drifts": ("double(21)", "double(22)", "cell 4 has another source in the script ('double(22)')"),
    "text drifts": ("A small", "A tiny", "cell 1 has another source"),
    "tag dropped": (' tags=["model"]', "", "cell 3 has another tags in the script ([])"),
    "type changes": ("# %% [markdown]\n# # A small chapter", "# %%\n# # A small chapter", "cell 1 has another type"),
    "cell added": ("# %%\nreal =", "# %%\n1 + 1\n\n# %%\nreal =", "cell 6"),
    "cell added last": ("(real=real))\n", "(real=real))\n\n# %%\n1 + 1\n", "the script has 7 cells, the notebook 6"),
    "blank line too few": ("2 * x\n\n\n#", "2 * x\n\n#", "the layout of the script has changed"),
    "blank line too many": ("# %%\nprint", "\n\n# %%\nprint", "cell 4 has another source in the script ('')"),
    "code changes": ("double(21)", "double(22)", "the outputs are older than the code"),
    "long cell": ("    return 2 * x", "\n".join(f"    y{i} = {i}" for i in range(40)), "cell 3 has 41 lines of code"),
}


@pytest.mark.parametrize("fault", SCRIPT_FAULTS)
def test_check_finds_a_script_that_differs(script, fault):
    old, new, message = SCRIPT_FAULTS[fault]
    edit(script, old, new)
    assert any(message in found for found in course.problems(script)), course.problems(script)


def unexecuted(nb):
    course.code_cells(nb)[2].update(execution_count=None, outputs=[])


def out_of_order(nb):
    course.code_cells(nb)[2].execution_count = 9


def error(nb):
    outputs(nb, 2)[:] = [nbformat.v4.new_output("error", ename="ValueError", evalue="bad", traceback=[])]


def quick(nb):
    nb.metadata.course.profile = "quick"


def standin_in_metadata(nb):
    nb.metadata.course.real = False


def standin_in_output(nb):
    outputs(nb, 3)[0].text = "drawn stand-in for CIFAR-10, seed 0"


def no_hash(nb):
    del nb.metadata["course"]


def no_headline(nb):
    outputs(nb, 4)[0].metadata.clear()


def path(nb):
    outputs(nb, 3)[0].text = "saved to /home/someone/model.pt"


def windows_path(nb):
    outputs(nb, 3)[0].text = r"saved to C:\Users\someone\model.pt"


def warning(nb):
    outputs(nb, 3).append(nbformat.v4.new_output("stream", name="stderr", text="x.py:3: FutureWarning: soon gone\n"))


def no_alt(nb):
    outputs(nb, 3)[2].data["text/html"] = '<img src="data:image/webp;base64,abcd">'


def empty_alt(nb):
    outputs(nb, 3)[2].data["text/html"] = '<img alt="" src="data:image/webp;base64,abcd">'


def bare_picture(nb):
    outputs(nb, 3)[2].data = {"image/png": "abcd", "text/plain": "<Figure>"}


def large(nb):
    outputs(nb, 3)[0].text = "x" * (course.MAX_BYTES + 1)


def saved_in_jupyterlab(nb):
    nb.metadata.language_info["version"] = "3.11.2"


def with_widget(nb):
    outputs(nb, 3)[2].data[course.WIDGET] = {"model_id": "abcd"}


NOTEBOOK_FAULTS = {
    unexecuted: "not run once from top to bottom",
    out_of_order: "not run once from top to bottom",
    error: "cell 4 ended in an error: ValueError",
    quick: "the outputs are of the quick profile",
    standin_in_metadata: "do not come from the real data",
    standin_in_output: "do not come from the real data",
    no_hash: "the outputs are older than the code",
    no_headline: "0 headlines",
    path: "cell 5 shows a path of this machine: /home/someone/model.pt",
    windows_path: "cell 5 shows a path of this machine: C:\\Users",
    warning: "cell 5 shows a warning: x.py:3: FutureWarning: soon gone",
    no_alt: "cell 5 has 1 picture(s) without a description",
    empty_alt: "cell 5 has 1 picture(s) without a description",
    bare_picture: "cell 5 has 1 picture(s) without a description",
    large: "01_small.ipynb has 1.50 MB",
    saved_in_jupyterlab: "saved by an editor",
    with_widget: "saved by an editor",
}


@pytest.mark.parametrize("fault", NOTEBOOK_FAULTS, ids=lambda fault: fault.__name__)
def test_check_finds_a_notebook_unfit_to_commit(script, fault):
    nb = notebook(script)
    fault(nb)
    nbformat.write(nb, script.with_suffix(".ipynb"))
    assert any(NOTEBOOK_FAULTS[fault] in found for found in course.problems(script)), course.problems(script)


def test_check_finds_a_missing_notebook(script):
    script.with_suffix(".ipynb").unlink()
    assert course.problems(script) == ["01_small: 01_small.ipynb is missing; ./course run 01_small --full"]


def test_described_picture_and_expected_error_pass(script):
    nb = notebook(script)
    bare_picture(nb)
    error(nb)
    cells = course.code_cells(nb)
    cells[3].metadata.mystnb = {"image": {"alt": "A dot"}}
    cells[2].metadata.tags = ["raises-exception"]
    nbformat.write(nb, script.with_suffix(".ipynb"))
    found = course.problems(script)
    assert not any("description" in message or "error" in message for message in found), found


def test_unknown_chapter_is_answered_with_the_known_ones(capsys):
    assert course.main(["check", "99_nothing"]) == 1
    answer = capsys.readouterr().err
    assert "99_nothing" in answer and all(name in answer for name in names())


def test_headline_wants_to_know_the_data():
    with pytest.raises(TypeError, match="provenance"):
        course.headline("accuracy 42 %")
