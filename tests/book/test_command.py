"""`./course` itself: what it installs and when, with a stand-in for Python that only notes what it is asked to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import edit

from book import lab, links, sync
from book.__main__ import main
from helpers.settings import ROOT

FAKE = """#!/bin/sh
# plays python3: answers the questions of ./course and writes down every call
echo "$*" >> "$LOG"
case "$*" in
    *version_info*) exit ${TOO_OLD:-0} ;;
    *ensurepip*) exit ${NO_VENV:-0} ;;
    *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; touch .venv/pip ;;
    *"pip --version"*) [ -e .venv/pip ] ;;
    *urlopen*) sleep ${SLOW:-0}; exit ${NO_INDEX:-0} ;;
    *"pip install"*) echo "constraint $PIP_CONSTRAINT" >> "$LOG"
        case "$*" in *extra-index-url*) exit ${BAD_INDEX:-${NO_NETWORK:-0}} ;; *) exit ${NO_NETWORK:-0} ;; esac ;;
    --version) echo Python 3.9.1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """`run(*arguments)` calls ./course in a copy, from another folder; returns exit code, messages and Python's log."""
    (tmp_path / ".binder").mkdir()
    for name in ("course", "pyproject.toml", ".binder/requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python-fake"
    python.write_text(FAKE)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments, **variables):
        log.write_text("")
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG": str(log), "PIP_CONSTRAINT": "c.txt"}
        done = subprocess.run(
            [tmp_path / "course", *arguments], cwd="/", env=environment | variables, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr, log.read_text()

    run.folder = tmp_path
    return run


def test_first_use_installs_and_the_next_does_not(checkout):
    code, _, log = checkout("check", "01_vgg")
    assert code == 0 and log.count("pip install") == 1 and "-e .[course]\n" in log
    assert "constraint c.txt" in log
    assert log.splitlines()[-1] == "-m book check 01_vgg"
    assert "pip install" not in checkout("check")[2]


def test_every_verb_installs_only_what_it_needs(checkout):
    assert "-e .[book]\n" in checkout("book")[2]
    assert "-e .[course]\n" in checkout("check")[2]
    assert "pip install" not in checkout("book")[2]
    assert "-e .[test]\n" in checkout("test")[2]
    assert "pip install" not in checkout("book")[2] + checkout("check")[2] + checkout("bench")[2]


def test_changed_dependencies_are_installed(checkout):
    checkout("check")
    with open(checkout.folder / "pyproject.toml", "a") as file:
        file.write("# one more\n")
    assert "pip install" in checkout("check")[2]


def test_failed_installation_says_so_and_is_tried_again(checkout):
    code, answer, log = checkout("check", NO_NETWORK="1")
    assert code == 1 and "pip could not install" in answer and "-m book" not in log
    assert "pip install" in checkout("check")[2]


def test_half_made_environment_is_made_again(checkout):
    checkout("check")
    (checkout.folder / ".venv/pip").unlink()
    (checkout.folder / ".venv/course-course").unlink()
    assert "-m venv --clear" in checkout("check")[2]


# ------------------------------------------------------------------------------------ which PyTorch

no_card = pytest.mark.skipif(
    sys.platform != "linux" or Path("/proc/driver/nvidia").exists(), reason="about Linux without an NVIDIA card"
)
INDEX = "https://download.pytorch.org/whl/cpu"


def installed(log):
    return [line for line in log.splitlines() if "pip install" in line]


@no_card
def test_without_a_card_it_takes_the_pytorch_for_the_cpu_and_says_so(checkout):
    _, answer, log = checkout("check")
    (call,) = installed(log)
    assert call.endswith(f"--extra-index-url {INDEX} -e .[course]") and f"for the CPU, from {INDEX}" in answer


@no_card
def test_an_index_that_does_not_answer_costs_two_seconds_and_is_left_out(checkout):
    """Left alone, it would answer in the end, and be taken."""
    noted = checkout.folder / "timeout"
    noted.write_text(f'#!/bin/sh\necho "timeout $1" >> "$LOG"\nexec {shutil.which("timeout")} "$@"\n')
    noted.chmod(0o755)
    code, answer, log = checkout("check", SLOW="30", PATH=f"{checkout.folder}:{os.environ['PATH']}")
    assert code == 0 and "timeout 2\n" in log
    (call,) = installed(log)
    assert call.endswith("--disable-pip-version-check -e .[course]") and "does not answer" in answer
    assert "constraint c.txt" in log


@no_card
def test_an_index_that_fails_is_left_out(checkout):
    code, _, log = checkout("test", BAD_INDEX="1")
    assert code == 0 and [INDEX in call for call in installed(log)] == [True, False]


@no_card
@pytest.mark.parametrize("reason", ["a card", "an index of one's own", "PyTorch is there", "no PyTorch is needed"])
def test_nothing_is_chosen_where(checkout, reason):
    verb, variables = "check", {}
    if reason == "a card":
        (checkout.folder / "nvidia-smi").write_text("#!/bin/sh\n")
        (checkout.folder / "nvidia-smi").chmod(0o755)
        variables["PATH"] = f"{checkout.folder}:{os.environ['PATH']}"
    if reason == "an index of one's own":
        variables["PIP_INDEX_URL"] = "https://mirror.example.org"
    if reason == "PyTorch is there":
        checkout("check")
        (checkout.folder / ".venv/lib/python3.12/site-packages/torch").mkdir(parents=True)
        (checkout.folder / ".venv/course-course").unlink()
    if reason == "no PyTorch is needed":
        verb = "book"
    _, answer, log = checkout(verb, **variables)
    assert installed(log) and INDEX not in log + answer and "urlopen" not in log


def test_the_address_of_that_pytorch_stands_in_one_place():
    found = subprocess.run(["git", "grep", "-l", INDEX, "--", ":!tests"], cwd=ROOT, capture_output=True, text=True)
    if "not a git repository" in found.stderr:
        pytest.skip("not a checkout of git")
    assert found.stdout.split() == [".binder/requirements.txt"], found.stderr


def test_the_book_needs_no_pytorch(tmp_path):
    """A page with a live figure and the bibliography, by the command line, with the extra `[book]` alone."""
    source, blocked = tmp_path / "source", tmp_path / "blocked"
    shutil.copytree(ROOT / "pages", source / "pages")
    for name in ("conf.py", "_config.yml", "references.bib"):
        shutil.copy(ROOT / name, source)
    (source / "index.md").write_text("# A book\n\n{cite}`simonyan2015vgg` and [a page](pages/bibliography).\n")
    (source / "pages/live.md").write_text('# Live\n\n<div class="live" data-figure="page">It stays still.</div>\n')
    chapters = "[{file: pages/bibliography}, {file: pages/live}]"
    (source / "_toc.yml").write_text(f"format: jb-book\nroot: index\nchapters: {chapters}\n")
    blocked.mkdir()
    absent = "torch torchvision matplotlib numpy scipy jupytext pooch"
    (blocked / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({absent.split()})\n")
    build = f"b.HTML = Path({str(tmp_path / 'html')!r}); b.build.__defaults__ = (b.HTML, Path({str(source)!r}))"
    code = f"import sys; from pathlib import Path; from book import __main__ as m, build as b; {build}; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(m.main(['book']))"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Live figures stay still" in done.stderr, done.stderr
    assert "It stays still." in (tmp_path / "html/pages/live.html").read_text()
    assert not (tmp_path / "html/_static/live/start.js").exists()


# ----------------------------------------------------------------------------------- sync, backwards


@pytest.fixture
def halves(script, tmp_path, monkeypatch):
    """The small chapter as the course, and the lab's copy of it: {option of sync: notebook that it reads}."""
    lab.prepare(tmp_path / "lab", script.parent)
    monkeypatch.setattr(lab, "CHAPTERS", tmp_path / "lab/chapters")
    monkeypatch.setattr(sync, "FOLDER", script.parent)
    monkeypatch.setattr(sync, "names", lambda: [script.stem])
    monkeypatch.setattr(sync, "check_name", lambda name: name)
    notebook = script.with_suffix(".ipynb")
    return {"--from-notebook": notebook, "--from-lab": lab.CHAPTERS / notebook.name}


BACKWARDS = ["--from-notebook", "--from-lab"]


@pytest.mark.parametrize("option", BACKWARDS)
def test_sync_takes_the_text_from_where_it_is_told(script, halves, option, capsys):
    edit(halves[option], "# A small chapter", "# A little chapter")
    assert main(["sync", option, script.stem]) == 0
    assert "# # A little chapter\n" in script.read_text() and "little" in halves["--from-notebook"].read_text()
    assert capsys.readouterr().out == "1 chapter(s): script and notebook agree, outputs are fresh.\n"


@pytest.mark.parametrize("option", BACKWARDS)
def test_sync_backwards_wants_a_name(script, halves, option, capsys):
    edit(halves[option], "# A small chapter", "# A little chapter")
    assert main(["sync", option]) == 1
    assert capsys.readouterr().err == f"course: say which chapter: ./course sync NAME {option}\n"
    assert "little" not in script.read_text()


def test_links_of_the_labs_copy_lead_to_its_bibliography(halves):
    page = (lab.CHAPTERS / links.BIBLIOGRAPHY).resolve()
    assert page.is_relative_to(lab.CHAPTERS.parent) and 'id="simonyan2015vgg"' in page.read_text("utf-8")


# ------------------------------------------------------------------------------------------ refusals


def test_old_python_is_refused_by_name(checkout):
    code, answer, log = checkout("check", TOO_OLD="1")
    assert code == 1 and "Python 3.9.1 is too old: Python 3.11" in answer and "venv" not in log


def test_missing_venv_module_names_the_package(checkout):
    code, answer, _ = checkout("check", NO_VENV="1")
    assert code == 1 and "apt install python3-venv" in answer


def test_active_conda_environment_is_used(checkout):
    (checkout.folder / "bin").mkdir()
    shutil.copy(checkout.folder / "python-fake", checkout.folder / "bin/python")
    path = f"{checkout.folder / 'bin'}:{os.environ['PATH']}"
    assert checkout("check", CONDA_DEFAULT_ENV="cnn-papers", PATH=path)[2] == "-m book check\n"
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize("arguments, code", [(["fly"], 2), ([], 2), (["help"], 0)])
def test_usage(checkout, arguments, code):
    got, answer, log = checkout(*arguments)
    assert got == code and "usage: ./course VERB" in answer and not log
    assert ("there is no verb 'fly'" in answer) == (arguments == ["fly"])


@pytest.mark.parametrize(
    "arguments, call",
    [
        (["run", "01_vgg", "--full"], "-m book run 01_vgg --full"),
        (["study", "01_vgg"], "-m book study 01_vgg"),
        (["weights", "01_vgg"], "-m book weights 01_vgg"),
        (["data", "fetch", "cifar10"], "-m book data fetch cifar10"),
        (["bench"], "-m benchmarks"),
        (["lab", "--no-browser"], "-m book lab --no-browser"),
        (["test", "tests/book/test_pairs.py"], "-m pytest -n 2 --dist loadfile"),
    ],
)
def test_verbs_reach_their_modules(checkout, arguments, call):
    code, _, log = checkout(*arguments)
    assert code == 0 and log.splitlines()[-1].startswith(call)
    assert log.splitlines()[-1].endswith(arguments[-1]) or arguments == ["bench"]


def test_tests_start_with_the_checks(checkout):
    calls = [line for line in checkout("test")[2].splitlines() if line.startswith(("-m book", "-m pytest"))]
    assert calls[0] == "-m book check" and calls[1].endswith("tests chapters")
