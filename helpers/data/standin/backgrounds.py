"""Backgrounds: noise and six kinds of scenery that carry no information about the class.

Every picture here is a float32 array (N, height, width, channels) with values in 0 ... 1; coordinates are fractions of
the frame, zero at its centre, x to the right and y downwards.
"""

from functools import cache

import numpy as np

from .rng import Random

SCALAR, COLOUR = (1, 1, 1), (1, 1, 3)  # shapes of values that hold for a whole picture
TURN = np.float32(2 * np.pi)
TILE = 128  # side of a noise texture, in pixels

SKIES = np.float32(
    [[0.45, 0.65, 0.9], [0.65, 0.8, 0.95], [0.85, 0.88, 0.92], [0.95, 0.7, 0.5], [0.25, 0.35, 0.6], [0.55, 0.6, 0.66]]
)
GROUNDS = np.float32(
    [
        *([0.35, 0.5, 0.22], [0.5, 0.55, 0.3], [0.2, 0.4, 0.55], [0.75, 0.68, 0.5]),  # grass, hay, water, sand
        *([0.4, 0.39, 0.38], [0.85, 0.87, 0.9], [0.45, 0.33, 0.22], [0.15, 0.3, 0.4]),  # road, snow, soil, deep water
    ]
)
# What a landscape looks like where it betrays the class: (skies, grounds), as positions above; None: sky all over.
TYPICAL = {
    "airplane": ((0, 1, 2), None),
    "automobile": ((1, 2, 5), (4,)),
    "bird": ((0, 1, 2), None),
    "deer": ((0, 1, 2), (0, 1, 5)),
    "frog": ((1, 2), (0, 7)),
    "horse": ((0, 1), (0, 1)),
    "ship": ((0, 1, 2), (2, 7)),
    "truck": ((1, 2, 5), (4,)),
}


def grid(size):
    """Pixel centres: x (1, 1, size, 1) and y (1, size, 1, 1)."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return line[None, None, :, None], line[None, :, None, None]


def mix(a, b, share):
    """a where `share` is 0, b where it is 1, and in between."""
    return a + (b - a) * np.clip(share, 0, 1)


@cache
def textures():
    """Periodic noise of several roughnesses and directions: float32 (96, TILE, TILE), mean 0, about -1.5 ... 1.5.

    The spectrum falls as a power of the frequency, as it does in photographs of nature (Field, 1987).
    """
    frequency = np.fft.fftfreq(TILE)
    tiles = []
    for number, white in enumerate(Random(0, "textures", range(48)).uniform(-0.5, 0.5, (TILE, TILE))):
        roughness = (0.7, 1.0, 1.4, 1.9)[number % 4]
        stretch = (1, 1, 2.5, 0.4)[number // 4 % 4]
        radius = np.hypot(frequency[:, None] * stretch, frequency / stretch)
        radius[0, 0] = 1
        tile = np.fft.ifft2(np.fft.fft2(white) * radius**-roughness).real
        tile -= tile.mean()
        tile = np.clip(tile / (2 * tile.std()), -1.5, 1.5)
        tiles += [tile, tile.T]
    return np.float32(tiles)


def window(tile, top, left, stride, height, width):
    """A window (N, height, width, 1) of a texture, which wraps around. tile, top, left and stride: (N,) integers."""
    tile, top, left, stride = (value[:, None, None] for value in (tile, top, left, stride))
    y = (top + stride * np.arange(height)[:, None]) % TILE
    x = (left + stride * np.arange(width)) % TILE
    return textures().reshape(-1).take((tile * TILE + y) * TILE + x)[..., None]


def noise(random, size):
    """Random noise (N, size, size, 1)."""
    tile, stride = random.integers(len(textures())), 1 + random.integers(3)
    return window(tile, random.integers(TILE), random.integers(TILE), stride, size, size)


def hsv(hue, saturation, value):
    """RGB (N, 1, 1, 3) of colours whose three components have shape (N, 1, 1, 1); the hue counts turns."""
    k = (np.float32([5, 3, 1]) + 6 * hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def colour(random):
    """A random colour (N, 1, 1, 3), more often dull than vivid."""
    saturation = random.uniform(0.02, 0.75, SCALAR) * random.uniform(0.4, 1, SCALAR)
    return hsv(random.uniform(shape=SCALAR), saturation, random.uniform(0.15, 1, SCALAR))


def gradient(random, size):
    """Two colours across the frame, with a noisy transition."""
    x, y = grid(size)
    angle = random.uniform(0, TURN, SCALAR)
    wobble = random.uniform(0.035, 0.35, SCALAR) * noise(random, size)
    return mix(colour(random), colour(random), x * np.cos(angle) + y * np.sin(angle) + 0.5 + wobble)


def marble(random, size):
    """Three colours, mixed by noise."""
    picture = mix(colour(random), colour(random), 0.5 + 0.7 * noise(random, size))
    return mix(picture, colour(random), random.uniform(0.16, 1.6, SCALAR) * noise(random, size))


def horizon(random, size, top, bottom, waviness=0.0):
    """`top` above a horizon and `bottom`, a colour, below it, rough and brighter towards the viewer."""
    _, y = grid(size)
    rough = noise(random, size)
    level = random.uniform(-0.25, 0.3, SCALAR) - waviness * rough[:, :1]
    bottom = bottom * (1 + random.uniform(0.18, 0.58, SCALAR) * rough + 0.25 * (y - level))
    return mix(top, bottom, (y - level) * (0.7 * size) + 0.5)  # a factor of `size` would be one pixel wide


def sky(random, size, number):
    """A sky with clouds, brighter towards the horizon. number: (N,) positions in SKIES."""
    _, y = grid(size)
    clouds = random.uniform(0.012, 0.12, SCALAR) * noise(random, size)
    return SKIES[number][:, None, None] + random.uniform(-0.08, 0.08, COLOUR) + clouds + 0.18 * (y + 0.2)


def landscape(random, size, above=None, below=None):
    """A sky over ground. above, below: (N,) positions in SKIES and GROUNDS, random unless given."""
    above = random.integers(len(SKIES)) if above is None else above
    below = random.integers(len(GROUNDS)) if below is None else below
    ground = GROUNDS[below][:, None, None] + random.uniform(-0.1, 0.1, COLOUR)
    return horizon(random, size, sky(random, size, above), ground, random.uniform(0, 0.12, SCALAR))


def room(random, size):
    """A striped wall over a floor."""
    x, _ = grid(size)
    stripes = np.sin(random.uniform(3, 14, SCALAR) * TURN * x + random.uniform(0, TURN, SCALAR))
    wall = colour(random) + random.uniform(0.01, 0.1, SCALAR) * np.sign(stripes) + 0.06 * noise(random, size)
    return horizon(random, size, wall, colour(random))


def stripes(random, size):
    """Stripes or checks of two colours, soft or hard, bent by noise."""
    x, y = grid(size)
    angle, phase = random.uniform(0, TURN, SCALAR), random.uniform(0, TURN, SCALAR)
    frequency = random.uniform(1.5, 7, SCALAR) * TURN
    along, across = x * np.cos(angle) + y * np.sin(angle), x * np.sin(angle) - y * np.cos(angle)
    wave = np.sin(frequency * along + phase + random.uniform(0.12, 1.2, SCALAR) * noise(random, size))
    checks = 1.4 * wave * np.sin(frequency * across + phase)
    wave = np.where(random.chance(0.35, SCALAR), checks, wave)
    wave = np.where(random.chance(0.5, SCALAR), np.clip(4 * wave, -1, 1), wave)
    stain = random.uniform(0.015, 0.15, SCALAR) * noise(random, size)
    return mix(colour(random), colour(random), 0.5 + 0.5 * wave) + stain


def blobs(random, size):
    """Five round spots, out of focus or with an edge."""
    x, y = grid(size)
    colours = [colour(random) for _ in range(3)]
    picture = mix(colours[0], colours[1], 0.5 + 0.4 * noise(random, size))
    steepness = np.where(random.chance(0.5, SCALAR), np.float32(12), np.float32(1.4))
    for number in range(5):
        dx, dy = x - random.uniform(-0.5, 0.5, SCALAR), y - random.uniform(-0.5, 0.5, SCALAR)
        spot = np.exp(-(dx * dx + dy * dy) / (2 * random.uniform(0.05, 0.22, SCALAR) ** 2))
        share = np.clip(0.5 + steepness * (spot - 0.5), 0, 1)
        picture = mix(picture, (0.7 + 0.1 * number) * colours[(number + 1) % 3], 0.8 * share)
    return picture


KINDS = (gradient, marble, landscape, room, stripes, blobs)


def background(random, size, outdoors=0.0):
    """Random backgrounds (N, size, size, 3). outdoors: probability of a landscape beyond its sixth."""
    kind = np.where(random.chance(outdoors), KINDS.index(landscape), random.integers(len(KINDS)))
    picture = np.empty((len(random), size, size, 3), np.float32)
    for number, paint in enumerate(KINDS):
        rows = np.flatnonzero(kind == number)
        if len(rows):
            picture[rows] = paint(random.fork(paint.__name__, rows), size)
    return np.clip(picture, 0, 1, out=picture)


def betray_class(random, picture, labels, classes, probability):
    """Replace backgrounds by the landscape TYPICAL of the class, in place, with this probability.

    It makes a shortcut that a network can learn instead of the object.
    """
    chosen = random.chance(probability)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(chosen & (labels == label))
        if name not in TYPICAL or len(rows) == 0:
            continue
        skies, grounds = TYPICAL[name]
        own, size = random.fork(name, rows), picture.shape[1]
        above = np.array(skies)[own.integers(len(skies))]
        if grounds is None:
            scenery = sky(own, size, above)
        else:
            scenery = landscape(own, size, above, np.array(grounds)[own.integers(len(grounds))])
        picture[rows] = np.clip(scenery, 0, 1)
