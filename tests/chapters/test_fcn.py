"""Chapter 12: counts, grids and crops, deconvolution, dense and patch-wise answers, scores."""

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn
from toys import dataset_of, from_cells, generator, holds, noise, random_images

from helpers import inspect, metrics, train
from helpers.chapters import chapter
from helpers.parity import relative_difference

FCN, Backbone = chapter("12_fcn"), chapter("02_resnet").Backbone
CONFIG = FCN.CONFIGS["D"]
THIN = [entry if entry == "M" else entry // 32 for entry in CONFIG]

# parameters without and with the learnable enlargements
COUNTS = {32: (134_346_581, 136_152_917), 16: (134_357_354, 134_815_994), 8: (134_362_751, 134_489_759)}
# what the authors' released networks cut off
CROPS = {32: {"pixels": 19}, 16: {"pool4": 5, "pixels": 27}, 8: {"pool4": 5, "pool3": 9, "pixels": 31}}


def random_masks(n=3, side=16, classes=6, seed=0, void=True):
    masks = torch.randint(classes, (n, side, side), generator=generator(seed)).to(torch.uint8)
    if void:
        masks[:, :2] = 255
    return masks


def thin_vgg(code, hidden=16, classes=10):
    torch.manual_seed(0)
    return code.VGG(THIN, hidden=hidden, classes=classes)


def awakened(model):
    """Scores that start at zero get random weights, so that equalities mean something."""
    for name, parameter in model.named_parameters():
        if "score" in name:
            nn.init.normal_(parameter)
    return model.eval()


# --- the code


@holds(
    FCN,
    {
        "a bias in the enlargement": ("padding, bias=False)", "padding)"),
        "the 1000 names stay": ("(copy.deepcopy(vgg16)))[:-1]", "(copy.deepcopy(vgg16)))"),
    },
)
def test_counts(code):
    with torch.device("meta"):
        for stride, (bare, whole) in COUNTS.items():
            model = code.FCN(code.VGG(CONFIG), stride=stride)
            enlarging = sum(inspect.count_parameters(m) for m in model.modules() if isinstance(m, nn.ConvTranspose2d))
            assert inspect.count_parameters(model) == whole and whole - enlarging == bare


@holds(
    FCN,
    {
        "the grid forgets the padding": ("((kernel - 1) / 2 - padding)", "(kernel - 1) / 2"),
        "the grid moves by its new step": ("self.start + self.step *", "self.start + self.step * stride *"),
        "an enlargement by half a pixel less": ("(factor - 0.5))\n\n\ndef vgg_grids", "factor)\n\n\ndef vgg_grids"),
    },
)
def test_crops(code):
    for stride, offsets in CROPS.items():
        assert code.crop_offsets(stride) == offsets


@holds(FCN)
def test_grid(code):
    """A unit of conv7 sees 404 pixels around the pixel that its grid says."""
    model = code.FCN(thin_vgg(code), stride=32)
    layers = [*model.to_pool3, *model.to_pool4, *model.to_conv7]
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.MaxPool2d):
            layers[i] = nn.AvgPool2d(2)  # so that every pixel that is seen has a gradient
        elif isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight.data)
            nn.init.zeros_(layer.bias.data)
            layer.weight.data /= layer.weight[0].numel()
        elif isinstance(layer, nn.Dropout):
            layers[i] = nn.Identity()
    image = torch.ones(1, 3, 448, 448, dtype=torch.float64, requires_grad=True)
    maps = nn.Sequential(*layers).double()(image)
    (gradient,) = torch.autograd.grad(maps[0, 0, 7, 7], image)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    grid = code.vgg_grids()["conv6"]
    assert grid.step == 32 and (rows[0] + rows[-1]) / 2 == 7 * grid.step + grid.start
    assert rows[-1] - rows[0] + 1 == 404


@holds(FCN, {"pools round down": ("ceil_mode = True", "ceil_mode = False")})
def test_sizes(code):
    """As many scores as pixels at any size, and for photographs with the smallest padding of exercise 2, too."""
    large = ((224, 224), (375, 500))
    every = ((1, 1), (97, 33), *large)
    cases = [(stride, 100, every) for stride in (32, 16, 8)]
    cases += [(32, 97, every), (32, 81, large), (16, 73, large), (8, 69, large)]
    with torch.device("meta"):
        for stride, padding, sizes in cases:
            model = code.FCN(code.VGG(THIN, hidden=8), stride=stride, padding=padding)
            for size in sizes:
                assert model(torch.empty(1, 3, *size)).shape[2:] == size
        with pytest.raises(RuntimeError):
            code.FCN(code.VGG(THIN, hidden=8), stride=32, padding=96)(torch.empty(1, 3, 1, 1))


@holds(FCN, {"pool4 is cropped as pool3": ('self.offsets["pool4"]', 'self.offsets.get("pool3", 5)')})
def test_skips(code):
    """The finer networks add the scores of pool4 and pool3 where they lie on top of each other."""
    model = awakened(code.FCN(thin_vgg(code), classes=3, stride=8)).double()
    image = noise(1, 3, 64, 96).double()
    with torch.inference_mode():
        pool3 = model.to_pool3(image)
        pool4 = model.to_pool4(pool3)
        scores = F.conv_transpose2d(model.score(model.to_conv7(pool4)), model.up2.weight, stride=2)
        h, w = scores.shape[2:]
        scores = scores + model.score_pool4(pool4)[..., 5 : 5 + h, 5 : 5 + w]
        scores = F.conv_transpose2d(scores, model.up4.weight, stride=2)
        h, w = scores.shape[2:]
        scores = scores + model.score_pool3(pool3)[..., 9 : 9 + h, 9 : 9 + w]
        expected = F.conv_transpose2d(scores, model.up.weight, stride=8)[..., 31 : 31 + 64, 31 : 31 + 96]
        assert torch.allclose(model(image), expected)
        assert expected.std() > 1e-3


@holds(FCN, {"the vgg itself is changed": ("fully_convolutional(copy.deepcopy(vgg16))", "fully_convolutional(vgg16)")})
def test_convolutions(code):
    """conv6 and conv7 at their one position are the classifier's hidden layers."""
    classifier = thin_vgg(code)
    hidden = nn.Sequential(classifier.features, nn.Flatten(), *classifier.classifier[:-1])
    model = code.FCN(classifier, stride=32, padding=1)
    conv7 = nn.Sequential(model.to_pool3, model.to_pool4, model.to_conv7, nn.Flatten())
    assert relative_difference(conv7, hidden, noise(2, 3, 224, 224)) < 1e-12
    kernels = [m.kernel_size[0] for m in model.to_conv7 if isinstance(m, nn.Conv2d)]
    assert kernels == [3, 3, 3, 7, 1]
    assert classifier.features[0].padding == (1, 1) and not classifier.features[4].ceil_mode  # its own layers stay


@holds(FCN, {"random new scores": ("    nn.init.zeros_(layer.weight)\n", "")})
def test_zero_start(code):
    for model in (code.FCN(thin_vgg(code), stride=8), code.SmallFCN(Backbone(), 8)):
        scores = [layer for name, layer in model.named_modules() if name.startswith("score")]
        assert len(scores) == 3
        assert all(not layer.weight.any() and not layer.bias.any() for layer in scores)


@holds(
    FCN,
    {
        "a kernel that is too narrow": ("position.abs() / factor", "position.abs() / (factor - 0.5)"),
        "every class from every other": ("self.weight[range(classes), range(classes)] =", "self.weight[:] ="),
    },
)
def test_kernel(code):
    """Interpolation inside, not at the rim; weights of 1 in all per output, and no class from another one."""
    x = noise(1, 3, 5, 6)
    for factor in (2, 8, 16, 32):
        kernel = code.bilinear_kernel(factor)
        assert kernel.shape == (2 * factor, 2 * factor) and torch.allclose(kernel.sum(), torch.tensor(factor**2.0))
        with torch.no_grad():
            ours = code.Deconvolution(3, factor, padding=factor // 2)(x)
        theirs = F.interpolate(x, scale_factor=factor, mode="bilinear")
        off, rim = (ours - theirs).abs(), factor // 2
        assert ours.shape == theirs.shape
        assert off[..., rim:-rim, rim:-rim].max() < 1e-5 and off.max() > 0.1
        assert code.Deconvolution(3, factor)(x).shape[2:] == (factor * 6, factor * 7)


@holds(
    FCN,
    {
        "half-pixel enlargement": ('mode="bilinear", align_corners=True', 'mode="bilinear", align_corners=False'),
        "zeros beyond the last unit": ('(0, 1, 0, 1), mode="replicate"', "(0, 1, 0, 1)"),
    },
)
def test_upsample(code):
    x = noise(2, 3, 4, 5)
    for factor in (2, 8, 32):
        large = code.upsample(x, factor)
        assert large.shape == (2, 3, 4 * factor, 5 * factor)
        assert torch.allclose(large[..., ::factor, ::factor], x, atol=1e-6)
        middle = large[..., factor // 2, ::factor]
        assert torch.allclose(middle, (x[..., 0, :] + x[..., 1, :]) / 2, atol=1e-6)
        assert torch.allclose(large[..., -1, 0], x[..., -1, 0], atol=1e-6)  # repeated beyond the last unit
    assert torch.allclose(code.upsample(code.upsample(x, 2), 16), code.upsample(x, 32), atol=1e-5)


@holds(
    FCN,
    {
        "the streams are averaged": (
            "scores = upsample(scores, 2) + self.score3(c3)",
            "scores = (upsample(scores, 2) + self.score3(c3)) / 2",
        ),
        "16s scores C3, too": ("if stride == 8 else None", "if stride <= 16 else None"),
    },
)
def test_small(code):
    """The sum of its streams; finer networks start as the coarser ones."""
    torch.manual_seed(0)
    eight = awakened(code.SmallFCN(Backbone(), 8))
    images = noise(2, 3, 64, 96)
    with torch.inference_mode():
        _, c3, c4, c5 = eight.backbone.features(images)
        parts = (eight.score5(c5), 32), (eight.score4(c4), 16), (eight.score3(c3), 8)
        expected = sum(code.upsample(part, factor) for part, factor in parts)
        assert torch.allclose(eight(images), expected, atol=1e-4)
    for coarse, fine in ((32, 16), (16, 8)):
        first, second = awakened(code.SmallFCN(Backbone(), coarse)), code.SmallFCN(Backbone(), fine).eval()
        second.load_state_dict(first.state_dict(), strict=False)
        with torch.inference_mode():
            assert torch.allclose(first(images), second(images), atol=1e-4)
            assert first(images).std() > 1e-3
    assert not code.SmallFCN(Backbone(), 16).score3 and not code.SmallFCN(Backbone(), 32).score4


@holds(
    FCN,
    {
        "patches are padded": ("layer.padding = (0, 0)", "layer.padding = (1, 1)"),
        "poolings without holes": ("layer.stride, 1, spread", "layer.stride, 1, 1"),
    },
)
def test_dense(code):
    """Dense answers are those of every window; rarefied, of the windows at every pixel, and so is shift-and-stitch."""
    torch.manual_seed(0)
    patchwise = code.patch_classifier().double()
    dense = code.fully_convolutional(patchwise)
    image = noise(1, 3, 76, 84).double()
    with torch.inference_mode():
        coarse, fine = dense(image), code.rarefied(dense)(image)
        assert coarse.shape == (1, 6, 4, 5) and fine.shape == (1, 6, 25, 33)
        for i, j in ((0, 0), (3, 4), (2, 1)):
            patch = image[..., 8 * i : 8 * i + 52, 8 * j : 8 * j + 52]
            assert torch.allclose(coarse[..., i, j], patchwise(patch))
        for y, x in ((0, 0), (3, 7), (24, 32)):
            assert torch.allclose(fine[..., y, x], patchwise(image[..., y : y + 52, x : x + 52]))
        for y, x in ((0, 0), (5, 3)):  # one shift of shift-and-stitch
            shifted = dense(image[..., y:, x:])
            h, w = shifted.shape[2:]
            assert torch.allclose(shifted, fine[..., y::8, x::8][..., :h, :w])
    assert coarse.std() > 1e-3
    assert all(m.padding == (0, 0) and m.stride == (1, 1) for m in dense if isinstance(m, nn.Conv2d))


@holds(
    FCN,
    {
        "holes only after poolings": (
            "layer.stride[0], (1, 1), (spread, spread)\n            spread *= stride",
            "layer.stride[0], (1, 1), (spread, spread)",
        )
    },
)
def test_rarefied(code):
    """Strided convolutions spread what comes after them, too; the network given stays as it is."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2))
    x = noise(1, 2, 20, 20)
    fine = code.rarefied(layers)(x)
    assert torch.allclose(fine[..., ::4, ::4], layers(x)[..., : fine.shape[2], : fine.shape[3]], atol=1e-6)
    assert layers[0].stride == (2, 2) and layers[3].dilation == (1, 1)


@holds(
    FCN,
    {
        "accuracy of all classes alike": ("hits.sum() / known.sum()", "(hits / known).mean()"),
        "weights from the guesses": ("known / known.sum() * union", "counts.sum(0) / known.sum() * union"),
    },
)
def test_scores(code):
    """The paper's four measures, pixel by pixel, and torchmetrics'."""
    truth, guess = random_masks(seed=0), random_masks(seed=1, void=False)
    n = [[0] * 6 for _ in range(6)]
    for t, g in zip(truth.flatten().tolist(), guess.flatten().tolist(), strict=True):
        if t != 255:
            n[t][g] += 1
    t = [sum(row) for row in n]
    union = [t[i] + sum(row[i] for row in n) - n[i][i] for i in range(6)]
    expected = {
        "pixel_accuracy": sum(n[i][i] for i in range(6)) / sum(t),
        "mean_accuracy": sum(n[i][i] / t[i] for i in range(6)) / 6,
        "mean_iou": sum(n[i][i] / union[i] for i in range(6)) / 6,
        "weighted_iou": sum(t[i] * n[i][i] / union[i] for i in range(6)) / sum(t),
    }
    found = code.segmentation_scores(metrics.pixel_confusion(guess, truth, 6))
    assert found == pytest.approx(expected)
    for average, name in (("macro", "mean_iou"), ("weighted", "weighted_iou")):
        theirs = torchmetrics.JaccardIndex("multiclass", num_classes=6, ignore_index=255, average=average)
        assert float(theirs(guess.long(), truth.long())) == pytest.approx(found[name], abs=1e-6)


@holds(FCN, {"an absent class counts as 0": ("float(union.nanmean())", "float(union.nan_to_num().mean())")})
def test_absent(code):
    """A class that neither is nor is said is left out; one that is only said counts as 0."""
    truth, guess = random_masks(classes=3, seed=0), random_masks(classes=3, seed=1, void=False)
    counts = metrics.pixel_confusion(guess, truth, 6)
    three = code.segmentation_scores(counts[:3, :3])
    assert code.segmentation_scores(counts) == pytest.approx(three)
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=6, ignore_index=255)
    assert float(theirs(guess.long(), truth.long())) == pytest.approx(three["mean_iou"], abs=1e-6)
    each = torchmetrics.JaccardIndex("multiclass", num_classes=6, ignore_index=255, average=None)
    assert float(each(guess.long(), truth.long()).mean()) == pytest.approx(three["mean_iou"] / 2, abs=1e-6)
    guess[0, 5, 5] = 4
    found = code.segmentation_scores(metrics.pixel_confusion(guess, truth, 6))
    assert found["mean_iou"] < 0.8 * three["mean_iou"]
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=6, ignore_index=255)
    assert float(theirs(guess.long(), truth.long())) == pytest.approx(found["mean_iou"], abs=1e-6)


@holds(
    FCN,
    {
        "a band to one side only": (
            "larger.narrow(axis, 0, others).logical_or_(regions.narrow(axis, 1, others))",
            "pass",
        ),
        "void is a class": (
            "for label in range(classes)], 1)\n        bands",
            "for label in (*range(classes), 255)], 1)\n        bands",
        ),
    },
)
def test_band(code):
    """Against a loop: another class within the square of side 2 w + 1; void is no class."""
    masks = torch.zeros(1, 12, 12, dtype=torch.uint8)
    masks[0, 4:8, 3:6] = 2
    masks[0, 6, 5] = 255
    masks[0, 11, 11] = 255
    for width in (1, 2, 4):
        found = code.boundary_band(masks, width)
        for y in range(12):
            for x in range(12):
                part = masks[0, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
                assert bool(found[0, y, x]) == (len(set(part.flatten().tolist()) - {255}) > 1)


@holds(
    FCN, {"band and outside swapped": ('(("band", band), ("outside", ~band))', '(("band", ~band), ("outside", band))')}
)
def test_band_scores(code):
    truth = torch.zeros(2, 16, 16, dtype=torch.uint8)
    truth[:, 4:12, 4:12] = 1
    guess = truth.clone()
    guess[:, 4:12, 4] = 0  # wrong within one pixel of the boundary only
    scores = code.score_masks(guess, truth)
    assert scores["outside_1"] == 1 and scores["band_1"] < scores["band_4"] < 1
    band = code.boundary_band(truth, 1)
    expected = metrics.iou(metrics.pixel_confusion(guess, truth.masked_fill(~band, 255), 6)).nanmean()
    assert scores["band_1"] == pytest.approx(float(expected))


@holds(
    FCN,
    {
        "zeros on two sides only": ("[MARGIN] * 4", "[0, 2 * MARGIN, 0, 2 * MARGIN]"),
        "the margin is not cut off": (
            "cropped(upsample(scores, self.stride), MARGIN, images)",
            "cropped(upsample(scores, self.stride), 0, images)",
        ),
        "C4 is forgotten": (
            "cropped(upsample(scores, 2), 0, c4) + self.score4(c4)",
            "cropped(upsample(scores, 2), 0, c4)",
        ),
    },
)
def test_centred(code):
    """Its scores are those of a padded photograph, unit i of stride 32 at pixel 32 i - 17, and none is repeated."""
    torch.manual_seed(0)
    images, backbone = noise(2, 3, 64, 96), Backbone().eval()
    eight = awakened(code.CentredFCN(backbone, 8))
    with torch.inference_mode():
        _, c3, c4, c5 = backbone.features(F.pad(images, (17, 17, 17, 17)))
        coarse = F.interpolate(eight.score5(c5), scale_factor=32, mode="nearest")
        parts = (eight.score5(c5), 32), (eight.score4(c4), 16), (eight.score3(c3), 8)
        expected = sum(code.upsample(part, factor)[..., 17 : 17 + 64, 17 : 17 + 96] for part, factor in parts)
        assert torch.allclose(eight(images), expected, atol=1e-4) and expected.std() > 1e-3
        whole = awakened(code.CentredFCN(backbone, 32))
        found = whole(images)
        for i, pixel in ((1, 15), (2, 47)):
            assert torch.allclose(found[..., pixel, 15], whole.score5(c5)[..., i, 1], atol=1e-5)
        assert (found[..., 1:] != found[..., :-1]).any(2).all()
    assert coarse.shape[2:] == (32 * 4, 32 * 5)  # beyond each rim of 64x96 pixels a unit
    same = inspect.count_parameters(code.SmallFCN(Backbone(), 8))
    assert inspect.count_parameters(code.CentredFCN(Backbone(), 8)) == same


def dataset(n=6, side=32):
    return dataset_of(random_images(n, side), random_masks(n, side), ("a",))


@holds(
    FCN,
    {
        "the mask is all background": (
            "return score_masks(predicted, data.test.targets)",
            "return score_masks(0 * predicted, data.test.targets)",
        ),
    },
)
def test_evaluation(code):
    """A network whose score is constant gets the counts of a constant mask on the validation photographs."""
    data = dataset(4)
    data.test.targets[:, 8:16] = 3  # the two parts have unlike masks
    model = code.SmallFCN(Backbone(), 32)
    model.score5.bias.data[3] = 1
    found = code.evaluate_masks(model.train(), data)
    hits = data.test.targets[data.test.targets != 255] == 3
    assert found["pixel_accuracy"] == pytest.approx(float(hits.float().mean()))
    assert found["mean_iou"] == pytest.approx(float(hits.float().mean()) / 6)
    assert model.training and model.backbone.bn1.training


@holds(
    FCN,
    {
        "every grid is centred": ("(CentredFCN if centred else SmallFCN)", "(CentredFCN if stride else SmallFCN)"),
        "the seed is forgotten": (
            "history = train_masks(network, data, epochs, seed=seed)",
            "history = train_masks(network, data, epochs)",
        ),
    },
)
def test_grid_arm(code):
    """The corner grid's arm is the first study's training to the last bit; the centred one is another."""
    data = dataset(12)
    first = code.train_arm(data, seed=1, stride=32, epochs=2)
    corner, centred = (code.train_grid_arm(data, seed=1, stride=32, centred=c, epochs=2) for c in (False, True))
    for name in ("train_loss", "mean_iou", "band_2"):
        assert corner[name] == first[name]
    assert centred["train_loss"] != first["train_loss"]


@holds(
    FCN, {"it thaws": ("backbone.requires_grad_(not scores_only)", "backbone.train().requires_grad_(not scores_only)")}
)
def test_frozen_backbone(code):
    """The scores alone: no weight and no running mean of the loaded backbone moves; trained with it, both do."""
    given, kept = [], code.SmallFCN

    class Spy(kept):
        def __init__(self, backbone, stride):
            given.append((backbone, {k: v.clone() for k, v in backbone.state_dict().items()}))
            super().__init__(backbone, stride)

    code.SmallFCN = Spy
    try:
        for scores_only in (True, False):
            code.train_arm(dataset(12), seed=1, stride=32, epochs=1, scores_only=scores_only)
            backbone, before = given[-1]
            after = backbone.state_dict()
            moved = {name for name in before if not torch.equal(before[name], after[name])}
            assert ("bn1.running_mean" in moved) == ("conv1.weight" in moved) == (not scores_only)
            assert bool(moved) != scores_only
    finally:
        code.SmallFCN = kept


@holds(FCN, {"the backbone trains in every arm": ("backbone.requires_grad_(not scores_only)", "pass")})
def test_arm(code):
    """The arm that trains the scores alone leaves the backbone's weights; the others do not. Same seed, same result."""
    data = dataset(12)
    given, kept = [], code.SmallFCN

    class Spy(kept):
        def __init__(self, backbone, stride):
            given.append((backbone, {k: v.clone() for k, v in backbone.named_parameters()}))
            super().__init__(backbone, stride)

    code.SmallFCN = Spy
    try:
        for settings, moves in ({"scores_only": True, "pretrained": False}, False), ({"pretrained": False}, True):
            results = [code.train_arm(data, seed=1, stride=32, epochs=1, **settings) for _ in range(2)]
            backbone, before = given[-1]
            same = all(
                torch.equal(value, before[name]) for name, value in backbone.named_parameters() if "fc" not in name
            )
            assert same != moves
            assert results[0]["mean_iou"] == results[1]["mean_iou"] and "epoch" not in results[0]
    finally:
        code.SmallFCN = kept


# ------------------------------------------------------------------------------------------------------ errors


def test_unknown_strides_are_refused():
    with pytest.raises(ValueError, match="none of 32, 16, 8"):
        FCN.SmallFCN(Backbone(), 4)


def test_arms_of_the_study_cost_nearly_the_same():
    models = [FCN.SmallFCN(Backbone(), FCN.ARMS[arm]["stride"]) for arm in ("32s", "16s", "8s")]
    for count in (inspect.count_parameters, lambda model: inspect.count_macs(model, (3, 96, 96))):
        assert 1 < count(models[2]) / count(models[0]) < 1.005
    assert [inspect.count_parameters(model) for model in models] == [1_231_026, 1_231_800, 1_232_190]


def test_one_batch_is_learned():
    torch.manual_seed(0)
    data = dataset(3)
    squares = torch.zeros(3, 32, 32, dtype=torch.uint8)
    squares[:, :16] = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
    data.train.targets[:] = squares
    loss = train.overfit(FCN.SmallFCN(Backbone(), 8), data, images=3, steps=25, loss=train.pixel_cross_entropy)
    assert loss < 0.3


# ------------------------------------------------------------------------------------- the exercises' checks

check_stitch, stitch_solution, check_four, transferred = from_cells(
    FCN, "check_stitch", "stitch_solution", "check_four", "transferred"
)
check_four.__globals__["transferred"] = transferred


def shifted(layers, images, stride):
    return [[layers(images[..., y:, x:]) for x in range(stride)] for y in range(stride)]


def stitched(maps):
    """Maps of all shifts (rows of columns), interleaved; cut to the smallest."""
    height, width = (min(part.shape[axis] for line in maps for part in line) for axis in (2, 3))
    maps = torch.stack([torch.stack([part[..., :height, :width] for part in line]) for line in maps])
    return maps.permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)


def by_permutation(layers, images, stride):
    """Another right answer: one big tensor, its axes put in order."""
    return stitched(shifted(layers, images, stride))


def rows_for_columns(layers, images, stride):
    return stitched(list(zip(*shifted(layers, images, stride), strict=True)))


def side_by_side(layers, images, stride):
    maps = shifted(layers, images, stride)
    return torch.cat([torch.cat([part[..., :5, :7] for part in line], 3) for line in maps], 2)


def moved_the_other_way(layers, images, stride):
    padded = F.pad(images, (stride, 0, stride, 0))
    maps = [
        [layers(padded[..., stride - y : images.shape[2] + stride - y, stride - x : images.shape[3] + stride - x])
         for x in range(stride)] for y in range(stride)
    ]  # fmt: skip
    return stitched([[part[..., :5, :7] for part in line] for line in maps])


def rolled(layers, images, stride):
    return stitched([[layers(images.roll((-y, -x), (2, 3))) for x in range(stride)] for y in range(stride)])


def diagonal_only(layers, images, stride):
    maps = shifted(layers, images, stride)
    return stitched(
        [[maps[max(y, x)][max(y, x)] if y * x else maps[y][x] for x in range(stride)] for y in range(stride)]
    )


def one_pass_enlarged(layers, images, stride):
    return layers(images)[..., :5, :7].repeat_interleave(stride, 2).repeat_interleave(stride, 3)


@pytest.mark.parametrize("answer", [stitch_solution, by_permutation])
def test_right_stitches_pass(answer):
    check_stitch(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (rows_for_columns, "one pixel further down"),
        (side_by_side, "every fourth answer"),
        (moved_the_other_way, "one pixel further down"),
        (rolled, "cut to the smallest map"),
        (one_pass_enlarged, "one pixel further down"),
        (diagonal_only, "missing or misplaced"),
    ],
)
def test_wrong_stitches_are_told_why(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check_stitch(answer)


class Four(FCN.SmallFCN):
    """Right: each stream enlarged by itself. What the museum below changes is in `fourth` and `together`."""

    def __init__(self, backbone):
        super().__init__(backbone, stride=8)
        self.score2 = self.fourth()

    def fourth(self):
        return FCN.zero_scores(32, 6)

    def forward(self, images):
        c2 = self.backbone.features(images)[0]
        return self.together(super().forward(images), self.score2(c2), images)

    def together(self, of_eight, of_c2, images):
        return of_eight + FCN.upsample(of_c2, 4)


class FourInOrder(Four):
    """Another right answer: on the way up, as in the paper."""

    def forward(self, images):
        c2, c3, c4, c5 = self.backbone.features(images)
        scores = FCN.upsample(self.score5(c5), 2) + self.score4(c4)
        scores = FCN.upsample(scores, 2) + self.score3(c3)
        return FCN.upsample(FCN.upsample(scores, 2) + self.score2(c2), 4)


class RandomStart(Four):
    def fourth(self):
        return nn.Conv2d(32, 6, 1)


class WithoutBias(Four):
    def fourth(self):
        return nn.Conv2d(32, 6, 1, bias=False)


class OtherUnits(FourInOrder):
    def forward(self, images):
        c2, c3, c4, c5 = self.backbone.features(images)
        scores = F.interpolate(self.score5(c5), scale_factor=2, mode="bilinear") + self.score4(c4)
        scores = F.interpolate(scores, scale_factor=2, mode="bilinear") + self.score3(c3)
        return FCN.upsample(FCN.upsample(scores, 2) + self.score2(c2), 4)


class InBlocks(Four):
    def together(self, of_eight, of_c2, images):
        return of_eight + F.interpolate(of_c2, scale_factor=4)


class AverageOfBoth(Four):
    def together(self, of_eight, of_c2, images):
        return (of_eight + FCN.upsample(of_c2, 4)) / 2


class Forgotten(Four):
    def together(self, of_eight, of_c2, images):
        return of_eight


@pytest.mark.parametrize("answer", [Four, FourInOrder])
def test_right_fourth_streams_pass(answer):
    check_four(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (RandomStart, "must start as the FCN-8s"),
        (WithoutBias, "198 parameters more"),
        (OtherUnits, "must start as the FCN-8s"),
        (InBlocks, "enlarged 4 times"),
        (AverageOfBoth, "must start as the FCN-8s"),
        (Forgotten, "enlarged 4 times"),
    ],
)
def test_wrong_fourth_streams_are_told_why(answer, hint):
    with pytest.raises(AssertionError, match=hint):
        check_four(answer)


@holds(FCN, {"half the epochs": ("data, epochs=4).last", "data, epochs=2).last")})
def test_what_the_gallery_learns(code):
    calls = []
    history = train.History("toy", {}, [{"mean_iou": 0.2}, {"mean_iou": 0.4}])
    code.train_masks = lambda *given, epochs: calls.append((*given, epochs)) or history
    assert code.learn_animals("network", "photographs") == {"mean_iou": 0.4}
    assert calls == [("network", "photographs", 4)]
