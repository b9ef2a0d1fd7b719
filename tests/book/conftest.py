"""The small chapter of `small.py`, as it should be."""

import shutil

import pytest
import small

from book import run


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """A chapter that is as it should be, run once."""
    script = tmp_path_factory.mktemp("executed") / "01_small.py"
    script.write_text(small.SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COURSE_SOURCE", raising=False)
        assert run.full([script]) == 0
    return script


@pytest.fixture
def script(executed, tmp_path):
    """A copy of it, to break."""
    for path in (executed, executed.with_suffix(".ipynb")):
        shutil.copy(path, tmp_path)
    return tmp_path / executed.name
