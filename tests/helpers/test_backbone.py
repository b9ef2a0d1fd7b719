"""The network that the chapters on segmentation and detection start from, and what it was trained on."""

import torch

from helpers import backbone, data, weights
from helpers.inspect import count_parameters


def test_the_maps_have_the_strides_of_a_resnet():
    maps = backbone.Backbone().eval().features(torch.zeros(2, 3, 96, 64))
    assert [tuple(c.shape) for c in maps] == [(2, 32, 24, 16), (2, 64, 12, 8), (2, 128, 6, 4), (2, 256, 3, 2)]
    assert tuple(c.shape[1] for c in maps) == backbone.CHANNELS


def test_the_logits_come_from_the_last_map():
    model, images = backbone.Backbone().eval(), torch.randn(2, 3, 64, 64)
    assert torch.allclose(model(images), model.fc(model.features(images)[3].mean((2, 3))), atol=1e-5)
    assert model(images).shape == (2, len(backbone.CLASSES)) == (2, 12)


def test_the_committed_weights_are_current_and_have_learnt():
    assert weights.stale("backbone") == []
    record = backbone.BACKBONE.record
    assert record["metrics"]["cifar10_accuracy"] > 0.8 and record["metrics"]["voc_accuracy"] > 0.6
    assert count_parameters(backbone.BACKBONE.load()) == 1_229_484


def test_cut_outs_are_the_boxes():
    photographs = torch.zeros(3, 3, 100, 100, dtype=torch.uint8)
    photographs[0, :, 20:60, 10:90] = 200
    photographs[2, :, 50:80, 30:50] = 90
    boxes, labels = torch.zeros(3, 2, 4), torch.full((3, 2), -1)
    boxes[0, 0], labels[0, 0] = torch.tensor([10.0, 20, 90, 60]), 1
    boxes[2, 1], labels[2, 1] = torch.tensor([30.0, 50, 50, 80]), 0
    pictures, names = backbone._cut_out(data.Split(photographs, {"boxes": boxes, "labels": labels}), 1.0)
    assert [backbone.CLASSES[name] for name in names] == ["cow", "cat"]
    assert pictures.shape == (2, 3, 64, 64)
    assert pictures[0, :, 2:-2, 2:-2].eq(200).all() and pictures[1, :, 2:-2, 2:-2].eq(90).all()
    wide, _ = backbone._cut_out(data.Split(photographs, {"boxes": boxes, "labels": labels}), 2.0)
    assert wide[0, :, 20:44, 20:44].eq(200).all() and wide[0, :, :12].eq(0).all()


def test_the_classes_keep_their_names():
    names = backbone.CLASSES
    assert names[:10] == data.CIFAR10_CLASSES and set(names[10:]) == {"cow", "sheep"}
