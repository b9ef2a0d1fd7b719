"""Chapter 3: the paper's counts, torchvision's answers, reuse and memory; then mutants of the chapter's code."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toys import chapter_tests, noise, on_meta

from helpers import inspect, parity, train
from helpers.chapters import chapter

DENSENET = chapter("03_densenet")
RESNET = chapter("02_resnet")
BASIC = {"bottleneck": False, "compression": 1.0}

# parameters, giga multiply-adds at 224x224
IMAGENET = {
    "121": (7_978_856, 2.834),
    "169": (14_149_480, 3.360),
    "201": (20_013_928, 4.291),
    "264": (33_337_704, 5.752),
    "161": (28_681_000, 7.728),
}
# depth, growth rate, form -> parameters, million multiply-adds at 32x32
CIFAR = [
    (40, 12, BASIC, 1_019_722, 264.8),
    (100, 12, BASIC, 6_979_642, 1769.5),
    (100, 24, BASIC, 27_249_082, 6889.3),
    (100, 12, {}, 769_162, 287.9),
    (250, 24, {}, 15_324_406, 5418.8),
    (190, 40, {}, 25_624_430, 9301.9),
]


def one_step(model, seed=0):
    """Gradients and running averages after one backward pass."""
    torch.manual_seed(seed)
    loss = F.cross_entropy(model(noise(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    averages = [buffer for name, buffer in model.named_buffers() if "running" in name]
    return [parameter.grad for parameter in model.parameters()], averages


# ------------------------------------------------------------------ checks of the code, each a function of a module


def check_imagenet_counts(code):
    for name, (parameters, giga) in IMAGENET.items():
        model = on_meta(code.densenet, name)
        assert inspect.count_parameters(model) == parameters
        assert round(inspect.count_macs(model, (3, 224, 224)) / 1e9, 3) == giga


def check_cifar_parameters(code):
    for depth, growth, form, parameters, _ in CIFAR:
        assert inspect.count_parameters(on_meta(code.cifar_densenet, depth, growth, **form)) == parameters


def check_cifar_multiply_adds(code):
    for depth, growth, form, _, millions in CIFAR[:1] + CIFAR[3:4]:
        model = on_meta(code.cifar_densenet, depth, growth, **form)
        assert round(inspect.count_macs(model, (3, 32, 32)) / 1e6, 1) == millions


def check_depth(code):
    """L counts convolutions and the classifier, whatever the form."""
    for form in ({}, BASIC, {"compression": 1.0}, {"bottleneck": False}):
        model = on_meta(code.cifar_densenet, 40, 12, **form)
        assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == 40


def check_channels(code):
    """k0 + k (l - 1) into layer l, floor(theta m) out of a transition, 342 at the end of BC (100, 12)."""
    model = on_meta(code.cifar_densenet, 100, 12)
    read = [layer.norm1.num_features for layer in model.features.block1.layers]
    assert read == [24 + 12 * n for n in range(16)]
    assert [model.features.transition1.conv.out_channels, model.features.transition2.conv.out_channels] == [108, 150]
    assert model.classifier.in_features == 342
    odd = on_meta(code.DenseNet, (1, 1), 5, 10, compression=0.5)
    assert odd.features.transition1.conv.out_channels == 7  # floor of 7.5


def check_shapes(code):
    maps = torch.empty(1, 3, 224, 224, device="meta")
    seen = {}
    for name, part in on_meta(code.densenet, "121").features.named_children():
        maps = part(maps)
        seen[name] = tuple(maps.shape[1:])
    assert seen["stem"] == (64, 56, 56) and seen["block1"] == (256, 56, 56) and seen["transition1"] == (128, 28, 28)
    assert seen["block2"] == (512, 28, 28) and seen["block3"] == (1024, 14, 14) and seen["norm"] == (1024, 7, 7)


def check_layer(code):
    """BN, ReLU, 1x1, BN, ReLU, 3x3 on the concatenation."""
    layer, sources = code.DenseLayer(7, 3), [noise(2, 4, 5, 5), noise(2, 3, 5, 5)]
    RESNET.shake_batch_norms(layer)
    hidden = F.conv2d(F.relu(layer.norm1(torch.cat(sources, 1))), layer.conv1.weight)
    expected = F.conv2d(F.relu(layer.norm2(hidden)), layer.conv2.weight, padding=1)
    assert torch.allclose(layer(sources), expected, atol=1e-5)
    assert layer.conv1.weight.shape == (12, 7, 1, 1) and expected.shape == (2, 3, 5, 5)


def check_block(code):
    """Every layer reads all maps before it; all of them leave the block, untouched and in order."""
    block, x = code.DenseBlock(4, 3, 2).eval(), noise(2, 4, 6, 6)
    y = block(x)
    assert y.shape == (2, 10, 6, 6) and torch.equal(y[:, :4], x)
    for number, layer in enumerate(block.layers):
        read = y[:, : 4 + 2 * number]
        assert torch.allclose(layer([read]), y[:, 4 + 2 * number : 6 + 2 * number], atol=1e-6)


def check_transition(code):
    transition, x = RESNET.shake_batch_norms(code.Transition(6, 3)).eval(), noise(2, 6, 8, 8)
    expected = F.avg_pool2d(F.conv2d(F.relu(transition.norm(x)), transition.conv.weight), 2)
    assert torch.allclose(transition(x), expected, atol=1e-6)


def check_parity(code):
    x = noise(2, 3, 64, 64)
    torch.manual_seed(0)
    ours = RESNET.shake_batch_norms(code.densenet("121"))
    theirs = parity.copy_in_order(ours, on_meta(torchvision.models.densenet121))
    assert parity.relative_difference(ours, theirs, x) < 1e-12


def check_dropout(code):
    """Behind every convolution but the first; nothing in evaluation mode."""
    model = code.cifar_densenet(22, 4, dropout=0.2)
    caught = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, given, made: caught.append(made))
    model(noise(2, 3, 16, 16))
    assert len(caught) == 2 * 9 + 2  # two in each of nine layers, one in each transition
    assert all(0.05 < float((made == 0).float().mean()) < 0.5 for made in caught)
    plain = code.cifar_densenet(22, 4).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(noise(2, 3, 16, 16)), plain(noise(2, 3, 16, 16)))


def check_memory_efficient(code):
    """Same gradients, running averages updated once, and a lower peak."""
    torch.manual_seed(0)
    plain, efficient = (code.cifar_densenet(40, 4, memory_efficient=flag) for flag in (False, True))
    efficient.load_state_dict(plain.state_dict())
    for ours, theirs in zip(one_step(plain), one_step(efficient), strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    batch = noise(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)
    peaks = [code.peak_of_a_step(code.cifar_densenet(58, 8, memory_efficient=flag), *batch) for flag in (False, True)]
    assert peaks[1] < 0.7 * peaks[0]


def check_memory_with_dropout(code):
    """The second run draws the same dropout as the first."""
    torch.manual_seed(0)
    models = [code.cifar_densenet(22, 4, dropout=0.2, memory_efficient=flag) for flag in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (one_step(model)[0] for model in models)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def check_peak(code):
    """Two tensors alive at once, then one; views and freed memory are not counted twice."""
    with code.PeakMemory() as memory:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a.view(10, 100) + 1  # a view, and 4,000 bytes more
        del a, b
        c = torch.zeros(500)
    assert memory.peak == 8000 and memory.now == 2000
    del c
    assert memory.now == 0


def check_initialisation(code):
    torch.manual_seed(0)
    model = code.cifar_densenet(22, 24)
    weight = model.features.block3.layers[2].conv2.weight.detach()  # 96 channels in
    assert abs(float(weight.std()) / (2 / (9 * 96)) ** 0.5 - 1) < 0.05
    assert not model.classifier.bias.any()


def check_recoverable(code):
    a = noise(4, 3, 8, 8)
    mixed = torch.einsum("oc,nchw->nohw", noise(5, 3), a) + 2  # five mixtures of three channels
    other = noise(4, 3, 8, 8, seed=5)
    assert code.recoverable(a, torch.cat([other, a], 1)) > 0.9999
    assert code.recoverable(a, mixed) > 0.9999
    assert code.recoverable(a, other) < 0.1
    half = code.recoverable(a, a + other)  # signal and noise of equal strength
    assert 0.4 < half < 0.6


def check_readers(code):
    """84 connections; zeroing a slice does to the reader what removing the source does."""
    model = RESNET.shake_batch_norms(code.cifar_densenet(40, 8)).eval()
    found = code.readers(model)
    assert sum(len(sources) for *_, sources in found) == 3 * 7 * 8 // 2
    assert [(block, reader) for block, reader, *_ in found] == [(b, r) for b in (1, 2, 3) for r in range(1, 8)]
    for _, reader, weight, sources in found:
        assert len(sources) == reader and sources[-1].stop == weight.shape[1] and sources[0].start == 0
    _, reader, weight, sources = found[3]  # block 1, layer 4
    layer, maps = model.features.block1.layers[3], [noise(2, n, 6, 6) for n in (16, 8, 8, 8)]
    separate = [F.conv2d(F.relu(layer.norm1(torch.cat(maps, 1)))[:, s], weight[:, s]) for s in sources]
    assert torch.allclose(sum(separate), layer.read(*maps), atol=1e-4)
    with torch.no_grad():
        weight[:, sources[2]] = 0
    assert torch.allclose(sum(separate) - separate[2], layer.read(*maps), atol=1e-4)


def check_mean_weights(code):
    model = code.cifar_densenet(40, 8)
    values = code.mean_weights(model)
    assert len(values) == 84
    weight = model.features.block2.layers[1].conv1.weight.detach()  # reads x0 and 8 channels of x1
    assert values[2, 2, 1] == pytest.approx(float(weight[:, -8:].abs().mean()))
    assert values[3, 7, 6] == pytest.approx(float(model.classifier.weight.detach()[:, -8:].abs().mean()))


def check_memory_twice(code):
    """A second training step still updates the running averages."""
    model = code.cifar_densenet(22, 4, memory_efficient=True)
    first = [average.clone() for average in one_step(model)[1]]
    second = one_step(model)[1]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check_recoverable_offset(code):
    """A constant added to what is sought does not flatter."""
    assert code.recoverable(noise(4, 3, 8, 8) + 100, noise(4, 3, 8, 8, seed=5)) < 0.1


# ------------------------------------------------------------------------------------------------------ mutants

MUTANTS = {
    "the bottleneck has 2k channels": (
        "nn.Conv2d(before, 4 * growth, 1, bias=False)\n            self.norm2 = nn.BatchNorm2d(4 * growth)\n"
        "            self.conv2 = nn.Conv2d(4 * growth,",
        "nn.Conv2d(before, 2 * growth, 1, bias=False)\n            self.norm2 = nn.BatchNorm2d(2 * growth)\n"
        "            self.conv2 = nn.Conv2d(2 * growth,",
        "cifar_parameters",
    ),
    "convolutions with bias": (
        "nn.Conv2d(before, growth, 3, padding=1, bias=False)",
        "nn.Conv2d(before, growth, 3, padding=1)",
        "cifar_parameters",
    ),
    "no ReLU before the first convolution": (
        "F.relu(self.norm1(torch.cat(features, 1)), inplace=True)",
        "self.norm1(torch.cat(features, 1))",
        "layer",
    ),
    "no ReLU in a bottleneck": ("F.relu(self.norm2(new), inplace=True)", "self.norm2(new)", "parity"),
    "a layer reads the last maps only": ("features.append(layer(features))", "features = [layer(features)]", "block"),
    "new maps come first": (
        "        return torch.cat(features, 1)\n\n\n",
        "        return torch.cat(features[::-1], 1)\n\n\n",
        "block",
    ),
    "layers do not widen": ("DenseLayer(before + number * growth,", "DenseLayer(before,", "channels"),
    "a transition without ReLU": ("F.relu(self.norm(x), inplace=True)", "self.norm(x)", "transition"),
    "maximum in a transition": ("F.avg_pool2d(", "F.max_pool2d(", "transition"),
    "compression rounds up": ("int(compression * channels)", "-int(-compression * channels // 1)", "channels"),
    "a transition behind the last block, too": ("if number > 1:", "if number > 0:", "shapes"),
    "16 channels first for every form": (
        "2 * growth if bottleneck and compression < 1 else 16",
        "16",
        "cifar_parameters",
    ),
    "2k channels first for every form": (
        "2 * growth if bottleneck and compression < 1 else 16",
        "2 * growth",
        "cifar_parameters",
    ),
    "a bottleneck counts once": ("2 if bottleneck else 1", "1", "depth"),
    "no ReLU behind the last normalisation": (
        "x = F.relu(self.features(images))",
        "x = self.features(images)",
        "parity",
    ),
    "a stem that keeps the size": ("stride=2, padding=3, bias=False)", "padding=3, bias=False)", "imagenet_counts"),
    "wrong blocks for 169": ("(6, 12, 32, 32)", "(6, 12, 32, 16)", "imagenet_counts"),
    "no dropout in bottlenecks": ("        new = self.dropout(new)\n", "", "dropout"),
    "no dropout in transitions": ("F.avg_pool2d(self.dropout(x), 2)", "F.avg_pool2d(x, 2)", "dropout"),
    "averages updated twice": (
        "nullcontext(), statistics_kept(self.norm1)",
        "nullcontext(), nullcontext()",
        "memory_efficient",
    ),
    "averages never updated": (
        "nullcontext(), statistics_kept(self.norm1)",
        "statistics_kept(self.norm1), statistics_kept(self.norm1)",
        "memory_efficient",
    ),
    "the momentum is not restored": (
        "        norm.momentum = momentum\n",
        "        pass\n",
        "memory_twice",
    ),
    "nothing is computed again": ("if self.memory_efficient:", "if False:", "memory_efficient"),
    "views are counted": ("key, size = storage._cdata,", "key, size = object(),", "peak"),
    "freed memory stays": ("        self.now -= size", "        pass", "peak"),
    "other first weights": ("resnet.he_initialize(self)", "pass", "initialisation"),
    "the spread around zero": ("b - b.mean(0)", "b - 0", "recoverable_offset"),
    "the classifier is forgotten": ("after = model.classifier if last else", "after =", "readers"),
    "all sources for every reader": ("weight, sources[:reader]", "weight, sources", "readers"),
    "signed weights": (
        "weight[:, channels].detach().abs().mean()",
        "weight[:, channels].detach().mean()",
        "mean_weights",
    ),
}


test_chapter, test_mutant_is_noticed = chapter_tests(DENSENET, globals(), MUTANTS)


# ------------------------------------------------------------------------------------------------------ the rest


def test_wrong_depths_are_refused():
    for depth in (4, 20, 41):
        with pytest.raises(ValueError, match="6n \\+ 4"):
            DENSENET.cifar_densenet(depth, 12)
    with pytest.raises(ValueError, match="3n \\+ 4"):
        DENSENET.cifar_densenet(41, 12, bottleneck=False)


@pytest.mark.parametrize("name", ["161", "169"])
def test_other_networks_are_torchvisions(name):
    ours = RESNET.shake_batch_norms(DENSENET.densenet(name))
    theirs = parity.copy_in_order(ours, on_meta(getattr(torchvision.models, f"densenet{name}")))
    assert parity.relative_difference(ours, theirs, noise(2, 3, 64, 64)) < 1e-12


def test_torchvisions_class_contains_bc_100_12():
    theirs = torchvision.models.DenseNet(12, (16, 16, 16), num_init_features=24, num_classes=10)
    theirs.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(theirs.features, name, nn.Identity())
    ours = RESNET.shake_batch_norms(DENSENET.cifar_densenet(100, 12))
    parity.copy_in_order(ours, theirs)
    assert parity.relative_difference(ours, theirs, noise(2, 3, 32, 32)) < 1e-12


def test_arms_of_the_study_cost_what_their_names_say():
    arms = {
        arm: DENSENET.build(**{name: value for name, value in shape.items() if name != "epochs"})
        for arm, shape in DENSENET.ARMS.items()
    }
    parameters = {arm: inspect.count_parameters(model) for arm, model in arms.items()}
    macs = {arm: inspect.count_macs(model, (3, 16, 16)) for arm, model in arms.items()}
    ours = "DenseNet-BC"
    assert parameters["ResNet, equal parameters"] == pytest.approx(parameters[ours], rel=0.06)
    assert macs["ResNet, equal multiply-adds"] == pytest.approx(macs[ours], rel=0.01)
    assert parameters["ResNet, equal seconds"] == parameters["ResNet, equal parameters"]
    epochs = {arm: shape["epochs"] for arm, shape in DENSENET.ARMS.items()}
    assert len({epochs[arm] for arm in arms if arm != "ResNet, equal seconds"}) == 1


def test_the_paper_schedule_is_steps():
    factor = train.SCHEDULES["steps"]
    assert [factor(epoch / 300) for epoch in (149, 150, 224, 225)] == pytest.approx([1, 0.1, 0.1, 0.01])
