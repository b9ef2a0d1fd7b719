"""ISBI 2012 in a folder: 30 annotated electron-microscopy slices and their masks."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from helpers.data.pictures import hidden, opened, pixels

SPLIT = (25, 5)  # the last five of the stack are the test set, apart from the slices trained on


@dataclass(frozen=True)
class Slices:
    """The folder `isbi2012/` with `image/00.png` ... and `label/00.png` ..."""

    folder: Path
    layout = "slices"
    place = "isbi2012"

    @classmethod
    def find(cls, root):
        folder = root / cls.place
        return cls(folder) if folder.is_dir() else None

    def files(self):
        return self._images + [self.folder / "label" / path.name for path in self._images]

    @cached_property
    def _images(self):
        images = [path for path in (self.folder / "image").glob("*.png") if not hidden(path)]
        # by number: 10.png comes after 9.png, or the test set would not be the end of the stack
        return sorted(images, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.stem)], path.name))

    def counts(self):
        """(25, 5). Raises an error unless the 30 slices and their masks are there."""
        if len(self._images) != sum(SPLIT):
            stack = next((path.name for path in self.folder.rglob("*.tif*") if not hidden(path)), None)
            hint = f" {stack} is there: save each of its pages as a PNG file of its own." if stack else ""
            raise ValueError(
                f"ISBI 2012: isbi2012/image holds {len(self._images)} PNG files; the {sum(SPLIT)} annotated slices "
                f"are expected as image/00.png ... image/29.png, and their masks as label/00.png ...{hint}"
            )
        for path in self.files():
            opened(path, f"ISBI 2012: isbi2012/{path.parent.name}/{path.name}").close()
        return SPLIT

    def read(self):
        """Images uint8 (30, 1, H, W) and masks uint8 (30, H, W): 0 membrane, 1 inside a cell."""
        self.counts()
        images, masks = [], []
        for path in self._images:
            for folder, arrays in (("image", images), ("label", masks)):
                short = f"ISBI 2012: isbi2012/{folder}/{path.name}"
                with opened(self.folder / folder / path.name, short) as image:
                    arrays.append(pixels(image, short, "L"))
                if arrays[-1].shape != images[0].shape:
                    (h, w), (h0, w0) = arrays[-1].shape, images[0].shape
                    raise ValueError(f"{short} is {w}x{h} pixels, but the first slice is {w0}x{h0}.")
            if not np.isin(masks[-1], (0, 255)).all():
                raise ValueError(f"{short} must hold 255 (inside a cell) and 0 (membrane) only.")
        return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks)) // 255
