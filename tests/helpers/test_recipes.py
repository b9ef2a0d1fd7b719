"""The recipe for few epochs: it has no length of its own, and the loop takes it as it takes any other."""

import pytest
import torch
from toys import red_or_blue, small_network, weights

from helpers import train
from helpers.muon import Muon


def test_short_waits_for_a_length():
    with pytest.raises(ValueError, match="say how long to train"):
        train.fit(small_network(), red_or_blue(16), train.SHORT)
    with pytest.raises(ValueError, match="not both"):
        train.fit(small_network(), red_or_blue(16), train.SHORT, epochs=1, seconds=1)
    assert train.fit(small_network(), red_or_blue(16), train.SHORT, seconds=0.01).recipe["seconds"] == 0.01


def test_short_learns_with_muon_and_says_so():
    history = train.fit(small_network(), red_or_blue(128), train.SHORT, epochs=8, batch_size=16)
    assert history.last("test_accuracy") > 0.9
    assert history.recipe["optimizer"] == "Muon" and history.recipe["lr"] == train.SHORT.lr


def test_short_moves_a_convolution_by_the_scheduled_rate():
    """By one step of a cycle that stands still, every singular value of the filters' change is about the rate."""
    model = small_network()
    before = model[0].weight.detach().flatten(1).clone()
    train.fit(model, red_or_blue(16), train.SHORT, epochs=1, batch_size=16, schedule=lambda progress: 0.5)
    moved = torch.linalg.svdvals(model[0].weight.detach().flatten(1) - before) / (0.5 * train.SHORT.lr)
    assert moved.max() < 1.3 and moved.median() > 0.6


def test_short_is_the_same_twice():
    networks = [small_network(), small_network()]
    for network in networks:
        train.fit(network, red_or_blue(64), train.SHORT, epochs=2, batch_size=16)
    assert torch.equal(*map(weights, networks))
    assert train.SHORT.optimizer is Muon
