"""The animals of VOC: boxes, labels and masks of a devkit, and files that are refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datafiles import as_set, random_images, same_scenes, thing
from PIL import Image

from helpers import data
from helpers.data import Dataset, Provenance, Split, standin
from helpers.data import voc as voc_module

REAL = os.environ.get("COURSE_DATA")


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
    assert {key: value.dtype for key, value in targets.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "masks": torch.uint8,
        "has_mask": torch.bool,
        "has_person": torch.bool,
    }


def test_people_are_noticed_in_annotations_and_masks(voc):
    mask = np.zeros((40, 80), np.uint8)
    mask[5, 5] = 15  # one pixel of a person
    voc.add("train", "masked", thing("cat", (1, 1, 8, 8)), mask=mask)
    voc.add("train", "hard", thing("cow", (1, 1, 8, 8)), thing("person", (9, 9, 16, 16), difficult=1))
    voc.add("train", "nobody", thing("sheep", (1, 1, 8, 8)), thing("chair", (9, 9, 16, 16)), mask=0 * mask)
    targets = data.voc_animals(32).train.targets
    found = dict(zip(targets["labels"][:, 0].tolist(), targets["has_person"].tolist(), strict=True))
    assert found == {0: True, 1: True, 2: False, 4: False}


def test_images_without_an_animal_are_left_out(voc):
    voc.add("train", "empty")
    voc.add("train", "people", thing("person", (1, 1, 9, 9)))
    voc.add("train", "hidden", thing("cow", (1, 1, 9, 9), difficult=1))
    voc.add("train", "horse", thing("horse", (1, 1, 9, 9), part="cat"), thing("cow", (1, 1, 9, 9), difficult=1))
    dataset = data.voc_animals(32)
    assert dataset.train.targets["labels"].tolist() == [[2], [3]]
    assert str(dataset.provenance) == "PASCAL VOC 2012 animals, 2 + 1 images at 32 px (published: some 3,600)"


def test_a_set_that_is_whole_or_nearly_is_not_called_smaller(voc, monkeypatch):
    for i in range(17):
        voc.add("train", f"cat{i}", thing("cat", (1, 1, 9, 9)))
    detail = "PASCAL VOC 2012 animals, 18 + 1 images at 32 px"
    for published, said in ((19, ""), (20, ""), (21, " (published: some 21)")):
        monkeypatch.setattr(voc_module, "PUBLISHED", published)
        assert str(data.voc_animals(32).provenance) == detail + said


def test_with_masks_leaves_out_what_has_none():
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8)
    targets = {"masks": images[:, 0], "has_mask": torch.tensor([True, False, True, True])}
    split = Split(images, targets)
    whole = Dataset(split, split, ("a",), Provenance("toy", True, "4 + 4 images at 8 px, masks of toys"))
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
    assert str(small.provenance) == "PASCAL VOC 2012 animals, 3 of 7 + 1 images at 32 px (published: some 3,600)"


def test_one_label_is_that_of_the_animal_with_the_largest_box():
    # areas 9 x 4, 6 x 7, none | 5 x 5, 3 x 3, 2 x 20: the largest is neither always first nor always widest
    boxes = torch.tensor([
        [[0, 0, 9, 4], [1, 1, 7, 8], [0, 0, 0, 0]],
        [[0, 0, 5, 5], [2, 2, 5, 5], [3, 1, 5, 21]],
    ]).float()  # fmt: skip
    split = Split(torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
                       {"boxes": boxes, "labels": torch.tensor([[0, 3, -1], [1, 4, 2]])})  # fmt: skip
    whole = Dataset(split, split, data.VOC_ANIMALS, Provenance("boxes", False, "two images"))
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
    assert str(dataset.provenance).endswith("at 32 px, masks of VOC and SBD (published: some 3,600)")


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
    elif fault == "a mask of 16 bits":
        Image.fromarray(np.full((40, 80), 8, np.uint16)).save(voc.root / "SegmentationClass/train_dog.png")
    elif fault == "another size than annotated":
        voc.note("train_dog", "<size><width>40</width><height>80</height></size>", thing("dog", (1, 1, 40, 80)))
    elif fault == "turned by EXIF":
        path, tags = voc.root / "JPEGImages/train_dog.jpg", Image.Exif()
        tags[0x0112] = 6
        Image.new("RGB", (80, 40)).save(path, exif=tags)
    elif fault == "a web page":
        (voc.root / "Annotations/train_dog.xml").write_text("<html><body>Log in</body></html>")
    elif fault in ("nan", "inf"):
        voc.note("train_dog", thing("dog", (1, 1, fault, 40)))
    elif fault == "no name":
        voc.note("train_dog", thing("", (1, 1, 80, 40)).replace("<name></name>", ""))
    elif fault == "in both lists":
        (voc.root / "ImageSets/Main/val.txt").write_text("val_dog\ntrain_dog\n")
    elif fault == "a list in UTF-16":
        (voc.root / "ImageSets/Main/val.txt").write_text("val_dog\n", "utf-16")
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
        ("a mask of 16 bits", "SegmentationClass/train_dog.png must hold class indices"),
        (
            "another size than annotated",
            "JPEGImages/train_dog.jpg is 80x40 pixels, but Annotations/train_dog.xml.* 40x80",
        ),
        ("turned by EXIF", r"JPEGImages/train_dog.jpg is turned by its EXIF data \(orientation 6\)"),
        ("a web page", "Annotations/train_dog.xml cannot be read: it is not the XML of a VOC annotation"),
        ("nan", "Annotations/train_dog.xml cannot be read"),
        ("inf", "Annotations/train_dog.xml cannot be read"),
        ("no name", "Annotations/train_dog.xml cannot be read"),
        ("in both lists", r"train_dog \(1 image\) stands in ImageSets/Main/train.txt and in val.txt"),
        ("a list in UTF-16", "ImageSets/Main/val.txt cannot be read"),
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


def test_with_masks_names_the_images_of_a_subset(voc):
    voc.mask("train_dog", np.full((40, 80), 12, np.uint8))
    voc.mask("val_dog", np.full((40, 80), 12, np.uint8))
    voc.add("train", "cat", thing("cat", (1, 1, 9, 9)))
    voc.add("val", "cow", thing("cow", (1, 1, 9, 9)))
    voc.add("val", "sheep", thing("sheep", (1, 1, 9, 9)))
    kept = data.with_masks(data.voc_animals(32, test=2))
    assert str(kept.provenance) == "PASCAL VOC 2012 animals, 1 + 1 images at 32 px (published: some 3,600)"
    assert (len(kept.train), len(kept.test)) == (1, 1)


def test_white_space_in_annotations_and_lists_means_nothing(voc):
    voc.add("train", "cat", thing("cat", (3, 5, 30, 31)), thing("cow", (1, 1, 9, 9), difficult=1))
    before = data.voc_animals(32)
    voc.note("cat", thing("\n cat\n", (" 3", "5 ", 30, "\n31")), thing(" cow ", (1, 1, 9, 9), difficult=" 1 "))
    (voc.root / "ImageSets/Main/train.txt").write_text("\ufefftrain_dog\r\n\n  cat \n\n", "utf-8")
    after = data.voc_animals(32)
    assert same_scenes(before, after)


def test_an_annotation_of_the_right_size_is_taken(voc):
    voc.note("train_dog", "<size><width>80</width><height>40</height></size>", thing("dog", (1, 1, 80, 40)))
    assert len(data.voc_animals(32).train) == 1


def test_an_empty_folder_of_masks_does_not_hide_the_other(voc):
    voc.mask("train_dog", np.full((40, 80), 12, np.uint8))
    (voc.root / "SegmentationClassAug").mkdir()
    (voc.root / "SegmentationClassAug/._train_dog.png").write_bytes(b"of macOS")
    dataset = data.voc_animals(32)
    assert (dataset.train.targets["masks"] == 3).all() and "SBD" not in str(dataset.provenance)


needs_data = pytest.mark.skipif(not REAL, reason="COURSE_DATA names no folder of real data")


def test_folders_are_listed_as_often_for_many_photographs_as_for_few(voc, monkeypatch):
    """A folder of masks has thousands of files: to list it for each photograph took minutes."""
    listed, glob = [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: listed.append(path.name) or glob(path, pattern))
    data.voc_animals(32)
    assert listed.count("SegmentationClassAug") == 1


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


def test_clear_examples_show_one_animal_of_the_right_size_and_nobody():
    """Class 0: too small, a person, two animals, too large, behind a bar, no mask, two clear ones; class 3: none."""
    sides = torch.tensor([14.0, 20, 20, 24, 20, 20, 15, 22, 30])  # of 32: shares 0.19, 0.39, 0.39, 0.56, ... 0.22, 0.47
    boxes, masks = torch.zeros(9, 2, 4), torch.zeros(9, 32, 32, dtype=torch.uint8)
    boxes[:, 0, 2:] = sides[:, None]
    boxes[2, 1, 2:] = 5.0
    masks[:, 2:12, 2:12] = 1
    masks[6, 12, 12] = 1  # a corner apart is no gap
    masks[4, 6] = 0
    masks[7, 20:] = 255
    labels = torch.tensor([[0, -1]]).repeat(9, 1)
    labels[2, 1], labels[8, 0] = 4, 3
    only = torch.arange(9)
    targets = {"boxes": boxes, "labels": labels, "masks": masks, "has_person": only == 1, "has_mask": only != 5}
    split = Split(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), targets)
    assert data.clear_examples(split).tolist() == [6, 8]
    assert data.clear_examples(split, 3).tolist() == [6, 7, 0, 8]
