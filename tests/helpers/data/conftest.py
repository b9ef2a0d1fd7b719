"""What the tests of the data share: nothing from outside, and small data sets in a reader's folder."""

import shutil

import numpy as np
import pytest
from datafiles import TinyVOC, trust_batches, write_sheets
from PIL import Image

from helpers.data import banner, standin


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch, tmp_path):
    for variable in ("DATA", "SOURCE", "CALLER"):
        monkeypatch.delenv(f"COURSE_{variable}", raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_SILENT", "1")
    monkeypatch.setattr(banner, "_announced", set())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A reader's folder, empty, that COURSE_DATA names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("COURSE_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def drawn_batches(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    standin.write_cifar10(root, 120, 40)
    return root


@pytest.fixture
def batches(folder, drawn_batches, monkeypatch):
    """A reader's folder with 120 + 40 drawn images in CIFAR-10's official layout."""
    shutil.copytree(drawn_batches, folder, dirs_exist_ok=True)
    trust_batches(monkeypatch, folder / "cifar-10-batches-py")
    return folder


@pytest.fixture
def sheets(folder):
    train, labels, test, test_labels = standin.cifar10(40, 10)
    write_sheets(folder, train, labels, "train", 2)
    write_sheets(folder, test, test_labels, "test", 1)
    return folder


@pytest.fixture
def voc(folder):
    return TinyVOC(folder)


@pytest.fixture
def slices(folder):
    """30 slices of 64x48 pixels: slice n has grey value n; its mask is a cell in the left half."""
    for place in ("image", "label"):
        (folder / "isbi2012" / place).mkdir(parents=True)
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :32] = 255
    for n in range(30):
        Image.new("L", (64, 48), n).save(folder / f"isbi2012/image/{n:02}.png")
        Image.fromarray(mask).save(folder / f"isbi2012/label/{n:02}.png")
    return folder / "isbi2012"
