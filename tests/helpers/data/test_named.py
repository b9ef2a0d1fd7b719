"""Pictures with names: cut-outs, classes and numbers."""

import torch

from helpers.data import CIFAR10_CLASSES, NAMED_CLASSES, Split, named_pictures
from helpers.data.named import VIEWS, cut_out


def test_cut_outs_are_the_boxes():
    photographs = torch.zeros(3, 3, 100, 100, dtype=torch.uint8)
    photographs[0, :, 20:60, 10:90] = 200
    photographs[2, :, 50:80, 30:50] = 90
    boxes, labels = torch.zeros(3, 2, 4), torch.full((3, 2), -1)
    boxes[0, 0], labels[0, 0] = torch.tensor([10.0, 20, 90, 60]), 1
    boxes[2, 1], labels[2, 1] = torch.tensor([30.0, 50, 50, 80]), 0
    pictures, names = cut_out(Split(photographs, {"boxes": boxes, "labels": labels}), 1.0)
    assert [NAMED_CLASSES[name] for name in names] == ["cow", "cat"]
    assert pictures.shape == (2, 3, 64, 64)
    assert pictures[0, :, 2:-2, 2:-2].eq(200).all() and pictures[1, :, 2:-2, 2:-2].eq(90).all()
    wide, _ = cut_out(Split(photographs, {"boxes": boxes, "labels": labels}), 2.0)
    assert wide[0, :, 20:44, 20:44].eq(200).all() and wide[0, :, :12].eq(0).all()


def test_the_classes_keep_their_names():
    assert NAMED_CLASSES[:10] == CIFAR10_CLASSES and NAMED_CLASSES[10:] == ("cow", "sheep")


def test_the_drawn_pictures_have_the_images_of_both(monkeypatch):
    import sys

    monkeypatch.setenv("COURSE_SOURCE", "standin")
    monkeypatch.setattr(sys.modules["helpers.data.cifar10"], "DRAWN", (20, 10))
    monkeypatch.setattr(sys.modules["helpers.data.voc"], "DRAWN", (3, 2))
    pictures = named_pictures(side=32)
    animals = (len(pictures.train) - 20) // len(VIEWS)
    assert len(pictures.train) == 20 + len(VIEWS) * animals and animals >= 3 and len(pictures.test) >= 12
    assert pictures.train.images.shape[1:] == (3, 32, 32) and pictures.train.images.dtype == torch.uint8
    assert not pictures.provenance.real and pictures.classes == NAMED_CLASSES
