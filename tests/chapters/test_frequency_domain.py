"""Chapter 10: the DCT against SciPy, colours against Pillow, gates against PyTorch, controls, exercises."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from scipy.fft import dctn
from torch import nn
from toys import dataset_of, from_cells, generator, holds, leaves_modes, noise, on_meta

from helpers import inspect
from helpers.chapters import chapter
from helpers.parity import copy_in_order, relative_difference

FREQUENCY = chapter("10_frequency_domain")


def pixels(n=2, height=32, width=48, seed=0):
    return torch.randint(256, (n, 3, height, width), generator=generator(seed)).float()


def dataset(n=12, side=32):
    """Noise under a slope, so that every channel has a mean and a spread of its own."""
    slope = torch.linspace(-60, 60, side)
    images = (pixels(n, side, side) * 0.5 + 64 + slope).clamp(0, 255).to(torch.uint8)
    return dataset_of(images, torch.arange(n) % 3, ("a", "b", "c"))


@holds(
    FREQUENCY,
    {"another phase": ("(2 * position + 1)", "(2 * position)"), "DC not scaled": ("matrix[0] /= math.sqrt(2)", "pass")},
)
def test_dct_matrix(code):
    """Orthonormal, and SciPy's DCT for any size."""
    for side in (4, 8):
        D = code.dct_matrix(side)
        assert torch.allclose(D @ D.T, torch.eye(side), atol=1e-6)
        block = pixels(1, side, side)[0, 0]
        expected = dctn(block.numpy().astype(np.float64), type=2, norm="ortho")
        assert np.allclose((D @ block @ D.T).numpy(), expected, atol=1e-3)


@holds(FREQUENCY, {"columns before rows": ('"ux,ncixjy,vy->ncuvij"', '"ux,ncixjy,vy->ncvuij"')})
def test_channels(code):
    """Channel 64 c + 8 u + v at (i, j) is SciPy's coefficient (u, v) of block (i, j) of plane c."""
    for side in (4, 8):
        planes = pixels(1, 2 * side, 3 * side)
        found = code.to_channels(planes, side)
        assert found.shape == (1, 3 * side**2, 2, 3)
        for plane, i, j in ((0, 0, 0), (1, 1, 2), (2, 0, 1)):
            block = planes[0, plane, side * i : side * (i + 1), side * j : side * (j + 1)].double().numpy()
            expected = dctn(block, type=2, norm="ortho").flatten()
            part = found[0, plane * side**2 : (plane + 1) * side**2, i, j]
            assert np.allclose(part.numpy(), expected, atol=2e-3)


@holds(FREQUENCY, {"blocks change places": ('"ux,ncuvij,vy->ncixjy"', '"ux,ncvuij,vy->ncixjy"')})
def test_channels_inverse(code):
    planes = pixels()
    for side in (4, 8):
        assert torch.allclose(code.from_channels(code.to_channels(planes, side), side), planes, atol=1e-3)


@holds(FREQUENCY, {"DCT not orthonormal": ("matrix *= math.sqrt(2 / side)", "matrix *= 2 / side")})
def test_energy(code):
    planes = pixels().double()
    assert torch.allclose(code.to_channels(planes).square().sum(), planes.square().sum())


@holds(
    FREQUENCY,
    {
        "red and blue swapped": ("[0.299, 0.587, 0.114]", "[0.114, 0.587, 0.299]"),
        "luma not shifted": ("LEVEL = torch.tensor([128.0,", "LEVEL = torch.tensor([0.0,"),
    },
)
def test_colours(code):
    """Within 1 of Pillow's conversion, which rounds; and back."""
    x = pixels(1)
    picture = Image.fromarray(x[0].permute(1, 2, 0).to(torch.uint8).numpy()).convert("YCbCr")
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    found = code.to_ycbcr(x)[0] + 128
    assert (found - expected).abs().max() <= 1
    assert torch.allclose(code.to_rgb(code.to_ycbcr(x)), x, atol=1e-2)


@holds(FREQUENCY, {"4:2:0 by maximum": ("F.avg_pool2d(planes, 2)", "F.max_pool2d(planes, 2)")})
def test_subsampling(code):
    chroma = pixels(1, 4, 4)[:, :2]
    small = code.subsample(chroma)
    assert small.shape == (1, 2, 2, 2)
    assert torch.allclose(small[0, 1, 0, 1], chroma[0, 1, :2, 2:].mean())
    large = code.upsample(small)
    assert large.shape == chroma.shape and torch.equal(large[0, 0, 2:, :2], small[0, 0, 1, 0].expand(2, 2))


@holds(FREQUENCY, {"no 4:2:0": ("upsample(subsample(chroma))", "chroma")})
def test_road(code):
    """Luma at full detail, chroma through 4:2:0; what has no colour comes back as it was."""
    x = pixels()
    planes = code.to_ycbcr(x)
    found = code.frequencies(x)
    assert found.shape == (2, 192, 4, 6)
    assert torch.allclose(found[:, :64], code.to_channels(planes[:, :1]), atol=1e-2)
    halved = F.avg_pool2d(planes[:, 1:], 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(found[:, 64:], code.to_channels(halved), atol=1e-2)
    grey = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(code.pixels_from(code.frequencies(grey)), grey, atol=1e-2)


@holds(
    FREQUENCY,
    {
        "column-major sets": ("row * side + column\n", "column * side + row\n"),
        "sets for blocks of 8 only": ("plane * side**2 + row", "plane * 64 + row"),
        "the longer rows last": ("(7, 7, 6, 6, 6, 6, 6)", "(6, 6, 6, 6, 6, 7, 7)"),
    },
)
def test_static_sets(code):
    """As the authors' code lists them: row-major."""
    corner = [8 * u + v for u in range(4) for v in range(4)]
    assert code.static_channels(24) == corner + [64, 65, 72, 73, 128, 129, 136, 137]
    sizes = {24: (16, 4, 4), 32: (22, 5, 5), 48: (32, 8, 8), 64: (44, 10, 10), 192: (64, 64, 64)}
    for number, expected in sizes.items():
        kept = code.static_channels(number)
        assert len(set(kept)) == number
        assert tuple(sum(c // 64 == plane for c in kept) for plane in range(3)) == expected
    assert code.static_channels(12, side=4) == [0, 1, 2, 4, 5, 6, 8, 9, 16, 17, 32, 33]
    seven_rows_of_six = {8 * u + v for u in range(7) for v in range(6)}
    assert [c for c in code.static_channels(64) if c < 64] == sorted(seven_rows_of_six | {6, 14})
    assert [c for c in code.static_channels(64) if 64 <= c < 128] == [64, 65, 66, 72, 73, 74, 80, 81, 88, 89]


@holds(
    FREQUENCY,
    {
        "a black block is not zero": ("- black)[:, kept]", ")[:, kept]"),
        "pixels stay normalised": ("weight * 255 * data.std[:, None, None]", "weight * 255"),
        "no normalisation per channel": (".sub_(means.mean(0)).div_(std)", ""),
        "spread within images only": (" + means.var(0, correction=0)", ""),
    },
)
def test_input_module(code):
    """The convolution equals the road step by step, normalised per channel over the training images."""
    data = dataset()
    for side, kept in ((8, code.static_channels(24)), (8, [191, 0, 70]), (4, code.static_channels(12, 4))):
        module = code.FrequencyInput(data, kept, side)
        found = module(data.normalize(data.train.images))
        steps = code.frequencies(data.train.images.float(), side)[:, kept]
        std, mean = torch.std_mean(steps, (0, 2, 3), correction=0, keepdim=True)
        assert torch.allclose(found, (steps - mean) / std, atol=1e-2)
        assert inspect.count_parameters(module) == 0 and len(module.state_dict()) == 2


@holds(FREQUENCY, {"empty channels amplified": ("std[std < 1e-3] = 1.0", "pass")})
def test_empty_channels(code):
    """4:2:0 empties row 4 and column 4 of both chroma planes; they stay at zero, without NaN."""
    data = dataset()
    found = code.FrequencyInput(data, list(range(192)))(data.normalize(data.train.images))
    spread = found.std((0, 2, 3)).view(3, 8, 8)
    assert found.isfinite().all() and (spread < 1e-3).sum() == 30
    assert (spread[1:, 4] < 1e-3).all() and (spread[1:, :, 4] < 1e-3).all()


@holds(
    FREQUENCY,
    {
        "looks at the height only": ("if height % side or width % side:", "if height % side:"),
        "looks at the width only": ("if height % side or width % side:", "if width % side:"),
        "refuses only where both are off": ("if height % side or width % side:", "if height % side and width % side:"),
    },
)
def test_pixels_that_fill_no_block_are_refused(code):
    module = code.FrequencyInput(dataset(), list(range(12)))
    for height, width in ((64, 60), (63, 64), (4, 8)):
        for read in (code.to_channels, code.frequencies, module):
            with pytest.raises(ValueError, match=f"{height}x{width} pixels cannot be cut into blocks of 8x8"):
                read(torch.zeros(1, 3, height, width))


@holds(FREQUENCY, {"decisions are copied, too": ('if name != "kept"}', "if name}")})
def test_a_gate_can_be_copied_in_the_middle_of_training(code):
    gate, x = code.Gate(6), torch.randn(4, 6, 4, 4)
    gate(x)
    twin = copy.deepcopy(gate)
    assert torch.equal(twin.eval()(x), gate.eval()(x)) and twin.mix.weight is not gate.mix.weight


@holds(FREQUENCY, {"every stage halves": ("stride = 1 if number == 0 else 2", "stride = 2")})
def test_network_counts(code):
    expected = {24: 25_534_696, 64: 25_547_496, 192: 25_588_456}
    with_stem = on_meta(code.resnet.ResNet, *code.resnet.RESNETS[50], placement="v1.5")
    networks = {channels: on_meta(code.frequency_resnet50, channels) for channels in expected}
    for channels, parameters in expected.items():
        assert inspect.count_parameters(networks[channels]) == parameters
    saved = inspect.count_macs(with_stem, (3, 224, 224)) - inspect.count_macs(networks[64], (64, 56, 56))
    assert saved == 118_013_952


@holds(FREQUENCY, {"stride of v1": ('channels, placement="v1.5"', 'channels, placement="v1"')})
def test_parity(code):
    """Torchvision's ResNet-50 without its stem."""
    torch.manual_seed(0)
    ours = code.resnet.shake_batch_norms(code.frequency_resnet50(64))
    theirs = on_meta(torchvision.models.resnet50)
    for name in ("conv1", "bn1", "relu", "maxpool"):
        setattr(theirs, name, nn.Identity())
    x = noise(2, 64, 24, 24, seed=0)
    assert relative_difference(ours, copy_in_order(ours, theirs), x) < 1e-12


@holds(
    FREQUENCY,
    {
        "a gate that mixes twice": ("2 * channels, 1, groups=channels", "2 * channels, 1"),
        "gates start undecided": ("[0.1, 2.0]", "[0.0, 0.0]"),
    },
)
def test_gate_size(code):
    gate = code.Gate(192)
    assert inspect.count_parameters(gate) == 38_208
    open_at_first = gate.eval().scores(torch.randn(4, 192, 3, 3)).softmax(2)[:, :, 1]
    assert (open_at_first - torch.sigmoid(torch.tensor(1.9))).abs().max() < 0.01


@holds(
    FREQUENCY,
    {
        "normal noise": (".exponential_().log()", ".normal_()"),
        "soft decisions": ("hard + (soft - soft.detach())", "soft"),
        "no gradient": ("hard + (soft - soft.detach())", "hard + 0 * soft"),
        "off and on swapped": ("scores.softmax(2)[:, :, 1]\n    hard", "scores.softmax(2)[:, :, 0]\n    hard"),
    },
)
def test_gumbel(code):
    """Hard, with the softmax's marginals, and PyTorch's own gradients for the same noise."""
    logits = torch.tensor([[0.1, 2.0], [0.0, 0.0], [1.0, -0.5]])
    torch.manual_seed(0)
    tossed = code.gumbel_gate(logits.expand(100_000, 3, 2))
    assert ((tossed == 0) | (tossed == 1)).all()
    assert torch.allclose(tossed.mean(0), logits.softmax(1)[:, 1], atol=0.01)
    scores = torch.randn(5, 7, 2).requires_grad_()
    weights = torch.randn(5, 7)
    torch.manual_seed(1)
    ours = code.gumbel_gate(scores)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), scores)
    torch.manual_seed(1)
    theirs = F.gumbel_softmax(scores, hard=True)[:, :, 1]
    (expected,) = torch.autograd.grad((theirs * weights).sum(), scores)
    assert torch.allclose(ours, theirs, atol=1e-6) and torch.allclose(gradient, expected, atol=1e-6)
    assert expected.abs().max() > 0.01


@holds(
    FREQUENCY,
    {
        "coins in evaluation": ("noise=self.training", "noise=True"),
        "the gate adds": ("x * self.kept[:, :, None, None]", "x + self.kept[:, :, None, None]"),
    },
)
def test_gate_modes(code):
    """Coins in training, the likelier decision in evaluation; a closed gate silences its channel only."""
    gate, x = code.Gate(6), torch.randn(64, 6, 4, 4)
    with torch.no_grad():
        gate.decide.bias.copy_(torch.tensor([5.0, -5.0, 0.0, 0.0, -5.0, 5.0] * 2))
    gate.eval()
    y = gate(x)
    assert torch.equal(y, gate(x))
    assert torch.equal(y[:, [2, 5]], x[:, [2, 5]]) and not y[:, [0, 3]].any()
    gate.train()
    gate(x)
    assert 0.2 < float(gate.kept[:, 1].detach().mean()) < 0.8


@holds(
    FREQUENCY,
    {
        "a price for closed gates": ("classification + self.price", "classification - self.price"),
        "price per image and channel": ("kept.sum(1).mean()", "kept.mean()"),
    },
)
def test_loss(code):
    data = dataset()
    torch.manual_seed(0)
    model = code.GatedNetwork(code.small_network(data, channels=24)).eval()
    images, labels = data.normalize(data.train.images), data.train.targets
    with torch.no_grad():
        plain = F.cross_entropy(model(images), labels)
        assert torch.allclose(code.GatedLoss(0.5)(model, images, labels), plain + 0.5 * 24)
        model.gate.decide.bias.copy_(torch.tensor([2.0, -2.0]).repeat(24))
        closed = code.GatedLoss(0.5)(model, images, labels)
        assert torch.allclose(closed, F.cross_entropy(model(images), labels))


@holds(FREQUENCY)
def test_price_closes_gates(code):
    torch.manual_seed(0)
    gate = code.Gate(8)
    gate(torch.randn(32, 8, 4, 4)).sum()
    gate.kept.sum().backward()
    off, on = gate.decide.bias.grad.view(8, 2).T
    assert (on > 0).all() and torch.allclose(off, -on)


@holds(FREQUENCY, {"stem of another size": ("+ kernel - size + 1", "+ kernel - size - 1")})
def test_small_networks(code):
    """Pixels and channels arrive at the same maps; the first block alone differs in shape."""
    data = dataset(side=128)
    for settings in ({"pixels": 32}, {"pixels": 45}, {"pixels": 128}, {"channels": 12}):
        model = code.small_network(data, **settings)
        x = model.input(data.normalize(data.train.images[:2]))
        assert x[0].numel() == (3 * settings["pixels"] ** 2 if "pixels" in settings else 12 * 256)
        x = model.stem(x) if "pixels" in settings else x
        assert x.shape[2:] == (16, 16)
        assert model.body.stages[0](x).shape[1:] == (16, 16, 16)
        assert model.body.stages(x).shape[1:] == (64, 4, 4)
        assert model(data.normalize(data.train.images[:2])).shape == (2, 3)


# ------------------------------------------------------------------------------------------------------ errors


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="cannot be cut into blocks of 8x8"):
        FREQUENCY.to_channels(torch.zeros(1, 1, 20, 16))
    with pytest.raises(ValueError, match="no set of 25 channels.*192"):
        FREQUENCY.static_channels(25)


def test_input_sizes_of_the_arms():
    """The pairs of the studies have as many values: equal, or 1 % fewer for pixels."""
    values = {}
    for arm, config in FREQUENCY.ARMS.items():
        values[arm] = 3 * config["pixels"] ** 2 if "pixels" in config else 256 * config["channels"]
    assert values["32x32 pixels"] == values["12 channels"] == 3072
    assert values["45x45 pixels"] == 6075 and values["24 channels"] == 6144
    assert 3 * FREQUENCY.CIFAR_ARMS["16x16 pixels"]["pixels"] ** 2 == 12 * 8 * 8


@pytest.mark.parametrize(("channels", "size"), [(24, 0.5), (64, 4 / 3), (192, 4.0)])
def test_normalised_input_size(channels, size):
    coefficients = FREQUENCY.frequencies(torch.zeros(1, 3, 448, 448))[:, FREQUENCY.static_channels(channels)]
    assert coefficients.numel() / (3 * 224**2) == pytest.approx(size)


# ------------------------------------------------------------------------------------------------------ controls


@holds(
    FREQUENCY,
    {
        "the smallest variance first": ("directions.flip(1)[:, :count]", "directions[:, :count]"),
        "not about the mean": ("blocks.T.cov()", "blocks.T @ blocks"),
        "blocks that overlap": ("F.unfold(images, side, stride=side)", "F.unfold(images, side, stride=1)"),
    },
)
def test_principal_blocks(code):
    """NumPy's principal directions of blocks, up to their sign."""
    images = noise(6, 3, 8, 12) * torch.linspace(0.2, 2, 12) + 3
    found = code.principal_blocks(images, 5, 4)
    assert found.shape == (5, 3, 4, 4)
    blocks = torch.stack(
        [image[:, i : i + 4, j : j + 4].flatten() for image in images for i in (0, 4) for j in (0, 4, 8)]
    ).double()
    _, _, expected = np.linalg.svd((blocks - blocks.mean(0)).numpy())
    overlap = found.flatten(1).double() @ torch.from_numpy(expected[:5]).T
    assert torch.allclose(overlap.abs(), torch.eye(5, dtype=torch.float64), atol=1e-2)


@holds(
    FREQUENCY,
    {
        "random patterns learn": ('requires_grad = basis == "learned"', 'requires_grad = basis != "PCA"'),
        "no normalisation": ("nn.Sequential(patterns, nn.BatchNorm2d(count, affine=False))", "nn.Sequential(patterns)"),
        "PCA forgotten": ('if basis == "PCA":', 'if basis == "pca":'),
    },
)
def test_projections(code):
    """The same layout for every basis; learned patterns alone have a gradient; PCA's maps do not vary together."""
    data, grids = dataset(), {}
    images = data.normalize(data.train.images)
    for basis in ("learned", "PCA", "random"):
        torch.manual_seed(0)
        layer = code.projection(data, 12, 4, basis)
        grids[basis] = layer(images)
        assert grids[basis].shape == (12, 12, 8, 8)
        assert [part.requires_grad for part in layer.parameters()] == [basis == "learned"]
        assert grids[basis].mean((0, 2, 3)).abs().max() < 1e-3
        assert (grids[basis].var((0, 2, 3)) - 1).abs().max() < 0.05
    rows = grids["PCA"].transpose(0, 1).flatten(1)
    assert (torch.corrcoef(rows) - torch.eye(12)).abs().max() < 0.02


@holds(
    FREQUENCY,
    {
        "every arm reads frequencies": ("if basis is None:", "if True:"),
        "patterns of another basis": (
            "projection(data, channels, side, basis)",
            'projection(data, channels, side, "PCA")',
        ),
        "another start": (
            "    train.set_seed(seed)\n    model = small_network(data, channels=channels",
            "    model = small_network(data, channels=channels",
        ),
    },
)
def test_controls(code):
    """An arm trains what it says, from the seed that it is given."""
    data = dataset()
    results = {}
    for basis in (None, "learned", "random"):
        torch.manual_seed(99)
        settings = {"side": 4, "epochs": 1, "batch_size": 4, "channels": 12}
        first = code.train_any(data, seed=3, basis=basis, **settings)
        torch.manual_seed(7)
        assert first == code.train_any(data, seed=3, basis=basis, **settings)
        assert set(first) == {"train_loss", "test_loss", "test_accuracy"}
        results[basis] = first["train_loss"]
    assert len(set(results.values())) == 3


def test_arms_of_the_controls():
    """All arms are trained alike; a basis goes with channels."""
    same = {"epochs", "batch_size", "side"}
    for config in FREQUENCY.CONTROL_ARMS.values():
        assert {name: config[name] for name in same} == FREQUENCY.CIFAR
        assert ("pixels" in config) != ("channels" in config) and ("basis" not in config or "channels" in config)
    assert FREQUENCY.CONTROLS.seeds == (0, 1, 2, 3, 4, 5)


@holds(
    FREQUENCY,
    {
        "the surest image": ("torch.cat(scores).mean(0)", "torch.cat(scores).amax(0)"),
        "in training mode": ("    with evaluating(model):\n        batches", "    if True:\n        batches"),
        "the mode stays": ("    with evaluating(model):\n        batches", "    if model.eval():\n        batches"),
    },
)
def test_open_probability(code):
    """The mean over images, not over batches, with every gate in evaluation mode."""
    data = dataset(n=14)
    torch.manual_seed(0)
    model = code.GatedNetwork(code.small_network(data, channels=12))
    with torch.no_grad():
        model.gate.decide.weight.normal_()
    model.train()
    with leaves_modes(model):
        found = code.open_probability(model, data, data.train.images)
    one_by_one = [code.open_probability(model, data, image[None]) for image in data.train.images]
    assert found.shape == (12,) and torch.allclose(found, torch.stack(one_by_one).mean(0), atol=1e-5)
    assert torch.stack(one_by_one).std(0).max() > 1e-3


@holds(
    FREQUENCY,
    {"the noise's statistics stay": ("    model.input = FrequencyInput(data, list(range(48)), side=4)\n", "")},
)
def test_statistics_of_the_named_network(code):
    """The trained network normalises with the statistics of the images that it learns from."""
    data = dataset()
    model = code.named_network()
    learn, code.naming = code.naming, type("Naming", (), {"learn": staticmethod(lambda model, data: {}), "CLASSES": ()})
    try:
        code.learn_frequencies(model, data)
    finally:
        code.naming = learn
    expected = code.FrequencyInput(data, list(range(48)), 4)
    assert torch.equal(model.input.weight, expected.weight) and torch.equal(model.input.bias, expected.bias)


# ------------------------------------------------------------------------------------------------------ exercises

CHECK_CONVOLUTION, CHECK_ZIGZAG, WEIGHTS, ZIGZAG = from_cells(
    FREQUENCY, "check_convolution", "check_zigzag", "weights_solution", "zigzag_solution"
)


def by_impulses(side):
    """Another right answer: what the road makes of every single pixel."""
    impulses = torch.eye(3 * side**2).view(-1, 3, side, side)
    black = FREQUENCY.to_ycbcr(torch.zeros_like(impulses))
    answers = FREQUENCY.to_channels(FREQUENCY.to_ycbcr(impulses) - black, side).flatten(1)
    return answers.T.reshape(-1, 3, side, side)


def zeros_for_side_4(side):
    return WEIGHTS(8) if side == 8 else torch.zeros(48, 3, 4, 4)


def for_side_8_only(side):
    return WEIGHTS(8)


def columns_before_rows(side):
    return WEIGHTS(side).transpose(2, 3)


def colours_the_wrong_way(side):
    D = FREQUENCY.dct_matrix(side)
    return torch.einsum("ck,ux,vy->kuvcxy", FREQUENCY.COLOURS, D, D).reshape(3 * side**2, 3, side, side)


def chroma_swapped(side):
    y, cb, cr = WEIGHTS(side).chunk(3)
    return torch.cat([y, cr, cb])


def planes_interleaved(side):
    return WEIGHTS(side).unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("answer", [WEIGHTS, by_impulses])
def test_right_convolutions(answer):
    CHECK_CONVOLUTION(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (zeros_for_side_4, "blocks of 4x4 channel 0 must be the DC of Y"),
        (for_side_8_only, r"blocks of 4x4 the shape must be \(48, 3, 4, 4\)"),
        (columns_before_rows, r"channel 1 must be frequency \(0, 1\)"),
        (colours_the_wrong_way, "channel 0 must be the DC of Y"),
        (chroma_swapped, "blocks of 8x8 Cb is wrong in"),
        (planes_interleaved, r"channel 1 must be frequency \(0, 1\)"),
    ],
)
def test_wrong_convolutions_get_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_CONVOLUTION(answer)


def by_sorting(side):
    """Another right answer: sort by diagonal, then in its direction."""
    cells = [(u, v) for u in range(side) for v in range(side)]
    cells.sort(key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))
    return [side * u + v for u, v in cells]


def row_by_row(side):
    return list(range(side**2))


def down_first(side):
    return [side * (index % side) + index // side for index in ZIGZAG(side)]


def never_turning(side):
    cells = [(u, v) for u in range(side) for v in range(side)]
    return [side * u + v for u, v in sorted(cells, key=lambda cell: (sum(cell), cell[0]))]


def without_its_second_half(side):
    return [index for index in ZIGZAG(side) if index // side + index % side < side]


def only_for_8(side):
    return ZIGZAG(8)


@pytest.mark.parametrize("answer", [ZIGZAG, by_sorting])
def test_right_zigzags(answer):
    CHECK_ZIGZAG(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (row_by_row, "the third to"),
        (down_first, "the second step goes to the right"),
        (never_turning, "the diagonal u \\+ v = 2 goes up"),
        (without_its_second_half, "each of the 64 indices must appear once"),
        (only_for_8, "any side"),
    ],
)
def test_wrong_zigzags_get_a_hint(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        CHECK_ZIGZAG(answer)
