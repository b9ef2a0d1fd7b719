"""A sixteenth chapter: one pair, a line in `_toc.yml`, a link in `index.md`, results, weights; the book gathers it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.settings import ROOT

TEMPLATE = Path(__file__).parent / "template" / "16_toy.py"
PARTS = ("book", "helpers", "chapters", "pages", "results", "weights")
FILES = ("conf.py", "_config.yml", "_toc.yml", "README.md", "index.md", "references.bib", "pyproject.toml")


def contents_of(root):
    """Name and bytes of every file of the course under `root`; what is built or cached is none of it."""
    files = [path for part in PARTS for path in (root / part).rglob("*") if "__pycache__" not in path.parts]
    files += [root / name for name in FILES]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the course with one chapter more, measured, trained and run; a function that calls a verb there."""
    root = tmp_path_factory.mktemp("course")
    for part in PARTS:
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "*.part"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    before = contents_of(root)
    shutil.copy(TEMPLATE, root / "chapters")
    contents = (root / "_toc.yml").read_text()
    last = "      - file: chapters/15_grad_cam\n"
    assert contents.count(last) == 1
    (root / "_toc.yml").write_text(contents.replace(last, last + "      - file: chapters/16_toy\n"))
    with open(root / "index.md", "a") as preface:
        preface.write("\n[16 Toy](chapters/16_toy) is about no paper.\n")

    def call(*verb):
        own = {"PYTHONPATH": str(root), "COURSE_CACHE": str(root / "cache")}
        environment = os.environ | own | {"COURSE_SILENT": "1", "COURSE_SOURCE": "standin"}
        command = [sys.executable, "-m", "book", *verb]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(verb)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    call.root, call.before = root, before
    call("study", "16_toy")
    call("weights", "16_toy")
    call("run", "16_toy", "--full", "--allow-standin")
    call("pages")
    return call


def page(course, name):
    return (course.root / "pages" / f"{name}.md").read_text("utf-8")


def test_it_was_run(course):
    cells = json.loads((course.root / "chapters/16_toy.ipynb").read_text())["cells"]
    printed = json.dumps([cell.get("outputs") for cell in cells])
    assert "eight channels beat two" in printed and "width 16" in printed


def test_check_has_nothing_to_say(course):
    assert "agree" in course("check", "16_toy")


def test_results(course):
    found = page(course, "results")
    assert "[16 Toy](../chapters/16_toy) | eight channels beat two" in re.sub(" +", " ", found)
    assert "**The paper.** More channels tell red from blue better." in found and "`results/16_toy.json`" in found


def test_models(course):
    found = page(course, "models")
    assert "## [16 Toy](../chapters/16_toy)" in found and "| width 16" in found
    assert "[16 Toy network, 64" in found


def test_gallery(course):
    assert "[16 Toy network](../chapters/16_toy)" in page(course, "gallery")


def test_minutes(course):
    assert "| [16 Toy](../chapters/16_toy) | 1 |" in page(course, "reading-orders")


COMPUTED = ["results.md", "models.md", "models_counts.json", "gallery.md", "reading-orders.md"]
COMPUTED += ["_static/results-forest.webp"]


def test_nothing_else_was_touched(course):
    after = contents_of(course.root)
    assert {name for name in after if "16_toy" not in name} == set(course.before)
    changed = {name for name, content in course.before.items() if after[name] != content}
    assert changed - {f"pages/{name}" for name in COMPUTED} == {"_toc.yml", "index.md"}


def test_the_book(course):
    course("book")
    html = (course.root / "_build/html/chapters/16_toy.html").read_text("utf-8")
    assert "eight channels beat two" in html and 'alt="Two red and two blue pictures."' in html
    assert "16_toy.html" in (course.root / "_build/html/index.html").read_text("utf-8")
