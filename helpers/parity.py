"""Is our network another one's equal? Give both the same weights and compare their answers."""

import copy

import torch


def copy_in_order(source, target):
    """Give `target` the weights and buffers of `source`, the first for the first and so on; returns `target`.

    For two networks that define the same layers in the same order under different names; `target` may be on the `meta`
    device. Both then share the memory. Raises ValueError at the first pair whose shapes differ, with both names.
    """
    ours, theirs = source.state_dict(), target.state_dict()
    if len(ours) != len(theirs):
        raise ValueError(
            f"one network has {len(ours)} tensors, the other {len(theirs)}: they are not the same network."
        )
    for (name, tensor), (other, place) in zip(ours.items(), theirs.items(), strict=True):
        if tensor.shape != place.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, but {other} is {tuple(place.shape)}.")
    target.load_state_dict(dict(zip(theirs, ours.values(), strict=True)), assign=True)
    return target


@torch.no_grad()
def relative_difference(ours, theirs, images):
    """The largest difference between two networks' answers to `images`, over the largest answer.

    Computed in float64 and evaluation mode on copies, so that rounding stays below 1e-12. Raises ValueError when the
    answers hardly differ from image to image: two networks that always say the same agree for no reason.
    """
    a, b = (copy.deepcopy(model).double().eval()(images.double()) for model in (ours, theirs))
    if a.shape != b.shape:
        raise ValueError(f"the answers have different shapes: {tuple(a.shape)} and {tuple(b.shape)}.")
    if len(images) < 2 or (a[0] - a[1]).abs().max() < 1e-6 * a.abs().max():
        raise ValueError("the answers do not depend on the image, so their equality would mean nothing.")
    return float((a - b).abs().max() / a.abs().max())
