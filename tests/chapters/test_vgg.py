"""Chapter 1: torchvision's counts and answers, formulas, receptive fields by gradient; then mutants of the code."""

import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import vgg as reference
from toys import dataset_of, from_cells, generator, holds, noise, on_meta, random_images

from helpers import inspect, train
from helpers.chapters import chapter

VGG = chapter("01_vgg")

BATCH_NORM = """                if batch_norm:
                    layers.append(nn.BatchNorm2d(out))
"""
RELU = "                layers.append(nn.ReLU(inplace=True))\n"
HIDDEN = "nn.Linear(channels * size * size, hidden),\n            nn.ReLU(inplace=True),"


def random_state(model, seed=0):
    """A state for a network on the meta device in float64: He-scaled weights, and batch statistics far from 0 and 1."""
    state, draw = {}, generator(seed)
    for name, module in model.named_modules():
        for key, meta in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            normal = isinstance(module, (nn.Conv2d, nn.Linear)) and key == "weight"
            value = torch.empty(meta.shape, dtype=torch.float64 if meta.is_floating_point() else meta.dtype)
            if normal:
                # drawn in float32, which is faster; the sums are what needs float64
                value.copy_(torch.randn(meta.shape, generator=draw).mul_(math.sqrt(2 / meta[0].numel())))
            elif key in ("weight", "running_var"):
                value.uniform_(0.7, 1.3, generator=draw)
            elif key == "num_batches_tracked":
                value.zero_()
            else:
                value.normal_(0, 0.1, generator=draw)
            state[f"{name}.{key}" if name else key] = value
    return state


def give(model, values):
    """Hand `values` to the model, in order; tensors are shared, not copied."""
    old = model.state_dict()
    values = list(values)
    assert [tuple(a.shape) for a in old.values()] == [tuple(b.shape) for b in values], "other weights than expected"
    model.load_state_dict(dict(zip(old, values, strict=True)), assign=True)
    return model.eval()


def assert_equal_and_alive(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std(1).min() > 1e-2 * theirs.abs().mean() > 0, "a constant output compares nothing"
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


# ---------------------------------------------------------------------------------------------- checks

PARAMETERS = {"A": 132_863_336, "B": 133_047_848, "C": 133_638_952, "D": 138_357_544, "E": 143_667_240}
PARAMETERS_BN = {"A": 132_868_840, "D": 138_365_992, "E": 143_678_248}
WEIGHT_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}
GIGA_MACS = {"A": 7.609, "B": 11.308, "D": 15.470, "E": 19.632}


@holds(
    VGG,
    {
        "half the hidden width": ("hidden=4096", "hidden=2048"),
        "no batch normalisation": (BATCH_NORM, ""),
        "no bias": (
            "nn.init.zeros_(module.bias)",
            "module.bias = None if isinstance(module, nn.Conv2d) else nn.init.zeros_(module.bias)",
        ),
        "C with 3x3 for 1x1": ('256, 256, (256, 1), "M"', '256, 256, 256, "M"'),
        "E one layer short": ('"M", *4 * [512], "M"],', '"M", *3 * [512], "M"],'),
    },
)
def test_counts(m):
    for name, count in PARAMETERS.items():
        assert inspect.count_parameters(on_meta(m.VGG, m.CONFIGS[name])) == count
    for name, count in PARAMETERS_BN.items():
        assert inspect.count_parameters(on_meta(m.VGG, m.CONFIGS[name], batch_norm=True)) == count
    lrn, plain = (on_meta(m.VGG, m.CONFIGS[name]) for name in ("A-LRN", "A"))
    assert inspect.count_parameters(lrn) == inspect.count_parameters(plain)
    for name, depth in WEIGHT_LAYERS.items():
        network = on_meta(m.VGG, m.CONFIGS[name])
        assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in network.modules()) == depth


@holds(
    VGG,
    {"no padding": ("padding=kernel // 2", "padding=0")},
)
def test_macs(m):
    for name, giga in GIGA_MACS.items():
        assert abs(inspect.count_macs(on_meta(m.VGG, m.CONFIGS[name]), (3, 224, 224)) / 1e9 - giga) < 6e-4
    assert inspect.count_macs(on_meta(m.VGG, m.CONFIGS["D"]), (3, 224, 224)) == 15_470_264_320


@holds(
    VGG,
    {"batch normalisation after ReLU": (BATCH_NORM + RELU, RELU + BATCH_NORM)},
)
def test_features(m):
    """The convolutions equal torchvision's, with and without batch normalisation, in float64."""
    images = noise(2, 3, 64, 64, dtype=torch.float64)
    for name in ("A", "B", "D", "E"):
        for batch_norm in (False, True):
            theirs = on_meta(reference.make_layers, reference.cfgs[name], batch_norm)
            ours = on_meta(m.VGG, m.CONFIGS[name], batch_norm=batch_norm).features
            state = random_state(theirs)
            theirs.load_state_dict(state, assign=True)
            give(ours, state.values())
            with torch.inference_mode():
                assert_equal_and_alive(ours(images), theirs.eval()(images))


def forward_by_formula(config, weights, images):
    """A configuration without batch normalisation, from its description and a list of weights."""
    weights = iter(weights)
    for entry in config:
        if entry == "M":
            images = images.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        elif entry == "LRN":
            images = F.local_response_norm(images, 5, alpha=5e-4, beta=0.75, k=2.0)
        else:
            kernel = entry[1] if isinstance(entry, tuple) else 3
            images = F.conv2d(images, next(weights), next(weights), padding=(kernel - 1) // 2).clamp_min(0)
    hidden = (images.flatten(1) @ next(weights).T + next(weights)).clamp_min(0)
    hidden = (hidden @ next(weights).T + next(weights)).clamp_min(0)
    return hidden @ next(weights).T + next(weights)


CONFIGURATIONS = [
    [6, "M", 8, "M"],
    [6, (7, 1), "M", 8, (5, 5), "M"],
    [(6, 7), "LRN", "M", 8],
]


@holds(
    VGG,
    {
        "no ReLU after convolutions": (RELU, ""),
        "no pooling": ("layers.append(nn.MaxPool2d(2))", "pass"),
        "mean instead of maximum": ("nn.MaxPool2d(2)", "nn.AvgPool2d(2)"),
        "overlapping pooling": ("nn.MaxPool2d(2)", "nn.MaxPool2d(3, 2, 1)"),
        "no ReLU after the first fully connected layer": (HIDDEN, HIDDEN.replace("ReLU(inplace=True)", "Identity()")),
    },
)
def test_forward(m):
    """Whole small networks, with 1x1, 5x5 and 7x7 filters and LRN, against the formula."""
    images = 20 * noise(3, 3, 16, 16, seed=2, dtype=torch.float64)
    for config in CONFIGURATIONS:
        network = on_meta(m.VGG, config, classes=5, hidden=9, size=16)
        state = random_state(network)
        expected = forward_by_formula(config, state.values(), images)
        with torch.inference_mode():
            assert_equal_and_alive(give(network, state.values())(images), expected)


@holds(
    VGG,
    {
        "alpha divided by the window": ("self.alpha * neighbours", "self.alpha / self.n * neighbours"),
        "LRN without kappa": ("kappa=2.0", "kappa=1.0"),
    },
)
def test_lrn(m):
    a = 30 * noise(2, 9, 3, 4, seed=0, dtype=torch.float64)
    for n, kappa, alpha, beta in ((5, 2.0, 1e-4, 0.75), (3, 1.0, 1e-2, 0.5), (1, 1.5, 1e-3, 0.75)):
        ours = m.LocalResponseNorm(n, kappa, alpha, beta)(a)
        assert torch.allclose(ours, F.local_response_norm(a, n, alpha * n, beta, kappa), rtol=1e-12)
    assert torch.allclose(m.LocalResponseNorm()(a), F.local_response_norm(a, 5, 5e-4, 0.75, 2.0), rtol=1e-12)


@holds(
    VGG,
    {
        "no dropout": ("dropout=0.5", "dropout=0.0"),
        "the paper's first weights": ("kaiming_normal_(module.weight)", "normal_(module.weight, std=0.01)"),
    },
)
def test_start(m):
    """First weights of He's scale, biases 0, dropout where the paper has it."""
    torch.manual_seed(0)
    network = m.VGG([64, 64, "M"], classes=10, hidden=256, size=8)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            he = math.sqrt(2 / layer.weight[0].numel())
            assert abs(float(layer.weight.detach().std()) / he - 1) < 0.1 and not layer.bias.any()
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    kinds = [type(layer).__name__ for layer in network.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


@holds(
    VGG,
    {
        "receptive field without the jump": ("r + (kernel - 1) * j", "r + (kernel - 1)"),
        "jump before the receptive field": (
            "r, j = r + (kernel - 1) * j, j * stride",
            "j *= stride; r += (kernel - 1) * j",
        ),
    },
)
def test_receptive_field(m):
    seen = m.receptive_field(m.CONFIGS["D"])
    assert len(seen) == 18 and [entry for entry, _, _ in seen] == m.CONFIGS["D"]
    assert seen[-2][1:] == (196, 16)  # conv5_3
    assert seen[-1][1:] == (212, 32)  # pool5
    assert [r for entry, r, _ in seen if entry == "M"] == [6, 16, 44, 100, 212]
    assert m.receptive_field(m.CONFIGS["A-LRN"]) == m.receptive_field(m.CONFIGS["A"])
    assert m.receptive_field([8, 8, 8])[-1][1] == m.receptive_field([(8, 7)])[-1][1] == 7


@holds(VGG)
def test_gradient_support(m):
    """What the formula says a unit sees is what its gradient reaches."""
    config = [4, (4, 1), "M", 4, 4, "M", (4, 5)]
    torch.manual_seed(0)
    features = m.VGG(config, classes=2, hidden=2, size=48).double().features
    positions = []
    for i, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):  # a maximum passes the gradient to one of four; a mean to all
            features[i] = nn.AvgPool2d(layer.kernel_size, layer.stride)
            positions.append(i)
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.uniform_(0.1, 1)  # nothing cancels, no ReLU shuts
            positions.append(i)
    images = torch.rand(1, 3, 48, 48, dtype=torch.float64)
    for position, (_, r, _) in zip(positions, m.receptive_field(config), strict=True):
        field = inspect.input_gradient(features, str(position), images)[0] > 0
        assert int(field.any(1).sum()) == int(field.any(0).sum()) == r
        assert int(field.sum()) == r * r


@holds(VGG)
def test_cost_of_a_stack(m):
    C = 16
    stack = m.VGG([C, C, C, C], classes=2, hidden=2, size=8).features
    single = m.VGG([C, (C, 7)], classes=2, hidden=2, size=8).features
    weights = [layer.weight.numel() for layer in stack if isinstance(layer, nn.Conv2d)]
    assert sum(weights[1:]) == 27 * C**2
    assert [layer.weight.numel() for layer in single if isinstance(layer, nn.Conv2d)][1] == 49 * C**2


@holds(
    VGG,
    {
        "dense with channels last": (
            "layer.weight.view(layer.out_features, channels, side, side)",
            "layer.weight.view(layer.out_features, side, side, channels).permute(0, 3, 1, 2)",
        ),
        "dense without bias": ("conv.bias = layer.bias", "conv.bias = None"),
    },
)
def test_dense(m):
    torch.manual_seed(0)
    network = m.VGG([4, "M", 6, "M"], classes=3, hidden=5, size=16).double().eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.3)  # biases count, too
    dense = m.fully_convolutional(network)
    small, large = (noise(2, 3, side, side, seed=0, dtype=torch.float64) for side in (16, 24))
    with torch.inference_mode():
        # at the size that the network was made for: one position, the same logits
        assert dense(small).shape == (2, 3, 1, 1)
        assert_equal_and_alive(dense(small)[..., 0, 0], network(small))
        # at a larger size: at each position the classifier, on that window of the feature map
        maps, verdicts = network.features(large), dense(large)
        assert verdicts.shape == (2, 3, 3, 3)
        for y in range(3):
            for x in range(3):
                window = maps[:, :, y : y + 4, x : x + 4].flatten(1)
                assert torch.allclose(verdicts[:, :, y, x], network.classifier(window), rtol=1e-10)
        # which is not quite the crop of the image: that one is padded with zeros at its borders
        assert not torch.allclose(verdicts[..., 0, 0], network(large[:, :, :16, :16]), rtol=1e-3)
        # but it is where there is no padding
        network = m.VGG([(4, 1), "M", (6, 1), "M"], classes=3, hidden=5, size=16).double().eval()
        verdicts = m.fully_convolutional(network)(large)
        for y in range(3):
            for x in range(3):
                crop = large[:, :, 4 * y : 4 * y + 16, 4 * x : 4 * x + 16]
                assert torch.allclose(verdicts[:, :, y, x], network(crop), rtol=1e-10)


# ---------------------------------------------------------------------------------------------- whole networks


@pytest.fixture(scope="module")
def classifier():
    """The state of the three fully connected layers, 1 GB in float64, drawn once."""
    yield random_state(on_meta(reference.VGG, nn.Identity(), init_weights=False).classifier)


@pytest.mark.parametrize(("name", "builder"), [("A", "vgg11"), ("D", "vgg16_bn")])
def test_logits_of_whole_networks_equal_torchvision(classifier, name, builder):
    theirs = on_meta(torchvision.models.get_model, builder, init_weights=False)
    ours = on_meta(VGG.VGG, VGG.CONFIGS[name], batch_norm=builder.endswith("bn"))
    features = random_state(theirs.features)
    theirs.features.load_state_dict(features, assign=True)
    theirs.classifier.load_state_dict(classifier, assign=True)
    give(ours, [*features.values(), *classifier.values()])
    images = noise(1, 3, 224, 224, dtype=torch.float64)
    with torch.inference_mode():
        logits = ours(images)
        assert logits.shape == (1, 1000)
        assert_equal_and_alive(logits, theirs.eval()(images))


def test_published_sizes_agree_with_ours():
    """The numbers of this file are those that torchvision publishes with its weights."""
    for name, builder in {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}.items():
        meta = torchvision.models.get_model_weights(builder).DEFAULT.meta
        assert (meta["num_params"], meta["_ops"]) == (PARAMETERS[name], pytest.approx(GIGA_MACS[name], abs=6e-4))
    for name, builder in {"A": "vgg11_bn", "D": "vgg16_bn", "E": "vgg19_bn"}.items():
        assert torchvision.models.get_model_weights(builder).DEFAULT.meta["num_params"] == PARAMETERS_BN[name]


# ---------------------------------------------------------------------------------------------- the studies' tools


@holds(
    VGG,
    {
        "one scale only": ("self.low, self.high + 1, ()", "self.low, self.low + 1, ()"),
        "always the corner": ("S - self.size + 1, (2,)", "1, (2,)"),
    },
)
def test_rescale_and_crop(code):
    images = noise(4, 3, 32, 32, seed=0)
    labels = torch.arange(4)
    same, targets = code.RescaleAndCrop(32, 32)(images, labels, generator())
    for before, after in zip(images, same, strict=True):
        assert torch.equal(before, after) or torch.equal(before.flip(-1), after)
    assert torch.equal(targets, labels)

    draws = [code.RescaleAndCrop(32, 48)(images, labels, generator(seed))[0] for seed in range(8)]
    assert all(crop.shape == images.shape for crop in draws) and len({float(crop.sum()) for crop in draws}) > 4
    torch.manual_seed(1)
    assert torch.equal(draws[3], code.RescaleAndCrop(32, 48)(images, labels, generator(3))[0])
    # crops of a ramp enlarged to 40: its slope times 32 / 40, cut at many places
    ramp = torch.arange(32.0).expand(1, 3, 32, 32)
    crops = [code.RescaleAndCrop(40, 40)(ramp, labels[:1], generator(seed))[0] for seed in range(8)]
    assert torch.allclose(crops[0][0, 0, 0, 5:-5].diff().abs(), torch.tensor(0.8), atol=1e-4)
    assert len({float(crop.min()) for crop in crops}) > 2
    # and a range of scales has a range of slopes
    draws = [code.RescaleAndCrop(32, 48)(ramp, labels[:1], generator(seed))[0] for seed in range(8)]
    assert len({round(float(crop[0, 0, 0, 15:17].diff().abs()), 3) for crop in draws}) > 3


@holds(
    VGG,
    {
        "one scale for the batch": ("self.high + 1, (n,)", "self.high + 1, (1,)"),
        "never mirrored": ("1 - 2 * torch.randint(2, (n,), generator=generator)", "1"),
        "windows reach beyond the image": ("(1 - share) * (2 * torch.rand", "(2 * torch.rand"),
        "the share upside down": ("self.size / S", "S / self.size"),
        "mirrored upside down": (
            "[share * mirror, zero, x, zero, share, y]",
            "[share, zero, x, zero, share * mirror, y]",
        ),
    },
)
def test_rescale_each(code):
    """At the crop's own side an image stays, or is mirrored; ramps tell the scale and the place of every window."""
    images, labels = noise(6, 3, 32, 32, seed=0), torch.arange(6)
    same, targets = code.RescaleEach(32, 32)(images, labels, generator())
    straight = [torch.allclose(a, b, atol=1e-4) for a, b in zip(images, same, strict=True)]
    mirrored = [torch.allclose(a.flip(-1), b, atol=1e-4) for a, b in zip(images, same, strict=True)]
    assert all(a != b for a, b in zip(straight, mirrored, strict=True)) and any(straight) and any(mirrored)
    assert torch.equal(targets, labels)

    ramp = torch.arange(32.0)
    images = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)]).repeat(64, 1, 1, 1)
    crops, _ = code.RescaleEach(32, 48)(images, torch.zeros(64), generator())
    across, down = crops[:, 0, 16, 8:24].diff(dim=1).mean(1), crops[:, 1, 8:24, 16].diff(dim=1).mean(1)
    assert torch.allclose(across.abs(), down, atol=1e-3), "height and width are rescaled alike"
    S = 32 / down
    assert 31.9 < S.min() < 36 and 44 < S.max() < 48.1 and len(set(S.round().tolist())) > 8
    assert torch.allclose(S, S.round(), atol=0.1)
    # a window of 32 / S of the image lies within it, at many places
    centre = crops[:, 1].mean((1, 2)) - 15.5
    assert (centre.abs() <= 16 * (1 - 32 / S) + 0.1).all() and centre.std() > 1
    again, _ = code.RescaleEach(32, 48)(images, torch.zeros(64), generator())
    assert torch.equal(crops, again)


@holds(
    VGG,
    {
        "before its convolution": ("[entry, *count * [(entry[0], 1)]]", "[*count * [(entry[0], 1)], entry]"),
        "behind the pooling as well": ('[[entry] if entry == "M" else', '[[entry, (8, 1)] if entry == "M" else'),
        "one behind each": ("*count * [(entry[0], 1)]]", "(entry[0], 1)]"),
    },
)
def test_pixel_filters_stand_behind_each_convolution(code):
    """Depth without a wider view: as many layers as the twin of 3x3, which see as far as the large filter."""
    assert code.with_pixel_filters([(8, 7), "M", (16, 7)], 2) == [
        (8, 7), (8, 1), (8, 1), "M", (16, 7), (16, 1), (16, 1)
    ]  # fmt: skip


def odd_data(n=600):
    """Test images that are not the training images, with labels of their own."""
    return dataset_of(random_images(n, 32), torch.randint(0, 10, (n,), generator=generator()))


def biased(code, config="B"):
    """An untrained small network that prefers no class to all others, and is no constant."""
    torch.manual_seed(0)
    network = code.small_vgg(code.SMALL[config])
    return network.eval()


@holds(
    VGG,
    {
        "training images": (
            "right += int((verdicts",
            "labels = data.train.targets[: len(labels)]; right += int((verdicts",
        ),
        "training mode": ("fully_convolutional(model).eval(), 0", "fully_convolutional(model).train(), 0"),
    },
)
def test_accuracy_at_the_training_size_is_the_accuracy(code):
    data, network = odd_data(), biased(code)
    expected = train.evaluate(network, data)["test_accuracy"]
    assert code.accuracy_at(network, data, 32) == pytest.approx(expected, abs=2e-3)
    assert 0 <= code.accuracy_at(network, data, 40) <= 1


@holds(
    VGG,
    {
        "always at the training size": (
            'size=Q, mode="bilinear", antialias=True\n            )\n            verdicts',
            'size=32, mode="bilinear", antialias=True\n            )\n            verdicts',
        ),
        "softmax after the mean over positions": (
            ".softmax(1)\n                .mean((2, 3))",
            ".mean((2, 3))\n                .softmax(1)",
        ),
    },
)
def test_accuracy_at_another_size(code):
    """By hand: a network that says 1 of photographs at 40 px, and 0 at any other size."""

    class Sized(nn.Module):
        """Speaks mildly for its class at two positions of three, and strongly against it at the third."""

        def forward(self, images):
            ours = torch.tensor([2.0, 2, -9]) * (1 if images.shape[-2:] == (40, 40) else -1)
            return torch.stack([torch.zeros(3), ours])[:, None].expand(len(images), 2, 1, 3)

    code.fully_convolutional = lambda model: model
    data = dataset_of(random_images(7, 32), torch.tensor([0, 1, 1, 1, 0, 1, 1]))
    assert code.accuracy_at(Sized(), data, 40) == pytest.approx(5 / 7)
    assert code.accuracy_at(Sized(), data, 36) == pytest.approx(2 / 7)


@holds(
    VGG,
    {
        "not mirrored": ("views = images, images.flip(-1)", "views = images, images"),
        "upside down": ("views = images, images.flip(-1)", "views = images, images.flip(-2)"),
        "softmax before the mean over positions": (
            "dense(view).mean((2, 3)).softmax(1)",
            "dense(view).softmax(1).mean((2, 3))",
        ),
        "a sum of two": (" for view in views) / len(views)", " for view in views)"),
    },
)
def test_paper_verdict(code):
    """By hand: 1 class of 2 has a score at 1 of 6 positions; the mirrored image has none."""

    def dense(images):
        scores = torch.zeros(len(images), 2, 2, 3)
        scores[:, 0] = 6 * (images[:, 0, :2, :3] > 0)
        return scores

    images = torch.zeros(1, 3, 2, 4)
    images[0, 0, 0, 0] = 1.0
    one = math.e / (math.e + 1)
    assert torch.allclose(code.paper_verdict(dense, images)[0, 0], torch.tensor((one + 0.5) / 2))


@holds(
    VGG,
    {
        "not rescaled": ("right.append(verdict(images)", "right.append(verdict(images[..., :32, :32])"),
        "the first batch only": ("torch.cat(right)", "right[0]"),
        "the surest is not asked for": ("verdict(images).argmax(1) ==", "verdict(images).argmin(1) =="),
    },
)
def test_verdict_accuracy(code):
    data, network, sizes = odd_data(), biased(code), []

    def verdict(images):
        sizes.append(images.shape)
        return network(images[..., :32, :32])

    expected = train.evaluate(network, data)["test_accuracy"]
    assert code.verdict_accuracy(verdict, data, 32) == pytest.approx(expected, abs=2e-3)
    code.verdict_accuracy(verdict, data, 40)
    assert sizes[2:] == [(500, 3, 40, 40), (100, 3, 40, 40)]


@holds(VGG, {"one layer too few": ("count * [(entry[0], 1)]", "(count - 1) * [(entry[0], 1)]")})
def test_arms_that_differ_in_filters_alone(code):
    """As deep as B and D, they see as far, and their weights are within a quarter."""
    for arm, twin in (("5x5, 1x1", "B"), ("7x7, 1x1, 1x1", "D")):
        ours, theirs = code.LONG_ARMS[arm]["config"], code.SMALL[twin]
        assert len(ours) == len(theirs)
        assert code.receptive_field(ours)[-1][1:] == code.receptive_field(theirs)[-1][1:]
        weights = [
            sum(m.weight.numel() for m in code.small_vgg(config).features if isinstance(m, nn.Conv2d))
            for config in (ours, theirs)
        ]
        assert 0.75 < weights[0] / weights[1] < 1.25


def test_one_run_of_each_study(monkeypatch):
    """A run gives what the chapter reads, as plain numbers, and the same twice."""
    data = odd_data(64)
    run = VGG.train_arm(data, seed=1, config=json.loads(json.dumps(VGG.LONG_ARMS["5x5, 1x1"]["config"])), epochs=1)
    assert run.keys() == {"test_accuracy", "train_loss", "parameters", "conv_weights", "macs"}
    assert run["conv_weights"] < run["parameters"] < run["macs"]
    assert run == VGG.train_arm(data, seed=1, config=VGG.LONG_ARMS["5x5, 1x1"]["config"], epochs=1)
    monkeypatch.setattr(VGG, "SCALES_TESTED", (32, 40))
    for train_once in (VGG.train_at_scale, VGG.train_with_scales):
        run = train_once(data, seed=0, low=32, high=40, epochs=1)
        assert run.keys() == {"accuracy_at_32", "accuracy_at_40"} and all(0 <= value <= 1 for value in run.values())


def test_trained_network_takes_any_size():
    network = VGG.of_any_size(VGG.TRAINED.untrained())
    images = noise(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(network(images), VGG.TRAINED.untrained()(images), rtol=1e-4, atol=1e-5)
        assert network(noise(2, 3, 64, 48)).shape == (2, 12)
    assert isinstance(dict(network.named_modules())[VGG.TRAINED.layer], nn.ReLU)


def test_claims_predict_what_the_paper_prints():
    """A figure of Table 3 in a claim is the difference of the errors printed there, first less second."""
    table_3 = {"A": 29.6, "A-LRN": 29.7, "B": 28.7, "C": 28.1, "D": 27.0, "E": 27.3}
    for claims in (VGG.DEPTH_CLAIMS, VGG.LONG_CLAIMS):
        for claim in claims.all.values():
            if claim.paper.startswith("Table 3") and claim.loses is None and "BN" not in claim.first:
                assert float(claim.paper.split()[-1]) == pytest.approx(table_3[claim.first] - table_3[claim.second])


# ---------------------------------------------------------------------------------------------- exercises

check_count, count_solution, check_crops, ten_crops_solution = from_cells(
    VGG, "check_count", "count_solution", "check_crops", "ten_crops_solution"
)


def count_layer_by_layer(config, classes, hidden, size):
    """Another right answer: a list of layers first, then one sum."""
    layers, channels = [], 3
    for entry in [entry for entry in config if entry not in ("M", "LRN")]:
        out, kernel = entry if isinstance(entry, tuple) else (entry, 3)
        layers.append((channels * kernel * kernel, out))
        channels = out
    side = size // 2 ** config.count("M")
    layers += [(channels * side * side, hidden), (hidden, hidden), (hidden, classes)]
    return sum((inputs + 1) * outputs for inputs, outputs in layers)


def count_wrong(config, classes, hidden, size, kernel_of=True, bias=1, pool=True, lrn=True, last=True):
    total, channels = 0, 3
    for entry in config:
        if entry == "M":
            size = size // 2 if pool else size
        elif entry != "LRN" or not lrn:
            out, kernel = entry if isinstance(entry, tuple) else (entry, 3)
            total += out * (channels * (kernel if kernel_of else 3) ** 2 + bias)
            channels = out
    total += (channels * size**2 + bias) * hidden + (hidden + bias) * hidden
    return total + (hidden + bias) * classes * last


@pytest.mark.parametrize("answer", [count_solution, count_layer_by_layer])
def test_right_counts_pass(answer):
    check_count(answer)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"bias": 0}, "1x1 map"),
        ({"pool": False}, "1x1 map"),
        ({"last": False}, "1x1 map"),
        ({"lrn": False}, "LRN has no parameters"),
        ({"kernel_of": False}, "network C has"),
    ],
)
def test_wrong_counts_are_told_why(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        check_count(functools.partial(count_wrong, **wrong))


def crops_of(images, size, places):
    for y, x in places:
        crop = images[:, :, y : y + size, x : x + size]
        yield from (crop, crop.flip(-1))


def places_of(images, size):
    y, x = images.shape[2] - size, images.shape[3] - size
    return [(0, 0), (0, x), (y, 0), (y, x), (y // 2, x // 2)]


def crops_in_one_batch(model, images, size):
    """Another right answer: all ten crops of all images in one pass."""
    crops = torch.stack(list(crops_of(images, size, places_of(images, size))))
    return model(crops.flatten(0, 1)).softmax(1).view(10, len(images), -1).mean(0)


def one_corner(model, images, size):
    crops = [images[:, :, -size:, -size:], images[:, :, -size:, -size:].flip(-1)] * 5
    return torch.stack([model(crop).softmax(1) for crop in crops]).mean(0)


def softmax_of_the_mean(model, images, size):
    crops = crops_of(images, size, places_of(images, size))
    return torch.stack([model(crop) for crop in crops]).mean(0).softmax(1)


def logits_only(model, images, size):
    return torch.stack([model(crop) for crop in crops_of(images, size, places_of(images, size))]).mean(0)


def not_mirrored(model, images, size):
    crops = [crop for crop in crops_of(images, size, places_of(images, size))][::2] * 2
    return torch.stack([model(crop).softmax(1) for crop in crops]).mean(0)


def height_for_width(model, images, size):
    square = places_of(images[..., : images.shape[2]], size)
    return torch.stack([model(crop).softmax(1) for crop in crops_of(images, size, square)]).mean(0)


def upside_down(model, images, size):
    crops = list(crops_of(images, size, places_of(images, size)))
    crops = [crop for pair in zip(crops[::2], crops[::2], strict=True) for crop in (pair[0], pair[1].flip(-2))]
    return torch.stack([model(crop).softmax(1) for crop in crops]).mean(0)


@pytest.mark.parametrize("answer", [ten_crops_solution, crops_in_one_batch])
def test_right_crops_pass(answer):
    check_crops(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (one_corner, "the upper left crop is missing"),
        (softmax_of_the_mean, "softmax of each crop"),
        (logits_only, "softmax of each crop"),
        (not_mirrored, "the mirrored upper left crop is missing"),
        (height_for_width, "the upper right crop is missing"),
        (upside_down, "the mirrored upper left crop is missing"),
        (lambda model, images, size: model(images).softmax(1), "ten crops of two images"),
    ],
)
def test_wrong_crops_are_told_why(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check_crops(answer)
