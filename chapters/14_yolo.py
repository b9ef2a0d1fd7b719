# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # YOLO: finding everything in one look
#
# | | |
# |:--|:--|
# | Paper | J. Redmon, S. Divvala, R. Girshick and A. Farhadi, *You Only Look Once: Unified, Real-Time Object Detection*, CVPR 2016 {cite}`redmon2016yolo` |
# | Claim | One network that looks at a photograph once can say where everything is and what it is, fast enough for video; it places its boxes less exactly than slower detectors, and sees fewer things that are not there. |
# | You need | [Chapter 1](01_vgg): convolutions and the training loop; [chapter 2](02_resnet): the residual block. |
# | Time | About an hour and a half to read. The last cell prints how long the computations took. |
#
# **You will be able to**
#
# - turn a photograph's boxes into the numbers that a network has to predict, and back again without loss;
# - write the five terms of YOLO's loss, say which boxes each of them touches, and compute the gradient that the square
#   root is there for;
# - compute average precision in three ways, and sort a detector's mistakes into kinds.
#
# **Before you read on, guess.** A detector's 100 most confident boxes for *dog* contain 65 that are right. What is wrong
# with most of the other 35: is there no animal at all, is it another animal, or is it a dog and the box does not fit?
# Write your answer down; the paper has one, and so will we.

# %% [markdown]
# ## Setup

# %% jupyter={"source_hidden": true} tags=["hide-input"]
# Only on Colab, which starts without the course: fetch it. Everywhere else this cell does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("helpers") is None:
    repository = "https://github.com/cnn-papers/cnn-papers"
    subprocess.run(["git", "clone", "-q", "--depth=1", repository, "course"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-e", "course"], check=True
    )
    sys.path.insert(0, "course")

# %% tags=["model"]
import importlib.util
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import ops

from helpers import cam, inspect, plot, train
from helpers.backbone import BACKBONE, CLASSES, Backbone
from helpers.course import headline
from helpers.data import Split, voc_animals
from helpers.exercise import attempt, verify
from helpers.interactive import Explorable
from helpers.settings import pick
from helpers.study import Study
from helpers.table import Table


# %% tags=["model"]
def photographs(size=128, train=None, test=None):
    """VOC's animals with their boxes and labels; without the masks, which this chapter does not use."""
    data = voc_animals(size=size, train=train, test=test)

    def boxes_only(split):
        return Split(split.images, {name: split.targets[name] for name in ("boxes", "labels")})

    return replace(data, train=boxes_only(data.train), test=boxes_only(data.test))


# %%
started = time.perf_counter()
train.set_seed(0)
data = photographs(train=pick(full=None, quick=96), test=pick(full=None, quick=48))
SIZE = data.train.images.shape[-1]  # px

# %% tags=["model"]
def overlap(first, second):
    """Intersection over union of boxes (..., n, 4) with boxes (..., m, 4): (..., n, m). 0 where both are empty."""
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    union = areas[0][..., :, None] + areas[1][..., None, :] - shared
    return shared / union.clamp_min(1e-12)


# %% tags=["model"]
class Truth(NamedTuple):
    """What is in each cell: box (N, S, S, 4) as x, y, w, h; label (N, S, S), -1 where no centre lies."""

    box: torch.Tensor
    label: torch.Tensor


def encode(boxes, labels, size, grid):
    """Boxes in pixels (N, M, 4) and labels (N, M), -1 for none, as the Truth of a grid of `grid` x `grid` cells.

    x, y: the centre's place within its cell; w, h: the sides relative to the image (section 2). A cell has room for
    one object; of several the largest stays.
    """
    n = len(boxes)
    corners = boxes / size
    centre, sides = (corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]
    cell = (centre * grid).long().clamp(0, grid - 1)
    coded = torch.cat([centre * grid - cell, sides], 2)
    box = corners.new_zeros(n, grid, grid, 4)
    label = labels.new_full((n, grid, grid), -1)
    small_first = torch.where(labels >= 0, sides.prod(2), -1).argsort(dim=1, stable=True)
    for column in small_first.T:  # one object of every image at a time; a later one overwrites
        image = (labels.gather(1, column[:, None])[:, 0] >= 0).nonzero()[:, 0]
        column, (x, y) = column[image], cell[image, column[image]].T
        box[image, y, x] = coded[image, column]
        label[image, y, x] = labels[image, column]
    return Truth(box, label)


def decode(box, size):
    """Boxes in cells, (N, S, S, ..., 4) as x, y, w, h, to corners in pixels of the same shape."""
    grid = box.shape[1]
    steps = torch.arange(grid, device=box.device)
    cell = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)  # column, row
    cell = cell.view(grid, grid, *[1] * (box.ndim - 4), 2)
    centre, half = (box[..., :2] + cell) / grid, box[..., 2:] / 2
    return size * torch.cat([centre - half, centre + half], -1)


# %% tags=["model"]
def suppress(boxes, scores, threshold):
    """Non-maximum suppression in many groups at once: which boxes stay, bool (G, K).

    boxes (G, K, 4), scores (G, K). From the highest score down, a box that stays removes all later ones of its group
    that overlap it by more than `threshold`. Of equal scores the first comes first.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    too_close = overlap(boxes, boxes) > threshold
    stays = torch.ones_like(order, dtype=torch.bool)
    for rank in range(stays.shape[1] - 1):
        stays[:, rank + 1 :] &= ~(stays[:, rank, None] & too_close[:, rank, rank + 1 :])
    return torch.zeros_like(stays).scatter(1, order, stays)


# %% tags=["model"]
class Prediction(NamedTuple):
    """What a network says: box (N, S, S, B, 4), confidence (N, S, S, B), classes (N, S, S, C)."""

    box: torch.Tensor
    confidence: torch.Tensor
    classes: torch.Tensor


class Yolo(nn.Module):
    """Images to a tensor (N, S, S, 5B + C): per cell B times x, y, w, h, confidence, then C classes (section 2).

    features: images to a map. head: the map to (N, 5B + C, S, S).
    squash: read the numbers through a sigmoid, the classes through a softmax; the paper's are linear.
    """

    def __init__(self, features, head, boxes, classes, squash):
        super().__init__()
        self.features, self.head = features, head
        self.boxes, self.classes, self.squash = boxes, classes, squash

    def forward(self, images):
        return self.head(self.features(images)).permute(0, 2, 3, 1)

    def read(self, output):
        """The output (N, S, S, 5B + C) as a Prediction."""
        fives, classes = output.split([5 * self.boxes, self.classes], -1)
        fives = fives.unflatten(-1, (self.boxes, 5))
        if self.squash:
            fives, classes = fives.sigmoid(), classes.softmax(-1)
            return Prediction(fives[..., :4], fives[..., 4], classes)
        # section 2.2: the network predicts the roots of width and height
        box = torch.cat([fives[..., :2], fives[..., 2:4].square()], -1)
        return Prediction(box, fives[..., 4], classes)


# %% tags=["model"]
PAPER_LAYERS = [  # figure 3: (kernel, channels), "pool", and a stride where it is 2
    (7, 64, 2), "pool",
    (3, 192), "pool",
    (1, 128), (3, 256), (1, 256), (3, 512), "pool",
    *[(1, 256), (3, 512)] * 4, (1, 512), (3, 1024), "pool",
    *[(1, 512), (3, 1024)] * 2, (3, 1024), (3, 1024, 2),
    (3, 1024), (3, 1024),
]  # fmt: skip


def paper_yolo(grid=7, boxes=2, classes=20):
    """The network of figure 3: images (N, 3, 448, 448) to (N, 7, 7, 30). Convolutions with bias, no normalisation."""
    layers, before = [], 3
    for layer in PAPER_LAYERS:
        if layer == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            kernel, channels, stride = (*layer, 1)[:3]
            layers += [nn.Conv2d(before, channels, kernel, stride, kernel // 2), nn.LeakyReLU(0.1)]
            before = channels
    outputs = 5 * boxes + classes
    head = nn.Sequential(
        nn.Flatten(), nn.Linear(before * grid**2, 4096), nn.LeakyReLU(0.1), nn.Dropout(0.5),
        nn.Linear(4096, outputs * grid**2), nn.Unflatten(1, (outputs, grid, grid)),
    )  # fmt: skip
    return Yolo(nn.Sequential(*layers), head, boxes, classes, squash=False)


# %% tags=["model"]
class TwoStages(nn.Module):
    """The last two maps of a backbone as one: (N, 128 + 256, H/16, W/16); the coarser one is enlarged."""

    def __init__(self, backbone):
        super().__init__()
        backbone.fc = nn.Identity()  # it named pictures; nobody needs it now
        self.backbone = backbone

    def forward(self, images):
        _, _, c4, c5 = self.backbone.features(images)
        return torch.cat([c4, F.interpolate(c5, size=c4.shape[2:])], 1)


def small_yolo(backbone, boxes=2, classes=5, width=128):
    """A pretrained or new Backbone with two convolutions on top: images (N, 3, H, W) to (N, H/16, W/16, 5B + C)."""

    def layer(before, kernel):
        convolution = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight)
        return [convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.1)]

    last = nn.Conv2d(width, 5 * boxes + classes, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    last.bias.data[4 : 5 * boxes : 5] = -3  # nearly every cell is empty, so start with little confidence
    head = nn.Sequential(*layer(128 + 256, 1), *layer(width, 3), last)
    return Yolo(TwoStages(backbone), head, boxes, classes, squash=True)

# %% tags=["model"]
@dataclass
class YoloLoss:
    """The five terms of section 2.2, each a sum over cells and boxes, divided by the number of images.

    position, size: weights of where and how large a box is (the paper's coord, 5). empty: weight of confidence where
    no object is (its noobj, 0.5). root: compare the roots of width and height.
    entropy: logarithms in place of squares for confidence and class.
    Called with (model, images, targets) it gives the weighted sum, and keeps the terms in `history`.
    """

    coord: float = 5.0
    empty: float = 0.5
    root: bool = True
    entropy: bool = False

    def __post_init__(self):
        self.history = []

    def terms(self, prediction, truth):
        """Five scalars by name, weighted. prediction: a Prediction, truth: a Truth."""
        occupied = truth.label >= 0  # (N, S, S)
        with torch.no_grad():  # the target of the confidence moves, but no gradient flows through it
            fits = overlap(decode(prediction.box, 1.0), decode(truth.box, 1.0)[:, :, :, None])[..., 0]
            best = F.one_hot(fits.argmax(-1), fits.shape[-1]).bool()
            responsible = best & occupied[..., None]  # (N, S, S, B)
        box, true_box = prediction.box[responsible], truth.box[occupied]
        sides, true_sides = box[:, 2:], true_box[:, 2:]
        if self.root:
            sides, true_sides = (sides + 1e-9).sqrt(), true_sides.sqrt()
        classes = prediction.classes[occupied]
        labels = F.one_hot(truth.label[occupied], classes.shape[1]).to(classes.dtype)
        if self.entropy:
            confidence = F.binary_cross_entropy(prediction.confidence, fits * responsible, reduction="none")
            wrong_class = -(labels * (classes + 1e-9).log()).sum()
        else:
            confidence = (prediction.confidence - fits * responsible).square()
            wrong_class = (classes - labels).square().sum()
        found = {
            "position": self.coord * (box[:, :2] - true_box[:, :2]).square().sum(),
            "size": self.coord * (sides - true_sides).square().sum(),
            "confidence, object": confidence[responsible].sum(),
            "confidence, none": self.empty * confidence[~responsible].sum(),
            "class": wrong_class,
        }
        return {name: value / len(truth.label) for name, value in found.items()}

    def __call__(self, model, images, targets):
        output = model(images)
        truth = encode(targets["boxes"], targets["labels"], images.shape[-1], output.shape[1])
        terms = self.terms(model.read(output), truth)
        self.history.append({name: float(value.detach()) for name, value in terms.items()})
        return sum(terms.values())


# %% tags=["model"]
class Found(NamedTuple):
    """Detections, the surest first: image, label and score (D,), box (D, 4) in pixels."""

    image: torch.Tensor
    label: torch.Tensor
    score: torch.Tensor
    box: torch.Tensor

    def where(self, chosen):
        """Those that a mask or index picks."""
        return Found(*(column[chosen] for column in self))


@torch.inference_mode()
def look(model, data, images):
    """Every box of every image in pixels (N, K, 4), and its score for every class (N, K, C), equation 1."""
    model.eval()
    device, size = next(model.parameters()).device, images.shape[-1]
    boxes, scores = [], []
    for part in images.split(128):
        part = data.normalize(part.to(device)).contiguous(memory_format=torch.channels_last)
        seen = model.read(model(part))
        boxes.append(decode(seen.box, float(size)).clamp(0, size).flatten(1, 3).cpu())
        score = seen.confidence[..., None] * seen.classes[..., None, :]
        scores.append(score.flatten(1, 3).cpu())
    return torch.cat(boxes), torch.cat(scores)


def detections(boxes, scores, threshold=0.5, least=0.005):
    """The Found of boxes (N, K, 4) with scores (N, K, C): class by class, those that survive suppression."""
    n, k, classes = scores.shape
    groups = boxes[:, None].expand(-1, classes, -1, -1).reshape(n * classes, k, 4)
    by_class = scores.transpose(1, 2).reshape(n * classes, k)
    stays = suppress(groups, by_class, threshold) & (by_class >= least)
    image, label, box = stays.view(n, classes, k).nonzero(as_tuple=True)
    found = Found(image, label, scores[image, box, label], boxes[image, box])
    return found.where(found.score.argsort(descending=True, stable=True))


# %% tags=["model"]
def judge(found, truth, threshold=0.5):
    """VOC's rule: which detections are right, and which do not count, bool (D,) each.

    A detection belongs to the object of its class that it overlaps most. It is right if it overlaps it by at least
    `threshold` and no surer detection has claimed that object; a second one is wrong. What belongs to an object
    marked in truth["difficult"], if there is such a mask, does not count.
    """
    labels, boxes = truth["labels"], truth["boxes"]
    difficult = truth.get("difficult", torch.zeros_like(labels, dtype=torch.bool))
    fits = overlap(found.box[:, None], boxes[found.image])[:, 0]  # (D, M)
    fits = torch.where(labels[found.image] == found.label[:, None], fits, -1)
    fit, place = fits.max(1)
    close = fit >= threshold
    ignored = close & difficult[found.image, place]
    # the surest detection comes first, so the object goes to the lowest rank
    ranks = torch.arange(len(fit))
    object_number = torch.where(close, found.image * labels.shape[1] + place, labels.numel())
    first = torch.full((labels.numel() + 1,), len(fit)).scatter_reduce(0, object_number, ranks, "amin")
    return close & ~ignored & (first[object_number] == ranks), ignored


def precision_recall(right, positives):
    """Precision and recall after each detection, (D,) each; right (D,) bool, the surest detection first."""
    hits = right.double().cumsum(0)
    return hits / torch.arange(1, len(right) + 1), hits / max(positives, 1)


def average_precision(precision, recall, rule="11 points"):
    """The area under a precision-recall curve by one of three rules: "11 points", "area", "101 points".

    11 points: VOC 2007, the mean over recalls 0, 0.1 ... 1 of the best precision at this recall or beyond. area: VOC
    from 2010, all of the area under that best precision. 101 points: COCO, recalls 0, 0.01 ... 1.
    """
    if rule not in ("11 points", "area", "101 points"):
        raise ValueError(f'rule {rule!r} is none of "11 points", "area", "101 points".')
    if len(precision) == 0:
        return 0.0
    best = precision.flip(0).cummax(0).values.flip(0)
    if rule == "area":
        return float((recall.diff(prepend=recall.new_zeros(1)) * best).sum())
    points = torch.linspace(0, 1, int(rule.split()[0]), dtype=recall.dtype)
    place = torch.searchsorted(recall.contiguous(), points - 1e-9)
    return float(torch.cat([best, best.new_zeros(1)])[place].mean())


def curves(found, truth, classes, threshold=0.5):
    """Per class a pair (precision, recall)."""
    right, ignored = judge(found, truth, threshold)
    counted = truth["labels"].clone()
    if "difficult" in truth:
        counted[truth["difficult"]] = -1
    pairs = []
    for label in range(classes):
        mine = (found.label == label) & ~ignored
        pairs.append(precision_recall(right[mine], int((counted == label).sum())))
    return pairs


def mean_average_precision(found, truth, classes, rule="11 points", threshold=0.5):
    """The mean of the classes' average precisions."""
    pairs = curves(found, truth, classes, threshold)
    return sum(average_precision(*pair, rule) for pair in pairs) / classes


# %% tags=["model"]
KINDS = ("correct", "localisation", "other animal", "background")


def kinds_of_mistakes(found, truth, classes):
    """Shares of KINDS among each class's surest N detections, N its number of objects: (classes, 4) (section 4.2)."""
    labels, boxes = truth["labels"], truth["boxes"]
    shares = torch.zeros(classes, len(KINDS))
    for label in range(classes):
        top = found.where(found.label == label)
        top = top.where(slice(int((labels == label).sum())))
        fits = overlap(top.box[:, None], boxes[top.image])[:, 0]
        here = labels[top.image]
        same = torch.where(here == label, fits, 0).amax(1)
        other = torch.where((here >= 0) & (here != label), fits, 0).amax(1)
        correct, near, mixed = same >= 0.5, same >= 0.1, other >= 0.1
        kind = torch.where(correct, 0, torch.where(near, 1, torch.where(mixed, 2, 3)))
        shares[label] = torch.bincount(kind, minlength=4) / max(len(kind), 1)
    return shares


# %% tags=["model"]
@dataclass(frozen=True)
class AugmentPhotograph:
    """A random window and flip of each photograph with its boxes, then its colours (section 2.2, exposure and saturation).

    zoom: side of the window relative to the photograph. colour: the largest change of brightness, contrast and
    saturation.
    """

    zoom: tuple = (0.5, 1.4)
    colour: float = 0.4

    def __call__(self, images, targets, generator):
        images, targets = train.AugmentScene(zoom=self.zoom)(images, targets, generator)

        def change():
            draw = torch.rand(len(images), 1, 1, 1, generator=generator)
            return self.colour * (2 * draw - 1).to(images.device)

        grey = images.mean(1, keepdim=True)
        images = grey + (1 + change()) * (images - grey)  # saturation
        middle = images.mean((1, 2, 3), keepdim=True)
        images = middle + (1 + change()) * (images - middle)  # contrast
        return images + change(), targets  # brightness


def score(model, data):
    """What `train.fit` evaluates: mAP at 0.5 by VOC's 11 points."""
    found = detections(*look(model, data, data.test.images))
    return {"mAP": mean_average_precision(found, data.test.targets, len(data.classes))}
