"""The types: statistics, normalisation and back, and what they refuse."""

import numpy as np
import pytest
import torch
from datafiles import random_images

from helpers.data import Dataset, Provenance, Split


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
