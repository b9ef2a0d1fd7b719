"""The page "Bibliography" from references.bib, in plain Markdown: outside of the book, links of notebooks lead there.

In the book, `pages/_ext/plain_links.py` puts Sphinx's own bibliography in place of the list.
"""

import re

from book import pairs
from book.links import BIB, names
from helpers.settings import ROOT

PAGE = ROOT / "pages" / "bibliography.md"
HEAD = """\
# Bibliography

The fifteen papers, what their chapters lean on, and the data sets.
"""


def text():
    """The page as Markdown."""
    from pybtex.database import parse_file
    from pybtex.plugin import find_plugin

    style, markdown = find_plugin("pybtex.style.formatting", "unsrt")(), find_plugin("pybtex.backends", "markdown")()
    papers = style.format_entries(parse_file(str(BIB)).entries.values())
    written = {paper.key: " ".join(paper.text.render(markdown).split()) for paper in papers}
    written = {key: re.sub(r"\\([-.()])", r"\1", line) for key, line in written.items()}  # escaped, but harmless
    return HEAD + "".join(f'\n- <a id="{key}"></a>**{name}.** {written[key]}\n' for key, name in names().items())


def write():
    """Write the page."""
    pairs.write({PAGE: text()})
