"""Chapter 6: the paper's counts, torchvision's and timm's answers, and what a gate does; then mutants of the code."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from toys import chapter_tests, noise, on_meta

from helpers import inspect
from helpers.chapters import chapter
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


# ------------------------------------------------------------------ checks of the code, each a function of a module


def check_imagenet(code):
    for depth, (parameters, millions) in IMAGENET.items():
        network = on_meta(code.se_resnet, depth)
        assert inspect.count_parameters(network) == parameters
        assert round(inspect.count_macs(network, IMAGE) / 1e6, 1) == millions


def check_ratios(code):
    for ratio, parameters in BY_RATIO.items():
        assert inspect.count_parameters(on_meta(code.se_resnet, 50, r=ratio)) == parameters


def check_formula(code):
    assert code.weights_of_units(WIDTHS) == 2_514_944
    assert code.weights_of_units(WIDTHS) + code.biases_of_units(WIDTHS) == 2_530_992
    narrow = [width // 4 for width in WIDTHS]
    assert 25_557_032 + code.weights_of_units(narrow) + code.biases_of_units(narrow) == 25_718_228
    mobile = [64, 128, 128, 256, 256] + [512] * 6 + [1024] * 2
    assert 4_231_976 + code.weights_of_units(mobile) + code.biases_of_units(mobile) == 4_718_044


def check_without_units(code):
    network = on_meta(code.se_resnet, 50)
    code.without_units(network.layer4)
    assert inspect.count_parameters(network) == 26_508_632
    assert inspect.count_parameters(code.without_units(network)) == 25_557_032


def check_cifar(code):
    """The count with option B is that of another public implementation, too."""
    assert inspect.count_parameters(on_meta(code.SECifarResNet, 20, option="B")) == 274_847
    for unit, macs in ((code.SqueezeExcitation, 2_566_400), (code.NoSqueeze, 2_709_824)):
        network = on_meta(code.SECifarResNet, 20, 8, 2, unit)
        assert inspect.count_parameters(network) == 72_334
        assert inspect.count_macs(network, (3, 16, 16)) == macs


def check_unit(code):
    ours, theirs = code.SqueezeExcitation(64, 4), torchvision.ops.SqueezeExcitation(64, 16)
    for layer in (ours.fc1, ours.fc2):
        nn.init.normal_(layer.bias)
    assert relative_difference(ours, copy_in_order(ours, theirs), noise(3, 64, 5, 7)) < 1e-12


def check_timm(code):
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


def check_gates(code):
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


def check_no_squeeze(code):
    torch.manual_seed(0)
    squeezing, local = code.SqueezeExcitation(8, 2), code.NoSqueeze(8, 2)
    local.load_state_dict(squeezing.state_dict())
    flat = noise(2, 8, 1, 1).expand(2, 8, 4, 4)  # a map equal to its average
    assert torch.allclose(squeezing(flat), local(flat), atol=1e-6)


def check_start(code):
    """The convolutions of the network without units, and gates that are all one half when nothing comes in."""
    networks = []
    for build in (code.CifarResNet, lambda *sizes: code.SECifarResNet(*sizes, 2)):
        torch.manual_seed(0)
        networks.append(build(8, 8))
    plain, gated = (network.state_dict() for network in networks)
    assert all(torch.equal(plain[name], gated[name]) for name in plain) and len(gated) > len(plain)
    unit = networks[1].layer1[0].se
    assert torch.equal(unit.gate(torch.zeros(1, 8, 4, 4)), torch.full((1, 8, 1, 1), 0.5))


def check_open_gates(code):
    """With all gates one it is the network without units."""
    torch.manual_seed(0)
    plain = RESNET.shake_batch_norms(code.CifarResNet(8, 8))
    gated = with_gates(code.SECifarResNet(8, 8, 2), 1000)
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert relative_difference(gated, plain, noise(2, 3, 16, 16)) < 1e-12
    assert relative_difference(code.without_units(gated), plain, noise(2, 3, 16, 16)) < 1e-12


def check_place(code):
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


def check_lamps(code):
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


def check_windows(code):
    """Which pixels an answer in the corner depends on: 4x4 of its 7x7 window, or all of them."""
    torch.manual_seed(0)
    for unit, seen in ((nn.Identity(), 16), (code.NoSqueeze(16, 2), 16), (code.SqueezeExcitation(16, 2), 144)):
        network = code.PixelClassifier(unit).eval()
        images = noise(1, 3, 12, 12).requires_grad_()
        (gradient,) = torch.autograd.grad(network(images)[0, 0, 0], images)
        assert int((gradient.abs().sum(1) > 0).sum()) == seen


def check_variance(code):
    values, labels = noise(60, 4), torch.arange(60) % 5 % 3  # classes of 24, 24 and 12
    between, within = code.split_variance(values, labels)
    assert torch.allclose(between + within, values.var(0, unbiased=False), atol=1e-6)
    expected = sum(((values[labels == k] - values[labels == k].mean(0)) ** 2).sum(0) for k in range(3)) / 60
    assert torch.allclose(within, expected, atol=1e-6)
    decided = labels[:, None].float().expand(60, 4)
    assert torch.allclose(code.split_variance(decided, labels)[1], torch.zeros(4), atol=1e-6)


def check_replacing(code):
    torch.manual_seed(0)
    network = RESNET.shake_batch_norms(code.SECifarResNet(8, 8, 2)).eval()
    images = noise(3, 3, 16, 16)
    gates = inspect.watch(network, nn.Sigmoid, images, lambda given, made: made.flatten(1).clone())
    own = code.logits_with(network, images, {})
    assert torch.allclose(code.logits_with(network, images, gates), own, atol=1e-5)
    ones = {name: torch.ones(found.shape[1]) for name, found in gates.items()}
    replaced = code.logits_with(network, images, ones)
    assert torch.equal(code.logits_with(network, images, {}), own), "the replacement outlived its pass"
    assert torch.allclose(replaced, code.without_units(network)(images), atol=1e-5)
    assert not torch.allclose(replaced, own, atol=1e-3)


# ------------------------------------------------------------------------------------------------------ mutants

MUTANTS = {
    "squeeze by the maximum": ("nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveMaxPool2d(1)", "unit"),
    "channels compete": ("self.sigmoid = nn.Sigmoid()", "self.sigmoid = nn.Softmax(1)", "start"),
    "gates may be negative": ("self.sigmoid = nn.Sigmoid()", "self.sigmoid = nn.Tanh()", "unit"),
    "no ReLU in the unit": ("self.fc2(self.relu(self.fc1(z)))", "self.fc2(self.fc1(z))", "unit"),
    "gates are added": ("return x * self.gate(x)", "return x + self.gate(x)", "gates"),
    "the hidden layer is too wide": ("channels, channels // r, 1", "channels, 2 * channels // r, 1", "unit"),
    "gates start open": ("nn.init.zeros_(layer.bias)", "nn.init.ones_(layer.bias)", "start"),
    "no squeeze still squeezes": ("self.squeeze = nn.Identity()", "pass", "gates"),
    "the unit is on the narrow side": ("unit(channels * self.expansion, r)", "unit(channels, r)", "place"),
    "the unit is left out": ("return self.se(super().branch(x))", "return super().branch(x)", "place"),
    "the unit comes twice": ("self.se(super().branch(x))", "self.se(self.se(super().branch(x)))", "place"),
    "the wrong block": ("Bottleneck: SEBottleneck}", "Bottleneck: SEBasicBlock}", "imagenet"),
    "r is forgotten": ("return ResNet(block, layers, r=r, **settings)", "return ResNet(block, layers)", "ratios"),
    "other first weights": ("self.load_state_dict(first_weights, strict=False)", "pass", "start"),
    "stage 2 without stride": ("width, 2 * width, n, 2,", "width, 2 * width, n, 1,", "cifar"),
    "units stay": ("module.se = nn.Identity()", "pass", "without_units"),
    "the formula forgets a layer": ("2 * width * (width // r)", "width * (width // r)", "formula"),
    "hidden biases forgotten": ("width + width // r for", "width for", "formula"),
    "twins with the same lamp": ("(40, 40, 255)", "(255, 40, 40)", "lamps"),
    "twins with the same marks": ("torch.cat([bright, ~bright])", "torch.cat([bright, bright])", "lamps"),
    "pixels near the lamp count": ("max(0, y - 3) : y + lamp + 3", "max(0, y - 2) : y + lamp + 2", "lamps"),
    "the classifier sees farther": (
        "self.last = nn.Conv2d(channels, 1, 3, padding=1)",
        "self.last = nn.Conv2d(channels, 1, 5, padding=2)",
        "windows",
    ),
    "classes are not weighted": ("len(mine) / len(values) * (", "1 / 3 * (", "variance"),
    "replaced gates stay": ("handle.remove()", "pass", "replacing"),
}

test_chapter, test_mutant_is_noticed = chapter_tests(SENET, globals(), MUTANTS)


# ------------------------------------------------------------------------------------------------------ errors


def test_a_unit_without_hidden_layer_is_refused():
    with pytest.raises(ValueError, match="choose a smaller r"):
        SENET.SqueezeExcitation(8)


def test_arms_of_the_study_are_fair():
    """With and without squeeze the same parameters; r = 2 costs more than r = 8, and both more than no gates."""
    cost = {arm: inspect.count_parameters(on_meta(SENET.build, **config)) for arm, config in SENET.ARMS.items()}
    assert cost["SE, r = 2"] == cost["no squeeze, r = 2"] > cost["SE, r = 8"] > cost["no gates"] == 68_050
