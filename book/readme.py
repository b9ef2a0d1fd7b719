"""The lines of README.md that depend on where the course is published: how to get it, and the link to the live book.

Without a public address (see `book.repository`) they name none. The rest of that file is written by hand.
"""

import re

from book import pairs, repository
from helpers.settings import ROOT

PAGE = ROOT / "README.md"
PLACE = re.compile(r"(?<=<!-- ./course pages: the way in -->\n)(?:.*\n)*?(?=<!-- end -->)")

UNPUBLISHED = """
Get the course into a folder, with `git clone` or as an archive, and go there:

```sh
cd cnn-papers
./course run
```
"""
PUBLISHED = """
```sh
git clone {address}
cd {name}
./course run
```
"""
LIVE = """
**[Read the book]({live})**, where the networks run in the page. Or run it yourself:
"""


def live(address):
    """Where the workflow publishes the book of a repository on GitHub; "" for any other."""
    found = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+)", address)
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else ""


def text():
    """The file as it should be. Raises ValueError for one without the two marks."""
    address, page = repository.setting(), PAGE.read_text("utf-8")
    if len(PLACE.findall(page)) != 1:
        raise ValueError(
            f"{PAGE.name} needs one place between `<!-- ./course pages: the way in -->` and `<!-- end -->`."
        )
    lines = PUBLISHED.format(address=address, name=address.rpartition("/")[2]) if address else UNPUBLISHED
    if where := live(address):
        lines = LIVE.format(live=where) + lines
    return PLACE.sub(lambda _: lines + "\n", page)


def write():
    """Write the file."""
    pairs.write({PAGE: text()})
