"""Chapter 13: torchvision's pyramid, anchors, levels, NMS and RoIAlign; then mutants of the chapter's code."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from toys import chapter_tests, generator, noise, on_meta

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


# ------------------------------------------------------------------ checks of the code, each a function of a module


def check_counts(code):
    assert inspect.count_parameters(on_meta(code.FeaturePyramid, RESNET50)) == 3_344_384
    assert inspect.count_parameters(on_meta(code.ProposalHead)) == 593_935
    assert inspect.count_parameters(on_meta(code.BoxHead)) == 14_362_055


def check_pyramid(code):
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


def check_ablations(code):
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


def check_first_weights(code):
    """Biases start at zero, and the last layers of the head are small."""
    torch.manual_seed(0)
    neck, head = code.FeaturePyramid((8, 8), 16), code.ProposalHead(64)
    assert all(not c.bias.any() for c in (*neck.lateral, *neck.smooth, head.conv, head.objectness, head.offsets))
    assert abs(float(head.conv.weight.detach().std()) / 0.01 - 1) < 0.05


def check_head(code):
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


def check_anchors(code):
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


def check_overlap(code):
    a, b = random_boxes(3, 7), random_boxes(3, 5, seed=1)
    for i in range(3):
        expected = torchvision.ops.box_iou(a[i], b[i])
        assert torch.allclose(code.iou(a, b)[i], expected, atol=1e-6)
        assert torch.allclose(code.iou(a[i], b)[i], expected, atol=1e-6)  # one set of boxes for all images


def check_matching(code):
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


def check_forced_best(code):
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    boxes, there = torch.tensor([[[26.0, 20, 36, 30], [0, 0, 0, 0]]]), torch.tensor([[True, False]])
    labels, box = code.match(anchors, boxes, there)
    assert labels.tolist() == [[0, 1]] and int(box[0, 1]) == 0


def check_offsets(code):
    boxes, anchors = random_boxes(200), random_boxes(200, seed=1)
    offsets = code.encode(boxes, anchors)
    assert torch.allclose(code.decode(offsets, anchors), boxes, atol=1e-2)
    coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert torch.allclose(offsets, coder.encode_single(boxes, anchors), atol=1e-4)
    wild = torch.tensor([[0.0, 0.0, 50.0, 0.0]])
    wide = code.decode(wild, torch.tensor([[0.0, 0, 2, 2]]))
    assert float(wide[0, 2] - wide[0, 0]) == pytest.approx(125, rel=1e-4)


def check_lots(code):
    labels = torch.full((3, 500), -1)
    labels[0, :100], labels[0, 100:300] = 1, 0  # plenty of both
    labels[1, :5], labels[1, 5:400] = 1, 0  # few objects
    labels[2, :10], labels[2, 10:20] = 1, 0  # few anchors of any kind
    torch.manual_seed(0)
    chosen = code.draw_lots(labels, 64)
    counts = [[int((chosen[i] & (labels[i] == value)).sum()) for value in (1, 0, -1)] for i in range(3)]
    assert counts == [[32, 32, 0], [5, 59, 0], [10, 10, 0]]
    assert not torch.equal(chosen, code.draw_lots(labels, 64))


def check_loss(code):
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


def check_existing(code):
    boxes = random_boxes(2, 4)
    labels = torch.tensor([[-1, 3, -1, 1], [-1, -1, -1, 0]])
    kept, there = code.existing({"boxes": boxes, "labels": labels})
    assert there.tolist() == [[True, True], [True, False]]
    assert torch.equal(kept[0], boxes[0, [1, 3]]) and torch.equal(kept[1, 0], boxes[1, 3])


def check_network(code):
    torch.manual_seed(0)
    for arm, config in code.ARMS.items():
        settings = {k: v for k, v in config.items() if k != "pretrained"}
        model = code.ProposalNetwork(Backbone(), **settings).eval()
        anchors = model.anchors((128, 128))
        assert model(torch.zeros(1, 3, 128, 128)).shape == (1, len(anchors), 5)
        assert len(anchors) == (768 if arm == "one map" else 4080)
        assert code.area(anchors).sqrt().round().unique().tolist() == [12, 24, 48, 96]
    first = model.anchors((128, 128))[: 3 * 32**2]
    assert torch.allclose(code.area(first).sqrt(), torch.tensor(12.0))


def check_suppression(code):
    boxes = random_boxes(6, 80, size=40)
    scores = random(6, 80, seed=3).sort(1, descending=True).values
    for threshold in (0.3, 0.7):
        ours = code.suppress(boxes, threshold)
        for i in range(6):
            kept = torchvision.ops.nms(boxes[i], scores[i], threshold)
            assert torch.equal(ours[i].nonzero()[:, 0], kept.sort().values)
            assert 0 < len(kept) < 80


def check_proposals(code):
    """Best first, inside the image, as torchvision's parts give them, and zeros where there are not enough."""
    anchors = random_boxes(300, size=64)
    answers = noise(3, 300, 5, seed=0)
    boxes, logits = code.propose(answers, anchors, (64, 64), count=50, candidates=100)
    for i in range(3):
        top = answers[i, :, 0].topk(100).indices
        decoded = code.decode(answers[i, top, 1:], anchors[top])
        decoded = torchvision.ops.clip_boxes_to_image(decoded, (64, 64))
        kept = torchvision.ops.nms(decoded, answers[i, top, 0], 0.7)[:50]
        assert torch.allclose(boxes[i, : len(kept)], decoded[kept], atol=1e-5)
        assert torch.equal(logits[i, : len(kept)], answers[i, top[kept], 0])
        assert not boxes[i, len(kept) :].any() and (logits[i, len(kept) :] == -math.inf).all()


def check_level(code):
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


def check_recall(code):
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


def check_recall_as_coco(code):
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


def check_align(code):
    ramp = torch.arange(16.0).expand(1, 16, 16) + 0.5
    box = torch.tensor([3.3, 2.0, 10.3, 12.0])
    middles = 3.3 + torch.arange(7.0) + 0.5
    assert torch.allclose(code.align(ramp, box, 7), middles.expand(1, 7, 7), atol=1e-4)
    feature = random(3, 16, 20)
    theirs = torchvision.ops.roi_align(feature[None], [box[None]], 5, sampling_ratio=2, aligned=True)[0]
    assert torch.allclose(code.align(feature, box, 5), theirs, atol=1e-4)


def check_box_head(code):
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


def check_lone_animals(code):
    index, box = code.lone_animals(toy_split())
    assert index.tolist() == [0, 1] and box.tolist() == [[20, 32, 90, 100]] * 2
    animals, backdrops = code.cut_out(toy_split(), index, box)
    assert animals.shape == (2, 4, 40, 40) and (animals[:, 3, 1:-1, 1:-1] - 1).abs().max() < 1e-5
    assert (animals[:, :3, 1:-1, 1:-1] - 250).abs().max() < 1e-3
    assert (backdrops[:, :, 1:-1, 1:-1] - 100).abs().max() < 1e-3


def check_paste(code):
    images = torch.zeros(1, 3, 168, 168, dtype=torch.uint8)
    piece = torch.cat([torch.full((1, 3, 40, 40), 200.0), torch.ones(1, 1, 40, 40)], 1)
    code.paste(images, piece, torch.tensor([[50, 60]]), torch.tensor([[20.0, 10.0]]))
    rows, columns = (images[0, 0] > 0).nonzero(as_tuple=True)
    assert (int(columns.min()), int(rows.min())) == (50, 60)
    assert (int(columns.max()), int(rows.max())) == (69, 69)
    assert (images[0, :, 62:68, 52:68] == 200).all()


def check_scenes(code):
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


def check_decoys(code):
    """With backdrops like the photograph, a decoy leaves no bright pixel outside the boxes."""
    split = toy_split()
    split.targets["boxes"][:, 0] = torch.tensor([20.0, 30, 90, 100])
    made = code.add_small_animals(split, seed=0)
    bright = (made.images == 250).all(1)
    for i in range(4):
        for left, top, right, bottom in made.targets["boxes"][i][made.targets["labels"][i] >= 0].long().tolist():
            bright[i, max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2] = False
    assert not bright.any()


# ------------------------------------------------------------------------------------------------------ mutants

MUTANTS = {
    "no addition": ("above if merged[k] is None else merged[k] + above", "above", "pyramid"),
    "enlarged by interpolation": (
        'mode="nearest")\n                merged',
        'mode="bilinear")\n                merged',
        "pyramid",
    ),
    "smoothing without padding": ("nn.Conv2d(d, d, 3, padding=1) for", "nn.Conv2d(d, d, 3) for", "pyramid"),
    "P6 by a larger window": (
        "F.max_pool2d(levels[-1], 1, stride=2)",
        "F.max_pool2d(levels[-1], 2, stride=2)",
        "pyramid",
    ),
    "the finest map taken": ("channels[-1:]", "channels[:1]", "ablations"),
    "top-down always": ("        if self.top_down:", "        if True:", "ablations"),
    "a head of other size": (
        "self.offsets = nn.Conv2d(d, 4 * anchors, 1)",
        "self.offsets = nn.Conv2d(d, 4, 1)",
        "head",
    ),
    "channels before positions": ("self.objectness(x).permute(0, 2, 3, 1)", "self.objectness(x)", "head"),
    "large first weights": ("std=0.01", "std=0.1", "first_weights"),
    "anchors at the corner": ("+ 0.5) * stride  # height", ") * stride  # height", "anchors"),
    "ratios upside down": ("side / ratio**0.5, side * ratio**0.5", "side * ratio**0.5, side / ratio**0.5", "anchors"),
    "IoU over the first box": (
        "shared.div_(both.clamp_min_(1e-12))",
        "shared.div_(area(first)[..., :, None])",
        "overlap",
    ),
    "negative overlap": ("torch.maximum(left, left2)).clamp_min_(0)", "torch.maximum(left, left2))", "overlap"),
    "no forced best": ("torch.where(forced.any(2), 1, labels)", "labels", "forced_best"),
    "forced without overlap": (" & (overlap > 0)", "", "matching"),
    "boxes that are not there": ("iou(anchors, boxes) * there[:, None]\x20", "iou(anchors, boxes)\x20", "matching"),
    "everything counts": ("torch.where(best < negative, 0, -1)", "0", "matching"),
    "shift not over size": ("shift / size", "shift", "offsets"),
    "no logarithm": ("(wanted / size).log()", "(wanted / size)", "offsets"),
    "boxes of any size": (".clamp_max(math.log(1000 / 16))", "", "offsets"),
    "objects without limit": ("(1, count // 2)", "(1, count)", "lots"),
    "always the first": ("torch.rand(labels.shape, device=labels.device)", "torch.ones(labels.shape)", "lots"),
    "regression of all drawn": ("objects = chosen & (labels == 1)", "objects = chosen", "loss"),
    "offsets over objects": ("offsets / chosen.sum()", "offsets / objects.sum()", "loss"),
    "rows as they come": ("descending=True, stable=True)", "stable=True)", "existing"),
    "sizes on the wrong level": (
        "tuple((SIDES[k],) for k in levels)",
        "tuple((SIDES[7 - k],) for k in levels)",
        "network",
    ),
    "suppressed ones suppress": ("close[:, i, i + 1 :] & stays[:, i, None]", "close[:, i, i + 1 :]", "suppression"),
    "proposals beyond the image": (
        "torch.minimum(boxes.clamp_min(0), torch",
        "torch.minimum(boxes, torch",
        "proposals",
    ),
    "suppressed ones come back": ("logits.masked_fill(gone, -math.inf)", "logits", "proposals"),
    "levels rounded": (".floor().long()", ".round().long()", "level"),
    "levels unclamped": (".clamp(lowest, highest)", "", "level"),
    "a box found twice": (
        "left.gather(2, box) & (best < wanted)",
        "left.gather(2, box) & (best < wanted) | True",
        "recall",
    ),
    "boxes are never used up": ("(overlap[:, k, None] * left)", "(overlap[:, k, None] * there[:, None])", "recall"),
    "RoIAlign off by half": ("(torch.arange(bins * samples) + 0.5)", "torch.arange(bins * samples)", "align"),
    "no ReLU in the box head": ("self.fc6(features.flatten(1)).relu()", "self.fc6(features.flatten(1))", "box_head"),
    "animals in company": ("large & ((labels >= 0).sum(1) == 1)", "large", "lone_animals"),
    "void belongs to the animal": (
        "animal = (masks > 0) & (masks < 255)\n    rows",
        "animal = masks > 0\n    rows",
        "lone_animals",
    ),
    "width for height": ("shapes[..., None] - 1", "shapes.flip(1)[..., None] - 1", "paste"),
    "decoys on top": (
        "decoy = torch.tensor([turn % 2, turn // 2 % 2]), turn < 4",
        "decoy = torch.tensor([turn % 2, turn // 2 % 2]), turn > 3",
        "scenes",
    ),
    "decoys are animals": ("pieces = torch.cat([backdrops[other[some]], pieces[:, 3:]], 1)", "pass", "decoys"),
}  # fmt: skip


test_chapter, test_mutant_is_noticed = chapter_tests(FPN, globals(), MUTANTS)


# ------------------------------------------------------------------------------------------------------ the study


def test_arms_cost_what_the_chapter_says():
    costs = {}
    for arm, config in FPN.ARMS.items():
        settings = {k: v for k, v in config.items() if k != "pretrained"}
        model = FPN.ProposalNetwork(Backbone(), **settings)
        costs[arm] = inspect.count_parameters(model), inspect.count_macs(model, (3, 128, 128))
    assert costs["FPN"] == costs["bottom-up"] == costs["FPN from nothing"]
    assert costs["one map"][1] < 0.75 * costs["FPN"][1]
    assert costs["no lateral"][0] == costs["FPN"][0] - sum(32 * c + 32 for c in CHANNELS[:-1])


def test_arms_with_equal_layers_start_equal():
    train.set_seed(3)
    first = FPN.build(pretrained=False, top_down=False)
    train.set_seed(3)
    second = FPN.build(pretrained=False)
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
