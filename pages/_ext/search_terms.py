"""A search for a term of the glossary finds the chapters that explain it, first of all.

The full text alone does not do that: it takes "mAP" for "map", a word of every chapter.
"""

import re

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "pages/glossary"
ABBREVIATION = re.compile(r"\b(?=\w*[A-Z]\w*[A-Z])\w+\b")


def terms(env):
    """For each page, the terms and abbreviations of the glossary whose definition links to it."""
    if GLOSSARY not in env.found_docs:
        return {}
    found = {}
    for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        names = [node.astext() for node in item.findall(nodes.term)]
        words = [re.sub(r"\s*\(.*\)", "", name) for name in names] + ABBREVIATION.findall(item.astext())
        for link in item.findall(addnodes.pending_xref):
            found.setdefault(link["reftarget"].removeprefix("../").removeprefix("/"), set()).update(words)
    return found


def add_terms(app, doctree, page):
    if not hasattr(app.env, "course_terms"):
        app.env.course_terms = terms(app.env)
    entries = [("single", word, "", "main", None) for word in sorted(app.env.course_terms.get(page, ()))]
    if entries:
        doctree.append(addnodes.index(entries=entries))


def forget(app, env, docnames=None):
    if hasattr(env, "course_terms"):
        del env.course_terms


def setup(app):
    app.connect("env-updated", forget)
    app.connect("doctree-resolved", add_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
