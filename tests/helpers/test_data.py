"""The data: layouts read and packed, sources and banners, the cache, downloads that break, and what is refused."""

import hashlib
import io
import logging
import os
import pickle
import shutil
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import numpy as np
import pooch
import pytest
import torch
import torchvision
from PIL import Image

from helpers import cells, data, download, folders, prepared, standin
from helpers.data import Dataset, Provenance, Split
from helpers.pack import pack

REAL = os.environ.get("COURSE_DATA")


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch, tmp_path):
    for variable in ("COURSE_DATA", "COURSE_SOURCE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COURSE_SILENT", "1")
    monkeypatch.setattr(data, "_announced", set())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A reader's folder, empty, that COURSE_DATA names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("COURSE_DATA", str(folder))
    return folder


def same(first, second):
    """Whether two Datasets hold the same images and targets in the same order."""
    pairs = [(first.train, second.train), (first.test, second.test)]
    return all(torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in pairs)


def as_set(images):
    return sorted(image.tobytes() for image in np.asarray(images))


# ------------------------------------------------------------------------------------------ the types


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def small_dataset(channels=3):
    train = Split(random_images(2_500, channels, 4, 5), torch.zeros(2_500, dtype=torch.int64))
    test = Split(random_images(3, channels, 4, 5, seed=1), torch.zeros(3, dtype=torch.int64))
    return Dataset(train, test, ("thing",), Provenance("Things", True, "2,500 + 3 images"))


def test_provenance_says_real_or_drawn():
    assert str(Provenance("CIFAR-10", True, "50,000 + 10,000 images")) == "CIFAR-10, 50,000 + 10,000 images"
    drawn = Provenance("CIFAR-10", False, "seed 0, 4,000 + 1,000 images")
    assert str(drawn) == "drawn stand-in for CIFAR-10, seed 0, 4,000 + 1,000 images"


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_are_those_of_the_training_images(channels):
    dataset = small_dataset(channels)
    pixels = dataset.train.images.numpy() / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 2, 3)), rtol=1e-6)
    assert dataset.mean.dtype == torch.float32


def test_normalize_and_back():
    dataset = small_dataset()
    x = dataset.normalize(dataset.train.images)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(dataset.denormalize(x) * 255, dataset.train.images.float(), atol=1e-3, rtol=0)
    assert dataset.denormalize(100 * x).max() == 1 and dataset.denormalize(100 * x).min() == 0


def test_an_image_without_contrast_stays_finite():
    grey = Split(torch.full((4, 3, 2, 2), 7, dtype=torch.uint8), torch.zeros(4))
    dataset = Dataset(grey, grey, ("thing",), Provenance("Things", True, ""))
    assert dataset.normalize(grey.images).isfinite().all()


@pytest.mark.parametrize(
    ("images", "kind", "words"),
    [
        (torch.rand(2, 3, 4, 4), TypeError, "uint8.*float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), TypeError, "not ndarray"),
        ([1, 2], TypeError, "list"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ValueError, r"\(N, 3, H, W\), not \(2, 1, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), ValueError, r"not \(2, 4, 4, 3\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), ValueError, r"image\[None\]"),
    ],
)
def test_normalize_refuses(images, kind, words):
    with pytest.raises(kind, match=words):
        small_dataset().normalize(images)


@pytest.mark.parametrize("x", [random_images(2, 3, 4, 4), torch.rand(2, 1, 4, 4), torch.rand(3, 4, 4)])
def test_denormalize_refuses(x):
    with pytest.raises(ValueError, match=r"floats of shape \(N, 3, H, W\)"):
        small_dataset().denormalize(x)


# ------------------------------------------------------------------------------------------- CIFAR-10


def trust_batches(monkeypatch, folder):
    """Let torchvision's checksums be those of the batches in `folder`."""
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    official = torchvision.datasets.CIFAR10
    monkeypatch.setattr(official, "train_list", [[name, md5[name]] for name, _ in official.train_list])
    monkeypatch.setattr(official, "test_list", [[name, md5[name]] for name, _ in official.test_list])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": md5["batches.meta"]})


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


def write_sheets(folder, images, labels, split, columns, suffix=".webp"):
    (folder / "cifar10" / split).mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(folders.CIFAR10_CLASSES):
        tiles = images[labels == label].transpose(0, 2, 3, 1)
        rows = [np.concatenate(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)]
        sheet = Image.fromarray(np.concatenate(rows, 0))
        sheet.save(folder / "cifar10" / split / (name + suffix), lossless=True)


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
    assert str(dataset.provenance) == "CIFAR-10, 120 + 40 images" and dataset.provenance.real


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
    assert str(part.provenance) == "CIFAR-10, 30 of 120 + 20 of 40 images"
    assert str(data.cifar10(train=30).provenance) == "CIFAR-10, 30 of 120 + 40 images"


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
    tiles = folders.Sheets(folder / "cifar10")._tiles("train", "frog")
    np.testing.assert_array_equal(tiles, images)


@pytest.fixture
def sheets(folder):
    train, labels, test, test_labels = standin.cifar10(40, 10)
    write_sheets(folder, train, labels, "train", 2)
    write_sheets(folder, test, test_labels, "test", 1)
    return folder


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
    assert labels[folders.balanced_order(labels)].tolist() == [0, 1, 2, 0, 2, 2]
    assert folders.balanced_order(labels).tolist() == [3, 5, 0, 4, 1, 2]
    assert folders.balanced_order(labels, np.array([9, 8, 7, 6, 5, 4])).tolist() == [4, 5, 2, 3, 1, 0]


# ---------------------------------------------------------------------------------------- VOC-animals


def thing(name, box, difficult=0, part=None):
    parts = f"<part><name>{part}</name><bndbox><xmin>1</xmin></bndbox></part>" if part else ""
    edges = "".join(
        f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{parts}<difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"


class TinyVOC:
    """A devkit of flat 80x40 photographs, written file by file."""

    def __init__(self, root):
        self.root = root / "VOCdevkit" / "VOC2012"
        for place in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
            (self.root / place).mkdir(parents=True)
        self.names = {"train": [], "val": []}
        for split in self.names:
            self.add(split, f"{split}_dog", thing("dog", (1, 1, 80, 40)))

    def add(self, split, name, *objects, mask=None, colour=(200, 100, 50), size=(80, 40)):
        Image.new("RGB", size, colour).save(self.root / "JPEGImages" / f"{name}.jpg", quality=95)
        note = f"<annotation><filename>{name}.jpg</filename>{''.join(objects)}</annotation>"
        (self.root / "Annotations" / f"{name}.xml").write_text(note)
        if mask is not None:
            self.mask(name, mask)
        self.names[split].append(name)
        lines = "".join(f"{line}\n" for line in self.names[split])
        (self.root / "ImageSets/Main" / f"{split}.txt").write_text(lines)

    def mask(self, name, array, place="SegmentationClass", mode="P"):
        (self.root / place).mkdir(exist_ok=True)
        image = Image.fromarray(array)
        if mode == "P":
            image.putpalette([value // 3 for value in range(768)])
        image.save(self.root / place / f"{name}.png")


@pytest.fixture
def voc(folder):
    return TinyVOC(folder)


def named(dataset, classes_of_first):
    """The position in the training split of the image whose first label is that class."""
    return dataset.train.targets["labels"][:, 0].tolist().index(dataset.classes.index(classes_of_first))


def test_boxes_labels_and_masks_of_one_image(voc):
    mask = np.zeros((40, 80), np.uint8)
    mask[:, 40:] = 8  # cat
    mask[:20, :40] = 15  # person: background to us
    mask[20:, :20] = 17  # sheep
    mask[:, 36:40] = 255
    voc.add(
        "train",
        "cats",
        thing("cat", (41, 1, 80, 40)),
        thing("person", (1, 1, 40, 20)),
        thing("sheep", (1, 21, 20, 40)),
        mask=mask,
    )
    dataset = data.voc_animals(32)
    i = named(dataset, "cat")
    targets = {key: value[i] for key, value in dataset.train.targets.items()}
    assert targets["labels"].tolist() == [0, 4]
    assert targets["boxes"].tolist() == [[16, 0, 32, 32], [0, 16, 8, 32]]  # edges, in a 32 x 32 image
    assert targets["has_mask"]
    expected = np.zeros((32, 32), np.uint8)
    expected[:, 16:] = 1
    expected[16:, :8] = 5
    expected[:, 14:16] = 255
    middle = targets["masks"].numpy()
    assert (middle != expected).mean() < 0.04  # 80 pixels do not divide by 32: a column may fall either way
    assert set(np.unique(middle)) == {0, 1, 5, 255}
    torch.testing.assert_close(
        dataset.train.images[i].float().mean((1, 2)), torch.tensor([200.0, 100, 50]), atol=3, rtol=0
    )
    assert dataset.train.images[i].shape == (3, 32, 32)


def test_the_other_image_is_padded_and_void(voc):
    voc.add("train", "cats", thing("cat", (1, 1, 8, 8)), thing("cat", (9, 9, 16, 16)))
    targets = data.voc_animals(32).train.targets
    i = targets["labels"][:, 0].tolist().index(2)  # the dog
    assert targets["labels"][i].tolist() == [2, -1]
    assert targets["boxes"][i].tolist() == [[0, 0, 32, 32], [0, 0, 0, 0]]
    assert not targets["has_mask"][i] and (targets["masks"][i] == 255).all()
    kinds = {key: value.dtype for key, value in targets.items()}
    assert kinds == {"boxes": torch.float32, "labels": torch.int64, "masks": torch.uint8, "has_mask": torch.bool}


def test_images_without_an_animal_are_left_out(voc):
    voc.add("train", "empty")
    voc.add("train", "people", thing("person", (1, 1, 9, 9)))
    voc.add("train", "hidden", thing("cow", (1, 1, 9, 9), difficult=1))
    voc.add("train", "horse", thing("horse", (1, 1, 9, 9), part="cat"), thing("cow", (1, 1, 9, 9), difficult=1))
    dataset = data.voc_animals(32)
    assert dataset.train.targets["labels"].tolist() == [[2], [3]]
    assert str(dataset.provenance) == "PASCAL VOC 2012 animals, 2 + 1 images at 32 px"


def test_with_masks_leaves_out_what_has_none():
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8)
    targets = {"masks": images[:, 0], "has_mask": torch.tensor([True, False, True, True])}
    split = data.Split(images, targets)
    whole = data.Dataset(split, split, ("a",), data.Provenance("toy", True, "4 + 4 images at 8 px, masks of toys"))
    kept = data.with_masks(whole)
    assert str(kept.provenance) == "toy, 3 + 3 images at 8 px, masks of toys"
    for part in (kept.train, kept.test):
        assert part.images[:, 0, 0, 0].tolist() == part.targets[:, 0, 0].tolist() == [0, 2, 3]


def test_the_first_images_are_balanced_by_their_largest_animal(voc):
    for i in range(3):
        voc.add("train", f"a{i}", thing("cat", (1, 1, 5, 5)), thing("sheep", (1, 1, 30, 30)))
        voc.add("train", f"b{i}", thing("cat", (1, 1, 50, 5)))
    small, whole = data.voc_animals(32, train=3), data.voc_animals(32)
    rows = [[label for label in row if label >= 0] for row in small.train.targets["labels"].tolist()]
    assert rows == [[0], [2], [0, 4]]
    assert torch.equal(small.train.targets["boxes"], whole.train.targets["boxes"][:3])
    assert str(small.provenance) == "PASCAL VOC 2012 animals, 3 of 7 + 1 images at 32 px"


def test_one_label_is_that_of_the_animal_with_the_largest_box():
    # areas 9 x 4, 6 x 7, none | 5 x 5, 3 x 3, 2 x 20: the largest is neither always first nor always widest
    boxes = torch.tensor([
        [[0, 0, 9, 4], [1, 1, 7, 8], [0, 0, 0, 0]],
        [[0, 0, 5, 5], [2, 2, 5, 5], [3, 1, 5, 21]],
    ]).float()  # fmt: skip
    split = data.Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
                       {"boxes": boxes, "labels": torch.tensor([[0, 3, -1], [1, 4, 2]])})  # fmt: skip
    whole = data.Dataset(split, split, data.VOC_ANIMALS, data.Provenance("boxes", False, "two images"))
    named = data.largest_animal(whole)
    for part in (named.train, named.test):
        assert part.targets.tolist() == [3, 2] and part.targets.dtype == torch.int64
        assert part.images is split.images
    assert named.classes == whole.classes and named.provenance == whole.provenance


def test_masks_of_sbd_are_preferred(voc):
    voc.mask("train_dog", np.full((40, 80), 12, np.uint8))
    assert (data.voc_animals(32).train.targets["masks"] == 3).all()
    voc.mask("train_dog", np.full((40, 80), 8, np.uint8), "SegmentationClassAug")
    dataset = data.voc_animals(32)
    assert (dataset.train.targets["masks"] == 1).all()
    assert str(dataset.provenance).endswith("at 32 px, masks of VOC and SBD")


def test_reduction_is_anti_aliased(voc):
    stripes = np.zeros((40, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(voc.root / "JPEGImages/train_dog.jpg", quality=100, subsampling=0)
    assert data.voc_animals(32).train.images.float().std() < 25  # nearest would give 127


def test_drawn_devkit_equals_the_arrays_it_was_drawn_from(folder):
    standin.write_voc(folder, 12, 6, size=96)
    read = data.voc_animals(96)
    for split, drawn in zip((read.train, read.test), standin.voc_animals(12, 6, size=96), strict=True):
        order = [as_set(drawn["masks"]).index(mask.tobytes()) for mask in split.targets["masks"].numpy()]
        first = sorted(range(len(order)), key=lambda i: drawn["masks"][i].tobytes())
        place = [first[i] for i in order]
        most = split.targets["labels"].shape[1]
        np.testing.assert_array_equal(split.targets["labels"], drawn["labels"][place][:, :most])
        np.testing.assert_array_equal(split.targets["boxes"], drawn["boxes"][place][:, :most])
        difference = np.abs(split.images.numpy() - drawn["images"][place].astype(int))
        assert difference.mean() < 6  # JPEG


def faulty(voc, fault):
    if fault == "unreadable":
        (voc.root / "JPEGImages/train_dog.jpg").write_bytes(b"not a photograph")
    elif fault == "cut short":
        path = voc.root / "JPEGImages/train_dog.jpg"
        path.write_bytes(path.read_bytes()[:-300])
    elif fault == "no photograph":
        (voc.root / "JPEGImages/train_dog.jpg").unlink()
    elif fault == "no annotation":
        (voc.root / "Annotations/train_dog.xml").unlink()
    elif fault == "no xml":
        (voc.root / "Annotations/train_dog.xml").write_text("<annotation>")
    elif fault == "no box":
        (voc.root / "Annotations/train_dog.xml").write_text(
            "<annotation><object><name>dog</name></object></annotation>"
        )
    elif fault == "box outside":
        voc.add("train", "far", thing("dog", (90, 1, 95, 5)))
    elif fault == "mask of another size":
        voc.mask("train_dog", np.zeros((40, 79), np.uint8))
    elif fault == "mask in colours":
        voc.mask("train_dog", np.zeros((40, 80, 3), np.uint8), mode="RGB")
    elif fault == "mask of nonsense":
        voc.mask("train_dog", np.full((40, 80), 77, np.uint8))
    elif fault == "mask cut short":
        voc.mask("train_dog", random_images(40, 80).numpy())
        path = voc.root / "SegmentationClass/train_dog.png"
        path.write_bytes(path.read_bytes()[:-500])
    elif fault == "no list":
        (voc.root / "ImageSets/Main/val.txt").unlink()
    elif fault == "no animals":
        (voc.root / "ImageSets/Main/val.txt").write_text("")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unreadable", "JPEGImages/train_dog.jpg cannot be read"),
        ("cut short", "JPEGImages/train_dog.jpg cannot be read"),
        ("no photograph", "JPEGImages/train_dog.jpg is missing"),
        ("no annotation", "Annotations/train_dog.xml is missing"),
        ("no xml", "Annotations/train_dog.xml cannot be read"),
        ("no box", "Annotations/train_dog.xml cannot be read"),
        ("box outside", "Annotations/far.xml.* outside its 80x40 image"),
        ("mask of another size", "SegmentationClass/train_dog.png is 79x40 pixels, but its image is 80x40"),
        ("mask in colours", "SegmentationClass/train_dog.png must hold class indices.*RGB"),
        ("mask of nonsense", "SegmentationClass/train_dog.png holds values"),
        ("mask cut short", "SegmentationClass/train_dog.png cannot be read"),
        ("no list", "ImageSets/Main/val.txt is missing"),
        ("no animals", "no image of the test split shows cat, cow, dog, horse, sheep"),
    ],
)
def test_a_faulty_devkit_is_refused_by_name(voc, fault, words, tmp_path):
    faulty(voc, fault)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        data.voc_animals(32)
    assert str(tmp_path) not in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("size", [31, 513, 64.0, True, "64"])
def test_impossible_sizes(size):
    for opening in (data.voc_animals, data.isbi2012):
        with pytest.raises(ValueError, match="size=.* from 32 to 512"):
            opening(size)


# ------------------------------------------------------------------------------------------ ISBI 2012


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


def test_slices(slices):
    dataset = data.isbi2012()
    assert dataset.train.images.shape == (25, 1, 48, 64) and dataset.test.targets.shape == (5, 48, 64)
    assert dataset.test.images[:, 0, 0, 0].tolist() == [25, 26, 27, 28, 29]
    assert dataset.train.images[:, 0, 0, 0].tolist() == list(range(25))
    assert (dataset.train.targets[:, :, :32] == 1).all() and (dataset.train.targets[:, :, 32:] == 0).all()
    assert str(dataset.provenance) == "ISBI 2012, 25 + 5 images" and dataset.classes == ("membrane", "cell")
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


# ----------------------------------------------------------------------------------- where they come from


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_):
        raise AssertionError("a download nobody asked for")

    monkeypatch.setattr(download, "fetch", refuse)


def test_auto_draws_and_says_so_once(no_download, capsys, tmp_path):
    dataset = data.cifar10(train=20, test=10)
    said = capsys.readouterr().out
    assert said.startswith("Drawn stand-in, not CIFAR-10.") and "./course data fetch cifar10" in said
    assert str(tmp_path) not in said and said.count("\n") == 1
    assert str(dataset.provenance) == "drawn stand-in for CIFAR-10, seed 0, 20 + 10 images"
    assert not dataset.provenance.real
    data.cifar10(train=20, test=10)
    assert capsys.readouterr().out == ""
    data.voc_animals(32, train=2, test=2)
    assert "fetch voc2012" in capsys.readouterr().out


def test_the_banner_says_when_the_readers_folder_lacks_them(no_download, folder, capsys):
    data.cifar10(train=10, test=10)
    assert "not in the folder of COURSE_DATA either" in capsys.readouterr().out


def test_the_banner_is_html_in_a_notebook(no_download, monkeypatch, capsys):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda *bundles, raw: shown.extend(bundles))
    data.cifar10(train=10, test=10)
    assert "<strong>Drawn stand-in, not CIFAR-10.</strong>" in shown[0]["text/html"]
    assert "fetch cifar10" in shown[0]["text/plain"] and capsys.readouterr().out == ""


def test_standin_draws_even_where_real_data_are(batches, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    dataset = data.cifar10(train=20, test=10)
    assert not dataset.provenance.real
    assert "COURSE_SOURCE=standin" in capsys.readouterr().out
    train, labels, test, _ = standin.cifar10(20, 10)
    assert (dataset.train.images.numpy() == train).all() and (dataset.train.targets.numpy() == labels).all()
    assert (dataset.test.images.numpy() == test).all()


def test_drawn_animals_have_the_layout_of_the_real_ones(voc, monkeypatch):
    real = data.voc_animals(32)
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    drawn = data.voc_animals(32, train=3, test=2)
    assert str(drawn.provenance) == "drawn stand-in for PASCAL VOC 2012 animals, seed 0, 3 + 2 images at 32 px"
    assert drawn.classes == real.classes
    for key, value in real.train.targets.items():
        assert drawn.train.targets[key].dtype == value.dtype and drawn.train.targets[key].ndim == value.ndim


def test_drawn_cells_stand_in_for_the_slices(capsys):
    dataset = data.isbi2012(size=32)
    assert str(dataset.provenance) == "drawn stand-in for ISBI 2012, seed 0, 25 + 5 images"
    assert "isbi2012/image/00.png" in capsys.readouterr().out
    assert dataset.train.images.shape == (25, 1, 32, 32)


def test_the_standin_has_default_numbers_and_a_limit(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "standin")
    monkeypatch.setitem(data.STANDIN_IMAGES, "cifar10", (30, 20))
    dataset = data.cifar10()
    assert (len(dataset.train), len(dataset.test)) == (30, 20)
    with pytest.raises(ValueError, match="train=50,001 .* draws: 50,000"):
        data.cifar10(train=50_001)


def test_real_downloads_what_is_missing_and_says_when_it_cannot(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "real")
    asked = []
    monkeypatch.setattr(download, "fetch", lambda archive, folder: asked.append(archive.file))
    monkeypatch.setattr(folders.Sheets, "read", lambda self: pytest.fail("nothing is here"))
    data._real("cifar10")
    data._real("voc2012")
    assert asked == ["cifar-10-python.tar.gz", "VOCtrainval_11-May-2012.tar"]
    with pytest.raises(FileNotFoundError, match="isbi2012/image/00.png.*COURSE_DATA"):
        data.isbi2012()


def test_unknown_names_list_the_valid_ones():
    for ask in (data.fetch, data.find):
        with pytest.raises(ValueError, match="'mnist'. Use one of: cifar10, voc2012, isbi2012"):
            ask("mnist")


def test_a_missing_folder_is_not_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="COURSE_DATA"):
        data.cifar10()


def test_an_unknown_source_is_refused(monkeypatch):
    monkeypatch.setenv("COURSE_SOURCE", "reel")
    with pytest.raises(ValueError, match="auto, real, standin"):
        data.cifar10()


def snapshot(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}


def test_nothing_is_written_into_the_readers_folder(batches, slices):
    TinyVOC(batches)
    before = snapshot(batches)
    for path in [*batches.rglob("*"), batches]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert all(d.provenance.real for d in (data.cifar10(), data.voc_animals(32), data.isbi2012()))
        data.status()
    finally:
        for path in [batches, *batches.rglob("*")]:
            path.chmod(0o755)
    assert snapshot(batches) == before


# ------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cached(voc, tmp_path):
    """A devkit, its arrays as first read, and the file they are kept in."""
    voc.mask("train_dog", np.full((40, 80), 12, np.uint8))
    first = data.voc_animals(32)
    [file] = (tmp_path / "cache" / "prepared").iterdir()
    return voc, first, file


def same_scenes(first, second):
    return all(
        torch.equal(a.images, b.images) and all(torch.equal(a.targets[key], b.targets[key]) for key in a.targets)
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


def test_the_second_opening_reads_no_photograph(cached, monkeypatch):
    monkeypatch.setattr(folders.Devkit, "read", lambda *_: pytest.fail("read again"))
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
    monkeypatch.setattr(data, "READER", data.READER + 1)
    monkeypatch.setattr(folders.Devkit, "read", lambda *_: pytest.fail("read again"))
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


# ------------------------------------------------------------------------------------------- downloads


class Host:
    """A web server on this machine that misbehaves as told."""

    def __init__(self, content):
        self.content = content
        self.asked = []  # the Range header of each request
        self.cuts = []  # how many bytes to send before the connection breaks, request by request
        self.ranges = True
        self.status = None
        self.delay = 0

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        time.sleep(self.delay)
        if self.status:
            return request.send_error(self.status)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start and start >= len(self.content):
            return request.send_error(416)
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)


@contextmanager
def serving(*hosts):
    """Addresses of `hosts` while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self):
            hosts[int(self.path.split("/")[1])].answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield [f"http://127.0.0.1:{server.server_address[1]}/{i}/things.tar.gz" for i in range(len(hosts))]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def packed(files, compression="gz"):
    """A tar archive of {name: bytes}, or of TarInfo objects, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


BYTES = random_images(50_000).numpy().tobytes()
ARCHIVE = packed({"things/one.bin": BYTES, "things/deep/two.txt": b"two"})


def things(*urls, content=ARCHIVE):
    return download.Archive("things.tar.gz", hashlib.md5(content).hexdigest(), "things", "50 kB", urls)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_fetch_downloads_unpacks_and_tidies_up(place, capsys, monkeypatch):
    notes = io.StringIO()
    monkeypatch.setattr(pooch.get_logger(), "handlers", [logging.StreamHandler(notes)])
    pooch.get_logger().setLevel("INFO")
    host = Host(ARCHIVE)
    with serving(host) as urls:
        assert download.fetch(things(*urls), place) == place / "things"
        assert download.fetch(things(*urls), place) == place / "things"
    assert host.asked == [None]
    assert (place / "things/one.bin").read_bytes() == BYTES and (place / "things/deep/two.txt").read_bytes() == b"two"
    assert names(place) == ["things"]
    assert capsys.readouterr().err == "" and notes.getvalue() == ""  # silent, and no word of where the files are


def test_a_progress_bar_unless_silent(place, capsys, monkeypatch):
    monkeypatch.delenv("COURSE_SILENT")
    with serving(Host(ARCHIVE)) as urls:
        download.fetch(things(*urls), place)
    assert "things.tar.gz: 100%" in capsys.readouterr().err


def test_a_broken_connection_is_taken_up_where_it_broke(place):
    host = Host(ARCHIVE)
    host.cuts = [10_000, 20_000]
    with serving(host) as urls:
        path = download.download(things(*urls), place)
    assert path.read_bytes() == ARCHIVE
    assert host.asked == [None, "bytes=10000-", "bytes=30000-"]


def test_a_later_call_continues_from_what_is_kept(place):
    host = Host(ARCHIVE)
    host.cuts = [10_000, 0]
    with serving(host) as urls:
        with pytest.raises(
            ConnectionError, match=r"could not be downloaded[\s\S]*broke off[\s\S]*10,000 bytes are kept"
        ):
            download.fetch(things(*urls), place)
        assert names(place) == ["things.tar.gz.part"]
        host.cuts = []
        download.fetch(things(*urls), place)
    assert host.asked[-1] == "bytes=10000-" and (place / "things/one.bin").read_bytes() == BYTES
    assert names(place) == ["things"]


def test_another_mirror_continues_too(place):
    broken, whole = Host(ARCHIVE), Host(ARCHIVE)
    broken.cuts = [10_000, 0]
    with serving(broken, whole) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert whole.asked == ["bytes=10000-"]


def test_a_server_that_ignores_range_sends_everything_again(place):
    host = Host(ARCHIVE)
    host.cuts, host.ranges = [10_000], False
    with serving(host) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert host.asked == [None, "bytes=10000-"]


def test_wrong_bytes_kept_from_before_are_thrown_away(place):
    (place / "things.tar.gz.part").write_bytes(b"x" * 10_000)
    host = Host(ARCHIVE)
    with serving(host) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert host.asked == ["bytes=10000-", None]


@pytest.mark.parametrize(("kept", "requests"), [(ARCHIVE, 1), (ARCHIVE + b"more", 2)], ids=["complete", "too long"])
def test_a_part_file_with_nothing_left_to_ask_for(place, kept, requests):
    (place / "things.tar.gz.part").write_bytes(kept)
    host = Host(ARCHIVE)
    with serving(host) as urls:
        assert download.download(things(*urls), place).read_bytes() == ARCHIVE
    assert len(host.asked) == requests


def test_mirrors_are_tried_in_turn(place):
    gone, damaged, good = Host(ARCHIVE), Host(ARCHIVE[:-5] + b"12345"), Host(ARCHIVE)
    gone.status = 404
    with serving(gone, damaged, good) as urls:
        assert download.download(things("http://127.0.0.1:9/x", *urls), place).read_bytes() == ARCHIVE
    assert [len(host.asked) for host in (gone, damaged, good)] == [1, 1, 1]
    assert good.asked == [None]  # nothing of the damaged file is built upon


def test_every_failure_is_told(place):
    gone, damaged = Host(ARCHIVE), Host(ARCHIVE[:-5] + b"12345")
    gone.status = 503
    with serving(gone, damaged) as urls, pytest.raises(ConnectionError) as raised:
        download.fetch(things("http://127.0.0.1:9/x", *urls), place)
    message = str(raised.value)
    assert "127.0.0.1:9: the connection failed" in message and "status 503" in message
    assert "wrong checksum" in message and "kept" not in message and "COURSE_DATA" in message
    assert str(place) not in message and names(place) == []


def test_an_archive_that_is_there_already_is_used_if_it_is_whole(place):
    host = Host(ARCHIVE)
    (place / "things.tar.gz").write_bytes(ARCHIVE)
    with serving(host) as urls:
        download.fetch(things(*urls), place)
        assert host.asked == [] and names(place) == ["things"]
        shutil.rmtree(place / "things")
        (place / "things.tar.gz").write_bytes(ARCHIVE[:1000])
        download.fetch(things(*urls), place)
    assert host.asked == [None] and (place / "things/one.bin").read_bytes() == BYTES


def test_two_at_once_share_one_download(place, capsys):
    host, results = Host(ARCHIVE), []
    host.delay = 0.3
    with serving(host) as urls:
        threads = [
            threading.Thread(target=lambda: results.append(download.fetch(things(*urls), place))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert results == [place / "things"] * 2 and host.asked == [None]
    assert "Another notebook is downloading things.tar.gz" in capsys.readouterr().out


def test_a_cache_folder_that_cannot_be_written(place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(place), "mkdir", refuse)
    with pytest.raises(PermissionError, match="COURSE_CACHE"):
        download.fetch(things(), place)


def link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed({"../outside.txt": b"x"}), "tampered.*'../outside.txt'"),
        (packed({"things/../../outside.txt": b"x"}), "tampered"),
        (packed({"/outside.txt": b"x"}), "tampered.*'/outside.txt'"),
        (link("things/link", "/etc"), "tampered.*'things/link'"),
        (link("things/link", "../../x", tarfile.LNKTYPE), "tampered.*'things/link'"),
        (packed({"others/a": b"x"}), "does not contain the folder things"),
        (ARCHIVE[:20_000], "damaged"),
        (b"no archive", "damaged"),
    ],
    ids=["outside", "outside from within", "absolute", "link", "hard link", "other folder", "cut short", "no archive"],
)
def test_archives_that_are_refused(place, content, words, filtered, monkeypatch):
    if not filtered:  # as Python before 3.11.4
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = place / "things.tar.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        download.extract(path, place, "things")
    assert names(place) == ["things.tar.gz"] and not (place.parent / "outside.txt").exists()


def test_leftovers_of_a_killed_unpacking_are_no_obstacle(place):
    (place / ".things.tar.gz.unpacking/things").mkdir(parents=True)
    (place / ".things.tar.gz.unpacking/things/stale").write_text("")
    (place / "things.tar.gz").write_bytes(ARCHIVE)
    download.extract(place / "things.tar.gz", place, "things")
    assert names(place / "things") == ["deep", "one.bin"]


def test_the_archives_are_torchvisions_with_more_mirrors():
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    cifar, voc = download.cifar10_archive(), download.voc2012_archive()
    assert (cifar.file, cifar.md5) == ("cifar-10-python.tar.gz", torchvision.datasets.CIFAR10.tgz_md5)
    assert (voc.md5, voc.unpacks) == (DATASET_YEAR_DICT["2012"]["md5"], "VOCdevkit/VOC2012")
    assert torchvision.datasets.CIFAR10.url == cifar.urls[0] and DATASET_YEAR_DICT["2012"]["url"] in voc.urls
    for archive in (cifar, voc):
        assert len(archive.urls) > 1 and all(url.endswith("/" + archive.file) for url in archive.urls)


def test_fetched_data_are_found_and_read(drawn_batches, monkeypatch, tmp_path):
    source = drawn_batches / "cifar-10-batches-py"
    content = packed({f"cifar-10-batches-py/{path.name}": path.read_bytes() for path in source.iterdir()})
    with serving(Host(content)) as urls:
        archive = download.Archive(
            "c.tar.gz", hashlib.md5(content).hexdigest(), "cifar-10-batches-py", "1 MB", tuple(urls)
        )
        monkeypatch.setattr(download, "cifar10_archive", lambda: archive)
        assert data.main(["fetch", "cifar10"]) == 0
    trust_batches(monkeypatch, tmp_path / "cache/cifar-10-batches-py")
    assert str(data.cifar10().provenance) == "CIFAR-10, 120 + 40 images"


# ------------------------------------------------------------------------------- packing and the command


def test_packed_cifar10_is_pixel_for_pixel_the_same(batches, tmp_path, monkeypatch):
    official = data.cifar10()
    pack(tmp_path / "carried")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    assert names(tmp_path / "carried") == ["cifar10"]
    assert same(data.cifar10(), official)
    assert data.find("cifar10").layout == "contact sheets"


def test_packed_slices_are_the_same(slices, tmp_path, monkeypatch):
    before = data.isbi2012()
    pack(tmp_path / "carried")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    assert same(data.isbi2012(), before)


def test_packed_devkit_at_full_size_gives_the_same_arrays(voc, tmp_path, monkeypatch):
    voc.add("train", "cat", thing("cat", (3, 5, 30, 31)), mask=np.full((40, 80), 8, np.uint8))
    before = data.voc_animals(32)
    pack(tmp_path / "carried", longer_side=80)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    assert same_scenes(data.voc_animals(32), before)


def test_packed_devkit_is_reduced_with_boxes_and_masks(voc, tmp_path, monkeypatch):
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 20:60] = 13
    voc.add("val", "horse", thing("horse", (21, 11, 60, 30)), thing("person", (1, 1, 80, 40)), mask=mask)
    voc.add("val", "people", thing("person", (1, 1, 80, 40)))
    pack(tmp_path / "carried", longer_side=40)
    root = tmp_path / "carried/VOCdevkit/VOC2012"
    with Image.open(root / "JPEGImages/horse.jpg") as image, Image.open(root / "SegmentationClass/horse.png") as labels:
        assert image.size == labels.size == (40, 20)
    box = ElementTree.parse(root / "Annotations/horse.xml").find("object/bndbox")
    assert [edge.text for edge in box] == ["11", "6", "30", "15"]
    assert (root / "ImageSets/Main/val.txt").read_text() == "val_dog\nhorse\n"
    assert (root / "ImageSets/Main/trainval.txt").read_text() == "horse\ntrain_dog\nval_dog\n"
    assert (root / "ImageSets/Segmentation/val.txt").read_text() == "horse\n"
    assert not (root / "JPEGImages/people.jpg").exists()
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    dataset = data.voc_animals(32)
    i = dataset.test.targets["labels"][:, 0].tolist().index(3)
    assert dataset.test.targets["boxes"][i, 0].tolist() == [8, 8, 24, 24]
    assert (dataset.test.targets["masks"][i] == 4).sum() == 16 * 16


def test_packing_replaces_nothing(slices, tmp_path, capsys):
    (tmp_path / "carried/isbi2012").mkdir(parents=True)
    pack(tmp_path / "carried")
    assert "isbi2012/ is in that folder already" in capsys.readouterr().out
    assert names(tmp_path / "carried/isbi2012") == []


def test_packing_that_fails_leaves_nothing_half_done(slices, tmp_path):
    (slices / "label/29.png").unlink()
    with pytest.raises(FileNotFoundError):
        pack(tmp_path / "carried")
    assert names(tmp_path / "carried") == []


def test_the_command_tells_what_is_here(slices, folder, capsys, tmp_path):
    assert data.main([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("cifar10") and "not here" in said[0] and "./course data fetch cifar10" in said[0]
    assert "2 GB" in said[1]
    assert said[2] == f"isbi2012  ISBI 2012, 25 + 5 images: slices in {folder / 'isbi2012'}"
    assert "COURSE_SOURCE=auto" in said[3] and f"COURSE_DATA={folder};" in said[3]
    assert said[3].endswith(f"downloads and prepared arrays: {tmp_path / 'cache'}")


def test_the_command_counts_without_reading(batches, voc, sheets, capsys, monkeypatch):
    shutil.rmtree(batches / "cifar-10-batches-py")
    monkeypatch.setattr(folders, "_pixels", lambda *_: pytest.fail("decoded"))
    assert data.main(["status"]) == 0
    said = capsys.readouterr().out
    assert "CIFAR-10, 40 + 10 images: contact sheets" in said and "animals, 1 + 1 images: VOC devkit" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "mnist"], "cifar10, voc2012, isbi2012"),
        (["fetch", "isbi2012"], "isbi2012/image/00.png"),
        (["pack", "carried"], "nothing to pack"),
        (["pack", "carried", "--longer-side", "8"], "at least 32"),
    ],
)
def test_the_command_explains_itself_without_a_traceback(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data.main(arguments) == 1
    said = capsys.readouterr()
    assert words in said.err and said.out == "" and not (tmp_path / "carried").exists()


# ----------------------------------------------------------------------------------- the reader's own folder

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


@needs_data
def test_real_animals_have_boxes_inside_and_classes_in_their_masks(monkeypatch):
    monkeypatch.setenv("COURSE_DATA", REAL)
    dataset = data.voc_animals(64)
    for split in (dataset.train, dataset.test):
        boxes, labels = split.targets["boxes"], split.targets["labels"]
        real = boxes[labels >= 0]
        assert (real[:, 2:] > real[:, :2]).all() and real.min() >= 0 and real.max() <= 64
        assert (labels[:, 0] >= 0).all() and labels.max() == 4
        assert set(split.targets["masks"].unique().tolist()) == {0, 1, 2, 3, 4, 5, 255}


@needs_data
def test_real_slices(monkeypatch):
    monkeypatch.setenv("COURSE_DATA", REAL)
    dataset = data.isbi2012()
    assert dataset.train.images.shape == (25, 1, 512, 512) and dataset.provenance.real
    assert 0.7 < dataset.train.targets.float().mean() < 0.85
