"""ISBI 2012: slices, cells drawn in their place, and files that are refused by name."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data
from helpers.data.standin import cells

REAL = os.environ.get("COURSE_DATA")


def test_slices(slices):
    dataset = data.isbi2012()
    assert dataset.train.images.shape == (25, 1, 48, 64) and dataset.test.targets.shape == (5, 48, 64)
    assert dataset.test.images[:, 0, 0, 0].tolist() == [25, 26, 27, 28, 29]
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(25))
    assert (dataset.train.targets[:, :, :32] == 1).all() and (dataset.train.targets[:, :, 32:] == 0).all()
    assert str(
        dataset.provenance
    ) == "ISBI 2012, 25 + 5 images of 64x48 pixels (published: 512x512)" and dataset.classes == ("membrane", "cell")
    assert dataset.normalize(dataset.test.images).shape == (5, 1, 48, 64)


def test_slices_at_another_size(slices):
    dataset = data.isbi2012(size=32)
    assert dataset.train.images.shape == (25, 1, 32, 32) and dataset.train.images.dtype == torch.uint8
    assert dataset.test.images[:, 0, 5, 5].tolist() == [25, 26, 27, 28, 29]
    assert dataset.train.targets.dtype == torch.uint8
    assert (dataset.train.targets[:, :, :16] == 1).all() and (dataset.train.targets[:, :, 16:] == 0).all()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda s: (s / "image/07.png").unlink(), "image holds 29 PNG files; the 30 annotated"),
        (lambda s: (s / "label/07.png").unlink(), "label/07.png is missing"),
        (lambda s: (s / "label/07.png").write_bytes(b"no"), "label/07.png cannot be read"),
        (lambda s: Image.new("L", (63, 48)).save(s / "label/07.png"), "label/07.png is 63x48 pixels"),
        (lambda s: Image.new("L", (64, 48), 9).save(s / "label/07.png"), "label/07.png must hold 255"),
    ],
)
def test_faulty_slices_are_refused_by_name(slices, fault, words):
    fault(slices)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        data.isbi2012()


def test_drawn_cells():
    images, masks = cells.draw(2)
    assert images.shape == (2, 1, 512, 512) and masks.shape == (2, 512, 512)
    assert 0.6 < masks.float().mean() < 0.85
    inside, wall = (images[:, 0][masks == value].float().mean() for value in (1, 0))
    assert inside > wall + 40  # membranes are dark
    assert torch.equal(cells.draw(1)[0], images[:1])  # a slice does not depend on how many are drawn
    assert not torch.equal(images[0], images[1])
    # cells are parted by membranes: the drawn slice has a hundred of them, not one
    assert len(_regions(masks[0, ::4, ::4].numpy())) > 50


def _regions(mask):
    """Sizes of the 4-connected regions of ones."""
    todo, sizes = {tuple(place) for place in np.argwhere(mask)}, []
    while todo:
        front, size = [todo.pop()], 0
        while front:
            y, x = front.pop()
            size += 1
            neighbours = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & todo
            todo -= neighbours
            front += neighbours
        sizes.append(size)
    return sizes


def test_the_stack_is_ordered_by_number_and_files_of_the_system_are_ignored(slices):
    for place in ("image", "label"):
        for n in range(10):
            (slices / place / f"{n:02}.png").rename(slices / place / f"{n}.png")
        (slices / place / "._3.png").write_bytes(b"of macOS")
        (slices / place / ".DS_Store").write_bytes(b"of macOS")
    assert data.isbi2012().test.images[:, 0, 0, 0].tolist() == [25, 26, 27, 28, 29]


@pytest.mark.parametrize("place", ["image", "label"])
def test_16_bits_are_refused_and_not_clipped(slices, place):
    Image.fromarray(np.full((48, 64), 257 * 255, np.uint16)).save(slices / place / "04.png")
    with pytest.raises(ValueError, match=f"isbi2012/{place}/04.png holds 16-bit values; 0 to 255 are expected"):
        data.isbi2012()


def test_a_stack_in_one_file_is_hinted_at(slices):
    (slices / "image/03.png").rename(slices / "train-volume.tif")
    with pytest.raises(ValueError, match="holds 29 PNG files.*train-volume.tif is there"):
        data.isbi2012()


@pytest.mark.skipif(not REAL, reason="COURSE_DATA names no folder of real data")
def test_real_slices(monkeypatch):
    monkeypatch.setenv("COURSE_DATA", REAL)
    dataset = data.isbi2012()
    assert dataset.train.images.shape == (25, 1, 512, 512) and dataset.provenance.real
    assert 0.7 < dataset.train.targets.float().mean() < 0.85
    assert str(dataset.provenance) == "ISBI 2012, 25 + 5 images"
