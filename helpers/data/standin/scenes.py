"""Scenes with boxes and masks that stand in for the animals of PASCAL VOC 2012.

A scene is laid out from back to front: up to three pieces of clutter, one to four animals, sometimes one piece of
clutter in front. Every piece of a VOC class is an instance, with the pixels where it is the topmost; boxes and masks
follow from those pixels, so they are exact.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from helpers.data.classes import VOC_ANIMALS, VOC_CLASSES

from .backgrounds import background
from .draw import CIFAR10, Look, Pose, check, photograph, shadow
from .rng import Random
from .sprites import STYLES, choose, manifest, neutral, pool, sample

VOID = 255
MOST_ANIMALS, MOST_CLUTTER = 4, 3
TRIES = 10
BATCH = 16  # scenes drawn at once

RECIPE = replace(
    CIFAR10,
    distortion=0.5,
    rotation=0.25,
    any_hue=0.3,
    grey=0.08,
    silhouette=0,
    saturation=(0.45, 1.25),
    contrast=(0.7, 1.2),
    brightness=(-0.12, 0.12),
    texture=0.2,
    light=0.4,
    fade=0.06,
    blur=0.2,
    noise=0.05,
)

_SPRITE = {"aeroplane": "airplane", "boat": "ship", "car": "automobile"}  # where CIFAR-10's names differ
VOC_NAME = {_SPRITE.get(name, name): name for name in VOC_CLASSES}
OTHER_CLASSES = (*(sprite for sprite in VOC_NAME if sprite not in VOC_ANIMALS), "deer", "frog", "truck")


@dataclass(frozen=True)
class Thing:
    """One visible object. box: (left, top, right, bottom) in pixels, right and bottom exclusive."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool  # part of it lies outside the frame
    occluded: bool  # something stands in front of part of it
    difficult: bool  # little of it is to be seen


class Scene(NamedTuple):
    """One drawn scene of S x S pixels, with every visible object of a VOC class."""

    image: np.ndarray  # uint8 (S, S, 3)
    things: list[Thing]
    instances: np.ndarray  # uint8 (S, S): 0 background, k for things[k - 1]
    mask: np.ndarray  # uint8 (S, S): 0 background, 1 + position in VOC_CLASSES, 255 where instances meet


class Layer(NamedTuple):
    """One piece of a scene, for a batch of scenes. Places and sizes are fractions of the frame, from its corner."""

    present: np.ndarray  # bool (N,)
    drawing: np.ndarray  # int64 (N,)
    size: np.ndarray  # (N, tries): the long side
    x: np.ndarray  # (N, tries): the centre
    y: np.ndarray
    opacity: np.ndarray  # (N,)
    shade: np.ndarray  # (N,): strength of the shadow
    pose: Pose
    look: Look


def _layer(random, present, drawing, size, x, y, recipe=RECIPE):
    return Layer(
        present=present,
        drawing=drawing,
        size=size,
        x=x,
        y=y,
        opacity=random.uniform(1 - recipe.fade, 1),
        shade=random.uniform(0.1, 0.5),
        pose=Pose.draw(random.fork("pose"), recipe.distortion, recipe.rotation),
        look=Look.draw(random.fork("look"), recipe),
    )


def _clutter(random, present, style, in_front):
    """Neutral things; behind the animals also other classes, 40 % of the time. One try."""
    plain, other = neutral(style), pool(OTHER_CLASSES, STYLES[style])
    drawing = plain[random.integers(len(plain))]
    if not in_front:
        drawing = np.where(random.chance(0.4), other[random.integers(len(other))], drawing)
    size = random.uniform(0.1, 0.3 if in_front else 0.4, (1,))
    y = random.uniform(0.5 if in_front else 0.1, 1, (1,))
    return _layer(random, present, drawing, size, random.uniform(0, 1, (1,)), y)


def _animal(random, present, style, count, ground):
    """One of `count` animals (N,), above the `ground` level (N, 1); ten places to try."""
    drawing = choose(random, random.integers(len(VOC_ANIMALS)), VOC_ANIMALS, STYLES[style])
    smallest, tries = 0.25, (TRIES,)
    largest = 0.85 * np.float32([1, 0.85, 0.7, 0.6])[count - 1][:, None]
    size = smallest * np.exp(random.uniform(0, 1, tries) * np.log(largest / smallest))
    x, y = random.uniform(0.12, 0.88, tries), random.uniform(0.15, 0.85, tries)
    # What stands nearer on the same ground looks larger and stands lower in the picture.
    nearness = (size - smallest) / (largest - smallest)
    standing = np.clip(ground + 0.1 + 0.45 * nearness - 0.15 * size, 0.15, 0.9)
    y = np.where(random.chance(0.6, tries), standing, y)
    x[:, -1] = y[:, -1] = 0.5  # the last resort
    return _layer(random, present, drawing, size, x, y)


def _plan(random, style):
    """All layers of a batch of scenes, back to front: (clutter behind, animals, clutter in front)."""
    clutter_count = random.integers(MOST_CLUTTER + 1)
    count = 1 + np.searchsorted([0.35, 0.65, 0.85], random.uniform(), side="right")
    ground = random.uniform(0.35, 0.6, (1,))
    behind = [
        _clutter(random.fork(f"behind {k}"), clutter_count > k, style, in_front=False) for k in range(MOST_CLUTTER)
    ]
    animals = [_animal(random.fork(f"animal {k}"), count > k, style, count, ground) for k in range(MOST_ANIMALS)]
    return behind, animals, _clutter(random.fork("front"), random.chance(0.3), style, in_front=True)


def extent(mask):
    """The rows and columns (two slices) that hold all True of a 2-d mask; None if it has no True."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class Patch(NamedTuple):
    """A drawing that has been placed: the part of it inside the frame."""

    area: tuple[slice, slice]  # rows and columns of the frame
    rgba: np.ndarray  # (1, height, width, 4)
    u: np.ndarray  # (1, height, width)
    v: np.ndarray
    solid: np.ndarray  # bool (height, width): the pixels that count as the object
    inside: float  # share of the drawing inside the frame

    @property
    def whole(self):
        """How many pixels the object would have with all of it inside the frame."""
        return self.solid.sum() / self.inside


def _place(layer, scene, attempt, frame):
    """The patch of a layer in scene number `scene` of the batch; None when nothing of it is inside the frame."""
    one = slice(scene, scene + 1)
    size, x, y = (float(field[scene, attempt]) for field in (layer.size, layer.x, layer.y))
    reach = 0.85 * size  # a turned and distorted drawing stays within 1.7 times its long side
    left, top, side = round((x - reach) * frame), round((y - reach) * frame), round(2 * reach * frame) + 1
    line = (np.arange(side, dtype=np.float32) + 0.5) / frame
    pose = Pose(*(field[one] for field in layer.pose))
    u, v = pose.coordinates(line + (left / frame - x), line[:, None] + (top / frame - y), np.float32(size))

    rows, columns = extent((abs(u[0]) < 0.53) & (abs(v[0]) < 0.53))
    reserve = _shadow_offset(frame) + 2  # room for the shadow
    rows, columns = slice(rows.start, rows.stop + reserve), slice(columns.start, columns.stop + reserve)
    u, v = u[:, rows, columns], v[:, rows, columns]
    left, top = left + columns.start, top + rows.start
    rgba = sample(layer.drawing[one], u, v, np.array([size * frame]))
    total = float(rgba[..., 3].sum())

    rows, columns = slice(max(0, -top), max(0, frame - top)), slice(max(0, -left), max(0, frame - left))
    rgba = rgba[:, rows, columns]
    solid = rgba[0, :, :, 3] >= 0.5
    if not solid.any():
        return None
    top, left = max(top, 0), max(left, 0)
    area = slice(top, top + solid.shape[0]), slice(left, left + solid.shape[1])
    return Patch(area, rgba, u[:, rows, columns], v[:, rows, columns], solid, float(rgba[..., 3].sum()) / total)


def _shadow_offset(frame):
    return max(1, round(0.03 * frame))


class _Canvas:
    """One scene in the making."""

    def __init__(self, picture):
        self.picture = picture  # float32 (S, S, 3), painted in place
        self.instances = np.zeros(picture.shape[:2], np.uint8)
        self.names, self.patches = [], []  # of instances 1, 2, ...

    def visible(self, instances=None):
        """Visible pixels of every instance: (instances,)."""
        instances = self.instances if instances is None else instances
        return np.bincount(instances.reshape(-1), minlength=len(self.names) + 1)[1:]

    def leaves_visible(self, patch, share):
        """Whether every animal would keep this share of its pixels in sight with `patch` in front."""
        animals = [k for k, name in enumerate(self.names) if name in VOC_ANIMALS]
        left = self.visible() - self.visible(self.instances[patch.area][patch.solid])
        return all(left[k] >= share * self.patches[k].whole for k in animals)

    def put(self, patch, layer, scene):
        """Paint a patch in front of everything."""
        one = slice(scene, scene + 1)
        frame, alpha = len(self.picture), patch.rgba[..., 3:]
        look = Look(*(field[one] for field in layer.look))
        offset = np.array([_shadow_offset(frame)])
        region = self.picture[patch.area]
        region *= 1 - layer.shade[scene] * shadow(alpha, offset, offset, passes=3)[0]
        region *= 1 - layer.opacity[scene] * alpha[0]
        region += layer.opacity[scene] * look.apply(patch.rgba, patch.u, patch.v)[0]
        name = VOC_NAME.get(manifest()["sprites"][layer.drawing[scene]][0])
        if name is not None:
            self.names.append(name)
            self.patches.append(patch)
        self.instances[patch.area][patch.solid] = 0 if name is None else len(self.names)

    def things(self):
        """The instances that can be seen, and the map of instances, numbered accordingly."""
        frame, things = len(self.picture), []
        number = np.zeros(len(self.names) + 1, np.uint8)
        for k, (name, patch, visible) in enumerate(zip(self.names, self.patches, self.visible(), strict=True)):
            if visible == 0:
                continue
            rows, columns = extent(self.instances == k + 1)
            box = tuple(int(edge) for edge in (columns.start, rows.start, columns.stop, rows.stop))
            shortest = min(box[2] - box[0], box[3] - box[1])
            things.append(
                Thing(
                    name=name,
                    box=box,
                    truncated=patch.inside < 0.95,
                    occluded=bool(visible < 0.95 * patch.solid.sum()),
                    difficult=bool(visible < 0.45 * patch.whole or shortest < 0.08 * frame),
                )
            )
            number[k + 1] = len(things)
        return things, number[self.instances]


def _compose(picture, behind, animals, front, scene):
    """Paint scene number `scene` of a batch. picture: float32 (S, S, 3), a background, painted in place."""
    canvas, frame = _Canvas(picture), len(picture)
    for layer in behind:
        if layer.present[scene] and (patch := _place(layer, scene, 0, frame)):
            canvas.put(patch, layer, scene)
    for layer in animals:
        for attempt in range(TRIES if layer.present[scene] else 0):
            patch = _place(layer, scene, attempt, frame)
            seen = patch and patch.inside >= 0.55 and patch.solid.sum() >= 0.0025 * frame**2
            if seen and canvas.leaves_visible(patch, 0.6):
                canvas.put(patch, layer, scene)
                break
    if front.present[scene]:
        patch = _place(front, scene, 0, frame)
        if patch and canvas.leaves_visible(patch, 0.4):
            canvas.put(patch, front, scene)
    return canvas.things()


def _class_mask(things, instances):
    """VOC's mask: 1 + position in VOC_CLASSES, 255 on both sides of every border between instances."""
    value = np.array([0, *(1 + VOC_CLASSES.index(thing.name) for thing in things)], np.uint8)
    border = np.zeros(instances.shape, bool)
    for one, other in (
        ((slice(1, None), slice(None)), (slice(-1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(-1))),
    ):
        differ = instances[one] != instances[other]
        border[one] |= differ
        border[other] |= differ
    return np.where(border, np.uint8(VOID), value[instances])


def draw_scenes(index, split, style, seed, size):
    """Scenes number `index` (N,) of a split, size x size pixels: list of Scene."""
    random = Random(seed, f"voc/{split}/{style}", index)
    pictures = background(random.fork("background"), size, outdoors=0.35)
    plan = _plan(random.fork("plan"), style)
    composed = [_compose(picture, *plan, scene) for scene, picture in enumerate(pictures)]
    images = photograph(random.fork("camera"), pictures, RECIPE)
    return [
        Scene(image, things, instances, _class_mask(things, instances))
        for image, (things, instances) in zip(images, composed, strict=True)
    ]


def scenes(count, split, style="train", seed=0, size=128):
    """The first `count` scenes of a split, one after the other."""
    for start in range(0, count, BATCH):
        yield from draw_scenes(np.arange(start, min(start + BATCH, count)), split, style, seed, size)


def _arrays(count, split, style, seed, size):
    # Where VOC's 20 classes become background and five animals.
    value = np.zeros(256, np.uint8)
    value[[1 + VOC_CLASSES.index(name) for name in VOC_ANIMALS]] = np.arange(1, len(VOC_ANIMALS) + 1)
    value[VOID] = VOID
    out = {
        "images": np.empty((count, 3, size, size), np.uint8),
        "boxes": np.zeros((count, MOST_ANIMALS, 4), np.float32),
        "labels": np.full((count, MOST_ANIMALS), -1, np.int64),
        "masks": np.empty((count, size, size), np.uint8),
        "has_mask": np.ones(count, bool),
        "has_person": np.zeros(count, bool),
    }
    for i, scene in enumerate(scenes(count, split, style, seed, size)):
        animals = [thing for thing in scene.things if thing.name in VOC_ANIMALS]
        out["images"][i] = scene.image.transpose(2, 0, 1)
        out["boxes"][i, : len(animals)] = [thing.box for thing in animals]
        out["labels"][i, : len(animals)] = [VOC_ANIMALS.index(thing.name) for thing in animals]
        out["masks"][i] = value[scene.mask]
        out["has_person"][i] = any(thing.name == "person" for thing in scene.things)
    return out


def voc_animals(n_train, n_val, size=128, seed=0, *, test_style="train"):
    """Drawn scenes in the shape of PASCAL VOC's images with a cat, cow, dog, horse or sheep.

    n_train, n_val: numbers of scenes; scene i depends on seed and size alone. size: side in pixels, at least 32.
    test_style: whose drawings the validation scenes show, as in `cifar10`.

    Returns (train, val), two dicts of arrays with first axis N:
    images uint8 (N, 3, size, size); boxes float32 (N, 4, 4), x0 y0 x1 y1 in pixels, x1 and y1 exclusive, 0 where there
    is no animal; labels int64 (N, 4), positions in VOC_ANIMALS, -1 where there is none; masks uint8 (N, size, size), 0
    background, 1 + label, 255 where objects of any VOC class meet something else; has_mask bool (N,), all True;
    has_person bool (N,). Boxes are the tight extents of the visible pixels. Every scene has at least one animal.
    Raises ValueError for a negative number, a size below 32 or an unknown style.
    """
    check(seed, test_style, n_train=n_train, n_val=n_val)
    if size < 32:
        raise ValueError(f"size={size} is too small for scenes with several animals. Use 32 or more.")
    return _arrays(n_train, "train", "train", seed, size), _arrays(n_val, "val", test_style, seed, size)
