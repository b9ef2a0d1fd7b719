"""Scores of predictions."""

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
    """Counts (classes, classes): rows are true classes, columns predicted ones.

    Raises ValueError for a label that is no class.
    """
    return _counts(labels, logits.argmax(1), logits.shape[1])


def pixel_confusion(predicted, masks, classes):
    """Counts (classes, classes) over pixels, as `confusion`: predicted classes (N, H, W), true masks, 255 = void.

    What is predicted at void pixels does not matter. Raises ValueError for another label that is no class.
    """
    known = masks != 255
    return _counts(masks[known], predicted[known], classes)


def _counts(true, predicted, classes):
    """How often each pair of classes occurs: (classes, classes), from labels of one shape and any integer type."""
    for what, labels in (("true", true), ("predicted", predicted)):
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise ValueError(f"the {what} class {int(wrong[0])} is outside 0..{classes - 1}.")
    # int64, for uint8 holds no more than 255 pairs
    pairs = true.long() * classes + predicted.long()
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
