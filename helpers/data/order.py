"""The order that deals out the classes in turn, so that the first n images are balanced for every n."""

import numpy as np


def balanced_order(labels, tie_break=None):
    """Indices int64 (N,) that put images with these labels, int (N,), in that order.

    Inside a class the order is by `tie_break` (N,), else by position.
    """
    position = np.arange(len(labels)) if tie_break is None else tie_break
    by_class = np.lexsort((position, labels))
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.lexsort((labels, rank))
