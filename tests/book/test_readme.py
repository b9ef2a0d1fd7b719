"""README and preface: the picture is that of the committed networks, and no address is given that is none."""

import json
import re

import pytest
import torch

from book import banner, pages, readme, repository
from book.gallery import of_file
from helpers.settings import ROOT
from helpers.weights import explorable

NUMBERS = {14: "fourteen"}


def test_the_readme_is_as_pages_writes_it():
    assert readme.PAGE.read_text() == readme.text(), "./course pages"


def test_without_an_address_there_is_none(monkeypatch):
    monkeypatch.setattr(repository, "setting", lambda: "")
    assert "https://github" not in readme.text() and "git clone" in readme.text() and ".io" not in readme.text()


@pytest.mark.parametrize(
    "address, live",
    [("https://github.com/Someone/papers", "https://someone.github.io/papers/"), ("https://gitlab.com/a/papers", "")],
)
def test_with_an_address_it_can_be_cloned_and_read(monkeypatch, address, live):
    monkeypatch.setattr(repository, "setting", lambda: address)
    text = readme.text()
    assert f"git clone {address}\ncd papers\n./course run\n" in text
    assert (f"[Read the book]({live})" in text) == bool(live) and readme.live(address) == live


def test_it_says_for_whom_it_is_and_on_what_it_runs():
    text = readme.PAGE.read_text()
    assert "It is for students and engineers who know Python" in text
    assert "Linux, macOS or Windows with WSL" in text and "Python 3.11 or newer" in text


def test_how_to_run_begins_with_what_it_takes():
    top = (ROOT / "pages/how-to-run.md").read_text().split("\n## ")[1]
    for fact in ("Windows with WSL", "Python 3.11 or newer", "`git clone`", "6.8 GB"):
        assert fact in top
        assert fact in readme.PAGE.read_text(), "the two say different things"
    for fact in ("Windows with WSL", "Python 3.11 or newer", "6.8 GB"):
        assert fact in (ROOT / "index.md").read_text(), "the front page says something else"


def test_the_lines_of_the_reviews_are_the_last_that_the_preface_says():
    *before, last = (ROOT / "index.md").read_text().split("\n## ")
    assert last.startswith("From the reviews to the chapters") and "| line | review of |" in last
    assert "review" not in "".join(before) + readme.PAGE.read_text()


@pytest.mark.parametrize("name", ["README.md", "index.md"])
def test_the_picture_is_there_and_described(name):
    found = json.loads(banner.FOUND.read_text())
    alt, caption = re.search(
        r"!\[([^]]+)\]\(pages/_static/banner\.webp\)\n\n\*(.+?)\*\n", (ROOT / name).read_text(), re.S
    ).groups()
    assert "\n" not in alt, "the book would join the words"
    for text in (alt, caption):
        assert found["animal"] in text and NUMBERS[len(found["networks"])] in text.lower()


def test_the_picture_is_that_of_the_committed_networks():
    found = json.loads(banner.FOUND.read_text())["networks"]
    assert found == {network.title: of_file(network.path) for network in explorable()}, "./course pages --measure"


def test_the_maps_lie_beside_the_photograph():
    photograph = torch.zeros(3, 16, 16, dtype=torch.uint8)
    photograph[0] = 200
    maps = torch.zeros(9, 16, 16)
    maps[8, 4, 4] = 3.0
    picture = banner.tiles(photograph, maps)
    step = 16 + banner.GAP
    assert picture.size == ((2 + banner.COLUMNS) * step - banner.GAP, 2 * step - banner.GAP)
    assert picture.getpixel((3, 3)) == (200, 0, 0, 255)
    assert picture.getpixel((2 * step - 1, 3))[3] == 0, "a gap is not transparent"
    bright, dark = picture.getpixel((3 * step + 4, step + 4)), picture.getpixel((3 * step + 9, step + 9))
    assert sum(bright) > sum(dark) and dark[0] == 80


def test_the_stand_in_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    with pytest.raises(ValueError, match="needs a real photograph"):
        banner.measure()


def test_pages_writes_all_and_measures_on_request(monkeypatch, capsys, tmp_path):
    calls = []
    for page in pages.PAGES:
        monkeypatch.setattr(page, "write", lambda page=page: calls.append(page.PAGE.name))
    for page in pages.MEASURED:
        monkeypatch.setattr(page, "measure", lambda page=page: calls.append(page.__name__))
    from book.__main__ import main

    assert main(["pages"]) == 0
    assert calls[-1] == "README.md" and "book.banner" not in calls
    assert capsys.readouterr().out.splitlines() == [f"pages/{name}" for name in calls[:-1]] + ["README.md"]
    assert main(["pages", "--measure"]) == 0 and "book.banner" in calls
