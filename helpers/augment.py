"""Augmentation of a whole batch on its device: a new draw for every image, at the cost of a few tensor operations."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Augment:
    """Random flip, shift and cutout of a whole batch, for labels that do not move with the picture.

    flip: mirror half of the images left to right.
    shift: move each image by up to this many pixels in x and y. The gap is filled with 0, the mean colour.
    cutout: side in pixels of a square set to 0 in each image (DeVries and Taylor, 2017), cut off where it leaves the
        image. 0 turns it off.

    Called with `images` (N, C, H, W), normalised, the targets and a CPU generator; returns both.
    """

    flip: bool = True
    shift: int = 4
    cutout: int = 0

    def __call__(self, images, targets, generator):
        n, _, height, width = images.shape
        device = images.device

        def integers(high):
            return torch.randint(high, (n,), generator=generator).to(device)

        if self.flip:
            images = torch.where(integers(2).bool()[:, None, None, None], images.flip(-1), images)
        if self.shift:
            # every window of the padded image is a view; indexing picks one window per image
            padded = F.pad(images, [self.shift] * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            rows, columns = integers(2 * self.shift + 1), integers(2 * self.shift + 1)
            images = windows[torch.arange(n, device=device), :, rows, columns]
        if self.cutout:
            y, x = integers(height)[:, None], integers(width)[:, None]
            rows = torch.arange(height, device=device) - y + self.cutout // 2
            columns = torch.arange(width, device=device) - x + self.cutout // 2
            in_rows, in_columns = ((a >= 0) & (a < self.cutout) for a in (rows, columns))
            hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
            images = images.masked_fill(hole, 0.0)
        return images, targets


@dataclass(frozen=True)
class AugmentScene:
    """Random window and flip of a whole batch, for boxes and masks that move with the picture.

    flip: mirror half of the images left to right.
    zoom: range of the window's side, relative to the image's; below 1 enlarges a part of the image, above 1 shrinks
        the image. What lies outside is 0, the mean colour, and void (255) in a mask.
    visible: a box of which a smaller share than this is inside the window is dropped (its label becomes -1).

    Called with `images` (N, C, H, W), normalised, targets and a CPU generator; returns both. Targets are masks
    uint8 (N, H, W), or a dict as `voc_animals` gives it: `masks`, or `boxes` and `labels`, or all three.
    """

    flip: bool = True
    zoom: tuple = (0.6, 1.1)
    visible: float = 0.3

    def __call__(self, images, targets, generator):
        n, _, height, width = images.shape
        device = images.device

        def uniform(low, high):
            return (low + (high - low) * torch.rand(n, generator=generator)).to(device)

        # logarithmic, so that 1/2 and 2 are equally likely
        scale = uniform(*(math.log(side) for side in self.zoom)).exp()
        # a smaller window stays inside the image, and in a larger one the image stays inside: both ±|1 - scale|
        x, y = ((1 - scale).abs() * uniform(-1, 1) for _ in range(2))
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if self.flip else torch.ones(n, device=device)
        zero = torch.zeros_like(x)
        window = torch.stack([torch.stack([mirror * scale, zero, x], 1), torch.stack([zero, scale, y], 1)], 1)
        grid = F.affine_grid(window, [n, 1, height, width], align_corners=False)
        images = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", align_corners=False)

        def moved_mask(masks):
            # 255 means void, and so does everything outside, which grid_sample fills with 0
            shifted = (masks.float() - 255)[:, None]
            return (F.grid_sample(shifted, grid, mode="nearest", align_corners=False)[:, 0] + 255).to(masks.dtype)

        if not isinstance(targets, dict):
            return images, moved_mask(targets)
        targets = dict(targets)
        if "masks" in targets:
            targets["masks"] = moved_mask(targets["masks"])
        if "boxes" in targets:
            # from pixels to [-1, 1], then the inverse of `window`
            boxes = targets["boxes"].float()
            centres, scales, signs = torch.stack([x, y], 1), scale[:, None, None], mirror[:, None, None]
            size = torch.tensor([width, height], device=device)
            corners = (2 * boxes.reshape(n, -1, 2) / size - 1 - centres[:, None]) / scales
            corners = torch.cat([corners[..., :1] * signs, corners[..., 1:]], 2)
            corners = ((corners + 1) / 2 * size).reshape(n, -1, 2, 2)
            low, high = corners.amin(2), corners.amax(2)
            area = (high - low).prod(2)
            low, high = (torch.minimum(corner.clamp_min(0), size) for corner in (low, high))
            seen = (high - low).prod(2) >= self.visible * area
            keep = seen & (targets["labels"] >= 0)
            targets["boxes"] = torch.cat([low, high], 2) * keep[..., None]
            targets["labels"] = torch.where(keep, targets["labels"], -1)
        return images, targets


def no_augment(images, targets, generator):
    """The images as they are."""
    return images, targets
