"""Chapter 13: torchvision's pyramid, anchors, levels, NMS and RoIAlign; the making of scenes; the exercises."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toys import dataset_of, from_cells, generator, holds, noise, on_meta

from helpers import inspect, train
from helpers.chapters import chapter
from helpers.data import Split
from helpers.parity import copy_in_order

FPN, RESNET = chapter("13_fpn"), chapter("02_resnet")
CHANNELS, Backbone = RESNET.CHANNELS, RESNET.Backbone
RESNET50 = (256, 512, 1024, 2048)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=generator(seed))


def random_boxes(*shape, size=100.0, seed=0):
    corners = size * random(*shape, 2, 2, seed=seed)
    low, high = corners.amin(-2), corners.amax(-2) + 1
    return torch.cat([low, high], -1)


def maps_of(channels, sizes=(13, 7, 4, 2)):
    return [random(2, c, size, size + 1, seed=c).double() for c, size in zip(channels, sizes, strict=True)]


@holds(FPN)
def test_counts(code):
    assert inspect.count_parameters(on_meta(code.FeaturePyramid, RESNET50)) == 3_344_384
    assert inspect.count_parameters(on_meta(code.ProposalHead)) == 593_935
    assert inspect.count_parameters(on_meta(code.BoxHead)) == 14_362_055


@holds(
    FPN,
    {
        "no addition": ("above if merged[k] is None else merged[k] + above", "above"),
        "enlarged by interpolation": (
            'mode="nearest")\n                merged',
            'mode="bilinear")\n                merged',
        ),
        "smoothing without padding": ("nn.Conv2d(d, d, 3, padding=1) for", "nn.Conv2d(d, d, 3) for"),
        "P6 by a larger window": ("F.max_pool2d(levels[-1], 1, stride=2)", "F.max_pool2d(levels[-1], 2, stride=2)"),
    },
)
def test_pyramid(code):
    """torchvision's answers on maps of odd sizes, P6 included."""
    channels = (4, 6, 8, 10)
    torch.manual_seed(0)
    ours = code.FeaturePyramid(channels, 5, extra=True).double()
    extra = torchvision.ops.feature_pyramid_network.LastLevelMaxPool()
    theirs = on_meta(torchvision.ops.FeaturePyramidNetwork, list(channels), 5, extra)
    copy_in_order(ours, theirs)
    maps = maps_of(channels)
    a, b = ours(maps), list(theirs({str(k): x for k, x in enumerate(maps)}).values())
    assert len(a) == len(b) == 5
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and (x - y).abs().max() < 1e-12 * y.abs().max() and y.std() > 1e-3


@holds(
    FPN,
    {
        "the finest map taken": ("channels[-1:]", "channels[:1]"),
        "top-down always": ("        if self.top_down:", "        if True:"),
    },
)
def test_ablations(code):
    """Bottom-up levels depend on their own map alone; without lateral connections all depend on the last alone."""
    channels = (4, 6, 8, 10)
    maps = [x.requires_grad_() for x in maps_of(channels)]
    for settings, expected in (
        ({"top_down": False}, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ({"lateral": False}, [[0, 0, 0, 1]] * 4),
        ({}, [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
    ):
        levels = code.FeaturePyramid(channels, 5, **settings).double()(maps)
        for level, row in zip(levels, expected, strict=True):
            gradients = torch.autograd.grad(level.square().sum(), maps, allow_unused=True, retain_graph=True)
            assert [int(g is not None and bool(g.abs().sum() > 0)) for g in gradients] == row


@holds(
    FPN,
    {
        "large first weights": ("std=0.01", "std=0.1"),
        "as before a ReLU": ("kaiming_uniform_(convolution.weight, a=1)", "kaiming_uniform_(convolution.weight)"),
        "by the number of outputs": (
            "kaiming_uniform_(convolution.weight, a=1)",
            'kaiming_uniform_(convolution.weight, a=1, mode="fan_out")',
        ),
    },
)
def test_first_weights(code):
    """Biases start at zero, the neck keeps the scale of its maps, and the last layers of the head are small."""
    torch.manual_seed(0)
    neck, head = code.FeaturePyramid((64, 128), 96), code.ProposalHead(64)
    for c in (*neck.lateral, *neck.smooth):
        weight, spread = c.weight.detach(), c.weight[0].numel() ** -0.5  # Kaiming's, for a slope of 1
        assert abs(float(weight.std()) / spread - 1) < 0.02 and weight.abs().max() <= 3**0.5 * spread
    assert all(not c.bias.any() for c in (*neck.lateral, *neck.smooth, head.conv, head.objectness, head.offsets))
    assert abs(float(head.conv.weight.detach().std()) / 0.01 - 1) < 0.05


@holds(
    FPN,
    {
        "a head of other size": ("self.offsets = nn.Conv2d(d, 4 * anchors, 1)", "self.offsets = nn.Conv2d(d, 4, 1)"),
        "channels before positions": ("self.objectness(x).permute(0, 2, 3, 1)", "self.objectness(x)"),
    },
)
def test_head(code):
    """The numbers of an anchor are those of its position and shape, level by level."""
    torch.manual_seed(0)
    head = code.ProposalHead(4, anchors=3)
    levels = [random(2, 4, 3, 5, seed=1), random(2, 4, 2, 2, seed=2)]
    answers = head(levels)
    assert answers.shape == (2, (15 + 4) * 3, 5)
    for level, start in ((levels[0], 0), (levels[1], 45)):
        x = F.conv2d(level, head.conv.weight, padding=1).relu()
        objectness, offsets = head.objectness(x), head.offsets(x)
        for y, x in ((0, 0), (1, 1), (0, 1)):
            for shape in range(3):
                got = answers[:, start + (y * level.shape[3] + x) * 3 + shape]
                assert torch.allclose(got[:, 0], objectness[:, shape, y, x], atol=1e-6)
                assert torch.allclose(got[:, 1:], offsets[:, 4 * shape : 4 * shape + 4, y, x], atol=1e-6)


@holds(
    FPN,
    {
        "anchors at the corner": ("+ 0.5) * stride", ") * stride"),
        "ratios upside down": ("side / ratio**0.5, side * ratio**0.5", "side * ratio**0.5, side / ratio**0.5"),
    },
)
def test_anchors(code):
    """torchvision's anchors but for half a stride and the rounding; the order is position by position."""
    generate = torchvision.models.detection.anchor_utils.AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))
    images = torchvision.models.detection.image_list.ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    (theirs,) = generate(images, [torch.zeros(1, 1, 8, 12)])
    ours = code.anchor_grid(8, 12, 8, (32,))
    assert ours.shape == theirs.shape and (ours - 4 - theirs).abs().max() <= 0.5
    sides = code.area(code.anchor_grid(2, 2, 8, (10, 20)))
    assert torch.allclose(sides, torch.tensor([100.0, 100, 100, 400, 400, 400] * 4), rtol=1e-5)
    assert len(code.pyramid_anchors((800, 1000), (4, 8, 16, 32, 64), ((1,),) * 5)) == 199_974
    assert len(code.pyramid_anchors((800, 1000), (16,), ((1, 2, 3, 4, 5),))) == 47_250


@holds(
    FPN,
    {
        "IoU over the first box": ("shared.div_(both.clamp_min_(1e-12))", "shared.div_(area(first)[..., :, None])"),
        "negative overlap": ("torch.maximum(left, left2)).clamp_min_(0)", "torch.maximum(left, left2))"),
    },
)
def test_overlap(code):
    a, b = random_boxes(3, 7), random_boxes(3, 5, seed=1)
    for i in range(3):
        expected = torchvision.ops.box_iou(a[i], b[i])
        assert torch.allclose(code.iou(a, b)[i], expected, atol=1e-6)
        assert torch.allclose(code.iou(a[i], b)[i], expected, atol=1e-6)  # one set of boxes for all images


@holds(
    FPN,
    {
        "forced without overlap": (" & (overlap > 0)", ""),
        "boxes that are not there": ("iou(anchors, boxes) * there[:, None]", "iou(anchors, boxes)"),
        "everything counts": ("torch.where(best < negative, 0, -1)", "0"),
    },
)
def test_matching(code):
    """Against loops over images and anchors."""
    anchors, boxes = random_boxes(60, size=60), random_boxes(4, 5, size=60, seed=1)
    boxes[0, 0] = torch.tensor([3.0, 3, 5, 4])  # so small that nothing fits it
    anchors[7] = torch.tensor([2.0, 2, 12, 12])
    there = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    labels, box = code.match(anchors, boxes, there)
    assert not labels[2].any()  # an image without boxes is background
    for i in range(4):
        overlap = torchvision.ops.box_iou(anchors, boxes[i])
        best_of_box = {j: float(overlap[:, j].max()) for j in range(5) if there[i, j]}
        for a in range(60):
            here = {j: float(overlap[a, j]) for j in best_of_box}
            best = max(here.values(), default=0.0)
            forced = [j for j in here if here[j] == best_of_box[j] and here[j] > 0]
            expected = 1 if best >= 0.5 or forced else 0 if best < 0.3 else -1
            assert int(labels[i, a]) == expected
            if expected == 1:
                assert int(box[i, a]) in (forced or [j for j in here if here[j] == best])


@holds(
    FPN,
    {
        "more than half": ("torch.where(best >= positive,", "torch.where(best > positive,"),
        "0.3 is background": ("torch.where(best < negative,", "torch.where(best <= negative,"),
    },
)
def test_matching_at_the_limits(code):
    """An overlap of exactly 0.5 makes an object, one of exactly 0.3 is neither that nor background."""
    anchors = torch.tensor([[0.0, 0, 10, bottom] for bottom in (10, 5, 3, 2)])
    labels, _ = code.match(anchors, anchors[None, :1], torch.ones(1, 1, dtype=torch.bool))
    assert labels.tolist() == [[1, 1, -1, 0]]


@holds(FPN, {"no forced best": ("torch.where(forced.any(2), 1, labels)", "labels")})
def test_forced_best(code):
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    boxes, there = torch.tensor([[[26.0, 20, 36, 30], [0, 0, 0, 0]]]), torch.tensor([[True, False]])
    labels, box = code.match(anchors, boxes, there)
    assert labels.tolist() == [[0, 1]] and int(box[0, 1]) == 0


@holds(
    FPN,
    {
        "shift not over size": ("shift / size", "shift"),
        "no logarithm": ("(wanted / size).log()", "(wanted / size)"),
        "boxes of any size": (".clamp_max(math.log(1000 / 16))", ""),
    },
)
def test_offsets(code):
    boxes, anchors = random_boxes(200), random_boxes(200, seed=1)
    offsets = code.encode(boxes, anchors)
    assert torch.allclose(code.decode(offsets, anchors), boxes, atol=1e-2)
    coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert torch.allclose(offsets, coder.encode_single(boxes, anchors), atol=1e-4)
    wild = torch.tensor([[0.0, 0.0, 50.0, 0.0]])
    wide = code.decode(wild, torch.tensor([[0.0, 0, 2, 2]]))
    assert float(wide[0, 2] - wide[0, 0]) == pytest.approx(125, rel=1e-4)


@holds(
    FPN,
    {
        "objects without limit": ("(1, count // 2)", "(1, count)"),
        "always the first": ("torch.rand(labels.shape, device=labels.device)", "torch.ones(labels.shape)"),
    },
)
def test_lots(code):
    labels = torch.full((3, 500), -1)
    labels[0, :100], labels[0, 100:300] = 1, 0  # plenty of both
    labels[1, :5], labels[1, 5:400] = 1, 0  # few objects
    labels[2, :10], labels[2, 10:20] = 1, 0  # few anchors of any kind
    torch.manual_seed(0)
    chosen = code.draw_lots(labels, 64)
    counts = [[int((chosen[i] & (labels[i] == value)).sum()) for value in (1, 0, -1)] for i in range(3)]
    assert counts == [[32, 32, 0], [5, 59, 0], [10, 10, 0]]
    assert not torch.equal(chosen, code.draw_lots(labels, 64))


@holds(
    FPN,
    {
        "regression of all drawn": ("objects = chosen & (labels == 1)", "objects = chosen"),
        "offsets over objects": ("offsets / chosen.sum()", "offsets / objects.sum()"),
    },
)
def test_loss(code):
    """Zero offsets and logits give log 2 and the distance of the boxes from their anchors."""

    class Nothing(nn.Module):
        def anchors(self, size):
            return anchors

        def forward(self, images):
            return torch.zeros(len(images), len(anchors), 5)

    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[[0.0, 0, 0, 0], [1.0, 0, 11, 10]]])
    targets = {"boxes": boxes, "labels": torch.tensor([[-1, 2]])}
    value = code.proposal_loss(Nothing(), torch.zeros(1, 3, 64, 64), targets)
    distance = 0.5 * 0.1**2 / (1 / 9)  # smooth L1 of a shift by a tenth
    assert float(value) == pytest.approx(math.log(2) + distance / 2, rel=1e-4)


@holds(
    FPN,
    {
        "rows as they come": ("descending=True, stable=True)", "stable=True)"),
        "names of other boxes": ('targets["labels"].gather(1, order)', 'targets["labels"][:, :most]'),
    },
)
def test_existing(code):
    boxes = random_boxes(2, 4)
    labels = torch.tensor([[-1, 3, -1, 1], [-1, -1, -1, 0]])
    kept, there = code.existing({"boxes": boxes, "labels": labels})
    assert there.tolist() == [[True, True], [True, False]]
    assert torch.equal(kept[0], boxes[0, [1, 3]]) and torch.equal(kept[1, 0], boxes[1, 3])
    same, names = code.with_names({"boxes": boxes, "labels": labels})
    assert torch.equal(same, kept) and names.tolist() == [[3, 1], [0, -1]]


@holds(
    FPN,
    {
        "sizes on the wrong level": (
            "tuple((SIDES[k],) for k in self.read)",
            "tuple((SIDES[7 - k],) for k in self.read)",
        )
    },
)
def test_network(code):
    torch.manual_seed(0)
    counts = {"one map": 768, "all on P2": 12_288}
    for arm, config in code.ARMS.items():
        model = code.ProposalNetwork(Backbone(), **config).eval()
        anchors = model.anchors((128, 128))
        assert model(torch.zeros(1, 3, 128, 128)).shape == (1, len(anchors), 5)
        assert len(anchors) == counts.get(arm, 4080)
        assert code.area(anchors).sqrt().round().unique().tolist() == [12, 24, 48, 96]
    first = model.anchors((128, 128))[: 3 * 32**2]
    assert torch.allclose(code.area(first).sqrt(), torch.tensor(12.0))


@holds(
    FPN,
    {
        "suppressed ones suppress": ("close[:, i, i + 1 :] & stays[:, i, None]", "close[:, i, i + 1 :]"),
        "the threshold itself is too much": ("iou(boxes, boxes) > threshold", "iou(boxes, boxes) >= threshold"),
    },
)
def test_suppression(code):
    """As torchvision's; an overlap of exactly the threshold suppresses nothing."""
    halves = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 4]]])
    assert code.suppress(halves, 0.5).all() and not code.suppress(halves, 0.49).all()
    boxes = random_boxes(6, 80, size=40)
    scores = random(6, 80, seed=3).sort(1, descending=True).values
    for threshold in (0.3, 0.7):
        ours = code.suppress(boxes, threshold)
        for i in range(6):
            kept = torchvision.ops.nms(boxes[i], scores[i], threshold)
            assert torch.equal(ours[i].nonzero()[:, 0], kept.sort().values)
            assert 0 < len(kept) < 80


@holds(
    FPN,
    {
        "proposals beyond the image": ("torch.minimum(boxes.clamp_min(0), torch", "torch.minimum(boxes, torch"),
        "suppressed ones come back": ("logits.masked_fill(gone, -math.inf)", "logits"),
        "height for width": (
            "height, width = size\n    boxes = torch.min",
            "width, height = size\n    boxes = torch.min",
        ),
    },
)
def test_proposals(code):
    """Best first, inside the image, as torchvision's parts give them, and zeros where there are not enough."""
    anchors = random_boxes(300, size=torch.tensor([96.0, 64.0]))
    answers = noise(3, 300, 5, seed=0)
    boxes, logits = code.propose(answers, anchors, (64, 96), count=50, candidates=100)
    for i in range(3):
        top = answers[i, :, 0].topk(100).indices
        decoded = code.decode(answers[i, top, 1:], anchors[top])
        decoded = torchvision.ops.clip_boxes_to_image(decoded, (64, 96))
        kept = torchvision.ops.nms(decoded, answers[i, top, 0], 0.7)[:50]
        assert torch.allclose(boxes[i, : len(kept)], decoded[kept], atol=1e-5)
        assert torch.equal(logits[i, : len(kept)], answers[i, top[kept], 0])
        assert not boxes[i, len(kept) :].any() and (logits[i, len(kept) :] == -math.inf).all()


@holds(
    FPN, {"levels rounded": (".floor().long()", ".round().long()"), "levels unclamped": (".clamp(lowest, highest)", "")}
)
def test_level(code):
    squares = torch.tensor([[0.0, 0, side, side] for side in (1, 56, 111, 112, 223, 224, 447, 448, 900)])
    assert code.level(squares).tolist() == [2, 2, 2, 3, 3, 4, 4, 5, 5]
    mapper = torchvision.ops.poolers.LevelMapper(2, 5)
    boxes = random_boxes(2000, size=900)
    assert torch.equal(code.level(boxes), mapper([boxes]) + 2)
    # our bins: the anchors of the responsible level fit a square best
    for side in (9.0, 16.9, 17.1, 33.8, 34.1, 67.7, 68.1, 120.0):
        ratio = {k: min(side / own, own / side) for k, own in code.SIDES.items()}
        k = int(code.level(torch.tensor([0.0, 0.0, side, side]), code.CANONICAL))
        assert ratio[k] == max(ratio.values())


@holds(
    FPN,
    {
        "a box found twice": ("left.gather(2, box) & (best < wanted)", "left.gather(2, box) & (best < wanted) | True"),
        "boxes are never used up": ("(overlap[:, k, None] * left)", "(overlap[:, k, None] * there[:, None])"),
    },
)
def test_recall(code):
    """COCO's rule: best proposals choose first, each box is found once, each proposal finds one."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 11]]])
    there = torch.ones(1, 2, dtype=torch.bool)
    one = torch.tensor([[[0.0, 0, 10, 10]]])
    assert float(code.recalls(one, boxes, there, (0.5,))[0]) == 0.5
    twice = one.repeat(1, 2, 1)
    assert code.recalls(twice, boxes, there, (0.5, 0.95)).tolist() == [1.0, 0.5]
    assert float(code.recalls(one, boxes, torch.tensor([[True, False]]), (0.5,))[0]) == 1.0
    by_size = code.average_recall(torch.tensor([[[0.0, 0, 12, 12]]]), torch.tensor([[[0.0, 0, 12, 12]]]), there[:, :1])
    assert by_size["all"] == by_size["P2"] == 1 and math.isnan(by_size["P5"])


@holds(FPN)
def test_recall_as_coco(code):
    """The average recall of torchmetrics, all sizes together and small, medium and large ones."""
    detection = pytest.importorskip("torchmetrics.detection")
    pytest.importorskip("faster_coco_eval")
    proposed, boxes = random_boxes(12, 40, size=160), random_boxes(12, 4, size=160, seed=1)
    proposed[:, :4] = boxes + 6 * random(12, 4, 4, seed=2)
    there = random(12, 4, seed=3) < 0.7
    metric = detection.MeanAveragePrecision(
        backend="faster_coco_eval", max_detection_thresholds=[1, 10, 40], class_metrics=False
    )
    scores = torch.linspace(1, 0.1, 40)
    metric.update(
        [{"boxes": p, "scores": scores, "labels": torch.zeros(40, dtype=torch.long)} for p in proposed],
        [
            {"boxes": b[t], "labels": torch.zeros(int(t.sum()), dtype=torch.long)}
            for b, t in zip(boxes, there, strict=True)
        ],
    )
    theirs = metric.compute()
    assert float(code.recalls(proposed, boxes, there).mean()) == pytest.approx(float(theirs["mar_40"]), abs=1e-6)
    assert float(code.recalls(proposed[:, :10], boxes, there).mean()) == pytest.approx(
        float(theirs["mar_10"]), abs=1e-6
    )
    side = code.area(boxes).sqrt()
    for name, low, high in (("small", 0, 32), ("medium", 32, 96), ("large", 96, 1e5)):
        here = there & (side >= low) & (side < high)
        assert here.any()
        assert float(code.recalls(proposed, boxes, here).mean()) == pytest.approx(
            float(theirs[f"mar_{name}"]), abs=1e-6
        )


@holds(
    FPN,
    {
        "RoIAlign off by half": ("(torch.arange(bins * samples) + 0.5)", "torch.arange(bins * samples)"),
        "zeros beyond the border": ('padding_mode="border"', 'padding_mode="zeros"'),
    },
)
def test_align(code):
    ramp = torch.arange(16.0).expand(1, 16, 16) + 0.5
    box = torch.tensor([3.3, 2.0, 10.3, 12.0])
    middles = 3.3 + torch.arange(7.0) + 0.5
    assert torch.allclose(code.align(ramp, box, 7), middles.expand(1, 7, 7), atol=1e-4)
    feature = random(3, 16, 20)
    over_the_border = torch.tensor([-0.9, -0.7, 20.8, 16.6])
    for region in (box, over_the_border):
        theirs = torchvision.ops.roi_align(feature[None], [region[None]], 5, sampling_ratio=2, aligned=True)[0]
        assert torch.allclose(code.align(feature, region, 5), theirs, atol=1e-4)


@holds(FPN, {"no ReLU in the box head": ("self.fc6(features.flatten(1)).relu()", "self.fc6(features.flatten(1))")})
def test_box_head(code):
    head = code.BoxHead(4, classes=3, hidden=8, side=2)
    x = random(5, 4, 2, 2)
    scores, offsets = head(x)
    assert scores.shape == (5, 3) and offsets.shape == (5, 12)
    hidden = head.fc7(head.fc6(x.flatten(1)).relu()).relu()
    assert torch.allclose(scores, head.scores(hidden), atol=1e-6)


def toy_split():
    """Grey photographs with one bright square animal each; the third has two boxes, the fourth no mask."""
    images = torch.full((4, 3, 128, 128), 100, dtype=torch.uint8)
    masks = torch.zeros(4, 128, 128, dtype=torch.uint8)
    images[:, :, 30:100, 20:90], masks[:, 30:100, 20:90] = 250, 3
    masks[:, 30:32] = 255 * (masks[:, 30:32] > 0)  # a void rim
    masks[3] = 255
    boxes = torch.zeros(4, 2, 4)
    boxes[:, 0] = torch.tensor([20.0, 30, 90, 100])
    labels = torch.tensor([[2, -1], [2, -1], [2, 2], [2, -1]])
    targets = {"boxes": boxes, "labels": labels, "masks": masks, "has_mask": torch.tensor([True, True, True, False])}
    return Split(images, targets)


@holds(
    FPN,
    {
        "animals in company": ("large & ((labels >= 0).sum(1) == 1)", "large"),
        "void belongs to the animal": (
            "animal = (masks > 0) & (masks < 255)\n    rows",
            "animal = masks > 0\n    rows",
        ),
    },
)
def test_lone_animals(code):
    index, box = code.lone_animals(toy_split())
    assert index.tolist() == [0, 1] and box.tolist() == [[20, 32, 90, 100]] * 2
    animals, backdrops = code.cut_out(toy_split(), index, box)
    assert animals.shape == (2, 4, 40, 40) and (animals[:, 3, 1:-1, 1:-1] - 1).abs().max() < 1e-5
    assert (animals[:, :3, 1:-1, 1:-1] - 250).abs().max() < 1e-3
    assert (backdrops[:, :, 1:-1, 1:-1] - 100).abs().max() < 1e-3


@holds(FPN, {"width for height": ("shapes[..., None] - 1", "shapes.flip(1)[..., None] - 1")})
def test_paste(code):
    images = torch.zeros(1, 3, 168, 168, dtype=torch.uint8)
    piece = torch.cat([torch.full((1, 3, 40, 40), 200.0), torch.ones(1, 1, 40, 40)], 1)
    code.paste(images, piece, torch.tensor([[50, 60]]), torch.tensor([[20.0, 10.0]]))
    rows, columns = (images[0, 0] > 0).nonzero(as_tuple=True)
    assert (int(columns.min()), int(rows.min())) == (50, 60)
    assert (int(columns.max()), int(rows.max())) == (69, 69)
    assert (images[0, :, 62:68, 52:68] == 200).all()


@holds(
    FPN,
    {
        "decoys on top": (
            "decoy = torch.tensor([turn % 2, turn // 2 % 2]), turn < 4",
            "decoy = torch.tensor([turn % 2, turn // 2 % 2]), turn > 3",
        )
    },
)
def test_scenes(code):
    split = toy_split()
    made = code.add_small_animals(split, seed=0)
    boxes, labels = made.targets["boxes"], made.targets["labels"]
    assert made.images.shape == (4, 3, 128, 128) and boxes.shape == (4, 6, 4) and (labels[:, -4:] == 2).all()
    assert torch.equal(boxes[:, :2], split.targets["boxes"]) and (split.images == toy_split().images).all()
    longer = (boxes[:, -4:, 2:] - boxes[:, -4:, :2]).amax(2)
    assert longer.min() >= 12 and longer.max() <= 40
    for i in range(4):
        for j, (x, y) in enumerate(((0, 0), (64, 0), (0, 64), (64, 64))):
            left, top, right, bottom = boxes[i, 2 + j].tolist()
            assert x <= left and right <= x + 64 and y <= top and bottom <= y + 64
            inside = made.images[i, :, int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
            assert (inside == 250).all()  # the animal, not a decoy, lies on top
    changed = (made.images != split.images).any(1)
    covered = torch.zeros_like(changed)
    for i in range(4):
        for left, top, right, bottom in boxes[i, 2:].round().long().tolist():
            covered[i, top : bottom + 1, left : right + 1] = True
    assert (changed & ~covered).any()  # decoys change pixels, and have no box


@holds(FPN, {"decoys are animals": ("pieces = torch.cat([backdrops[other[some]], pieces[:, 3:]], 1)", "pass")})
def test_decoys(code):
    """With backdrops like the photograph, a decoy leaves no bright pixel outside the boxes."""
    split = toy_split()
    split.targets["boxes"][:, 0] = torch.tensor([20.0, 30, 90, 100])
    made = code.add_small_animals(split, seed=0)
    bright = (made.images == 250).all(1)
    for i in range(4):
        for left, top, right, bottom in made.targets["boxes"][i][made.targets["labels"][i] >= 0].long().tolist():
            bright[i, max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2] = False
    assert not bright.any()


# ------------------------------------------------------------------------------------------------------ the study


def test_arms_cost_what_the_chapter_says():
    costs = {}
    for arm, config in FPN.ARMS.items():
        model = FPN.ProposalNetwork(Backbone(), **config)
        costs[arm] = inspect.count_parameters(model), inspect.count_macs(model, (3, 128, 128))
    assert costs["FPN"] == costs["bottom-up"]
    assert costs["one map"][1] < 0.75 * costs["FPN"][1]
    assert costs["no lateral"][0] == costs["FPN"][0] - sum(32 * c + 32 for c in CHANNELS[:-1])


def test_arms_with_equal_layers_start_equal():
    train.set_seed(3)
    first = FPN.build(pretrained=False, top_down=False)
    train.set_seed(3)
    second = FPN.build(pretrained=False)
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------- networks of other shapes


@holds(
    FPN,
    {
        "the coarsest level is read": ("for k in self.levels])[: len(self.read)]", "for k in self.levels])[-1:]"),
        "one size": ("(tuple(SIDES.values()),) if alone", "((SIDES[2],),) if alone"),
        "only what is read is built": ("[CHANNELS[k - 2] for k in levels]", "[CHANNELS[k - 2] for k in self.read]"),
    },
)
def test_all_anchors_on_p2(code):
    """Twelve anchors at each position of P2, which depends on all four stages."""
    torch.manual_seed(0)
    network = code.ProposalNetwork(RESNET.Backbone(), **code.ARMS["all on P2"]).eval()
    anchors = network.anchors((128, 96))
    answers = network(noise(2, 3, 128, 96))
    assert answers.shape == (2, len(anchors), 5) and len(anchors) == 32 * 24 * 12
    assert code.area(anchors).sqrt().round().unique().tolist() == [12, 24, 48, 96]
    assert [lateral.in_channels for lateral in network.pyramid.lateral] == list(RESNET.CHANNELS)
    answers[..., 0].sum().backward()
    for stage in (network.backbone.layer1, network.backbone.layer4, network.pyramid.lateral[0]):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.parameters())


def test_the_paper_s_size():
    """Five levels of a ResNet-50, and three anchors at each of their positions."""
    with torch.device("meta"):
        levels = FPN.OnResNet50(head=False)(torch.zeros(1, 3, 224, 160))
        answers = FPN.OnResNet50(head=True)(torch.zeros(1, 3, 224, 160))
    shapes = [tuple(x.shape) for x in levels]
    assert shapes == [(1, 256, 56, 40), (1, 256, 28, 20), (1, 256, 14, 10), (1, 256, 7, 5), (1, 256, 4, 3)]
    assert answers.shape == (1, 3 * sum(h * w for _, _, h, w in shapes), 5)


# ------------------------------------------------------------------------------------- what is measured


class Oracle(nn.Module):
    """Proposes the boxes that it was given, one list for every image, and whatever else with less confidence."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes, self.somewhere = boxes, nn.Parameter(torch.zeros(()))

    def anchors(self, size):
        return self.boxes

    def forward(self, images):
        answers = torch.zeros(len(images), len(self.boxes), 5)
        answers[..., 0] = torch.linspace(5, -5, len(self.boxes))
        return answers

    def maps(self, images):
        return [images]

    def names(self, maps, boxes, image):
        return torch.tensor([1.0, 0, 0]).expand(len(boxes), 3)


@holds(
    FPN,
    {
        "the training images": ("evaluate_on(model, data, data.test) |", "evaluate_on(model, data, data.train) |"),
        "names of training images": ("named_on(model, data, data.test)", "named_on(model, data, data.train)"),
        "all proposals for AR10": ("average_recall(found[:, :10], boxes", "average_recall(found, boxes"),
    },
)
def test_recall_of_the_test_images(code):
    small, large = torch.tensor([[[8.0, 8, 20, 20]]]), torch.tensor([[[20.0, 10, 110, 120]]])
    images = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    one = torch.zeros(1, 1, dtype=torch.long)
    data = dataset_of(images, {"boxes": small, "labels": one + 1}, test=Split(images, {"boxes": large, "labels": one}))
    fillers = torch.tensor([[40.0 + k, 0, 41 + k, 1] for k in range(0, 80, 2)] * 3)
    model = Oracle(torch.cat([fillers[:20], large[0], fillers[20:]]))
    scores = code.evaluate_detector(model, data)
    assert scores["AR100 all"] == scores["AR100 P5"] == 1 and scores["AR10 all"] == 0
    assert scores["named all"] == scores["named P5"] == 1, "the oracle calls everything 0"
    assert code.evaluate_on(model, data, data.train)["AR100 all"] == 0
    assert code.named_on(model, data, data.train)["named all"] == 0


@holds(
    FPN,
    {
        "boxes of the first image": ("torch.cat([image[:, None].to(boxes), boxes], 1)", "F.pad(boxes, (1, 0))"),
        "stride of P2 for all": (
            "roi_align(x, boxes[place == k], 7, 1 / stride",
            "roi_align(x, boxes[place == k], 7, 1 / 4",
        ),
        "all from P2": ("- self.read[0]).clamp(0, len(maps) - 1)", "* 0)"),
        "the anchors' levels": ("level(boxes, 64.0)", "level(boxes, CANONICAL)"),
    },
)
def test_names_of_boxes(code):
    """Each box is read from its own image and level, at the scale of that level; 64 px belong on P4."""
    torch.manual_seed(0)
    model = code.Detector(Backbone(), names=3).eval()
    del model.namer
    model.namer = lambda features: (features, None)
    maps = [random(2, 32, 128 // stride, 96 // stride, seed=stride) for stride in (4, 8, 16, 32)]
    sides = torch.tensor([10.0, 31, 33, 60, 66, 90])
    boxes = torch.stack([torch.full_like(sides, 2.0), torch.full_like(sides, 5.0), 2 + sides, 5 + sides], 1)
    image = torch.tensor([1, 0, 1, 0, 1, 0])
    found = model.names(maps, boxes, image)
    mapper = torchvision.ops.poolers.LevelMapper(2, 5, canonical_scale=64)
    for box, of, level, here in zip(boxes, image, mapper([boxes]), found, strict=True):
        assert torch.allclose(here, code.align(maps[level][of], box / 4 / 2**level, 7), atol=1e-4)


@holds(
    FPN,
    {
        "names of no account": ("return proposed + F.cross_entropy", "return proposed + 0 * F.cross_entropy"),
        "boxes that are not there": ("(names >= 0).nonzero", "(names >= -1).nonzero"),
    },
)
def test_detection_loss(code):
    """The loss of the proposals, and that of the names of boxes that exist."""
    torch.manual_seed(0)
    model = code.Detector(Backbone()).eval()
    images = noise(2, 3, 128, 128)
    boxes = torch.tensor([[[4.0, 4, 20, 24], [0, 0, 0, 0]], [[30.0, 30, 100, 110], [60, 8, 90, 40]]])
    targets = {"boxes": boxes, "labels": torch.tensor([[3, -1], [1, 2]])}
    torch.manual_seed(1)
    whole = code.detection_loss(model, images, targets)
    torch.manual_seed(1)
    proposed = code.proposal_loss(model, images, targets)
    scores = model.names(model.maps(images), boxes[[0, 1, 1], [0, 0, 1]], torch.tensor([0, 1, 1]))
    assert torch.allclose(whole - proposed, F.cross_entropy(scores, torch.tensor([3, 1, 2])), rtol=1e-4)


def test_the_gallery_s_score_is_the_largest_objectness():
    outputs = torch.tensor([[[0.5, 9, 9, 9, 9], [2.0, 0, 0, 0, 0]], [[-1.0, 5, 5, 5, 5], [-3.0, 0, 0, 0, 0]]])
    assert FPN.best_objectness(outputs, None).tolist() == [2.0, -1.0]


def test_one_training_of_the_study():
    """On few images: recall of the scenes by size, and names."""
    data = FPN.scenes(train=16, test=16)
    assert data.train.targets["boxes"].shape[1] > 4 and "small animals" in str(data.provenance)
    measured = FPN.train_arm(data, seed=0, epochs=1, levels=(4,))
    assert {"train_loss", "AR100 all", "AR100 P2", "AR10 all", "named all", "named P2"} <= set(measured)
    assert FPN.build(pretrained=False, top_down=False).pyramid.top_down is False


# ------------------------------------------------------------------------------------- the exercises' checks

CONCATENATION, OWN_HEADS = from_cells(FPN, "check_concatenation", "check_own_heads")


class Concatenation(nn.Module):
    """Right: the lateral map first. What the museum below changes is in `merge`."""

    def __init__(self, channels, d):
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, d, 1) for c in channels])
        self.reduce = nn.ModuleList([nn.Conv2d(2 * d, d, 1) for _ in channels[1:]])
        self.smooth = nn.ModuleList([nn.Conv2d(d, d, 3, padding=1) for _ in channels])

    def merge(self, reduce, lateral, above):
        return reduce(torch.cat([lateral, above], 1))

    def forward(self, maps):
        x = [convolution(c) for convolution, c in zip(self.lateral, maps, strict=True)]
        for k in reversed(range(len(x) - 1)):
            x[k] = self.merge(self.reduce[k], x[k], F.interpolate(x[k + 1], x[k].shape[2:]))
        return [convolution(y) for convolution, y in zip(self.smooth, x, strict=True)]


class AboveFirst(Concatenation):
    def merge(self, reduce, lateral, above):
        return reduce(torch.cat([above, lateral], 1))


class AddsAnyway(Concatenation):
    def merge(self, reduce, lateral, above):
        return lateral + above


class AddsToo(Concatenation):
    def merge(self, reduce, lateral, above):
        return reduce(torch.cat([lateral + above, torch.zeros_like(above)], 1))


class OneForAll(Concatenation):
    def __init__(self, channels, d):
        super().__init__(channels, d)
        self.reduce = nn.ModuleList([self.reduce[0]] * len(channels[1:]))


class OfTheCoarsest(Concatenation):
    def forward(self, maps):
        x = super().forward(maps)
        return [F.interpolate(y, x[-1].shape[2:]) for y in x]


@pytest.mark.parametrize("right", [Concatenation, AboveFirst])
def test_both_orders_of_concatenation_are_right(right):
    CONCATENATION(right)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (AddsAnyway, "side by side"),
        (AddsToo, "side by side"),
        (OneForAll, "parameters more"),
        (OfTheCoarsest, "size of its map"),
    ],
)
def test_wrong_concatenations_get_a_hint(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        CONCATENATION(wrong)


class OwnHeads(FPN.ProposalNetwork):
    """Right: the shared head stays, unused."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.heads = nn.ModuleList([FPN.ProposalHead(32) for _ in range(4)])

    def forward(self, images):
        return self.answer(self.pyramid(self.backbone.features(images)))

    def answer(self, levels):
        return torch.cat([head([x]) for head, x in zip(self.heads, levels, strict=True)], 1)


class WithoutTheShared(OwnHeads):
    def __init__(self, backbone):
        super().__init__(backbone)
        self.heads = nn.ModuleList([FPN.ProposalHead(32, anchors=3) for _ in self.levels])
        del self.head

    def answer(self, levels):
        answers = []
        for k in range(4):
            answers.append(self.heads[k](levels[k : k + 1]))
        return torch.cat(answers, dim=1)


class StillShared(OwnHeads):
    def answer(self, levels):
        return self.head(levels)


class FourTimesTheSame(OwnHeads):
    def __init__(self, backbone):
        super().__init__(backbone)
        self.heads = nn.ModuleList([self.head] * 4)


class CoarsestFirst(OwnHeads):
    def answer(self, levels):
        return torch.cat([head([x]) for head, x in zip(reversed(self.heads), levels, strict=True)], 1)


class AllLevelsEach(OwnHeads):
    def answer(self, levels):
        return torch.cat([head(levels) for head in self.heads], 1)


@pytest.mark.parametrize("right", [OwnHeads, WithoutTheShared])
def test_own_heads_are_right(right):
    OWN_HEADS(right)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (StillShared, "head number 0 on P2"),
        (FourTimesTheSame, "weights of their own"),
        (CoarsestFirst, "head number 0 on P2"),
        (AllLevelsEach, "one answer for each"),
    ],
)
def test_wrong_heads_get_a_hint(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        OWN_HEADS(wrong)


@holds(FPN, {"half the epochs": ("data, epochs=8).last", "data, epochs=4).last")})
def test_what_the_gallery_learns(code):
    calls = []
    history = train.History("toy", {}, [{"AR100 all": 0.2}, {"AR100 all": 0.4}])
    code.train_detector = lambda *given, epochs: calls.append((*given, epochs)) or history
    assert code.learn_animals("network", "photographs") == {"average_recall": 0.4}
    assert calls == [("network", "photographs", 8)]
