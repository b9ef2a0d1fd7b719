"""The network that the chapters on segmentation and detection start from, which chapter 2 declares."""

import torch

from helpers import data, naming, weights
from helpers.chapters import chapter
from helpers.inspect import count_parameters

backbone = chapter("02_resnet")


def test_the_maps_have_the_strides_of_a_resnet():
    maps = backbone.Backbone().eval().features(torch.zeros(2, 3, 96, 64))
    assert [tuple(c.shape) for c in maps] == [(2, 32, 24, 16), (2, 64, 12, 8), (2, 128, 6, 4), (2, 256, 3, 2)]
    assert tuple(c.shape[1] for c in maps) == backbone.CHANNELS


def test_the_logits_come_from_the_last_map():
    model, images = backbone.Backbone().eval(), torch.randn(2, 3, 64, 64)
    assert torch.allclose(model(images), model.fc(model.features(images)[3].mean((2, 3))), atol=1e-5)
    assert model(images).shape == (2, len(naming.CLASSES)) == (2, 12)


def test_the_committed_weights_are_current_and_have_learnt():
    assert weights.stale("02_resnet") == []
    record = backbone.BACKBONE.record
    assert record["metrics"]["cifar10_accuracy"] > 0.8 and record["metrics"]["voc_accuracy"] > 0.6
    assert count_parameters(backbone.BACKBONE.load()) == 1_229_484


def test_the_classes_keep_their_names():
    names = naming.CLASSES
    assert names[:10] == data.CIFAR10_CLASSES and set(names[10:]) == {"cow", "sheep"}
