import sys
import traceback

import pytest

from helpers import chapters

SOURCE = """\
# ---
# jupyter: {}
# ---

# %% [markdown]
# # Text that would not compile: $ %

# %% tags=["model"]
import torch


def double(x):
    return 2 * x

# %%
raise RuntimeError("a cell without the tag ran")

# %% [markdown] tags=["model"]
FOUR = NO_CODE = 6

# %% tags=["hide-cell", "model"] jupyter={"source_hidden": true}
def fail():
    raise ValueError("marked line")


FOUR = double(2)

# %% tags=["models", "nbval-check-output"]
FOUR = 5
"""
LINE = 1 + SOURCE.splitlines().index('    raise ValueError("marked line")')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "FOLDER", tmp_path)
    chapters.chapter.cache_clear()
    (tmp_path / "01_toy.py").write_text(SOURCE)
    (tmp_path / "02_other.py").write_text('# %% tags=["model"]\nVALUE = 2\n')
    (tmp_path / "draft.py").write_text("")
    yield tmp_path
    chapters.chapter.cache_clear()
    for name in ("chapter_01_toy", "chapter_02_other"):
        sys.modules.pop(name, None)


def test_only_model_cells_run(folder):
    toy = chapters.chapter("01_toy")
    assert toy.FOUR == 4 and not hasattr(toy, "NO_CODE") and toy.double(3) == 6
    assert toy.__file__ == str(folder / "01_toy.py") and sys.modules["chapter_01_toy"] is toy


def test_tracebacks_point_at_the_line_of_the_script(folder):
    with pytest.raises(ValueError) as caught:
        chapters.chapter("01_toy").fail()
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.filename, frame.lineno) == (str(folder / "01_toy.py"), LINE)
    assert frame.line == 'raise ValueError("marked line")'


def test_a_chapter_runs_once(folder):
    assert chapters.chapter("01_toy") is chapters.chapter("01_toy")


def test_an_unknown_chapter_lists_the_names(folder):
    assert chapters.names() == ["01_toy", "02_other"]
    with pytest.raises(ValueError, match="no chapter '03_new'. The chapters are: 01_toy, 02_other"):
        chapters.chapter("03_new")
    with pytest.raises(ValueError, match="01_toy, 02_other"):
        chapters.check_name("draft")


def test_a_chapter_that_fails_leaves_nothing_behind(folder):
    (folder / "02_other.py").write_text('# %% tags=["model"]\nVALUE = 1 / 0\n')
    with pytest.raises(ZeroDivisionError):
        chapters.chapter("02_other")
    assert "chapter_02_other" not in sys.modules
    (folder / "02_other.py").write_text('# %% tags=["model"]\nVALUE = 3\n')
    assert chapters.chapter("02_other").VALUE == 3


def test_dataclasses_work_in_a_chapter(folder):
    (folder / "02_other.py").write_text(
        '# %% tags=["model"]\nfrom __future__ import annotations\nfrom dataclasses import dataclass\n\n\n'
        "@dataclass\nclass Point:\n    x: int\n"
    )
    assert chapters.chapter("02_other").Point(3).x == 3
