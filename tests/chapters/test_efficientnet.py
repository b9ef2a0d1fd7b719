"""Chapter 4: the eight networks to the parameter, torchvision's answers, the cost law; wrong solutions get hints."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.efficientnet import MBConvConfig
from toys import from_cells, holds, noise, on_meta, random_images

from helpers import inspect, naming, parity
from helpers.chapters import chapter
from helpers.data import cifar10

EFFICIENTNET = chapter("04_efficientnet")
shake_batch_norms = chapter("02_resnet").shake_batch_norms

# parameters and multiply-adds of torchvision's networks; the paper's Table 2 agrees where it can (B0, B1, B3, B6, B7)
COUNTS = {
    "B0": (5_288_548, 385_814_752),
    "B1": (7_794_184, 686_802_832),
    "B2": (9_109_994, 993_561_872),
    "B3": (12_233_232, 1_827_141_392),
    "B4": (19_341_616, 4_393_771_024),
    "B5": (30_389_784, 10_266_384_752),
    "B6": (43_040_704, 19_067_593_536),
    "B7": (66_347_960, 37_745_884_192),
}
OF_TINY = EFFICIENTNET.OF_TINY


@holds(
    EFFICIENTNET,
    {
        "channels may fall below 90 %": ("if rounded >= 0.9 * wanted else rounded + divisor", ""),
        "channels always rounded down": ("int(wanted + divisor / 2)", "int(wanted)"),
        "layers rounded to the nearest": ("math.ceil(d * repeats)", "round(d * repeats)"),
    },
)
def test_rounding(code):
    """torchvision's rule for every number of channels and layers that occurs, and many that do not."""
    rule = torchvision.models._utils._make_divisible
    for channels in (8, 16, 24, 32, 40, 80, 112, 192, 320, 1280):
        for tenths in range(1, 41):
            for divisor in (2, 8):
                ours = code.round_filters(channels, tenths / 10, divisor)
                assert ours == rule(tenths / 10 * channels, divisor) and ours >= 0.9 * tenths / 10 * channels
    assert [code.round_repeats(n, 1.4) for n in (1, 2, 3, 4)] == [2, 3, 5, 6]
    assert [code.round_repeats(n, 1.0) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


@holds(
    EFFICIENTNET,
    {
        "width scales layers": ("round_repeats(stage.repeats, d)", "round_repeats(stage.repeats, w)"),
    },
)
def test_stages(code):
    for w, d, _ in code.RELEASED.values():
        before = 32
        for base, ours in zip(code.B0, code.scale(code.B0, d, w), strict=True):
            theirs = MBConvConfig(
                base.expand, base.kernel, base.stride, before, base.channels, base.repeats, width_mult=w, depth_mult=d
            )
            assert (ours.channels, ours.repeats) == (theirs.out_channels, theirs.num_layers)
            assert (ours.expand, ours.kernel, ours.stride) == (base.expand, base.kernel, base.stride)
            before = base.channels


@holds(
    EFFICIENTNET,
    {
        "the head is not scaled": (
            "round_filters(stem, w, divisor), round_filters(head, w, divisor)\n        self",
            "round_filters(stem, w, divisor), head\n        self",
        ),
        "gates by the expanded width": ("max(1, before // 4))  #", "max(1, wide // 4))  #"),
        "a bias in the convolutions": ("groups=groups, bias=False", "groups=groups, bias=True"),
        "a full convolution instead of the depthwise": ("kernel, stride, groups=wide)", "kernel, stride)"),
        "B7 not so deep": ("(2.0, 3.1, 600)", "(2.0, 3.0, 600)"),
    },
)
def test_parameters(code):
    for name, (w, d, _) in code.RELEASED.items():
        assert inspect.count_parameters(on_meta(code.EfficientNet, d, w)) == COUNTS[name][0]


@holds(
    EFFICIENTNET,
    {
        "every block of a stage has the stride": (
            "stage.stride if number == 0 else 1\n                made",
            "stage.stride\n                made",
        ),
        "cost: projection on the large map": (
            "wide * stage.channels * side**2\n            before",
            "wide * stage.channels * (side * (stage.stride if number == 0 else 1)) ** 2\n            before",
        ),
    },
)
def test_multiply_adds(code):
    """The formula for all eight; a count of the layers for two."""
    for name, (w, d, r) in code.RELEASED.items():
        assert code.total_cost(d, w, r) == COUNTS[name][1]
        if name in ("B0", "B3"):
            assert inspect.count_macs(on_meta(code.EfficientNet, d, w), (3, r, r)) == COUNTS[name][1]


@holds(
    EFFICIENTNET,
    {
        "cost: maps rounded down": ("side = math.ceil(side / stage.stride)", "side = side // stage.stride"),
    },
)
def test_cost_of_tiny(code):
    for d, w, side in ((1, 1, 16), (3, 1, 15), (1, 1.85, 17), (1, 0.5, 8), (1.31, 1.15, 20)):
        assert code.total_cost(d, w, side, **OF_TINY) == inspect.count_macs(code.tiny(d, w), (3, side, side))


@holds(
    EFFICIENTNET,
    {
        "cost: one layer of the gates": ("2 * wide * max(1, before // 4)", "wide * max(1, before // 4)"),
    },
)
def test_cost_by_kind(code):
    """Each kind of layer against the counts of its layers."""
    rows = inspect.trace(on_meta(code.EfficientNet), (3, 224, 224)).rows
    parts = {"stem": "stem.", "depthwise": ".depthwise.", "gates": ".se.", "head": "head.", "classifier": "classifier"}
    kinds = code.cost()
    for kind, part in parts.items():
        assert kinds[kind] == sum(row["multiply-adds"] for row in rows if part in row["layer"]), kind


@holds(
    EFFICIENTNET,
    {
        "exponent through the origin": ("x, y = x - x.mean(), y - y.mean()", ""),
    },
)
def test_exponent(code):
    assert code.exponent([1, 2, 4, 5], [3 * x**1.7 for x in (1, 2, 4, 5)]) == pytest.approx(1.7)


@holds(
    EFFICIENTNET,
    {
        "ReLU in the gate": ("F.silu(self.fc1(gate))", "F.relu(self.fc1(gate))"),
        "a gate per image, not per channel": (
            "x.mean((2, 3), keepdim=True)",
            "x.mean((1, 2, 3), keepdim=True).expand(-1, x.shape[1], 1, 1)",
        ),
    },
)
def test_gate(code):
    ours = code.SqueezeExcitation(12, 3)
    theirs = torchvision.ops.SqueezeExcitation(12, 3, activation=nn.SiLU)
    parity.copy_in_order(ours, theirs)
    x = noise(2, 12, 5, 5)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    gate = ours(x) / x
    assert gate.min() > 0 and gate.max() < 1 and torch.allclose(gate, gate[:, :, :1, :1].expand_as(gate), atol=1e-4)


@holds(
    EFFICIENTNET,
    {
        "stochastic depth without rescaling": ("x * stays / (1 - self.p)", "x * stays"),
        "stochastic depth drops what should stay": (">= self.p", "< self.p"),
        "stochastic depth in evaluation, too": ("not self.training or self.p == 0", "self.p == 0"),
        "stochastic depth drops channels": ("torch.rand(len(x), 1,", "torch.rand(*x.shape[:2],"),
        "stochastic depth takes p = 1": ("if not 0 <= p < 1:", "if not 0 <= p <= 1:"),
        "even kernels are taken": ("if kernel % 2 == 0:", "if kernel < 1:"),
    },
)
def test_stochastic_depth(code):
    torch.manual_seed(0)
    drop, x = code.StochasticDepth(0.3), torch.full((20_000, 2, 2, 1), 7.0)
    made = drop(x)
    rows = made.flatten(1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows)), "an image goes as a whole"
    assert set(rows[:, 0].tolist()) == {0.0, float(torch.tensor(7.0) / 0.7)}
    assert abs(float((rows[:, 0] == 0).float().mean()) - 0.3) < 0.015
    assert abs(float(made.mean()) - 7) < 0.1
    assert drop.eval()(x) is x
    assert code.StochasticDepth(0.0).train()(x) is x
    for p in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=f"p={p} is no probability below 1"):
            code.StochasticDepth(p)
    with pytest.raises(ValueError, match="a kernel of 4x4 has no middle"):
        code.MBConv(8, 8, kernel=4)


@holds(
    EFFICIENTNET,
    {
        "no dropout": ("self.classifier(self.dropout(x.mean((2, 3))))", "self.classifier(x.mean((2, 3)))"),
        "dropout before the mean": ("self.dropout(x.mean((2, 3)))", "self.dropout(x).mean((2, 3))"),
        "the share of stochastic depth": ("nn.Dropout(dropout)", "nn.Dropout(drop)"),
    },
)
def test_dropout(code):
    """In training, a share of what the classifier reads is zero, and the rest larger; else nothing is."""
    model = on_meta(code.EfficientNet, dropout=0.4)
    model.stem = model.stages = model.head = model.classifier = nn.Identity()
    torch.manual_seed(0)
    ones = torch.ones(2, 5000, 3, 4)
    read = model(ones)
    assert abs(float((read == 0).float().mean()) - 0.4) < 0.02 and float(read.max()) == pytest.approx(1 / 0.6)
    assert torch.equal(model.eval()(ones), torch.ones(2, 5000))


@holds(
    EFFICIENTNET,
    {
        "every block drops alike": ("drop * position / blocks", "drop"),
    },
)
def test_drop_grows_linearly(code):
    blocks = [m for m in on_meta(code.EfficientNet).modules() if isinstance(m, code.MBConv)]
    assert [block.drop.p for block in blocks] == pytest.approx([0.2 * i / 16 for i in range(16)])
    assert [block.se.fc1.out_channels for block in blocks] == [8, 4, 6, 6, *[10] * 2, *[20] * 3, *[28] * 3, *[48] * 4]


@holds(
    EFFICIENTNET,
    {
        "ReLU for Swish": ("nn.SiLU(inplace=True)", "nn.ReLU(inplace=True)"),
    },
)
def test_swish(code):
    """The activation of every layer but the projection, and its slope."""
    activation = code.convolution(4, 4, 1)[-1]
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation(x.clone()).sum(), x)
    gate = torch.sigmoid(x)
    assert torch.allclose(slope, gate * (1 + x * (1 - gate)))
    assert isinstance(code.convolution(4, 4, 1, activation=False)[-1], nn.BatchNorm2d)


@holds(
    EFFICIENTNET,
    {
        "an activation after the projection": ("wide, after, 1, activation=False", "wide, after, 1"),
    },
)
def test_block(code):
    torch.manual_seed(0)
    x = noise(2, 8, 7, 7)
    block = shake_batch_norms(code.MBConv(8, 8, kernel=5, expand=4)).eval()
    y = F.silu(block.expand[1](F.conv2d(x, block.expand[0].weight)))
    assert y.shape[1] == 32
    y = F.silu(block.depthwise[1](F.conv2d(y, block.depthwise[0].weight, padding=2, groups=32)))
    y = block.project[1](F.conv2d(block.se(y), block.project[0].weight))
    assert torch.allclose(block(x), x + y, atol=1e-5)


@holds(
    EFFICIENTNET,
    {
        "a shortcut at stride 2": ("before == after and stride == 1", "before == after"),
    },
)
def test_shortcut(code):
    x = noise(2, 8, 7, 7)
    for settings, has in (({}, True), ({"stride": 2}, False), ({"after": 12}, False)):
        block = code.MBConv(**({"before": 8, "after": 8} | settings)).eval()
        nn.init.zeros_(block.project[1].weight)
        made = block(x)
        assert torch.equal(made, x) if has else not made.any()
    plain = code.MBConv(8, 8, expand=1)
    assert isinstance(plain.expand, nn.Identity) and plain.depthwise[0].groups == 8


@holds(
    EFFICIENTNET,
    {
        "fan-out over all channels": ("module.out_channels // module.groups", "module.out_channels"),
        "gates with a bias at the start": ("nn.init.zeros_(module.bias)", "nn.init.ones_(module.bias)"),
    },
)
def test_initialisation(code):
    """Depthwise: k x k outputs for each number; all the others: k x k x channels."""
    torch.manual_seed(0)
    block = code.EfficientNet(stages=(code.Stage(6, 5, 1, 64, 2),), classes=10).stages[0][1]
    for layer, fan_out in ((block.depthwise[0], 25), (block.expand[0], 384), (block.project[0], 64)):
        assert abs(float(layer.weight.detach().std()) / (2 / fan_out) ** 0.5 - 1) < 0.05
    assert not block.se.fc1.bias.any() and not block.se.fc2.bias.any()


@holds(
    EFFICIENTNET,
    {
        "the gate before the depthwise convolution": (
            "self.project(self.se(self.depthwise(self.expand(x))))",
            "self.project(self.depthwise(self.se(self.expand(x))))",
        ),
        "another fourth stage": ("Stage(6, 3, 2, 80, 3)", "Stage(6, 5, 2, 80, 3)"),
    },
)
def test_parity(code):
    torch.manual_seed(0)
    ours = shake_batch_norms(code.EfficientNet())
    theirs = parity.copy_in_order(ours, on_meta(torchvision.models.efficientnet_b0))
    assert parity.relative_difference(ours, theirs, noise(2, 3, 64, 64)) < 1e-12


@holds(
    EFFICIENTNET,
    {
        "receptive field: jump before kernel": (
            "            field += (stage.kernel - 1) * jump\n            jump *= stage.stride if number == 0 else 1",
            "            jump *= stage.stride if number == 0 else 1\n            field += (stage.kernel - 1) * jump",
        ),
    },
)
def test_receptive_field(code):
    """The formula against the pixels that really move one unit, in a network without gates."""
    stages = (code.Stage(1, 3, 1, 4, 1), code.Stage(2, 5, 2, 4, 2), code.Stage(2, 3, 2, 4, 1))
    for d, stem_stride in ((1, 1), (2, 1), (1, 2)):
        torch.manual_seed(0)
        model = code.EfficientNet(d, 1.0, stages, 10, stem=4, stem_stride=stem_stride, head=4, divisor=2).double()
        for module in model.modules():
            if isinstance(module, code.MBConv):
                module.se = nn.Identity()
        field = code.receptive_field(d, stages, stem_stride)
        images = noise(1, 3, 160, 160).double()
        moved = inspect.input_gradient(model, "head", images)[0] > 0
        assert int(moved.any(0).sum()) == int(moved.any(1).sum()) == field
    assert code.receptive_field() == 851


@holds(
    EFFICIENTNET,
    {
        "resize without anti-aliasing": (", antialias=True", ""),
        "resize cuts off instead of rounding": ("small.round().clamp(0, 255)", "(small - 2).clamp(0, 255)"),
    },
)
def test_resize(code):
    images = random_images(3, 32)
    assert code.resize(images, 32) is images
    for side in (8, 16, 20, 28):
        small = code.resize(images, side)
        assert small.dtype == torch.uint8 and small.shape == (3, 3, side, side)
        assert abs(float(small.float().mean() - images.float().mean())) < 1
    # between pixels 1 and 2 of every four, where an enlargement would look, both are bright
    stripes = (255 * ((torch.arange(32) + 1) // 2 % 2)).to(torch.uint8).expand(1, 3, 32, 32)
    assert (code.resize(stripes, 8).float() - 127.5).abs().max() < 25, "fine stripes must turn grey"


@holds(
    EFFICIENTNET,
    {
        "the wide arm costs more": ('"w": 1.85', '"w": 2.0'),
    },
)
def test_arms(code):
    """Four ways to spend the same: within five percent of each other, three times the base."""
    macs = {arm: code.total_cost(a["d"], a["w"], a["side"], **OF_TINY) for arm, a in code.ARMS.items()}
    four = [macs[arm] for arm in code.FOUR]
    assert max(four) / min(four) < 1.05
    assert all(abs(value / macs["base"] - 3) < 0.1 for value in four)
    assert all(macs[arm] < macs["base"] for arm in code.ARMS if "half" in arm)


@holds(
    EFFICIENTNET,
    {
        "twice the width": (
            "return EfficientNet(1.0, 2.0, TINY, len(naming.CLASSES)",
            "return EfficientNet(2.0, 1.0, TINY, len(naming.CLASSES)",
        ),
        "ten names": ("TINY, len(naming.CLASSES), **sizes", "TINY, 10, **sizes"),
    },
)
def test_named_network(code):
    network = on_meta(code.named_network)
    assert network.classifier.out_features == len(naming.CLASSES) == 12
    assert [stage[0].project[0].out_channels for stage in network.stages] == [16, 32, 64]
    assert [len(stage) for stage in network.stages] == [1, 2, 2]


@holds(
    EFFICIENTNET,
    {
        "gain, not gain per doubling": ("[(after - before) / doublings for", "[(after - before) for"),
        "natural logarithm": (
            "math.log2(ARM_COST[second] / ARM_COST[first])",
            "math.log(ARM_COST[second] / ARM_COST[first])",
        ),
    },
)
def test_gain_per_doubling(code):
    """Two seeds by hand: up to the base, and from there on."""
    accuracy = {"half the width": [0.3, 0.4], "base": [0.5, 0.5], "width": [0.6, 0.8]}
    study = SimpleNamespace(values=lambda arm, metric: accuracy[arm])
    cost = {arm: code.total_cost(a["d"], a["w"], a["side"], **OF_TINY) for arm, a in code.ARMS.items()}
    below, above = (math.log2(cost[b] / cost[a]) for a, b in (("half the width", "base"), ("base", "width")))
    assert code.gain_per_doubling(study, "half the width") == pytest.approx([0.2 / below, 0.1 / below])
    assert code.gain_per_doubling(study, "width") == pytest.approx([0.1 / above, 0.3 / above])
    assert {claim.second for claim in code.GAINS.all.values()} == set(code.HALF.values())


# ------------------------------------------------------------------------------------------------------ exercises

CHECK_SEARCH, SEARCH, CHECK_FUSED = from_cells(EFFICIENTNET, "check_search", "search_solution", "check_fused")


def tried(values, accepts):
    """All triples of `values` that `accepts(a, b, g)` takes."""
    return [(a, b, g) for a in values for b in values for g in values if accepts(a, b, g)]


def ratio(a, b, side):
    cost = EFFICIENTNET.total_cost
    return cost(a, b, side, **OF_TINY) / cost(1, 1, 16, **OF_TINY)


def by_filter(values, tolerance):
    return tried(values, lambda a, b, g: abs(ratio(a, b, round(16 * g)) - 2) <= 2 * tolerance)


def by_the_rule(values, tolerance):
    return tried(values, lambda a, b, g: abs(a * b**2 * g**2 / 2 - 1) <= tolerance)


def absolute_tolerance(values, tolerance):
    return tried(values, lambda a, b, g: abs(ratio(a, b, round(16 * g)) - 2) <= tolerance)


def up_to_twice(values, tolerance):
    return tried(values, lambda a, b, g: ratio(a, b, round(16 * g)) <= 2 * (1 + tolerance))


def width_for_depth(values, tolerance):
    return tried(values, lambda a, b, g: abs(ratio(b, a, round(16 * g)) / 2 - 1) <= tolerance)


def at_one_size(values, tolerance):
    return tried(values, lambda a, b, g: abs(ratio(a, b, 16) / 2 - 1) <= tolerance)


@pytest.mark.parametrize("answer", [SEARCH, by_filter])
def test_right_search_passes(answer):
    CHECK_SEARCH(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (by_the_rule, "times the base"),
        (absolute_tolerance, "there are 4 such triples|1.4 times the resolution"),
        (up_to_twice, "times the base"),
        (width_for_depth, "times the base|there are 4"),
        (at_one_size, "times the base|1.4 times the resolution"),
        (lambda values, tolerance: 2 * SEARCH(values, tolerance), "there are 4 such triples"),
        (lambda values, tolerance: [(a, b) for a, b, _ in SEARCH(values, tolerance)], "give triples"),
    ],
)
def test_wrong_search_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_SEARCH(answer)


class Fused(nn.Module):
    """A right Fused-MBConv of the chapter's parts; wrong ones change a piece."""

    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__()
        self.fused = EFFICIENTNET.convolution(before, expand * before, kernel, stride)
        self.project = EFFICIENTNET.convolution(expand * before, after, 1, activation=False)
        self.has_shortcut = before == after and stride == 1

    def forward(self, x):
        y = self.project(self.fused(x))
        return x + y if self.has_shortcut else y


class ByHand(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        wide = expand * before
        full = nn.Conv2d(before, wide, kernel, stride, kernel // 2, bias=False)
        self.fused = nn.Sequential(full, nn.BatchNorm2d(wide), nn.SiLU())
        self.project = nn.Sequential(nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after))


class NoActivation(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        self.fused = self.fused[:2]


class WithReLU(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        self.fused = nn.Sequential(*self.fused[:2], nn.ReLU())


class ActiveProjection(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        self.project = EFFICIENTNET.convolution(expand * before, after, 1)


class ShortcutAtStrideTwo(Fused):
    def forward(self, x):
        y = self.project(self.fused(x))
        return y + F.interpolate(x, y.shape[2:]) if x.shape[1] == y.shape[1] else y


class NoShortcut(Fused):
    def forward(self, x):
        return self.project(self.fused(x))


class PaddedShortcut(Fused):
    def forward(self, x):
        y = self.project(self.fused(x))
        same = x.shape[2:] == y.shape[2:]
        return y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])) if same else y


class StillDepthwise(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        wide = expand * before
        depthwise = EFFICIENTNET.convolution(wide, wide, kernel, stride, groups=wide)
        self.fused = nn.Sequential(EFFICIENTNET.convolution(before, wide, 1), depthwise)


class KernelsChanged(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        self.fused = EFFICIENTNET.convolution(before, expand * before, 1, stride)
        self.project = EFFICIENTNET.convolution(expand * before, after, kernel, activation=False)


class StrideAtTheEnd(Fused):
    def __init__(self, before, after, kernel=3, stride=1, expand=4):
        super().__init__(before, after, kernel, stride, expand)
        self.fused = EFFICIENTNET.convolution(before, expand * before, kernel)
        self.project = nn.Sequential(self.project, nn.AvgPool2d(stride))


@pytest.mark.parametrize("answer", [Fused, ByHand])
def test_right_block_passes(answer):
    CHECK_FUSED(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (NoActivation, "fused ends with SiLU"),
        (WithReLU, "fused ends with SiLU"),
        (ActiveProjection, "no activation after the projection"),
        (ShortcutAtStrideTwo, "no shortcut from 8 to 8 channels at stride 2"),
        (PaddedShortcut, "no shortcut from 8 to 12 channels at stride 1"),
        (NoShortcut, "the input is added"),
        (StillDepthwise, "fused needs 2368 parameters"),
        (KernelsChanged, "fused needs 2368 parameters"),
        (StrideAtTheEnd, "the stride is in the full convolution"),
    ],
)
def test_wrong_block_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_FUSED(answer)


# ------------------------------------------------------------------------------------------------------ the rest


def test_released_factors_are_no_powers():
    """B7's depth, width and resolution belong to three different phi."""
    w, d, r = EFFICIENTNET.RELEASED["B7"]
    phis = [math.log(d) / math.log(1.2), math.log(w) / math.log(1.1), math.log(r / 224) / math.log(1.15)]
    assert max(phis) - min(phis) > 1


def test_resized_data_say_so():
    small = EFFICIENTNET.at_side(cifar10(train=20, test=10), 12)
    assert small.train.images.shape == (20, 3, 12, 12) and small.test.images.shape == (10, 3, 12, 12)
    assert str(small.provenance).endswith("at 12x12 pixels")


def test_scalings_of_the_longer_study_cost_the_same():
    cost = {
        arm: EFFICIENTNET.total_cost(a["d"], a["w"], a["side"], **EFFICIENTNET.OF_TINY)
        for arm, a in EFFICIENTNET.LONG_ARMS.items()
    }
    base, *scaled = cost.values()
    assert max(scaled) < 1.05 * min(scaled) and 2.4 * base < min(scaled)
    assert EFFICIENTNET.LONG.seeds == (0, 1, 2) and EFFICIENTNET.LONG.limit == 5


def test_one_training_of_the_longer_study():
    found = EFFICIENTNET.train_long(cifar10(train=128, test=50), seed=0, d=1, w=0.5, side=8, epochs=2)
    again = EFFICIENTNET.train_tiny(cifar10(train=128, test=50), 1, 0.5, 8, 2, 0)[1]
    assert found == {name: again.last(name) for name in ("train_loss", "test_loss", "test_accuracy")}


def test_one_training_of_the_study():
    found = EFFICIENTNET.train_arm(cifar10(train=128, test=50), seed=0, d=1, w=0.5, side=8)
    assert set(found) == {"train_loss", "test_loss", "test_accuracy"} and all(math.isfinite(v) for v in found.values())
