"""What a helper is given, it leaves as it found it: modes, numbers, gradients, hooks."""

import pytest
import torch
from torch import nn
from toys import red_or_blue, small_network

from helpers import cam, inspect, parity, plot, train
from helpers.modes import evaluating, frozen_parts

DATA = red_or_blue(24)
SHAPE = DATA.test.images.shape[1:]


def batch():
    return DATA.normalize(DATA.test.images[:4])


def in_training():
    """Everything in training mode."""
    return small_network(dropout=0.5).train()


def frozen_within():
    """A network in training mode, whose first layers are frozen."""
    network = small_network(dropout=0.5).train()
    network[:2].requires_grad_(False).eval()
    return network


def within_a_container():
    """A container in training mode around layers in evaluation mode, one of which is in training mode again."""
    container = small_network(dropout=0.5).eval()
    container.training = container[1].training = True
    return container


NETWORKS = [in_training, frozen_within, within_a_container]
HELPERS = {
    "predict": lambda model: train.predict(model, DATA, DATA.test.images),
    "predict_masks": lambda model: train.predict_masks(model, DATA, DATA.test.images),
    "evaluate": lambda model: train.evaluate(model, DATA),
    "feature_map": lambda model: cam.feature_map(model, "2", batch()),
    "grad_cam": lambda model: cam.grad_cam(model, "2", batch(), 1),
    "count_parameters": lambda model: inspect.count_parameters(model),
    "count_macs": lambda model: inspect.count_macs(model, SHAPE),
    "trace": lambda model: inspect.trace(model, SHAPE),
    "watch": lambda model: inspect.watch(model, nn.Conv2d, batch(), lambda given, made: made.mean()),
    "input_gradient": lambda model: inspect.input_gradient(model, "2", batch()),
    "time_per_image": lambda model: inspect.time_per_image(model, SHAPE, seconds=0),
    "relative_difference": lambda model: parity.relative_difference(model, model, batch()),
    "evidence": lambda model: plot.evidence(model, DATA, "2", "A caption."),
}


def condition(model):
    """All that a helper must not change, by name."""
    found = {}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[f"mode and hooks of {name}"] = (module.training, *map(len, hooks))
    for name, parameter in model.named_parameters():
        gradient = None if parameter.grad is None else parameter.grad.tolist()
        found[f"gradient of {name}"] = (parameter.requires_grad, gradient)
    for name, tensor in model.state_dict().items():
        found[f"numbers of {name}"] = (str(tensor.dtype), tensor.is_inference(), tensor.tolist())
    return found


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("helper", HELPERS)
def test_a_helper_leaves_the_network_as_it_found_it(helper, build):
    model = build()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.5)
    before = condition(model)
    HELPERS[helper](model)
    assert condition(model) == before


@pytest.mark.parametrize("build", NETWORKS)
def test_evaluating_reaches_every_submodule_and_restores_it_after_an_error(build):
    model = build()
    before = condition(model)
    with pytest.raises(ZeroDivisionError), evaluating(model) as same:
        assert same is model and not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert condition(model) == before


# ---------------------------------------------------------------------------------------------- frozen parts


def names_of_frozen(model):
    return [name for name, module in model.named_modules() if any(module is part for part in frozen_parts(model))]


def test_frozen_is_what_is_in_evaluation_mode_and_has_no_gradient():
    model = small_network().eval()
    assert names_of_frozen(model) == []
    model[:2].requires_grad_(False)
    assert names_of_frozen(model) == ["0", "1"]
    model[1].train()
    assert names_of_frozen(model) == ["0"]
    # dropout has no parameters; it is frozen where all around it is
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False).eval()
    assert names_of_frozen(nn.Sequential(inner, nn.Linear(2, 2))) == ["0", "0.0", "0.1"]


@pytest.mark.parametrize("ema", [None, 0.5])
def test_what_is_frozen_stays_through_a_training_and_its_evaluations(ema):
    model, modes = frozen_within(), set()

    def loss(model, images, targets):
        modes.add(tuple(module.training for module in model))
        return train.CrossEntropy()(model, images, targets)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train.fit(model, DATA, epochs=2, batch_size=8, loss=loss, ema=ema)
    after = model.state_dict()
    assert modes == {(False, False, True, True, True, True, True)}
    assert [name for name in before if torch.equal(before[name], after[name])] == [
        name for name in before if name[0] in "01"
    ]


def test_without_a_gradient_but_in_training_mode_running_statistics_move():
    model = small_network().train()
    model[:2].requires_grad_(False)
    before = model[1].running_mean.clone()
    train.fit(model, DATA, epochs=1, batch_size=8)
    assert not torch.equal(model[1].running_mean, before)


def test_a_network_that_was_just_loaded_is_trained_as_a_whole():
    modes = set()

    def loss(model, images, targets):
        modes.update(module.training for module in model.modules())
        return train.CrossEntropy()(model, images, targets)

    train.fit(small_network().eval(), DATA, epochs=1, batch_size=8, loss=loss)
    assert modes == {True}
