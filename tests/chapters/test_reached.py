"""Every function and class of a chapter's model cells is reached by a test of the chapter."""

import ast
from pathlib import Path

import pytest

from helpers.chapters import chapter, names

HERE = Path(__file__).parent


def mentioned(source):
    """Names, attributes and texts in a Python source: how a test can speak of something."""
    nodes = list(ast.walk(ast.parse(source)))
    words = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | names_in(*nodes)
    return words | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def names_in(*parts):
    return {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)}


def declared(tree):
    """Names in what other tests build or load: networks beside a paper's figures, trained weights, a study's data."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    studies = [call for call in calls if call.func.id == "Study"]
    data = [part.value for call in studies for part in call.keywords if part.arg == "data"]
    positional = [part for call in studies for part in call.args[3:4]]
    return names_in(*data, *positional, *(call for call in calls if call.func.id in ("Variants", "Variant", "Weights")))


def unreached(source, said):
    """Functions and classes of a chapter's source that are neither `said` nor declared, nor used by one that is."""
    tree, parts = ast.parse(source), {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            parts[node.name] = node
        elif isinstance(node, ast.Assign):
            parts |= {name: node for target in node.targets for name in names_in(target)}
    reached, queue = set(), sorted(parts.keys() & (said | declared(tree)))
    while queue:
        name = queue.pop()
        reached.add(name)
        queue += sorted((names_in(parts[name]) & parts.keys()) - reached - set(queue))
    return sorted(name for name in parts.keys() - reached if not isinstance(parts[name], ast.Assign))


@pytest.mark.parametrize("name", names())
def test_every_function_is_reached_by_a_test(name):
    said = set().union(*(mentioned(path.read_text("utf-8")) for path in HERE.glob("test_*.py")))
    assert unreached(chapter(name).__source__, said) == []


def test_what_no_test_speaks_of_is_found():
    source = (
        "def used(): pass\ndef tested(): return TABLE\nTABLE = [used]\ndef forgotten(): tested()\nclass Alone: pass\n"
    )
    assert unreached(source, {"tested", "unknown"}) == ["Alone", "forgotten"]
    source = (
        "def build(): pass\ndef load(): pass\ndef train(): pass\nw = Weights(build)\ns = Study('x', train, {}, load)"
    )
    assert unreached(source, set()) == ["train"]
