"""A folder to carry along: the same data, reduced where asked for, and nothing half done."""

from xml.etree import ElementTree

import numpy as np
import pytest
from datafiles import names, same, same_scenes, thing
from PIL import Image

from helpers import data


def test_packed_cifar10_is_pixel_for_pixel_the_same(batches, tmp_path, monkeypatch):
    official = data.cifar10()
    data.pack(tmp_path / "carried")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    assert names(tmp_path / "carried") == ["cifar10"]
    assert same(data.cifar10(), official)
    assert data.find("cifar10").layout == "contact sheets"


def test_packed_slices_are_the_same(slices, tmp_path, monkeypatch):
    before = data.isbi2012()
    data.pack(tmp_path / "carried")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    assert same(data.isbi2012(), before)


def test_packed_devkit_at_full_size_gives_the_same_arrays(voc, tmp_path, monkeypatch):
    voc.add("train", "cat", thing("cat", (3, 5, 30, 31)), mask=np.full((40, 80), 8, np.uint8))
    before = data.voc_animals(32)
    data.pack(tmp_path / "carried", longer_side=80)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "carried"))
    assert same_scenes(data.voc_animals(32), before)


def test_packed_devkit_is_reduced_with_boxes_and_masks(voc, tmp_path, monkeypatch):
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 20:60] = 13
    voc.add("val", "horse", thing("horse", (21, 11, 60, 30)), thing("person", (1, 1, 80, 40)), mask=mask)
    voc.add("val", "people", thing("person", (1, 1, 80, 40)))
    data.pack(tmp_path / "carried", longer_side=40)
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
    data.pack(tmp_path / "carried")
    assert "isbi2012/ is in that folder already" in capsys.readouterr().out
    assert names(tmp_path / "carried/isbi2012") == []


def test_packing_that_fails_leaves_nothing_half_done(slices, tmp_path):
    (slices / "label/29.png").unlink()
    with pytest.raises(FileNotFoundError):
        data.pack(tmp_path / "carried")
    assert names(tmp_path / "carried") == []


def test_a_mask_or_a_photograph_that_does_not_fit_is_not_made_to_fit(voc, tmp_path):
    voc.mask("train_dog", np.zeros((40, 79), np.uint8))
    with pytest.raises(ValueError, match="SegmentationClass/train_dog.png is 79x40"):
        data.pack(tmp_path / "carried", longer_side=40)
    (voc.root / "SegmentationClass/train_dog.png").unlink()
    voc.note("train_dog", "<size><width>40</width><height>80</height></size>", thing("dog", (1, 1, 40, 80)))
    with pytest.raises(ValueError, match="JPEGImages/train_dog.jpg is 80x40"):
        data.pack(tmp_path / "carried", longer_side=40)
    assert names(tmp_path / "carried") == []


def test_one_damaged_set_does_not_keep_the_others_back(voc, slices, tmp_path):
    (voc.root / "Annotations/train_dog.xml").write_text("<html/>")
    with pytest.raises(ValueError, match="Annotations/train_dog.xml"):
        data.pack(tmp_path / "carried")
    assert names(tmp_path / "carried") == ["isbi2012"]
