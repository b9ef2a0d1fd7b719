"""Drawn cells that touch: what stands in for the ISBI 2012 slices where those cannot be had.

Each image is a Voronoi mosaic of jittered seeds. A pixel whose two nearest seeds are almost equally far away is
membrane, so neighbouring cells are parted by a thin dark line, as in the electron-microscopy slices.
"""

import torch
import torch.nn.functional as F

SIZE = 512  # pixels, as the real slices
PITCH = 44  # pixels between seeds, so that a slice holds some 130 cells
CANVAS = 13 * PITCH  # pixels; wider than a slice, whose walls are bent before it is cut out
MEMBRANE = 5.0  # pixels


def draw(count, seed=0):
    """Images uint8 (count, 1, 512, 512) and masks uint8 (count, 512, 512): 1 inside a cell, 0 membrane.

    Image i depends on `seed` and i alone, not on `count`.
    """
    slices = [_slice(torch.Generator().manual_seed(1_000 * seed + i)) for i in range(count)]
    images, masks = zip(*slices, strict=True)
    return torch.stack(images), torch.stack(masks)


def _noise(generator, cells):
    """Smooth noise (SIZE, SIZE) of unit spread: random values on a cells x cells grid, interpolated."""
    grid = torch.randn(1, 1, cells, cells, generator=generator)
    return F.interpolate(grid, size=(SIZE, SIZE), mode="bicubic", align_corners=False)[0, 0]


def _walls(generator):
    """Distance to the second nearest seed less that to the nearest (CANVAS, CANVAS): 0 halfway between two."""
    n = CANVAS // PITCH
    # one seed per square of a grid with two rings more: the two nearest lie among the 5 x 5 squares around a pixel
    seeds = torch.rand(2, n + 4, n + 4, 1, 1, generator=generator) * PITCH
    inside = torch.arange(PITCH).float()
    nearest = torch.full((2, n, n, PITCH, PITCH), float("inf"))
    for i in range(5):
        for j in range(5):
            y, x = seeds[:, i : i + n, j : j + n]
            dy, dx = y + PITCH * (i - 2) - inside[:, None], x + PITCH * (j - 2) - inside
            distance = dy**2 + dx**2
            nearest[1] = torch.minimum(nearest[1], torch.maximum(nearest[0], distance))
            nearest[0] = torch.minimum(nearest[0], distance)
    first, second = nearest.sqrt_()
    return (second - first).transpose(1, 2).reshape(CANVAS, CANVAS)


def _slice(generator):
    axis = torch.arange(SIZE).float() + (CANVAS - SIZE) / 2
    y, x = axis[:, None] + 5 * _noise(generator, 24), axis + 5 * _noise(generator, 24)  # bend the straight walls
    where = torch.stack([x, y], -1)[None] * (2 / (CANVAS - 1)) - 1
    inside = F.grid_sample(_walls(generator)[None, None], where, align_corners=True)[0, 0] > MEMBRANE
    shade = F.avg_pool2d(torch.where(inside, 145.0, 65.0)[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    shade = shade + 12 * _noise(generator, 8) + 22 * _noise(generator, 128)
    shade = shade + 12 * torch.randn(SIZE, SIZE, generator=generator)
    return shade.clamp(0, 255).to(torch.uint8)[None], inside.to(torch.uint8)
