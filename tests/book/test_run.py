"""What `./course run` writes and refuses to write, and how it ends: by itself, by a limit, by a signal."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_notebook, new_output
from small import edit, notebook, outputs

from book import Trouble, check, pairs, run
from book.__main__ import main
from helpers import settings

# ----------------------------------------------------------------------------------------- for real


def test_full_run_writes_a_notebook_without_noise(executed):
    nb = notebook(executed)
    assert check.problems(executed) == []
    assert nb.metadata.course == {
        "code_sha": pairs.code_sha(nb),
        "outputs_sha": pairs.outputs_sha(nb),
        "cells_sha": pairs.cells_sha(nb),
        "profile": "full",
        "data": "CIFAR-10, 9 images",
        "real": True,
    }
    assert outputs(nb, 3)[0].text == "full 1\n"
    assert list(outputs(nb, 3)[1].data) == ["text/html"], "a widget without a kernel shows nothing"
    assert pairs.headlines(nb) == [{"text": "accuracy 42 %", "data": "CIFAR-10, 9 images", "real": True}]
    assert [path.name for path in executed.parent.iterdir() if path.suffix not in (".py", ".ipynb")] == []


def untidy(script):
    """A layout that a run mends."""
    edit(script, '# %% tags=["model"]', '# %%  tags = ["model"]')
    assert pairs.tidied(script) != script.read_text()


def test_full_run_mends_the_layout_of_the_script(script, monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    before = script.read_text()
    untidy(script)
    assert run.full([script]) == 0 and script.read_text() == before


def test_second_run_writes_the_same_bytes(script, monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    before = script.with_suffix(".ipynb").read_bytes()
    run.full([script])
    assert script.with_suffix(".ipynb").read_bytes() == before


def test_failed_full_run_changes_nothing_and_shows_the_cell(script):
    edit(script, "double(21)", "double(missing_name)")
    untidy(script)
    before = [path.read_bytes() for path in sorted(script.parent.iterdir())]
    with pytest.raises(Trouble, match="double\\(missing_name\\)(.|\n)*NameError"):
        run.full([script])
    assert [path.read_bytes() for path in sorted(script.parent.iterdir())] == before


def test_a_script_edited_during_its_run_keeps_the_edit(script, monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    untidy(script)
    append = f'open({str(script)!r}, "a").write("\\n# %%\\n1\\n")'
    edit(script, "double(21)\n", f"{append}\ndouble(21)\n")
    assert run.full([script]) == 1
    assert script.read_text().endswith("\n# %%\n1\n")


def test_full_run_refuses_the_standin_unless_asked(script, monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    before = script.with_suffix(".ipynb").read_bytes()
    with pytest.raises(Trouble, match="--allow-standin"):
        run.full([script])
    assert script.with_suffix(".ipynb").read_bytes() == before
    assert run.full([script], allow_standin=True) == 1
    assert any("do not come from the real data" in message for message in check.problems(script))


def test_full_run_refuses_a_chapter_that_does_not_name_its_data(script, monkeypatch):
    monkeypatch.delenv("COURSE_SOURCE", raising=False)
    edit(script, 'headline("accuracy 42 %", Provenance(real=real))', "real")
    with pytest.raises(Trouble, match="headline"):
        run.full([script])


# -------------------------------------------------------------------------------------------- quick


def test_quick_run_leaves_the_pair_alone_and_reports_a_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    before = script.with_suffix(".ipynb").read_bytes()
    assert run.quick([script], out=tmp_path / "run") == 0
    assert script.with_suffix(".ipynb").read_bytes() == before
    printed = capsys.readouterr().out
    assert "1/1" in printed and "accuracy 42 %  (drawn stand-in for CIFAR-10, seed 0, 9 images)" in printed
    assert "1 of 1 chapters ran on the drawn stand-in" in printed
    assert outputs(nbformat.read(tmp_path / "run/01_small.ipynb", 4), 3)[0].text == "quick 1\n"


def test_what_is_up_to_date_is_skipped(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    ran, execute = [], run.execute

    def noted(script, *arguments, **options):
        ran.append(script)
        return execute(script, *arguments, **options)

    monkeypatch.setattr(run, "execute", noted)

    def again(**more):
        del ran[:]
        assert run.quick([script], out=tmp_path / "run", **more) == 0
        return bool(ran), capsys.readouterr().out

    assert again()[0]
    skipped, printed = again()
    assert not skipped and "1 of 1 chapters are up to date" in printed and "1 of 1 chapters ran on the drawn" in printed
    assert again(again=True)[0]
    monkeypatch.setenv("COURSE_SOURCE", "auto")
    assert again()[0] and not again()[0]
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    (tmp_path / "data/cifar").mkdir(parents=True)
    assert again()[0] and not again()[0]
    (tmp_path / "data/cifar/batch").write_text("x")
    assert again()[0] and not again()[0]
    edit(script, "double(21)", "double(22)")
    assert again()[0] and not again()[0]


def test_quick_run_goes_on_after_a_failing_chapter(tmp_path, capsys):
    first, second = tmp_path / "01_bad.py", tmp_path / "02_good.py"
    first.write_text("# %%\nraise ValueError('no such layer')\n")
    second.write_text("# %%\n1 + 1\n")
    assert run.quick([first, second], out=tmp_path / "run") == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "no such layer" in printed and "02_good" in printed and "2/2" in printed
    assert not (tmp_path / "run/01_bad.ipynb").exists() and (tmp_path / "run/02_good.ipynb").exists()


def test_two_chapters_run_at_a_time_with_their_share_of_the_threads(tmp_path):
    meeting = """\
# %%
import os, pathlib, time
here = pathlib.Path({folder!r})
(here / "{mine}").touch()
for _ in range(3000):
    if (here / "{other}").exists():
        break
    time.sleep(0.1)
else:
    raise RuntimeError("the other chapter does not run beside this one")
print(os.environ["OMP_NUM_THREADS"])
"""
    scripts = [tmp_path / "01_a.py", tmp_path / "02_b.py"]
    for script, other in zip(scripts, reversed(scripts), strict=True):
        script.write_text(meeting.format(folder=str(tmp_path), mine=script.stem, other=other.stem))
    assert run.quick(scripts, out=tmp_path / "run") == 0
    nb = nbformat.read(tmp_path / "run/01_a.ipynb", 4)
    assert outputs(nb, 0)[0].text == f"{run.threads(2)}\n" and run.threads(1) is None


def test_what_is_left_is_that_of_the_chapters_so_far(tmp_path, monkeypatch, capsys):
    clock, seconds = [1000.0], {"02_b": 40, "03_c": 80, "04_d": 30, "05_e": 10}
    scripts = [tmp_path / f"{name}.py" for name in ("01_done", *seconds)]
    for script in scripts:
        script.touch()

    def one_after_the_other(work, scripts, jobs):
        for script in scripts:
            clock[0] += seconds[script.stem]
            yield script, (new_notebook(), seconds[script.stem])

    monkeypatch.setattr(run, "at_a_time", one_after_the_other)
    monkeypatch.setattr(run, "surroundings", lambda: b"")
    monkeypatch.setattr(run, "last_run", lambda path, state: new_notebook() if path.stem == "01_done" else None)
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])
    assert run.quick(scripts, out=tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "/5  " in line]
    assert [line.rpartition("  ")[2] for line in lines[:3]] == ["[2 min left]", "[2 min left]", "[50 s left]"]
    assert lines[3].split()[:4] == ["5/5", "05_e", "10.0", "s"] and "left" not in lines[3]


def test_a_relative_data_folder_is_the_callers_in_a_kernel_too(tmp_path, monkeypatch):
    """The kernel works in the folder of the chapters, where a folder of the same name lies."""
    for folder in ("chapters/data", "caller/data"):
        (tmp_path / folder).mkdir(parents=True)
    script = tmp_path / "chapters/01_small.py"
    script.write_text("# %%\nfrom helpers import settings\n\nprint(settings.data_folder())\n")
    monkeypatch.setenv("COURSE_CALLER", str(tmp_path / "caller"))
    monkeypatch.setenv("COURSE_DATA", "data")
    assert run.quick([script], out=tmp_path / "run") == 0
    nb = nbformat.read(tmp_path / "run/01_small.ipynb", 4)
    assert outputs(nb, 0)[0].text == f"{tmp_path / 'caller/data'}\n"


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "code",
    [
        "print(*range(50_000))",
        "for i in range(50_000): print(i, end=' ', flush=i % 100 == 0)",
        "for i in range(1000): print('#' * (i % 100), end='\\r')",
    ],
)
def test_a_long_line_is_joined_once(tmp_path, monkeypatch, code):
    cells, merged = [], run.merged
    monkeypatch.setattr(run, "merged", lambda outputs: cells.append(outputs) or merged(outputs))
    script = tmp_path / "01_long.py"
    script.write_text(f"# %%\n{code}\n")
    assert run.quick([script], out=tmp_path / "run") == 0
    assert len(cells) == 1, "it was joined again with every part"
    text = outputs(nbformat.read(tmp_path / "run/01_long.ipynb", 4), 0)[0].text
    assert text.split() == ([*map(str, range(50_000))] if "50_000" in code else ["#" * 99])


@pytest.mark.parametrize("code", ["for _ in range(10): print('x' * 1_000_000)", "while True: print('x' * 10_000)"])
def test_a_cell_that_prints_without_end_is_ended_and_named(tmp_path, capsys, code):
    script = tmp_path / "01_long.py"
    script.write_text(f"# %%\n1\n\n# %%\n{code}\n")
    assert run.quick([script], out=tmp_path / "run") == 1
    assert "Cell 2 prints or shows more than 2 MB; show less." in capsys.readouterr().out


SLEEPS = "time.sleep(300)"
PRINTS = "for _ in range(30_000): print('still here', flush=True), time.sleep(0.01)"


@pytest.mark.parametrize("code", [SLEEPS, PRINTS], ids=["silent", "printing"])
def test_a_cell_that_takes_too_long_is_named(tmp_path, capsys, code):
    script = tmp_path / "01_long.py"
    script.write_text(f"# %%\nimport time\n{code}\n")
    assert run.quick([script], out=tmp_path / "run", cell_timeout=2) == 1
    printed = capsys.readouterr().out
    assert "timed out" in printed and code in printed


def stream(name, text):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    "outputs, texts",
    [
        ([("stdout", "a"), ("stdout", "b\n")], [("stdout", "ab\n")]),
        ([("stderr", "e\n"), ("stdout", "a\n"), ("stderr", "f\n")], [("stdout", "a\n"), ("stderr", "e\nf\n")]),
        ([("stdout", "10 %\r20 "), ("stdout", "%\r30 %\n")], [("stdout", "30 %\n")]),
        ([("stdout", "bar\r")], [("stdout", "bar")]),
        ([("stdout", "ab\b\bxy\n\bz\n")], [("stdout", "xy\nz\n")]),
    ],
)
def test_what_a_terminal_would_show_is_kept(outputs, texts):
    found = run.merged([stream(*each) for each in outputs])
    assert [(each.name, each.text) for each in found] == texts


def test_every_letter_of_a_stream_is_looked_at_once(monkeypatch):
    seen, on_screen = [], run._on_screen
    monkeypatch.setattr(run, "_on_screen", lambda line: seen.append(len(line)) or on_screen(line))
    (found,) = run.merged([stream("stdout", "word " * 10) for _ in range(200)])
    assert sum(seen) == len(found.text) == 200 * 50


# ------------------------------------------------------------------------------------------ signals

SLOW = """\
# %%
import os, time
open({started!r}, "w").write(str(os.getpid()))
{rest}
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie answers, too
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])
@pytest.mark.parametrize(
    "number, rest",
    [(signal.SIGINT, SLEEPS), (signal.SIGTERM, SLEEPS), (signal.SIGTERM, PRINTS)],
    ids=["SIGINT", "SIGTERM", "SIGTERM, printing"],
)
def test_a_signal_ends_a_run_with_one_line_and_no_kernel_left(tmp_path, number, rest, full):
    chapters = [tmp_path / "01_slow.py", tmp_path / "02_slow.py"][: 1 if full else 2]
    for script in chapters:
        script.write_text(SLOW.format(started=str(script.with_suffix(".pid")), rest=rest))
    before = {path.name: path.read_bytes() for path in chapters}
    # the real command line on two chapters that take long
    start = f"""
import runpy, sys
from pathlib import Path
from book import run
run.FOLDER, run.RUNS = Path({str(tmp_path)!r}), Path({str(tmp_path / "run")!r})
run.check_name, run.names = lambda name: name, lambda: {[script.stem for script in chapters]!r}
run.surroundings = lambda: b""
run.quick.__defaults__ = (run.RUNS, *run.quick.__defaults__[1:])
sys.argv = ["book", "run"{', "--full"' if full else ""}]
runpy.run_module("book", run_name="__main__", alter_sys=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", start], cwd=settings.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [script.with_suffix(".pid") for script in chapters]
    deadline = time.monotonic() + 600  # ends a run that hangs
    while not all(pid.exists() and pid.read_text() for pid in pids):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert errors == "course: stopped. Committed files are as they were.\n"
    assert not [pid for pid in pids if alive(int(pid.read_text()))], "a kernel goes on"
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.py")} == before
    assert not [*tmp_path.rglob("*.ipynb"), *tmp_path.rglob("*.part")]


# --------------------------------------------------------------------------------------- in one line


def test_an_ascii_terminal_gets_question_marks_and_no_error(tmp_path):
    script = tmp_path / "01_small.py"
    script.write_text("# %%\nfrom types import SimpleNamespace\n\nfrom helpers.headline import headline\n\n"
                      'headline("±1 µm", SimpleNamespace(real=False))\n')  # fmt: skip
    code = (
        f"import sys; from pathlib import Path; from book import run, __main__ as m; "
        f"run.command = lambda options: run.quick([Path({str(script)!r})], out=Path({str(tmp_path / 'run')!r})); "
        f"sys.exit(m.main(['run']))"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=settings.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "?1 ?m" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "error, line",
    [
        (PermissionError(13, "Permission denied", "/somewhere/x"), "course: /somewhere/x: Permission denied"),
        (OSError(28, "No space left on device"), "course: No space left on device"),
        (Trouble("mend it"), "course: mend it"),
    ],
)
def test_trouble_is_one_line(monkeypatch, capsys, error, line):
    def broken(options):
        raise error

    monkeypatch.setattr(check, "command", broken)
    assert main(["check"]) == 1
    assert capsys.readouterr().err.strip() == line


def test_a_folder_that_cannot_be_written_to_is_named_before_a_chapter_starts(script, monkeypatch):
    monkeypatch.setattr(run, "execute", lambda *arguments, **more: pytest.fail("a chapter was started"))
    with pytest.raises(Trouble, match=r"01_small\.py/run/ cannot be written to: Not a directory\. .+ copy the course"):
        run.quick([script], out=script / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(Trouble, match=rf"{script.parent}/ cannot be written to: File too large\."):
            run.full([script])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(script.parent.iterdir())) == 2
