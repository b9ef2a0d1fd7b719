"""Arrays kept from one session to the next: used while they are current, made again when they are not."""

import os
import stat
import sys

import numpy as np
import pytest
import torch
from datafiles import TinyVOC, same_scenes, thing
from PIL import Image

from helpers import data
from helpers.data import prepared
from helpers.data.devkit import Devkit


@pytest.fixture
def cached(voc, tmp_path):
    """A devkit, its arrays as first read, and the file they are kept in."""
    voc.mask("train_dog", np.full((40, 80), 12, np.uint8))
    first = data.voc_animals(32)
    [file] = (tmp_path / "cache" / "prepared").iterdir()
    return voc, first, file


def test_the_second_opening_reads_no_photograph(cached, monkeypatch):
    monkeypatch.setattr(Devkit, "read", lambda *_: pytest.fail("read again"))
    assert same_scenes(data.voc_animals(32), cached[1])


def test_another_size_or_another_folder_is_another_entry(cached, tmp_path, monkeypatch):
    assert data.voc_animals(48).train.images.shape[-1] == 48
    (tmp_path / "other").mkdir()
    TinyVOC(tmp_path / "other").add("train", "more", thing("cat", (1, 1, 9, 9)))
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "other"))
    assert len(data.voc_animals(32).train) == 2
    assert len(list(cached[2].parent.iterdir())) == 3


def test_a_changed_photograph_is_noticed(cached):
    voc, first, file = cached
    Image.new("RGB", (80, 40), (0, 0, 255)).save(voc.root / "JPEGImages/train_dog.jpg")
    again = data.voc_animals(32)
    assert not torch.equal(again.train.images, first.train.images)
    assert list(file.parent.iterdir()) == [file]


def test_a_new_reader_reads_again(cached, monkeypatch):
    voc_module = sys.modules["helpers.data.voc"]
    monkeypatch.setattr(voc_module, "READER", voc_module.READER + 1)
    monkeypatch.setattr(Devkit, "read", lambda *_: pytest.fail("read again"))
    with pytest.raises(pytest.fail.Exception):
        data.voc_animals(32)


@pytest.mark.parametrize("fault", ["a flipped bit", "cut short", "empty", "garbage"])
def test_a_damaged_cache_is_made_again(cached, fault):
    _, first, file = cached
    content = bytearray(file.read_bytes())
    if fault == "a flipped bit":
        content[len(content) // 2] ^= 1
    file.unlink()  # what is open stays as it is
    file.write_bytes({"cut short": content[:-10], "empty": b"", "garbage": b"x" * 500}.get(fault, content))
    assert same_scenes(data.voc_animals(32), first)
    assert prepared._read(file, _stamp(file)) is not None  # and is whole again


def _stamp(file):
    import safetensors

    with safetensors.safe_open(file, framework="pt") as opened:
        return opened.metadata()["fingerprint"]


def test_a_cache_that_cannot_be_written_costs_only_time(voc, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept.*COURSE_CACHE") as warned:
        assert data.voc_animals(32).provenance.real
    assert str(tmp_path) not in str(warned[0].message)


def test_a_failed_write_leaves_nothing_behind(cached, monkeypatch):
    import safetensors.torch

    def fail(_tensors, path, **_):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.warns(UserWarning, match="No space left"):
        data.voc_animals(48)
    assert list(cached[2].parent.iterdir()) == [cached[2]]


def test_drawing_on_an_image_does_not_change_the_cache(cached):
    opened = data.voc_animals(32)
    opened.train.images.fill_(7)
    assert same_scenes(data.voc_animals(32), cached[1])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_others_may_read_the_cache_as_the_umask_says(voc, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        data.voc_animals(32)
    finally:
        os.umask(before)
    [file] = (tmp_path / "cache" / "prepared").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_files_of_the_system_do_not_count(cached, monkeypatch):
    voc, first, _ = cached
    for place in ("JPEGImages", "Annotations"):
        (voc.root / place / ".DS_Store").write_bytes(b"")
        (voc.root / place / "._train_dog.jpg").write_bytes(b"")
    monkeypatch.setattr(Devkit, "read", lambda *_: pytest.fail("read again"))
    assert same_scenes(data.voc_animals(32), first)
