"""Chapter 2: the paper's counts, torchvision's answers, what a block does and what is measured at it; exercises."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toys import dataset_of, from_cells, generator, holds, noise, on_meta, random_images

from helpers import inspect, train
from helpers.chapters import chapter

RESNET = chapter("02_resnet")
IMAGE = (3, 224, 224)

# parameters, multiply-adds of v1.5 in millions (torchvision's networks), giga multiply-adds in the paper's Table 1
IMAGENET = {
    18: (11_689_512, 1_814, 1.8),
    34: (21_797_672, 3_664, 3.6),
    50: (25_557_032, 4_089, 3.8),
    101: (44_549_160, 7_801, 7.6),
    152: (60_192_808, 11_514, 11.3),
}
# parameters with options A and B, million multiply-adds
CIFAR = {
    20: (269_722, 272_474, 40.55),
    32: (464_154, 466_906, 68.86),
    44: (658_586, 661_338, 97.17),
    56: (853_018, 855_770, 125.49),
    110: (1_727_962, 1_730_714, 252.89),
}


def imagenet(code, depth, placement="v1"):
    block, layers = code.RESNETS[depth]
    settings = {"placement": placement} if block is code.Bottleneck else {}
    return on_meta(code.ResNet, block, layers, **settings)


# ------------------------------------------------------------------ checks of the code, each a function of a module


@holds(
    RESNET,
    {"no bias in the linear layer": ("nn.Linear(512 * wide, classes)", "nn.Linear(512 * wide, classes, bias=False)")},
)
def test_imagenet_parameters(code):
    for depth, (parameters, _, _) in IMAGENET.items():
        for placement in ("v1", "v1.5"):
            assert inspect.count_parameters(imagenet(code, depth, placement)) == parameters


@holds(
    RESNET,
    {"placements swapped": ('if placement == "v1" else', 'if placement != "v1" else')},
)
def test_imagenet_multiply_adds(code):
    for depth, (_, millions, paper) in IMAGENET.items():
        v1, v15 = (inspect.count_macs(imagenet(code, depth, placement), IMAGE) for placement in ("v1", "v1.5"))
        assert round(v15 / 1e6) == millions
        assert -0.05 < v1 / 1e9 - paper < 0.1  # the paper rounds some rows and cuts others off
        assert (v15 > v1) == (depth >= 50)


@holds(
    RESNET,
    {"option B for CIFAR": ('width=16, option="A"', 'width=16, option="B"')},
)
def test_cifar_counts(code):
    for depth, (a, b, millions) in CIFAR.items():
        assert inspect.count_parameters(on_meta(code.CifarResNet, depth)) == a
        assert inspect.count_parameters(on_meta(code.CifarResNet, depth, option="B")) == b
        macs = inspect.count_macs(on_meta(code.CifarResNet, depth), (3, 32, 32))
        assert round(macs / 1e6, 2) == millions


@holds(
    RESNET,
    {"a block too many": ("range(count - 1)", "range(count)")},
)
def test_depth(code):
    for depth in (20, 56):
        model = on_meta(code.CifarResNet, depth)
        assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == depth


@holds(
    RESNET,
    {
        "option A takes the odd pixels": ("x[:, :, :: self.stride", "x[:, :, self.stride - 1 :: self.stride"),
        "option A puts the zeros first": ("(0, 0, 0, 0, 0, self", "(0, 0, 0, 0, self"),
    },
)
def test_option_a(code):
    x = noise(2, 4, 6, 6)
    y = code.shortcut("A", 4, 7, 2)(x)
    assert torch.equal(y[:, :4], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert y.shape == (2, 7, 3, 3) and not y[:, 4:].any()
    assert code.shortcut("A", 4, 4, 1)(x) is x and code.shortcut("B", 4, 4, 1)(x) is x


@holds(
    RESNET,
    {
        "projections without stride": ("nn.Conv2d(before, after, 1, stride,", "nn.Conv2d(before, after, 1, 1,"),
        "option B projects for a new size only": ("before == after and stride == 1", "stride == 1"),
    },
)
def test_option_b(code):
    convolution, norm = code.shortcut("B", 4, 8, 2)
    assert convolution.weight.shape == (8, 4, 1, 1) and convolution.stride == (2, 2) and convolution.bias is None
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(code.shortcut("B", 4, 8, 1), nn.Sequential)  # other channels at the same size, too


@holds(
    RESNET,
    {
        "option C only where the shape changes": (
            'option == "C" or (option == "B" and',
            '(option in "BC" and',
        )
    },
)
def test_projections(code):
    """How many of the eight blocks of ResNet-18 have a projection."""
    for option, expected in {None: 0, "A": 0, "B": 3, "C": 8}.items():
        model = on_meta(code.ResNet, *code.RESNETS[18], option=option)
        assert sum(name.endswith("downsample.0.weight") for name in model.state_dict()) == expected


@holds(
    RESNET,
    {"no ReLU after the addition": ("        return self.relu(y)", "        return y")},
)
def test_copy(code):
    """Nothing is left of a block but its last ReLU when F is multiplied by zero."""
    x = noise(2, 16, 6, 6)
    for block, last in ((code.BasicBlock(16, 16), "bn2"), (code.Bottleneck(16, 4), "bn3")):
        nn.init.zeros_(getattr(block, last).weight)
        assert torch.equal(block(x), x.relu())


@holds(
    RESNET,
    {"ReLU before the addition": ("y = self.branch(x)", "y = self.relu(self.branch(x))")},
)
def test_block(code):
    x = noise(2, 4, 6, 6)
    block = code.BasicBlock(4, 8, 2, option="A")
    inner = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    residual = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
    expected = F.relu(residual + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)))
    assert torch.allclose(block(x), expected, atol=1e-6)
    block.downsample = None
    assert torch.allclose(block(x), F.relu(residual), atol=1e-6)


@holds(
    RESNET,
    {"plain networks keep their shortcuts": ("option if residual else None", "option")},
)
def test_plain(code):
    """Without shortcuts the same weights, drawn in the same order, and another function."""
    networks = []
    for residual in (True, False):
        torch.manual_seed(0)
        networks.append(code.CifarResNet(8, width=4, residual=residual).eval())
    with_shortcut, plain = networks
    a, b = with_shortcut.state_dict(), plain.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    x = noise(2, 3, 16, 16)
    assert not torch.allclose(with_shortcut(x), plain(x), atol=1e-2)


@holds(
    RESNET,
    {"other first weights": ("kaiming_normal_(module.weight)", 'kaiming_normal_(module.weight, mode="fan_out")')},
)
def test_initialisation(code):
    torch.manual_seed(0)
    layer = code.CifarResNet(8, width=32).layer2[0].conv1  # 32 to 64 channels
    assert abs(float(layer.weight.detach().std()) / (2 / (9 * 32)) ** 0.5 - 1) < 0.05


@holds(
    RESNET,
    {
        "the shortcut is subtracted": ("y = y + self.downsample(x)", "y = y - self.downsample(x)"),
        "a bottleneck without its middle ReLU": (
            "x = self.relu(self.bn2(self.conv2(x)))",
            "x = self.bn2(self.conv2(x))",
        ),
        "pooling without overlap": (
            "nn.MaxPool2d(3, stride=2, padding=1)\n        # 56",
            "nn.MaxPool2d(2)\n        # 56",
        ),
    },
)
def test_parity(code):
    """Same names, same weights, same answers as torchvision; for v1 its stride is moved to where the paper has it."""
    x = noise(2, 3, 64, 64).double()
    for depth, placement in ((18, "v1"), (50, "v1.5"), (50, "v1")):
        block, layers = code.RESNETS[depth]
        settings = {"placement": placement} if depth == 50 else {}
        torch.manual_seed(0)
        ours = code.shake_batch_norms(code.ResNet(block, layers, **settings)).double().eval()
        theirs = on_meta(getattr(torchvision.models, f"resnet{depth}"))
        if placement == "v1" and depth == 50:
            for module in theirs.modules():
                if isinstance(module, torchvision.models.resnet.Bottleneck):
                    module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        theirs.load_state_dict(ours.state_dict(), assign=True)
        with torch.inference_mode():
            a, b = ours(x), theirs.eval()(x)
        assert a.std() > 1e-3 and (a[0] - a[1]).abs().max() > 1e-3
        assert (a - b).abs().max() < 1e-12 * b.abs().max()


@holds(
    RESNET,
    {
        "halving rounds down": ("(some + 2) // 4", "some // 4"),
        "height for width": (
            "images.view(-1, channels, height // 2, 2, width // 2, 2)",
            "images.view(-1, channels, width // 2, 2, height // 2, 2)",
        ),
    },
)
def test_halving(code):
    images = random_images(3, 32, 20)
    small, mean = code.halve(images), F.avg_pool2d(images.float(), 2)
    assert small.dtype == torch.uint8 and small.shape == (3, 3, 16, 10)
    assert torch.equal(small.float(), (mean + 0.5).floor())


@holds(
    RESNET,
    {"gradient of all logits": ("[:, 0].sum()", ".sum()")},
)
def test_gradients(code):
    torch.manual_seed(0)
    model = code.CifarResNet(8, width=4).double().eval()
    images, labels = noise(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(model(images), labels).backward()
    expected = [float(p.grad.norm()) for name, p in model.named_parameters() if "conv" in name]
    assert code.gradient_norms(model, images, labels) == pytest.approx(expected)
    step = 1e-6 * noise(4, 3, 8, 8).double()
    change = (model(images + step) - model(images - step))[:, 0] / 2
    assert torch.allclose((code.input_gradients(model, images) * step).sum((1, 2, 3)), change, rtol=1e-3)


@holds(
    RESNET,
    {"batch normalisation stays": ("setattr(module, name, nn.Identity())", "pass")},
)
def test_without_batch_norm(code):
    model = code.without_batch_norm(code.CifarResNet(8, option="B"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(noise(2, 3, 16, 16)).shape == (2, 10)


# ------------------------------------------------------------------------------------------------------ errors


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="none of A, B, C"):
        RESNET.BasicBlock(4, 8, option="D")
    with pytest.raises(ValueError, match='neither "v1" nor "v1.5"'):
        RESNET.Bottleneck(4, 8, placement="v2")
    for depth in (2, 18, 34):
        with pytest.raises(ValueError, match="6n \\+ 2"):
            RESNET.CifarResNet(depth)


def test_the_paper_schedule_is_steps():
    factor = train.SCHEDULES["steps"]
    drops = [step for step in range(1, 64_000) if factor(step / 64_000) != factor((step - 1) / 64_000)]
    assert drops == [32_000, 48_000] and factor(0) == 1 and factor(63_999 / 64_000) == pytest.approx(0.01)


def test_arms_of_the_study_cost_the_same():
    for depth in (20, 56):
        pair = [RESNET.CifarResNet(width=8, **RESNET.ARMS[f"{kind}-{depth}"]) for kind in ("plain", "ResNet")]
        assert len({inspect.count_parameters(model) for model in pair}) == 1
        assert len({inspect.count_macs(model, (3, 16, 16)) for model in pair}) == 1


# ------------------------------------------------------------------------------------------------ what is measured


def odd_data(n=96):
    """Training and test images of 16 pixels that differ, with labels of their own."""
    return dataset_of(random_images(n, 16), torch.randint(0, 10, (n,), generator=generator()))


@holds(
    RESNET,
    {
        "the error of test images": ("data.train.targets[:images])", "data.test.targets[:images])"),
        "right ones are counted": ("error = 1 - metrics", "error = metrics"),
        "all images": (
            "data.train.images[:images])\n    error = 1 - metrics.accuracy(logits, data.train.targets[:images])",
            "data.train.images)\n    error = 1 - metrics.accuracy(logits, data.train.targets)",
        ),
    },
)
def test_training_error(code):
    data = odd_data()
    torch.manual_seed(0)
    model = code.CifarResNet(8, width=4).eval()
    found = code.with_training_error(model, data, images=50)
    with torch.inference_mode():
        wrong = [
            (model(data.normalize(split.images)).argmax(1) != split.targets).float()
            for split in (data.train, data.test)
        ]
    assert found["train_error"] == pytest.approx(float(wrong[0][:50].mean()), abs=1e-6)
    assert found["test_accuracy"] == pytest.approx(1 - float(wrong[1].mean()), abs=1e-6)


@holds(
    RESNET,
    {
        "gradients of what leaves": (
            "register_forward_pre_hook(lambda _, given: maps.append(given[0]))",
            "register_forward_hook(lambda _, given, made: maps.append(made))",
        ),
        "deviations of the gradients": (
            "[float(m.detach().std()) for m in maps]",
            "[float(g.std()) for g in gradients]",
        ),
        "hooks stay": ("        handle.remove()", "        pass"),
    },
)
def test_through_blocks(code):
    """Against a network written out: two blocks, without batch normalisation."""
    torch.manual_seed(0)
    model = code.without_batch_norm(code.CifarResNet(8, width=4))
    images, labels = noise(6, 3, 8, 10), torch.arange(6)
    signal, gradient = code.through_blocks(model, images, labels)
    assert len(signal) == len(gradient) == 3
    entering, maps = F.relu(F.conv2d(images, model.conv1.weight, padding=1)), []
    for block in (model.layer1[0], model.layer2[0], model.layer3[0]):
        entering = entering.detach().requires_grad_() if not maps else entering
        maps.append(entering)
        inner = F.relu(F.conv2d(entering, block.conv1.weight, stride=block.conv1.stride, padding=1))
        entering = F.relu(F.conv2d(inner, block.conv2.weight, padding=1) + block.downsample(entering))
    loss = F.cross_entropy(model.fc(entering.mean((2, 3))), labels)
    assert signal == pytest.approx([float(m.detach().std()) for m in maps], rel=1e-5)
    assert gradient == pytest.approx([float(g.norm()) for g in torch.autograd.grad(loss, maps)], rel=1e-4)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_sum_of_weight_times_gradient_is_the_same_in_every_layer():
    """What the chapter says about weights in a chain of convolutions and ReLUs."""
    torch.manual_seed(0)
    model = RESNET.without_batch_norm(RESNET.CifarResNet(20, width=4, residual=False)).double()
    loss = F.cross_entropy(model(noise(4, 3, 8, 8).double()), torch.arange(4))
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    sums = [float((w * g).detach().sum()) for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    assert sums == pytest.approx([sums[0]] * 19, rel=1e-9) and abs(sums[0]) > 0


def test_shaken_batch_norms_are_moderate():
    model = RESNET.shake_batch_norms(RESNET.CifarResNet(8, width=32))
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.detach(), norm.running_var):
            assert 0.7 <= tensor.min() < 0.8 and 1.2 < tensor.max() <= 1.3
        for tensor in (norm.bias.detach(), norm.running_mean):
            assert 0.05 < tensor.std() < 0.15


@holds(
    RESNET,
    {
        "training images stay large": ('("train", data.train), ("test", data.test)', '("test", data.test),'),
        "the provenance keeps silent": ("provenance=note", "provenance=data.provenance"),
    },
)
def test_at_16_pixels(code):
    data = dataset_of(random_images(4, 32), torch.arange(4))
    small = code.at_16_pixels(data)
    for split, before in ((small.train, data.train), (small.test, data.test)):
        assert torch.equal(split.images, code.halve(before.images)) and torch.equal(split.targets, before.targets)
    assert "16x16" in str(small.provenance) and small.classes == data.classes


@holds(
    RESNET,
    {
        "the test error is the accuracy": ('f"test_error_{epoch}": 1 - accuracy', 'f"test_error_{epoch}": accuracy'),
        "only the end": ("eval_every=every", "eval_every=epochs"),
    },
)
def test_long_run_keeps_its_way(code):
    data = odd_data(64)
    arm = json.loads(json.dumps(code.LONG.arms["ResNet-20"])) | {"depth": 8, "epochs": 3}
    run = code.train_long(data, seed=0, **arm, every=2)
    assert {f"{kind}_error_{epoch}" for kind in ("train", "test") for epoch in (2, 3)} <= run.keys()
    assert run["train_error_3"] == run["train_error"] and run["test_error_3"] == pytest.approx(1 - run["test_accuracy"])
    assert all(isinstance(value, float) and not math.isnan(value) for value in run.values())


def test_long_studies_are_as_long_as_they_say():
    steps = math.ceil(50_000 / 128)
    for study, wanted in ((RESNET.LONG, 16_000), (RESNET.FIGURE_6, 64_000)):
        assert study.arms.keys() == RESNET.ARMS.keys()
        for arm, config in study.arms.items():
            assert 0 <= steps * config["epochs"] - wanted < steps
            assert RESNET.ARMS[arm].items() <= config.items()
    # the last point of the figure is an evaluation at the end
    assert RESNET.FIGURE_6.arms["plain-20"]["epochs"] % 4 == 0


def test_one_run_of_the_study():
    run = RESNET.train_arm(odd_data(64), seed=1, depth=8, residual=False, epochs=1)
    assert run.keys() == {"train_loss", "train_error", "test_accuracy", "seconds"}
    assert RESNET.small_cifar10().train.images.shape[1:] == (3, 16, 16)


@holds(
    RESNET,
    {
        "the maps in the opposite order": (
            "return [c2, c3, c4, self.layer4(c4)]",
            "return [self.layer4(c4), c4, c3, c2]",
        ),
        "named by the second last": ("self.features(images)[-1].mean", "self.features(images)[-2].mean"),
        "no pooling": (
            "self.layer1(self.maxpool(self.bn1(self.conv1(images)).relu()))",
            "self.layer1(self.bn1(self.conv1(images)).relu())",
        ),
        "no ReLU before the pooling": ("self.bn1(self.conv1(images)).relu()))", "self.bn1(self.conv1(images))))"),
    },
)
def test_backbone(code):
    torch.manual_seed(0)
    model, images = code.Backbone().eval(), noise(2, 3, 64, 96)
    with torch.inference_mode():
        maps = model.features(images)
        assert [tuple(m.shape[1:]) for m in maps] == [
            (channels, 64 // stride, 96 // stride)
            for channels, stride in zip(code.CHANNELS, (4, 8, 16, 32), strict=True)
        ]
        stem = F.max_pool2d(F.relu(model.bn1(model.conv1(images))), 3, 2, 1)
        assert torch.allclose(maps[0], model.layer1(stem), atol=1e-6)
        assert torch.allclose(model(images), model.fc(maps[3].mean((2, 3))), atol=1e-6)


def test_trained_networks_are_declared():
    assert RESNET.TRAINED.untrained()(noise(1, 3, 64, 64)).shape == (1, 12)
    assert RESNET.BACKBONE.untrained()(noise(1, 3, 64, 64)).shape == (1, 12)
    assert hasattr(RESNET.TRAINED.untrained(), RESNET.TRAINED.layer)


def test_figures_of_the_paper_are_the_counts_or_have_a_remark():
    assert list(RESNET.NETWORKS.problems()) == []
    remarked = {RESNET.NETWORKS.label(variant) for variant in RESNET.NETWORKS if variant.differs()}
    assert remarked == {"ResNet-34, 224 px", "ResNet-50, 224 px"}


# ------------------------------------------------------------------------------------------------------ exercises

check_count, count_solution, check_pre_activation = from_cells(
    RESNET, "check_count", "count_solution", "check_pre_activation"
)


def count_by_formula(layers, classes):
    """Another right answer: blocks of a stage at once."""
    total, before = 3 * 64 * 49 + 128, 64
    for blocks, c in zip(layers, (64, 128, 256, 512), strict=True):
        inner = 9 * c * c + 4 * c * c + 4 * c + 8 * c
        total += blocks * inner + before * c + max(blocks - 1, 0) * 4 * c * c + (before * 4 * c + 8 * c) * (blocks > 0)
        total -= before * c * (blocks == 0)
        before = 4 * c if blocks else before
    return total + 2049 * classes


def count_wrong(layers, classes, norm=2, projections="first", bias=1, width=4, middle=3):
    total, before = 3 * 64 * 49 + norm * 64, 64
    for blocks, c in zip(layers, (64, 128, 256, 512), strict=True):
        for position in range(blocks):
            total += before * c + middle**2 * c * c + 4 * c * c + norm * 6 * c
            if projections == "all" or (projections == "first" and position == 0):
                total += before * 4 * c + norm * 4 * c
            before = width * c
    return total + (2048 + bias) * classes


@pytest.mark.parametrize("answer", [count_solution, count_by_formula])
def test_right_counts_pass(answer):
    check_count(answer)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"bias": 0}, "a class more is 2,049"),
        ({"norm": 0}, "ResNet-50 has"),
        ({"norm": 4}, "ResNet-50 has"),
        ({"projections": "all"}, "ResNet-50 has"),
        ({"projections": "none"}, "ResNet-50 has"),
    ],
)
def test_wrong_counts_are_told_why(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        check_count(lambda layers, classes: count_wrong(layers, classes, **wrong))


class Parts(nn.Module):
    """The four parts of exercise 4; `order` says what happens to x."""

    bias = False

    def __init__(self, channels):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=self.bias)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=self.bias)


class Right(Parts):
    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


class RightInSteps(Parts):
    def forward(self, x):
        y = x
        for norm, convolution in ((self.bn1, self.conv1), (self.bn2, self.conv2)):
            y = convolution(F.relu(norm(y)))
        return y.add(x)


class PostActivation(Parts):
    def forward(self, x):
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class FinalReLU(Right):
    def forward(self, x):
        return super().forward(x).relu()


class ActivatedShortcut(Parts):
    def forward(self, x):
        x = self.bn1(x).relu()
        return x + self.conv2(self.bn2(self.conv1(x)).relu())


class ReLUFirst(Parts):
    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x.relu())).relu()))


class NoMiddleReLU(Parts):
    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())))


class WithBias(Right):
    bias = True


class NoPadding(Parts):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv1.padding = self.conv2.padding = (0, 0)

    def forward(self, x):
        return self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu()) + x[:, :, 2:-2, 2:-2]


@pytest.mark.parametrize("answer", [Right, RightInSteps])
def test_right_blocks_pass(answer):
    check_pre_activation(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (PostActivation, "the block must copy"),
        (FinalReLU, "the block must copy"),
        (ActivatedShortcut, "the block must copy"),
        (ReLUFirst, "after its BN and its ReLU"),
        (NoMiddleReLU, "after its BN and its ReLU"),
        (WithBias, "304 parameters"),
        (NoPadding, "the shape must stay"),
    ],
)
def test_wrong_blocks_are_told_why(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check_pre_activation(answer)


@holds(
    RESNET,
    {
        "the last epoch alone": ("return naming.scores(model, data)", "return {}"),
        "without a cutout": ("shift=8, cutout=24", "shift=8"),
    },
)
def test_what_the_backbone_learns(code):
    calls = []
    code.train = SimpleNamespace(**vars(train) | {"fit": lambda *given, **recipe: calls.append((given, recipe))})
    code.naming = SimpleNamespace(scores=lambda *given: {"given": given})
    assert code.learn_backbone("network", "pictures", epochs=3) == {"given": ("network", "pictures")}
    ((given, recipe),) = calls
    assert given == ("network", "pictures") and recipe["epochs"] == 3
    assert recipe["augment"] == train.Augment(shift=8, cutout=24)
