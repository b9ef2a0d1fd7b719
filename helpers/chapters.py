"""A chapter is also a library: `chapter("01_vgg").VGG` runs its cells tagged `model`, and no others."""

import ast
import functools
import re
import sys
import types

from helpers.settings import ROOT

FOLDER = ROOT / "chapters"
_HEADER = re.compile(r"^# %%(?P<title>.*)$")
_TAGS = re.compile(r"tags=\[(?P<tags>[^\]]*)\]")
_finished = {}  # name -> module, in the order in which their cells came to an end


def names():
    """The names of all chapters, in order."""
    return sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))


def check_name(name):
    """Return `name` if there is such a chapter, else raise ValueError with the list."""
    if name not in names():
        raise ValueError(f"there is no chapter {name!r}. The chapters are: {', '.join(names())}.")
    return name


def model_cells(path):
    """Source of the code cells tagged `model`, with every other line blank, so that line numbers stay true."""
    kept, keep = [], False
    for line in path.read_text("utf-8").splitlines():
        if header := _HEADER.match(line):
            tags = _TAGS.search(header["title"])
            keep = "[markdown]" not in header["title"] and tags is not None and '"model"' in tags["tags"]
        kept.append(line if keep else "")
    return "\n".join(kept) + "\n"


@functools.cache
def chapter(name):
    """The module made of chapter `name`'s cells tagged `model`; `__source__` is what was run. Once per process.

    Raises ValueError for an unknown name and lists the chapters.
    """
    path = FOLDER / f"{check_name(name)}.py"
    module = types.ModuleType(f"chapter_{name}", f"Definitions of {path.name}")
    module.__file__ = str(path)
    module.__source__ = model_cells(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(module.__source__, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    _finished.pop(name, None)
    _finished[name] = module
    return module


def declared(kind, only=None):
    """Every object of a class that chapters' model cells define, also in lists and tuples: (chapter's name, object).

    only: the name of one chapter; else all of them. What a chapter has from another belongs to that one alone.
    """
    return [(name, one) for name in ([check_name(only)] if only else names()) for one in _own(chapter(name), kind)]


def _own(module, kind):
    # a chapter that takes something over has waited until the other was finished
    modules = list(_finished.values())
    taken = [one for other in modules[: modules.index(module)] for one in _objects(other, kind)]
    found = {id(one): one for one in _objects(module, kind)}
    return [one for key, one in found.items() if key not in {id(other) for other in taken}]


def _objects(module, kind):
    for value in vars(module).values():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, kind):
                yield one


def skeleton(node):
    """A syntax tree as text, without docstrings and positions; every version of Python gives the same text.

    That of `ast.dump` differs between 3.11, 3.12 and 3.13, which print empty fields or leave them out.
    """
    if isinstance(node, list):
        return f"[{', '.join(map(skeleton, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    if isinstance(node, ast.JoinedStr):  # Python 3.12 ends some with an empty piece
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    given = [f"{name}={skeleton(value)}" for name, value in fields.items() if value not in (None, [])]
    return f"{type(node).__name__}({', '.join(given)})"
