"""What several tests share: small data, small networks, and mutants of a chapter."""

import ast
import functools
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.data import Dataset, Provenance, Split

# What the wrong numbers of a mutant lead to. Not NameError or SyntaxError: a mutant that cannot run proves nothing.
NOTICED = (AssertionError, RuntimeError, ValueError, LookupError, pytest.fail.Exception)  # the last: nothing was raised
AS_IT_IS = "as it is"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=1, dtype=None):
    """Normal random numbers."""
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def random_images(n, height, width=None, seed=0):
    """Colour images whose bytes are random, with unlike channels: red of all values, green bright, blue dark.

    uint8 (n, 3, height, width), square unless width is given.
    """
    images = torch.randint(256, (n, 3, height, width or height), generator=generator(seed))
    images[:, 1] = 128 + images[:, 1] // 2
    images[:, 2] //= 4
    return images.to(torch.uint8)


def dataset_of(images, targets, names=tuple("abcdefghij"), test=None):
    """A data set of these training images. The test split is `test`, or their negatives in the opposite order.

    So what is taken from the wrong split does not go unnoticed: test images are as many, but others.
    """
    if test is None:
        turned = {k: v.flip(0) for k, v in targets.items()} if isinstance(targets, dict) else targets.flip(0)
        test = Split(255 - images.flip(0), turned)
    return Dataset(Split(images, targets), test, names, Provenance("toy", False, "for tests"))


def red_or_blue(n=128, side=8, seed=0):
    """Two classes that one look tells apart: noise, brighter in red or in blue; green is dark.

    uint8 (n, 3, side, 5/4 side): no rows for columns.
    """
    draws = generator(seed)

    def split(count):
        targets = torch.arange(count) % 2
        images = torch.randint(0, 100, (count, 3, side, side * 5 // 4), generator=draws, dtype=torch.uint8)
        images[:, 1] //= 2
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


def on_meta(build, *arguments, **settings):
    """What `build` returns, on the `meta` device: shapes without numbers."""
    with torch.device("meta"):
        return build(*arguments, **settings)


def weights(model):
    """All weights and buffers, copied, in one vector."""
    return torch.cat([tensor.detach().double().flatten().clone() for tensor in model.state_dict().values()])


def mutant(code, old, new):
    """The chapter `code`, run again with `new` in place of `old`. Fails unless its source has `old` exactly once."""
    count = code.__source__.count(old)
    if count != 1:
        pytest.fail(f"{code.__name__} has {old!r} {count} times, not once; mend this mutant.")
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    exec(compile(code.__source__.replace(old, new), "mutant", "exec"), module.__dict__)
    return module


@contextmanager
def restored(code):
    """Within this block a test may replace functions of a chapter; afterwards the chapter has its own again."""
    own = dict(vars(code))
    try:
        yield
    finally:
        vars(code).update(own)


def holds(code, faults=None):
    """Make one parametrised test of `test_...(code)`: the chapter `code` passes it, and every fault makes it fail.

    faults: what is wrong -> (text that stands in the chapter's source exactly once, text in its place). A faulty
    chapter has to raise one of NOTICED.

        @holds(VGG, {"pools twice": ("MaxPool2d(2)", "MaxPool2d(4)")})
        def test_size(code):
            assert code.VGG("A")(noise(1, 3, 32, 32)).shape == (1, 10)
    """
    faults = faults or {}

    def decorate(check):
        @functools.cache  # the faults share one pass of the chapter as it is
        def passes():
            with restored(code):
                check(code)

        def test(fault):
            if fault == AS_IT_IS:
                return passes()
            faulty = mutant(code, *faults[fault])
            passes()  # what fails anyway notices nothing
            with pytest.raises(NOTICED):
                check(faulty)

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return pytest.mark.parametrize("fault", [AS_IT_IS, *faults])(test)

    return decorate


@contextmanager
def leaves_modes(model):
    """Whatever happens within this block, every submodule must have its own mode again after it."""
    before = {name: module.training for name, module in model.named_modules()}
    yield model
    assert {name: module.training for name, module in model.named_modules()} == before


def from_cells(code, *names):
    """Functions of a chapter that stand in cells without the tag `model`, such as an exercise's check: a list."""
    tree = ast.parse(Path(code.__file__).read_text("utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    namespace = dict(vars(code))
    exec(compile(ast.Module(found, []), code.__file__, "exec"), namespace)
    return [namespace[name] for name in names]
