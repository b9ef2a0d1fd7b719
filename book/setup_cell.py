"""The cell with which a chapter starts on Colab, stamped into every chapter by `./course sync`.

It cannot import a helper, because fetching them is its job; so each chapter holds a copy. A course without a public
address (see `book.repository`) has no such cell.
"""

from book import repository

TAG = "setup-cell"
SETTINGS = {"jupyter": {"source_hidden": True}, "tags": ["hide-input", "skip-execution", TAG]}
SOURCE = """\
# Only on Colab, which starts without the course: fetch it. Everywhere else this cell does nothing.
import importlib.util, subprocess, sys  # noqa: E401

if importlib.util.find_spec("helpers") is None:
    subprocess.run("git clone -q --depth=1 {address} course", shell=True, check=True)
    subprocess.run("pip install -q --no-deps -e course", shell=True, check=True)
    sys.path.insert(0, "course")"""


def is_setup(cell):
    return TAG in cell.metadata.get("tags", [])


def source():
    """The cell's text, or "" for a course that has no public address."""
    address = repository.setting()
    return SOURCE.format(address=address) if address else ""


def stamp(nb):
    """Give a notebook, in place, the one setup cell that it should have, in front of its first code cell."""
    from nbformat.v4 import new_code_cell

    nb.cells = [cell for cell in nb.cells if not is_setup(cell)]
    if text := source():
        first = next((n for n, cell in enumerate(nb.cells) if cell.cell_type == "code"), len(nb.cells))
        nb.cells.insert(first, new_code_cell(text, metadata=SETTINGS))


def is_stamped(nb):
    """Whether a notebook has the setup cell that it should have."""
    return [cell.source for cell in nb.cells if is_setup(cell)] == list(filter(None, [source()]))
