"""The cells of the ISBI 2012 challenge."""

from torch.nn import functional as F

from helpers.data import amounts
from helpers.data.dataset import Dataset, Provenance, Split
from helpers.data.slices import SPLIT, Slices
from helpers.data.source import SEED, Source
from helpers.data.standin import cells

SIDE = 512  # pixels, as published

_STACK = "A stack in one TIFF file is not read: save each of its pages as a PNG file of its own."
ISBI2012 = Source(
    "isbi2012",
    "ISBI 2012",
    (Slices,),
    None,
    "The slices of ISBI 2012 cannot be downloaded without registering with the challenge. If you have them, put the "
    "30 annotated ones into a folder as isbi2012/image/00.png ... 29.png, with their masks (255 inside a cell, "
    "0 membrane) as isbi2012/label/00.png ... 29.png, and set COURSE_DATA to that folder.",
    {"train-volume.tif*": _STACK, "*/train-volume.tif*": _STACK},
)


def isbi2012(size=None):
    """The annotated slices of the ISBI 2012 challenge: cells under the electron microscope. Returns a Dataset.

    size: side in pixels (32 to 512), None for the 512 that they have. Images uint8 (N, 1, size, size); targets are
    masks uint8 (N, size, size): 0 membrane, 1 inside a cell. The first 25 slices of the stack train, the last 5 test:
    neighbours resemble each other, so a random split would flatter. The stand-in draws cells that touch.
    """
    if size is not None:
        amounts.check_size(size)
    source = ISBI2012.real()
    train, test = SPLIT
    if source is None:
        images, masks = cells.draw(train + test, SEED)
        provenance = ISBI2012.standin_provenance(train, test)
    else:
        images, masks = source.read()
        detail = f"{train} + {test} images"
        height, width = masks.shape[1:]
        if (height, width) != (SIDE, SIDE):
            detail += f" of {width}x{height} pixels (published: {SIDE}x{SIDE})"
        provenance = Provenance(ISBI2012.title, True, detail)
    if size is not None:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        masks = F.interpolate(masks[:, None], size=(size, size), mode="nearest-exact")[:, 0]
    splits = Split(images[:train], masks[:train]), Split(images[train:], masks[train:])
    return Dataset(*splits, ("membrane", "cell"), provenance)
