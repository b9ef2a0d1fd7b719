"""Batch normalisations of the networks beside the papers' figures: all with the defaults of PyTorch."""

import pytest
from torch import nn
from toys import holds

from helpers.chapters import chapter, names

WITH_NETWORKS = [name for name in names() if hasattr(chapter(name), "NETWORKS")]


def settings(code):
    """(momentum, eps) of the batch normalisations of a chapter's networks, a set."""
    networks = [variant.make() for variant in code.NETWORKS if variant.meta]
    norms = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return {(norm.momentum, norm.eps) for norm in norms}


@pytest.mark.parametrize("name", WITH_NETWORKS)
def test_networks_have_the_usual_running_averages(name):
    assert settings(chapter(name)) <= {(0.1, 1e-5)}


@holds(
    chapter("04_efficientnet"),
    {
        "averages over a hundred steps": (
            "nn.BatchNorm2d(after),\n    ]",
            "nn.BatchNorm2d(after, momentum=0.01),\n    ]",
        )
    },
)
def test_efficientnet_forgets_faster_than_the_paper(code):
    """Its trainings have a few hundred steps; the paper's momentum of 0.99, PyTorch's 0.01, lags behind in them."""
    assert settings(code) == {(0.1, 1e-5)}
