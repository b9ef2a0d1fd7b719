"""How much of a chapter's model cells its own tests run, line by line; without names, of every chapter.

    export OMP_NUM_THREADS=1 COURSE_PROFILE=quick COURSE_SOURCE=standin COURSE_SILENT=1
    .venv/bin/python -m tests.covered 01_vgg 07_cbam

Mutants are other code, so they are left out.
"""

import subprocess
import sys

import coverage
import pytest

from helpers import chapters
from tests.toys import AS_IT_IS

ENOUGH = 95
OTHER_CELLS = r'^# %%(?![^\n]*tags=\[[^\]\n]*"model")(?s:.*?)(?=^# %%|\Z)'


class AsItIs:
    """Of the tests that `holds` makes, only those of the chapter as it is."""

    def pytest_collection_modifyitems(self, items):
        faults = [item.callspec.params.get("fault") if hasattr(item, "callspec") else None for item in items]
        items[:] = [item for item, fault in zip(items, faults, strict=True) if fault in (None, AS_IT_IS)]


def covered(name):
    """Run the tests of one chapter; print the lines that they miss, and return the percentage of those they run."""
    lines = coverage.Coverage(data_file=None, include=[str(chapters.FOLDER / f"{name}.py")], config_file=False)
    lines.exclude(OTHER_CELLS)
    with lines.collect():
        code = pytest.main(["-q", "-p", "no:cacheprovider", f"tests/chapters/test_{name[3:]}.py"], plugins=[AsItIs()])
    if code:
        sys.exit(f"The tests of {name} fail (see above); what they run is not counted.")
    return lines.report(show_missing=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(covered(chapters.check_name(sys.argv[1])) < ENOUGH)
    # each in a process of its own, which loads the chapter anew
    results = [
        subprocess.run([sys.executable, "-m", "tests.covered", name]) for name in sys.argv[1:] or chapters.names()
    ]
    sys.exit(any(result.returncode for result in results))
