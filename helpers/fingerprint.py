"""The hash of a function and of all that it uses in its chapter and in others: what numbers were measured with.

Text and comments do not count, nor does what `helpers` does.
"""

import ast
import functools
import hashlib

from helpers import chapters


def code_of(chapter_name, function):
    """The hash of a function in a chapter, sixteen hexadecimal digits."""
    return code_in(_source(chapter_name), function)


def code_in(source, function, source_of=None):
    """The same for the function of that name in any source text; `source_of` gives the source of a chapter."""
    sources, needed, queue = {"": source}, {}, [("", function)]
    while queue:
        place, name = queue.pop()
        if place not in sources:
            sources[place] = (source_of or _source)(place)
        parts = _definitions(sources[place]).get(name, [])
        if parts and (place, name) not in needed:
            needed[place, name] = parts
            for part in parts:
                queue += [(place, node.id) for node in ast.walk(part) if isinstance(node, ast.Name)]
                queue += _taken_from_chapters(part, sources[place])
    digest = hashlib.sha256()
    for key in sorted(needed):
        for part in needed[key]:
            digest.update(chapters.skeleton(part).encode())
    return digest.hexdigest()[:16]


def _source(chapter_name):
    return chapters.chapter(chapter_name).__source__


@functools.cache
def _definitions(source):
    """What the top level of a source defines: name -> the statements that do."""
    defined = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined[node.name] = [node]
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for name in ast.walk(target):  # `A, B = …` defines two names, `TABLE[key] = …` adds to one
                    if isinstance(name, ast.Name):
                        defined.setdefault(name.id, []).append(node)
    return defined


def _taken_from_chapters(part, source):
    """(chapter's name, name in it) of all that a statement takes by `chapter("NN").name`, or by another name of it."""
    known = {name: nodes[-1] for name, nodes in _definitions(source).items()}
    aliases = {}
    for node in [*known.values(), *ast.walk(part)]:
        if isinstance(node, ast.Assign):
            aliases |= _aliases(node)
    for node in ast.walk(part):
        if isinstance(node, ast.Attribute):
            name = node.value.id if isinstance(node.value, ast.Name) else None
            if place := aliases.get(name) or _named_chapter(node.value):
                yield place, node.attr


def _aliases(assignment):
    """What `A = chapter("01_vgg")` or `A, B = chapter("01_vgg"), chapter(...)` means: name -> chapter's name."""
    found = {}
    for target in assignment.targets:
        pairs = [(target, assignment.value)]
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            pairs = zip(target.elts, assignment.value.elts, strict=False)
        for name, value in pairs:
            if isinstance(name, ast.Name) and (place := _named_chapter(value)):
                found[name.id] = place
    return found


def _named_chapter(node):
    """The name in a call `chapter("01_vgg")` or `chapters.chapter("01_vgg")`, else None."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
        function = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        return node.args[0].value if function == "chapter" else None
