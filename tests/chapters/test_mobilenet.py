"""Chapter 5: the paper's counts, timm's answers, and what a separable convolution is; mutants."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import dataset_of, from_cells, holds, noise, on_meta, random_images

from helpers import inspect, parity, train
from helpers.chapters import chapter
from helpers.claims import family

MOBILENET = chapter("05_mobilenet")
shake_batch_norms = chapter("02_resnet").shake_batch_norms

SIDES = (224, 192, 160, 128)
# alpha: parameters, multiply-adds at each of SIDES
COUNTS = {
    1.0: (4_231_976, (568_740_352, 418_121_728, 290_675_200, 186_400_768)),
    0.75: (2_585_560, (325_400_448, 239_273_472, 166_396_800, 106_770_432)),
    0.5: (1_331_592, (149_497_088, 109_970_432, 76_524_800, 49_160_192)),
    0.25: (470_072, (41_030_272, 30_212_608, 21_059_200, 13_570_048)),
}
# alpha, side: million multiply-adds in the paper's Tables 6, 7, 9 and 10, cut off or rounded
PAPER = {
    (1.0, 224): 569, (0.75, 224): 325, (0.5, 224): 149, (0.25, 224): 41, (1.0, 192): 418, (1.0, 160): 290,
    (1.0, 128): 186, (0.5, 160): 76, (0.75, 192): 239,
}  # fmt: skip


features = functools.partial(noise, dtype=torch.float64)


@holds(
    MOBILENET,
    {
        "three passes are one": ("32)), 3, seed)", "32)), 1, seed)"),
        "one seed for all": ("seed=seed,\n    )\n    return {", "seed=0,\n    )\n    return {"),
    },
)
def test_lengths_of_the_studies(code):
    """One pass, three, twenty: each arm with its own seed, on images of its own side."""
    calls = []
    code.train = SimpleNamespace(set_seed=lambda seed: None, Augment=train.Augment)
    code.train.fit = lambda model, data, **settings: calls.append((data.train.images.shape[-1], settings)) or Last()
    data = dataset_of(random_images(4, 32), torch.arange(4))
    for arm in (code.train_arm, code.train_longer, code.train_20):
        arm(data, seed=3)
    code.train_arm(data, seed=4, side=24)
    assert [settings["epochs"] for _, settings in calls] == [1, 3, 20, 1]
    assert [settings["seed"] for _, settings in calls] == [3, 3, 3, 4]
    assert [side for side, _ in calls] == [32, 32, 32, 24]
    assert all(settings["optimizer"] is code.spare_depthwise for _, settings in calls)


class Last:
    """A history of which nothing is asked but its last row."""

    def last(self, name):
        return 0.0


@holds(
    MOBILENET,
    {
        "a block too few": ("*[(512, 1)] * 5", "*[(512, 1)] * 4"),
        "the first layer is not thinned": (
            "*rest = [(thinned(c, alpha), stride) for c, stride in layout]",
            "*rest = [(thinned(c, alpha) if c > 32 else c, stride) for c, stride in layout]",
        ),
        "the depthwise filter mixes channels": ("padding=1, groups=before, bias=False", "padding=1, bias=False"),
        "the stride is on the pointwise step": (
            "self.pointwise = nn.Conv2d(before, after, 1, bias=False)",
            "self.pointwise = nn.Conv2d(before, after, 1, stride, bias=False)",
        ),
    },
)
def test_sixteen(code):
    for alpha, (parameters, macs) in COUNTS.items():
        model = on_meta(code.MobileNet, alpha=alpha)
        assert inspect.count_parameters(model) == parameters
        assert tuple(inspect.count_macs(model, (3, side, side)) for side in SIDES) == macs


@holds(MOBILENET, {"shallow lacks a wide block": ("LAYOUT[:7] + LAYOUT[-2:]", "LAYOUT[:8] + LAYOUT[-1:]")})
def test_twin_and_shallow(code):
    """Papers' Tables 4 and 5: 29.3 M and 4,866 M without the fully connected layer, 2.9 M and 307 M."""
    twin, shallow = on_meta(code.MobileNet, block=code.Full), on_meta(code.MobileNet, code.SHALLOW)
    assert inspect.count_parameters(twin) == 29_294_088 and inspect.count_parameters(shallow) == 2_887_976
    assert inspect.count_macs(twin, (3, 224, 224)) == 4_867_293_184
    assert inspect.count_macs(shallow, (3, 224, 224)) == 307_323_392
    removed = set(range(len(code.LAYOUT))) - {0, 1, 2, 3, 4, 5, 6, 12, 13}
    assert all(code.LAYOUT[position] == (512, 1) for position in removed) and len(removed) == 5


@holds(MOBILENET, {"stride 2 in the last block, as printed": ("(1024, 2), (1024, 1)", "(1024, 2), (1024, 2)")})
def test_shapes(code):
    model = on_meta(code.MobileNet)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 28
    rows = {row["layer"]: row["output"] for row in inspect.trace(model, (3, 224, 224)).rows}
    ends = {0: "64x112x112", 2: "128x56x56", 4: "256x28x28", 6: "512x14x14", 12: "1024x7x7"}
    for number, shape in ends.items():
        assert rows[f"blocks.{number}.pointwise"] == shape
    assert rows["stem.conv"] == "32x112x112" and rows["blocks.12.depthwise"] == "1024x7x7"


@holds(
    MOBILENET,
    {
        "rounded down": ("int(alpha * channels + 0.5)", "int(alpha * channels)"),
        "not even one channel": ("max(1, int(", "max(0, int("),
    },
)
def test_rounding(code):
    assert [code.thinned(c, a) for c, a in ((32, 0.25), (1024, 0.75), (5, 0.5), (10, 0.64), (1, 0.25))] == [
        8,
        768,
        3,
        6,
        1,
    ]
    assert code.thinned(7, 1.0) == 7


@holds(
    MOBILENET,
    {
        "normalisation counts as weights": (
            "if isinstance(layer, (nn.Conv2d, nn.Linear)):\n            macs",
            "if hasattr(layer, 'weight'):\n            macs",
        )
    },
)
def test_shares(code):
    """The paper's Table 2, with 1.91 for the first layer, where it prints 1.19."""
    found = code.shares(on_meta(code.MobileNet), (3, 224, 224))
    expected = {
        "pointwise 1x1": (94.86, 74.59), "depthwise 3x3": (3.06, 1.06), "full 3x3": (1.91, 0.02),
        "fully connected": (0.18, 24.33),
    }  # fmt: skip
    assert {kind: tuple(round(100 * share, 2) for share in pair) for kind, pair in found.items()} == expected


@holds(
    MOBILENET,
    {
        "a cost without the pointwise step": (
            "k**2 * before * side**2 + before * after * side**2",
            "k**2 * before * side**2",
        )
    },
)
def test_cost(code):
    for before, after, side in ((4, 6, 8), (16, 32, 5)):
        shape = (before, side, side)
        assert code.full_cost(3, before, after, side) == inspect.count_macs(code.Full(before, after), shape)
        assert code.separable_cost(3, before, after, side) == inspect.count_macs(code.Separable(before, after), shape)
        ratio = code.separable_cost(5, before, after, side) / code.full_cost(5, before, after, side)
        assert ratio == pytest.approx(1 / after + 1 / 25)


@holds(MOBILENET)
def test_constrained(code):
    """Without normalisation and ReLU in between, the block is a full convolution of rank-one filters."""
    for stride in (1, 2):
        block = code.Separable(4, 6, stride).double()
        block.bn1, block.bn2, block.relu = nn.Identity(), nn.Identity(), nn.Identity()
        weight = block.pointwise.weight * block.depthwise.weight.transpose(0, 1)
        x = features(2, 4, 8, 8)
        assert torch.allclose(block(x), F.conv2d(x, weight, stride=stride, padding=1))


@holds(
    MOBILENET,
    {
        "no normalisation between the steps": (
            "self.relu(self.bn1(self.depthwise(x)))",
            "self.relu(self.depthwise(x))",
        ),
        "no ReLU at the end of a block": (
            "return self.relu(self.bn2(self.pointwise(x)))",
            "return self.bn2(self.pointwise(x))",
        ),
    },
)
def test_blocks(code):
    x = features(2, 4, 8, 8)
    block = shake_batch_norms(code.Separable(4, 6, 2)).double().eval()
    inner = block.bn1(F.conv2d(x, block.depthwise.weight, stride=2, padding=1, groups=4)).relu()
    assert torch.allclose(block(x), block.bn2(F.conv2d(inner, block.pointwise.weight)).relu())
    full = shake_batch_norms(code.Full(4, 6, 2)).double().eval()
    assert torch.allclose(full(x), full.bn(F.conv2d(x, full.conv.weight, stride=2, padding=1)).relu())


@holds(
    MOBILENET,
    {
        "groups in the wrong order": (
            "columns.view(len(x), groups, share * k * k, -1)",
            "columns.view(len(x), share * k * k, groups, -1).transpose(1, 2)",
        ),
        "padding forgotten in the height": ("x.shape[2] + 2 * padding - k", "x.shape[2] - k"),
    },
)
def test_grouped_convolution(code):
    for groups, k, stride, padding in ((1, 3, 1, 1), (2, 3, 2, 1), (4, 5, 1, 2), (4, 3, 2, 0), (1, 1, 1, 0)):
        x, weight = features(3, 4, 9, 7), features(8, 4 // groups, k, k, seed=2)
        ours = code.grouped_convolution(x, weight, groups, stride, padding)
        assert torch.allclose(ours, F.conv2d(x, weight, stride=stride, padding=padding, groups=groups))


@holds(
    MOBILENET,
    {
        "no ReLU between the steps": ("x = self.relu(self.bn1(self.depthwise(x)))", "x = self.bn1(self.depthwise(x))"),
        "ReLU6": (
            "self.bn2 = nn.BatchNorm2d(after)\n        self.relu = nn.ReLU(inplace=True)",
            "self.bn2 = nn.BatchNorm2d(after)\n        self.relu = nn.ReLU6(inplace=True)",
        ),
    },
)
def test_parity(code):
    """timm's network, given our weights and the paper's ReLU, gives our answers."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = shake_batch_norms(code.MobileNet())
    theirs = on_meta(timm.create_model, "mobilenetv1_100", act_layer=nn.ReLU)
    parity.copy_in_order(ours, theirs)
    assert parity.relative_difference(ours, theirs, features(2, 3, 64, 64)) < 1e-12


@holds(
    MOBILENET,
    {
        "decay for depthwise filters": ('"params": depthwise, "weight_decay": 0.0', '"params": depthwise'),
        "no decay for pointwise convolutions": (
            "depthwise = [p for p in parameters if p.ndim == 4 and p.shape[1] == 1]",
            "depthwise = [p for p in parameters if p.ndim == 4]",
        ),
    },
)
def test_decay(code):
    """Weight decay shrinks every weight but those of depthwise filters."""
    model = code.MobileNet(code.SMALL, classes=10)
    optimizer = code.spare_depthwise(list(model.parameters()), lr=0.1, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = torch.equal(parameter, before[name])
        assert kept == ("depthwise" in name or not before[name].any()), name
    twin = code.MobileNet(code.SMALL, block=code.Full, classes=10)
    groups = code.spare_depthwise(list(twin.parameters()), lr=0.1, weight_decay=0.1).param_groups
    assert len(groups) == 1 and sum(p.numel() for p in groups[0]["params"]) == inspect.count_parameters(twin)


@holds(MOBILENET)
def test_initialisation(code):
    torch.manual_seed(0)
    block = code.MobileNet(code.SMALL, classes=10).blocks[6]
    assert abs(float(block.depthwise.weight.detach().std()) / (2 / 9) ** 0.5 - 1) < 0.1
    assert abs(float(block.pointwise.weight.detach().std()) / (2 / 128) ** 0.5 - 1) < 0.05


@holds(MOBILENET, {"not anti-aliased": ("antialias=True", "antialias=False")})
def test_resize(code):
    images = random_images(5, 32)
    for side in (24, 16):
        small = code.resize(images, side)
        exact = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
        assert small.dtype == torch.uint8 and small.shape == (5, 3, side, side)
        assert (small.float() - exact).abs().max() <= 1
    assert code.resize(images, 32) is images


@holds(
    MOBILENET,
    {
        "terms of the transposed weight": ("weight.transpose(0, 1).reshape(before", "weight.reshape(before"),
        "a term too many": ("v[:, :terms]", "v[:, : terms + 1]"),
    },
)
def test_terms(code):
    weight = features(6, 4, 3, 3)
    assert torch.allclose(code.separable_terms(weight, 9), weight)
    rank_one = features(6, 4, 1, 1) * features(1, 4, 3, 3, seed=2)  # pointwise times depthwise
    assert torch.allclose(code.separable_terms(rank_one, 1), rank_one)
    values = torch.linalg.svdvals(weight.transpose(0, 1).reshape(4, 6, 9))
    for terms in (1, 2, 5):
        lost = (weight - code.separable_terms(weight, terms)).square().sum()
        assert torch.allclose(lost, values[:, terms:].square().sum())


@holds(MOBILENET, {"the hooks stay": ("        handle.remove()", "        pass")})
def test_time_by_kind(code):
    model = code.MobileNet(code.SMALL, classes=10)
    found = code.time_by_kind(model, noise(1, 3, 32, 32), passes=2)
    assert sum(found.values()) == pytest.approx(1) and all(share > 0 for share in found.values())
    assert {"pointwise 1x1", "depthwise 3x3", "full 3x3", "fully connected", "BatchNorm2d", "ReLU"} < set(found)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------- more of the paper


def test_paper_counts():
    for (alpha, side), millions in PAPER.items():
        macs = COUNTS[alpha][1][SIDES.index(side)] / 1e6
        assert millions in (int(macs), round(macs))


def test_table_3():
    """One layer of the paper: 462, 52.3, 29.6 and 15.1 million multiply-adds."""
    costs = [
        MOBILENET.full_cost(3, 512, 512, 14),
        MOBILENET.separable_cost(3, 512, 512, 14),
        MOBILENET.separable_cost(3, 384, 384, 14),
        MOBILENET.separable_cost(3, 384, 384, 10),
    ]
    assert [round(cost / 1e6, 1) for cost in costs] == [462.4, 52.3, 29.6, 15.1]


def test_factor_of_eight_from_72_channels_on():
    factor = {
        after: MOBILENET.full_cost(3, 9, after, 7) / MOBILENET.separable_cost(3, 9, after, 7) for after in (71, 72)
    }
    assert factor[71] < 8 and factor[72] == 8


def test_arms_that_are_said_to_cost_the_same_do():
    networks = {arm: on_meta(MOBILENET.network, **config) for arm, config in MOBILENET.ARMS.items()}
    macs = {arm: inspect.count_macs(network, (3, 32, 32)) for arm, network in networks.items()}
    parameters = {arm: inspect.count_parameters(network) for arm, network in networks.items()}
    assert macs["full, thin"] == pytest.approx(macs["alpha 1, 32 px"], rel=0.01)
    assert parameters["full, thin"] == pytest.approx(parameters["alpha 1, 32 px"], rel=0.01)
    assert macs["thin"] == pytest.approx(macs["shallow"], rel=0.01)
    assert macs["full"] / macs["alpha 1, 32 px"] == pytest.approx(7.5, abs=0.05)


def test_resolution_is_noted_with_the_data():
    data = dataset_of(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert MOBILENET.at_side(data, 32) is data
    small = MOBILENET.at_side(data, 16)
    assert small.train.images.shape == small.test.images.shape == (2, 3, 16, 16)
    assert small.provenance.detail.endswith("at 16x16 pixels") and MOBILENET.at_side(data, 16) is small


def test_primary_claims_wait_for_twenty_epochs():
    """A bound and a comparison, both of the longer study; the arms of the bound have the same plan and widths."""
    claims = {sentence: (block.study.stem, claim) for sentence, (block, claim) in family("05_mobilenet").items()}
    assert {stem for stem, _ in claims.values()} == {"05_mobilenet_20_epochs"} and len(claims) == 2
    assert [claim.loses for _, claim in claims.values()] == [2.0, None]
    networks = {arm: on_meta(MOBILENET.network, **config) for arm, config in MOBILENET.ARMS_20.items()}
    macs = {arm: inspect.count_macs(network, (3, 32, 32)) for arm, network in networks.items()}
    assert macs["full"] / macs["separable"] == pytest.approx(7.5, abs=0.05)
    assert macs["full, thin"] == pytest.approx(macs["separable"], rel=0.01)
    assert macs["thin"] == pytest.approx(macs["shallow"], rel=0.01)


# ---------------------------------------------------------------------------------------------------- exercises

CHECK_COUNT, CHECK_ALPHA, CHECK_FOLD, COUNT, EQUALLY_CHEAP, FOLD = from_cells(
    MOBILENET,
    *("built_count", "check_count", "check_alpha", "check_fold"),
    *("count_solution", "equally_cheap_solution", "fold_solution"),
)[1:]


def counted(layout, alpha, side, first_full=True, late=False, whole=False, cut=False, classes=1000):
    """A MobileNet's multiply-adds, or those of a learner who takes one wrong turn."""
    thin = (lambda c: max(1, int(alpha * c))) if cut else (lambda c: MOBILENET.thinned(c, alpha))
    if whole:
        thin = lambda c: alpha * c  # noqa: E731
    (before, stride), *blocks = [(thin(c), stride) for c, stride in layout]
    side //= stride
    total = (9 * 3 * before if first_full else 9 * 3 + 3 * before) * side**2
    for after, stride in blocks:
        total += 9 * before * (side if late else side // stride) ** 2
        side //= stride
        total += before * after * side**2
        before = after
    return total + classes * before


def with_1024(layout, alpha, side):
    return COUNT(layout, alpha, side) - 1000 * MOBILENET.thinned(layout[-1][0], alpha) + 1000 * int(1024 * alpha)


@pytest.mark.parametrize("answer", [COUNT, counted])
def test_right_counts_pass(answer):
    CHECK_COUNT(answer)


@pytest.mark.parametrize(
    "answer",
    [
        functools.partial(counted, first_full=False),
        functools.partial(counted, late=True),
        functools.partial(counted, whole=True),
        functools.partial(counted, cut=True),
        functools.partial(counted, classes=0),
        functools.partial(counted, classes=10),
        with_1024,
        lambda layout, alpha, side: COUNT(layout, 1.0, side),
        lambda layout, alpha, side: COUNT(layout, alpha, 224),
        lambda *given: 0,
    ],
    ids=["first layer separable", "depthwise before its stride", "not rounded", "cut off", "no linear layer",
         "ten classes", "always 1024 at the end", "no alpha", "one resolution", "nothing"],
)  # fmt: skip
def test_wrong_counts_get_a_hint(answer):
    with pytest.raises(AssertionError):
        CHECK_COUNT(answer)


@pytest.mark.parametrize("alpha", [0.729, 0.7285])
def test_right_alphas_pass(alpha):
    CHECK_ALPHA(lambda: alpha)
    CHECK_ALPHA(EQUALLY_CHEAP)


@pytest.mark.parametrize("alpha", [23 / 32, 0.72, 0.74, 0.75, 0.54, 1.0, 307 / 569])
def test_wrong_alphas_get_a_hint(alpha):
    with pytest.raises(AssertionError, match="alpha = "):
        CHECK_ALPHA(lambda: alpha)


def fold_with(convolution, norm, scale=None, bias=None, axis=0, keep=True):
    """`fold`, with parts that a learner may get wrong."""
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach() if scale is None else scale
    folded = copy.deepcopy(convolution) if keep else nn.Conv2d(6, 12, 3, padding=1).double()
    shape = [-1, 1, 1, 1] if axis == 0 else [1, -1, 1, 1]
    folded.weight.data = convolution.weight.data * scale.view(shape)
    folded.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach() if bias is None else bias)
    return folded


def by_assignment(convolution, norm):
    """Another right answer: a new layer, filled in."""
    c = convolution
    new = nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, groups=c.groups).to(c.weight)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    with torch.no_grad():
        new.weight.copy_(c.weight * scale.view(-1, 1, 1, 1))
        new.bias.copy_(norm.bias - scale * norm.running_mean)
    return new


def in_place(convolution, norm):
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    convolution.weight.data *= scale[:, None, None, None]
    convolution.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach())
    return convolution


def no_bias(convolution, norm):
    folded = fold_with(convolution, norm)
    folded.bias = None
    return folded


@pytest.mark.parametrize("answer", [FOLD, by_assignment])
def test_right_folds_pass(answer):
    CHECK_FOLD(answer)


@pytest.mark.parametrize(
    "answer",
    [
        lambda c, n: fold_with(c, n, scale=(n.weight / n.running_var.sqrt()).detach()),
        lambda c, n: fold_with(c, n, scale=(n.weight / (n.running_var + 1e-5).sqrt()).detach()),
        lambda c, n: fold_with(c, n, scale=(n.weight / (n.running_var + n.eps)).detach()),
        lambda c, n: fold_with(c, n, scale=(1 / (n.running_var + n.eps).sqrt()).detach()),
        lambda c, n: fold_with(c, n, bias=n.bias.detach()),
        lambda c, n: fold_with(c, n, bias=(n.bias - n.running_mean).detach()),
        lambda c, n: fold_with(c, n, keep=False),
        in_place,
        no_bias,
        lambda c, n: nn.Sequential(c, n),
        lambda c, n: c,
    ],
    ids=["no epsilon", "the usual epsilon", "the variance, not its root", "no gamma", "no mean in the bias",
         "mean not scaled", "no groups, no stride", "in place", "no bias", "both in a row", "the convolution alone"],
)  # fmt: skip
def test_wrong_folds_get_a_hint(answer):
    with pytest.raises((AssertionError, RuntimeError)):
        CHECK_FOLD(answer)
