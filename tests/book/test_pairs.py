"""Script and notebook of a chapter: what carries edits over, what is kept, and what `check` finds."""

import errno
import functools
import json
import os
import re
import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
from small import edit, notebook, outputs

from book import Trouble, check, lab, links, models, pages, pairs, repository, results
from book.__main__ import main
from helpers import chapters, headline, study, weights
from helpers.chapters import FOLDER, names


def as_found(script):
    return {path: path.read_bytes() for path in (script, script.with_suffix(".ipynb"))}


@pytest.mark.parametrize("name", names())
def test_committed_chapter_has_no_problems(name):
    assert check.problems(FOLDER / f"{name}.py") == []


def test_a_sound_chapter_has_none(script):
    assert check.problems(script) == []


# ---------------------------------------------------------------------------------------- writing


def test_interrupted_save_keeps_the_old_notebook(script, monkeypatch):
    before = as_found(script)

    def interrupted(part, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pairs.write({path: "new" for path in before})
    assert as_found(script) == before and len(list(script.parent.iterdir())) == 2


@contextmanager
def full_disk():
    """Within this block no file gets longer than 1000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_changes_nothing_and_is_told_in_one_line(script):
    before = as_found(script)
    with (
        full_disk(),
        pytest.raises(Trouble, match=r"01_small.ipynb could not be written: .+\. Nothing was changed\.$"),
    ):
        pairs.write({script: "fits", script.with_suffix(".ipynb"): "x" * 2000})
    assert as_found(script) == before and len(list(script.parent.iterdir())) == 2


@pytest.mark.parametrize("module", pages.PAGES, ids=lambda module: module.__name__)
def test_a_full_disk_leaves_a_page_and_its_figure_as_they_were(module, tmp_path, monkeypatch):
    files = {}
    for name in {"PAGE", "FOREST", "COUNTS"} & set(vars(module)):
        path = tmp_path / getattr(module, name).name
        path.write_text("old")
        files[path] = "old"
        monkeypatch.setattr(module, name, path)
    monkeypatch.setattr(module, "text", lambda: "x" * 2000)
    if module is results:
        monkeypatch.setattr(module, "gathered", dict)
        monkeypatch.setattr(module, "forest", lambda found: SimpleNamespace(_webp=b"x" * 2000))
    if module is models:
        monkeypatch.setattr(module, "groups", dict)
    with full_disk(), pytest.raises(Trouble, match="could not be written"):
        module.write()
    assert {path: path.read_text() for path in tmp_path.iterdir()} == files
    module.write()
    assert all(path.read_text() != "old" for path in files)


@pytest.mark.parametrize("module", sorted({*pages.PAGES, *pages.MEASURED}, key=str), ids=lambda module: module.__name__)
def test_what_is_committed_is_written_whole_or_not_at_all(module):
    code = Path(module.__file__).read_text()
    # a constant is the place of a committed file
    assert "pairs.write(" in code and not re.search(r"\b[A-Z]+\b.*\.write_(text|bytes)\(|\.save\([A-Z]", code)


def test_a_folder_that_cannot_be_written_to_is_named(script, monkeypatch):
    def refused(*arguments, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.write_bytes", refused)
    with pytest.raises(
        Trouble, match=r"01_small.py could not be written: Read-only file system\. Nothing was changed\."
    ):
        pairs.write({script: "new"})
    with pytest.raises(Trouble, match=r"inside.py could not be written: .+\. Nothing was changed\."):
        pairs.write({script / "inside.py": "a file is no folder"})


def test_writing_replaces_the_file_in_one_step(script):
    before = script.read_text()
    with script.open() as reader:
        pairs.write({script: "changed"})
        assert reader.read() == before, "who has the old file open reads a mixture"
    assert script.read_text() == "changed"


# ------------------------------------------------------------------------------- from the script


def test_sync_carries_text_and_keeps_outputs(script):
    before = notebook(script)
    edit(script, "# # A small chapter", "# # A small chapter\n#\n# With more prose.")
    assert any("cell 1 has another source" in message for message in check.problems(script))
    pairs.sync(script)
    assert check.problems(script) == []
    after = notebook(script)
    assert "more prose" in after.cells[0].source
    changed = {key for key in before.metadata.course if before.metadata.course[key] != after.metadata.course[key]}
    assert changed == {"cells_sha"}
    assert [cell.outputs for cell in pairs.code_cells(after)] == [cell.outputs for cell in pairs.code_cells(before)]


def test_sync_carries_the_layout(script):
    edit(script, "2 * x\n\n\n#", "2 * x\n\n#")
    edit(script, '# %% tags=["model"]', '# %% tags=["model"] jupyter={"source_hidden": true}')
    pairs.sync(script)
    assert check.problems(script) == []
    as_jupyterlab_writes_it = jupytext.writes(notebook(script), fmt="py:percent", config=pairs.jupytext_config())
    assert as_jupyterlab_writes_it == script.read_text()


def test_sync_of_a_sound_pair_touches_no_file(script):
    before = {path: path.stat().st_mtime_ns for path in as_found(script)}
    pairs.sync(script)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_sync_does_not_make_old_outputs_look_fresh(script):
    edit(script, "double(21)", "double(22)")
    pairs.sync(script)
    assert "01_small: the outputs are older than the code; ./course run 01_small --full" in check.problems(script)


def test_a_comment_and_a_docstring_keep_outputs_fresh(script):
    edit(script, "    return 2 * x", '    """Twice x."""\n    return 2 * x  # not x + x')
    pairs.sync(script)
    assert check.problems(script) == []


# ------------------------------------------------------------------------------ from the notebook


def saved_by(editor, script):
    """Save the notebook, with a new word in its first cell, as an editor does."""
    path = script.with_suffix(".ipynb")
    nb = json.loads(path.read_text())
    nb["cells"][0]["source"] = ["# A little chapter\n", "\n", "With *µ*."]
    EDITORS[editor](nb)
    path.write_text(json.dumps(nb, indent=2 if editor == "colab" else 1))


def as_jupyterlab(nb):
    nb["metadata"]["language_info"] |= {"version": "3.13.1", "file_extension": ".py", "mimetype": "text/x-python"}
    nb["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}


def as_vscode(nb):
    nb["metadata"]["kernelspec"] = {"display_name": ".venv", "language": "python", "name": "python3"}
    nb["metadata"]["vscode"] = {"interpreter": {"hash": "abc"}}
    for cell in nb["cells"]:
        cell["metadata"]["vscode"] = {"languageId": "python"}


def as_colab(nb):
    nb["metadata"]["colab"] = {"provenance": [], "toc_visible": True}
    nb["metadata"]["kernelspec"] = {"display_name": "Python 3", "name": "python3"}
    nb["metadata"]["accelerator"] = "GPU"
    nb["nbformat_minor"] = 0
    for cell in nb["cells"]:
        cell["metadata"]["id"] = cell.pop("id")
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"]["outputId"] = "1a2b"


EDITORS = {"jupyterlab": as_jupyterlab, "vscode": as_vscode, "colab": as_colab}


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_made_in_an_editor_comes_back_with_the_verb_that_check_names(script, editor):
    before = notebook(script)
    saved_by(editor, script)
    found = check.problems(script)
    assert any("./course sync 01_small --from-notebook (the notebook was edited)" in message for message in found), (
        found
    )
    with pytest.raises(Trouble, match="--from-notebook takes its cells into the script"):
        pairs.sync(script)  # would lose the edit
    pairs.sync_from(script.with_suffix(".ipynb"), script)
    assert check.problems(script) == []
    assert "# # A little chapter\n#\n# With *µ*.\n" in script.read_text()
    after = notebook(script)
    assert [cell.outputs for cell in pairs.code_cells(after)] == [cell.outputs for cell in pairs.code_cells(before)]
    assert set(after.metadata) == set(before.metadata) and all("id" in cell for cell in after.cells)
    assert {key for cell in after.cells for key in cell.metadata} <= set(pairs.SHARED)


@pytest.mark.parametrize("editor", EDITORS)
def test_what_an_editor_leaves_without_an_edit_goes_with_sync(script, editor):
    before = as_found(script)
    saved_by(editor, script)
    edit(script.with_suffix(".ipynb"), "A little chapter", "A small chapter")
    nb = notebook(script)
    nb.cells[0].source = "# A small chapter"
    nbformat.write(nb, script.with_suffix(".ipynb"))
    found = check.problems(script)
    assert found == [
        "01_small: the notebook was saved by an editor, which left its own data there; ./course sync 01_small"
    ]
    pairs.sync(script)
    assert as_found(script) == before


def test_two_edits_are_not_lost_to_each_other(script):
    saved_by("jupyterlab", script)
    edit(script, "A small chapter", "A tiny chapter")
    before = as_found(script)
    assert any("both were edited" in message for message in check.problems(script))
    with pytest.raises(Trouble, match="01_small.ipynb was edited"):
        pairs.sync(script)
    with pytest.raises(Trouble, match="01_small.py was edited, too"):
        pairs.sync_from(script.with_suffix(".ipynb"), script)
    assert as_found(script) == before
    pairs.sync(script, force=True)
    assert check.problems(script) == [] and "A tiny chapter" in script.read_text()


def test_code_edited_in_a_notebook_is_stale(script):
    edit(script.with_suffix(".ipynb"), "double(21)", "double(22)")
    pairs.sync_from(script.with_suffix(".ipynb"), script)
    assert "double(22)" in script.read_text()
    assert any("older than the code" in message for message in check.problems(script))


def test_an_empty_script_does_not_empty_its_notebook(script):
    before = as_found(script)
    script.write_text("")
    notebook_before = script.with_suffix(".ipynb").read_bytes()
    (message,) = check.problems(script)
    assert "01_small.py is empty; ./course sync 01_small --from-notebook" in message
    with pytest.raises(Trouble, match="is empty"):
        pairs.sync(script)
    assert script.with_suffix(".ipynb").read_bytes() == notebook_before
    pairs.sync_from(script.with_suffix(".ipynb"), script)
    assert as_found(script) == before


# -------------------------------------------------------------------------------- the copy of the lab


@pytest.fixture
def work(script, tmp_path):
    """A lab with a copy of the small chapter: (its folder, the copy of the notebook)."""
    lab.prepare(tmp_path / "lab", script.parent)
    return tmp_path / "lab", tmp_path / "lab/chapters/01_small.ipynb"


def test_an_edit_of_the_copy_comes_back_and_its_outputs_do_not(script, work):
    folder, copy = work
    before = notebook(script)
    nb = nbformat.read(copy, as_version=4)
    nb.cells[0].source = "# Edited in the lab"
    outputs(nb, 2).clear()
    nb.metadata.language_info["version"] = "3.12.1"
    nbformat.write(nb, copy)
    pairs.sync_from(copy, script)
    assert check.problems(script) == [] and "# # Edited in the lab" in script.read_text()
    assert [c.outputs for c in pairs.code_cells(notebook(script))] == [c.outputs for c in pairs.code_cells(before)]


def test_a_run_and_an_edit_of_the_copy_stay_until_the_chapter_changes(script, work):
    folder, copy = work
    nb = nbformat.read(copy, as_version=4)
    outputs(nb, 2).clear()
    nbformat.write(nb, copy)
    ran = copy.read_bytes()
    assert lab.prepare(folder, script.parent) == [] and copy.read_bytes() == ran
    edit(script, "A small", "A new")
    pairs.sync(script)
    assert lab.prepare(folder, script.parent) == [] and "A new chapter" in copy.read_text()
    edit(copy, "A new chapter", "Mine")
    edited = copy.read_bytes()
    assert lab.prepare(folder, script.parent) == []
    edit(script, "A new", "A newer")
    pairs.sync(script)
    (told,) = lab.prepare(folder, script.parent)
    assert "your edited copy stays" in told and copy.read_bytes() == edited
    with pytest.raises(Trouble, match="01_small.py was edited, too"):
        pairs.sync_from(copy, script)


# ------------------------------------------------------------------------- citations and equations

ROLES = """\
# # A small chapter
#
# As in {cite}`he2016resnet`, and {cite}`jang2017gumbel,maddison2017concrete`.
#
# $$ x^2. $$ (eq-square)
#
# $$
# x^3
# $$ (eq-cube)
#
# By {eq}`eq-cube`, it grows.
"""
LINKS = """\
# A small chapter

As in [[He et al., 2016a](../pages/bibliography.md#he2016resnet)], and \
[[Jang et al., 2017](../pages/bibliography.md#jang2017gumbel), \
[Maddison et al., 2017](../pages/bibliography.md#maddison2017concrete)].

$$ x^2. \\tag{1.1} $$ <a id="eq-square"></a>

$$
x^3
\\tag{1.2} $$ <a id="eq-cube"></a>

By [(1.2)](#eq-cube), it grows."""


def test_roles_become_links_in_both_halves(script):
    before = notebook(script)
    edit(script, "# # A small chapter\n", ROLES)
    assert any("cell 1 has a citation or an equation" in message for message in check.problems(script))
    pairs.sync(script)
    assert check.problems(script) == []
    after = notebook(script)
    assert after.cells[0].source == LINKS == pairs.read(script).cells[0].source
    assert [cell.outputs for cell in pairs.code_cells(after)] == [cell.outputs for cell in pairs.code_cells(before)]
    synced = as_found(script)
    pairs.sync(script)
    pairs.sync_from(script.with_suffix(".ipynb"), script)
    assert as_found(script) == synced
    assert links.as_roles(LINKS) == ROLES.replace("# ", "", 1).replace("\n# ", "\n").replace("\n#", "\n").strip()


def test_a_role_written_in_an_editor_becomes_a_link(script):
    saved_by("vscode", script)
    edit(script.with_suffix(".ipynb"), "With *\\u00b5*.", "With {cite}`he2016resnet`.")
    pairs.sync_from(script.with_suffix(".ipynb"), script)
    assert check.problems(script) == [] and "With [[He et al., 2016a](" in script.read_text()


def test_a_new_equation_numbers_the_others_anew(script):
    edit(script, "# # A small chapter\n", ROLES)
    pairs.sync(script)
    edit(script, "# $$ x^2.", "# $$ x. $$ (eq-first)\n#\n# $$ x^2.")
    pairs.sync(script)
    assert "[(1.3)](#eq-cube)" in script.read_text() and check.problems(script) == []


@pytest.mark.parametrize("role", ["{cite}`nobody1999`", "{cite}`he2016resnet,nobody1999`", "{eq}`nobody1999`"])
@pytest.mark.parametrize("link", [False, True])
def test_an_unknown_name_is_an_error_that_names_it(script, role, link):
    if link:
        role = "[(1.7)](#nobody1999)" if "eq" in role[:4] else "[[No, 1](../pages/bibliography.md#nobody1999)]"
    edit(script, "# # A small chapter\n", f"# # A small chapter\n#\n# See {role}.\n")
    before = as_found(script)
    assert any("nobody1999" in message for message in check.problems(script))
    with pytest.raises(Trouble, match="`nobody1999`"):
        pairs.sync(script)
    assert as_found(script) == before


# ------------------------------------------------------------------------------------ the setup cell


@pytest.fixture
def published(monkeypatch):
    monkeypatch.setattr(repository, "setting", lambda: "https://github.com/someone/papers")


def test_setup_cell_is_stamped_and_keeps_the_outputs(script, published):
    assert any("the setup cell is not the one" in message for message in check.problems(script))
    pairs.sync(script)
    assert check.problems(script) == []
    first = next(cell for cell in notebook(script).cells if cell.cell_type == "code")
    assert "git clone -q --depth=1 https://github.com/someone/papers course" in first.source
    compile(first.source, "setup", "exec")


def test_setup_cell_goes_with_the_address(script, monkeypatch):
    before = as_found(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "setting", lambda: "https://github.com/someone/papers")
        pairs.sync(script)
    edit(script, "--depth=1", "--depth=2")
    assert any("the setup cell is not the one" in message for message in check.problems(script))
    pairs.sync(script)
    assert check.problems(script) == [] and as_found(script) == before


# ------------------------------------------------------------------------------- what `check` finds

# Each entry breaks the script's text in one way; the rule must say which.

SCRIPT_FAULTS = {
    "code drifts": ("double(21)", "double(22)", check.same_cells, "cell 4 has another source in the script"),
    "text drifts": ("A small", "A tiny", check.same_cells, "cell 1 has another source"),
    "tag dropped": (' tags=["model"]', "", check.same_cells, "cell 3 has another tags in the script ([])"),
    "type changes": (
        "# %% [markdown]\n# # A small chapter",
        "# %%\n# # A small chapter",
        check.same_cells,
        "cell 1 has another type",
    ),
    "cell added": ("# %%\nreal =", "# %%\n1 + 1\n\n# %%\nreal =", check.same_cells, "cell 6"),
    "cell added last": (
        "(real=real))\n",
        "(real=real))\n\n# %%\n1 + 1\n",
        check.same_cells,
        "the script has 7 cells, the notebook 6; ./course sync 01_small (the script was edited)",
    ),
    "blank line too few": ("2 * x\n\n\n#", "2 * x\n\n#", check.same_layout, "the layout of the script has changed"),
    "blank line too many": ("# %%\nprint", "\n\n# %%\nprint", check.same_cells, "cell 4 has another source"),
    "code changes": ("double(21)", "double(22)", check.fresh, "the outputs are older than the code"),
    "long cell": (
        "    return 2 * x",
        "\n".join(f"    y{i} = {i}" for i in range(40)),
        check.short_cells,
        "cell 3 has 41 lines of code",
    ),
    "not Python": ("return 2 * x", "return 2 *", check.parses, "cell 3 is not Python: invalid syntax (its line 2)"),
    "a citation that is no link": (
        "# A small chapter",
        "# A small chapter {cite}`simonyan2015vgg`",
        check.linked,
        "cell 1 has a citation or an equation that is no link; ./course sync 01_small",
    ),
    "a setup cell": (
        "# %%\nimport os",
        '# %% tags=["setup-cell"]\n1\n\n# %%\nimport os',
        check.stamped,
        "./course sync 01_small",
    ),
}


def finds(script, rule, message):
    found = list(check.found(script))
    return [text for by, text in found if by is rule and message in text], found


@pytest.mark.parametrize("fault", SCRIPT_FAULTS)
def test_check_finds_a_script_that_differs(script, fault):
    old, new, rule, message = SCRIPT_FAULTS[fault]
    edit(script, old, new)
    hit, found = finds(script, rule, message)
    assert hit, found


def unexecuted(nb):
    pairs.code_cells(nb)[2].update(execution_count=None, outputs=[])


def out_of_order(nb):
    pairs.code_cells(nb)[2].execution_count = 9


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


def another_number(nb):
    outputs(nb, 2)[0].data["text/plain"] = "43"


def better_headline(nb):
    outputs(nb, 4)[0].metadata[headline.KEY]["text"] = "accuracy 99 %"


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
    outputs(nb, 3)[0].text = "x" * (check.MAX_BYTES + 1)


def saved_in_jupyterlab(nb):
    nb.metadata.language_info["version"] = "3.11.2"


def with_widget(nb):
    outputs(nb, 3)[2].data[pairs.WIDGET] = {"model_id": "abcd"}


def without_ids(nb):
    nb.cells[0].id = "my-cell"


NOTEBOOK_FAULTS = {
    unexecuted: (check.run_in_order, "not run once from top to bottom"),
    out_of_order: (check.run_in_order, "not run once from top to bottom"),
    error: (check.no_errors, "cell 4 ended in an error: ValueError"),
    quick: (check.full_profile, "the outputs are of the quick profile"),
    standin_in_metadata: (check.real_data, "do not come from the real data"),
    standin_in_output: (check.real_data, "do not come from the real data"),
    no_hash: (check.fresh, "the outputs are older than the code"),
    no_headline: (check.one_headline, "0 headlines"),
    another_number: (check.of_the_full_run, "./course run 01_small --full"),
    better_headline: (check.of_the_full_run, "./course run 01_small --full"),
    path: (check.no_paths, "cell 5 shows a path of this machine: /home/someone/model.pt"),
    windows_path: (check.no_paths, "cell 5 shows a path of this machine: C:\\Users"),
    warning: (check.no_warnings, "cell 5 shows a warning: x.py:3: FutureWarning: soon gone"),
    no_alt: (check.described, "cell 5 has 1 picture(s) without a description"),
    empty_alt: (check.described, "cell 5 has 1 picture(s) without a description"),
    bare_picture: (check.described, "cell 5 has 1 picture(s) without a description"),
    large: (check.small, "01_small.ipynb has 1.50 MB"),
    saved_in_jupyterlab: (check.untouched, "saved by an editor"),
    with_widget: (check.untouched, "saved by an editor"),
    without_ids: (check.untouched, "./course sync 01_small"),
}


@pytest.mark.parametrize("fault", NOTEBOOK_FAULTS, ids=lambda fault: fault.__name__)
def test_check_finds_a_notebook_unfit_to_commit(script, fault):
    nb = notebook(script)
    fault(nb)
    nbformat.write(nb, script.with_suffix(".ipynb"))
    hit, found = finds(script, *NOTEBOOK_FAULTS[fault])
    assert hit, found


def test_every_rule_has_a_fault_that_it_finds():
    tried = {rule for *_, rule, _ in [*SCRIPT_FAULTS.values(), *NOTEBOOK_FAULTS.values()]}
    assert tried == {*check.SCRIPT_RULES, *check.PAIR_RULES}


def test_check_finds_a_missing_notebook(script):
    script.with_suffix(".ipynb").unlink()
    assert check.problems(script) == ["01_small: 01_small.ipynb is missing; ./course run 01_small --full"]


def truncated(path, size=1000):
    path.write_bytes(path.read_bytes()[:size])


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")


def conflict(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:9], "<<<<<<< HEAD\n", *lines[9:10], "=======\n", *lines[9:], ">>>>>>> other\n"]))


def conflict_in_prose(path):
    text = '    "<<<<<<< HEAD\\n",\n    "# A small' if path.suffix == ".ipynb" else "# <<<<<<< HEAD\n# # A small"
    edit(path, '    "# A small' if path.suffix == ".ipynb" else "# # A small", text)


def not_utf8(path):
    path.write_bytes(path.read_bytes() + b"\xff\xfe")


DAMAGES = {
    (truncated, ".ipynb"): "01_small.ipynb is not a notebook, or only a part of one",
    (pointer, ".ipynb"): "01_small.ipynb is a pointer of Git LFS and not the file itself; git lfs pull",
    (pointer, ".py"): "01_small.py is a pointer of Git LFS",
    (conflict, ".ipynb"): "01_small.ipynb has the markers of a merge conflict (line 10)",
    (conflict, ".py"): "01_small.py has the markers of a merge conflict (line 10)",
    (conflict_in_prose, ".ipynb"): "01_small.ipynb has the markers of a merge conflict",
    (conflict_in_prose, ".py"): "01_small.py has the markers of a merge conflict (line 10)",
    (not_utf8, ".py"): "01_small.py is not text in UTF-8",
}


@pytest.mark.parametrize("damage, suffix", DAMAGES, ids=lambda part: getattr(part, "__name__", part))
def test_a_damaged_half_is_named_and_does_not_hide_the_other(script, damage, suffix):
    other = script.with_suffix({".py": ".ipynb", ".ipynb": ".py"}[suffix])
    damage(script.with_suffix(suffix))
    if suffix == ".ipynb":
        edit(script, "    return 2 * x", "    return 2 *")
    else:
        truncated(other)
    found = check.problems(script)
    assert any(DAMAGES[damage, suffix] in message for message in found), found
    second = "cell 3 is not Python" if suffix == ".ipynb" else "01_small.ipynb is not a notebook"
    assert any(second in message for message in found), found
    with pytest.raises(Trouble):
        pairs.sync(script)


def test_damaged_prose_results_and_weights_are_named(tmp_path):
    for name in ("pages/notation.md", "weights/a.safetensors", "index.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("A heading\n=======\n\n<< not a marker\n")
    for name in ("pages/gallery.json", "results/01_vgg.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"VGG": {"energy": 61.7}}')
    assert check.damaged(tmp_path) == []
    (tmp_path / "pages/notation.md").write_text("a\n<<<<<<< HEAD\nb\n=======\nc\n>>>>>>> x\n")
    pointer(tmp_path / "weights/a.safetensors")
    for name in ("pages/gallery.json", "results/01_vgg.json"):
        (tmp_path / name).write_text('{"VGG": {"energy": 61')
    assert [message.partition(" (")[0] for message in check.damaged(tmp_path)] == [
        "notation.md has the markers of a merge conflict",
        "gallery.json is not JSON, or only a part of it",
        "01_vgg.json is not JSON, or only a part of it",
        "a.safetensors is a pointer of Git LFS and not the file itself; git lfs pull",
    ]


RESTS = """\
# %% tags=["model"]
from types import SimpleNamespace

from torch import nn

from helpers.study import Study
from helpers.weights import Weights


def measure(data, *, seed, width):
    return {"score": width + seed}


def data():
    return SimpleNamespace(provenance=SimpleNamespace(real=True))


def learn(model, data):
    return {"accuracy": 1.0}


STUDY = Study("01_toy", measure, {"narrow": {"width": 2}}, data, seeds=(0, 1))
TEACHER, STUDENT = (Weights("01_toy", name, lambda: nn.Linear(3, 2), learn, data) for name in ("teacher", "student"))
"""


@pytest.fixture
def rests(tmp_path, monkeypatch):
    """A chapter with a study of which one run is measured and another lacks, and with two networks."""
    for module, folder in ((chapters, "chapters"), (study, "results"), (weights, "weights")):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(module, "FOLDER", tmp_path / folder)
    (tmp_path / "chapters/01_toy.py").write_text(RESTS)
    # the chapters that others hold stay the same objects
    monkeypatch.setattr(chapters, "chapter", functools.cache(chapters.chapter.__wrapped__))
    monkeypatch.setattr(chapters, "_finished", dict(chapters._finished))
    code = chapters.chapter("01_toy")
    run = {"arm": "narrow", "seed": 0, "config": {"width": 2}, "metrics": {"score": 2}, "data": "toy data"}
    code.STUDY._write({"code": study.code_of("01_toy", "measure"), "arms": {}, "seeds": [0, 1], "runs": [run]})
    code.TEACHER.make()
    code.STUDENT.make()
    return code


def test_what_a_chapter_rests_on_cannot_hide_the_rest(rests):
    unfinished = "results/01_toy.json is unfinished: 1 of 2 runs"
    assert check.rests_on("01_toy") == ([], [unfinished])
    truncated(rests.STUDY.path, 100)
    truncated(rests.TEACHER.path, 100)
    rests.STUDENT.path.unlink()
    (chapters.FOLDER / "02_broken.py").write_text('# %% tags=["model"]\ndef half(:\n')
    faults, remarks = check.rests_on("01_toy")
    assert [fault.split(" (")[0] for fault in faults] == [
        "results/01_toy.json cannot be read",
        "weights/01_toy_teacher.safetensors cannot be read",
        "weights/01_toy_student.safetensors is missing",
    ]
    (fault,), _ = check.rests_on("02_broken")
    assert "cannot be checked (SyntaxError" in fault and "02_broken.py" in fault


def test_what_nobody_foresaw_is_told_and_hides_nothing(rests, monkeypatch):
    monkeypatch.setattr(weights, "stale", lambda name: 1 / 0)
    assert check.rests_on("01_toy") == (
        ["its studies and weights cannot be checked (ZeroDivisionError: division by zero)"],
        ["results/01_toy.json is unfinished: 1 of 2 runs"],
    )


def test_described_picture_and_expected_error_pass(script):
    nb = notebook(script)
    bare_picture(nb)
    error(nb)
    cells = pairs.code_cells(nb)
    cells[3].metadata.mystnb = {"image": {"alt": "A dot"}}
    cells[2].metadata.tags = ["raises-exception"]
    nbformat.write(nb, script.with_suffix(".ipynb"))
    found = check.problems(script)
    assert not any("description" in message or "error" in message for message in found), found


def test_unknown_chapter_is_answered_with_the_known_ones(capsys):
    assert main(["check", "99_nothing"]) == 1
    answer = capsys.readouterr().err
    assert "99_nothing" in answer and all(name in answer for name in names())


def test_headline_wants_to_know_the_data():
    with pytest.raises(TypeError, match="provenance"):
        headline.headline("accuracy 42 %")
