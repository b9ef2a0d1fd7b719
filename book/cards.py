"""What a chapter says of itself at its head: its title and the rows of its card."""

import re

from helpers.chapters import FOLDER, check_name

TITLE = re.compile(r"^# # (?P<title>[^:\n]+)", re.MULTILINE)
ROW = re.compile(r"^# \| (?P<key>[^|\n]+) \| (?P<value>[^\n]+) \|$", re.MULTILINE)


def _head(name):
    text = (FOLDER / f"{check_name(name)}.py").read_text("utf-8")
    return text.split("\n# ## ", 1)[0]


def title(name):
    """The short title of chapter `name`, up to the colon: "VGG". Raises ValueError without one."""
    found = TITLE.search(_head(name))
    if found is None:
        raise ValueError(f"chapters/{name}.py has no title: begin its first cell with `# Name: what it is about`.")
    return found["title"]


def card(name):
    """The card of chapter `name`: "Paper", "Claim", … -> Markdown. Raises ValueError without a claim."""
    rows = {row["key"].strip(): row["value"].strip() for row in ROW.finditer(_head(name))}
    if "Claim" not in rows:
        raise ValueError(f"chapters/{name}.py has no claim in its card: write a row `| Claim | … |` under its title.")
    return rows


def link(name):
    """A link from a page of the book to chapter `name`: "[1 VGG](../chapters/01_vgg)"."""
    return f"[{int(name[:2])} {title(name)}](../chapters/{name})"
