"""CIFAR-10 in both layouts: the same data in the same order, and files that are refused."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from datafiles import as_set, random_images, same, write_sheets
from PIL import Image

from helpers import data
from helpers.data import standin
from helpers.data.order import balanced_order
from helpers.data.sheets import Sheets

REAL = os.environ.get("COURSE_DATA")
PUBLISHED = " (published: 50,000 + 10,000)"


def test_official_batches(batches):
    dataset = data.cifar10()
    train, labels, test, test_labels = standin.cifar10(120, 40)
    assert dataset.train.images.shape == (120, 3, 32, 32) and dataset.train.images.dtype == torch.uint8
    for label in range(10):
        expected = as_set(train[labels == label])
        assert as_set(dataset.train.images[dataset.train.targets == label]) == expected
    assert as_set(dataset.test.images) == as_set(test) and len(test_labels) == len(dataset.test)
    assert dataset.train.targets.dtype == torch.int64
    assert dataset.classes == tuple(
        pickle.loads((batches / "cifar-10-batches-py/batches.meta").read_bytes())["label_names"]
    )
    assert str(dataset.provenance) == f"CIFAR-10, 120 + 40 images{PUBLISHED}" and dataset.provenance.real


def test_official_batches_inside_cifar10(batches):
    first = data.cifar10()
    (batches / "cifar10").mkdir()
    (batches / "cifar-10-batches-py").rename(batches / "cifar10" / "cifar-10-batches-py")
    assert data.cifar10().provenance.real and same(data.cifar10(), first)


def test_subsets_are_balanced_nested_and_named(batches):
    whole, part = data.cifar10(), data.cifar10(train=30, test=20)
    assert part.train.targets.bincount().tolist() == [3] * 10
    assert part.test.targets.bincount().tolist() == [2] * 10
    assert torch.equal(part.train.images, whole.train.images[:30])
    assert str(part.provenance) == f"CIFAR-10, 30 of 120 + 20 of 40 images{PUBLISHED}"
    assert str(data.cifar10(train=30).provenance) == f"CIFAR-10, 30 of 120 + 40 images{PUBLISHED}"


@pytest.mark.parametrize(("columns", "suffix"), [((3, 2), ".webp"), ((12, 1), ".png")])
def test_sheets_of_any_shape_give_the_same_data_in_the_same_order(batches, columns, suffix):
    official = data.cifar10()
    shutil.rmtree(batches / "cifar-10-batches-py")
    train, labels, test, test_labels = standin.cifar10(120, 40)
    write_sheets(batches, train[::-1], labels[::-1], "train", columns[0], suffix)
    write_sheets(batches, test, test_labels, "test", columns[1], suffix)
    assert same(data.cifar10(), official)


def test_tiles_are_read_row_by_row(folder):
    images = random_images(6, 3, 32, 32).numpy()
    write_sheets(folder, np.concatenate([images] * 10), np.repeat(np.arange(10), 6), "train", 3)
    tiles = Sheets(folder / "cifar10").tiles("train", "frog")
    np.testing.assert_array_equal(tiles, images)


def test_a_missing_sheet_is_named(sheets):
    (sheets / "cifar10/test/frog.webp").unlink()
    with pytest.raises(FileNotFoundError, match="cifar10/test/frog.webp.*airplane, automobile"):
        data.cifar10()


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_a_sheet_cut_short_is_named(sheets, suffix):
    path = sheets / "cifar10/train/ship.webp"
    with Image.open(path) as sheet:
        sheet.save(path.with_suffix(suffix), lossless=True)
    content = path.with_suffix(suffix).read_bytes()
    path.unlink()
    path.with_suffix(suffix).write_bytes(content[:2000])
    with pytest.raises(ValueError, match=f"cifar10/train/ship{suffix} cannot be read"):
        data.cifar10()


def test_a_sheet_that_is_no_image_is_named(sheets):
    (sheets / "cifar10/train/ship.webp").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="cifar10/train/ship.webp cannot be read"):
        data.cifar10()


def test_a_sheet_that_tiles_do_not_fill_is_named(sheets):
    Image.new("RGB", (64, 40)).save(sheets / "cifar10/train/deer.webp", lossless=True)
    with pytest.raises(ValueError, match="cifar10/train/deer.webp is 64x40 pixels"):
        data.cifar10()


def test_tampered_batches_are_refused_and_nothing_swaps(batches):
    path = batches / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="bytes are not the published ones"):
        data.cifar10()


@pytest.mark.parametrize(
    ("numbers", "kind", "words"),
    [
        ({"train": 121}, ValueError, "train=121 is more than there is: CIFAR-10 has 120 train images"),
        ({"test": 41}, ValueError, "test=41 .* 40 test images"),
        ({"train": 0}, ValueError, "train=0 leaves nothing"),
        ({"test": -3}, ValueError, "test=-3 leaves nothing"),
        ({"train": 10.0}, TypeError, "train=10.0 is not a number of images"),
        ({"train": True}, TypeError, "train=True is not a number of images"),
    ],
)
def test_impossible_numbers_of_images(batches, numbers, kind, words):
    with pytest.raises(kind, match=words):
        data.cifar10(**numbers)


def test_order_deals_out_the_classes():
    labels = np.array([2, 2, 2, 0, 0, 1])
    assert labels[balanced_order(labels)].tolist() == [0, 1, 2, 0, 2, 2]
    assert balanced_order(labels).tolist() == [3, 5, 0, 4, 1, 2]
    assert balanced_order(labels, np.array([9, 8, 7, 6, 5, 4])).tolist() == [4, 5, 2, 3, 1, 0]


def test_a_set_of_the_published_size_needs_no_remark(sheets, monkeypatch):
    import sys

    assert str(data.cifar10().provenance) == f"CIFAR-10, 40 + 10 images{PUBLISHED}"
    monkeypatch.setattr(sys.modules["helpers.data.cifar10"], "PUBLISHED", (40, 10))
    assert str(data.cifar10().provenance) == "CIFAR-10, 40 + 10 images"


def test_a_sheet_with_a_row_too_many_is_named(sheets):
    Image.new("RGB", (32 * 10, 32 * 101)).save(sheets / "cifar10/test/frog.webp", lossless=True)
    with pytest.raises(ValueError, match="cifar10/test/frog.webp has 101 rows of 10 tiles, 1,010 .* 1,000 test images"):
        data.cifar10()


@pytest.mark.parametrize(("kind", "options"), [("WEBP", {"quality": 90}), ("JPEG", {"quality": 95}), ("GIF", {})])
def test_a_sheet_that_lost_detail_is_named(sheets, kind, options):
    path = sheets / "cifar10/train/ship.webp"
    with Image.open(path) as sheet:
        image = sheet.convert("RGB")
    image.save(path, format=kind, **options)
    with pytest.raises(ValueError, match=rf"cifar10/train/ship.webp was compressed with loss \({kind}\)"):
        data.cifar10()


def test_lossless_webp_with_an_alpha_channel_is_lossless(sheets):
    path, before = sheets / "cifar10/train/ship.webp", data.cifar10()
    with Image.open(path) as sheet:
        image = sheet.convert("RGBA")
    image.save(path, lossless=True, exact=True, exif=b"Exif\0\0")
    assert same(data.cifar10(), before)


@pytest.mark.parametrize(("put", "words"), [("ship.jpg", "JPEG file there"), ("ship/1.png", "folder ship/ there")])
def test_what_lies_in_the_place_of_a_sheet_is_named(sheets, put, words):
    path = sheets / "cifar10/train/ship.webp"
    path.unlink()
    (path.parent / put).parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32)).save(path.parent / put)
    with pytest.raises(FileNotFoundError, match=f"ship.webp .* is missing.*{words}"):
        data.cifar10()


def test_a_sheet_with_16_bits_is_named(sheets):
    path = sheets / "cifar10/train/ship.webp"
    path.unlink()
    Image.fromarray(np.full((32, 64), 40_000, np.uint16)).save(path.with_suffix(".png"))
    with pytest.raises(ValueError, match="cifar10/train/ship.png holds 16-bit values"):
        data.cifar10()


needs_data = pytest.mark.skipif(not REAL, reason="COURSE_DATA names no folder of real data")


@needs_data
def test_real_cifar10_has_the_published_mean(monkeypatch):
    monkeypatch.setenv("COURSE_DATA", REAL)
    dataset = data.cifar10()
    assert str(dataset.provenance) == "CIFAR-10, 50,000 + 10,000 images"
    published = torch.tensor([0.49139968, 0.48215841, 0.44653091])
    torch.testing.assert_close(dataset.mean, published, atol=1e-7, rtol=0)
    assert dataset.train.targets.bincount().tolist() == [5_000] * 10
    assert dataset.test.targets.bincount().tolist() == [1_000] * 10
