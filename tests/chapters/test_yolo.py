"""Chapter 14: the paper's counts, boxes to cells and back, the loss by hand, average precision; the exercises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import ops
from toys import dataset_of, from_cells, generator, holds, noise, on_meta, random_images

from helpers import inspect, train
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


@holds(
    YOLO,
    {
        "a stride forgotten": ("(3, 1024), (3, 1024, 2)", "(3, 1024), (3, 1024)"),
        "another slope": ("nn.LeakyReLU(0.1),\n            ]", "nn.LeakyReLU(),\n            ]"),
    },
)
def test_paper_network(code):
    model = on_meta(code.paper_yolo)
    assert inspect.count_parameters(model) == 271_703_550
    assert inspect.count_parameters(model.features) == 60_155_968
    assert inspect.count_macs(model, (3, 448, 448)) == 20_285_153_280
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == 24
    assert model(torch.zeros(2, 3, 448, 448, device="meta")).shape == (2, 7, 7, 30)
    slopes = {module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes == {0.1}


@holds(
    YOLO,
    {
        "no dropout": ("nn.LeakyReLU(0.1), nn.Dropout(0.5)]", "nn.LeakyReLU(0.1)]"),
        "dropout behind the classifier": (
            "nn.LeakyReLU(0.1), nn.Dropout(0.5)]\n    last = [nn.Linear(4096, outputs * grid**2),",
            "nn.LeakyReLU(0.1)]\n    last = [nn.Linear(4096, outputs * grid**2), nn.Dropout(0.5),",
        ),
        "a quarter is dropped": ("nn.Dropout(0.5)", "nn.Dropout(0.25)"),
    },
)
def test_dropout(code):
    """In training, half of the numbers between the two linear layers are dropped (section 2.2)."""
    head = on_meta(code.paper_yolo).head
    kinds = [type(module).__name__ for module in head]
    assert kinds == ["Flatten", "Linear", "LeakyReLU", "Dropout", "Linear", "Unflatten"]
    torch.manual_seed(0)
    assert 0.48 < float((head[3](torch.ones(10_000)) == 0).float().mean()) < 0.52


@holds(YOLO)
def test_small_network(code):
    torch.manual_seed(0)
    model = code.small_yolo(code.Backbone()).eval()
    output = model(torch.zeros(2, 3, 128, 128))
    assert output.shape == (2, 8, 8, 15)
    seen = model.read(output)
    assert seen.box.shape == (2, 8, 8, 2, 4) and seen.confidence.shape == (2, 8, 8, 2)
    assert torch.allclose(seen.classes.sum(-1), torch.ones(2, 8, 8)) and seen.confidence.max() < 0.2
    assert code.small_yolo(code.Backbone(), boxes=1, classes=7)(torch.zeros(2, 3, 96, 64)).shape == (2, 6, 4, 12)


@holds(
    YOLO,
    {
        "confidence as it comes": ("fives.sigmoid(), classes.softmax(-1)", "fives, classes.softmax(-1)"),
        "roots not squared": ("fives[..., 2:4].square()", "fives[..., 2:4]"),
    },
)
def test_read(code):
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


@holds(
    YOLO,
    {
        "suppression in any order": ("descending=True, stable=True)\n    stays", "stable=True)\n    stays"),
        "the order is not undone": ("torch.zeros_like(stays).scatter(1, order, stays)", "stays"),
    },
)
def test_suppression(code):
    boxes, scores = random_boxes(8, 40), (20 * torch.rand(8, 40, generator=generator(1))).round() / 20  # with ties
    for threshold in (0.1, 0.3, 0.5, 0.7, 1.0):
        stays = code.suppress(boxes, scores, threshold)
        for i in range(8):
            expected = ops.nms(boxes[i], scores[i], threshold).sort().values
            assert torch.equal(stays[i].nonzero()[:, 0], expected)


@holds(
    YOLO,
    {
        "suppression across classes": (
            "scores.transpose(1, 2).reshape(n * classes, k)",
            "scores.amax(2, keepdim=True).expand(-1, -1, classes).transpose(1, 2).reshape(n * classes, k)",
        )
    },
)
def test_detections(code):
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


@holds(YOLO, {"more than least": ("(by_class >= least)", "(by_class > least)")})
def test_detections_at_the_limits(code):
    """A score of exactly `least` is enough, and an overlap of exactly the threshold suppresses nothing."""
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0]]])
    scores = torch.tensor([[[0.75], [0.25]]])
    assert code.detections(boxes, scores, threshold=0.5, least=0.25).score.tolist() == [0.75, 0.25]
    assert code.detections(boxes, scores, threshold=0.49, least=0.25).score.tolist() == [0.75]


@holds(
    YOLO,
    {
        "row and column swapped in decode": ('indexing="xy"), -1)', 'indexing="ij"), -1)'),
        "half sides forgotten": ("box[..., 2:] / 2", "box[..., 2:]"),
    },
)
def test_round_trip(code):
    boxes, labels = scene()
    for grid in (1, 4, 7):
        truth = code.encode(boxes, labels, 64, grid)
        occupied = truth.label >= 0
        back, image = code.decode(truth.box, 64)[occupied], occupied.nonzero()[:, 0]
        apart = (boxes[image] - back[:, None]).abs().amax(2)
        assert (apart.amin(1) < 1e-3).all()
        assert torch.equal(labels[image, apart.argmin(1)], truth.label[occupied])
        assert ((truth.box[..., :2] >= 0) & (truth.box[..., :2] <= 1)).all()


@holds(YOLO, {"row and column swapped in encode": ("(x, y) = column[image]", "(y, x) = column[image]")})
def test_cell(code):
    """Row and column are not confused, and a centre on the far border is in the last cell."""
    box = torch.tensor([[[48.0, 0.0, 64.0, 16.0], [60.0, 60.0, 68.0, 68.0]]])
    truth = code.encode(box, torch.tensor([[2, 1]]), 64, 4)
    assert truth.label[0, 0, 3] == 2 and truth.label[0, 3, 3] == 1 and (truth.label >= 0).sum() == 2
    assert torch.allclose(truth.box[0, 0, 3], torch.tensor([0.5, 0.5, 0.25, 0.25]))


@holds(
    YOLO,
    {
        "the smallest object stays": (
            "torch.where(labels >= 0, sides.prod(2), -1)",
            "torch.where(labels >= 0, -sides.prod(2), -1)",
        )
    },
)
def test_collision(code):
    small, large = [28.0, 28.0, 36.0, 36.0], [2.0, 2.0, 62.0, 60.0]
    for order in ((small, large), (large, small)):
        labels = torch.tensor([[0, 1] if order[0] is small else [1, 0]])
        truth = code.encode(torch.tensor([order]), labels, 64, 1)
        assert truth.label.item() == 1 and torch.allclose(code.decode(truth.box, 64)[0, 0, 0], torch.tensor(large))
    boxes, labels = torch.tensor([[small, large, [0.0] * 4]]), torch.tensor([[0, 1, -1]])
    assert code.lost_to_collisions(boxes, labels, 64, 1) == pytest.approx(0.5)


def one_cell(code):
    """A truth and a prediction of 2 boxes in a grid of 2x2; in cell (0, 1) is an object, and the less sure box fits."""
    truth = code.Truth(torch.zeros(1, 2, 2, 4), torch.full((1, 2, 2), -1))
    truth.box[0, 0, 1], truth.label[0, 0, 1] = torch.tensor([0.5, 0.5, 0.36, 0.64]), 2
    box = torch.full((1, 2, 2, 2, 4), 0.5)
    box[0, 0, 1] = torch.tensor([[0.9, 0.1, 0.04, 0.04], [0.6, 0.4, 0.49, 0.25]])
    confidence = torch.full((1, 2, 2, 2), 0.1)
    confidence[0, 0, 1] = torch.tensor([0.8, 0.2])
    classes = torch.tensor([0.2, 0.3, 0.5]).expand(1, 2, 2, 3)
    return truth, code.Prediction(box, confidence, classes)


@holds(
    YOLO,
    {
        "no position weight": ('"position": self.coord *', '"position":'),
        "roots of nothing": ("if self.root:", "if not self.root:"),
        "the worst box is responsible": ("F.one_hot(fits.argmax(-1)", "F.one_hot(fits.argmin(-1)"),
        "the surest box is responsible": ("F.one_hot(fits.argmax(-1)", "F.one_hot(prediction.confidence.argmax(-1)"),
        "idle boxes go free": ("confidence[~responsible]", "confidence[~occupied]"),
        "confidence should be 1": ("- fits * responsible).square()", "- 1.0 * responsible).square()"),
    },
)
def test_loss_by_hand(code):
    truth, seen = one_cell(code)
    fit = float(ops.box_iou(code.decode(seen.box, 1.0)[0, 0, 1, 1:], code.decode(truth.box, 1.0)[0, 0, 1][None]))
    expected = {
        "position": 5 * (0.1**2 + 0.1**2),
        "size": 5 * (0.1**2 + 0.3**2),
        "confidence, object": (0.2 - fit) ** 2,
        "confidence, none": 0.5 * (0.8**2 + 6 * 0.1**2),
        "class": 0.2**2 + 0.3**2 + 0.5**2,
    }
    terms = code.YoloLoss().terms(seen, truth)
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4), name
    plain = code.YoloLoss(root=False, empty=1.0).terms(seen, truth)
    assert float(plain["size"]) == pytest.approx(5 * (0.13**2 + 0.39**2), rel=1e-4)
    assert float(plain["confidence, none"]) == pytest.approx(0.7, rel=1e-4)


@holds(YOLO, {"a sum over the images": ("value / len(truth.label)", "value")})
def test_mean_over_images(code):
    truth, seen = one_cell(code)
    twice_truth = code.Truth(*(torch.cat([tensor, tensor]) for tensor in truth))
    twice_seen = code.Prediction(*(torch.cat([tensor, tensor]) for tensor in seen))
    once, twice = code.YoloLoss().terms(seen, truth), code.YoloLoss().terms(twice_seen, twice_truth)
    assert all(float(once[name]) == pytest.approx(float(twice[name])) for name in once)


@holds(YOLO, {"a gradient through the target": ("truth).detach()", "truth)")})
def test_no_gradient_through_the_target(code):
    """The confidence term moves the confidence alone; empty cells and idle boxes are not moved by the box terms."""
    truth, seen = one_cell(code)
    box, confidence = seen.box.clone().requires_grad_(), seen.confidence.clone().requires_grad_()
    terms = code.YoloLoss().terms(seen._replace(box=box, confidence=confidence), truth)
    (terms["confidence, object"] + terms["confidence, none"]).backward(retain_graph=True)
    assert (box.grad is None or not box.grad.any()) and (confidence.grad != 0).all()
    (terms["position"] + terms["size"]).backward()
    moved = box.grad.abs().sum(-1) > 0
    assert moved.nonzero().tolist() == [[0, 0, 1, 1]]


@holds(
    YOLO,
    {
        "duplicates are right": (" & (first[object_number] == ranks), ignored", ", ignored"),
        "the best fit is right": ('ranks, "amin"', 'ranks, "amax"'),
        "classes do not matter": (
            "fits = torch.where(labels[found.image] == found.label[:, None], fits, -1)\n    fit,",
            "fit,",
        ),
    },
)
def test_duplicates(code):
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


@holds(YOLO, {"more than half": ("close = fit >= threshold", "close = fit > threshold")})
def test_an_overlap_of_one_half_is_enough(code):
    truth = {"boxes": torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), "labels": torch.tensor([[1]])}
    rows = [(0, 1, 0.9, [0.0, 0.0, 8.0, 3.0]), (0, 1, 0.8, [0.0, 0.0, 8.0, 4.0])]
    assert code.judge(found_of(code, rows), truth)[0].tolist() == [False, True]


@holds(
    YOLO,
    {
        "difficult objects must be found": ('& ~truth.get("difficult", torch.tensor(False))', ""),
        "difficult objects count": ("ignored = close & difficult", "ignored = ~close & difficult"),
    },
)
def test_difficult(code):
    """What belongs to a difficult object counts neither way, and it need not be found."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]])
    truth = {"boxes": boxes, "labels": torch.tensor([[0, 0]]), "difficult": torch.tensor([[True, False]])}
    rows = [(0, 0, 0.9, boxes[0, 0].tolist()), (0, 0, 0.8, boxes[0, 0].tolist()), (0, 0, 0.7, boxes[0, 1].tolist())]
    found = found_of(code, rows)
    right, ignored = code.judge(found, truth)
    assert right.tolist() == [False, False, True] and ignored.tolist() == [True, True, False]
    assert code.mean_average_precision(found, truth, 1) == pytest.approx(1)


@holds(YOLO, {"a class without an object has 0": ("/ max(len(there), 1)", "/ classes")})
def test_the_mean_is_over_the_classes_that_are_there(code):
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]])
    truth = {"boxes": boxes, "labels": torch.tensor([[3, 1]]), "difficult": torch.tensor([[False, True]])}
    found = found_of(code, [(0, 3, 0.9, boxes[0, 0].tolist())])
    assert code.mean_average_precision(found, truth, 5) == pytest.approx(1)
    assert code.mean_average_precision(found, truth | {"labels": torch.tensor([[-1, 1]])}, 5) == 0


@holds(
    YOLO,
    {
        "precision at that recall only": ("precision.flip(0).cummax(0).values.flip(0)", "precision"),
        "ten points": ("int(rule.split()[0])", "int(rule.split()[0]) - 1"),
        "0.3 is not reached by 3 of 10": ("recall.contiguous(), points - 1e-9)", "recall.contiguous(), points)"),
    },
)
def test_average_precision(code):
    """One of two objects found: 6 of 11 points, half of the area, 51 of 101 points. Three of ten: 0, 0.1, 0.2, 0.3."""
    precision, recall = code.precision_recall(torch.tensor([True, False]), 2)
    assert precision.tolist() == [1, 0.5] and recall.tolist() == [0.5, 0.5]
    for rule, value in {"11 points": 6 / 11, "area": 0.5, "101 points": 51 / 101}.items():
        assert code.average_precision(precision, recall, rule) == pytest.approx(value)
    assert code.average_precision(*code.precision_recall(torch.ones(3) > 0, 10)) == pytest.approx(4 / 11)
    precision, recall = code.precision_recall(torch.tensor([False, True, True]), 2)  # the best beyond counts
    assert code.average_precision(precision, recall, "area") == pytest.approx(2 / 3)
    assert code.average_precision(precision, recall) == pytest.approx(2 / 3)
    empty = torch.zeros(0, dtype=torch.bool)
    assert code.average_precision(*code.precision_recall(empty, 3)) == 0


@holds(YOLO)
def test_perfect(code):
    """What the grid keeps is found again, whatever the rule."""
    boxes, labels = scene(images=12)
    truth = code.encode(boxes, labels, 64, 16)
    scores = F.one_hot(truth.label.clamp_min(0), 5) * (truth.label >= 0)[..., None].float()
    found = code.detections(code.decode(truth.box, 64.0).flatten(1, 2), scores.flatten(1, 2), threshold=1.0)
    assert code.judge(found, {"boxes": boxes, "labels": labels})[0].all()


def four_animals():
    """The truth of one photograph: three of class 0, one of class 1."""
    boxes = torch.tensor(
        [[[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 40.0, 9.0, 49.0], [20.0, 40.0, 29.0, 49.0]]]
    )
    return {"boxes": boxes, "labels": torch.tensor([[0, 1, 0, 0]])}


@holds(YOLO, {"all detections are sorted": ("top = top.where(slice(int((labels == label).sum())))", "pass")})
def test_kinds(code):
    rows = [
        (0, 0, 0.9, [0.0, 0.0, 10.0, 9.0]),  # correct
        (0, 0, 0.8, [0.0, 40.0, 4.0, 49.0]),  # localisation
        (0, 0, 0.7, [20.0, 0.0, 30.0, 10.0]),  # other animal
        (0, 0, 0.6, [50.0, 50.0, 60.0, 60.0]),  # beyond the number of objects
        (0, 1, 0.5, [50.0, 50.0, 60.0, 60.0]),  # background
    ]
    shares = code.kinds_of_mistakes(found_of(code, rows), four_animals(), 2)
    assert torch.allclose(shares, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 1.0]]))


@holds(
    YOLO,
    {
        "more than half": ("same >= 0.5, same", "same > 0.5, same"),
        "more than a tenth": ("same >= 0.1, other", "same > 0.1, other"),
        "more than a tenth of another": ("other >= 0.1\n", "other > 0.1\n"),
    },
)
def test_kinds_at_the_limits(code):
    """An overlap of exactly 0.5 is enough, and one of exactly 0.1 is near."""
    rows = [
        (0, 0, 0.9, [0.0, 0.0, 10.0, 5.0]),  # correct
        (0, 0, 0.8, [0.0, 0.0, 10.0, 1.0]),  # localisation
        (0, 0, 0.7, [20.0, 0.0, 30.0, 1.0]),  # other animal
    ]
    shares = code.kinds_of_mistakes(found_of(code, rows), four_animals(), 2)
    assert torch.allclose(shares[0], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))


@holds(
    YOLO,
    {
        "scores without confidence": (
            "score = seen.confidence[..., None] * seen.classes",
            "score = 0 * seen.confidence[..., None] + seen.classes",
        ),
        "in training mode": (
            "with evaluating(model):\n            seen = model.read(model(part",
            "if True:\n            seen = model.read(model(part",
        ),
    },
)
def test_scores(code):
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


@holds(YOLO, {"windows that leave the image": ("torch.linspace(0, size - side,", "torch.linspace(0, size,")})
def test_windows(code):
    places = code.windows(128)
    assert places.min() >= 0 and places[:, 2:].max() == pytest.approx(128)
    sides = places[:, 2:] - places[:, :2]
    assert torch.allclose(sides[:, 0], sides[:, 1], atol=1e-3) and len(places) > 100
    assert places[0].tolist() == [0, 0, 128, 128]
    assert len({tuple(place) for place in places.round().tolist()}) == len(places)


@holds(
    YOLO,
    {
        "the surest box": (
            "return fit_in_cell(prediction, truth)[occupied].argmax(1)",
            "return prediction.confidence[occupied].argmax(1)",
        )
    },
)
def test_responsible_box(code):
    truth, seen = one_cell(code)
    which, objects = code.responsible_box(seen, truth)
    assert which.tolist() == [1] and torch.equal(objects, truth.box[0, 0, 1][None])


@holds(
    YOLO, {"contrast about zero": ("middle + (1 + change()) * (images - middle)", "(1 + change()) * images * images")}
)
def test_colours(code):
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


@holds(
    YOLO,
    {
        "flat photographs only": ("if rows != columns:", "if rows < columns:"),
        "high photographs only": ("if rows != columns:", "if rows > columns:"),
    },
)
def test_photographs_that_are_not_square_are_refused(code):
    model = code.small_yolo(code.Backbone()).eval()
    targets = {"boxes": torch.tensor([[[0.0, 0.0, 9.0, 9.0]]] * 2), "labels": torch.zeros(2, 1, dtype=torch.long)}
    for height, width, cells in ((64, 48, "4x3"), (48, 64, "3x4")):
        with pytest.raises(ValueError, match=f"{cells} cells: the paper's grid is square"):
            code.YoloLoss()(model, random_images(2, height, width).float(), targets)


def test_arms_of_the_study_differ_in_one_thing():
    assert all(len(arm) == (name != "YOLO") for name, arm in YOLO.ARMS.items() if not name.endswith(", three times"))
    assert YOLO.ARMS["without roots, three times"] == YOLO.ARMS["without roots"] | YOLO.ARMS["boxes count three times"]


# ------------------------------------------------------------------------------------- what is measured


class Oracle(nn.Module):
    """Puts out numbers that were made for it, image by image."""

    def __init__(self, code, seen):
        super().__init__()
        self.code, self.seen, self.boxes = code, seen, seen.box.shape[3]

    def forward(self, images):
        assert not self.training
        return torch.arange(len(images))

    def read(self, which):
        return self.code.Prediction(*(part[which] for part in self.seen))


@holds(
    YOLO,
    {
        "the less sure box": ("[occupied].max(-1)\n", "[occupied].min(-1)\n"),
        "the better box in both": ("found.append((surer,", "found.append((fits.amax(1),"),
        "the worse box": ("fits.amax(1), sure", "fits.amin(1), sure"),
        "sides for areas": ("[occupied][:, 2:].prod(1)", "[occupied][:, 2:].sum(1)"),
        "in training mode": (
            "with evaluating(model):\n            seen = model.read(model(data",
            "if True:\n            seen = model.read(model(data",
        ),
    },
)
def test_fit_of_cells(code):
    """Of one occupied cell, whose surer box fits worse: both overlaps, the surer one's confidence, the true area."""
    truth, seen = one_cell(code)
    box = code.decode(truth.box, 64)[0, 0, 1]
    targets = {"boxes": box[None, None], "labels": torch.tensor([[2]])}
    images = random_images(1, 64)
    data = dataset_of(images, targets, VOC_ANIMALS, test=code.Split(images, targets))
    surer, better, sure, areas = code.fit_of_cells(Oracle(code, seen), data)
    overlaps = ops.box_iou(code.decode(seen.box, 64.0)[0, 0, 1], box[None])[:, 0].tolist()
    assert surer.tolist() == pytest.approx(overlaps[:1], rel=1e-4)
    assert better.tolist() == pytest.approx(overlaps[1:], rel=1e-4) and overlaps[1] > overlaps[0]
    assert sure.tolist() == pytest.approx([0.8]) and areas.tolist() == pytest.approx([0.36 * 0.64], rel=1e-4)


@holds(
    YOLO,
    {
        "confidence alone": ("return (confidence + named).amax(1)", "return confidence.amax(1)"),
        "another animal": ("[torch.arange(len(labels)), :, labels]", "[torch.arange(len(labels)), :, 0]"),
        "the first box": ("F.logsigmoid(fives[..., 4::5]).amax(-1)", "F.logsigmoid(fives[..., 4])"),
    },
)
def test_score_of_an_animal(code):
    """The logarithm of the largest confidence times probability, over cells and boxes."""
    outputs, labels = noise(3, 2, 2, 15), torch.tensor([4, 0, 2])
    seen = code.Yolo(nn.Identity(), nn.Identity(), 2, 5, squash=True).read(outputs)
    scores = (seen.confidence[..., None] * seen.classes[..., None, :]).flatten(1, 3).amax(1)
    expected = scores[torch.arange(3), labels].log()
    assert torch.allclose(code.best_detection_of(outputs, labels), expected, atol=1e-5)


@holds(
    YOLO,
    {
        "another class's score": ("softmax(1)[:, ours]", "softmax(1)[:, :5]"),
        "in training mode": ("with evaluating(classifier):", "if True:"),
    },
)
def test_windows_are_named(code):
    """A classifier that sees red: its probability of the animals, in every window."""

    class Red(nn.Module):
        def forward(self, pictures):
            assert pictures.shape[1:] == (3, 64, 64) and not self.training
            logits = torch.zeros(len(pictures), len(code.naming.CLASSES))
            logits[:, code.naming.CLASSES.index("horse")] = 5 * (pictures[:, 0].mean((1, 2)) > 0)
            return logits

    images = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)[..., :64]
    images[:, 0, :, :32] = 255
    data = dataset_of(images, torch.zeros(1, dtype=torch.long), VOC_ANIMALS)
    boxes, scores = code.look_often(Red(), data, images)
    assert boxes.shape == (1, len(code.windows(64)), 4) and scores.shape == (*boxes.shape[:2], 5)
    horse = scores[0, :, VOC_ANIMALS.index("horse")]
    left, right = (boxes[0, :, 2] <= 32).nonzero()[:, 0], (boxes[0, :, 0] >= 32).nonzero()[:, 0]
    assert len(left) and len(right) and horse[left].min() > 2 * horse[right].max()


def test_one_training_of_the_study():
    """On a few photographs of the stand-in; the first stage stays as it is, to the bit."""
    data = YOLO.photographs(size=64, train=16, test=8)
    assert set(data.train.targets) == {"boxes", "labels"}
    measured = YOLO.train_arm(data, seed=0, epochs=1)
    assert {"mAP", "fit", "fit_small", "fit_large", "better", "confidence", *YOLO.KINDS} <= set(measured)
    model = YOLO.animal_network()
    before = {name: value.clone() for name, value in model.features.backbone.layer1.state_dict().items()}
    YOLO.train_detector(model, data, 1, YOLO.YoloLoss())
    after = model.features.backbone.layer1.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(YOLO.score(model, data)) == {"mAP"}


# ------------------------------------------------------------------------------------- the exercises' checks


@pytest.fixture(scope="module")
def checks():
    """The checks of exercises 3 and 4, with data as the chapter's cells have them."""
    collisions, responsible = from_cells(YOLO, "check_collisions", "check_responsible")
    boxes, labels = scene(images=200, most=6, size=128.0)
    targets = {"boxes": boxes, "labels": labels}
    collisions.__globals__.update(data=dataset_of(random_images(1, 8), targets), SIZE=128)
    return collisions, responsible


def cells_of(boxes, labels, size, grid, centre=None):
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 if centre is None else centre
    return (centre * grid / size).long().clamp(0, grid - 1)


def lost_by_sets(boxes, labels, size, grid):
    cells = cells_of(boxes, labels, size, grid)
    places = [(n, *cells[n, m].tolist()) for n in range(len(boxes)) for m in range(boxes.shape[1]) if labels[n, m] >= 0]
    return 1 - len(set(places)) / len(places)


def lost_scaled_first(boxes, labels, size, grid):
    """Corners scaled before their mean is taken: right, and rounded otherwise."""
    scaled = boxes / size * grid
    cells = ((scaled[..., :2] + scaled[..., 2:]) * 0.5).floor().long().clamp(0, grid - 1)
    number = (torch.arange(len(boxes))[:, None] * grid + cells[..., 1]) * grid + cells[..., 0]
    kept = number[labels >= 0]
    return 1 - kept.unique().numel() / kept.numel()


def lost_of_all_rows(boxes, labels, size, grid):
    return lost_by_sets(boxes, labels.abs(), size, grid)


def lost_in_one_image(boxes, labels, size, grid):
    cells = cells_of(boxes, labels, size, grid)[labels >= 0]
    return 1 - len(set(map(tuple, cells.tolist()))) / len(cells)


def lost_by_corners(boxes, labels, size, grid):
    return lost_by_sets(torch.cat([boxes[..., :2]] * 2, -1), labels, size, grid)


def lost_beyond_the_border(boxes, labels, size, grid):
    cells = ((boxes[..., :2] + boxes[..., 2:]) / 2 * grid / size).long()
    inside = (labels >= 0) & (cells < grid).all(-1)
    number = (torch.arange(len(boxes))[:, None] * grid + cells[..., 1]) * grid + cells[..., 0]
    return 1 - len(number[inside].unique()) / int((labels >= 0).sum())


@pytest.mark.parametrize("right", [lost_by_sets, lost_scaled_first])
def test_collisions_counted_in_other_ways_are_right(checks, right):
    checks[0](right)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lost_of_all_rows, "-1 is no object"),
        (lost_in_one_image, "different photographs"),
        (lost_by_corners, "on the data|share a cell"),
        (lost_beyond_the_border, "last cell"),
    ],
)
def test_wrong_counts_of_collisions_get_a_hint(checks, wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        checks[0](wrong)


def by_score(prediction, truth, score):
    """The box of every occupied cell for which `score(box, real)` is largest; both as x, y, w, h in cells."""
    occupied = truth.label >= 0
    boxes, objects = prediction.box[occupied], truth.box[occupied]
    return score(boxes, objects[:, None]).argmax(1), objects


def responsible_by_sides(prediction, truth):
    return by_score(prediction, truth, lambda box, real: -(box - real)[..., 2:].abs().sum(-1))


def responsible_by_centre(prediction, truth):
    return by_score(prediction, truth, lambda box, real: -(box - real)[..., :2].square().sum(-1))


def responsible_by_size(prediction, truth):
    return by_score(prediction, truth, lambda box, real: box[..., 2:].prod(-1) + 0 * real[..., 0])


def responsible_not_decoded(prediction, truth):
    """x and y are taken as shares of the photograph."""

    def score(box, real):
        corners = [torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1) for b in (box, real)]
        return YOLO.iou(corners[0], corners[1])[..., 0]

    return by_score(prediction, truth, score)


def responsible_everywhere(prediction, truth):
    fits = YOLO.fit_in_cell(prediction, truth)
    return fits.flatten(0, 2).argmax(1), truth.box.flatten(0, 2)


def responsible_in_one_go(prediction, truth):
    occupied = truth.label >= 0
    return YOLO.fit_in_cell(prediction, truth).argmax(-1)[occupied], truth.box[occupied]


def responsible_by_torchvision(prediction, truth):
    """The grid does not matter if both are moved alike: centres in cells, sides in cells."""
    occupied, grid = truth.label >= 0, truth.label.shape[1]
    corners = []
    for box in (prediction.box[occupied], truth.box[occupied][:, None]):
        half = box[..., 2:] * grid / 2
        corners.append(torch.cat([box[..., :2] - half, box[..., :2] + half], -1))
    fits = torch.stack([ops.box_iou(*pair)[:, 0] for pair in zip(*corners, strict=True)])
    return fits.argmax(1), truth.box[occupied]


@pytest.mark.parametrize("right", [responsible_in_one_go, responsible_by_torchvision])
def test_responsible_boxes_found_in_other_ways_are_right(checks, right):
    checks[1](right)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (responsible_by_sides, "alike sides"),
        (responsible_by_centre, "not those that overlap|You say"),
        (responsible_by_size, "You say"),
        (responsible_not_decoded, "x, y count in cells"),
        (responsible_everywhere, "two objects"),
    ],
)
def test_wrong_responsible_boxes_get_a_hint(checks, wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        checks[1](wrong)


@holds(YOLO, {"the loss is the usual one": ("epochs=26, loss=YoloLoss())", "epochs=26, loss=None)")})
def test_what_the_gallery_learns(code):
    calls = []
    history = train.History("toy", {}, [{"mAP": 0.2}, {"mAP": 0.4}])
    code.train_detector = lambda *given, epochs, loss: calls.append((*given, epochs, type(loss))) or history
    assert code.learn_animals("network", "photographs") == {"mAP": 0.4}
    assert calls == [("network", "photographs", 26, code.YoloLoss)]
