"""Chapter 15: the map against autograd, CAM and two public libraries, the rules, the measures; mutants; exercises."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import dataset_of, from_cells, holds

from helpers import cam
from helpers.chapters import chapter
from helpers.data import Dataset, Provenance, Split

GRAD_CAM = chapter("15_grad_cam")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(head="average"):
    """A small network of which layer "2" has 4 maps of 6x6 positions; its head averages, or is dense with a ReLU.

    It is in training mode, where it gives other answers.
    """
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2))
    body = [first, nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)]
    if head == "average":
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    else:
        tail = [nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)]
    return GRAD_CAM.resnet.shake_batch_norms(nn.Sequential(*body, *tail)).double()


IMAGES = noise(2, 3, 8, 8).double()


@holds(GRAD_CAM, {"sum instead of average": ("gradient.mean((2, 3)), activation", "gradient.sum((2, 3)), activation")})
def test_cam_identity(code):
    model = network()
    alpha, A = code.GradCAM(model, "3").alphas(IMAGES, code.logit(1))
    assert torch.allclose(36 * alpha, model[6].weight[1].expand(2, 4))
    raw = code.GradCAM(model, "3")(IMAGES, code.logit(1), relu=False)
    assert torch.allclose(36 * raw, torch.einsum("k,nkhw->nhw", model[6].weight[1].detach(), A))


@holds(GRAD_CAM, {"no copy behind the hook": ("return made.clone()  # what", "return made  # what")})
def test_autograd(code):
    """alpha by differences of the score, channel by channel; layer 2 is followed by a ReLU in place."""
    model = network("dense")
    alpha, A = code.GradCAM(model, "2").alphas(IMAGES, code.logit(torch.tensor([0, 2])))
    assert (A < 0).any()
    behind = model[3:]
    for k in range(4):
        step = torch.zeros_like(A)
        step[:, k] = 1e-6
        change = (behind((A + step).clone()) - behind((A - step).clone())) / 2e-6
        assert torch.allclose(alpha[:, k] * 36, change[[0, 1], [0, 2]], atol=1e-4)


@holds(
    GRAD_CAM,
    {
        "no ReLU": ("return maps.relu() if relu else maps", "return maps"),
        "in training mode": ("with evaluating(self.model), torch", "with torch"),
    },
)
def test_helper(code):
    model = network("dense")
    for relu in (True, False):
        ours = code.GradCAM(model, "2")(IMAGES, code.logit(1), relu)
        assert torch.allclose(ours, cam.grad_cam(model, "2", IMAGES, 1, relu=relu))
    assert (code.GradCAM(model, "2")(IMAGES, code.logit(1)) >= 0).all()


@holds(GRAD_CAM, {"counterfactual without the sign": ("-alpha, activation", "alpha, activation")})
def test_counterfactual(code):
    explain, score = code.GradCAM(network("dense"), "2"), code.logit(1)
    against = explain.counterfactual(IMAGES, score)
    assert torch.equal(against, explain(IMAGES, lambda outputs: -score(outputs)))
    assert torch.allclose(explain(IMAGES, score) - against, explain(IMAGES, score, relu=False))


@holds(
    GRAD_CAM,
    {
        "guided ignores where the ReLU was off": ('if ctx.rule != "deconvolution"', 'if ctx.rule == "gradient"'),
        "deconvolution passes negative gradients": ('if ctx.rule != "gradient"', 'if ctx.rule == "guided"'),
        "tensor methods are missed": ("torch.relu_, torch.Tensor.relu, torch.Tensor.relu_", "torch.relu_"),
    },
)
def test_rules(code):
    x, g = torch.tensor([2.0, 2.0, -2.0, -2.0], requires_grad=True), torch.tensor([1.0, -1.0, 1.0, -1.0])
    expected = {"gradient": [1, -1, 0, 0], "deconvolution": [1, 0, 1, 0], "guided": [1, 0, 0, 0]}
    for rule, values in expected.items():
        with code.ReLURule(rule):
            forms = [F.relu(x), x.relu(), torch.relu(x), nn.ReLU(inplace=True)(x * 1), (x * 1).relu_()]
        for y in forms:
            assert torch.autograd.grad(y, x, g)[0].tolist() == values


@holds(
    GRAD_CAM,
    {
        "the signed maximum": ("return gradient.abs().amax(1)", "return gradient.amax(1)"),
        "in training mode": ("with evaluating(model), torch.enable_grad(), ReLU", "with torch.enable_grad(), ReLU"),
    },
)
def test_input_gradient(code):
    model, images = network("dense"), IMAGES.clone().requires_grad_()
    found = code.input_gradient(model, IMAGES, code.logit(1))
    (expected,) = torch.autograd.grad(model.eval()(images)[:, 1].sum(), images)
    assert torch.allclose(found, expected)
    assert torch.equal(code.saliency(found), found.abs().max(1).values)


@holds(GRAD_CAM, {"guided Grad-CAM without guidance": ('score, "guided") * maps', "score) * maps")})
def test_guided_product(code):
    model, score = network("dense"), code.logit(1)
    guided = code.input_gradient(model, IMAGES, score, "guided")
    maps = code.GradCAM(model, "2")(IMAGES, score)
    maps = F.interpolate(maps[:, None], (8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(code.guided_grad_cam(model, "2", IMAGES, score), guided * maps)


@holds(GRAD_CAM, {"the other half": ("(right if side else left)", "(left if side else right)")})
def test_halves(code):
    maps = torch.zeros(1, 2, 4)
    maps[0, 0, 0], maps[0, 0, 3] = 3.0, 1.0
    assert code.share_on_its_half(maps, 0).item() == 0.75 and code.share_on_its_half(maps, 1).item() == 0.25
    assert code.discrimination(lambda side: maps if side == 0 else maps.flip(2)).item() == 0.75


@holds(
    GRAD_CAM,
    {
        "pairs of the same animal": ("labels[j] != labels[i]", "labels[j] == labels[i]"),
        "a photograph in two scenes": ("waiting.remove(partner)", "pass"),
    },
)
def test_pairs(code):
    """In this order: 0 waits beside 4, 2 goes to the first of them, 1 waits, 5 goes to 0; no photograph twice."""
    photos, labels = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2), torch.tensor([0, 0, 1, 2, 0, 1])
    scenes, pairs = code.side_by_side(photos, labels, [4, 0, 2, 1, 5])
    assert scenes.shape == (2, 3, 2, 4)
    shown = scenes[:, 0, 0, [0, 2]].long()
    assert shown.tolist() == [[4, 2], [0, 5]] and torch.equal(labels[shown], pairs)


@holds(GRAD_CAM, {"deconvolution looks where the ReLU was off": ('if ctx.rule != "deconvolution":', "if True:")})
def test_deconvolution(code):
    """Without pooling by the maximum it draws one picture for all images; with pooling it does not."""
    convolution = nn.Conv2d(3, 4, 3).double()
    for pool, blind in ((nn.AvgPool2d(2), True), (nn.MaxPool2d(2), False)):
        model = nn.Sequential(convolution, nn.ReLU(), pool, nn.Flatten(), nn.Linear(36, 3).double())
        found = code.input_gradient(model, IMAGES, code.logit(1), "deconvolution")
        assert torch.equal(found[0], found[1]) == blind and found.abs().max() > 0


@holds(
    GRAD_CAM,
    {
        "the smallest piece": ("m[m > 0].mode().values", "m[m > 0].max()"),
        "a pixel short": ("torch.where(line.any(1), last, 0)", "torch.where(line.any(1), last - 1, 0)"),
    },
)
def test_component(code):
    regions = torch.zeros(2, 6, 6, dtype=torch.bool)
    regions[0, 0, 0] = regions[0, 1, 1] = regions[0, 2, 2] = True  # three in a diagonal
    regions[0, 4:, 4:5] = True  # two
    kept = code.largest_component(regions)
    assert kept[0].sum() == 3 and kept[0, 1, 1] and not kept[1].any()
    assert code.bounding_box(kept).tolist() == [[0, 0, 3, 3], [0, 0, 0, 0]]


@holds(GRAD_CAM, {"another threshold": ("threshold=0.15", "threshold=0.05")})
def test_box(code):
    maps = torch.zeros(1, 8, 8)
    maps[0, 0, 0], maps[0, 3:7, 4:8], maps[0, 7, 4] = 10.0, 2.0, 1.0
    assert code.box_from_map(maps).tolist() == [[4, 3, 8, 7]]
    assert code.box_from_map(maps, 0.5).tolist() == [[0, 0, 1, 1]]
    assert code.box_from_map(0 * maps).tolist() == [[0, 0, 0, 0]]


@holds(GRAD_CAM, {"a map of zeros hits": ("return hit & (maps.amax((1, 2)) > maps.amin((1, 2)))", "return hit")})
def test_pointing(code):
    maps, regions = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    maps[0, 6, 6], regions[0, 2:5, 2:5] = 1.0, 1.0
    assert [code.pointing(maps, regions, t).item() for t in (0, 1, 2)] == [False, False, True]
    assert not code.pointing(torch.zeros(1, 8, 8), torch.ones(1, 8, 8)).item()


@holds(GRAD_CAM, {"tags on everybody": ("in_columns[:, None, :] & tagged[:, None, None]", "in_columns[:, None, :]")})
def test_tags(code):
    images = torch.full((40, 3, 32, 32), 9, dtype=torch.uint8)
    split, place = code.plant(Split(images, torch.arange(40) % 2), cats=0.0, dogs=1.0, seed=0)
    assert place.sum((1, 2)).tolist() == [0, 36] * 20
    changed = (split.images != images).any(1)
    assert torch.equal(changed, place)
    assert len({tuple(p.nonzero()[0].tolist()) for p in place[1::2]}) > 10


@holds(
    GRAD_CAM,
    {
        "photographs of the training": ("Split(data.test.images[dogs]", "Split(data.train.images[dogs]"),
        "cats, too": ("(data.test.targets == DOG)", "(data.test.targets >= 0)"),
    },
)
def test_tag_energy(code):
    """A stand-in judge whose only evidence for a dog is purple, the tag's colour. It is shown the dogs of the test."""

    class Judge(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer3 = nn.Conv2d(3, 1, 1)
            with torch.no_grad():
                self.layer3.weight.copy_(torch.tensor([1.0, -2.0, 1.0]).view(1, 3, 1, 1))
                self.layer3.bias.fill_(-1.0)

        def forward(self, images):
            maps = self.layer3(images).relu().mean((2, 3))
            return torch.cat([-maps, maps], 1)

    images = torch.randint(100, 140, (60, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = dataset_of(images, torch.arange(60) % 2, ("cat", "dog"))
    judge, shown = Judge(), []
    judge.register_forward_pre_hook(lambda _, given: shown.append(given[0].detach()))
    found = code.energy_near_tags(judge, data, seed=0)
    assert 0.1 < found["area"] < 0.2 and found["saliency_energy"] > found["area"]
    dogs = data.normalize(data.test.images[data.test.targets == 1])
    assert all(0.9 < (x == dogs).float().mean() < 1 for x in shown)  # all but the tags


@holds(
    GRAD_CAM,
    {
        "covering raises": ("row.append(whole - score", "row.append(score(model(images)) * 0 + score"),
        "in training mode": (
            "with evaluating(model), torch.inference_mode():\n        whole",
            "with torch.inference_mode():\n        whole",
        ),
    },
)
def test_occlusion(code):
    class Sum(nn.Module):
        def forward(self, images):
            assert not self.training
            return images.sum((1, 2, 3))[:, None]

    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :16, 16:] = 1.0
    fall = code.occlusion_map(Sum(), images, code.logit(0), patch=16, stride=16)
    assert fall[0].tolist() == [[0, 3 * 256], [0, 0]]


@holds(GRAD_CAM)
def test_rank_correlation(code):
    a = noise(2, 4, 4)
    assert torch.allclose(code.rank_correlation(a, a.exp()), torch.ones(2))
    assert torch.allclose(code.rank_correlation(a, -a), -torch.ones(2))
    scipy = pytest.importorskip("scipy.stats")
    tied = a.round()
    expected = [
        scipy.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(tied, noise(2, 4, 4, seed=1), strict=True)
    ]
    assert code.rank_correlation(tied, noise(2, 4, 4, seed=1)).tolist() == pytest.approx(expected)


@holds(GRAD_CAM, {"the attack helps": ("images + epsilon *", "images - epsilon *")})
def test_adversarial(code):
    model, names, epsilon = network("dense"), torch.tensor([0, 1]), torch.tensor([0.01, 0.02, 0.03]).view(3, 1, 1)
    changed = code.fast_gradient_sign(model, IMAGES, names, epsilon.double())
    assert ((changed - IMAGES).abs() <= epsilon + 1e-9).all()
    loss = [F.cross_entropy(model.eval()(x), names, reduction="none") for x in (IMAGES, changed)]
    assert (loss[1] > loss[0]).all()


@holds(
    GRAD_CAM,
    {
        "away from the class": ("names[going], -epsilon", "names[going], epsilon"),
        "beyond white": (", -epsilon).clamp(*bounds)", ", -epsilon)"),
        "who is there goes on": ("found <= probability)", "found <= 2)"),
        "in training mode": (
            "with evaluating(model), torch.no_grad():\n            f",
            "with torch.no_grad():\n            f",
        ),
    },
)
def test_towards(code):
    """One image is on its way, one is there already, and no pixel leaves its bounds."""

    class First(nn.Module):
        """Says class 1 with the more certainty, the larger the first pixel and the smaller the second."""

        def forward(self, images):
            assert not self.training
            score = 4 * (images[:, 0, 0, 0] - images[:, 0, 0, 1])
            return torch.stack([-score, score], 1)

    images = torch.zeros(2, 3, 1, 2)
    images[1, 0, 0, 0] = 2.0
    bounds, names = (torch.full((1, 3, 1, 1), -0.35), torch.full((1, 3, 1, 1), 2.0)), torch.tensor([1, 1])
    changed = code.towards(First(), images, names, torch.full((3, 1, 1), 0.1), bounds)
    assert torch.equal(changed[1], images[1]) and not images[0].any()
    assert (First().eval()(changed).softmax(1)[:, 1] > 0.9999).all()
    assert changed[0, 0].tolist() == [[pytest.approx(0.9), pytest.approx(-0.35)]]  # 4 x 1.25 is enough, 4 x 1.15 is not
    stopped = code.towards(First(), images, names, torch.full((3, 1, 1), 0.1), bounds, steps=2)
    assert stopped[0, 0].tolist() == [[pytest.approx(0.2), pytest.approx(-0.2)]]


@holds(
    GRAD_CAM,
    {
        "networks are not drawn": ("torch.randint(networks, (networks, 1), generator=generator)", "[[0], [1]]"),
        "photographs are not drawn": (
            "torch.randint(photographs, (photographs,), generator=generator)",
            "torch.arange(photographs)",
        ),
        "nan is contagious": ("differences[rows, columns].nanmean()", "differences[rows, columns].mean()"),
    },
)
def test_interval(code):
    """Two networks that differ and photographs that do not, the other way round, and neither."""
    assert code.interval(torch.full((3, 20), 2.5)) == [2.5, 2.5]
    assert code.interval(torch.tensor([0.0, 1.0])[:, None].expand(2, 100)) == [0, 1]
    low, high = code.interval((torch.arange(100.0) % 2).expand(2, 100))
    assert 0.37 < low < 0.43 and 0.57 < high < 0.63  # 0.5 and twice 0.05 on each side
    values = torch.full((3, 20), 1.0)
    values[0, ::2] = torch.nan
    assert code.interval(values) == [1, 1]


@holds(GRAD_CAM, {"the chance of a point on the box": ("near(regions.bool(), tolerance).mean", "regions.float().mean")})
def test_chance(code):
    """A box of 10 x 10 at the tolerance of 2, 14 x 14 of 64 x 64; the other animal's box does not count."""
    boxes = torch.tensor([[[10.0, 10, 20, 20], [30, 30, 60, 60]]])
    targets = {"boxes": boxes, "labels": torch.tensor([[1, 2]])}
    assert code.chance_of_a_hit(targets, torch.tensor([1]), 64).item() == pytest.approx(14 * 14 / 64**2)


@holds(
    GRAD_CAM,
    {
        "void becomes background": ("(masks == 255) | (masks == animal)", "masks == animal"),
        "the class before": ("(labels + 1)[:, None, None]", "labels[:, None, None]"),
    },
)
def test_masks(code):
    """Only the animal that is asked for stays; void stays void."""
    targets = {"masks": torch.tensor([[[0, 1, 2], [255, 2, 1]]]).repeat(2, 1, 1)}
    masks = code.masks_of_the_asked(targets, torch.tensor([0, 1]))
    assert masks.tolist() == [[[0, 1, 0], [255, 0, 1]], [[0, 0, 2], [255, 2, 0]]]


@holds(
    GRAD_CAM,
    {
        "both animals are judged": (
            "= maps.shape[-1], of_the_asked(targets, labels)",
            '= maps.shape[-1], targets["boxes"]',
        ),
        "energy without a mask": ('torch.where(targets["has_mask"], energy, torch.nan)', "energy"),
    },
)
def test_judged_maps(code):
    """Two photographs with the same two animals and the same map; asked is the one, then the other."""
    boxes = torch.tensor([[[1.0, 10.0, 6.0, 15.0], [10.0, 2.0, 14.0, 6.0]]]).repeat(2, 1, 1)
    masks = torch.zeros(2, 16, 16, dtype=torch.uint8)
    masks[:, 10:15, 1:6], masks[:, 2:6, 10:14] = 1, 3
    known = {"boxes": boxes, "labels": torch.tensor([[0, 2]] * 2), "masks": masks}
    known["has_mask"] = torch.tensor([True, False])
    maps = torch.zeros(2, 16, 16)
    maps[:, 3, 12], maps[:, 12, 3] = 3.0, 1.0
    found = code.judge_maps(maps, known, torch.tensor([2, 0]))
    assert found["hit"].tolist() == [1, 0]
    assert found["energy"][0] == 0.75 and found["energy"][1].isnan()
    boxed = torch.zeros(2, 16, 16)
    boxed[:, 2:6, 10:14] = 1.0
    assert code.judge_maps(boxed, known, torch.tensor([2, 0]))["overlap"].tolist() == [1, 0]


class SeesTags(nn.Module):
    """Says dog where something is much more red than blue, as the yellow of a tag."""

    def __init__(self):
        super().__init__()
        self.layer3 = nn.Conv2d(3, 1, 1)
        self.layer3.weight.data = torch.tensor([1.0, 0.0, -1.0])[None, :, None, None]
        self.layer3.bias.data.zero_()

    def forward(self, x):
        yellow = self.layer3(x).relu().flatten(1).amax(1)
        return torch.stack([torch.full_like(yellow, 2.0), yellow], 1)


@holds(
    GRAD_CAM,
    {
        "swapped is as trained": ('"swapped": (1.0, 0.0)', '"swapped": (cats, dogs)'),
        "clean has tags": ('"clean": (0.0, 0.0)', '"clean": (cats, dogs)'),
    },
)
def test_tag_report(code):
    """A network that knows nothing but the tag is always right with its bias, and always wrong against it."""
    labels = torch.arange(40) % 2
    noisy = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = torch.full((40, 3, 32, 32), 100, dtype=torch.uint8)
    data = Dataset(Split(noisy, labels), Split(grey, labels), ("cat", "dog"), Provenance("toy", False, ""))
    found = code.tag_report(SeesTags().eval(), data, 0.0, 1.0)
    assert (found["as_trained"], found["clean"], found["swapped"]) == (1.0, 0.5, 0.0)
    assert found["energy"] > 2 * found["area"]


@holds(
    GRAD_CAM,
    {
        "trained without tags": ("replace(data, train=planted)", "replace(data, test=planted)"),
        "trained on the test images": ("plant(data.train, cats, dogs, seed)", "plant(data.test, cats, dogs, seed)"),
    },
)
def test_training_with_tags(code):
    """Every dog of the training images gets a tag, and no cat; the test images stay as they are."""
    trained = []
    code.train = SimpleNamespace(set_seed=lambda seed: trained.append(seed))
    code.train.fit = lambda model, data, **settings: trained.append((data, settings))
    code.tag_report = lambda model, data, cats, dogs: {"energy": cats + 10 * dogs}
    labels = torch.arange(12) % 2
    grey = torch.full((12, 3, 32, 32), 100, dtype=torch.uint8)
    data = dataset_of(grey, labels, ("cat", "dog"))
    assert code.run_bias(data, seed=5, cats=0.0, dogs=1.0) == {"energy": 10.0}
    seed, (given, settings) = trained
    assert seed == settings["seed"] == 5
    assert ((given.train.images != grey).flatten(1).any(1) == (labels == 1)).all()
    assert torch.equal(given.test.images, 255 - grey)


@holds(GRAD_CAM, {"labels in another order": ("model(inputs), labels[part])", "model(inputs), labels[part].flip(0))")})
def test_both_maps(code):
    model, labels = network("dense").float(), torch.tensor([2, 0])
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    trained = SimpleNamespace(
        layer="2",
        to_input=lambda data, images: images / 255,
        score=lambda outputs, labels: outputs.gather(1, labels[:, None])[:, 0],
    )
    maps, by_pixel = code.both_maps(trained, model, None, images, labels, side=16)
    expected = code.GradCAM(model, "2")(images / 255, code.logit(labels))
    assert (
        torch.allclose(maps, F.interpolate(expected[:, None], (16, 16), mode="bilinear")[:, 0], atol=1e-6)
        and maps.max() > 0
    )
    sharp = code.saliency(code.input_gradient(model, images / 255, code.logit(labels)))
    smooth = F.avg_pool2d(sharp[:, None], 9, 1, 4, count_include_pad=False)[:, 0]
    assert torch.allclose(by_pixel, F.interpolate(smooth[:, None], (16, 16), mode="bilinear")[:, 0], atol=1e-6)


@holds(GRAD_CAM, {"the deviation for its error": ("values.std() / len(values) ** 0.5", "values.std()")})
def test_mean_and_error(code):
    assert code.mean_and_error(torch.tensor([0.0, 1.0, float("nan"), 1.0])) == "66.7 ± 33.3"


# ---------------------------------------------------------------------------------------------- public libraries


def test_captum():
    attr = pytest.importorskip("captum.attr")
    model = network("dense").eval()
    theirs = attr.LayerGradCam(model, model[2]).attribute(IMAGES, target=1)[:, 0]
    assert torch.allclose(theirs, GRAD_CAM.GradCAM(model, "2")(IMAGES, GRAD_CAM.logit(1), relu=False))
    assert (theirs < 0).any()  # no ReLU unless asked for


def test_pytorch_grad_cam():
    library = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = network("dense").float().eval(), IMAGES.float()
    with library.GradCAM(model=model, target_layers=[model[3]]) as theirs:
        maps = torch.from_numpy(theirs(images, targets=[ClassifierOutputTarget(1)] * 2))
    ours = cam.unit_range(GRAD_CAM.GradCAM(model, "3")(images, GRAD_CAM.logit(1)))
    ours = F.interpolate(ours[:, None], (8, 8), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(maps, cam.unit_range(ours), atol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="none of gradient"):
        GRAD_CAM.ReLURule("smooth")
    model = GRAD_CAM.resnet.CifarResNet(8)
    with pytest.raises(ValueError, match="ran 2 times"):
        GRAD_CAM.GradCAM(model, "layer3.0.relu")(torch.zeros(1, 3, 32, 32), GRAD_CAM.logit(0))


def test_arms_of_the_study():
    bias = GRAD_CAM.BIAS
    assert bias["biased"] == {"cats": 0.07, "dogs": 0.78}  # the paper's shares
    assert sum(bias["biased"].values()) == pytest.approx(sum(bias["balanced"].values()))  # as many tags


# ------------------------------------------------------------------------------------------------------ exercises

CHECK_HIRES, HIRES, CHECK_DELETION, DELETION = from_cells(
    GRAD_CAM, "check_hires", "hires_solution", "check_deletion", "deletion_solution"
)


def gradient_and_maps(model, layer, images, score):
    activation, outputs = GRAD_CAM.GradCAM(model, layer).forward(images)
    (gradient,) = torch.autograd.grad(score(outputs).sum(), activation)
    return gradient, activation.detach()


def hires_by_channels(model, layer, images, score):
    """Right, one channel after the other."""
    gradient, maps = gradient_and_maps(model, layer, images, score)
    total = 0
    for k in range(maps.shape[1]):
        total = total + gradient[:, k] * maps[:, k]
    return F.relu(total)


def hires_by_image(model, layer, images, score):
    """Right, one image after the other."""
    return torch.cat([HIRES(model, layer, image[None], score) for image in images])


def hires_averaged(model, layer, images, score):
    gradient, maps = gradient_and_maps(model, layer, images, score)
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu()


def hires_signed(model, layer, images, score):
    gradient, maps = gradient_and_maps(model, layer, images, score)
    return (gradient * maps).sum(1)


def hires_absolute(model, layer, images, score):
    return hires_signed(model, layer, images, score).abs()


def hires_relu_first(model, layer, images, score):
    gradient, maps = gradient_and_maps(model, layer, images, score)
    return (gradient * maps).relu().sum(1)


def hires_with_channels(model, layer, images, score):
    gradient, maps = gradient_and_maps(model, layer, images, score)
    return (gradient * maps).relu()


@pytest.mark.parametrize("answer", [HIRES, hires_by_channels, hires_by_image])
def test_right_hires_is_accepted(answer):
    CHECK_HIRES(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (hires_averaged, "do not average the gradient"),
        (hires_signed, "the ReLU is missing"),
        (hires_absolute, "must equal Grad-CAM"),
        (hires_relu_first, "must equal Grad-CAM"),
        (hires_with_channels, "(N, h, w)"),
    ],
)
def test_wrong_hires_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError) as error:
        CHECK_HIRES(answer)
    assert hint in str(error.value)


def deletion(order=None, cumulative=True, start=True, fill=None, inplace=False):
    """A deletion curve with one thing that may be wrong. fill: from the images to what replaces a pixel."""

    def answer(model, images, heat, score, steps=16):
        images = images if inplace else images.clone()
        whole, filling = images.clone(), 0.0 if fill is None else fill(images)
        ranks = (order or (lambda heat: heat.flatten(1).argsort(1, descending=True)))(heat)
        scores = [score(model(images))] if start else []
        for part in ranks.chunk(steps, 1):
            gone = torch.zeros(len(images), heat[0].numel(), dtype=torch.bool).scatter(1, part, True)
            gone = gone.view(len(images), 1, *heat.shape[1:])
            changed = torch.where(gone, filling, images if cumulative else whole)
            images.copy_(changed)
            scores.append(score(model(images)))
        return torch.stack(scores, 1)

    return answer


def one_by_one(model, images, heat, score, steps=16):
    """Right, with thresholds of the rank and one image at a time."""
    curves = []
    for image, one in zip(images, heat, strict=True):
        rank = one.flatten().argsort(descending=True, stable=True).argsort().view(one.shape)
        left = [image * (rank >= rank.numel() * k / steps) for k in range(steps + 1)]
        curves.append(score(model(torch.stack(left))))
    return torch.stack(curves)


@pytest.mark.parametrize("answer", [DELETION, deletion(), one_by_one])
def test_right_deletion_is_accepted(answer):
    CHECK_DELETION(answer)


def first_for_all(heat):
    return heat[:1].flatten(1).argsort(1, descending=True).expand(len(heat), -1)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (deletion(first_for_all), "each image has an order of its own"),
        (deletion(lambda heat: heat.flatten(1).argsort(1)), "the hottest row goes first"),
        (deletion(cumulative=False), "the hottest row goes first"),
        (deletion(start=False), "(N, steps + 1)"),
        (deletion(fill=lambda images: images.mean()), "becomes 0"),
        (deletion(inplace=True), "leave the caller's images"),
    ],
)
def test_wrong_deletion_gets_a_hint(answer, hint):
    with pytest.raises(AssertionError) as error:
        CHECK_DELETION(answer)
    assert hint in str(error.value)
