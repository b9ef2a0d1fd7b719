"""Chapter 14: the paper's counts, boxes to cells and back, the loss by hand, average precision; then mutants."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import ops
from toys import chapter_tests, dataset_of, generator, on_meta, random_images

from helpers import inspect
from helpers.chapters import chapter
from helpers.data import VOC_ANIMALS

YOLO = chapter("14_yolo")


def random_boxes(*shape, size=100.0, seed=0):
    corners = size * torch.rand(*shape, 2, 2, generator=generator(seed))
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


def scene(images=6, most=5, size=64.0):
    """Boxes (N, M, 4) and labels (N, M), some of them -1."""
    boxes = random_boxes(images, most, size=size)
    labels = torch.randint(-1, 5, (images, most), generator=generator(1))
    return boxes * (labels >= 0)[..., None], labels


def found_of(code, rows):
    """Detections from rows (image, label, score, box)."""
    image, label, score, box = zip(*rows, strict=True)
    return code.Found(torch.tensor(image), torch.tensor(label), torch.tensor(score), torch.tensor(box))


def photographs():
    """A Dataset of three images of noise at 64 px."""
    targets = {"boxes": torch.zeros(3, 1, 4), "labels": torch.full((3, 1), -1)}
    return dataset_of(random_images(3, 64), targets, VOC_ANIMALS)


# ------------------------------------------------------------------ checks of the code, each a function of a module


def check_paper_network(code):
    model = on_meta(code.paper_yolo)
    assert inspect.count_parameters(model) == 271_703_550
    assert inspect.count_parameters(model.features) == 60_155_968
    assert inspect.count_macs(model, (3, 448, 448)) == 20_285_153_280
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 24
    assert model(torch.zeros(2, 3, 448, 448, device="meta")).shape == (2, 7, 7, 30)
    slopes = {module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.1}


def check_small_network(code):
    torch.manual_seed(0)
    model = code.small_yolo(code.Backbone()).eval()
    output = model(torch.zeros(2, 3, 128, 128))
    assert output.shape == (2, 8, 8, 15)
    seen = model.read(output)
    assert seen.box.shape == (2, 8, 8, 2, 4) and seen.confidence.shape == (2, 8, 8, 2)
    assert torch.allclose(seen.classes.sum(-1), torch.ones(2, 8, 8)) and seen.confidence.max() < 0.2
    assert code.small_yolo(code.Backbone(), boxes=1, classes=7)(torch.zeros(2, 3, 96, 64)).shape == (2, 6, 4, 12)


def check_read(code):
    """Five numbers for each box, then the classes; linear as in the paper, with squares of the roots."""
    model = code.Yolo(nn.Identity(), nn.Identity(), boxes=2, classes=3, squash=False)
    numbers = torch.arange(13.0).view(1, 13, 1, 1)
    seen = model.read(model(numbers))
    assert seen.box[0, 0, 0].tolist() == [[0, 1, 4, 9], [5, 6, 49, 64]]
    assert seen.confidence[0, 0, 0].tolist() == [4, 9] and seen.classes[0, 0, 0].tolist() == [10, 11, 12]
    model.squash = True
    seen = model.read(model(numbers / 13))
    assert torch.allclose(seen.confidence[0, 0, 0], torch.tensor([4 / 13, 9 / 13]).sigmoid())
    assert torch.allclose(seen.classes[0, 0, 0], (torch.tensor([10.0, 11, 12]) / 13).softmax(0))


def check_suppression(code):
    boxes, scores = random_boxes(8, 40), (20 * torch.rand(8, 40, generator=generator(1))).round() / 20  # with ties
    for threshold in (0.1, 0.3, 0.5, 0.7, 1.0):
        stays = code.suppress(boxes, scores, threshold)
        for i in range(8):
            expected = ops.nms(boxes[i], scores[i], threshold).sort().values
            assert torch.equal(stays[i].nonzero()[:, 0], expected)


def check_detections(code):
    """Class by class, as torchvision's batched_nms, the surest first, nothing below `least`."""
    boxes, scores = random_boxes(3, 12), torch.rand(3, 12, 4, generator=generator(2))
    found = code.detections(boxes, scores, threshold=0.4, least=0.2)
    assert (found.score.diff() <= 0).all() and found.score.min() >= 0.2
    for i in range(3):
        every, labels = boxes[i].repeat_interleave(4, 0), torch.arange(4).repeat(12)
        points = scores[i].flatten()
        kept = ops.batched_nms(every, points, labels, 0.4)
        kept = kept[points[kept] >= 0.2]
        mine = found.where(found.image == i)
        assert torch.equal(mine.score, points[kept]) and torch.equal(mine.label, labels[kept])
        assert torch.equal(mine.box, every[kept])


def check_round_trip(code):
    boxes, labels = scene()
    for grid in (1, 4, 7):
        truth = code.encode(boxes, labels, 64, grid)
        occupied = truth.label >= 0
        back, image = code.decode(truth.box, 64)[occupied], occupied.nonzero()[:, 0]
        apart = (boxes[image] - back[:, None]).abs().amax(2)
        assert (apart.amin(1) < 1e-3).all()
        assert torch.equal(labels[image, apart.argmin(1)], truth.label[occupied])
        assert ((truth.box[..., :2] >= 0) & (truth.box[..., :2] <= 1)).all()


def check_cell(code):
    """Row and column are not confused, and a centre on the far border is in the last cell."""
    box = torch.tensor([[[48.0, 0.0, 64.0, 16.0], [60.0, 60.0, 68.0, 68.0]]])
    truth = code.encode(box, torch.tensor([[2, 1]]), 64, 4)
    assert truth.label[0, 0, 3] == 2 and truth.label[0, 3, 3] == 1 and (truth.label >= 0).sum() == 2
    assert torch.allclose(truth.box[0, 0, 3], torch.tensor([0.5, 0.5, 0.25, 0.25]))


def check_collision(code):
    small, large = [28.0, 28.0, 36.0, 36.0], [2.0, 2.0, 62.0, 60.0]
    for order in ((small, large), (large, small)):
        labels = torch.tensor([[0, 1] if order[0] is small else [1, 0]])
        truth = code.encode(torch.tensor([order]), labels, 64, 1)
        assert truth.label.item() == 1 and torch.allclose(code.decode(truth.box, 64)[0, 0, 0], torch.tensor(large))
    boxes, labels = torch.tensor([[small, large, [0.0] * 4]]), torch.tensor([[0, 1, -1]])
    assert code.lost_to_collisions(boxes, labels, 64, 1) == pytest.approx(0.5)


def one_cell(code):
    """A truth and a prediction of 2 boxes in a grid of 2x2; cell (0, 1) is occupied, its second box fits better."""
    truth = code.Truth(torch.zeros(1, 2, 2, 4), torch.full((1, 2, 2), -1))
    truth.box[0, 0, 1], truth.label[0, 0, 1] = torch.tensor([0.5, 0.5, 0.36, 0.64]), 2
    box = torch.full((1, 2, 2, 2, 4), 0.5)
    box[0, 0, 1] = torch.tensor([[0.9, 0.1, 0.04, 0.04], [0.6, 0.4, 0.49, 0.25]])
    confidence = torch.full((1, 2, 2, 2), 0.1)
    confidence[0, 0, 1] = torch.tensor([0.3, 0.8])
    classes = torch.tensor([0.2, 0.3, 0.5]).expand(1, 2, 2, 3)
    return truth, code.Prediction(box, confidence, classes)


def check_loss_by_hand(code):
    truth, seen = one_cell(code)
    fit = float(ops.box_iou(code.decode(seen.box, 1.0)[0, 0, 1, 1:], code.decode(truth.box, 1.0)[0, 0, 1][None]))
    expected = {
        "position": 5 * (0.1**2 + 0.1**2),
        "size": 5 * (0.1**2 + 0.3**2),
        "confidence, object": (0.8 - fit) ** 2,
        "confidence, none": 0.5 * (0.3**2 + 6 * 0.1**2),
        "class": 0.2**2 + 0.3**2 + 0.5**2,
    }
    terms = code.YoloLoss().terms(seen, truth)
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4), name
    plain = code.YoloLoss(root=False, empty=1.0).terms(seen, truth)
    assert float(plain["size"]) == pytest.approx(5 * (0.13**2 + 0.39**2), rel=1e-4)
    assert float(plain["confidence, none"]) == pytest.approx(0.15, rel=1e-4)


def check_mean_over_images(code):
    truth, seen = one_cell(code)
    twice_truth = code.Truth(*(torch.cat([tensor, tensor]) for tensor in truth))
    twice_seen = code.Prediction(*(torch.cat([tensor, tensor]) for tensor in seen))
    once, twice = code.YoloLoss().terms(seen, truth), code.YoloLoss().terms(twice_seen, twice_truth)
    assert all(float(once[name]) == pytest.approx(float(twice[name])) for name in once)


def check_no_gradient_through_the_target(code):
    """The confidence term moves the confidence alone; empty cells and idle boxes are not moved by the box terms."""
    truth, seen = one_cell(code)
    box, confidence = seen.box.clone().requires_grad_(), seen.confidence.clone().requires_grad_()
    terms = code.YoloLoss().terms(seen._replace(box=box, confidence=confidence), truth)
    (terms["confidence, object"] + terms["confidence, none"]).backward(retain_graph=True)
    assert (box.grad is None or not box.grad.any()) and (confidence.grad != 0).all()
    (terms["position"] + terms["size"]).backward()
    moved = box.grad.abs().sum(-1) > 0
    assert moved.nonzero().tolist() == [[0, 0, 1, 1]]


def check_duplicates(code):
    """A second box on the same object is wrong, and the surest one is right, also if a later one fits better."""
    truth = {"boxes": torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), "labels": torch.tensor([[1]])}
    rows = [
        (0, 2, 0.95, [0.0, 0.0, 10.0, 10.0]),
        (0, 1, 0.9, [0.0, 0.0, 10.0, 8.0]),
        (0, 1, 0.8, [0.0, 0.0, 10.0, 10.0]),
        (0, 0, 0.7, [0.0, 0.0, 10.0, 10.0]),
        (0, 1, 0.6, [0.0, 0.0, 10.0, 4.0]),
    ]
    right, ignored = code.judge(found_of(code, rows), truth)
    assert right.tolist() == [False, True, False, False, False] and not ignored.any()


def check_difficult(code):
    """What belongs to a difficult object counts neither way, and it need not be found."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]])
    truth = {"boxes": boxes, "labels": torch.tensor([[0, 0]]), "difficult": torch.tensor([[True, False]])}
    rows = [(0, 0, 0.9, boxes[0, 0].tolist()), (0, 0, 0.8, boxes[0, 0].tolist()), (0, 0, 0.7, boxes[0, 1].tolist())]
    found = found_of(code, rows)
    right, ignored = code.judge(found, truth)
    assert right.tolist() == [False, False, True] and ignored.tolist() == [True, True, False]
    assert code.mean_average_precision(found, truth, 1) == pytest.approx(1)


def check_average_precision(code):
    """One of two objects found: 6 of 11 points, half of the area, 51 of 101 points."""
    precision, recall = code.precision_recall(torch.tensor([True, False]), 2)
    assert precision.tolist() == [1, 0.5] and recall.tolist() == [0.5, 0.5]
    for rule, value in {"11 points": 6 / 11, "area": 0.5, "101 points": 51 / 101}.items():
        assert code.average_precision(precision, recall, rule) == pytest.approx(value)
    precision, recall = code.precision_recall(torch.tensor([False, True, True]), 2)  # the best beyond counts
    assert code.average_precision(precision, recall, "area") == pytest.approx(2 / 3)
    assert code.average_precision(precision, recall) == pytest.approx(2 / 3)
    empty = torch.zeros(0, dtype=torch.bool)
    assert code.average_precision(*code.precision_recall(empty, 3)) == 0


def check_perfect(code):
    """What the grid keeps is found again, whatever the rule."""
    boxes, labels = scene(images=12)
    truth = code.encode(boxes, labels, 64, 16)
    scores = F.one_hot(truth.label.clamp_min(0), 5) * (truth.label >= 0)[..., None].float()
    found = code.detections(code.decode(truth.box, 64.0).flatten(1, 2), scores.flatten(1, 2), threshold=1.0)
    assert code.judge(found, {"boxes": boxes, "labels": labels})[0].all()


def check_kinds(code):
    boxes = torch.tensor(
        [[[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 40.0, 9.0, 49.0], [20.0, 40.0, 29.0, 49.0]]]
    )
    truth = {"boxes": boxes, "labels": torch.tensor([[0, 1, 0, 0]])}
    rows = [
        (0, 0, 0.9, [0.0, 0.0, 10.0, 9.0]),  # correct
        (0, 0, 0.8, [0.0, 40.0, 4.0, 49.0]),  # localisation
        (0, 0, 0.7, [20.0, 0.0, 30.0, 10.0]),  # other animal
        (0, 0, 0.6, [50.0, 50.0, 60.0, 60.0]),  # beyond the number of objects
        (0, 1, 0.5, [50.0, 50.0, 60.0, 60.0]),  # background
    ]
    shares = code.kinds_of_mistakes(found_of(code, rows), truth, 2)
    assert torch.allclose(shares, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1.0]]))


def check_scores(code):
    """`look` multiplies confidence and class probability, for every box."""
    torch.manual_seed(0)
    model = code.small_yolo(code.Backbone())
    data = photographs()
    boxes, scores = code.look(model, data, data.test.images)
    assert boxes.shape == (3, 32, 4) and scores.shape == (3, 32, 5) and boxes.min() >= 0 and boxes.max() <= 64
    with torch.inference_mode():
        seen = model.eval().read(model(data.normalize(data.test.images)))
    expected = (seen.confidence[..., None] * seen.classes[..., None, :]).flatten(1, 3)
    assert torch.allclose(scores, expected, atol=1e-5)
    assert torch.allclose(scores.sum(-1).flatten(), seen.confidence.flatten(), atol=1e-5)


def check_look_twice(code):
    """The mirrored photograph has the mirrored answer, whatever the network has learnt."""
    torch.manual_seed(0)
    model, data = code.small_yolo(code.Backbone()), photographs()
    boxes, scores = code.look_twice(model, data, data.test.images)
    mirrored, same = code.look_twice(model, data, data.test.images.flip(-1))
    left, top, right, bottom = mirrored.unbind(-1)
    back = torch.stack([64 - right, top, 64 - left, bottom], -1).unflatten(1, (4, 4, 2)).flip(2).flatten(1, 3)
    assert torch.allclose(boxes, back, atol=1e-2) and (boxes - mirrored).abs().max() > 1
    assert torch.allclose(scores, same.unflatten(1, (4, 4, 2)).flip(2).flatten(1, 3), atol=1e-4)


def check_windows(code):
    places = code.windows(128)
    assert places.min() >= 0 and places[:, 2:].max() == pytest.approx(128)
    sides = places[:, 2:] - places[:, :2]
    assert torch.allclose(sides[:, 0], sides[:, 1], atol=1e-3) and len(places) > 100
    assert places[0].tolist() == [0, 0, 128, 128]
    assert len({tuple(place) for place in places.round().tolist()}) == len(places)


def check_responsible_box(code):
    truth, seen = one_cell(code)
    which, objects = code.responsible_box(seen, truth)
    assert which.tolist() == [1] and torch.equal(objects, truth.box[0, 0, 1][None])


def check_colours(code):
    """Boxes move as `AugmentScene` moves them; colours change without moving anything."""
    images = torch.rand(4, 3, 32, 32, generator=generator())
    boxes, labels = scene(images=4, size=32.0)
    targets = {"boxes": boxes, "labels": labels}
    still = code.AugmentPhotograph(zoom=(1.0, 1.0), colour=0.4)
    changed, same = still(images, targets, generator())
    flat = torch.full((4, 3, 32, 32), 0.5)
    flat_changed, _ = still(flat, targets, generator())
    assert changed.shape == images.shape and not torch.allclose(changed, images, atol=0.05)
    assert float(flat_changed.flatten(1).std(1).max()) < 1e-5  # a grey picture stays a grey picture
    assert torch.equal(same["labels"], labels)
    plain, _ = code.AugmentPhotograph(zoom=(1.0, 1.0), colour=0.0)(images, targets, generator())
    expected, _ = code.train.AugmentScene(zoom=(1.0, 1.0))(images, targets, generator())
    assert torch.allclose(plain, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ mutants

MUTANTS = {
    "row and column swapped in encode": ("(x, y) = column[image]", "(y, x) = column[image]", "cell"),
    "row and column swapped in decode": ('indexing="xy"), -1)  # column, row', 'indexing="ij"), -1)', "round_trip"),
    "the smallest object stays": (
        "torch.where(labels >= 0, sides.prod(2), -1)",
        "torch.where(labels >= 0, -sides.prod(2), -1)",
        "collision",
    ),
    "half sides forgotten": ("box[..., 2:] / 2", "box[..., 2:]", "round_trip"),
    "suppression in any order": ("descending=True, stable=True)\n    stays", "stable=True)\n    stays", "suppression"),
    "the order is not undone": ("torch.zeros_like(stays).scatter(1, order, stays)", "stays", "suppression"),
    "suppression across classes": (
        "scores.transpose(1, 2).reshape(n * classes, k)",
        "scores.amax(2, keepdim=True).expand(-1, -1, classes).transpose(1, 2).reshape(n * classes, k)",
        "detections",
    ),
    "confidence as it comes": ("fives.sigmoid(), classes.softmax(-1)", "fives, classes.softmax(-1)", "read"),
    "roots not squared": ("fives[..., 2:4].square()", "fives[..., 2:4]", "read"),
    "a stride forgotten": ("(3, 1024), (3, 1024, 2)", "(3, 1024), (3, 1024)", "paper_network"),
    "another slope": ("nn.LeakyReLU(0.1),\n            ]", "nn.LeakyReLU(),\n            ]", "paper_network"),
    "no position weight": ('"position": self.coord *', '"position":', "loss_by_hand"),
    "roots of nothing": ("if self.root:", "if not self.root:", "loss_by_hand"),
    "the worst box is responsible": ("F.one_hot(fits.argmax(-1)", "F.one_hot(fits.argmin(-1)", "loss_by_hand"),
    "idle boxes go free": (
        "confidence[~responsible]",
        "confidence[~occupied]",
        "loss_by_hand",
    ),
    "confidence should be 1": ("- fits * responsible).square()", "- 1.0 * responsible).square()", "loss_by_hand"),
    "a gradient through the target": ("truth).detach()", "truth)", "no_gradient_through_the_target"),
    "a sum over the images": ("value / len(truth.label)", "value", "mean_over_images"),
    "duplicates are right": (" & (first[object_number] == ranks), ignored", ", ignored", "duplicates"),
    "the best fit is right": ('ranks, "amin"', 'ranks, "amax"', "duplicates"),
    "classes do not matter": (
        "fits = torch.where(labels[found.image] == found.label[:, None], fits, -1)\n    fit,",
        "fit,",
        "duplicates",
    ),
    "difficult objects must be found": ('counted[truth["difficult"]] = -1', "pass", "difficult"),
    "difficult objects count": ("ignored = close & difficult", "ignored = ~close & difficult", "difficult"),
    "precision at that recall only": ("precision.flip(0).cummax(0).values.flip(0)", "precision", "average_precision"),
    "ten points": ("int(rule.split()[0])", "int(rule.split()[0]) - 1", "average_precision"),
    "all detections are sorted": (
        "top = top.where(slice(int((labels == label).sum())))",
        "pass",
        "kinds",
    ),
    "scores without confidence": (
        "score = seen.confidence[..., None] * seen.classes",
        "score = 0 * seen.confidence[..., None] + seen.classes",
        "scores",
    ),
    "contrast about zero": (
        "middle + (1 + change()) * (images - middle)",
        "(1 + change()) * images * images",
        "colours",
    ),
    "mirrored boxes in their old cells": (".flip(2)", "", "look_twice"),
    "windows that leave the image": ("torch.linspace(0, size - side,", "torch.linspace(0, size,", "windows"),
}

test_chapter, test_mutant_is_noticed = chapter_tests(YOLO, globals(), MUTANTS)


# ------------------------------------------------------------------------------------------------------ oracles, errors


def test_torchmetrics_agrees_with_101_points():
    pytest.importorskip("faster_coco_eval")
    detection = pytest.importorskip("torchmetrics.detection")
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]])
    truth = {"boxes": boxes[None], "labels": torch.zeros(1, 3, dtype=torch.long)}
    rows = [(0, 0, 0.9, boxes[0].tolist()), (0, 0, 0.8, [60.0, 0.0, 70.0, 10.0]), (0, 0, 0.7, boxes[1].tolist())]
    found = found_of(YOLO, rows)
    metric = detection.MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
    metric.update(
        [{"boxes": found.box, "scores": found.score, "labels": found.label}],
        [{"boxes": boxes, "labels": torch.zeros(3, dtype=torch.long)}],
    )
    ours = YOLO.mean_average_precision(found, truth, 1, "101 points")
    assert ours == pytest.approx(float(metric.compute()["map_50"]), abs=1e-6)


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="none of"):
        YOLO.average_precision(torch.ones(1), torch.ones(1), "12 points")


def test_arms_of_the_study_differ_in_one_thing():
    assert all(len(arm) == (name != "YOLO") for name, arm in YOLO.ARMS.items())
