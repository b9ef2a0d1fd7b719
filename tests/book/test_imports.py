"""Arrows run one way: book -> chapters -> helpers. Imports say so, and so do calls of `chapter("NN_name")`."""

import ast
import re

import pytest

from helpers.settings import ROOT

# who may use what; tests and benchmarks may use all
ALLOWED = {
    "helpers": {"helpers"},
    "chapters": {"chapters", "helpers"},
    "book": {"book", "chapters", "helpers"},
}
LAYERS = {"helpers", "chapters", "book", "benchmarks", "tests"}
CHAPTER = re.compile(r"\d\d_\w+")


def uses(source, place):
    """What a file uses of the project: a list of (layer, line). `place`: its path, such as "helpers/data/voc.py"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [place.split("/")[0] if node.level else node.module]
        elif isinstance(node, ast.Call):
            names = _called(node)
        else:
            continue
        found += [(layer, node.lineno) for name in names if (layer := name.split(".")[0]) in LAYERS]
    return found


def _called(node):
    """What a call loads: `chapter("01_vgg")` a chapter, `import_module("book.run")` a module."""
    function = getattr(node.func, "id", getattr(node.func, "attr", None))
    first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    if not isinstance(first, str):
        return []
    if function == "chapter" and CHAPTER.fullmatch(first):
        return ["chapters"]
    return [first] if function in ("import_module", "__import__") else []


def wrong_arrows(root):
    """`file:line uses layer` for every arrow that runs another way."""
    found = []
    for layer, allowed in ALLOWED.items():
        for path in sorted((root / layer).rglob("*.py")):
            inside = path.relative_to(root)
            for used, line in uses(path.read_text("utf-8"), inside.as_posix()):
                if used not in allowed:
                    found.append(f"{inside}:{line} uses {used}")
    return found


def test_arrows_run_one_way():
    assert wrong_arrows(ROOT) == []


@pytest.mark.parametrize(
    "place, code, used",
    [
        ("helpers/a.py", "from book import run", "book"),
        ("helpers/data/a.py", "def f():\n    import book.run", "book"),
        ("helpers/a.py", "from helpers.chapters import chapter\nchapter('01_vgg').VGG", "chapters"),
        ("helpers/a.py", "chapters.chapter('01_vgg')", "chapters"),
        ("helpers/a.py", "import importlib\nimportlib.import_module('benchmarks.loops')", "benchmarks"),
        ("chapters/01_vgg.py", "from book.pairs import read", "book"),
        ("chapters/01_vgg.py", "import tests", "tests"),
        ("book/a.py", "from benchmarks import report", "benchmarks"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, place, code, used):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(code)
    assert [each.rpartition(" ")[2] for each in wrong_arrows(tmp_path)] == [used]


@pytest.mark.parametrize(
    "place, code",
    [
        ("helpers/data/a.py", "from . import voc\nfrom helpers import settings"),
        ("helpers/study.py", "chapters.chapter(name)"),
        ("chapters/02_resnet.py", "from helpers.chapters import chapter\nchapter('01_vgg')"),
        ("book/a.py", "from book import run\nfrom helpers.chapters import chapter\nchapter('01_vgg')"),
        ("tests/test_a.py", "import book, helpers, benchmarks"),
    ],
)
def test_a_right_arrow_is_not(tmp_path, place, code):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(code)
    assert wrong_arrows(tmp_path) == []
