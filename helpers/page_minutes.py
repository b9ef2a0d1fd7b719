"""The column *minutes* in the page "Which way through the book": what each chapter's last cell printed.

The rest of that page is written by hand. `text` gives the page with the column as it should be; `./course pages`
writes it.
"""

import json
import re

from helpers.chapters import FOLDER
from helpers.settings import ROOT

PAGE = ROOT / "pages" / "reading-orders.md"
ROW = re.compile(r"^(\| \[\d+ [^]]*\]\(\.\./chapters/(?P<name>\w+)\) \|.*\|)[^|]*\|$", re.MULTILINE)


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
    """The page as Markdown. Raises ValueError for a chapter that does not print its time."""
    return ROW.sub(lambda row: f"{row[1]} {minutes(row['name'])} |", PAGE.read_text("utf-8"))
