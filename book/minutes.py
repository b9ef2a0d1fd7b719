"""The table in the page "Which way through the book": what each chapter needs, and how long its last run took.

The rest of that page is written by hand. `text` gives the page with the table as it should be.
"""

import json
import re

from book import pairs
from book.cards import card, link
from helpers.chapters import FOLDER, names
from helpers.settings import ROOT

PAGE = ROOT / "pages" / "reading-orders.md"
TABLE = re.compile(r"^\| chapter \|.*\n\|.*\n(?:\|.*\n)*", re.MULTILINE)
HEAD = "| chapter | builds on | minutes |\n|:--|:--|--:|\n"


def needs(name):
    """Numbers of the chapters that the card of `name` links to, such as "1, 2"."""
    found = re.findall(r"\]\((\d\d)_\w+\)", card(name).get("You need", ""))
    return ", ".join(str(int(number)) for number in sorted(set(found)))


def minutes(name):
    """How long the computations of a chapter's committed notebook took, such as "4.6". Raises ValueError without it."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]
    outputs = [output for cell in cells[-1:] for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    found = re.search(r"computations took ([\d.]+) minutes", printed)
    if found is None:
        raise ValueError(f"the last cell of chapters/{name}.ipynb does not print how long its computations took.")
    return found[1]


def text():
    """The page as Markdown. Raises ValueError for a chapter that does not print its time, or a page without table."""
    page = PAGE.read_text("utf-8")
    if len(TABLE.findall(page)) != 1:
        raise ValueError(f"pages/{PAGE.name} needs one table that begins with `| chapter |`.")
    rows = [f"| {link(name)} | {needs(name)} | {minutes(name)} |\n" for name in names()]
    return TABLE.sub(lambda _: HEAD + "".join(rows), page)


def write():
    """Write the page."""
    pairs.write({PAGE: text()})
