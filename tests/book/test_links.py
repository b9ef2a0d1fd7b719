"""What chapters write as plain links is, in the book, a citation or an equation number that Sphinx made."""

import re
import shutil
from html import unescape

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from book import bibliography, build, links
from helpers.settings import ROOT

EQUATIONS = """
$$ 1 $$

$$ x $$ (eq-first)

$$ 1
$$ (eq-second)

By {eq}`eq-second` and {eq}`eq-first`.
"""


@pytest.fixture
def source(tmp_path):
    """A book of a bibliography and two chapters; the second has all citations there are, and two equations."""
    for name in ("conf.py", "_config.yml", "references.bib"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("_ext", "_static"):
        shutil.copytree(ROOT / "pages" / folder, tmp_path / "pages" / folder)
    shutil.copy(ROOT / links.BIBLIOGRAPHY.removeprefix("../"), tmp_path / "pages")
    (tmp_path / "chapters").mkdir()
    (tmp_path / "index.md").write_text("# A book\n")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nparts:\n- chapters: [{file: pages/bibliography}]\n"
        "- numbered: true\n  chapters: [{file: chapters/01_first}, {file: chapters/02_second}]\n"
    )
    first = new_markdown_cell("# A chapter\n\n$$ 1 $$ (eq-other)")
    nbformat.write(new_notebook(cells=[first]), tmp_path / "chapters/01_first.ipynb")
    cited = "\n\n".join(f"{{cite}}`{key}`" for key in links.names())
    nb = new_notebook(cells=[new_markdown_cell(f"# A chapter\n\n{cited}"), new_markdown_cell(EQUATIONS)])
    links.stamp(nb, 2)
    nbformat.write(nb, tmp_path / "chapters/02_second.ipynb")
    return tmp_path


def test_the_book_cites_and_numbers_as_the_links_say(source, tmp_path):
    assert build.build(tmp_path / "out/html", source) == 0
    page = (tmp_path / "out/html/chapters/02_second.html").read_text()
    page = page[page.index("<article") : page.index("</article>")]
    labels = re.findall(r'bibliography\.html#[\w-]+" title="[^"]+">(.*?)</a>', page)
    assert [unescape(re.sub("<[^>]+>", "", label)) for label in labels] == list(links.names().values())
    assert re.findall(r'href="#equation-(eq-\w+)">(.*?)</a>', page) == [("eq-second", "(2.2)"), ("eq-first", "(2.1)")]
    written = nbformat.read(source / "chapters/02_second.ipynb", as_version=4).cells[1].source
    assert "By [(2.2)](#eq-second) and [(2.1)](#eq-first)." in written
    listed = (tmp_path / "out/html/pages/bibliography.html").read_text()
    assert listed.count('class="citation"') == len(links.names()) and "2016a.</strong>" not in listed
    assert "](#" not in page and "\\tag" not in page and "bibliography.md" not in page


def test_an_unknown_name_reaches_sphinx():
    """Sphinx refuses such a role: see test_book.py."""
    link = "[[N, 1999](../pages/bibliography.md#nobody1999)] and [(2.1)](#eq-nobody)"
    assert links.as_roles(link) == "{cite}`nobody1999` and {eq}`eq-nobody`"


def test_the_bibliography_is_that_of_the_references():
    page = bibliography.PAGE.read_text()
    assert page == bibliography.text(), "./course pages"
    assert re.findall(r'<a id="([\w-]+)"></a>\*\*(.+?)\.\*\* \w', page) == list(links.names().items())
    assert "**He et al., 2016a.** Kaiming He, Xiangyu Zhang, Shaoqing Ren, and Jian Sun" in page
