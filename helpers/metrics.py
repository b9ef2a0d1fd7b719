"""Scores of predictions, and what a difference between two arms of a study is worth."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def accuracy(logits, labels):
    """Share of images whose highest logit (N, classes) is the label (N,)."""
    return float((logits.argmax(1) == labels).float().mean())


def top_k_error(logits, labels, k):
    """Share of images whose label is not among the k highest logits: the papers' top-1 and top-5 error."""
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k={k} is outside 1..{classes}, the number of classes.")
    hits = (logits.topk(k, 1).indices == labels[:, None]).any(1)
    return 1 - float(hits.float().mean())


def confusion(logits, labels):
    """Counts (classes, classes): rows are true classes, columns predicted ones."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).reshape(classes, classes)


def pixel_confusion(predicted, masks, classes):
    """Counts (classes, classes) over pixels, as `confusion`: predicted classes (N, H, W), true masks, 255 = void."""
    known = masks != 255
    pairs = masks[known].long() * classes + predicted[known].long()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(counts):
    """Intersection over union of each class (classes,) from a confusion matrix; NaN for a class that never occurs."""
    counts = counts.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def through_stride(masks, factor, classes, smooth=True):
    """What is left of true masks uint8 (N, H, W) if there is one decision for factor x factor pixels; void is no class.

    The share of each class in a cell is enlarged again, bilinearly or as blocks if not `smooth`, and the largest wins.
    A segmentation of that stride cannot do much better than this.
    """
    kept = []
    for part in masks.split(100):
        share = torch.stack([part == label for label in range(classes)], 1).float()
        share = F.avg_pool2d(share, factor)
        mode = "bilinear" if smooth else "nearest"
        kept.append(F.interpolate(share, scale_factor=factor, mode=mode).argmax(1))
    return torch.cat(kept).to(torch.uint8)


# The 97.5 % point of Student's t for 1, 2, … degrees of freedom, from the standard table.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Effect:
    """The difference between two arms over paired seeds.

    mean and sd: of the differences, one per seed. low and high: the 95 % confidence interval of their mean
    (Student's t). n: number of seeds.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int

    @property
    def verdict(self):
        """`seen` if the interval lies above zero, `reversed at this scale` if below, else `not clear`."""
        if self.low > 0:
            return "seen"
        if self.high < 0:
            return "reversed at this scale"
        return "not clear"

    def __str__(self):
        return f"{self.mean:+.2f} ± {self.sd:.2f} ({self.n} seeds, 95 % interval {self.low:+.2f} to {self.high:+.2f})"


def paired_effect(first, second):
    """The Effect of `second` minus `first`, two sequences with one value per seed in the same order."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"paired arms need the same seeds, at least two; got {len(first)} and {len(second)} values.")
    difference = torch.tensor(second, dtype=torch.float64) - torch.tensor(first, dtype=torch.float64)
    n = len(difference)
    mean, sd = float(difference.mean()), float(difference.std())
    df = n - 1
    # past the table, the first terms of its expansion about the normal distribution: right to 0.2 %
    t = STUDENT_T[df - 1] if df <= len(STUDENT_T) else 1.960 + 2.372 / df + 2.823 / df**2
    half = t * sd / math.sqrt(n)
    return Effect(mean, sd, mean - half, mean + half, n)
