"""From a drawing to a picture: pose, colours and light, shadow, camera; and the images that stand in for CIFAR-10.

Arrays are float32 (N, height, width, channels) in 0 ... 1. Parameters are drawn for a whole batch at once and kept in
tuples of arrays whose first axis is the batch, so that the same functions serve a batch of small images and one
object in one scene.
"""

import math
import operator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from helpers.data.classes import CIFAR10_CLASSES

from .backgrounds import (
    COLOUR,
    SCALAR,
    TILE,
    TURN,
    background,
    betray_class,
    colour,
    grid,
    hsv,
    mix,
    noise,
    textures,
    window,
)
from .rng import Random
from .sprites import STYLES, choose, neutral, sample

SIZE = 32
BATCH = 200  # images drawn at once: large enough to amortise Python, small enough for the processor's cache
CLUTTERED, OCCLUDED = 0.2, 0.06  # shares of images with something else at the rim, or in front

TO_YIQ = np.float32([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
FROM_YIQ = np.linalg.inv(TO_YIQ)


@dataclass(frozen=True)
class Recipe:
    """How much everything varies: the difficulty of the task. Lengths are fractions of the frame."""

    distortion: float  # scale of aspect, shear, perspective and bending; 1 is strong
    rotation: float  # largest angle, in radians
    any_hue: float  # probability that the hue is turned by any angle
    grey: float  # probability that an object has no colour
    silhouette: float  # probability that an object has one colour
    saturation: tuple[float, float]
    contrast: tuple[float, float]
    brightness: tuple[float, float]
    texture: float  # strongest noise on an object, relative
    light: float  # strongest shading across an object, relative
    fade: float  # largest transparency
    blur: float  # largest weight of a neighbouring pixel in the camera's blur
    noise: float  # about the largest standard deviation of the camera's noise


CIFAR10 = Recipe(
    distortion=0.45,
    rotation=0.22,
    any_hue=0.35,
    grey=0.1,
    silhouette=0.02,
    saturation=(0.3, 1.25),
    contrast=(0.55, 1.25),
    brightness=(-0.25, 0.2),
    texture=0.12,
    light=0.33,
    fade=0.04,
    blur=0.16,
    noise=0.045,
)


class Pose(NamedTuple):
    """How drawings lie in a picture. Every field has shape (N, 1, 1); signs of `flip` mirror left and right."""

    flip: np.ndarray
    rotation: np.ndarray
    aspect: np.ndarray
    shear: np.ndarray
    tilt_x: np.ndarray
    tilt_y: np.ndarray
    bend: np.ndarray
    bend_frequency: np.ndarray
    bend_phase: np.ndarray

    @classmethod
    def draw(cls, random, distortion, rotation):
        field = (1, 1)
        return cls(
            flip=np.where(random.chance(0.5, field), np.float32(-1), np.float32(1)),
            rotation=np.clip(random.normal(0.5, field), -1, 1) * rotation,
            aspect=np.exp(random.uniform(-0.22, 0.22, field) * distortion),
            shear=random.uniform(-0.25, 0.25, field) * distortion,
            tilt_x=random.uniform(-0.5, 0.5, field) * distortion,
            tilt_y=random.uniform(-0.5, 0.5, field) * distortion,
            bend=random.uniform(0, 0.045, field) * distortion,
            bend_frequency=random.uniform(1, 2.5, field) * TURN,
            bend_phase=random.uniform(0, TURN, field),
        )

    def coordinates(self, x, y, size):
        """Which point of the drawing is seen at x, y.

        x, y: distances from the object's centre, and size: (N, 1, 1) its long side, all in fractions of the frame.
        Returns u, v as `sprites.sample` wants them: float32 (N, height, width).
        """
        depth = 1 + self.tilt_x * x + self.tilt_y * y
        x, y = x / depth, y / depth
        cos, sin = np.cos(self.rotation) / size, np.sin(self.rotation) / size
        u = (cos * x + sin * y) / self.aspect
        v = (cos * y - sin * x) * self.aspect
        u = u + self.shear * v
        bent_u = u + self.bend * np.sin(self.bend_frequency * v + self.bend_phase)
        bent_v = v + self.bend * np.sin(self.bend_frequency * u + self.bend_phase)
        return bent_u * self.flip, bent_v


class Look(NamedTuple):
    """Colours and light of objects. Every field has the batch as its first axis."""

    matrix: np.ndarray  # (N, 4, 3): RGBa to RGB premultiplied; the last row adds where the object is opaque
    light_u: np.ndarray  # (N, 1, 1): slope of the brightness across the object
    light_v: np.ndarray
    texture: np.ndarray  # (N, 1, 1, 1): strength of the noise
    tile: np.ndarray  # (N,): which noise, and from where
    top: np.ndarray
    left: np.ndarray
    stride: np.ndarray

    @classmethod
    def draw(cls, random, recipe):
        field = (1, 1)
        angle, light = random.uniform(0, TURN, field), 1.2 * random.uniform(0, recipe.light, field)
        return cls(
            matrix=_colour_matrix(random, recipe),
            light_u=light * np.cos(angle),
            light_v=light * np.sin(angle),
            texture=random.uniform(0, recipe.texture, SCALAR),
            tile=random.integers(len(textures())),
            top=random.integers(TILE),
            left=random.integers(TILE),
            stride=1 + random.integers(3),
        )

    def apply(self, rgba, u, v):
        """RGB (N, height, width, 3), premultiplied, of the sampled drawings `rgba` seen at `u`, `v`."""
        n, height, width, _ = rgba.shape
        rgb = (rgba.reshape(n, height * width, 4) @ self.matrix).reshape(n, height, width, 3)
        rough = window(self.tile, self.top, self.left, self.stride, height, width)
        rgb *= (1 + self.light_u * u + self.light_v * v)[..., None] * (1 + self.texture * rough)
        return np.clip(rgb, 0, rgba[..., 3:], out=rgb)


def _colour_matrix(random, recipe):
    """Hue, saturation, contrast, brightness and silhouettes as one matrix (N, 4, 3) for premultiplied RGBa."""
    n = len(random)
    hue = np.where(random.chance(recipe.any_hue), random.uniform(-np.pi, np.pi), random.uniform(-0.25, 0.25))
    saturation = np.where(random.chance(recipe.grey), np.float32(0), random.uniform(*recipe.saturation))
    turn = np.zeros((n, 3, 3), np.float32)  # in YIQ, the hue is an angle in the plane of I and Q
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * np.cos(hue)
    turn[:, 2, 1] = saturation * np.sin(hue)
    turn[:, 1, 2] = -turn[:, 2, 1]
    contrast = random.uniform(*recipe.contrast, (1, 1))
    matrix = np.empty((n, 4, 3), np.float32)
    matrix[:, :3] = contrast * (FROM_YIQ @ turn @ TO_YIQ).transpose(0, 2, 1)
    matrix[:, 3:] = 0.5 - 0.5 * contrast + random.uniform(*recipe.brightness, (1, 1))
    if recipe.silhouette:
        rows = np.flatnonzero(random.chance(recipe.silhouette))
        own = random.fork("silhouette", rows)
        strength = own.uniform(0.75, 1, (1, 1))
        flat = hsv(own.uniform(shape=SCALAR), own.uniform(0, 0.5, SCALAR), own.uniform(0.05, 0.95, SCALAR))
        matrix[rows] *= 1 - strength
        matrix[rows, 3:] += strength * flat[:, 0]
    return matrix


def blur(picture, weight):
    """Smooth with (w, 1-2w, w) along both axes. weight: (N, 1, 1, 1), 0 ... 1/3; the edge pixels are repeated."""
    for axis in (1, 2):
        place = np.arange(picture.shape[axis])
        before = picture.take(np.maximum(place - 1, 0), axis)
        after = picture.take(np.minimum(place + 1, len(place) - 1), axis)
        picture = picture + weight * (before + after - 2 * picture)
    return picture


def shadow(alpha, right, down, passes=1):
    """Soft shadows of objects with this alpha, moved by (N,) pixels: (N, height, width, 1)."""
    n, height, width, _ = alpha.shape
    y = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    x = np.clip(np.arange(width) - right[:, None], 0, width - 1)
    cast = alpha[np.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]
    for _ in range(passes):
        cast = blur(cast, np.float32(1 / 3))
    return cast


def photograph(random, picture, recipe):
    """What a camera makes of pictures: uneven light, blur, gamma, contrast, colour cast, noise. Returns uint8."""
    n, size = picture.shape[:2]
    x, y = grid(size)
    angle, light = random.uniform(0, TURN, SCALAR), random.uniform(0, 0.9 * recipe.light, SCALAR)
    picture = picture * (1 + light * (x * np.cos(angle) + y * np.sin(angle)))
    picture = blur(picture, random.uniform(0, recipe.blur, SCALAR) * random.uniform(shape=SCALAR))
    np.clip(picture, 1e-4, 1, out=picture)
    gamma = np.exp(random.uniform(-0.35, 0.35, SCALAR))
    np.log(picture, out=picture)  # x**gamma = exp(gamma log x), which numpy computes several times faster
    picture *= gamma
    np.exp(picture, out=picture)
    cast = 1 + random.uniform(-0.12, 0.12, COLOUR)
    contrast = random.uniform(0.65, 1.1, SCALAR)
    picture *= contrast * cast
    picture += (0.5 - 0.5 * contrast + random.uniform(-0.12, 0.12, SCALAR)) * cast
    strength = random.uniform(0, recipe.noise, SCALAR) * random.uniform(shape=SCALAR)
    picture += strength * _white_noise(random, picture.shape[1:])
    picture *= 255
    picture += 0.5
    return np.clip(picture, 0, 255.5, out=picture).astype(np.uint8)


@cache
def _white():
    """A reel of white noise, mean 0 and standard deviation 1: the sum of three uniform numbers, scaled."""
    return (2 * Random(0, "white", range(2**18)).uniform(-0.5, 0.5, (3,)).sum(-1)).astype(np.float32)


def _white_noise(random, shape):
    """White noise (N, *shape), read from the reel at a random place per image."""
    count = math.prod(shape)
    reel = np.tile(_white(), 1 + count // len(_white()))  # large pictures repeat it
    windows = np.lib.stride_tricks.sliding_window_view(reel, count)
    return windows[random.integers(len(windows))].reshape(-1, *shape)


def paste(random, picture, drawings, size, x, y, recipe, rotation):
    """Put one drawing with its shadow on every picture, in place.

    drawings: (N,) numbers of sprites; size: long side, x and y: place of the centre, all (N, 1, 1) in fractions of
    the frame; rotation: largest angle, in radians, one number or (N, 1, 1).
    """
    frame = picture.shape[1]
    column, row = (line[..., 0] for line in grid(frame))
    u, v = Pose.draw(random.fork("pose"), recipe.distortion, rotation).coordinates(column - x, row - y, size)
    rgba = sample(drawings, u, v, frame * size[:, 0, 0])
    alpha = rgba[..., 3:]
    right = np.rint(frame * random.uniform(-0.08, 0.08)).astype(np.int64)
    down = np.rint(frame * random.uniform(0, 0.1)).astype(np.int64)
    picture *= 1 - random.uniform(0, 0.55, SCALAR) * shadow(alpha, right, down)
    opacity = random.uniform(1 - recipe.fade, 1, SCALAR)
    picture *= 1 - opacity * alpha
    picture += opacity * Look.draw(random.fork("look"), recipe).apply(rgba, u, v)


def add_clutter(random, picture, drawings, recipe):
    """Something that belongs to no class, at the rim of every picture, partly outside, in place."""
    angle, distance = random.uniform(0, TURN, (1, 1)), random.uniform(0.35, 0.6, (1, 1))
    chosen = drawings[random.integers(len(drawings))]
    size = random.uniform(0.25, 0.7, (1, 1))
    paste(random, picture, chosen, size, distance * np.cos(angle), distance * np.sin(angle), recipe, rotation=0.5)


def occlude(random, picture):
    """A bar, an edge or a disc in front of every picture."""
    frame = picture.shape[1]
    x, y = grid(frame)
    angle, place = random.uniform(0, TURN, SCALAR), random.uniform(0.05, 0.38, SCALAR)
    width, kind = random.uniform(0.03, 0.12, SCALAR), random.integers(3, SCALAR)
    along = x * np.cos(angle) + y * np.sin(angle)
    bar, edge = width - np.abs(along - 0.6 * place), along - place
    disc = 2 * width - np.hypot(x - random.uniform(-0.4, 0.4, SCALAR), y - random.uniform(-0.4, 0.4, SCALAR))
    cover = np.choose(kind, (bar, edge, disc)) * frame + 0.5
    return mix(picture, colour(random) * (1 + 0.4 * noise(random, frame)), cover)


def balanced_labels(seed, stream, index):
    """Labels (N,) of images `index`: every block of ten images holds every class once, in random order."""
    order = Random(seed, stream + "/labels", index // 10).uniform(shape=(10,)).argsort(1, kind="stable")
    return order[np.arange(len(index)), index % 10]


def cifar10_batch(index, split, style, seed, context):
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64 number `index` of a split."""
    stream = f"cifar10/{split}/{style}"
    random = Random(seed, stream, index)
    labels = balanced_labels(seed, stream, index)
    picture = background(random.fork("background"), SIZE)
    if context:
        betray_class(random.fork("context"), picture, labels, CIFAR10_CLASSES, context)
    rows = np.flatnonzero(random.chance(CLUTTERED))
    cluttered = picture[rows]
    add_clutter(random.fork("clutter", rows), cluttered, neutral(style), CIFAR10)
    picture[rows] = cluttered

    drawings = choose(random.fork("drawing"), labels, CIFAR10_CLASSES, STYLES[style])
    size = random.uniform(0.77, 1.06, (1, 1))
    x, y = (np.clip(random.normal(0.055, (1, 1)), -0.11, 0.11) for _ in range(2))
    banking = np.where(labels == CIFAR10_CLASSES.index("airplane"), np.float32(2), np.float32(1))[:, None, None]
    paste(random.fork("object"), picture, drawings, size, x, y, CIFAR10, CIFAR10.rotation * banking)

    rows = np.flatnonzero(random.chance(OCCLUDED))
    picture[rows] = occlude(random.fork("occluder", rows), picture[rows])
    return photograph(random.fork("camera"), picture, CIFAR10), labels


def check(seed, style, **counts):
    """Raise ValueError for a negative seed or count, or an unknown style."""
    for name, value in {"seed": seed, **counts}.items():
        if operator.index(value) < 0:
            raise ValueError(f"{name}={value} is negative. Use 0 or more.")
    if style not in STYLES:
        raise ValueError(f"test_style={style!r} is unknown. Use one of: {', '.join(STYLES)}.")


def _cifar10_split(count, split, style, seed, context):
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    labels = np.empty(count, np.int64)
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        pictures, labels[part] = cifar10_batch(np.arange(part.start, part.stop), split, style, seed, context)
        images[part] = pictures.transpose(0, 3, 1, 2)
    return images, labels


def cifar10(n_train, n_test, seed=0, *, test_style="train", context=0.0, test_context=None):
    """Drawn images in the shape of CIFAR-10: the same ten classes, 32 x 32 pixels.

    n_train, n_test: numbers of images; exactly balanced in every block of ten, so that any multiple of ten is. Image i
    depends on the seed alone, so a smaller data set is the beginning of a larger one.
    test_style: whose drawings the test images show. "train": the same as in training, in new poses, colours and
    surroundings. "fluent" or "openclipart": drawings by other hands, which training never shows.
    context: probability that a training image has the landscape typical of its class (a ship on water), a shortcut
    for the network; test_context: the same for test images, as in training unless given.

    Returns (train_images, train_labels, test_images, test_labels): images uint8 (N, 3, 32, 32), labels int64 (N,),
    positions in CIFAR10_CLASSES. Raises ValueError for a negative number, an unknown style or an impossible context.
    """
    check(seed, test_style, n_train=n_train, n_test=n_test)
    test_context = context if test_context is None else test_context
    for name, value in (("context", context), ("test_context", test_context)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is no probability. Use a number from 0 to 1.")
    train = _cifar10_split(n_train, "train", "train", seed, context)
    test = _cifar10_split(n_test, "test", test_style, seed, test_context)
    return *train, *test
