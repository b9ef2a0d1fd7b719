"""Chapter 7: the paper's counts, timm's answers, orders and gates; then mutants of the chapter's code."""

import functools

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import nn
from toys import chapter_tests, noise, on_meta

from helpers import inspect, parity
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


# ------------------------------------------------------------------ checks of the code, each a function of a module


def check_counts(code):
    for depth, (parameters, macs, _) in IMAGENET.items():
        model = on_meta(code.cbam_resnet, depth)
        assert inspect.count_parameters(model) == parameters
        assert inspect.count_macs(model, (3, 224, 224)) == macs


def check_channel_equation(code):
    x, unit = noise(2, 32, 5, 7), shaken(code.ChannelAttention(32, r=8))

    def mlp(v):
        hidden = F.relu(F.linear(v, unit.fc1.weight.flatten(1), unit.fc1.bias))
        return F.linear(hidden, unit.fc2.weight.flatten(1), unit.fc2.bias)

    expected = (mlp(x.mean((2, 3))) + mlp(x.amax((2, 3)))).sigmoid()
    assert unit.gate(x).shape == (2, 32, 1, 1)
    assert torch.allclose(unit.gate(x)[..., 0, 0], expected, atol=1e-6)
    assert torch.allclose(unit(x), x * expected[..., None, None], atol=1e-6)


def check_shared_layers(code):
    """One set of two layers, whatever the gate is told; and both descriptors reach it."""
    units = [code.ChannelAttention(32, pools=pools) for pools in (("avg",), ("max",), ("avg", "max"))]
    assert {inspect.count_parameters(unit) for unit in units} == {2 * 32 * 2 + 2 + 32}
    x, gates = noise(2, 32, 6, 6), []
    for unit in units:
        unit.load_state_dict(units[0].state_dict())
        gates.append(torch.logit(unit.gate(x).double()))
    assert torch.allclose(gates[0] + gates[1], gates[2], atol=1e-5)
    assert not torch.allclose(gates[0], gates[1], atol=1e-2)


def check_average_is_squeeze(code):
    average = code.ChannelAttention(32, pools=("avg",))
    squeeze = code.SqueezeExcitation(32)
    squeeze.load_state_dict(average.state_dict())
    x = noise(2, 32, 6, 6)
    assert torch.equal(average(x), squeeze(x))


def check_spatial_equation(code):
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


def check_neutral_start(code):
    unit = code.SpatialAttention()
    assert bool((unit.gate(noise(2, 8, 9, 9)) == 0.5).all())


def check_orders(code):
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


def check_module_parity(code):
    """timm's module, with biases; its order of the two descriptions is ours."""
    for channels in (16, 32):
        ours, theirs = shaken(code.CBAM(channels)), CbamModule(channels, mlp_bias=True)
        parity.copy_in_order(ours, theirs)
        assert parity.relative_difference(ours, theirs, noise(2, channels, 9, 9)) < 1e-12


def check_official_order(code):
    """The authors' code stacks the maximum first: equal once the two input channels of the filter are swapped."""
    x, unit = noise(2, 8, 9, 9), shaken(code.SpatialAttention())

    def authors(weight):
        return unit.bn(F.conv2d(torch.stack([x.amax(1), x.mean(1)], 1), weight, padding=3)).sigmoid()

    assert torch.allclose(unit.gate(x), authors(unit.conv.weight.flip(1)), atol=1e-6)
    assert not torch.allclose(unit.gate(x), authors(unit.conv.weight), atol=1e-2)


def check_network_parity(code):
    """All of CBAM-ResNet-50 with the stride where timm has it."""
    ours = shaken(code.cbam_resnet(50, placement="v1.5"))
    layer = functools.partial(CbamModule, mlp_bias=True)
    theirs = on_meta(timm.create_model, "resnet50", block_args=dict(attn_layer=layer))
    parity.copy_in_order(ours, theirs)
    assert parity.relative_difference(ours, theirs, noise(2, 3, 64, 64)) < 1e-12


def check_placement(code):
    """A module in every block, on the branch: with closed gates a block is its shortcut."""
    model = code.small_network("channel first").eval()
    modules = [module for module in model.modules() if isinstance(module, code.CBAM)]
    assert len(modules) == 9 and [m.channel.fc1.in_channels for m in modules] == [8] * 3 + [16] * 3 + [32] * 3
    for module in modules:
        nn.init.constant_(module.spatial.bn.bias, -100.0)
    x = noise(2, 8, 6, 6).relu()
    assert torch.allclose(model.layer1(x), x)


def check_arms(code):
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


def check_share_inside(code):
    masks = torch.zeros(2, 4, 4)
    masks[:, :2], masks[:, 3] = 2, 255
    maps = torch.ones(2, 4, 4)
    maps[1, 0], maps[1, 3] = 3.0, 100.0  # void is left out
    assert code.share_inside(maps, masks).tolist() == pytest.approx([8 / 12, 16 / 20])
    assert code.share_inside(torch.zeros(1, 4, 4), masks[:1]).isnan().all()


def check_filled(code):
    boxes = torch.zeros(2, 2, 4)
    boxes[0, 0], boxes[0, 1] = torch.tensor([1.0, 2, 3, 7]), torch.tensor([4.4, 0.6, 6.6, 1.4])
    masks = code.filled(boxes, 8)
    expected = torch.zeros(8, 8, dtype=torch.uint8)
    expected[2:7, 1:3] = 1  # the second box contains no middle of a pixel
    assert masks.shape == (2, 8, 8) and torch.equal(masks[0], expected) and not masks[1].any()


def check_region(code):
    ramp = torch.linspace(-3, 7, 101).view(1, 1, 101)
    assert int(code.region(ramp).sum()) == 40 and code.region(ramp)[0, 0, -40:].all()
    assert int(code.region(ramp, 0.9).sum()) == 10


def check_gates(code):
    model = code.animal_network("channel first").eval()
    for module in model.modules():
        if isinstance(module, code.SpatialAttention):
            nn.init.ones_(module.bn.weight)
    x = noise(2, 3, 64, 64)
    spatial = code.gates(model, code.SpatialAttention, x)
    channel = code.gates(model, code.ChannelAttention, x)
    assert [tuple(gate.shape[1:]) for gate in spatial.values()] == [(1, 32, 32), (1, 16, 16), (1, 8, 8)]
    assert [gate.shape[1] for gate in channel.values()] == [16, 32, 64]
    block = model.layer1[0]
    branch = block.bn2[0](block.conv2(block.relu(block.bn1(block.conv1(model.relu(model.bn1(model.conv1(x))))))))
    attention = block.bn2[1]
    expected = attention.spatial.gate(attention.channel(branch))
    assert torch.allclose(next(iter(spatial.values())), expected, atol=1e-6)
    assert code.enlarged(expected).shape == (2, 64, 64)


# ------------------------------------------------------------------------------------------------------ mutants

MUTANTS = {
    "the maximum is an average": (
        '"max": lambda x: F.adaptive_max',
        '"max": lambda x: F.adaptive_avg',
        "shared_layers",
    ),
    "one descriptor only": ("for pool in self.pools)", "for pool in self.pools[:1])", "channel_equation"),
    "a product instead of a sum": (
        "self.sigmoid(sum(self.mlp(DESCRIPTORS[pool](x)) for pool in self.pools))",
        "self.sigmoid(torch.stack([self.mlp(DESCRIPTORS[pool](x)) for pool in self.pools]).prod(0))",
        "channel_equation",
    ),
    "no ReLU between the layers": (
        "self.fc2(self.relu(self.fc1(descriptor)))",
        "self.fc2(self.fc1(descriptor))",
        "channel_equation",
    ),
    "maximum before average": (
        "[x.mean(1, keepdim=True), x.max(1, keepdim=True).values]",
        "[x.max(1, keepdim=True).values, x.mean(1, keepdim=True)]",
        "module_parity",
    ),
    "authors' order": (
        "[x.mean(1, keepdim=True), x.max(1, keepdim=True).values]",
        "[x.max(1, keepdim=True).values, x.mean(1, keepdim=True)]",
        "official_order",
    ),
    "mean over positions": (
        "x.mean(1, keepdim=True)",
        "x.mean((1, 2, 3), keepdim=True).expand_as(x[:, :1])",
        "spatial_equation",
    ),
    "no batch normalisation": ("self.sigmoid(self.bn(self.conv(", "self.sigmoid((self.conv(", "spatial_equation"),
    "a bias in the filter": ("padding=kernel_size // 2, bias=False", "padding=kernel_size // 2", "counts"),
    "a filter of 3x3": ("kernel_size=7, order", "kernel_size=3, order", "counts"),
    "gates that start anywhere": ("nn.init.zeros_(", "nn.init.ones_(", "neutral_start"),
    "orders swapped": ('self.order == "channel first"', 'self.order == "spatial first"', "orders"),
    "parallel one after the other": (
        "return x * self.channel.gate(x) * self.spatial.gate(x)",
        "return self.channel(x) * self.spatial.gate(self.channel(x))",
        "orders",
    ),
    "another ratio": (
        "ChannelAttention(channels, r)\n        self.spatial",
        "ChannelAttention(channels, 8)\n        self.spatial",
        "counts",
    ),
    "after the addition of a narrow block": (
        'last = "bn3" if isinstance(block, resnet.Bottleneck) else "bn2"',
        'last = "bn2"',
        "network_parity",
    ),
    "attention before the batch normalisation": (
        "nn.Sequential(norm, attention(norm.num_features))",
        "nn.Sequential(attention(norm.num_features), norm)",
        "network_parity",
    ),
    "attention replaces the batch normalisation": (
        "nn.Sequential(norm, attention(norm.num_features))",
        "attention(norm.num_features)",
        "counts",
    ),
    "SE for channel attention": (
        '"channel only": lambda channels: ChannelAttention(channels, r)',
        '"channel only": lambda channels: CBAM(channels, r)',
        "arms",
    ),
    "void counts": ("(maps * (masks < 255)).sum", "maps.sum", "share_inside"),
    "void is an animal": ("animal = (masks > 0) & (masks < 255)", "animal = masks > 0", "share_inside"),
    "a threshold of the values": ("cam.unit_range(maps) > threshold", "maps > threshold", "region"),
    "boxes turned": ("boxes[..., 0:1] <= middle", "boxes[..., 1:2] <= middle", "filled"),
    "half of the range": ("region(maps, threshold=0.6)", "region(maps, threshold=0.5)", "region"),
    "gates of the next layer": (
        "lambda given, _: given)\n    with torch",
        "lambda _, made: made)\n    with torch",
        "gates",
    ),
    "no stride": ("model.conv1.stride = (2, 2)", "pass", "gates"),
}

test_chapter, test_mutant_is_noticed = chapter_tests(CBAM, globals(), MUTANTS)


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
