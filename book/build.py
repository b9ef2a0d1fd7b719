"""`./course book`: Sphinx builds the book from the committed notebooks, warnings as errors."""

import os
import subprocess
import sys
import time

from book import BUILD, repository, shown
from helpers.settings import ROOT

HTML = BUILD / "html"


def add_arguments(parser):
    parser.description = "Build the book from the committed notebooks."


def command(options=None):
    start, code = time.perf_counter(), build()
    where = shown(HTML / "index.html")
    if code == 0:
        print(f"Book ({time.perf_counter() - start:.0f} s): {where}")
    else:
        print(f"The book has the problems above. As far as it got: {where}", file=sys.stderr)
    return code


def build(out=HTML, source=ROOT):
    """Build the book at `source` into `out`. Returns Sphinx's exit code.

    Buttons lead to the repository's public address; a course without one has none (see `book.repository`).
    """
    # not in parallel (-j): an extension that cannot warns about it, and that would be an error
    arguments = ["-W", "--keep-going", "-n", "-q", "-b", "html", "-d", str(out.parent / ".doctrees")]
    return subprocess.call(
        [sys.executable, "-m", "sphinx", *arguments, str(source), str(out)],
        env=os.environ | {"COURSE_REPOSITORY": os.environ.get("COURSE_REPOSITORY") or repository.address()},
        start_new_session=True,  # Ctrl-C is for us: `call` ends Sphinx, and one line says so
    )
