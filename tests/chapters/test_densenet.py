"""Chapter 3: the paper's counts, torchvision's answers, reuse, memory and gradients; wrong solutions get hints."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toys import from_cells, holds, leaves_modes, noise, on_meta, red_or_blue

from helpers import inspect, naming, parity, train
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


@holds(
    DENSENET,
    {
        "a stem that keeps the size": ("stride=2, padding=3, bias=False)", "padding=3, bias=False)"),
        "wrong blocks for 169": ("(6, 12, 32, 32)", "(6, 12, 32, 16)"),
    },
)
def test_imagenet_counts(code):
    for name, (parameters, giga) in IMAGENET.items():
        model = on_meta(code.densenet, name)
        assert inspect.count_parameters(model) == parameters
        assert round(inspect.count_macs(model, (3, 224, 224)) / 1e9, 3) == giga


@holds(
    DENSENET,
    {
        "the last convolution of a bottleneck is 1x1": (
            "nn.Conv2d(4 * growth, growth, 3, padding=1,",
            "nn.Conv2d(4 * growth, growth, 1,",
        ),
        "convolutions with bias": (
            "nn.Conv2d(before, growth, 3, padding=1, bias=False)",
            "nn.Conv2d(before, growth, 3, padding=1)",
        ),
        "16 channels first for every form": ("2 * growth if bottleneck and compression < 1 else 16", "16"),
        "2k channels first for every form": ("2 * growth if bottleneck and compression < 1 else 16", "2 * growth"),
    },
)
def test_cifar_parameters(code):
    for depth, growth, form, parameters, _ in CIFAR:
        assert inspect.count_parameters(on_meta(code.cifar_densenet, depth, growth, **form)) == parameters


@holds(DENSENET)
def test_cifar_multiply_adds(code):
    for depth, growth, form, _, millions in CIFAR[:1] + CIFAR[3:4]:
        model = on_meta(code.cifar_densenet, depth, growth, **form)
        assert round(inspect.count_macs(model, (3, 32, 32)) / 1e6, 1) == millions


@holds(
    DENSENET,
    {
        "a bottleneck counts once": ("2 if bottleneck else 1", "1"),
    },
)
def test_depth(code):
    """L counts convolutions and the classifier, whatever the form."""
    for form in ({}, BASIC, {"compression": 1.0}, {"bottleneck": False}):
        model = on_meta(code.cifar_densenet, 40, 12, **form)
        assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == 40


@holds(
    DENSENET,
    {
        "layers do not widen": ("DenseLayer(before + number * growth,", "DenseLayer(before,"),
        "compression rounds up": ("int(compression * channels)", "-int(-compression * channels // 1)"),
    },
)
def test_channels(code):
    """k0 + k (l - 1) into layer l, floor(theta m) out of a transition, 342 at the end of BC (100, 12)."""
    model = on_meta(code.cifar_densenet, 100, 12)
    read = [layer.norm1.num_features for layer in model.features.block1.layers]
    assert read == [24 + 12 * n for n in range(16)]
    assert [model.features.transition1.conv.out_channels, model.features.transition2.conv.out_channels] == [108, 150]
    assert model.classifier.in_features == 342
    odd = on_meta(code.DenseNet, (1, 1), 5, 10, compression=0.5)
    assert odd.features.transition1.conv.out_channels == 7  # floor of 7.5


@holds(
    DENSENET,
    {
        "a transition behind the last block, too": ("if number > 1:", "if number > 0:"),
    },
)
def test_shapes(code):
    maps = torch.empty(1, 3, 224, 224, device="meta")
    seen = {}
    for name, part in on_meta(code.densenet, "121").features.named_children():
        maps = part(maps)
        seen[name] = tuple(maps.shape[1:])
    assert seen["stem"] == (64, 56, 56) and seen["block1"] == (256, 56, 56) and seen["transition1"] == (128, 28, 28)
    assert seen["block2"] == (512, 28, 28) and seen["block3"] == (1024, 14, 14) and seen["norm"] == (1024, 7, 7)


@holds(
    DENSENET,
    {
        "no ReLU before the first convolution": (
            "F.relu(self.norm1(torch.cat(features, 1)), inplace=True)",
            "self.norm1(torch.cat(features, 1))",
        ),
    },
)
def test_layer(code):
    """BN, ReLU, 1x1, BN, ReLU, 3x3 on the concatenation."""
    layer, sources = code.DenseLayer(7, 3), [noise(2, 4, 5, 5), noise(2, 3, 5, 5)]
    RESNET.shake_batch_norms(layer)
    hidden = F.conv2d(F.relu(layer.norm1(torch.cat(sources, 1))), layer.conv1.weight)
    expected = F.conv2d(F.relu(layer.norm2(hidden)), layer.conv2.weight, padding=1)
    assert torch.allclose(layer(sources), expected, atol=1e-5)
    assert layer.conv1.weight.shape == (12, 7, 1, 1) and expected.shape == (2, 3, 5, 5)


@holds(
    DENSENET,
    {
        "a layer reads the last maps only": ("features.append(layer(features))", "features = [layer(features)]"),
        "new maps come first": (
            "        return torch.cat(features, 1)\n\n\n",
            "        return torch.cat(features[::-1], 1)\n\n\n",
        ),
    },
)
def test_block(code):
    """Every layer reads all maps before it; all of them leave the block, untouched and in order."""
    block, x = code.DenseBlock(4, 3, 2).eval(), noise(2, 4, 6, 6)
    y = block(x)
    assert y.shape == (2, 10, 6, 6) and torch.equal(y[:, :4], x)
    for number, layer in enumerate(block.layers):
        read = y[:, : 4 + 2 * number]
        assert torch.allclose(layer([read]), y[:, 4 + 2 * number : 6 + 2 * number], atol=1e-6)


@holds(
    DENSENET,
    {
        "a transition without ReLU": ("F.relu(self.norm(x), inplace=True)", "self.norm(x)"),
        "maximum in a transition": ("F.avg_pool2d(", "F.max_pool2d("),
    },
)
def test_transition(code):
    transition, x = RESNET.shake_batch_norms(code.Transition(6, 3)).eval(), noise(2, 6, 8, 8)
    expected = F.avg_pool2d(F.conv2d(F.relu(transition.norm(x)), transition.conv.weight), 2)
    assert torch.allclose(transition(x), expected, atol=1e-6)


@holds(
    DENSENET,
    {
        "no ReLU in a bottleneck": ("F.relu(self.norm2(new), inplace=True)", "self.norm2(new)"),
        "no ReLU behind the last normalisation": ("x = F.relu(self.features(images))", "x = self.features(images)"),
    },
)
def test_parity(code):
    x = noise(2, 3, 64, 64)
    torch.manual_seed(0)
    ours = RESNET.shake_batch_norms(code.densenet("121"))
    theirs = parity.copy_in_order(ours, on_meta(torchvision.models.densenet121))
    assert parity.relative_difference(ours, theirs, x) < 1e-12


@holds(
    DENSENET,
    {
        "no dropout in bottlenecks": ("        new = self.dropout(new)\n", ""),
        "no dropout in transitions": ("F.avg_pool2d(self.dropout(x), 2)", "F.avg_pool2d(x, 2)"),
    },
)
def test_dropout(code):
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


@holds(
    DENSENET,
    {
        "averages updated twice": ("nullcontext(), statistics_kept(self.norm1)", "nullcontext(), nullcontext()"),
        "averages never updated": (
            "nullcontext(), statistics_kept(self.norm1)",
            "statistics_kept(self.norm1), statistics_kept(self.norm1)",
        ),
        "nothing is computed again": ("if self.memory_efficient:", "if False:"),
    },
)
def test_memory_efficient(code):
    """Same gradients, running averages updated once, and a lower peak."""
    torch.manual_seed(0)
    plain, efficient = (code.cifar_densenet(40, 4, memory_efficient=flag) for flag in (False, True))
    efficient.load_state_dict(plain.state_dict())
    for ours, theirs in zip(one_step(plain), one_step(efficient), strict=True):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    batch = noise(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)
    peaks = [code.peak_of_a_step(code.cifar_densenet(58, 8, memory_efficient=flag), *batch) for flag in (False, True)]
    assert peaks[1] < 0.7 * peaks[0]


@holds(DENSENET)
def test_memory_with_dropout(code):
    """The second run draws the same dropout as the first."""
    torch.manual_seed(0)
    models = [code.cifar_densenet(22, 4, dropout=0.2, memory_efficient=flag) for flag in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (one_step(model)[0] for model in models)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


@holds(
    DENSENET,
    {
        "views are counted": ("key, size = storage._cdata,", "key, size = object(),"),
        "freed memory stays": ("        self.now -= size", "        pass"),
    },
)
def test_peak(code):
    """Two tensors alive at once, then one; views and freed memory are not counted twice."""
    with code.PeakMemory() as memory:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a.view(10, 100) + 1  # a view, and 4,000 bytes more
        del a, b
        c = torch.zeros(500)
    assert memory.peak == 8000 and memory.now == 2000
    del c
    assert memory.now == 0


@holds(
    DENSENET,
    {
        "other first weights": ("resnet.he_initialize(self)", "pass"),
    },
)
def test_initialisation(code):
    torch.manual_seed(0)
    model = code.cifar_densenet(22, 24)
    weight = model.features.block3.layers[2].conv2.weight.detach()  # 96 channels in
    assert abs(float(weight.std()) / (2 / (9 * 96)) ** 0.5 - 1) < 0.05
    assert not model.classifier.bias.any()


@holds(DENSENET)
def test_recoverable(code):
    a = noise(4, 3, 8, 8)
    mixed = torch.einsum("oc,nchw->nohw", noise(5, 3), a) + 2  # five mixtures of three channels
    other = noise(4, 3, 8, 8, seed=5)
    assert code.recoverable(a, torch.cat([other, a], 1)) > 0.9999
    assert code.recoverable(a, mixed) > 0.9999
    assert code.recoverable(a, other) < 0.1
    half = code.recoverable(a, a + other)  # signal and noise of equal strength
    assert 0.4 < half < 0.6


@holds(
    DENSENET,
    {
        "the classifier is forgotten": ("after = model.classifier if last else", "after ="),
        "all sources for every reader": ("weight, sources[:reader]", "weight, sources"),
    },
)
def test_readers(code):
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


@holds(
    DENSENET,
    {
        "signed weights": ("weight[:, channels].detach().abs().mean()", "weight[:, channels].detach().mean()"),
    },
)
def test_mean_weights(code):
    model = code.cifar_densenet(40, 8)
    values = code.mean_weights(model)
    assert len(values) == 84
    weight = model.features.block2.layers[1].conv1.weight.detach()  # reads x0 and 8 channels of x1
    assert values[2, 2, 1] == pytest.approx(float(weight[:, -8:].abs().mean()))
    assert values[3, 7, 6] == pytest.approx(float(model.classifier.weight.detach()[:, -8:].abs().mean()))


@holds(
    DENSENET,
    {
        "the momentum is not restored": ("        norm.momentum = momentum\n", "        pass\n"),
    },
)
def test_memory_twice(code):
    """A second training step still updates the running averages."""
    model = code.cifar_densenet(22, 4, memory_efficient=True)
    first = [average.clone() for average in one_step(model)[1]]
    second = one_step(model)[1]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@holds(
    DENSENET,
    {
        "the spread around zero": ("b - b.mean(0)", "b - 0"),
    },
)
def test_recoverable_offset(code):
    """A constant added to what is sought does not flatter."""
    assert code.recoverable(noise(4, 3, 8, 8) + 100, noise(4, 3, 8, 8, seed=5)) < 0.1


@holds(
    DENSENET,
    {
        "gradients of weights": (
            "torch.autograd.grad(loss, maps)",
            "torch.autograd.grad(loss, [m.weight for m in convolutions])",
        ),
        "last to first": ("in torch.autograd.grad(loss, maps)]", "in torch.autograd.grad(loss, maps[::-1])]"),
    },
)
def test_gradient_norms(code):
    """Two convolutions and a sum, by hand: the gradient for the maps of each."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, (3, 1), bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images, labels = noise(2, 3, 5, 4), torch.tensor([1, 0])
    first = model[0](images).detach().requires_grad_()
    second = model[1](first)
    loss = F.cross_entropy(second.mean((2, 3)), labels)
    expected = [float(g.norm()) for g in torch.autograd.grad(loss, [first, second])]
    assert code.gradient_norms(model, images, labels) == pytest.approx(expected, rel=1e-4)
    assert not any(module._forward_hooks for module in model), "hooks are taken off"


@holds(
    DENSENET,
    {
        "cuts stay": ("weight[:, channels] = values", "pass"),
        "nothing is cut": ("        weight[:, channels] = 0\n", "        pass\n"),
        "a share instead of percent": (
            "return 100 * metrics.accuracy(answers, labels)",
            "return metrics.accuracy(answers, labels)",
        ),
        "in training mode": (
            "    with evaluating(model):\n        answers = model",
            "    if True:\n        answers = model",
        ),
        "the mode stays": (
            "    with evaluating(model):\n        answers = model",
            "    if model.eval():\n        answers = model",
        ),
    },
)
def test_cuts(code):
    """A cut removes one contribution, costs what it costs, and is undone. The network is in training mode at first."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten()]
    model = RESNET.shake_batch_norms(nn.Sequential(*parts))
    weight, images, labels = model[0].weight, noise(40, 3, 4, 5), torch.arange(40) % 2
    before = weight.detach().clone()
    with leaves_modes(model):
        found = code.score_without(model, [(weight, slice(1, 3))], images, labels)
    assert torch.equal(weight, before)
    answers = torch.einsum("oc,nc->no", before[:, :1, 0, 0], images.mean((2, 3))[:, :1])
    norm = model[2]
    answers = F.batch_norm(answers, norm.running_mean, norm.running_var, norm.weight.detach(), norm.bias.detach())
    right = (answers.argmax(1) == labels).float().mean()
    assert found == pytest.approx((100 * float(right), float(F.cross_entropy(answers, labels))), rel=1e-4)


@holds(
    DENSENET,
    {
        "signed weights flow": ("weight.detach().flatten(1).abs().mean(0)", "weight.detach().flatten(1).mean(0)"),
        "before the ReLU": ("made.relu().mean((0, 2, 3))", "made.mean((0, 2, 3))"),
        "a mean over channels": ("float(arriving[channels].sum())", "float(arriving[channels].mean())"),
    },
)
def test_flow(code):
    torch.manual_seed(0)
    model = RESNET.shake_batch_norms(code.cifar_densenet(40, 4)).eval()
    images = noise(3, 3, 8, 8)
    found = code.flow(model, images)
    assert len(found) == 84
    layer, x = model.features.block1.layers[1], model.features.stem(images)
    maps = torch.cat([x, model.features.block1.layers[0]([x])], 1)
    arriving = layer.norm1(maps).relu().mean((0, 2, 3)) * layer.conv1.weight.detach().flatten(1).abs().mean(0)
    assert found[1, 2, 0] == pytest.approx(float(arriving[:8].sum()), rel=1e-4)
    assert found[1, 2, 1] == pytest.approx(float(arriving[8:].sum()), rel=1e-4)


@holds(
    DENSENET,
    {
        "values instead of ranks": (".argsort().argsort().double()", ".double()"),
        "order instead of ranks": (".argsort().argsort().double()", ".argsort().double()"),
        "short readers count": ("if len(keys) > 3", "if len(keys) > 2"),
        "all readers as one": ("sources.setdefault((block, reader), [])", "sources.setdefault(block, [])"),
    },
)
def test_rank_correlation(code):
    assert code.rank_correlation([1.0, 9.0, 2.0, 4.0], [0.1, 80.0, 0.3, 0.2]) == pytest.approx(0.8)
    assert code.rank_correlation([1.0, 2.0, 3.0], [9.0, 8.0, -1.0]) == pytest.approx(-1)
    assert code.rank_correlation([3.0, 1.0, 2.0, 4.0], [2.0, 1.0, 3.0, 4.0]) == pytest.approx(0.8)
    order = {4: [1, 2, 3, 4], 5: [5, 4, 3, 2, 1], 3: [3, 1, 2]}
    values = {(1, reader, n): float(n) for reader in order for n in range(reader)}
    cost = {(1, reader, n): float(ranks[n]) for reader, ranks in order.items() for n in range(reader)}
    assert code.within_readers(values, cost) == pytest.approx(0)  # +1 of four sources, -1 of five


@holds(DENSENET, {"thirteen names": ("classes=len(naming.CLASSES)", "classes=1 + len(naming.CLASSES)")})
def test_named_network(code):
    assert on_meta(code.named_network).classifier.out_features == len(naming.CLASSES) == 12


@holds(DENSENET, {"too few epochs": ('a | {"epochs": 20}', 'a | {"epochs": 3}')})
def test_longer_study(code):
    """Every arm trains for 20 epochs but one, a second training of the smallest network for three times as long."""
    longer = {arm: shape for arm, shape in code.LONG_ARMS.items() if shape["epochs"] != 20}
    assert longer == {"ResNet, three times as long": code.ARMS["ResNet, equal seconds"] | {"epochs": 60}}
    assert {arm for claim in code.LONG_CLAIMS.all.values() for arm in claim.arms} == set(code.LONG_ARMS)
    wide, ours = code.networks_of(code.LONG_ARMS)["ResNet, equal multiply-adds"], code.build(22, 12)
    assert 2.8 < inspect.count_parameters(wide) / inspect.count_parameters(ours) < 3


# ------------------------------------------------------------------------------------------------------ exercises

CHECK_RECENT, RECENT, CHECK_FRUGAL, FRUGAL = from_cells(
    DENSENET, "check_recent", "keep_recent_solution", "check_frugal", "frugal_solution"
)


@torch.no_grad()
def cut(model, old, readers=6, with_weight=lambda weight, channels: weight[:, channels].zero_()):
    """Zero what `old(reader, source)` says, of readers up to `readers`."""
    for _, reader, weight, sources in DENSENET.readers(model):
        for source, channels in enumerate(sources):
            if reader <= readers and old(reader, source):
                with_weight(weight, channels)


def by_loop(model, distance):
    cut(model, lambda reader, source: source < reader - distance)


def oldest_kept(model, distance):
    cut(model, lambda reader, source: source >= distance)


def one_too_few(model, distance):
    cut(model, lambda reader, source: source <= reader - distance)


def transitions_too(model, distance):
    cut(model, lambda reader, source: source < reader - distance, readers=7)


def a_copy(model, distance):
    model = copy.deepcopy(model)
    by_loop(model, distance)
    return model


def a_copy_forgotten(model, distance):
    by_loop(copy.deepcopy(model), distance)


def the_rest_rescaled(model, distance):
    by_loop(model, distance)
    cut(model, lambda reader, source: source >= reader - distance, with_weight=lambda w, c: w[:, c].mul_(1.1))


@pytest.mark.parametrize("answer", [RECENT, by_loop])
def test_right_cutting_passes(answer):
    CHECK_RECENT(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (oldest_kept, "distance 1, block 1, reader 2, source x0: should be zero"),
        (one_too_few, "reader 1, source x0: should not be zero"),
        (transitions_too, "reader 7, source x0: should not be zero"),
        (a_copy, "change the weights in place"),
        (a_copy_forgotten, "should be zero"),
        (the_rest_rescaled, "a weight that stays must keep its value"),
    ],
)
def test_wrong_cutting_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_RECENT(answer)


def again(layer, features, *kept):
    """The layer, run again for the gradient with the averages of `kept` left alone."""

    class Both:
        def __enter__(self):
            self.momenta = [norm.momentum for norm in kept]
            for norm in kept:
                norm.momentum = 0.0

        def __exit__(self, *error):
            for norm, momentum in zip(kept, self.momenta, strict=True):
                norm.momentum = momentum

    def run(*maps):
        return layer(list(maps))

    contexts = lambda: (DENSENET.nullcontext(), Both())  # noqa: E731
    return DENSENET.checkpoint(run, *features, use_reentrant=False, context_fn=contexts)


def with_a_class(layer, features):
    return again(layer, features, layer.norm1, layer.norm2)


def averages_twice(layer, features):
    return again(layer, features)


def second_average_twice(layer, features):
    return again(layer, features, layer.norm1)


def nothing_again(layer, features):
    return layer(features)


def no_gradient(layer, features):
    with torch.no_grad():
        hidden = layer.read(*features)
    return layer.conv2(F.relu(layer.norm2(hidden)))


def cut_off(layer, features):
    return layer([maps.detach() for maps in features])


def in_evaluation(layer, features):
    return again(layer.eval(), features)


@pytest.mark.parametrize("answer", [FRUGAL, with_a_class])
def test_right_saving_passes(answer):
    CHECK_FRUGAL(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (averages_twice, "is each updated once"),
        (second_average_twice, "is each updated once"),
        (nothing_again, "the peak is"),
        (no_gradient, "no gradient at all"),
        (cut_off, "the gradients differ"),
        (in_evaluation, "the gradients differ"),
    ],
)
def test_wrong_saving_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_FRUGAL(answer)


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


@holds(
    DENSENET,
    {
        "the batches of another seed": ("data, epochs, seed)", "data, epochs, 0)"),
        "the weights of another seed": ("train.set_seed(seed)\n    history = resnet", "history = resnet"),
    },
)
def test_one_run_of_the_study(code):
    shape, data = {"depth": 10, "growth": 4}, red_or_blue(64)
    run = code.train_arm(data, seed=1, epochs=1, **shape)
    train.set_seed(1)
    history = RESNET.train_small(code.build(**shape), data, 1, 1)
    assert run == {name: history.last(name) for name in run}
    assert run.keys() == {"train_loss", "train_error", "test_loss", "test_accuracy"}
