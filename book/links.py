"""Citations and equation numbers as plain Markdown: JupyterLab, Colab and GitHub show no roles of Sphinx.

An author writes roles, `./course sync` makes links of them, and the book makes roles of the links again
(`pages/_ext/plain_links.py`), so that Sphinx still cites, numbers and warns:

    {cite}`he2016resnet`              [[He et al., 2016a](../pages/bibliography.md#he2016resnet)]
    $$ x^2 $$ (eq-square)             $$ x^2 \\tag{2.1} $$ <a id="eq-square"></a>
    {eq}`eq-square`                   [(2.1)](#eq-square)

Both halves of a pair have the links, because JupyterLab shows a paired notebook with the text of its script.
"""

import functools
import re

from book import Trouble
from helpers.settings import ROOT

BIB = ROOT / "references.bib"
BIBLIOGRAPHY = "../pages/bibliography.md"

_CITATION = rf"\[[^\[\]]+\]\({re.escape(BIBLIOGRAPHY)}#([^()\s]+)\)"
CITATIONS = re.compile(rf"\[({_CITATION}(?:, {_CITATION})*)\]")
EQUATION = re.compile(r'\\tag\{[\d.]+\} \$\$ <a id="([^"]+)"></a>')
REFERENCE = re.compile(r"\[\([\d.]+\)\]\(#([^()\s]+)\)")

CITE = re.compile(r"\{cite\}`([^`]+)`")
LABELLED = re.compile(r"\$\$ \(([\w-]+)\)")
EQ = re.compile(r"\{eq\}`([^`]+)`")


def as_roles(text):
    """Markdown with Sphinx's roles in place of the links."""
    text = CITATIONS.sub(lambda m: "{cite}`" + ",".join(re.findall(_CITATION, m[1])) + "`", text)
    text = EQUATION.sub(r"$$ (\1)", text)
    return REFERENCE.sub(r"{eq}`\1`", text)


def stamp(nb, chapter):
    """Write a notebook's roles as links, and its links anew, in place. `chapter`: its number, as in "(2.1)".

    Raises Trouble for a citation that references.bib does not have, and for an equation that the notebook does not.
    """
    cells = [cell for cell in nb.cells if cell.cell_type == "markdown"]
    texts = [as_roles(cell.source) for cell in cells]
    labels = LABELLED.findall("\n".join(texts))
    numbers = {label: f"{chapter}.{n}" for n, label in enumerate(labels, 1)}
    for cell, text in zip(cells, texts, strict=True):
        text = CITE.sub(lambda m: "[" + ", ".join(map(citation, m[1].split(","))) + "]", text)
        text = LABELLED.sub(lambda m: rf'\tag{{{numbers[m[1]]}}} $$ <a id="{m[1]}"></a>', text)
        cell.source = EQ.sub(lambda m: reference(m[1], numbers), text)


def citation(key):
    key = key.strip()
    if key not in names():
        raise Trouble(f"{{cite}}`{key}`: {BIB.name} has no entry of this name.")
    return f"[{names()[key]}]({BIBLIOGRAPHY}#{key})"


def reference(label, numbers):
    if label not in numbers:
        raise Trouble(f"{{eq}}`{label}`: this chapter has no equation of this name, as in $$ x $$ ({label}).")
    return f"[({numbers[label]})](#{label})"


@functools.cache
def names():
    """{key of references.bib: how the book cites it, such as "He et al., 2016a"}."""
    from pybtex.database import parse_file

    entries = parse_file(str(BIB)).entries.items()
    return {key: f"{_authors(entry.persons['author'])}, {entry.fields['year']}" for key, entry in entries}


def _authors(persons):
    last = [" ".join(map(str, [*person.rich_prelast_names, *person.rich_last_names])) for person in persons]
    return " and ".join(last) if len(last) < 3 else f"{last[0]} et al."
