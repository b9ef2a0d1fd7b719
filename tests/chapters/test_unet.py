"""Chapter 11: the paper's sizes and counts, SciPy's distances and deformations, brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, label, map_coordinates
from torch import nn
from torchmetrics.functional.classification import multiclass_jaccard_index
from toys import dataset_of, from_cells, generator, holds, noise, on_meta, random_images

from helpers import inspect
from helpers.chapters import chapter
from helpers.data import Dataset, Provenance, Split

UNET = chapter("11_unet")


def cells(*shape, seed=0):
    """Random masks of 0 and 1 with cells of several pixels."""
    smooth = F.avg_pool2d(noise(shape[0], 1, *shape[1:], seed=seed), 5, stride=1, padding=2)[:, 0]
    return (smooth > -0.02).to(torch.uint8)


def small_net(code, depth=2, **settings):
    torch.manual_seed(0)
    return code.UNet(width=3, depth=depth, dropout=0.0, **settings).double().eval()


# --- the code


@holds(UNET)
def test_parameters(code):
    assert inspect.count_parameters(on_meta(code.UNet)) == 31_030_658
    assert inspect.count_parameters(on_meta(code.UNet, 3, 6)) == 31_032_070


@holds(UNET)
def test_layers(code):
    model = on_meta(code.UNet)
    assert sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in model.modules()) == 23
    rows = {row["layer"]: row for row in inspect.trace(model, (1, 572, 572)).rows}
    sides = [int(rows[f"down.{level}.3"]["output"].split("x")[1]) for level in range(5)]
    assert sides == [568, 280, 136, 64, 28]
    assert [int(rows[f"merge.{i}.3"]["output"].split("x")[1]) for i in range(4)] == [52, 100, 196, 388]
    assert rows["head"]["output"] == "2x388x388"
    assert round(inspect.count_macs(model, (1, 572, 572)) / 1e9, 2) == 150.43
    assert round(sum(row["multiply-adds"] for name, row in rows.items() if name.startswith("up.")) / 1e9, 2) == 5.63


@holds(
    UNET,
    {
        "a border of eight less": ("return 6 * 2**depth - 4", "return 6 * 2**depth - 8"),
        "any size goes": ("or (side - smallest) % step", ""),
    },
)
def test_sizes(code):
    """Every size is accepted that has whole maps, and no other."""
    for depth in (2, 3, 4):
        for side in range(10, 400):
            here, fits = side, True
            for _ in range(depth):
                here -= 4
                fits &= here > 0 and here % 2 == 0
                here //= 2
            fits &= here > 4
            up = here - 4
            for _ in range(depth):
                up = 2 * up - 4
            fits &= up > 0
            try:
                code.check_size((side,), depth)
                assert fits, (side, depth)
                assert side - 2 * code.border(depth) == up
            except ValueError:
                assert not fits, (side, depth)


@holds(
    UNET,
    {
        "the crop takes the corner": ("x[..., top : top + height, left : left + width]", "x[..., :height, :width]"),
        "the skip comes second": ("torch.cat([crop(skip, x), x], 1)", "torch.cat([x, crop(skip, x)], 1)"),
        "one ReLU less": ("channels, 3),\n        nn.ReLU(inplace=True),\n    )", "channels, 3),\n    )"),
    },
)
def test_forward(code):
    """Level by level with functions."""
    model, x = small_net(code, depth=1), noise(2, 1, 24, 28).double()

    def two(layers, maps):
        return layers[2](layers[0](maps).relu()).relu()

    top = two(model.down[0], x)
    bottom = two(model.down[1], F.max_pool2d(top, 2))
    raised = F.conv_transpose2d(bottom, model.up[0].weight, model.up[0].bias, stride=2)
    joined = torch.cat([top[:, :, 4:-4, 4:-4], raised], 1)
    assert torch.allclose(model(x), model.head(two(model.merge[0], joined)))


@holds(UNET, {"the up-convolution keeps its channels": ("made = after if skips else 2 * after", "made = after")})
def test_no_skips(code):
    """As many inputs to every merge, and nothing comes across."""
    a, b = (on_meta(code.UNet, width=8, depth=3, skips=skips) for skips in (True, False))
    for x, y in zip(a.merge, b.merge, strict=True):
        assert x[0].weight.shape == y[0].weight.shape
    assert inspect.count_parameters(b) > inspect.count_parameters(a)
    model, x = small_net(code, depth=1, skips=False), noise(1, 1, 24, 24).double()
    model.down[1][2].weight.data.zero_()
    model.down[1][2].bias.data.zero_()
    assert torch.allclose(model(x)[..., :1, :1].expand(-1, -1, 8, 8), model(x)[..., :8, :8])


@holds(UNET)
def test_initialisation(code):
    torch.manual_seed(0)
    weight = code.UNet(width=16, depth=2).down[2][2].weight
    assert abs(float(weight.detach().std()) / (2 / (9 * 64)) ** 0.5 - 1) < 0.05


@holds(UNET, {"no dropout": ("x = self.dropout(x)", "pass")})
def test_dropout(code):
    model = code.UNet(width=2, depth=1, dropout=0.5).train()
    x = noise(1, 1, 24, 24)
    assert not torch.equal(model(x), model(x)) and torch.equal(model.eval()(x), model.eval()(x))


@holds(
    UNET,
    {
        "the offset is forgotten": (
            "logits[..., offset : offset + sides[0], offset : offset + sides[1]]",
            "logits[..., : sides[0], : sides[1]]",
        )
    },
)
def test_tiles(code):
    """Exact where tiles begin at multiples of 2^depth, and only there; whatever the shape."""
    model, image = small_net(code), noise(1, 1, 60, 75).double()
    whole = code.segment(model, image)
    assert whole.shape == (1, 2, 60, 75)
    for tile, stride, offset, exact in (
        (20, None, 0, True), (20, 12, 0, True), (20, 16, 4, True), (20, 20, 8, True),
        (20, 18, 0, False), (20, 16, 1, False), (20, 16, 2, False), (20, 13, 0, False),
    ):  # fmt: skip
        tiles = code.segment(model, image, tile=tile, stride=stride, offset=offset)
        assert ((tiles - whole).abs().max() < 1e-10) == exact, (tile, stride, offset)


@holds(UNET, {"steps of a whole tile": ("[one - 4 if stride is None", "[one if stride is None")})
def test_stride(code):
    """Left alone, tiles go in the largest exact steps: 4 less than a tile, at three levels and more."""
    model, image = small_net(code, depth=3), noise(1, 1, 100, 90).double()
    whole = code.segment(model, image)
    assert torch.allclose(code.segment(model, image, tile=20), whole)
    assert not torch.allclose(code.segment(model, image, tile=20, stride=20), whole)


@holds(
    UNET,
    {
        "one side for both": (
            "tile is None else tile for side in sides]",
            "tile is None else tile for side in [max(sides)] * 2]",
        )
    },
)
def test_images_that_are_much_longer_than_wide(code):
    """One tile for the whole fits each side of the image; what is too small to be mirrored is refused."""
    model, image = small_net(code), noise(1, 1, 72, 28).double()
    whole = code.segment(model, image)
    assert whole.shape == (1, 2, 72, 28) and torch.allclose(whole, code.segment(model, image, tile=16, stride=12))
    with pytest.raises(ValueError, match="an image of 72x16 px has too few to be mirrored by 24 and 24"):
        code.segment(model, image[..., :16])
    assert code.segment(model, image[..., :16], mode="constant").shape == (1, 2, 72, 16)


@holds(UNET, {"zeros instead of a mirror": ('offset=0, mode="reflect"', 'offset=0, mode="constant"')})
def test_mirror(code):
    model, image = small_net(code), noise(1, 1, 60, 60).double()
    padded = torch.from_numpy(np.pad(image[0, 0].numpy(), (20, 24), mode="reflect"))[None, None]
    assert torch.allclose(code.segment(model, image), model(padded)[..., :60, :60])
    zeros = F.pad(image, (20, 24, 20, 24))
    assert torch.allclose(code.segment(model, image, mode="constant"), model(zeros)[..., :60, :60])


@holds(UNET)
def test_whole_slice(code):
    model = small_net(code)
    for side in (40, 42, 47):
        image = noise(2, 1, side, side).double()
        assert torch.allclose(code.whole_slice(model, image), code.segment(model, image))
    image = noise(1, 1, 40, 40).double().requires_grad_()
    code.whole_slice(model, image).sum().backward()
    assert image.grad.abs().sum() > 0


@holds(
    UNET,
    {
        "cells meet at corners": ("for axis in (1, 2):\n        size", "for axis in (1,):\n        size"),
        "one round of joining": ("a, b = a[differ], b[differ]", "a, b = a[:0], b[:0]"),
    },
)
def test_components(code):
    for seed, shape in enumerate([(3, 40, 50), (1, 64, 64), (2, 1, 9)]):
        masks = cells(*shape, seed=seed) == 1
        ours = code.components(masks)
        for mine, mask in zip(ours, masks, strict=True):
            theirs, count = label(mask.numpy())
            pairs = {tuple(pair) for pair in np.stack([mine.numpy().ravel(), theirs.ravel()], 1)}
            assert len(pairs) == count + (not mask.all()) == len({p[0] for p in pairs}) == len({p[1] for p in pairs})
            assert (mine > 0).equal(mask)
    spiral = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    assert len(code.components(spiral[None] == 1).unique()) == 2
    assert not code.components(torch.zeros(1, 4, 4, dtype=torch.bool)).any()


@holds(
    UNET,
    {
        "the second nearest may be the nearest": (" & (met != known)", ""),
        "a walk in rows": ("in sorted((j * j", "in list((j * j"),
        "distances are squared": ("second[todo[other]] = squared**0.5", "second[todo[other]] = squared"),
    },
)
def test_distances(code):
    masks = cells(2, 48, 56, seed=3)
    labels = code.components(masks == 1)
    d1, d2 = code.two_nearest(labels, 9)
    for image, first, second in zip(labels, d1, d2, strict=True):
        maps = np.stack([distance_transform_edt(image.numpy() != cell) for cell in image.unique().tolist()[1:]])
        maps.sort(0)
        outside = (image == 0).numpy()
        for found, true in ((first, maps[0]), (second, maps[1])):
            true = np.where(true <= 9, true, np.inf)[outside]
            np.testing.assert_allclose(found.numpy()[outside], true, rtol=1e-6)
        assert not first[image > 0].any() and second[image > 0].isinf().all()


@holds(
    UNET,
    {
        "the difference of the distances": ("-((d1 + d2) ** 2)", "-((d1 - d2) ** 2)"),
        "half the exponent": ("/ (2 * sigma**2)", "/ (sigma**2)"),
    },
)
def test_weight_map(code):
    mask = cells(1, 40, 40, seed=5)
    labels = code.components(mask == 1)[0].numpy()
    maps = np.stack([distance_transform_edt(labels != cell) for cell in np.unique(labels)[1:]])
    maps.sort(0)
    for w0, sigma in ((10.0, 2.5), (4.0, 1.5)):
        added = w0 * np.exp(-((maps[0] + maps[1]) ** 2) / (2 * sigma**2)) * (labels == 0)
        wanted = code.class_weights(mask)[0].numpy() + added
        np.testing.assert_allclose(code.weight_map(mask, w0, sigma)[0].numpy(), wanted, atol=w0 * np.exp(-8), rtol=1e-5)


@holds(
    UNET,
    {
        "class weights swapped": (
            "torch.where(masks == 1, 0.5 / share, 0.5 / (1 - share))",
            "torch.where(masks == 0, 0.5 / share, 0.5 / (1 - share))",
        )
    },
)
def test_class_weights(code):
    mask = cells(1, 32, 32)
    weights = code.class_weights(mask)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    assert float(weights[mask == 1].sum()) == pytest.approx(float(weights[mask == 0].sum()), rel=1e-5)
    assert len(weights.unique()) == 2


@holds(
    UNET,
    {
        "the loss is not divided by the weights": (
            "(weights * losses).sum() / weights.sum()",
            "(weights * losses).mean()",
        )
    },
)
def test_weighted_loss(code):
    logits, masks, weights = noise(2, 3, 4, 5), torch.arange(40).view(2, 4, 5) % 3, noise(2, 4, 5, seed=2).exp()
    total = 0.0
    for n in range(2):
        for y in range(4):
            for x in range(5):
                total -= weights[n, y, x] * logits[n, :, y, x].log_softmax(0)[masks[n, y, x]]
    found = code.weighted_cross_entropy(logits, masks.to(torch.uint8), weights)
    assert torch.allclose(found, total / weights.sum(), rtol=1e-5)


@holds(
    UNET,
    {
        "x and y swapped": ("where = torch.stack([x, y])", "where = torch.stack([y, x])"),
        "zeros outside of the field": ('padding_mode="reflection"', 'padding_mode="zeros"'),
    },
)
def test_deform(code):
    field = code.displacements(2, (30, 40), 4.0, generator(0))
    images = noise(2, 1, 30, 40)
    y, x = np.mgrid[:30, :40]
    for mode, order in (("bilinear", 1), ("nearest", 0)):
        bent = code.deform(images, field, mode)
        for image, found, (dx, dy) in zip(images, bent, field.numpy(), strict=True):
            wanted = map_coordinates(image[0].numpy(), [y + dy, x + dx], order=order, mode="mirror")
            assert np.isclose(found[0].numpy(), wanted, atol=1e-3).mean() > 0.995  # rounding decides between neighbours
    still = torch.zeros(2, 2, 30, 40)
    assert torch.allclose(code.deform(images, still), images, atol=1e-4)


@holds(
    UNET,
    {
        "straight between the nodes": ('size=size, mode="bicubic"', 'size=size, mode="bilinear"'),
        "a grid of four": ("generator, nodes=3)", "generator, nodes=4)"),
    },
)
def test_displacements(code):
    drawn = 10 * noise(4, 2, 3, 3, seed=7)
    field = code.displacements(4, (33, 33), 10.0, generator(7))
    assert torch.allclose(field[..., ::16, ::16], drawn, atol=1e-4)
    assert not code.displacements(1, (33, 33), 0.0, torch.Generator()).any()
    straight = F.interpolate(drawn, size=(33, 33), mode="bilinear", align_corners=True)
    assert (field - straight).abs().max() > 0.5
    spread = code.displacements(500, (3, 3), 10.0, generator(0)).std()
    assert abs(float(spread) - 10) < 0.5


@holds(
    UNET,
    {
        "the mask is blended": ('deform(masks, field, "nearest")', "deform(masks, field)"),
        "the mask stays": ('deform(smooth, field), deform(masks, field, "nearest")', "deform(smooth, field), masks"),
        "no flip": ("maps.flip(-1) if flip % 2 else maps", "maps"),
    },
)
def test_same_field(code):
    """Image, weights and mask move alike, through flips, turns and deformation."""
    masks = cells(2, 64, 64, seed=2)
    images = masks[:, None].float()
    for seed in range(6):
        targets = {"masks": masks, "weights": masks.float()}
        moved, after = code.Deform(3.0)(images, targets, generator(seed))
        assert torch.allclose(moved[:, 0], after["weights"], atol=1e-5)
        assert after["masks"].dtype == torch.uint8 and set(after["masks"].unique().tolist()) <= {0, 1}
        assert float(((moved[:, 0] > 0.5) == (after["masks"] == 1)).float().mean()) > 0.97
        rigid, same = code.Deform(0.0)(images, targets, generator(seed))
        assert torch.equal(rigid[:, 0], same["masks"].float())
        assert torch.equal(rigid.sum(), images.sum())
    seen = {code.Deform(0.0)(images, targets, generator(s))[0].numpy().tobytes() for s in range(60)}
    assert len(seen) == 8


@holds(
    UNET,
    {
        "found membrane is one cell": ("lonely = n[:, 0].sum()", "lonely = n[:, 0].square().sum()"),
        "membrane counts": ("inside = true > 0\n    _, rows", "inside = true >= 0\n    _, rows"),
    },
)
def test_rand(code):
    """Every pair of pixels, one by one; each pixel of found membrane is a cell of its own."""
    true = code.components(cells(1, 9, 9, seed=8) == 1)[0]
    found = code.components(cells(1, 9, 9, seed=9) == 1)[0]
    a, b = true[true > 0], found[true > 0].clone()
    b[b == 0] = -torch.arange(1, int((b == 0).sum()) + 1)
    same_true, same_found = a[:, None] == a, b[:, None] == b
    both = float((same_true & same_found).sum())
    precision, recall = both / float(same_found.sum()), both / float(same_true.sum())
    wanted = 1 - 2 * precision * recall / (precision + recall)
    assert code.rand_error(code.overlaps(found, true)) == pytest.approx(wanted, abs=1e-9)
    assert code.rand_error(code.overlaps(true, true)) == 0


@holds(
    UNET,
    {
        "half is enough": ("torch.where(2 * most > counts.sum(1), holder, -1)", "holder"),
        "small cells count": ("counts = counts[counts.sum(1) >= SMALLEST]", "pass"),
        "guests do not matter": ("(guests == 1).sum()", "(guests >= 1).sum()"),
    },
)
def test_cells(code):
    true = torch.zeros(1, 30, 40, dtype=torch.bool)
    true[0, 1:9, 1:9] = true[0, 1:9, 10:18] = true[0, 11:19, 1:9] = true[0, 21:29, 1:9] = true[0, 28, 30:33] = True
    numbered = code.components(true)[0]

    def facts(found):
        counts = code.overlaps(code.components(found)[0], numbered)
        return code.missing_walls(counts), code.cells_apart(counts)

    assert facts(true) == (0, 4)  # the fifth cell is too small to count
    hole = true.clone()
    hole[0, 4, 9] = True
    assert facts(hole) == (1, 2)
    split = true.clone()
    split[0, 25] = False  # into halves of 32 and 24 of 64 pixels: nobody holds more than half
    assert facts(split) == (0, 3)
    assert facts(torch.ones_like(true)) == (3, 0)
    assert facts(torch.zeros_like(true)) == (0, 0)


@holds(UNET, {"the first slices": ("torch.arange(count) * len(masks) // count", "torch.arange(count)")})
def test_few_slices(code):
    data = toy_slices(10)
    few = code.with_weights(data, "plain", count=5)
    kinds = few.train.images.flatten(1).unique(dim=0)
    assert len(few.train) == 10 and len(kinds) == 5
    assert torch.equal(few.train.images[:5], data.train.images[::2])
    assert torch.equal(few.train.targets["masks"][:5], data.train.targets[::2])
    assert (few.train.targets["weights"] == 1).all()


@holds(UNET)
def test_evaluation(code):
    """A network that sees the truth is perfect at any threshold."""
    data = toy_slices(2)
    data = code.with_weights(data, "plain")
    truth = data.test.targets["masks"]
    scores = code.cell_scores(truth * 0.8 + 0.05, truth, 0.5)
    assert scores == {"pixel": 0.0, "rand": 0.0, "missing": 0.0, "apart": 1.0}
    assert code.cell_scores(truth * 0.8 + 0.05, truth, 0.9)["apart"] == 0


ENCODED = """\
        *kept, x = self.encode(images)
        for up, merge, skip in zip(self.up, self.merge, kept[::-1], strict=True):
            x = up(x)
"""


@holds(
    UNET,
    {
        "the skips are forgotten": (
            ENCODED + "            x = merge(torch.cat([skip, x], 1) if self.skips else x)",
            ENCODED + "            x = merge(torch.cat([0 * skip, x], 1) if self.skips else x)",
        )
    },
)
def test_animal_network(code):
    torch.manual_seed(0)
    backbone = code.Backbone().eval()
    model, bare = (code.AnimalUNet(backbone, skips=skips).eval() for skips in (True, False))
    x = noise(1, 3, 64, 64)
    with torch.inference_mode():
        assert model(x).shape == bare(x).shape == (1, 6, 64, 64)
        maps = model.encode(x)
        assert all(torch.equal(a, b) for a, b in zip(maps[1:], backbone.features(x), strict=True))
        assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]
        zeroed = [*(torch.zeros_like(m) for m in maps[:-1]), maps[-1]]
        for network, differs in ((model, True), (bare, False)):
            before = network(x)
            network.encode = lambda images: zeroed
            assert (not torch.allclose(before, network(x), atol=1e-6)) == differs
            del network.encode
    assert inspect.count_parameters(bare) > inspect.count_parameters(model)


@holds(
    UNET,
    {
        "unknown is a class in the band": ("torch.where(known, masks.int(), -1)", "masks.int()"),
        "half the band": (
            "known, side = masks != 255, 2 * radius + 1",
            "known, side, radius = masks != 255, 2 * (radius // 2) + 1, radius // 2",
        ),
    },
)
def test_band(code):
    """Every pixel against all of its neighbourhood."""
    masks = cells(2, 20, 22, seed=4) * 3
    masks[0, 5:8, 5:9] = 255
    band = code.near_boundary(masks, 2)
    for n in range(2):
        for y in range(20):
            for x in range(22):
                around = masks[n, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
                assert bool(band[n, y, x]) == (len(around[around != 255].unique()) > 1)
    assert not code.near_boundary(torch.full((1, 9, 9), 255, dtype=torch.uint8)).any()


@holds(
    UNET,
    {"the band is the rest": ("masked_fill(~near_boundary(masks), 255)", "masked_fill(near_boundary(masks), 255)")},
)
def test_iou(code):
    draws = generator(0)
    truth, said = (torch.randint(6, (2, 40, 40), generator=draws).to(torch.uint8) for _ in range(2))
    said = torch.where(torch.rand(truth.shape, generator=draws) < 0.6, truth, said)
    truth[:, :6] = 255
    scores = code.animal_scores(said, truth)
    wanted = multiclass_jaccard_index(said.long(), truth.long(), 6, ignore_index=255)
    assert scores["iou"] == pytest.approx(float(wanted), abs=1e-6)
    square = torch.zeros(1, 30, 30, dtype=torch.uint8)
    square[:, 10:20, 10:20] = 1
    inner = square.clone()
    inner[:, 14:16, 14:16] = 0  # a hole far from the boundary
    found = code.animal_scores(inner, square, 2)
    assert found["band"] == 1 and found["iou"] < 1


@holds(
    UNET,
    {
        "the deep score is forgotten": (
            """enlarged(self.head(x), scale_factor=2.0) + enlarged(
            self.deep(deepest), scale_factor=32.0
        )""",
            "enlarged(self.head(x), scale_factor=2.0)",
        ),
        "random scores": (
            "for layer in (self.deep, self.head):\n            nn.init.zeros_(layer.weight)",
            "for layer in (self.deep, self.head):\n            pass",
        ),
        "the deep score of the last map": ("self.deep = nn.Conv2d(256", "self.deep = nn.Conv2d(128"),
    },
)
def test_deep_network(code):
    """What AnimalUNet says with the same weights, and a score per 32x32 pixels; none of both before training."""
    torch.manual_seed(0)
    backbone = code.Backbone().eval()
    deep, plain = code.DeepUNet(backbone).eval(), code.AnimalUNet(backbone).eval()
    images = noise(2, 3, 64, 96)
    assert inspect.count_parameters(deep) - inspect.count_parameters(plain) == 6 * 257
    with torch.inference_mode():
        assert not deep(images).any()
        for layer in (deep.deep, deep.head):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
        plain.load_state_dict(deep.state_dict(), strict=False)
        coarse = F.conv2d(deep.encode(images)[-1], deep.deep.weight, deep.deep.bias)
        coarse = F.interpolate(coarse, scale_factor=32, mode="bilinear")
        assert coarse.std() > 0.1 and plain(images).std() > 0.1
        assert torch.allclose(deep(images), plain(images) + coarse, atol=1e-4)
        assert torch.equal(deep(images), deep.decode(deep.encode(images)))


@holds(
    UNET,
    {
        "sums for means": ("weights[masks == 0].mean() / weights", "weights[masks == 0].sum() / weights"),
        "the other way round": (
            "weights[masks == 0].mean() / weights[masks == 1].mean()",
            "weights[masks == 1].mean() / weights[masks == 0].mean()",
        ),
    },
)
def test_mean_weight_ratio(code):
    """By hand: two pixels of membrane that weigh 6 on average, four inside that weigh 1.5."""
    masks = torch.tensor([[[1, 0, 1], [1, 0, 1]]])
    weights = torch.tensor([[[1.0, 4.0, 1.0], [2.0, 8.0, 2.0]]])
    assert code.mean_weight_ratio(masks, weights) == 4.0
    share = float((masks == 1).float().mean())  # balance weighs both in sum alike
    assert code.mean_weight_ratio(masks, code.class_weights(masks)) == pytest.approx(share / (1 - share))


@holds(
    UNET,
    {
        "the inside weighs": ("torch.where(masks == 1, 1.0, ratio)", "torch.where(masks == 1, ratio, 1.0)"),
        "the weights stay": ("given = replace(given, train=Split(given.train.images, targets))", "pass"),
    },
)
def test_ratio_arm(code):
    """A ratio of 1 is the plain loss to the last bit; that of the classes is balance, which differs by a factor."""
    data = toy_slices(3, side=60)

    def measured(run, **arm):
        found = run(data, seed=2, epochs=1, **arm)
        assert not {"epoch", "lr"} & set(found)
        return found

    plain, one = measured(code.train_cell_arm, weights="plain"), measured(code.train_ratio_arm, ratio=1.0)
    assert one["train_loss"] == plain["train_loss"] and one["pixel"] == plain["pixel"]
    masks = data.train.targets
    ratio = code.mean_weight_ratio(masks, code.class_weights(masks))
    assert ratio > 3
    balance, same = measured(code.train_cell_arm, weights="balance"), measured(code.train_ratio_arm, ratio=ratio)
    assert same["train_loss"] == pytest.approx(balance["train_loss"], rel=1e-4) != plain["train_loss"]


@holds(
    UNET,
    {
        "no walls": ("(first < 0) & (second - first > 2)", "first < 0"),
        "apart from the start": ("radii.sum(0) * ahead", "2 * radii.sum(0) * ahead"),
        "the mask moves on": ("blurred = F.avg_pool2d(masks", "blurred = F.avg_pool2d(masks.roll(9, 2)"),
    },
)
def test_discs(code):
    """Two dozen discs or fewer on a wide background; each meets another, and a wall of two pixels or so parts them."""
    drawn = code.discs(3, seed=0)
    assert drawn.images.shape == (3, 1, 256, 256) and drawn.images.dtype == drawn.targets.dtype == torch.uint8
    assert 0.05 < float((drawn.targets == 1).float().mean()) < 0.25
    for image, mask in zip(drawn.images.float(), drawn.targets, strict=True):
        found = label(mask.numpy())[1]
        merged = label(F.max_pool2d(mask[None].float(), 3, 1, 1)[0].numpy())[1]
        assert 18 <= found <= 26 and merged <= 12
        assert float(image[0][mask == 1].mean()) > float(image[0][mask == 0].mean()) + 30
    assert not torch.equal(drawn.targets, code.discs(3, seed=1).targets)


@holds(
    UNET,
    {
        "the ratio of balance": (
            "mean_weight_ratio(masks, weight_map(masks))\n    return",
            "mean_weight_ratio(masks, class_weights(masks))\n    return",
        )
    },
)
def test_disc_arm(code):
    """The arm of the ratio gets that of the map; the others are arms of the first study."""
    calls = []
    code.train_ratio_arm = lambda data, **settings: calls.append(settings)
    code.train_cell_arm = lambda data, **settings: calls.append(settings)
    data = toy_slices(2)
    for arm in code.DISCS.arms.values():
        code.train_disc_arm(data, seed=3, **arm)
    masks = data.train.targets
    assert calls[1].pop("ratio") == code.mean_weight_ratio(masks, code.weight_map(masks))
    plain, ratio, weight_map = calls
    assert plain == {"seed": 3, "epochs": 8, "weights": "plain"} and weight_map == plain | {"weights": "map"}
    assert ratio == {"seed": 3, "epochs": 8}


@holds(
    UNET,
    {
        "the probability of membrane": ("softmax(1)[:, 1].cpu()", "softmax(1)[:, 0].cpu()"),
        "raw bytes": ("batch = data.normalize(images).to(device)", "batch = images.float().to(device)"),
    },
)
def test_cell_probability(code):
    data, model = toy_slices(2), small_net(code).float().train()
    found = code.cell_probability(model, data, data.test.images)
    images = (data.test.images.float() / 255 - data.mean.view(1, 1, 1, 1)) / data.std.view(1, 1, 1, 1)
    logits = code.segment(model.eval(), images)
    assert found.shape == (2, 48, 48)
    assert torch.allclose(found, logits[:, 1].exp() / logits.exp().sum(1), atol=1e-5)


@holds(UNET, {"the highest error": ("best = min(THRESHOLDS", "best = max(THRESHOLDS")})
def test_best_threshold(code):
    """Cells at 0.65, membrane at 0.55: apart at a threshold of 0.6 alone, and one cell at a half."""
    data = code.with_weights(toy_slices(2), "plain")
    masks = data.test.targets["masks"]
    code.cell_probability = lambda *_: 0.55 + 0.1 * masks
    found = code.evaluate_cells(None, data)
    assert found["threshold"] == 0.6 and found["apart_best"] == 1 and found["rand_best"] == 0
    assert found["apart"] == 0 and found["pixel"] == pytest.approx(float((masks == 0).float().mean()))


@holds(
    UNET,
    {
        "over all pixels": ("(of_class * called).sum((1, 2)) / called.sum((1, 2))", "of_class.mean((1, 2))"),
        "black where none is called so": ("called = called | ~called", "called = called & ~called"),
        "background is an animal": ("mean_logit(logits, labels + 1)", "mean_logit(logits, labels)"),
    },
)
def test_mean_logit(code):
    """By hand: the first photograph has two pixels of class 1, the second has none of class 2."""
    logits = torch.zeros(2, 3, 1, 3)
    logits[0, 1, 0] = torch.tensor([2.0, 4.0, -9.0])
    logits[1, 2, 0] = torch.tensor([-1.0, -2.0, -6.0])
    assert code.mean_logit(logits, torch.tensor([1, 2])).tolist() == [3.0, -3.0]
    assert code.animal_logit(logits, torch.tensor([0, 1])).tolist() == [3.0, -3.0]


@holds(
    UNET,
    {
        "it thaws": (
            'def train_animals(model, data, epochs, seed=0, label="training"):',
            'def train_animals(model, data, epochs, seed=0, label="training"):\n    model.requires_grad_()',
        )
    },
)
def test_frozen_backbone(code):
    """A backbone that is frozen keeps its weights and running means in training; one that was only loaded learns."""
    masks = cells(6, 32, 32, seed=1)
    data = dataset_of(random_images(6, 32), masks, ("a",))
    for frozen in (True, False):
        torch.manual_seed(0)
        model = code.DeepUNet(code.Backbone().eval().requires_grad_(not frozen))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        code.train_animals(model, data, epochs=2)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert "deep.bias" in moved and "merge.0.1.running_mean" in moved
        assert ("backbone.bn1.running_mean" in moved) == ("backbone.conv1.weight" in moved) == (not frozen)


START = """\
    backbone = BACKBONE.load() if pretrained else Backbone()
    train.set_seed(seed)
    history = train_animals("""


@holds(
    UNET,
    {
        "the pretrained backbone in every arm": (
            START + "DeepUNet(backbone",
            START.replace("if pretrained else Backbone()", "") + "DeepUNet(backbone",
        ),
        "without the deep score": (
            "train_animals(DeepUNet(backbone, skips=skips)",
            "train_animals(AnimalUNet(backbone, skips=skips)",
        ),
        "skips in every arm": (
            "train_animals(DeepUNet(backbone, skips=skips)",
            "train_animals(DeepUNet(backbone, skips=True)",
        ),
    },
)
def test_deep_arms(code):
    """Each arm trains its own network, once, and both scores start at zero."""
    seen = []
    code.train_animals = lambda model, data, epochs, seed: seen.append((model, epochs, seed)) or History()
    for arm in code.DEEP_ARMS.values():
        assert set(code.train_deep_arm(None, seed=4, **arm)) == {"iou", "band", "train_loss", "seconds"}
    (skips, *settings), (bare, *_), (nothing, *_) = seen
    assert settings == [3, 4] and (skips.skips, bare.skips, nothing.skips) == (True, False, True)
    loaded = code.BACKBONE.load().state_dict()["conv1.weight"]
    same = [torch.equal(model.backbone.conv1.weight, loaded) for model, *_ in seen]
    assert same == [True, True, False]
    assert all(isinstance(model, code.DeepUNet) and not model.deep.weight.any() for model, *_ in seen)


@holds(UNET, {"skips in every arm": ("AnimalUNet(backbone, skips=skips), data", "AnimalUNet(backbone), data")})
def test_arms_on_photographs(code):
    seen = []
    code.train_animals = lambda model, data, epochs, seed: seen.append(model) or History()
    for arm in code.ANIMAL_ARMS.values():
        code.train_animal_arm(None, seed=4, **arm)
    loaded = code.BACKBONE.load().state_dict()["conv1.weight"]
    pretrained = [torch.equal(model.backbone.conv1.weight, loaded) for model in seen]
    assert [model.skips for model in seen] == [True, False, True] and pretrained == [True, True, False]


class History:
    def last(self, name):
        return {"iou": 0.4, "band": 0.2}.get(name, 0.0)


@holds(
    UNET,
    {
        "the truth of the training photographs": (
            "return animal_scores(predicted, data.test.targets)",
            "return animal_scores(predicted, data.train.targets)",
        )
    },
)
def test_evaluate_animals(code):
    """Class 3 everywhere, and a quarter of the pixels has it: an IoU of 0 for background, of 1/4 for class 3."""
    data = dataset_of(random_images(4, 64), torch.full((4, 64, 64), 2, dtype=torch.uint8), ("a",))
    data.test.targets[:] = 0
    data.test.targets[:, :16], data.test.targets[:, :, 48:] = 3, 255
    model = code.DeepUNet(code.Backbone())
    model.deep.bias.data[3] = 1
    assert code.evaluate_animals(model, data)["iou"] == pytest.approx((0 + 1 / 4) / 2)
    assert model.training and model.backbone.training


@holds(UNET, {"the score of the band": ('epochs=6).last("iou")', 'epochs=6).last("band")')})
def test_what_the_gallery_learns(code):
    calls = []
    code.train_animals = lambda model, data, epochs: calls.append((model, data, epochs)) or History()
    assert code.learn_animals("network", "photographs") == {"mean_iou": 0.4}
    assert calls == [("network", "photographs", 6)]


def toy_slices(count, side=48):
    images = (255 * torch.rand(count + 2, 1, side, side, generator=generator(0))).to(torch.uint8)
    masks = torch.ones(count + 2, side, side, dtype=torch.uint8)
    masks[:, ::12] = masks[..., ::12] = 0
    return Dataset(
        Split(images[:count], masks[:count]), Split(images[count:], masks[count:]), ("membrane", "cell"),
        Provenance("toy", False, "seed 0"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ errors


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="512 px does not fit 4 levels: use 188, 204, 220"):
        UNET.UNet(width=1)(torch.zeros(1, 1, 512, 512))


def test_arms_of_the_study_cost_the_same():
    with_skips, without = (UNET.cell_network(skips) for skips in (True, False))
    assert inspect.count_macs(with_skips, (1, 348, 348)) < inspect.count_macs(without, (1, 348, 348))
    data = toy_slices(10)
    sizes = {len(UNET.with_weights(data, arm["weights"], arm.get("count")).train) for arm in UNET.ARMS.values()}
    assert sizes == {10}


# ------------------------------------------------------------------------------------- the exercises' checks

check_two_smallest, two_smallest_solution, check_tile_starts, tile_starts_solution = from_cells(
    UNET, "check_two_smallest", "two_smallest_solution", "check_tile_starts", "tile_starts_solution"
)


def sorted_threes(maps):
    """Another right answer: the two smallest of three, again and again."""
    two = torch.full((2, *(first := next(maps)).shape), torch.inf)
    two[0] = first
    for new in maps:
        two = torch.cat([two, new[None]]).sort(0).values[:2]
    return two[0], two[1]


def stacked(maps):
    two = torch.stack(list(maps)).sort(0).values
    return two[0], two[1]


def stacked_in_secret(maps):
    stack = next(maps)[None]
    for new in maps:
        stack = torch.cat([stack, new[None]])
    return tuple(stack.sort(0).values[:2])


def walking(update, far=torch.inf):
    """A walk over the maps with a rule of its own: (first, second, new) to (first, second)."""

    def answer(maps):
        first = next(maps)
        second = torch.full_like(first, far)
        for new in maps:
            first, second = update(first, second, new)
        return first, second

    return answer


def right_step(first, second, new):
    return torch.minimum(first, new), torch.minimum(second, torch.maximum(first, new))


def no_other_cell(first, second, new):
    return torch.minimum(first, new), torch.minimum(second, new)


def nobody_steps_down(first, second, new):
    return torch.minimum(first, new), torch.where(new < first, second, torch.minimum(second, new))


def ties_do_not_count(first, second, new):
    nearer = torch.where(new < first, first, second)
    between = (new > first) & (new < second)
    return torch.minimum(first, new), torch.where(between, new, nearer)


def two_to_begin_with(maps):
    first, second = torch.stack([next(maps), next(maps)]).sort(0).values
    for new in maps:
        first, second = right_step(first, second, new)
    return first, second


def numbers(maps):
    smallest = sorted(float(one.min()) for one in maps)
    return torch.tensor(smallest[0]), torch.tensor(smallest[1])


@pytest.mark.parametrize("answer", [two_smallest_solution, sorted_threes, walking(right_step)])
def test_right_walks_pass(answer):
    check_two_smallest(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (stacked, "keep two maps"),
        (stacked_in_secret, "keep two maps"),
        (numbers, r"the maps are \(37, 41\)"),
        (walking(no_other_cell), "of another cell"),
        (walking(nobody_steps_down), "the former nearest becomes the second"),
        (walking(ties_do_not_count), "at the same distance"),
        (walking(right_step, far=1e9), "d2 is infinite"),
        (two_to_begin_with, "no second map to ask for"),
    ],
)
def test_wrong_walks_are_told_why(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check_two_smallest(answer)


def by_count(side, tile, depth):
    """Another right answer: how many are needed, then all at once."""
    step = tile - 4
    return range(0, step * max(1, -(-(side - 4) // step)), step)


def side_by_side(side, tile, depth):
    return range(0, side, tile)


def last_one_pushed_back(side, tile, depth):
    starts = list(range(0, max(side - tile, 0) + 1, tile // 2**depth * 2**depth))
    return starts if starts[-1] + tile >= side else [*starts, side - tile]


def one_for_luck(side, tile, depth):
    return range(0, side, tile // 2**depth * 2**depth)


def smallest_steps(side, tile, depth):
    return range(0, max(side - tile, 0) + 2**depth, 2**depth)


def rest_left_out(side, tile, depth):
    step = tile // 2**depth * 2**depth
    return [step * i for i in range(max(1, (side - tile) // step + 1))]


def from_the_border(side, tile, depth):
    step, margin = tile // 2**depth * 2**depth, 6 * 2**depth - 4
    return range(-margin, side - margin, step)


@pytest.mark.parametrize("answer", [tile_starts_solution, by_count])
def test_right_plans_pass(answer):
    check_tile_starts(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (side_by_side, "only multiples of 16 are exact"),
        (last_one_pushed_back, "only multiples of 16 are exact"),
        (one_for_luck, "1 tiles are enough"),
        (smallest_steps, "tiles are enough"),
        (rest_left_out, "leaves pixels out"),
        (from_the_border, "the first tile starts at 0"),
    ],
)
def test_wrong_plans_are_told_why(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check_tile_starts(answer)
