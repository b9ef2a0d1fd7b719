"""Chapter 2: the paper's counts, torchvision's answers, and what a block does; then mutants of the chapter's code."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toys import chapter_tests, noise, on_meta, random_images

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


def check_imagenet_parameters(code):
    for depth, (parameters, _, _) in IMAGENET.items():
        for placement in ("v1", "v1.5"):
            assert inspect.count_parameters(imagenet(code, depth, placement)) == parameters


def check_imagenet_multiply_adds(code):
    for depth, (_, millions, paper) in IMAGENET.items():
        v1, v15 = (inspect.count_macs(imagenet(code, depth, placement), IMAGE) for placement in ("v1", "v1.5"))
        assert round(v15 / 1e6) == millions
        assert -0.05 < v1 / 1e9 - paper < 0.1  # the paper rounds some rows and cuts others off
        assert (v15 > v1) == (depth >= 50)


def check_cifar_counts(code):
    for depth, (a, b, millions) in CIFAR.items():
        assert inspect.count_parameters(on_meta(code.CifarResNet, depth)) == a
        assert inspect.count_parameters(on_meta(code.CifarResNet, depth, option="B")) == b
        macs = inspect.count_macs(on_meta(code.CifarResNet, depth), (3, 32, 32))
        assert round(macs / 1e6, 2) == millions


def check_depth(code):
    for depth in (20, 56):
        model = on_meta(code.CifarResNet, depth)
        assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == depth


def check_option_a(code):
    x = noise(2, 4, 6, 6)
    y = code.shortcut("A", 4, 7, 2)(x)
    assert torch.equal(y[:, :4], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert y.shape == (2, 7, 3, 3) and not y[:, 4:].any()
    assert code.shortcut("A", 4, 4, 1)(x) is x and code.shortcut("B", 4, 4, 1)(x) is x


def check_option_b(code):
    convolution, norm = code.shortcut("B", 4, 8, 2)
    assert convolution.weight.shape == (8, 4, 1, 1) and convolution.stride == (2, 2) and convolution.bias is None
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(code.shortcut("B", 4, 8, 1), nn.Sequential)  # other channels at the same size, too


def check_projections(code):
    """How many of the eight blocks of ResNet-18 have a projection."""
    for option, expected in {None: 0, "A": 0, "B": 3, "C": 8}.items():
        model = on_meta(code.ResNet, *code.RESNETS[18], option=option)
        assert sum(name.endswith("downsample.0.weight") for name in model.state_dict()) == expected


def check_copy(code):
    """Nothing is left of a block but its last ReLU when F is multiplied by zero."""
    x = noise(2, 16, 6, 6)
    for block, last in ((code.BasicBlock(16, 16), "bn2"), (code.Bottleneck(16, 4), "bn3")):
        nn.init.zeros_(getattr(block, last).weight)
        assert torch.equal(block(x), x.relu())


def check_block(code):
    x = noise(2, 4, 6, 6)
    block = code.BasicBlock(4, 8, 2, option="A")
    inner = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    residual = block.bn2(F.conv2d(inner, block.conv2.weight, padding=1))
    expected = F.relu(residual + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)))
    assert torch.allclose(block(x), expected, atol=1e-6)
    block.downsample = None
    assert torch.allclose(block(x), F.relu(residual), atol=1e-6)


def check_plain(code):
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


def check_initialisation(code):
    torch.manual_seed(0)
    layer = code.CifarResNet(8, width=32).layer2[0].conv1  # 32 to 64 channels
    assert abs(float(layer.weight.detach().std()) / (2 / (9 * 32)) ** 0.5 - 1) < 0.05


def check_parity(code):
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


def check_halving(code):
    images = random_images(3, 32)
    small, mean = code.halve(images), F.avg_pool2d(images.float(), 2)
    assert small.dtype == torch.uint8 and small.shape == (3, 3, 16, 16)
    assert torch.equal(small.float(), (mean + 0.5).floor())


def check_gradients(code):
    torch.manual_seed(0)
    model = code.CifarResNet(8, width=4).double().eval()
    images, labels = noise(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(model(images), labels).backward()
    expected = [float(p.grad.norm()) for name, p in model.named_parameters() if "conv" in name]
    assert code.gradient_norms(model, images, labels) == pytest.approx(expected)
    step = 1e-6 * noise(4, 3, 8, 8).double()
    change = (model(images + step) - model(images - step))[:, 0] / 2
    assert torch.allclose((code.input_gradients(model, images) * step).sum((1, 2, 3)), change, rtol=1e-3)


def check_without_batch_norm(code):
    model = code.without_batch_norm(code.CifarResNet(8, option="B"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(noise(2, 3, 16, 16)).shape == (2, 10)


# ------------------------------------------------------------------------------------------------------ mutants

MUTANTS = {
    "option A takes the odd pixels": ("x[:, :, :: self.stride", "x[:, :, self.stride - 1 :: self.stride", "option_a"),
    "option A puts the zeros first": ("(0, 0, 0, 0, 0, self", "(0, 0, 0, 0, self", "option_a"),
    "the shortcut is subtracted": ("y = y + self.downsample(x)", "y = y - self.downsample(x)", "parity"),
    "no ReLU after the addition": ("        return self.relu(y)", "        return y", "copy"),
    "ReLU before the addition": ("y = self.branch(x)", "y = self.relu(self.branch(x))", "block"),
    "placements swapped": ('if placement == "v1" else', 'if placement != "v1" else', "imagenet_multiply_adds"),
    "a bottleneck without its middle ReLU": (
        "x = self.relu(self.bn2(self.conv2(x)))",
        "x = self.bn2(self.conv2(x))",
        "parity",
    ),
    "projections without stride": ("nn.Conv2d(before, after, 1, stride,", "nn.Conv2d(before, after, 1, 1,", "option_b"),
    "option B projects for a new size only": ("before == after and stride == 1", "stride == 1", "option_b"),
    "option C only where the shape changes": (
        'option == "C" or (option == "B" and',
        '(option in "BC" and',
        "projections",
    ),
    "plain networks keep their shortcuts": ("option if residual else None", "option", "plain"),
    "pooling without overlap": ("nn.MaxPool2d(3, stride=2, padding=1)", "nn.MaxPool2d(2)", "parity"),
    "a block too many": ("range(count - 1)", "range(count)", "depth"),
    "other first weights": (
        "kaiming_normal_(module.weight)",
        'kaiming_normal_(module.weight, mode="fan_out")',
        "initialisation",
    ),
    "no bias in the linear layer": (
        "nn.Linear(512 * wide, classes)",
        "nn.Linear(512 * wide, classes, bias=False)",
        "imagenet_parameters",
    ),
    "option B for CIFAR": ('width=16, option="A"', 'width=16, option="B"', "cifar_counts"),
    "batch normalisation stays": ("setattr(module, name, nn.Identity())", "pass", "without_batch_norm"),
    "halving rounds down": ("(some + 2) // 4", "some // 4", "halving"),
    "gradient of all logits": ("[:, 0].sum()", ".sum()", "gradients"),
}

test_chapter, test_mutant_is_noticed = chapter_tests(RESNET, globals(), MUTANTS)


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
