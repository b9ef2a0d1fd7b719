"""Training and evaluation mode belong to every submodule; a helper leaves each as it found it."""

from contextlib import contextmanager


@contextmanager
def evaluating(model):
    """Within this block `model` is in evaluation mode; after it every submodule has its own mode again.

    `model.train(was_training)` would give all of them the mode of the outermost: it thaws batch normalisation that was
    frozen, and leaves in training mode what stands within a container that was.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in before:
            module.training = training


def frozen_parts(model):
    """The submodules that training must leave in evaluation mode, as a list.

    Frozen is what is in evaluation mode and has parameters, none of which requires a gradient, with all it contains.
    Requiring no gradient is not enough: a running mean moves in training mode without any. Being in evaluation mode is
    not enough either, for so is every network that was just loaded.
    """

    def frozen(module):
        parameters = list(module.parameters())
        return not module.training and parameters and not any(p.requires_grad for p in parameters)

    return [part for module in model.modules() if frozen(module) for part in module.modules() if not part.training]


def set_training(model, frozen=()):
    """Put `model` in training mode, but the modules in `frozen` in evaluation mode."""
    model.train()
    for module in frozen:
        module.training = False
