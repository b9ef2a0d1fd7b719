"""The drawings: sheets of sprites from open emoji sets, and how they are sampled through a warp.

`art/manifest.json` lists the styles with their licences and one row per drawing: class, style, name, and its
rectangle in the style's sheet, in pixels. THIRD_PARTY.md says where the art comes from.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

ART = Path(__file__).parent / "art"

STYLES = {
    "train": ("noto", "noto-v1", "twemoji", "fxemoji", "emojione", "streamline-emojis", "house"),
    "fluent": ("fluent-emoji-flat", "fluent3d"),  # two renderings of the same drawings: one family
    "openclipart": ("openclipart",),
}
NEUTRAL = "distractor"  # trees, clouds, balls and animals that belong to no class of either data set

# Long sides, in pixels, at which every drawing is kept. Sampling from the one nearest above the wanted size avoids
# aliasing, as mipmaps do in computer graphics.
LEVELS = (14, 20, 30, 44, 64, 96)
RIM = 2  # transparent pixels around each drawing, so that sampling outside it reads zeros


@cache
def manifest():
    """The manifest as a dict with "styles" and "sprites"."""
    return json.loads((ART / "manifest.json").read_text(encoding="utf-8"))


def credits():
    """One line of attribution per source of drawings, to be shown where the drawings are."""
    styles = manifest()["styles"].values()
    lines = {f"{style['credit']} ({style['licence']}) {style['source']}".rstrip() for style in styles}
    return "\n".join(sorted(lines))


@cache
def _drawings():
    """All drawings as Pillow images with premultiplied alpha, in the order of the manifest."""
    sheets = {style: Image.open(ART / f"{style}.png").convert("RGBA") for style in manifest()["styles"]}
    return [
        sheets[style].crop((x, y, x + width, y + height)).convert("RGBa")
        for _, style, _, x, y, width, height in manifest()["sprites"]
    ]


@cache
def _level(long_side):
    """All drawings at one size, each centred on a square: uint32 (drawings, side, side), four bytes RGBa."""
    side = long_side + 2 * RIM
    level = np.zeros((len(_drawings()), side, side, 4), np.uint8)
    for square, drawing in zip(level, _drawings(), strict=True):
        scale = long_side / max(drawing.size)
        width, height = (max(1, round(edge * scale)) for edge in drawing.size)
        small = drawing.resize((width, height), Image.BOX if scale < 0.75 else Image.BICUBIC)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = np.asarray(small)
    return level.view(np.uint32)[..., 0]


@cache
def pool(classes, styles):
    """Numbers of all drawings of these classes in these styles (tuples of names): int64 array."""
    rows = manifest()["sprites"]
    return np.array([i for i, row in enumerate(rows) if row[0] in classes and row[1] in styles], np.int64)


def neutral(style):
    """Numbers of the drawings without a class that go with a key of STYLES."""
    own = pool((NEUTRAL,), STYLES[style])
    return own if len(own) else pool((NEUTRAL,), STYLES["train"] + STYLES["fluent"])


@cache
def _catalogue(classes, styles):
    """The drawings by class, then style: (styles per class, drawings per class and style, table of numbers)."""
    shelves = [[pool((name,), (style,)) for style in styles] for name in classes]
    shelves = [[drawings for drawings in shelf if len(drawings)] for shelf in shelves]
    style_count = np.array([len(shelf) for shelf in shelves])
    if not style_count.all():
        missing = [name for name, count in zip(classes, style_count, strict=True) if count == 0]
        raise ValueError(f"No drawing of {', '.join(missing)} in the styles {', '.join(styles)}.")
    drawing_count = np.zeros((len(classes), style_count.max()), np.int64)
    table = np.zeros((*drawing_count.shape, max(len(d) for shelf in shelves for d in shelf)), np.int64)
    for row, shelf in enumerate(shelves):
        for column, drawings in enumerate(shelf):
            drawing_count[row, column] = len(drawings)
            table[row, column, : len(drawings)] = drawings
    return style_count, drawing_count, table


def choose(random, labels, classes, styles):
    """Numbers (N,) of one drawing per image: first a style, then one of its drawings of the class.

    labels: (N,) positions in `classes`. The style comes first so that a style with many drawings does not dominate.
    """
    style_count, drawing_count, table = _catalogue(classes, styles)
    style = random.integers(style_count[labels])
    drawing = random.integers(drawing_count[labels, style])
    return table[labels, style, drawing]


def sample(drawings, u, v, pixels):
    """Look drawings up at given places, bilinearly.

    drawings: (N,) numbers; u, v: (N, height, width) in units of the drawing's long side, zero at its centre, so that
    the drawing lies within -0.5 ... 0.5; pixels: (N,) the long side in pixels of the picture, which chooses the level.
    Returns RGB premultiplied by alpha, and alpha, in 0 ... 1: float32 (N, height, width, 4).
    """
    out = np.empty((*u.shape, 4), np.float32)
    level_of = np.searchsorted(LEVELS[:-1], 0.8 * pixels)  # up to 1.25 times enlarged still looks sharp
    for number in np.unique(level_of):
        rows = np.flatnonzero(level_of == number)
        out[rows] = _bilinear(_level(LEVELS[number]), drawings[rows], u[rows], v[rows])
    return out


def _bilinear(level, drawings, u, v):
    side = level.shape[1]
    x = np.clip(u * (side - 2 * RIM) + (side / 2 - 0.5), 0, side - 1.001)
    y = np.clip(v * (side - 2 * RIM) + (side / 2 - 0.5), 0, side - 1.001)
    column, row = x.astype(np.int32), y.astype(np.int32)
    right, down = (x - column)[..., None], (y - row)[..., None]
    # Four bytes are fetched as one number: a quarter of the look-ups.
    corner = drawings[:, None, None] * (side * side) + row * side + column
    texels = level.reshape(-1)

    def fetch(offset):
        return texels.take(corner + offset)[..., None].view(np.uint8).astype(np.float32)

    upper, lower = fetch(0), fetch(side)
    upper += (fetch(1) - upper) * right
    lower += (fetch(side + 1) - lower) * right
    upper += (lower - upper) * down
    upper *= np.float32(1 / 255)
    return upper
