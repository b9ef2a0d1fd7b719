"""Comparing two networks: weights that go over in order, and answers that are worth comparing."""

import pytest
import torch
from torch import nn
from toys import small_network, weights

from helpers import parity

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Renamed(nn.Module):
    """`small_network` under other names."""

    def __init__(self, width=8, kernel=3):
        super().__init__()
        self.first = nn.Conv2d(3, width, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width, 2)

    def forward(self, images):
        return self.last(self.norm(self.first(images)).relu().mean((2, 3)))


def test_weights_go_over_in_order_and_the_answers_agree():
    ours, theirs = small_network().eval(), Renamed().eval()
    assert parity.relative_difference(ours, theirs, IMAGES) > 1e-2
    assert parity.copy_in_order(ours, theirs) is theirs
    assert torch.equal(weights(ours), weights(theirs))
    assert parity.relative_difference(ours, theirs, IMAGES) < 1e-12


def test_comparing_changes_neither_network():
    ours, theirs = small_network().train(), Renamed().train()
    before = weights(ours)
    parity.relative_difference(ours, theirs, IMAGES)
    assert torch.equal(weights(ours), before)
    assert ours.training and theirs.training and next(ours.parameters()).dtype == torch.float32


def test_a_network_on_the_meta_device_can_take_weights():
    with torch.device("meta"):
        theirs = Renamed()
    ours = small_network()
    assert parity.relative_difference(ours, parity.copy_in_order(ours, theirs), IMAGES) < 1e-12


def test_another_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"0\.weight is \(8, 3, 3, 3\), but first\.weight is \(8, 3, 5, 5\)"):
        parity.copy_in_order(small_network(), Renamed(kernel=5))
    with pytest.raises(ValueError, match="9 tensors, the other 4"):
        parity.copy_in_order(small_network(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)))


def test_answers_that_do_not_depend_on_the_image_are_refused():
    constant = small_network()
    nn.init.zeros_(constant[-1].weight)
    with pytest.raises(ValueError, match="do not depend on the image"):
        parity.relative_difference(constant, constant, IMAGES)
    with pytest.raises(ValueError, match="do not depend on the image"):
        parity.relative_difference(small_network(), small_network(), IMAGES[:1])
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\)"):
        parity.relative_difference(small_network(), small_network(classes=3), IMAGES)


@pytest.mark.parametrize("statistic", ["running_mean", "running_var"])
def test_running_statistics_alone_make_a_difference(statistic):
    ours, theirs = small_network(), small_network()
    getattr(theirs[1], statistic).add_(0.5)
    assert parity.relative_difference(ours, theirs, IMAGES) > 1e-2
    assert parity.relative_difference(ours, parity.copy_in_order(ours, theirs), IMAGES) < 1e-12
