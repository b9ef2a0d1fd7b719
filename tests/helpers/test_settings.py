import os
import shutil
import subprocess
from pathlib import Path

import pooch
import pytest

from helpers import settings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("PROFILE", "SOURCE", "DATA", "CACHE", "CALLER", "SILENT"):
        monkeypatch.delenv(f"COURSE_{name}", raising=False)


def test_defaults():
    assert settings.profile() == "full" and settings.source() == "auto"
    assert settings.data_folder() is None and settings.silent() is False
    assert settings.cache_folder().name == "cnn-papers"
    assert (settings.ROOT / "pyproject.toml").exists()


def test_values_are_read_when_asked_for(monkeypatch, tmp_path):
    for value in ("quick", "full"):
        monkeypatch.setenv("COURSE_PROFILE", value)
        assert settings.profile() == value
        assert settings.pick(full="full", quick="quick") == value
    for value in ("auto", "real", "standin"):
        monkeypatch.setenv("COURSE_SOURCE", value)
        assert settings.source() == value
    monkeypatch.setenv("COURSE_SOURCE", "")  # set and empty is not set
    assert settings.source() == "auto"
    monkeypatch.setenv("COURSE_SILENT", "1")
    assert settings.silent()
    monkeypatch.setenv("COURSE_SILENT", "0")
    assert not settings.silent()
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert settings.data_folder() == tmp_path
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "new"))
    assert settings.cache_folder() == tmp_path / "new"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_DATA", "~")
    assert settings.data_folder() == tmp_path
    monkeypatch.setenv("COURSE_CACHE", "~/cache")
    assert settings.cache_folder() == tmp_path / "cache"
    assert isinstance(settings.cache_folder(), Path)


def test_unknown_values_list_the_valid_ones(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "fast")
    with pytest.raises(ValueError, match="COURSE_PROFILE='fast' is unknown. Use one of: full, quick"):
        settings.profile()
    monkeypatch.setenv("COURSE_SOURCE", "Real")
    with pytest.raises(ValueError, match="COURSE_SOURCE='Real'.*auto, real, standin"):
        settings.source()


@pytest.mark.parametrize("values", [{"full": 1}, {}, {"full": 1, "quick": 2, "slow": 3}, {"full": 1, "fast": 2}])
def test_pick_wants_every_profile(values):
    with pytest.raises(ValueError, match="exactly these profiles: full, quick"):
        settings.pick(**values)


def test_a_data_folder_that_is_not_there(monkeypatch, tmp_path):
    for wrong in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("COURSE_DATA", str(wrong))
        with pytest.raises(FileNotFoundError, match=f"COURSE_DATA='{wrong}' is not a folder.*unset"):
            settings.data_folder()


@pytest.mark.parametrize("caller", [True, False], ids=["./course", "Python"])
def test_relative_folders_are_the_callers(monkeypatch, tmp_path, caller):
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("COURSE_DATA", "mine")
    monkeypatch.setenv("COURSE_CACHE", "cache")
    if caller:
        monkeypatch.setenv("COURSE_CALLER", str(tmp_path))
    monkeypatch.chdir(tmp_path / "elsewhere" if caller else tmp_path)
    assert settings.data_folder() == tmp_path / "mine"
    assert settings.cache_folder() == tmp_path / "cache"


def test_the_command_notes_where_it_was_called(tmp_path):
    (tmp_path / "course").mkdir()
    shutil.copy(settings.ROOT / "course", tmp_path / "course")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$COURSE_CALLER $PWD"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONDA_DEFAULT_ENV": "cnn-papers"}
    for verb in ("data", "run", "lab", "study"):
        done = subprocess.run(["course/course", verb], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout == f"{tmp_path} {tmp_path / 'course'}\n"


@pytest.mark.parametrize("name", ["DATA", "CACHE"])
def test_the_home_of_nobody_is_named(monkeypatch, name):
    monkeypatch.setenv(f"COURSE_{name}", "~nobody-of-that-name/data")
    ask = settings.data_folder if name == "DATA" else settings.cache_folder
    with pytest.raises(FileNotFoundError, match=f"COURSE_{name}='~nobody-of-that-name/data' .*Write the whole path"):
        ask()


def test_without_a_home_a_cache_is_asked_for(monkeypatch):
    monkeypatch.setattr(pooch, "os_cache", lambda name: f"~/.cache/{name}")  # what comes of a user without a home
    with pytest.raises(FileNotFoundError, match="no home folder.*Set COURSE_CACHE"):
        settings.cache_folder()
