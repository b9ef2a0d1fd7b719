"""Chapter 9: counts, timm's and torchvision's answers, what each technique does, measures, exercises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import BlurPool2d
from torch import nn
from torchvision.transforms import functional
from toys import dataset_of, from_cells, generator, holds, noise, on_meta, random_images

from helpers import inspect
from helpers.chapters import chapter
from helpers.data import Split
from helpers.parity import copy_in_order, relative_difference

CNN = chapter("09_assembled_cnn")
RESNET = chapter("02_resnet")
ALL = {"d": True, "attention": "SK", "blur": True}


def pictures(n=6, side=16, seed=2):
    """Random images of 256 grey levels in [0, 1], smooth enough to have structure."""
    rough = torch.rand(n, 3, 6, 6, generator=generator(seed))
    smooth = F.interpolate(rough, size=(side, side), mode="bilinear")
    return (255 * smooth).round() / 255


def small_data(n=256):
    return dataset_of(random_images(n, 16), torch.randint(10, (n,), generator=generator(1)))


@holds(
    CNN,
    {
        "the stem without its second half": ("half = channels // 2", "half = channels"),
        "the first block of a group keeps its input": ('stride, option="C", **tweaks)', "stride, **tweaks)"),
    },
)
def test_counts(code):
    """Parameters; the paper prints none. The last two are those of the authors' code, with 1000 classes."""
    assert inspect.count_parameters(on_meta(code.AssembledResNet)) == 25_557_032
    assert inspect.count_parameters(on_meta(code.AssembledResNet, d=True)) == 25_576_264
    assert inspect.count_parameters(on_meta(code.AssembledResNet, attention="SK")) == 38_771_816
    assert inspect.count_parameters(on_meta(code.AssembledResNet, attention="SE")) == 28_088_024
    assert inspect.count_parameters(on_meta(code.AssembleResNet50, d=True, blur=True)) == 28_403_624
    assert inspect.count_parameters(on_meta(code.AssembleResNet50, **ALL)) == 41_846_440
    assert inspect.count_parameters(on_meta(code.AssembleResNet50, 1001, **ALL)) == 41_848_489


@holds(CNN)
def test_resnet_d(code):
    torch.manual_seed(0)
    ours = RESNET.shake_batch_norms(code.AssembledResNet(50, 10, d=True))
    theirs = on_meta(timm.create_model, "resnet50d", num_classes=10)
    assert relative_difference(ours, copy_in_order(ours, theirs), noise(2, 3, 64, 64)) < 1e-12
    # 112 and 56 pixels divide evenly, 4-pixel maps of 64x64 images too; timm rounds odd sizes up


@holds(CNN)
def test_plain_equals_chapter_2(code):
    """Without techniques the networks are those of chapter 2."""
    torch.manual_seed(0)
    ours = RESNET.shake_batch_norms(code.AssembledCifarResNet(8, 4))
    theirs = RESNET.CifarResNet(8, 4, option="B")
    theirs.load_state_dict(ours.state_dict())
    assert relative_difference(ours, theirs, noise(2, 3, 16, 16)) == 0
    deep = RESNET.shake_batch_norms(code.AssembledBottleneck(8, 4, 2))
    other = RESNET.Bottleneck(8, 4, 2, placement="v1.5")
    other.load_state_dict(deep.state_dict())
    assert relative_difference(deep, other, noise(2, 8, 8, 8)) == 0


@holds(CNN, {"other first weights": ("self.load_state_dict(plain, strict=False)", "pass")})
def test_same_start(code):
    """After one seed the arms share the weights of all layers that they share."""
    states = []
    for tweaks in ({}, {"d": True, "attention": "SE", "r": 4, "blur": True}):
        torch.manual_seed(0)
        states.append(code.AssembledCifarResNet(8, 8, **tweaks).state_dict())
    plain, tweaked = states
    assert all(torch.equal(tweaked[name], tensor) for name, tensor in plain.items())


@holds(
    CNN,
    {
        "the shortcut takes the largest": (
            "nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)",
            "nn.MaxPool2d(2, stride)",
        ),
        "half a square counts as a whole": (", ceil_mode=True, count_include_pad=False", ", padding=1"),
        "an odd edge is cut off": (", ceil_mode=True, count_include_pad=False", ""),
        "D projects where the shape stays": ("if d and projects:", "if d:"),
    },
)
def test_averaged_shortcut(code):
    torch.manual_seed(0)
    path = code.averaged_shortcut(4, 6, 2)
    x = noise(2, 4, 8, 8)
    expected = path[2](F.conv2d(F.avg_pool2d(x, 2), path[1].weight))
    assert torch.allclose(path(x), expected, atol=1e-6)
    edge = path.pool(torch.tensor([[[[1.0, 3.0, 5.0], [1.0, 3.0, 7.0], [2.0, 4.0, 9.0]]]]))
    assert edge.tolist() == [[[[2.0, 6.0], [3.0, 9.0]]]]
    block = code.AssembledBottleneck(8, 2, d=True)
    assert isinstance(block.downsample, nn.Identity)  # same shape: nothing to project


@holds(
    CNN,
    {
        "a blur without stride": ("stride=self.stride, groups=x.shape[1]", "groups=x.shape[1]"),
        "a box in place of the binomial": ("math.comb(size - 1, k)", "1"),
        "zeros outside in place of reflection": (
            '* 4, mode="reflect")\n        return F.conv2d',
            "* 4)\n        return F.conv2d",
        ),
    },
)
def test_blur_pool(code):
    x = noise(2, 5, 12, 16)
    for size in (3, 5):
        for stride in (1, 2):
            ours, theirs = code.BlurPool(5, stride, size), BlurPool2d(5, size, stride)
            assert torch.allclose(ours.kernel.sum((2, 3)), torch.ones(5, 1))
            assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.equal(code.BlurPool(1).kernel[0, 0], torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)
    assert not code.BlurPool(3).state_dict() and not list(code.BlurPool(3).parameters())


@holds(CNN, {"both convolution and blur subsample": ("step = 1 if blur else stride", "step = stride")})
def test_blurred_block(code):
    """Stride-1 convolution, BN, ReLU, then the blur with the stride."""
    torch.manual_seed(0)
    block, x = code.AssembledBasicBlock(4, 6, 2, blur=True).eval(), noise(2, 4, 8, 8)
    RESNET.shake_batch_norms(block)
    inner = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, padding=1)))
    inner = BlurPool2d(6, 3, 2)(inner)
    expected = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1)) + block.downsample(x)
    assert torch.allclose(block(x), F.relu(expected), atol=1e-5)


@holds(
    CNN,
    {
        "weights of the branches that do not add up": (".softmax(0)", ".sigmoid()"),
        "softmax over channels": (".softmax(0)", ".softmax(2)"),
        "squeeze of one branch": ("self.squeeze(first + second)", "self.squeeze(first)"),
        "no least number of hidden units": ("max(channels // r, least)", "channels // r"),
    },
)
def test_selective_kernel(code):
    torch.manual_seed(0)
    unit = code.SelectiveKernel(4, 6, 2).eval()
    RESNET.shake_batch_norms(unit)
    x = noise(2, 4, 8, 8)
    branches = F.relu(unit.bn(F.conv2d(x, unit.conv.weight, stride=2, padding=1)))
    first, second = branches[:, :6], branches[:, 6:]
    z = F.relu(unit.bn1(unit.fc1((first + second).mean((2, 3), keepdim=True))))
    a, b = unit.fc2(z)[:, :6].exp(), unit.fc2(z)[:, 6:].exp()
    assert torch.allclose(unit(x), (a * first + b * second) / (a + b), atol=1e-5)
    share, rest = unit.weights(first, second)
    assert torch.allclose(share + rest, torch.ones(2, 6, 1, 1)) and share.min() > 0
    assert unit.fc1.out_channels == 32 and code.SelectiveKernel(4, 128).fc1.out_channels == 64


@holds(
    CNN,
    {
        "the big branch ends in a ReLU": ("blocks[-1].last_relu = last_relu", "pass"),
        "the little branch has as many blocks": ("max(1, count // beta - 1)", "count - 1"),
    },
)
def test_big_little(code):
    x = noise(2, 8, 16, 16)
    for stride in (1, 2):
        stage = code.BigLittle(8, 4, 4, stride, **ALL).eval()
        assert stage(x).shape == (2, 16, 16 // stride, 16 // stride)
        assert stage.big(x).shape == (2, 16, 8, 8) and stage.little(x).shape == (2, 8, 16, 16)
        assert len(stage.big) == 3 and len(stage.little) == 1
        assert stage.big(x).min() < 0 <= stage.little(x).min()  # no ReLU at the end of the big branch
        up = stage.big(x).repeat_interleave(2, 2).repeat_interleave(2, 3)
        expected = stage.merge(F.relu(up + stage.widen(stage.little(x))))
        assert torch.allclose(stage(x), expected, atol=1e-5)
    few = on_meta(code.BigLittle, 8, 8, 36, 2, alpha=1, beta=2)
    assert len(few.big) == 35 and len(few.little) == 17


@holds(CNN)
def test_big_little_shapes(code):
    model = on_meta(code.AssembleResNet50, **ALL)
    shapes = {row["layer"]: row["output"] for row in inspect.trace(model, (3, 224, 224)).rows}
    assert shapes["pool.merge.1"] == "64x56x56"
    ends = [shapes[f"layer{n}.merge.0.relu"] for n in (1, 2, 3)] + [shapes["layer4.2.relu"]]
    assert ends == ["256x28x28", "512x14x14", "1024x14x14", "2048x7x7"]


@holds(
    CNN,
    {
        "gamma without its border": ("height * width / (size**2 * centres)", "1 / size**2"),
        "squares leave the map": (
            "1 - F.max_pool2d(centres, size, stride=1)",
            "1 - F.max_pool2d(centres, size, stride=1).roll(1, 3)",
        ),
        "DropBlock does not scale up": ("x * mask * (mask.numel() / mask.sum().clamp_min(1))", "x * mask"),
        "DropBlock in use": ("if not self.training or self.keep == 1:", "if self.keep == 1:"),
    },
)
def test_dropblock(code):
    """Torchvision's, number for number, after the same seed."""
    x = noise(4, 5, 14, 14)
    layer = code.DropBlock(0.8, 5)
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    theirs = torchvision.ops.drop_block2d(x, 0.2, 5, training=True)
    assert torch.allclose(ours, theirs, atol=1e-5) and (ours == 0).any()
    assert torch.equal(layer.eval()(x), x)


@holds(CNN, {"an even square is one too large": ("[size - 1] * 4)", "[size // 2 * 2] * 4)")})
def test_dropblock_on_maps_of_even_size(code):
    """On a map that is 4 high the square has a side of 4: a column is dropped from top to bottom."""
    torch.manual_seed(0)
    mask = code.DropBlock(0.5).mask(torch.ones(50, 2, 4, 9))
    assert mask.shape == (50, 2, 4, 9) and torch.equal(mask, mask[:, :, :1].expand_as(mask))
    lengths = {len(run) for row in mask[:, :, 0].flatten(0, 1) for run in "".join("x."[int(v)] for v in row).split(".")}
    assert lengths - {0} >= {4} and min(lengths - {0}) == 4


@pytest.mark.parametrize("tweaks", [{}, {"attention": "SK", "blur": True}])
@pytest.mark.parametrize("height, width", [(100, 75), (240, 240), (300, 225)])
def test_photographs_of_any_size(height, width, tweaks):
    network = CNN.AssembledResNet(classes=3, d=True, **tweaks).eval()
    assert network(noise(1, 3, height, width)).isfinite().all()


@holds(CNN, {"the last row of an odd map is lost": ("stride, ceil_mode=True, count", "stride, ceil_mode=False, count")})
def test_shortcut_of_resnet_d_on_odd_maps(code):
    """At 100 px the third stage halves 25 rows to 13, and so does its shortcut."""
    block, x = code.AssembledBottleneck(8, 2, 2, d=True), noise(1, 8, 25, 19)
    assert block.eval()(x).shape == (1, 8, 13, 10)


@holds(CNN, {"no factor for the stage": ("return self.scale * (1 - self.keep)", "return (1 - self.keep)")})
def test_dropblock_rate(code):
    """Nearly the keep rate asked for, a little more since squares overlap; timm's layer agrees."""
    torch.manual_seed(0)
    x = torch.ones(64, 32, 14, 14)
    for keep, size, scale in ((0.9, 1, 1.0), (0.9, 7, 1.0), (0.9, 7, 0.25), (0.7, 3, 1.0)):
        layer = code.DropBlock(keep, size, scale)
        kept = float(layer.mask(x).mean())
        asked = 1 - scale * (1 - keep)
        assert asked - 0.003 < kept < asked + 0.5 * (1 - asked) ** 2 + 0.01
        assert abs(float(layer(x).mean()) - 1) < 1e-4
    theirs = timm.layers.DropBlock2d(0.1, 1, couple_channels=False).train()
    ours = code.DropBlock(0.9, 1).train()
    assert abs(float((theirs(x) == 0).float().mean() - (ours(x) == 0).float().mean())) < 0.003


@holds(CNN, {"no DropBlock on the projection": ("around = self.drop(around)", "pass")})
def test_dropblock_places(code):
    model = code.add_dropblock(code.AssembledCifarResNet(8, 4), {"layer2": 0.25, "layer3": 1.0}, size=3)
    found = {name: m.scale for name, m in model.named_modules() if isinstance(m, code.DropBlock)}
    assert found == {"layer2.0.drop": 0.25, "layer3.0.drop": 1.0}
    assert isinstance(model.layer1[0].drop, nn.Identity)
    calls = []
    model.layer3[0].drop.register_forward_hook(lambda *_: calls.append(1))
    model(noise(2, 3, 16, 16))
    assert len(calls) == 3  # after both convolutions and on the projection


@holds(CNN, {"keep falls at once": ("min(1, self.step / self.steps)", "1")})
def test_keep_falls(code):
    torch.manual_seed(0)
    model = code.add_dropblock(code.AssembledCifarResNet(8, 4), {"layer3": 1.0}, size=3)
    loss, x = code.AssembledLoss(steps=4), noise(2, 3, 16, 16)
    found = []
    for _ in range(5):
        loss(model, x, {"label": torch.eye(10)[:2]})
        found.append(model.layer3[0].drop.keep)
    assert found == pytest.approx([0.975, 0.95, 0.925, 0.9, 0.9])


@holds(
    CNN,
    {
        "smoothing leaves the true class alone": (
            "(1 - epsilon) * F.one_hot(labels, classes).float()",
            "F.one_hot(labels, classes).float()",
        )
    },
)
def test_smoothing(code):
    labels = torch.tensor([0, 3, 9])
    targets = code.smooth(labels, 10)
    assert torch.allclose(targets.sum(1), torch.ones(3)) and targets[1, 3] == pytest.approx(0.91)
    assert targets[1, 0] == pytest.approx(0.01)
    logits = noise(3, 10)
    theirs = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    assert torch.allclose(F.cross_entropy(logits, targets), theirs)


@holds(
    CNN,
    {
        "labels are not mixed": ("{name: pairs(x) for name, x in targets.items()}", "targets"),
        "a partner gets the wrong share": (
            "share * first + (1 - share) * second",
            "(1 - share) * first + share * second",
        ),
        "mixup with even shares": ("self.random.beta(self.alpha, self.alpha, pairs)", "self.random.random(pairs)"),
    },
)
def test_mixup(code):
    x, targets = noise(6, 3, 4, 4), {"label": torch.eye(10)[[1, 2, 3, 4, 5, 6]]}
    share = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.5, 1.0])
    images, mixed = code.mixup(x, targets, share)
    assert images.shape == x.shape and torch.allclose(mixed["label"].sum(1), torch.ones(6))
    assert torch.allclose(images[2], 0.25 * x[2] + 0.75 * x[3]) and torch.equal(images[0], x[0])
    assert mixed["label"][1, 2] == 0.5 and mixed["label"][1, 5] == 0.5
    images, mixed = code.mixup(x, targets, share[:3], kind=1)
    assert images.shape == (3, 3, 4, 4) and torch.allclose(images[2], 0.25 * x[2] + 0.75 * x[5])
    assert mixed["label"][2, 3] == 0.25 and mixed["label"][2, 6] == 0.75
    step = code.Mixup(alpha=0.2, seed=0)
    shares = [step(torch.eye(64)[:, None, None], {"l": torch.eye(64)}, None)[1]["l"].amax(1) for _ in range(40)]
    most = torch.stack(shares).flatten()
    expected = np.random.default_rng(1).beta(0.2, 0.2, 100_000)
    assert abs(float(most.mean()) - np.maximum(expected, 1 - expected).mean()) < 0.02


@holds(
    CNN,
    {
        "posterize keeps too much": (
            "step = 2 ** (8 - column(bits).round())",
            "step = 2 ** (7 - column(bits).round())",
        ),
        "solarize the wrong way round": (
            "torch.where(x >= column(m), 1 - x, x)",
            "torch.where(x < column(m), 1 - x, x)",
        ),
    },
)
def test_operations(code):
    """Each operation against torchvision's, at every level and with both signs."""
    x, bytes_ = pictures(), (255 * pictures()).round().to(torch.uint8)
    n = len(x)

    def ours(name, level, sign):
        return code.operate(name, x, torch.full((n,), float(level)), torch.full((n,), float(sign)))

    for level in range(10):
        share = level / 9
        for sign in (-1, 1):
            f = 1 + sign * 0.9 * share
            assert torch.allclose(ours("Brightness", level, sign), functional.adjust_brightness(x, f), atol=1e-5)
            assert torch.allclose(ours("Color", level, sign), functional.adjust_saturation(x, f), atol=2e-3)
            assert torch.allclose(ours("Contrast", level, sign), functional.adjust_contrast(x, f), atol=2e-3)
            assert torch.allclose(ours("Sharpness", level, sign), functional.adjust_sharpness(x, f), atol=1e-5)
        bits = 8 - round(4 * share)
        assert torch.equal((255 * ours("Posterize", level, 1)).round(), functional.posterize(bytes_, bits).float())
        bright = functional.solarize(x, 1 - share)
        assert (ours("Solarize", level, 1) - bright).abs().gt(1e-4).float().mean() < 0.01  # ties at the threshold
    assert torch.allclose(ours("AutoContrast", 0, 1), functional.autocontrast(x), atol=1e-5)
    assert torch.equal(ours("Invert", 0, 1), 1 - x)


@holds(
    CNN,
    {
        "rotation in radians": ("torch.deg2rad(m).cos(), torch.deg2rad(m).sin()", "m.cos(), m.sin()"),
        "the gap is black": ("return moved + 0.5", "return moved"),
    },
)
def test_geometry(code):
    x, n = pictures(), 6
    fill = [0.5] * 3

    def ours(name, level, sign=1):
        return code.operate(name, x, torch.full((n,), float(level)), torch.full((n,), float(sign)))

    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        assert torch.allclose(ours(name, 0), x, atol=1e-6)
    turn = functional.rotate(x, 30, fill=fill)
    assert (ours("Rotate", 9, 1) - turn).abs().gt(1e-3).float().mean() < 0.03
    wide = pictures(6, 331 // 10 * 10)  # 330 pixels: 150 / 331 of them is 149.5
    moved = code.operate("TranslateX", wide, torch.full((n,), 9.0), torch.ones(n))
    shift = round(150 / 331 * 330)
    assert torch.allclose(moved[..., shift + 1 :], wide[..., : -shift - 1], atol=2e-2)
    assert torch.equal(moved[..., : shift - 1], torch.full_like(moved[..., : shift - 1], 0.5))
    sheared = code.warp(x, ((1, 0.3, 0), (0, 1, 0)))
    rows = [x.new_tensor((y + 0.5) / 8 - 1) for y in range(16)]
    for y in (0, 8, 15):  # each row is moved by 0.3 times its height above the middle
        step = 0.3 * float(rows[y]) * 8
        assert torch.allclose(sheared[:, :, y, 6:10], x[:, :, y, [round(c + step) for c in range(6, 10)]], atol=1e-5)


@holds(CNN, {"equalize counts its own value half": ("counts.cumsum(2)", "(counts.cumsum(2) - counts / 2)")})
def test_equalize(code):
    x = pictures()
    flat = code.operate("Equalize", x, torch.zeros(6), torch.ones(6))
    for channel in flat.flatten(0, 1):
        assert channel.min() == 0 and channel.max() == pytest.approx(1)
    before, after = x.flatten(2), flat.flatten(2)
    assert torch.equal(before.argsort(dim=2, stable=True), after.argsort(dim=2, stable=True))
    value = before[0, 0, 17]
    shares = (before[0, 0] <= value).double().mean(), (before[0, 0] <= before[0, 0].min()).double().mean()
    assert float(after[0, 0, 17]) == pytest.approx(float((shares[0] - shares[1]) / (1 - shares[1])), abs=1e-5)
    one = torch.full((1, 3, 4, 4), 0.4)
    assert torch.equal(code.equalized(one), one) and torch.equal(code.stretched(one), one)


@holds(
    CNN,
    {
        "a range that is too wide": ('"Rotate": ((0, 30)', '"Rotate": ((0, 90)'),
        "a sign that is not drawn": ('"Color": ((0, 0.9), True', '"Color": ((0, 0.9), False'),
    },
)
def test_ranges(code):
    """Torchvision's strengths, level for level; and no image leaves [0, 1]."""
    theirs = torchvision.transforms.AutoAugment()._augmentation_space(10, (1, 1))
    x = pictures()
    for name, ((low, high), signed, _) in code.OPERATIONS.items():
        strengths, has_sign = theirs[name]
        assert signed == has_sign
        if strengths.ndim:
            mine = torch.linspace(low, high, 10)
            mine = mine.round() if name == "Posterize" else 255 * mine if name == "Solarize" else mine
            assert torch.allclose(mine, strengths.float(), atol=1e-4)
        y = code.operate(name, x, torch.full((6,), 9.0), torch.tensor([1.0, -1] * 3))
        assert y.shape == x.shape and y.min() >= -1e-6 and y.max() <= 1 + 1e-6
    assert set(code.OPERATIONS) == set(theirs)


@holds(
    CNN,
    {
        "every operation is applied": ("if draws[i] < chance:", "if True:"),
        "only the first operation": ("for step in (0, 1):\n            draws", "for step in (0,):\n            draws"),
    },
)
def test_policy(code):
    """Each image gets one pair, in order, with the chances of the policy."""
    data = small_data()
    images = data.normalize(data.train.images)
    always = (("Invert", 1.0, None), ("Invert", 1.0, None)), (("Invert", 1.0, None), ("Invert", 0.0, None))
    y, _ = code.AutoAugment(data, always, seed=0)(images, None, None)
    twice = (y == images).flatten(1).all(1)
    once = torch.isclose(y, data.normalize(255 - data.train.images)).flatten(1).all(1)
    assert (twice ^ once).all() and 0.35 < twice.float().mean() < 0.65
    never = ((("Solarize", 0.0, 9), ("Posterize", 0.0, 9)),)
    assert torch.equal(code.AutoAugment(data, never)(images, None, None)[0], images)
    order = ((("Brightness", 1.0, 9), ("AutoContrast", 1.0, None)),)
    y, _ = code.AutoAugment(data, order)(images, None, None)
    assert torch.allclose(data.denormalize(y).amax((2, 3)), torch.ones(256, 3), atol=1e-5)  # the second came second
    draws = generator(5)
    code.in_turn(code.AutoAugment(data), code.Mixup())(images, {"l": torch.eye(256)}, draws)
    assert torch.equal(draws.get_state(), generator(5).get_state())  # batches stay paired


@holds(CNN, {"contrast about black": ("(mean + factor * (images - mean))", "(factor * images.float())")})
def test_corruptions(code):
    images = (255 * pictures(20)).to(torch.uint8)
    for kind, (function, severities) in code.CORRUPTIONS.items():
        errors = [(function(images, s).float() - images.float()).square().mean() for s in severities]
        assert errors == sorted(errors) and errors[0] > 0, kind
        assert function(images, severities[0]).dtype == torch.uint8
    grey = torch.full((50, 3, 16, 16), 128, dtype=torch.uint8)
    assert abs(float(code.noisy(grey, 0.08).float().std()) / 255 - 0.08) < 0.002
    assert torch.equal(code.faded(grey, 0.2), grey)


@holds(CNN, {"mCE without its base": ("errors[kind] / base[kind]", "errors[kind]")})
def test_mce(code):
    base = {"noise": 0.5, "blur": 0.25}
    assert code.mini_mce(base, base) == 100
    assert code.mini_mce({"noise": 0.25, "blur": 0.25}, base) == pytest.approx(75)


@holds(
    CNN, {"moved the other way": ("top, left = reach - down, reach - right", "top, left = reach + down, reach + right")}
)
def test_moves(code):
    x = torch.arange(2 * 3 * 5 * 5).view(2, 3, 5, 5).to(torch.uint8)
    right = code.moved(x, 1, 0)
    assert torch.equal(right[..., 1:], x[..., :-1]) and torch.equal(right[..., 0], x[..., 1])
    down = code.moved(x, 0, 2)
    assert torch.equal(down[:, :, 2:], x[:, :, :-2]) and torch.equal(code.moved(x, 0, 0), x)
    assert torch.equal(code.moved(x, -1, 0)[..., :-1], x[..., 1:])


@holds(
    CNN,
    {
        "calibration without signs": (
            "index_add(0, place, right - confidence)",
            "index_add(0, place, (right - confidence).abs())",
        )
    },
)
def test_calibration(code):
    logits = torch.tensor([[0.62, 0.38], [0.64, 0.36], [0.95, 0.05], [0.05, 0.95]]).log()
    labels = torch.tensor([0, 1, 0, 1])
    expected = (abs(0.5 - 0.63) * 2 + abs(1 - 0.95) * 2) / 4
    assert code.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-6)
    assert code.calibration_error(torch.tensor([[50.0, 0]]), torch.tensor([0])) < 1e-6  # a confidence of 1


@holds(CNN, {"distillation without the labels": ("loss = loss + kd_loss", "loss = kd_loss")})
def test_distillation(code):
    """Cross-entropy plus KL; at T = 1 its gradient is that of cross-entropy with the teacher's probabilities."""
    torch.manual_seed(0)
    logits = noise(4, 10).requires_grad_()
    teacher, label = noise(4, 10, seed=3).softmax(1), torch.eye(10)[:4]
    targets = {"label": label, "teacher": teacher}
    loss = code.AssembledLoss(1)(Constant(logits), torch.zeros(4), targets)
    gradient = torch.autograd.grad(loss, logits)[0]
    expected = F.cross_entropy(logits, label) + F.cross_entropy(logits, teacher)
    assert torch.allclose(gradient, torch.autograd.grad(expected, logits)[0], atol=1e-6)
    entropy = -(teacher * teacher.log()).sum(1).mean()
    assert torch.allclose(loss, expected - entropy, atol=1e-5)


class Constant(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer


@holds(CNN, {"the teacher is not mixed in as probabilities": ("logits.softmax(1).clamp_min(1e-6)", "logits[:, :5]")})
def test_training(code):
    """All techniques together run, learn something and keep the labels of the test split."""
    data = small_data(128)
    torch.manual_seed(0)
    model = code.small_network(**ALL, drop=True)
    teacher = code.small_network()
    history = code.train_assembled(model, data, epochs=1, epsilon=0.1, mixing=True, policy=True, teacher=teacher.eval())
    assert math.isfinite(history.last("train_loss")) and model.layer3[0].drop.keep == pytest.approx(0.9)
    soft = code.with_soft_targets(data, 0.1, teacher)
    assert soft.train.targets["teacher"].shape == (128, 10) and soft.test is data.test


@holds(
    CNN,
    {
        "always the same smoothing": ("len(data.classes), epsilon)", "len(data.classes))"),
        "what the teacher says of the test": (
            "train.predict(teacher, data, split",
            "train.predict(teacher, data, data.test",
        ),
        "nothing is too unlikely": ("logits.softmax(1).clamp_min(1e-6)", "logits.softmax(1)"),
    },
)
def test_soft_targets(code):
    """The label has what smoothing leaves it and a tenth of the rest; the teacher's probabilities are 1e-6 or more."""
    torch.manual_seed(0)
    data, sure_of_itself = small_data(6), nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    nn.init.normal_(sure_of_itself[1].weight)
    soft = code.with_soft_targets(data, 0.2, sure_of_itself).train
    assert torch.equal(soft.images, data.train.images)
    assert torch.allclose(soft.targets["label"], 0.8 * torch.eye(10)[data.train.targets] + 0.02)
    probabilities = sure_of_itself(data.normalize(data.train.images)).detach().softmax(1)
    assert probabilities.min() < 1e-6
    assert torch.allclose(soft.targets["teacher"], probabilities.clamp_min(1e-6), atol=1e-7)
    assert set(code.with_soft_targets(data).train.targets) == {"label"}


@holds(
    CNN,
    {
        "more in the earlier stage": ('{"layer2": 0.25, "layer3": 1.0}', '{"layer2": 1.0, "layer3": 0.25}'),
        "squares as large as the paper's": ("1.0}, size=3) if drop", "1.0}) if drop"),
        "always": ("size=3) if drop else model", "size=3)"),
    },
)
def test_dropblock_of_the_small_network(code):
    """A quarter of the rate in the second stage, all of it in the last, none in the first; squares of 3x3."""
    model = code.small_network(drop=True, depth=14)
    for block in model.layer2:  # 8x6 positions, 6x4 of them may be a centre
        assert block.drop.gamma(8, 6) == pytest.approx(0.25 * 0.1 * 48 / (9 * 24))
    for block in model.layer3:
        assert block.drop.gamma(4, 5) == pytest.approx(0.1 * 20 / (9 * 6))
    dropping = [name for name, module in model.named_modules() if isinstance(module, code.DropBlock)]
    assert dropping == ["layer2.0.drop", "layer2.1.drop", "layer3.0.drop", "layer3.1.drop"]
    assert not any(isinstance(module, code.DropBlock) for module in code.small_network().modules())


# ------------------------------------------------------------------------------------------------------ errors


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="no middle"):
        CNN.BlurPool(3, size=4)
    with pytest.raises(ValueError, match="none of None"):
        CNN.AssembledBasicBlock(8, 8, attention="CBAM")
    for keep, size in ((0.0, 7), (1.5, 7), (0.9, 4)):
        with pytest.raises(ValueError, match="size odd"):
            CNN.DropBlock(keep, size)


def test_arms_differ_in_one_technique():
    """Each step of the ladder adds to the one before; each leave-one-out arm lacks one technique of all."""
    flat = {name: set((arm["tweaks"] | arm["recipe"]).items()) for name, arm in CNN.ARMS.items()}
    steps = list(CNN.STEPS)
    assert CNN.ladder() == {step: CNN.ARMS[step] for step in steps}
    for before, after in zip(steps, steps[1:], strict=False):
        assert len(flat[after] - flat[before]) == 1
    for name in CNN.LEFT_OUT:
        assert len(flat["+ AutoAugment"] - flat[name]) == 1 and not flat[name] - flat["+ AutoAugment"]
    assert "SE" not in dict(flat["+ AutoAugment"]).values()  # as in the paper's E11


# ------------------------------------------------------------------------------------------------------ measures


class AtPixel(nn.Module):
    """Says class 0 where red at row 8, column 5 is above the mean, else class 1."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x):
        spot = self.slope * x[:, 0, 8, 5]
        rest = torch.full((len(x), 8), -9.0)
        return torch.cat([spot[:, None], -spot[:, None], rest], 1)


def above(data, images, row=8, column=5):
    return data.normalize(images)[:, 0, row, column] > 0


@holds(
    CNN,
    {
        "moved once only": ("for step in ((1, 0), (0, 1))]", "for step in ((1, 0), (1, 0))]"),
        "training images": ("x = data.test.images[:images]", "x = data.train.images[:images]"),
        "the share that stays": ("step != still for step in steps", "step == still for step in steps"),
    },
)
def test_flips(code):
    """What moves to the right brings the pixel on its left to the place that is looked at."""
    data, x = small_data(100), random_images(100, 16, seed=7)
    data = replace(data, test=Split(x, data.train.targets))
    still = above(data, x)
    changed = (above(data, x, 8, 4) != still).sum() + (above(data, x, 7, 5) != still).sum()
    assert code.flips(AtPixel(), data) == pytest.approx(int(changed) / 200)


@holds(
    CNN,
    {
        "corruptions of training images": (
            "originals = data.test.images[:images]",
            "originals = data.train.images[:images]",
        ),
        "the mildest severity only": ("found[kind] = sum(errors) / len(errors)", "found[kind] = errors[0]"),
    },
)
def test_corruption_errors(code):
    data = small_data(80)
    versions = code.corrupted(data)
    assert list(versions) == ["noise", "blur", "contrast", "JPEG"]
    assert torch.equal(versions["contrast"][2], code.faded(data.test.images, 0.2))
    found = code.corruption_errors(AtPixel(), data)
    for kind, images in versions.items():
        wrong = [(above(data, x) != (data.test.targets == 0)) | (data.test.targets > 1) for x in images]
        assert found[kind] == pytest.approx(float(torch.stack(wrong).float().mean())), kind


@holds(
    CNN,
    {
        "the test images twice": (
            "seen = train.predict(model, data, data.train.images[:500])",
            "seen = train.predict(model, data, data.test.images[:500])",
        ),
        "confidence in the truth": ("logits.softmax(1).max(1).values.mean()", "logits.softmax(1)[:, 0].mean()"),
    },
)
def test_scores(code):
    data, model = small_data(90), AtPixel()
    found = code.scores(model, data)
    logits = model(data.normalize(data.test.images)).detach()
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == data.test.targets).float().mean()))
    seen = model(data.normalize(data.train.images)).argmax(1)
    assert found["train_accuracy"] == pytest.approx(float((seen == data.train.targets).float().mean()))
    assert found["confidence"] == pytest.approx(float(logits.softmax(1).amax(1).mean()), abs=1e-5)
    assert found["flips"] == code.flips(model, data)
    assert {kind: found[kind] for kind in code.CORRUPTIONS} == code.corruption_errors(model, data)


class Measured:
    """Stands for a study: two arms, two seeds."""

    def __init__(self, errors):
        self.errors = errors

    def values(self, arm, kind):
        return self.errors[arm][kind]

    def mean(self, arm, kind):
        return sum(self.errors[arm][kind]) / 2, 0.0


@holds(CNN, {"the base of another study": ('study.mean("ResNet-8", kind)', 'STUDY.mean("ResNet-8", kind)')})
def test_mces(code):
    kinds = list(code.CORRUPTIONS)
    plain = {kind: [0.4, 0.6] for kind in kinds}
    other = plain | {kinds[0]: [0.25, 0.75]}
    study = Measured({"ResNet-8": plain, "other": other})
    assert code.mces(study, "ResNet-8") == pytest.approx([80, 120])
    assert code.mces(study, "other") == pytest.approx([(0.5 + 3 * 0.8) / 4 * 100, (1.5 + 3 * 1.2) / 4 * 100])


@holds(
    CNN,
    {
        "the narrow network": ("model = small_network(**tweaks, width=width)", "model = small_network(**tweaks)"),
        "the regularisers forgotten": (
            "    train_assembled(model, data, epochs=epochs, seed=seed, teacher=teacher, **recipe)\n"
            "    return scores(model, data)\n\n\nOVERFIT",
            "    train_assembled(model, data, epochs=epochs, seed=seed, teacher=teacher)\n"
            "    return scores(model, data)\n\n\nOVERFIT",
        ),
    },
)
def test_long_training(code):
    """A run of the study of networks that overfit: three times as wide, with its arm's regularisers, from its seed."""
    calls, plain = [], code.train_assembled
    code.train_assembled = lambda model, data, **settings: calls.append((model, settings))
    arm = {"tweaks": {"d": True}, "recipe": {"epsilon": 0.5}}
    try:
        first = code.train_long(small_data(60), seed=2, **arm)
        torch.manual_seed(99)
        assert first == code.train_long(small_data(60), seed=2, **arm)
    finally:
        code.train_assembled = plain
    model, settings = calls[0]
    assert model.conv1.out_channels == 24 and isinstance(model.layer2[0].downsample.pool, nn.AvgPool2d)
    assert settings == {"epochs": 60, "seed": 2, "teacher": None, "epsilon": 0.5}
    assert set(first) == {"accuracy", "train_accuracy", "confidence", "calibration_error", "flips", *code.CORRUPTIONS}


@holds(
    CNN,
    {
        "another start": (
            "    train.set_seed(seed)\n    model = small_network(**tweaks)\n",
            "    model = small_network(**tweaks)\n",
        ),
        "eight epochs whatever the arm says": (
            "epochs=epochs, seed=seed, teacher=teacher, **recipe)\n    return scores(model, data)\n\n\n# %% tags",
            "epochs=8, seed=seed, teacher=teacher, **recipe)\n    return scores(model, data)\n\n\n# %% tags",
        ),
    },
)
def test_short_training(code):
    """A run of the ladder: the narrow network, from its seed, with its arm's regularisers."""
    calls, plain = [], code.train_assembled
    code.train_assembled = lambda model, data, **settings: calls.append((model, settings))
    arm = {"tweaks": {"blur": True}, "recipe": {"mixing": True}, "epochs": 24}
    try:
        first = code.train_arm(small_data(60), seed=1, **arm)
        torch.manual_seed(99)
        assert first == code.train_arm(small_data(60), seed=1, **arm)
    finally:
        code.train_assembled = plain
    model, settings = calls[0]
    assert model.conv1.out_channels == 8 and isinstance(model.layer2[0].blur, code.BlurPool)
    assert settings == {"epochs": 24, "seed": 1, "teacher": None, "mixing": True}


def test_networks_of_studies_and_weights():
    assert CNN.small_network().conv1.out_channels == 8
    network = CNN.named_network()
    assert network(noise(2, 3, 32, 48)).shape == (2, len(CNN.naming.CLASSES))
    assert isinstance(network.layer3[0].conv1, CNN.SelectiveKernel)
    assert "anti-aliasing alone" not in CNN.OVERFIT.arms and len(CNN.OVERFIT.arms) == len(CNN.ARMS) - 1


# ------------------------------------------------------------------------------------------------------ exercises

CHECK_POOL, CHECK_REMAINDER, POOL, REMAINDER, _, _ = from_cells(
    CNN,
    "check_blurred_maximum",
    "check_remainder",
    "blurred_maximum_solution",
    "remainder_solution",
    "natural_noise",
    "relative_change",
)


def by_shifts(x):
    """Another right answer: the maximum of four shifted maps, then a strided convolution."""
    wide = F.pad(x, (0, 1, 0, 1))
    across = torch.maximum(wide[..., :-1], wide[..., 1:])
    largest = torch.maximum(across[:, :, :-1], across[:, :, 1:])
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(x.shape[1], 1, 3, 3) / 16
    return F.conv2d(F.pad(largest, [1] * 4, mode="reflect"), kernel, stride=2, groups=x.shape[1])


def blur_after_the_subsampling(x):
    return CNN.BlurPool(x.shape[1], stride=1)(F.max_pool2d(x, 2))


def plain_maximum(x):
    return F.max_pool2d(x, 2)


def mean_instead(x):
    return F.avg_pool2d(x, 2)


def padded_on_the_left(x):
    return CNN.BlurPool(x.shape[1])(F.max_pool2d(F.pad(x, (1, 0, 1, 0)), 2, stride=1))


def blurred_with_zeros_outside(x):
    largest = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)
    return F.conv2d(largest, CNN.BlurPool(x.shape[1]).kernel, stride=2, padding=1, groups=x.shape[1])


def without_padding(x):
    return CNN.BlurPool(x.shape[1])(F.max_pool2d(x, 2, stride=1))[:, :, :-1, :-1]


@pytest.mark.parametrize("answer", [POOL, by_shifts])
def test_right_pools(answer):
    CHECK_POOL(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (blur_after_the_subsampling, "adds up to 1 after the blur and stride 2"),
        (plain_maximum, "only then keep every second position"),
        (mean_instead, "a single 1 becomes four by the maximum"),
        (padded_on_the_left, "looking right and down"),
        (blurred_with_zeros_outside, "a constant map must stay constant"),
        (without_padding, "the map must be halved"),
    ],
)
def test_wrong_pools_get_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_POOL(answer)


def from_sums(base, everything, left_out):
    """Another right answer."""
    count, others = len(left_out), sum(left_out.values())
    return {name: everything - left_out[name] for name in left_out}, others - base - (count - 1) * everything


def over_the_base(base, everything, left_out):
    worth = {name: accuracy - base for name, accuracy in left_out.items()}
    return worth, everything - base - sum(worth.values())


def the_other_sign(base, everything, left_out):
    worth, rest = REMAINDER(base, everything, left_out)
    return worth, -rest


def never_negative(base, everything, left_out):
    worth, rest = REMAINDER(base, everything, left_out)
    return worth, abs(rest)


def without_the_base(base, everything, left_out):
    worth = {name: everything - accuracy for name, accuracy in left_out.items()}
    return worth, everything - sum(worth.values())


@pytest.mark.parametrize("answer", [REMAINDER, from_sums])
def test_right_remainders(answer):
    CHECK_REMAINDER(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (over_the_base, "without b there is 0.65"),
        (the_other_sign, "replace each other leave all"),
        (never_negative, "need each other are counted twice"),
        (without_the_base, "nothing should remain"),
    ],
)
def test_wrong_remainders_get_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_REMAINDER(answer)
