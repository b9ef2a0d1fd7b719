"""The receptive field that is followed through a pass is where the gradient is."""

import torch
from torch import nn

from helpers.receptive_field import macs_and_field


class Paths(nn.Module):
    """Everything that a map of the chapters goes through: strides, dilation, pooling, slices, gates, two paths."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 5, stride=2, padding=2)
        self.wide = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(4, 1, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        x = nn.functional.avg_pool2d(self.first(x), 3, 2, padding=1)[:, :, ::2, ::2]
        x = torch.cat([self.wide(x), self.narrow(x)], 1)
        return self.last(x * x.mean((2, 3), keepdim=True).detach())  # the gate sees all, and is left out


def test_field_is_where_the_gradient_is():
    network = Paths()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.5)
    images = torch.ones(1, 1, 160, 160, requires_grad=True)
    made = network(images)
    made[0, 0, 10, 10].backward()
    seen = (images.grad[0, 0].sum(0) != 0).nonzero()
    with torch.device("meta"):
        assert macs_and_field(Paths(), (1, 160, 160))[1] == int(seen.max() - seen.min()) + 1
