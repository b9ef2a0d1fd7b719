"""Chapter 7: the paper's counts, timm's answers, orders and gates; then mutants of the chapter's code."""

import functools

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import nn
from toys import from_cells, holds, leaves_modes, noise, on_meta, red_or_blue

from helpers import inspect, naming, parity
from helpers.chapters import chapter

CBAM = chapter("07_cbam")

# parameters and multiply-adds of the paper's networks; parameters of timm's, which have no bias in the two layers
IMAGENET = {
    18: (11_779_392, 1_815_063_764, 11_777_352),
    34: (21_960_468, 3_665_434_742, 21_956_456),
    50: (28_089_624, 3_864_362_102, 28_073_576),
    101: (49_330_172, 7_581_366_270, 49_295_628),
}


def shaken(module, seed=0):
    """The module with batch norms and biases that matter."""
    torch.manual_seed(seed)
    CBAM.resnet.shake_batch_norms(module)
    for name, parameter in module.named_parameters():
        if name.endswith(("fc1.bias", "fc2.bias")):
            nn.init.normal_(parameter)
    return module.eval()


@holds(
    CBAM,
    {
        "a bias in the filter": ("padding=kernel_size // 2, bias=False", "padding=kernel_size // 2"),
        "a filter of 3x3": ("kernel_size=7, order", "kernel_size=3, order"),
        "another ratio": (
            "ChannelAttention(channels, r)\n        self.spatial",
            "ChannelAttention(channels, 8)\n        self.spatial",
        ),
        "attention replaces the batch normalisation": (
            "nn.Sequential(norm, attention(norm.num_features))",
            "attention(norm.num_features)",
        ),
    },
)
def test_counts(code):
    for depth, (parameters, macs, _) in IMAGENET.items():
        model = on_meta(code.cbam_resnet, depth)
        assert inspect.count_parameters(model) == parameters
        assert inspect.count_macs(model, (3, 224, 224)) == macs


@holds(
    CBAM,
    {
        "one descriptor only": ("for pool in self.pools)", "for pool in self.pools[:1])"),
        "a product instead of a sum": (
            "self.sigmoid(sum(self.mlp(DESCRIPTORS[pool](x)) for pool in self.pools))",
            "self.sigmoid(torch.stack([self.mlp(DESCRIPTORS[pool](x)) for pool in self.pools]).prod(0))",
        ),
        "no ReLU between the layers": ("self.fc2(self.relu(self.fc1(descriptor)))", "self.fc2(self.fc1(descriptor))"),
    },
)
def test_channel_equation(code):
    x, unit = noise(2, 32, 5, 7), shaken(code.ChannelAttention(32, r=8))

    def mlp(v):
        hidden = F.relu(F.linear(v, unit.fc1.weight.flatten(1), unit.fc1.bias))
        return F.linear(hidden, unit.fc2.weight.flatten(1), unit.fc2.bias)

    expected = (mlp(x.mean((2, 3))) + mlp(x.amax((2, 3)))).sigmoid()
    assert unit.gate(x).shape == (2, 32, 1, 1)
    assert torch.allclose(unit.gate(x)[..., 0, 0], expected, atol=1e-6)
    assert torch.allclose(unit(x), x * expected[..., None, None], atol=1e-6)


@holds(CBAM, {"the maximum is an average": ('"max": lambda x: F.adaptive_max', '"max": lambda x: F.adaptive_avg')})
def test_shared_layers(code):
    """One set of two layers, whatever the gate is told; and both descriptors reach it."""
    units = [code.ChannelAttention(32, pools=pools) for pools in (("avg",), ("max",), ("avg", "max"))]
    assert {inspect.count_parameters(unit) for unit in units} == {2 * 32 * 2 + 2 + 32}
    x, gates = noise(2, 32, 6, 6), []
    for unit in units:
        unit.load_state_dict(units[0].state_dict())
        gates.append(torch.logit(unit.gate(x).double()))
    assert torch.allclose(gates[0] + gates[1], gates[2], atol=1e-5)
    assert not torch.allclose(gates[0], gates[1], atol=1e-2)


@holds(CBAM)
def test_average_is_squeeze(code):
    average = code.ChannelAttention(32, pools=("avg",))
    squeeze = code.SqueezeExcitation(32)
    squeeze.load_state_dict(average.state_dict())
    x = noise(2, 32, 6, 6)
    assert torch.equal(average(x), squeeze(x))


@holds(
    CBAM,
    {
        "mean over positions": ("x.mean(1, keepdim=True)", "x.mean((1, 2, 3), keepdim=True).expand_as(x[:, :1])"),
        "no batch normalisation": ("self.sigmoid(self.bn(self.conv(", "self.sigmoid((self.conv("),
        "takes even filters": ("if kernel_size % 2 == 0:", "if kernel_size < 1:"),
    },
)
def test_spatial_equation(code):
    with pytest.raises(ValueError, match="kernel_size=4 has no middle"):
        code.SpatialAttention(4)
    for kernel_size in (3, 7):
        x, unit = noise(2, 8, 9, 6), shaken(code.SpatialAttention(kernel_size))
        stacked = torch.stack([x.mean(1), x.amax(1)], 1)
        raw = F.conv2d(stacked, unit.conv.weight, padding=kernel_size // 2)
        bn = unit.bn
        normal = (raw - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
        assert unit.gate(x).shape == (2, 1, 9, 6)
        assert torch.allclose(unit.gate(x), normal.sigmoid(), atol=1e-5)
        assert torch.allclose(unit(x), x * normal.sigmoid(), atol=1e-5)
        assert inspect.count_parameters(unit) == 2 * kernel_size**2 + 2


@holds(CBAM, {"gates that start anywhere": ("nn.init.zeros_(self.bn.weight)", "nn.init.ones_(self.bn.weight)")})
def test_neutral_start(code):
    unit = code.SpatialAttention()
    assert bool((unit.gate(noise(2, 8, 9, 9)) == 0.5).all())


@holds(
    CBAM,
    {
        "orders swapped": ('self.order == "channel first"', 'self.order == "spatial first"'),
        "parallel one after the other": (
            "return x * self.channel.gate(x) * self.spatial.gate(x)",
            "return self.channel(x) * self.spatial.gate(self.channel(x))",
        ),
    },
)
def test_orders(code):
    x, first = noise(2, 32, 7, 7), shaken(code.CBAM(32))
    channel, spatial = first.channel, first.spatial
    expected = {
        "channel first": spatial(channel(x)),
        "spatial first": channel(spatial(x)),
        "parallel": channel.gate(x) * spatial.gate(x) * x,
    }
    assert set(code.ORDERS) == set(expected)
    for order, wanted in expected.items():
        module = code.CBAM(32, order=order).eval()
        module.load_state_dict(first.state_dict())
        assert torch.allclose(module(x), wanted, atol=1e-6), order
    values = list(expected.values())
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(values) for b in values[:i])


@holds(
    CBAM,
    {
        "maximum before average": (
            "[x.mean(1, keepdim=True), x.max(1, keepdim=True).values]",
            "[x.max(1, keepdim=True).values, x.mean(1, keepdim=True)]",
        )
    },
)
def test_module_parity(code):
    """timm's module, with biases; its order of the two descriptions is ours."""
    for channels in (16, 32):
        ours, theirs = shaken(code.CBAM(channels)), CbamModule(channels, mlp_bias=True)
        parity.copy_in_order(ours, theirs)
        assert parity.relative_difference(ours, theirs, noise(2, channels, 9, 9)) < 1e-12


@holds(
    CBAM,
    {
        "authors' order": (
            "[x.mean(1, keepdim=True), x.max(1, keepdim=True).values]",
            "[x.max(1, keepdim=True).values, x.mean(1, keepdim=True)]",
        )
    },
)
def test_official_order(code):
    """The authors' code stacks the maximum first: equal once the two input channels of the filter are swapped."""
    x, unit = noise(2, 8, 9, 9), shaken(code.SpatialAttention())

    def authors(weight):
        return unit.bn(F.conv2d(torch.stack([x.amax(1), x.mean(1)], 1), weight, padding=3)).sigmoid()

    assert torch.allclose(unit.gate(x), authors(unit.conv.weight.flip(1)), atol=1e-6)
    assert not torch.allclose(unit.gate(x), authors(unit.conv.weight), atol=1e-2)


@holds(
    CBAM,
    {
        "after the addition of a narrow block": (
            'last = "bn3" if isinstance(block, resnet.Bottleneck) else "bn2"',
            'last = "bn2"',
        ),
        "attention before the batch normalisation": (
            "nn.Sequential(norm, attention(norm.num_features))",
            "nn.Sequential(attention(norm.num_features), norm)",
        ),
    },
)
def test_network_parity(code):
    """All of CBAM-ResNet-50 with the stride where timm has it."""
    ours = shaken(code.cbam_resnet(50, placement="v1.5"))
    layer = functools.partial(CbamModule, mlp_bias=True)
    theirs = on_meta(timm.create_model, "resnet50", block_args=dict(attn_layer=layer))
    parity.copy_in_order(ours, theirs)
    assert parity.relative_difference(ours, theirs, noise(2, 3, 64, 64)) < 1e-12


@holds(CBAM)
def test_placement(code):
    """A module in every block, on the branch: with closed gates a block is its shortcut."""
    model = code.small_network("channel first").eval()
    modules = [module for module in model.modules() if isinstance(module, code.CBAM)]
    assert len(modules) == 9 and [m.channel.fc1.in_channels for m in modules] == [8] * 3 + [16] * 3 + [32] * 3
    for module in modules:
        nn.init.constant_(module.spatial.bn.bias, -100.0)
    x = noise(2, 8, 6, 6).relu()
    assert torch.allclose(model.layer1(x), x)


@holds(
    CBAM,
    {
        "SE for channel attention": (
            '"channel only": lambda channels: ChannelAttention(channels, r)',
            '"channel only": lambda channels: CBAM(channels, r)',
        )
    },
)
def test_arms(code):
    """What the arms of the study cost, and that the network around the attention starts from the same weights."""
    count = {}
    starts = []
    for arm, config in code.ARMS.items():
        torch.manual_seed(0)
        model = code.small_network(**config)
        count[arm] = inspect.count_parameters(model)
        starts.append(model.layer3[2].conv2.weight.detach().clone())
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert count["SE"] == count["channel only"] and count["channel first"] == count["spatial first"]
    assert count["spatial only"] - count["none"] == 9 * 100 == count["channel first"] - count["channel only"]


@holds(
    CBAM,
    {
        "void counts": ("(maps * (masks < 255)).sum", "maps.sum"),
        "void is an animal": ("animal = (masks > 0) & (masks < 255)", "animal = masks > 0"),
    },
)
def test_share_inside(code):
    masks = torch.zeros(2, 4, 4)
    masks[:, :2], masks[:, 3] = 2, 255
    maps = torch.ones(2, 4, 4)
    maps[1, 0], maps[1, 3] = 3.0, 100.0  # void is left out
    assert code.share_inside(maps, masks).tolist() == pytest.approx([8 / 12, 16 / 20])
    assert code.share_inside(torch.zeros(1, 4, 4), masks[:1]).isnan().all()


@holds(CBAM, {"boxes turned": ("boxes[..., 0:1] <= middle", "boxes[..., 1:2] <= middle")})
def test_filled(code):
    boxes = torch.zeros(2, 2, 4)
    boxes[0, 0], boxes[0, 1] = torch.tensor([1.0, 2, 3, 7]), torch.tensor([4.4, 0.6, 6.6, 1.4])
    masks = code.filled(boxes, 8)
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[2:7, 1:3] = 1  # the second box contains no middle of a pixel
    assert masks.shape == (2, 8, 8) and torch.equal(masks[0], expected) and not masks[1].any()


@holds(
    CBAM,
    {
        "a threshold of the values": ("cam.unit_range(maps) > threshold", "maps > threshold"),
        "half of the range": ("region(maps, threshold=0.6)", "region(maps, threshold=0.5)"),
    },
)
def test_region(code):
    ramp = torch.linspace(-3, 7, 101).view(1, 1, 101)
    assert int(code.region(ramp).sum()) == 40 and code.region(ramp)[0, 0, -40:].all()
    assert int(code.region(ramp, 0.9).sum()) == 10


@holds(
    CBAM,
    {
        "gates of the next layer": ("lambda given, _: given)\n    with eval", "lambda _, made: made)\n    with eval"),
        "in training mode": ("with evaluating(model), torch.inf", "with torch.inf"),
        "no stride": ("model.conv1.stride = (2, 2)", "pass"),
    },
)
def test_gates(code):
    model = code.animal_network("channel first")
    for module in model.modules():
        if isinstance(module, code.SpatialAttention):
            nn.init.ones_(module.bn.weight)
    x = noise(2, 3, 64, 64)
    with leaves_modes(model):
        spatial = code.gates(model, code.SpatialAttention, x)
        channel = code.gates(model, code.ChannelAttention, x)
    model.eval()
    assert [tuple(gate.shape[1:]) for gate in spatial.values()] == [(1, 32, 32), (1, 16, 16), (1, 8, 8)]
    assert [gate.shape[1] for gate in channel.values()] == [16, 32, 64]
    block = model.layer1[0]
    branch = block.bn2[0](block.conv2(block.relu(block.bn1(block.conv1(model.relu(model.bn1(model.conv1(x))))))))
    attention = block.bn2[1]
    expected = attention.spatial.gate(attention.channel(branch))
    assert torch.allclose(next(iter(spatial.values())), expected, atol=1e-6)
    assert code.enlarged(expected).shape == (2, 64, 64)


# ------------------------------------------------------------------------------------------------- trainings


def test_arms_train():
    """Each arm of each study gives what is measured; the control has branches times its factor."""
    few = red_or_blue(128, side=16)
    losses = [CBAM.train_arm(few, seed=0, **config)["train_loss"] for config in CBAM.ARMS.values()]
    assert len(set(losses)) == len(CBAM.ARMS)
    found = CBAM.train_shrunk(few, seed=0, factor=0.25)
    assert set(found) == set(CBAM.MEASURED)
    assert CBAM.train_shrunk(few, seed=0, factor=1.0)["train_loss"] == pytest.approx(losses[0])


@holds(CBAM, {"it adds": ("return self.factor * x", "return self.factor + x")})
def test_a_constant_gate(code):
    x = noise(2, 3, 4, 5)
    assert torch.equal(code.Times(0.25)(x), x / 4)


@holds(
    CBAM,
    {
        "weights as they were": ("nn.init.zeros_(module.fc2.weight)", "pass"),
        "the bias counts once for both": ('logit / len(getattr(module, "pools", ("avg",)))', "logit"),
        "the positions stay at one half": ("nn.init.constant_(module.bn.bias, logit)", "pass"),
        "the start is forgotten": ("start_gates(small_network(kind), each)", "small_network(kind)"),
    },
)
def test_starts(code):
    """Every gate is at its start, whatever the image."""
    for kind in ("SE", "channel only", "channel first"):
        torch.manual_seed(0)
        model = code.start_gates(code.small_network(kind), 0.94)
        for module in model.modules():
            if isinstance(module, (code.SqueezeExcitation, code.SpatialAttention)):
                channels = module.fc1.in_channels if hasattr(module, "fc1") else 8
                assert torch.allclose(module.gate(noise(2, channels, 9, 7)), torch.tensor(0.94), atol=1e-6)
    few, losses = red_or_blue(128, side=16), set()
    for config in code.STARTS_ARMS.values():
        found = code.train_start(few, seed=0, epochs=1, **config)
        assert set(found) == set(code.MEASURED)
        losses.add(found["train_loss"])
    assert len(losses) == len(code.STARTS_ARMS)


@holds(
    CBAM,
    {
        "He's weights": ("                layer.reset_parameters()\n", ""),
        "biases of the default": ("                nn.init.zeros_(layer.bias)\n", ""),
    },
)
def test_weights_of_the_authors(code):
    """Uniform within one over the root of the inputs, as PyTorch's linear layers; He's would leave it."""
    torch.manual_seed(0)
    unit = code.weights_of_the_authors(nn.Sequential(code.ChannelAttention(64, 4)))[0]
    for layer, inputs in ((unit.fc1, 64), (unit.fc2, 16)):
        assert layer.weight.abs().max() <= inputs**-0.5 and not layer.bias.any()
        assert float(layer.weight.std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.1)


def test_networks_and_weights_are_declared():
    assert not list(CBAM.NETWORKS.problems())
    network = on_meta(CBAM.TRAINED.build)
    assert network.fc.out_features == len(naming.CLASSES)
    assert sum(isinstance(module, CBAM.CBAM) for module in network.modules()) == 3


# ---------------------------------------------------------------------------------------------------- exercises

CHECK_COUNT, CHECK_POINTING, COUNT, POINTING = from_cells(
    CBAM, "check_cbam_count", "check_pointing", "cbam_count_solution", "pointing_solution"
)


def count_by_units(blocks, r):
    """Another right answer: the parameters of one module of each width."""
    channels = [256 * 2**stage for stage, number in enumerate(blocks) for _ in range(number)]
    return 25_557_032 + sum(inspect.count_parameters(on_meta(CBAM.CBAM, width, r)) for width in channels)


def wrong_count(layers=2, biases=True, norm=2, ratio=None, expansion=4):
    """The count with one thing wrong."""

    def count(blocks, r):
        r, total = ratio or r, 25_557_032
        for stage, number in enumerate(blocks):
            channels = expansion * 64 * 2**stage
            hidden = channels // r
            extra = layers * channels * hidden + biases * (hidden + channels)
            total += number * (extra + 2 * 7 * 7 + norm)
        return total

    return count


@pytest.mark.parametrize("answer", [COUNT, count_by_units])
def test_right_counts_pass(answer):
    CHECK_COUNT(answer)


@pytest.mark.parametrize(
    "answer",
    [
        wrong_count(biases=False),
        wrong_count(norm=0),
        wrong_count(layers=4),  # two layers for each descriptor
        wrong_count(ratio=16),
        wrong_count(expansion=1),
    ],
)
def test_wrong_counts_are_refused(answer):
    with pytest.raises(AssertionError, match="it has 28,089,624|it has 30,605,512"):
        CHECK_COUNT(answer)


def pointing_by_loop(maps, masks):
    """Another right answer: image by image."""
    hits = 0
    for heat, mask in zip(maps, masks, strict=True):
        values, classes = heat[mask != 255], mask[mask != 255]
        hits += int(classes[values.argmax()] > 0)
    return hits / len(maps)


def only_class_one(maps, masks):
    largest = maps.masked_fill(masks == 255, float("-inf")).flatten(1).argmax(1, keepdim=True)
    return (masks == 1).flatten(1).gather(1, largest).float().mean()


def void_is_searched(maps, masks):
    largest = maps.flatten(1).argmax(1, keepdim=True)
    return ((masks > 0) & (masks < 255)).flatten(1).gather(1, largest).float().mean()


def void_is_an_animal(maps, masks):
    largest = maps.flatten(1).argmax(1, keepdim=True)
    return (masks > 0).flatten(1).gather(1, largest).float().mean()


def void_becomes_zero(maps, masks):
    largest = (maps * (masks != 255)).flatten(1).argmax(1, keepdim=True)
    return ((masks > 0) & (masks < 255)).flatten(1).gather(1, largest).float().mean()


def one_place_for_all(maps, masks):
    place = maps.masked_fill(masks == 255, float("-inf")).argmax() % maps[0].numel()
    return ((masks > 0) & (masks < 255)).flatten(1)[:, place].float().mean()


def share_of_energy(maps, masks):
    return CBAM.share_inside(maps, masks).mean()


def number_of_hits(maps, masks):
    return POINTING(maps, masks) * len(maps)


def spoils_its_input(maps, masks):
    maps[masks == 255] = float("-inf")
    return POINTING(maps, masks)


@pytest.mark.parametrize("answer", [POINTING, pointing_by_loop])
def test_right_pointing_passes(answer):
    CHECK_POINTING(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (only_class_one, "each of them is an animal"),
        (void_is_searched, "void pixels"),
        (void_is_an_animal, "void pixels"),
        (void_becomes_zero, "maps may be negative"),
        (one_place_for_all, "return the share of hits"),
        (share_of_energy, "void pixels|share of hits|negative"),
        (number_of_hits, "return the share of hits"),
        (spoils_its_input, "leave the maps as they are"),
    ],
)
def test_wrong_pointing_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_POINTING(answer)


# ---------------------------------------------------------------------------------------- the reference, and errors


def test_what_the_reference_leaves_out():
    """timm's networks have no biases in the two layers, and that is the whole difference in parameters."""
    for depth, (ours, _, theirs) in IMAGENET.items():
        model = on_meta(timm.create_model, f"resnet{depth}", block_args=dict(attn_layer="cbam"))
        parameters = on_meta(CBAM.cbam_resnet, depth).named_parameters()
        biases = sum(p.numel() for n, p in parameters if n.endswith(("fc1.bias", "fc2.bias")))
        assert inspect.count_parameters(model) == theirs == ours - biases


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="channel first, spatial first, parallel"):
        CBAM.CBAM(32, order="both")
    for pools in ((), ("avg", "median")):
        with pytest.raises(ValueError, match="choose from avg, max"):
            CBAM.ChannelAttention(32, pools=pools)
