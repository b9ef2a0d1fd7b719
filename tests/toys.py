"""Small data and small networks that several tests share."""

import torch
from torch import nn

from helpers.data import Dataset, Provenance, Split


def red_or_blue(n=128, side=8, seed=0):
    """Two classes that one look tells apart: noise, brighter in red or in blue. uint8 (n, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)

    def split(count):
        targets = torch.arange(count) % 2
        images = torch.randint(0, 100, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        images[torch.arange(count), 2 * targets] += 80
        return Split(images, targets)

    return Dataset(split(n), split(max(n // 2, 2)), ("red", "blue"), Provenance("toy", False, f"seed {seed}"))


def small_network(seed=0, classes=2, width=8, dropout=0.0):
    """Convolution, batch normalisation, ReLU, pooling, dropout, a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, classes),
    )  # fmt: skip


def weights(model):
    """All weights and buffers, copied, in one vector."""
    return torch.cat([tensor.detach().double().flatten().clone() for tensor in model.state_dict().values()])
