"""Chapter 6: the paper's counts, torchvision's and timm's answers, and what a gate does; then mutants of the code."""

import copy
import math
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn
from toys import from_cells, holds, leaves_modes, noise, on_meta, red_or_blue

from helpers import inspect, naming
from helpers.chapters import chapter
from helpers.data import Dataset, Provenance, Split
from helpers.parity import copy_in_order, relative_difference

SENET = chapter("06_senet")
RESNET = chapter("02_resnet")
IMAGE = (3, 224, 224)

# parameters and million multiply-adds (stride of a bottleneck on its first 1x1)
IMAGENET = {
    18: (11_778_592, 1_814.2),
    50: (28_088_024, 3_860.5),
    101: (49_326_872, 7_574.9),
    152: (66_821_848, 11_289.0),
}
BY_RATIO = {2: 45_699_240, 4: 35_635_688, 8: 30_603_912, 16: 28_088_024, 32: 26_830_080}
WIDTHS = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3


def with_gates(network, bias):
    """All gates at sigmoid(bias), whatever comes in."""
    for module in network.modules():
        if type(module).__name__ == "SqueezeExcitation":
            nn.init.zeros_(module.fc2.weight)
            nn.init.constant_(module.fc2.bias, bias)
    return network


@holds(SENET, {"the wrong block": ("Bottleneck: SEBottleneck}", "Bottleneck: SEBasicBlock}")})
def test_imagenet(code):
    for depth, (parameters, millions) in IMAGENET.items():
        network = on_meta(code.se_resnet, depth)
        assert inspect.count_parameters(network) == parameters
        assert round(inspect.count_macs(network, IMAGE) / 1e6, 1) == millions


@holds(SENET, {"r is forgotten": ("return ResNet(block, layers, r=r, **settings)", "return ResNet(block, layers)")})
def test_ratios(code):
    for ratio, parameters in BY_RATIO.items():
        assert inspect.count_parameters(on_meta(code.se_resnet, 50, r=ratio)) == parameters


@holds(
    SENET,
    {
        "the formula forgets a layer": ("2 * width * (width // r)", "width * (width // r)"),
        "hidden biases forgotten": ("width + width // r for", "width for"),
    },
)
def test_formula(code):
    assert code.weights_of_units(WIDTHS) == 2_514_944
    assert code.weights_of_units(WIDTHS) + code.biases_of_units(WIDTHS) == 2_530_992
    narrow = [width // 4 for width in WIDTHS]
    assert 25_557_032 + code.weights_of_units(narrow) + code.biases_of_units(narrow) == 25_718_228
    mobile = [64, 128, 128, 256, 256] + [512] * 6 + [1024] * 2
    assert 4_231_976 + code.weights_of_units(mobile) + code.biases_of_units(mobile) == 4_718_044


@holds(SENET, {"units stay": ("module.se = nn.Identity()", "pass")})
def test_without_units(code):
    network = on_meta(code.se_resnet, 50)
    code.without_units(network.layer4)
    assert inspect.count_parameters(network) == 26_508_632
    assert inspect.count_parameters(code.without_units(network)) == 25_557_032


@holds(SENET, {"stage 2 without stride": ("width, 2 * width, n, 2,", "width, 2 * width, n, 1,")})
def test_cifar(code):
    """The count with option B is that of another public implementation, too."""
    assert inspect.count_parameters(on_meta(code.SECifarResNet, 20, option="B")) == 274_847
    for unit, macs in ((code.SqueezeExcitation, 2_566_400), (code.NoSqueeze, 2_709_824)):
        network = on_meta(code.SECifarResNet, 20, 8, 2, unit)
        assert inspect.count_parameters(network) == 72_334
        assert inspect.count_macs(network, (3, 16, 16)) == macs


@holds(
    SENET,
    {
        "squeeze by the maximum": ("nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveMaxPool2d(1)"),
        "gates may be negative": ("self.sigmoid = nn.Sigmoid()", "self.sigmoid = nn.Tanh()"),
        "no ReLU in the unit": ("self.fc2(self.relu(self.fc1(z)))", "self.fc2(self.fc1(z))"),
        "the hidden layer is too wide": ("channels, channels // r, 1", "channels, 2 * channels // r, 1"),
    },
)
def test_unit(code):
    ours, theirs = code.SqueezeExcitation(64, 4), torchvision.ops.SqueezeExcitation(64, 16)
    for layer in (ours.fc1, ours.fc2):
        nn.init.normal_(layer.bias)
    assert relative_difference(ours, copy_in_order(ours, theirs), noise(3, 64, 5, 7)) < 1e-12


@holds(SENET)
def test_timm(code):
    """Same weights, same answers; timm pools without padding, rounding up, as the released networks do."""
    torch.manual_seed(0)
    ours = RESNET.shake_batch_norms(code.se_resnet(50))
    ours.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    state = {}
    for name, tensor in ours.state_dict().items():
        name = f"layer0.{name}" if name.startswith(("conv1", "bn1")) else name
        name = name.replace(".se.", ".se_module.")
        state[name.replace("fc.", "last_linear.") if name.startswith("fc.") else name] = tensor
    theirs = on_meta(timm.create_model, "legacy_seresnet50")
    theirs.load_state_dict(state, assign=True)
    assert relative_difference(ours, theirs, noise(2, 3, 64, 64)) < 1e-12


@holds(
    SENET,
    {
        "gates are added": ("return x * self.gate(x)", "return x + self.gate(x)"),
        "no squeeze still squeezes": ("self.squeeze = nn.Identity()", "pass"),
    },
)
def test_gates(code):
    torch.manual_seed(0)
    x = noise(2, 8, 6, 6)
    elsewhere = x.clone()
    elsewhere[0, :, 0, 0] += 10
    for kind, shape in ((code.SqueezeExcitation, (2, 8, 1, 1)), (code.NoSqueeze, (2, 8, 6, 6))):
        unit = kind(8, 2)
        gate, changed = unit.gate(x), unit.gate(elsewhere)
        assert gate.shape == shape and bool(((gate > 0) & (gate < 1)).all())
        assert torch.equal(unit(x), x * gate)
        assert torch.equal(gate[1], changed[1]), "an image has nothing to do with its neighbour in the batch"
        local = torch.equal(gate[0, :, -1, -1], changed[0, :, -1, -1])
        assert local == (kind is code.NoSqueeze)


@holds(SENET)
def test_no_squeeze(code):
    torch.manual_seed(0)
    squeezing, local = code.SqueezeExcitation(8, 2), code.NoSqueeze(8, 2)
    local.load_state_dict(squeezing.state_dict())
    flat = noise(2, 8, 1, 1).expand(2, 8, 4, 4)  # a map equal to its average
    assert torch.allclose(squeezing(flat), local(flat), atol=1e-6)


@holds(
    SENET,
    {
        "channels compete": ("self.sigmoid = nn.Sigmoid()", "self.sigmoid = nn.Softmax(1)"),
        "gates start open": ("nn.init.zeros_(layer.bias)", "nn.init.ones_(layer.bias)"),
        "other first weights": ("self.load_state_dict(first_weights, strict=False)", "pass"),
    },
)
def test_start(code):
    """The convolutions of the network without units, and gates that are all one half when nothing comes in."""
    networks = []
    for build in (code.CifarResNet, lambda *sizes: code.SECifarResNet(*sizes, 2)):
        torch.manual_seed(0)
        networks.append(build(8, 8))
    plain, gated = (network.state_dict() for network in networks)
    assert all(torch.equal(plain[name], gated[name]) for name in plain) and len(gated) > len(plain)
    unit = networks[1].layer1[0].se
    assert torch.equal(unit.gate(torch.zeros(1, 8, 4, 4)), torch.full((1, 8, 1, 1), 0.5))


@holds(SENET)
def test_open_gates(code):
    """With all gates one it is the network without units."""
    torch.manual_seed(0)
    plain = RESNET.shake_batch_norms(code.CifarResNet(8, 8))
    gated = with_gates(code.SECifarResNet(8, 8, 2), 1000)
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert relative_difference(gated, plain, noise(2, 3, 16, 16)) < 1e-12
    assert relative_difference(code.without_units(gated), plain, noise(2, 3, 16, 16)) < 1e-12


@holds(
    SENET,
    {
        "the unit is on the narrow side": ("unit(channels * self.expansion, r)", "unit(channels, r)"),
        "the unit is left out": ("return self.se(super().branch(x))", "return super().branch(x)"),
        "the unit comes twice": ("self.se(super().branch(x))", "self.se(self.se(super().branch(x)))"),
    },
)
def test_place(code):
    """The unit scales the branch and leaves the shortcut alone."""
    x = noise(2, 16, 6, 6)
    for block, last in ((code.SEBasicBlock(16, 16, r=2), "bn2"), (code.SEBottleneck(16, 4, r=2), "bn3")):
        RESNET.shake_batch_norms(block.eval())
        with torch.no_grad():
            full = with_gates(block, 1000)(x)
            half = with_gates(block, 0)(x)
            assert torch.equal(with_gates(block, -1000)(x), x.relu())
            scale = getattr(block, last)
            scale.weight *= 0.5
            scale.bias *= 0.5
            assert torch.allclose(with_gates(block, 1000)(x), half, atol=1e-6) and not torch.allclose(half, full)


@holds(
    SENET,
    {
        "twins with the same lamp": ("(40, 40, 255)", "(255, 40, 40)"),
        "twins with the same marks": ("torch.cat([bright, ~bright])", "torch.cat([bright, bright])"),
        "pixels near the lamp count": ("max(0, y - 3) : y + lamp + 3", "max(0, y - 2) : y + lamp + 2"),
    },
)
def test_lamps(code):
    split = code.lamp_pictures(6, seed=0)
    red, blue = split.images[:6].float(), split.images[6:].float()
    far, mark = split.targets["far"], split.targets["mark"]
    assert torch.equal(far[:6], far[6:]) and 0 < far.mean() < 1
    assert torch.equal(mark[:6], 1 - mark[6:])
    differ = (red != blue).any(1).float()[:, None]
    near = nn.functional.max_pool2d(differ, 7, stride=1, padding=3)[:, 0]
    assert differ.sum() == 6 * 36 and torch.equal(near, 1 - far[:6])
    grey = red.mean(1)
    outside = far[:6].bool()
    assert grey[outside & mark[:6].bool()].mean() > grey[outside & ~mark[:6].bool()].mean() + 50


@holds(
    SENET,
    {
        "the classifier sees farther": (
            "self.last = nn.Conv2d(channels, 1, 3, padding=1)",
            "self.last = nn.Conv2d(channels, 1, 5, padding=2)",
        )
    },
)
def test_windows(code):
    """Which pixels an answer in the corner depends on: 4x4 of its 7x7 window, or all of them."""
    torch.manual_seed(0)
    for unit, seen in ((nn.Identity(), 16), (code.NoSqueeze(16, 2), 16), (code.SqueezeExcitation(16, 2), 144)):
        network = code.PixelClassifier(unit).eval()
        images = noise(1, 3, 12, 12).requires_grad_()
        (gradient,) = torch.autograd.grad(network(images)[0, 0, 0], images)
        assert int((gradient.abs().sum(1) > 0).sum()) == seen


@holds(SENET, {"classes are not weighted": ("len(mine) / len(values) * (", "1 / 3 * (")})
def test_variance(code):
    values, labels = noise(60, 4), torch.arange(60) % 5 % 3  # classes of 24, 24 and 12
    between, within = code.split_variance(values, labels)
    assert torch.allclose(between + within, values.var(0, unbiased=False), atol=1e-6)
    expected = sum(((values[labels == k] - values[labels == k].mean(0)) ** 2).sum(0) for k in range(3)) / 60
    assert torch.allclose(within, expected, atol=1e-6)
    decided = labels[:, None].float().expand(60, 4)
    assert torch.allclose(code.split_variance(decided, labels)[1], torch.zeros(4), atol=1e-6)


@holds(
    SENET,
    {
        "replaced gates stay": ("handle.remove()", "pass"),
        "in training mode": (
            "with evaluating(network), torch.inference_mode():\n            return",
            "with torch.inference_mode():\n            return",
        ),
    },
)
def test_replacing(code):
    torch.manual_seed(0)
    network = RESNET.shake_batch_norms(code.SECifarResNet(8, 8, 2)).eval()
    images = noise(3, 3, 16, 16)
    gates = inspect.watch(network, nn.Sigmoid, images, lambda given, made: made.flatten(1).clone())
    own = code.logits_with(network, images, {})
    assert torch.allclose(code.logits_with(network, images, gates), own, atol=1e-5)
    ones = {name: torch.ones(found.shape[1]) for name, found in gates.items()}
    with leaves_modes(network.train()):
        replaced = code.logits_with(network, images, ones)
    network.eval()
    assert torch.equal(code.logits_with(network, images, {}), own), "the replacement outlived its pass"
    assert torch.allclose(replaced, code.without_units(network)(images), atol=1e-5)
    assert not torch.allclose(replaced, own, atol=1e-3)


# ------------------------------------------------------------------------------------- lamps, starts, controls


@holds(
    SENET,
    {
        "near pixels count": (
            'return F.binary_cross_entropy_with_logits(network(images)[far], targets["mark"][far])',
            'return F.binary_cross_entropy_with_logits(network(images), targets["mark"])',
        ),
        "every answer is a mark": ("((logits > 0) == mark)", "((logits > -11) == mark)"),
        "measured on the training pictures": (
            "data.normalize(data.test.images.to(device))",
            "data.normalize(data.train.images.to(device))",
        ),
        "in training mode": (
            "with evaluating(network), torch.inference_mode():\n        logits",
            "with torch.inference_mode():\n        logits",
        ),
        "the mode stays": (
            "with evaluating(network), torch.inference_mode():\n        logits",
            "with torch.inference_mode():\n        network.eval()\n        logits",
        ),
    },
)
def test_lamp_measures(code):
    """By hand: two pictures of 2x3 pixels, of which five count, and training pictures that are something else."""

    class Reddest(nn.Module):
        """A logit per pixel: its red less 10. In training mode, with the statistics of a batch, all are positive."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1, eps=0)
            self.norm.running_mean.fill_(30)
            nn.init.constant_(self.norm.bias, 20)

        def forward(self, images):
            return self.norm(images[:, :1])[:, 0]

    red = torch.tensor([[[20, 20, 0], [0, 20, 0]], [[20, 0, 0], [20, 20, 20]]], dtype=torch.uint8)
    images = torch.stack([red, 0 * red, 0 * red], 1)
    mark = torch.tensor([[[1, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 1, 1]]]).float()
    far = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]]]).float()
    test = Split(images, {"mark": mark, "far": far})
    data = SimpleNamespace(train=Split(255 - images, test.targets), test=test, normalize=lambda images: images.float())
    # far pixels: right, wrong (20 is not to be marked), right, right, wrong
    with leaves_modes(reddest := Reddest()):
        assert code.lamp_accuracy(reddest, data) == {"test_accuracy": pytest.approx(3 / 5)}
    wanted = (2 * math.log1p(math.exp(10)) + 3 * math.log1p(math.exp(-10))) / 5
    loss = code.lamp_loss(Reddest().eval(), images.float(), test.targets)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@holds(
    SENET, {"the unit stays outside": ("network = PixelClassifier(unit)", "network = PixelClassifier(nn.Identity())")}
)
def test_training_on_lamps(code):
    pictures = Dataset(
        code.lamp_pictures(8, 0), code.lamp_pictures(4, 1), ("leave", "mark"), Provenance("toy", False, "")
    )
    unit = code.SqueezeExcitation(16, 2)
    network, share = code.train_on_lamps(unit, pictures, "toy")
    assert network.unit is unit and 0 <= share <= 1


@holds(
    SENET,
    {
        "one pass among others": ("module.momentum = None", "module.momentum = 0.1"),
        "it keeps what it had": ("module.reset_running_stats()", "pass"),
        "it stays in training mode": ("(images)\n    return network.eval()", "(images)\n    return network"),
    },
)
def test_settled(code):
    """Running averages are those of the images, whatever they were before."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network(noise(7, 3, 5, 6) + 3)
    before = copy.deepcopy(network[0].weight)
    images = noise(6, 3, 5, 7, seed=2)
    assert code.settled(network, images) is network and not any(part.training for part in network.modules())
    maps = network[0](images)
    assert torch.allclose(network[1].running_mean, maps.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(network[1].running_var, maps.var((0, 2, 3)), atol=1e-5)
    assert torch.equal(before, network[0].weight)


@holds(
    SENET,
    {
        "the first layer's bias": ("constant_(module.fc2.bias, bias)", "constant_(module.fc1.bias, bias)"),
        "the wrong start": ("model = start_gates(build(**config), bias)", "model = start_gates(build(**config), 0.0)"),
    },
)
def test_starts(code):
    """Gates start around sigmoid(bias), with and without a squeeze; without units nothing happens."""
    torch.manual_seed(0)
    for unit in ("SE", "no squeeze"):
        network = code.start_gates(code.build(unit, 2), 2.0)
        units = [module for module in network.modules() if isinstance(module, code.SqueezeExcitation)]
        assert len(units) == 9
        for each in units:
            assert torch.allclose(each.gate(torch.zeros(1, each.fc1.in_channels, 3, 5)), torch.tensor(0.880797))
    plain = code.build(None)
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    assert all(torch.equal(tensor, state[name]) for name, tensor in code.start_gates(plain, 2.0).state_dict().items())
    few = red_or_blue(128, side=16)
    started = {bias: code.train_start(few, seed=0, epochs=1, unit="SE", r=2, bias=bias) for bias in (0.0, 2.0)}
    assert started[0.0]["train_loss"] != started[2.0]["train_loss"]
    assert set(started[0.0]) == set(code.MEASURED)


@holds(SENET, {"every arm is the same": ("model = build(**config)\n", "model = build(None)\n")})
def test_arms_train(code):
    few = red_or_blue(128, side=16)
    losses = [code.train_arm(few, seed=0, epochs=1, **config)["train_loss"] for config in code.ARMS.values()]
    assert len(set(losses)) == len(code.ARMS)


def test_networks_and_weights_are_declared():
    assert not list(SENET.NETWORKS.problems())
    network = on_meta(SENET.TRAINED.build)
    assert network.fc.out_features == len(naming.CLASSES)
    assert any(isinstance(module, SENET.SqueezeExcitation) for module in network.modules())


# ---------------------------------------------------------------------------------------------------- exercises

CHECK_DESIGNS, CHECK_PRUNE, DESIGNS, PRUNE = from_cells(
    SENET, "check_designs", "check_prune", "designs_solution", "prune_solution"
)


def by_table(block, unit, x, design):
    """Another right answer: the three places as functions."""
    same = lambda maps: maps  # noqa: E731
    before, behind, around, after = {
        "PRE": (unit, same, same, same),
        "standard": (same, unit, same, same),
        "Identity": (same, same, unit, same),
        "POST": (same, same, same, unit),
    }[design]
    return after((behind(block.branch(before(x))) + around(block.downsample(x))).relu())


def the_input_for_the_shortcut(block, unit, x, design):
    branch = block.branch(unit(x) if design == "PRE" else x)
    y = (unit(branch) if design == "standard" else branch) + (unit(x) if design == "Identity" else x)
    return unit(y.relu()) if design == "POST" else y.relu()


def post_before_the_relu(block, unit, x, design):
    if design == "POST":
        return unit(block.branch(x) + block.downsample(x)).relu()
    return DESIGNS(block, unit, x, design)


def pre_before_both_ways(block, unit, x, design):
    if design == "PRE":
        x = unit(x)
    return DESIGNS(block, unit, x, "no unit" if design == "PRE" else design)


def always_standard(block, unit, x, design):
    return DESIGNS(block, unit, x, "standard")


def without_the_relu(block, unit, x, design):
    return unit(block.branch(x)) + block.downsample(x)


@pytest.mark.parametrize("answer", [DESIGNS, by_table])
def test_right_designs_pass(answer):
    CHECK_DESIGNS(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (the_input_for_the_shortcut, "Is the shortcut block.downsample"),
        (post_before_the_relu, "POST: what you have is the unit before the last ReLU"),
        (pre_before_both_ways, "PRE: what you have is the unit before the whole block"),
        (always_standard, "PRE: what you have is standard"),
        (without_the_relu, "standard: look at the diagram"),
        (lambda *given: None, "nothing came back"),
    ],
)
def test_wrong_designs_get_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_DESIGNS(answer)


def test_an_unfinished_answer_is_no_wrong_one():
    """NotImplementedError is a RuntimeError, which the check turns into a hint; this one it must let through."""

    def unfinished(block, unit, x, design):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        CHECK_DESIGNS(unfinished)


def another_norm(block, gates):
    """Another right answer: a new batch normalisation in place of the old one."""
    block.se, norm = nn.Identity(), copy.deepcopy(block.bn2)
    norm.weight, norm.bias = (nn.Parameter(gates * old) for old in (norm.weight, norm.bias))
    block.bn2 = norm.eval()


def unit_stays(block, gates):
    block.bn2.weight *= gates
    block.bn2.bias *= gates


def weight_alone(block, gates):
    block.bn2.weight *= gates
    block.se = nn.Identity()


def the_convolution(block, gates):
    block.conv2.weight *= gates[:, None, None, None]
    block.se = nn.Identity()


def the_first_norm(block, gates):
    block.bn1.weight *= gates
    block.bn1.bias *= gates
    block.se = nn.Identity()


def a_layer_that_scales(block, gates):
    block.se = nn.Conv2d(8, 8, 1, groups=8, bias=False)
    block.se.weight.copy_(gates[:, None, None, None])


@pytest.mark.parametrize("answer", [PRUNE, another_norm])
def test_right_pruning_passes(answer):
    CHECK_PRUNE(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (unit_stays, "the unit is still there"),
        (weight_alone, "scale both weight and bias of bn2"),
        (the_convolution, "scale both weight and bias of bn2"),
        (the_first_norm, "scale both weight and bias of bn2"),
        (a_layer_that_scales, "the parameters of a block without a unit"),
    ],
)
def test_wrong_pruning_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_PRUNE(answer)


# ------------------------------------------------------------------------------------------------------ errors


def test_a_unit_without_hidden_layer_is_refused():
    with pytest.raises(ValueError, match="choose a smaller r"):
        SENET.SqueezeExcitation(8)


def test_arms_of_the_study_are_fair():
    """With and without squeeze the same parameters; r = 2 costs more than r = 8, and both more than no gates."""
    cost = {arm: inspect.count_parameters(on_meta(SENET.build, **config)) for arm, config in SENET.ARMS.items()}
    assert cost["SE, r = 2"] == cost["no squeeze, r = 2"] > cost["SE, r = 8"] > cost["no gates"] == 68_050
