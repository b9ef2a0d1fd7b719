"""Every function and class of a chapter's model cells is reached by the chapter's own tests."""

import ast
from pathlib import Path

import pytest

from helpers.chapters import FOLDER, model_cells, names

HERE = Path(__file__).parent
DECLARING = {"Study", "Claims", "Variants", "Variant", "Weights"}
# what tests of all chapters build from a declaration, and data, which are no more than a call of `helpers.data`
BUILT = {"Study": {"data": 3}, "Weights": {"build": 2, "data": 4}}


def mentioned(source):
    """Names and attributes in a Python source, and texts: how a test can speak of something."""
    nodes = list(ast.walk(ast.parse(source)))
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | names_in(*nodes)
    return words | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def names_in(*parts):
    return {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}


def declarations(tree):
    """The calls that declare something to the book."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [call for call in calls if call.func.id in DECLARING]


def built(tree):
    """Names in what tests of all chapters build: networks beside a paper's figures, trained networks, data."""
    found = set()
    for call in declarations(tree):
        if call.func.id in ("Variants", "Variant"):
            found |= names_in(call)
        for name, place in BUILT.get(call.func.id, {}).items():
            given = [part.value for part in call.keywords if part.arg == name]
            found |= names_in(*given, *call.args[place : place + 1])
    return found


def unreached(source, said):
    """Functions and classes of a chapter's source that are neither `said` nor built, nor used by one that is.

    Who speaks of a study or of trained weights has not run their training: declarations lead nowhere.
    """
    tree, parts = ast.parse(source), {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            parts[node.name] = node
        elif isinstance(node, ast.Assign) and not declarations(node):
            parts |= {name: node for target in node.targets for name in names_in(target)}
    reached, queue = set(), sorted(parts.keys() & (said | built(tree)))
    while queue:
        name = queue.pop()
        reached.add(name)
        queue += sorted((names_in(parts[name]) & parts.keys()) - reached - set(queue))
    return sorted(name for name in parts.keys() - reached if not isinstance(parts[name], ast.Assign))


@pytest.mark.parametrize("name", names())
def test_every_function_is_reached_by_a_test_of_its_chapter(name):
    tests = (HERE / f"test_{name[3:]}.py").read_text("utf-8")
    assert unreached(model_cells(FOLDER / f"{name}.py"), mentioned(tests)) == []


def test_what_no_test_speaks_of_is_found():
    source = (
        "def used(): pass\ndef tested(): return TABLE\nTABLE = [used]\ndef forgotten(): tested()\nclass Alone: pass\n"
    )
    assert unreached(source, {"tested", "unknown"}) == ["Alone", "forgotten"]


def test_a_declaration_does_not_reach_a_training():
    source = "\n".join(f"def {name}(): pass" for name in ("build", "load", "train", "learn", "network"))
    source += (
        "\nw = Weights('x', 'n', build, train=learn)\ns = Study('x', train, {}, load)\nv = [Variant('n', network)]"
    )
    assert unreached(source, {"w", "s"}) == ["learn", "train"]
    assert unreached(source, {"learn", "train"}) == []
