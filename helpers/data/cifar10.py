"""CIFAR-10."""

import numpy as np
import torch

from helpers.data import amounts, download, standin
from helpers.data.batches import Batches
from helpers.data.classes import CIFAR10_CLASSES
from helpers.data.dataset import Dataset, Provenance, Split
from helpers.data.order import balanced_order
from helpers.data.prepared import fingerprint, prepared
from helpers.data.sheets import Sheets
from helpers.data.source import READER, SEED, Source

PUBLISHED = (50_000, 10_000)
DRAWN = (4_000, 1_000)  # images of the stand-in, unless asked for more or fewer

_KAGGLE = "The layout of Kaggle, one picture a file, is not read: cifar-10-batches-py/ is."
CIFAR10 = Source(
    "cifar10",
    "CIFAR-10",
    (Batches, Sheets),
    download.cifar10_archive,
    "",
    {
        "train.7z": _KAGGLE,
        "trainLabels.csv": _KAGGLE,
        "*/trainLabels.csv": _KAGGLE,
        "train/airplane": _KAGGLE,
        "*/train/airplane": _KAGGLE,
        "data_batch_1": "The folder with data_batch_1 must be called cifar-10-batches-py, and COURSE_DATA holds it.",
        "*/data_batch_1": "The folder with data_batch_1 must be called cifar-10-batches-py.",
        "train/airplane.*": "The folder with train/ and test/ must be called cifar10, and COURSE_DATA holds it.",
        "*/train/airplane.*": "The folder with train/ and test/ must be called cifar10.",
    },
)


def cifar10(train=None, test=None):
    """CIFAR-10 (Krizhevsky, 2009): colour photographs of 32x32 pixels in ten classes. Returns a Dataset.

    train, test: how many images, None for all (50,000 and 10,000; of the stand-in 4,000 and 1,000). They are the first
    of a fixed order that deals out the classes in turn, so a subset is balanced and part of every larger one, and is
    the same whichever way the images are stored.

    Targets: int64 (N,), positions in `classes`, which are in the official order (airplane ... truck).
    Raises ValueError for a number that cannot be had, or for damaged files, which it names. Where the files hold
    another number of images than were published, the provenance says so.
    """
    amounts.check_counts(train, test)
    source = CIFAR10.real()
    if source is None:
        train, test = amounts.of_standin(train, test, DRAWN)
        images, labels, test_images, test_labels = map(torch.from_numpy, standin.cifar10(train, test, seed=SEED))
        splits = Split(images, labels), Split(test_images, test_labels)
        return Dataset(*splits, CIFAR10_CLASSES, CIFAR10.standin_provenance(train, test))
    stamp = fingerprint(source.files(), READER)
    arrays = prepared("cifar10", source.folder, stamp, lambda: _in_order(source.read()))
    splits = [amounts.first(arrays, split, n, CIFAR10.title) for split, n in (("train", train), ("test", test))]
    detail = amounts.said(arrays, splits) + " images"
    if tuple(len(arrays[f"{split}.images"]) for split in ("train", "test")) != PUBLISHED:
        detail += f" (published: {PUBLISHED[0]:,} + {PUBLISHED[1]:,})"
    return Dataset(*splits, CIFAR10_CLASSES, Provenance(CIFAR10.title, True, detail))


def _in_order(splits):
    """{"train": (images, labels), ...} -> named tensors in the balanced order, which depends on pixels alone."""
    arrays = {}
    for split, (images, labels) in splits.items():
        order = balanced_order(labels, _pixel_hash(images))
        arrays[f"{split}.images"] = torch.from_numpy(images[order])
        arrays[f"{split}.targets"] = torch.from_numpy(labels[order])
    return arrays


def _pixel_hash(images):
    """One uint64 per image from its pixels (N, 3, 32, 32): the same whichever layout the image came in."""
    words = np.ascontiguousarray(images).reshape(len(images), -1).view("<u8")
    factors = np.cumprod(np.full(words.shape[1], 0x9E3779B97F4A7C15, np.uint64))
    return np.concatenate([(chunk * factors).sum(1, dtype=np.uint64) for chunk in np.array_split(words, 100)])
