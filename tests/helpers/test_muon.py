"""Muon's step against the singular value decomposition, PyTorch's Muon (for matrices) and PyTorch's SGD."""

import copy

import pytest
import torch
from torch import nn

from helpers.muon import Muon, is_convolution, orthogonalize


def network():
    """One parameter of each kind: convolution, depthwise convolution, batch normalisation, linear."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 8, 72), (1, 64, 16), (2, 16, 16)])
def test_orthogonalize_keeps_the_directions_and_levels_the_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ orthogonalize(matrices, steps=10) @ v.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-9, rtol=0)
    assert s.amax() / s.amin() > 1.5 and values.min() > 0.6 and values.max() < 1.3


def test_matrices_do_not_mix():
    matrices = (
        torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 100.0])[:, None, None]
    )
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone)


def test_orthogonalize_leaves_zero_at_zero():
    assert orthogonalize(torch.zeros(2, 3, 5)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (32, 2, 1, 1)])
def test_a_convolution_moves_as_its_matrix_does_with_pytorchs_muon(shape):
    generator = torch.Generator().manual_seed(0)
    filters = nn.Parameter(torch.randn(shape, generator=generator))
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    start = matrix.detach().clone()
    ours, theirs = Muon([filters], 0.1), torch.optim.Muon([matrix], 0.1, weight_decay=0.0, momentum=0.95)
    for _ in range(3):
        filters.grad = torch.randn(shape, generator=generator)
        matrix.grad = filters.grad.flatten(1)
        ours.step()
        theirs.step()
    moved = (matrix - start).norm()
    # theirs is rounded to bfloat16, 8 bits
    assert (filters.flatten(1) - matrix).norm() < 0.02 * moved


def test_all_but_convolutions_move_as_with_sgd():
    model = network()
    twin = copy.deepcopy(model)
    ours = Muon(model.parameters(), 0.1, weight_decay=0.01)
    sgd = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for seed in range(3):
        give_gradients(model, seed)
        give_gradients(twin, seed)
        ours.step()
        sgd.step()
    same = [torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), twin.parameters(), strict=True)]
    assert same == [not is_convolution(p) for p in model.parameters()]
    # weight and bias of the first convolution, depthwise, two of batch normalisation, 1x1, two of the linear layer
    assert same == [False, True, True, True, True, False, True, True]


def test_weight_decay_spares_convolutions():
    model = network()
    before = copy.deepcopy(model)
    optimizer = Muon(model.parameters(), 0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, q if is_convolution(p) else q * (1 - 0.1 * 0.5 * 1.9))


def test_a_network_of_one_kind_and_parameters_without_gradient():
    convolution, linear = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(3, 2)
    assert [group["muon"] for group in Muon(convolution.parameters(), 0.1).param_groups] == [True]
    assert [group["muon"] for group in Muon(linear.parameters(), 0.1).param_groups] == [False]
    before = convolution.weight.detach().clone()
    Muon(convolution.parameters(), 0.1).step()
    assert torch.equal(convolution.weight, before)


def test_a_loaded_state_goes_on_to_the_same_weights():
    model = network().to(memory_format=torch.channels_last)
    optimizer = Muon(model.parameters(), 0.1, weight_decay=0.01)
    give_gradients(model, 0)
    optimizer.step()
    twin, saved = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    resumed = Muon(twin.parameters(), 0.3)
    resumed.load_state_dict(saved)
    for one, its in ((model, optimizer), (twin, resumed)):
        give_gradients(one, 1)
        its.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
