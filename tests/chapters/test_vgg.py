"""Chapter 1: torchvision's counts and answers, formulas, receptive fields by gradient; then mutants of the code."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import vgg as reference
from toys import chapter_tests, dataset_of, generator, noise, on_meta, random_images

from helpers import inspect, train
from helpers.chapters import chapter

VGG = chapter("01_vgg")


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


def check_counts(m):
    for name, count in PARAMETERS.items():
        assert inspect.count_parameters(on_meta(m.VGG, m.CONFIGS[name])) == count
    for name, count in PARAMETERS_BN.items():
        assert inspect.count_parameters(on_meta(m.VGG, m.CONFIGS[name], batch_norm=True)) == count
    lrn, plain = (on_meta(m.VGG, m.CONFIGS[name]) for name in ("A-LRN", "A"))
    assert inspect.count_parameters(lrn) == inspect.count_parameters(plain)
    for name, depth in WEIGHT_LAYERS.items():
        network = on_meta(m.VGG, m.CONFIGS[name])
        assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in network.modules()) == depth


def check_macs(m):
    for name, giga in GIGA_MACS.items():
        assert abs(inspect.count_macs(on_meta(m.VGG, m.CONFIGS[name]), (3, 224, 224)) / 1e9 - giga) < 6e-4
    assert inspect.count_macs(on_meta(m.VGG, m.CONFIGS["D"]), (3, 224, 224)) == 15_470_264_320


def check_features(m):
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


def check_forward(m):
    """Whole small networks, with 1x1, 5x5 and 7x7 filters and LRN, against the formula."""
    images = 20 * noise(3, 3, 16, 16, seed=2, dtype=torch.float64)
    for config in CONFIGURATIONS:
        network = on_meta(m.VGG, config, classes=5, hidden=9, size=16)
        state = random_state(network)
        expected = forward_by_formula(config, state.values(), images)
        with torch.inference_mode():
            assert_equal_and_alive(give(network, state.values())(images), expected)


def check_lrn(m):
    a = 30 * noise(2, 9, 3, 4, seed=0, dtype=torch.float64)
    for n, kappa, alpha, beta in ((5, 2.0, 1e-4, 0.75), (3, 1.0, 1e-2, 0.5), (1, 1.5, 1e-3, 0.75)):
        ours = m.LocalResponseNorm(n, kappa, alpha, beta)(a)
        assert torch.allclose(ours, F.local_response_norm(a, n, alpha * n, beta, kappa), rtol=1e-12)
    assert torch.allclose(m.LocalResponseNorm()(a), F.local_response_norm(a, 5, 5e-4, 0.75, 2.0), rtol=1e-12)


def check_start(m):
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


def check_receptive_field(m):
    seen = m.receptive_field(m.CONFIGS["D"])
    assert len(seen) == 18 and [entry for entry, _, _ in seen] == m.CONFIGS["D"]
    assert seen[-2][1:] == (196, 16)  # conv5_3
    assert seen[-1][1:] == (212, 32)  # pool5
    assert [r for entry, r, _ in seen if entry == "M"] == [6, 16, 44, 100, 212]
    assert m.receptive_field(m.CONFIGS["A-LRN"]) == m.receptive_field(m.CONFIGS["A"])
    assert m.receptive_field([8, 8, 8])[-1][1] == m.receptive_field([(8, 7)])[-1][1] == 7


def check_gradient_support(m):
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


def check_cost_of_a_stack(m):
    C = 16
    stack = m.VGG([C, C, C, C], classes=2, hidden=2, size=8).features
    single = m.VGG([C, (C, 7)], classes=2, hidden=2, size=8).features
    weights = [layer.weight.numel() for layer in stack if isinstance(layer, nn.Conv2d)]
    assert sum(weights[1:]) == 27 * C**2
    assert [layer.weight.numel() for layer in single if isinstance(layer, nn.Conv2d)][1] == 49 * C**2


def check_dense(m):
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


# ---------------------------------------------------------------------------------------------- mutants

BATCH_NORM = """                if batch_norm:
                    layers.append(nn.BatchNorm2d(out))
"""
RELU = "                layers.append(nn.ReLU(inplace=True))\n"
HIDDEN = "nn.Linear(channels * size * size, hidden), nn.ReLU(inplace=True)"

MUTANTS = {
    "no ReLU after convolutions": (RELU, "", "forward"),
    "no padding": ("padding=kernel // 2", "padding=0", "macs"),
    "no pooling": ("layers.append(nn.MaxPool2d(2))", "pass", "forward"),
    "mean instead of maximum": ("nn.MaxPool2d(2)", "nn.AvgPool2d(2)", "forward"),
    "overlapping pooling": ("nn.MaxPool2d(2)", "nn.MaxPool2d(3, 2, 1)", "forward"),
    "half the hidden width": ("hidden=4096", "hidden=2048", "counts"),
    "batch normalisation after ReLU": (BATCH_NORM + RELU, RELU + BATCH_NORM, "features"),
    "no batch normalisation": (BATCH_NORM, "", "counts"),
    "no bias": (
        "nn.init.zeros_(module.bias)",
        "module.bias = None if isinstance(module, nn.Conv2d) else nn.init.zeros_(module.bias)",
        "counts",
    ),
    "no ReLU after the first fully connected layer": (
        HIDDEN,
        HIDDEN.replace("ReLU(inplace=True)", "Identity()"),
        "forward",
    ),
    "no dropout": ("dropout=0.5", "dropout=0.0", "start"),
    "the paper's first weights": (
        "nn.init.kaiming_normal_(\n                    module.weight\n",
        "nn.init.normal_(\n                    module.weight, std=0.01\n",
        "start",
    ),
    "alpha divided by the window": ("self.alpha * neighbours", "self.alpha / self.n * neighbours", "lrn"),
    "LRN without kappa": ("kappa=2.0", "kappa=1.0", "lrn"),
    "C with 3x3 for 1x1": ('256, 256, (256, 1), "M"', '256, 256, 256, "M"', "counts"),
    "E one layer short": ('*[512] * 4, "M"],', '*[512] * 3, "M"],', "counts"),
    "receptive field without the jump": ("r + (kernel - 1) * j", "r + (kernel - 1)", "receptive_field"),
    "jump before the receptive field": (
        "r, j = r + (kernel - 1) * j, j * stride",
        "j *= stride; r += (kernel - 1) * j",
        "receptive_field",
    ),
    "dense with channels last": (
        "layer.weight.view(layer.out_features, channels, side, side)",
        "layer.weight.view(layer.out_features, side, side, channels).permute(0, 3, 1, 2)",
        "dense",
    ),
    "dense without bias": ("conv.bias = layer.bias", "conv.bias = None", "dense"),
}

test_chapter, test_mutant_is_noticed = chapter_tests(VGG, globals(), MUTANTS)


# ---------------------------------------------------------------------------------------------- the study's tools


def test_rescale_and_crop():
    images = noise(4, 3, 32, 32, seed=0)
    labels = torch.arange(4)
    same, targets = VGG.RescaleAndCrop(32, 32)(images, labels, generator())
    for before, after in zip(images, same, strict=True):
        assert torch.equal(before, after) or torch.equal(before.flip(-1), after)
    assert torch.equal(targets, labels)

    draws = [VGG.RescaleAndCrop(32, 48)(images, labels, generator(seed))[0] for seed in range(8)]
    assert all(crop.shape == images.shape for crop in draws) and len({float(crop.sum()) for crop in draws}) > 4
    torch.manual_seed(1)
    assert torch.equal(draws[3], VGG.RescaleAndCrop(32, 48)(images, labels, generator(3))[0])
    # a crop of a ramp enlarged to 40 has the ramp's slope times 32 / 40
    ramp = torch.arange(32.0).expand(1, 3, 32, 32)
    crop, _ = VGG.RescaleAndCrop(40, 40)(ramp, labels[:1], generator())
    assert torch.allclose(crop[0, 0, 0, 5:-5].diff().abs(), torch.tensor(0.8), atol=1e-4)


def test_accuracy_at_the_training_size_is_the_accuracy():
    data = dataset_of(random_images(600, 32), torch.randint(0, 10, (600,), generator=generator()))
    torch.manual_seed(0)
    network = VGG.small_vgg(VGG.SMALL["B"]).eval()
    assert VGG.accuracy_at(network, data, 32) == pytest.approx(train.evaluate(network, data)["test_accuracy"], abs=2e-3)
    assert 0 <= VGG.accuracy_at(network, data, 40) <= 1
