"""CIFAR-10 as one lossless contact sheet (WebP or PNG) per class and split, 32x32 tiles in rows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from helpers import settings
from helpers.data.classes import CIFAR10_CLASSES
from helpers.data.pictures import opened, pixels

TILE = 32
MOST = {"train": 5_000, "test": 1_000}  # images of a class, as published


@dataclass(frozen=True)
class Sheets:
    """The folder `cifar10/` with `train/airplane.webp` and so on."""

    folder: Path
    layout = "contact sheets"
    place = "cifar10"

    @classmethod
    def find(cls, root):
        folder = root / cls.place
        return cls(folder) if (folder / "train").is_dir() or (folder / "test").is_dir() else None

    def files(self):
        return [self._sheet(split, name) for split in MOST for name in CIFAR10_CLASSES]

    def counts(self):
        """Numbers of training and test images, from the headers of the sheets alone."""
        return tuple(sum(self._count(split, name) for name in CIFAR10_CLASSES) for split in MOST)

    def read(self):
        """{"train": (images uint8 (N, 3, 32, 32), labels int64 (N,)), "test": ...}, class by class."""
        splits = {}
        for split in MOST:
            bar = tqdm(CIFAR10_CLASSES, desc=f"CIFAR-10, {split}", leave=False, disable=settings.silent())
            tiles = [self.tiles(split, name) for name in bar]
            splits[split] = np.concatenate(tiles), np.repeat(np.arange(10), [len(part) for part in tiles])
        return splits

    def tiles(self, split, name):
        """The tiles of one sheet, row by row, uint8 (N, 3, 32, 32)."""
        path, short = self._sheet(split, name), self._short(split, name)
        with opened(path, short) as image:
            rows, columns = self._grid(split, image, path, short)
            values = pixels(image, short, "RGB")
        grid = values.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(grid).reshape(-1, 3, TILE, TILE)

    def _count(self, split, name):
        path, short = self._sheet(split, name), self._short(split, name)
        with opened(path, short) as image:
            rows, columns = self._grid(split, image, path, short)
        return rows * columns

    def _grid(self, split, image, path, short):
        """Rows and columns of tiles. Raises ValueError for what cannot be a sheet of CIFAR-10."""
        width, height = image.size
        if width % TILE or height % TILE:
            raise ValueError(f"CIFAR-10: {short} is {width}x{height} pixels, which {TILE}x{TILE} tiles do not fill.")
        rows, columns = height // TILE, width // TILE
        if rows * columns > MOST[split]:
            raise ValueError(
                f"CIFAR-10: {short} has {rows} rows of {columns} tiles, {rows * columns:,} in all, "
                f"but there are {MOST[split]:,} {split} images of a class."
            )
        if not _lossless(image, path):
            raise ValueError(
                f"CIFAR-10: {short} was compressed with loss ({image.format}), so its pixels are not as published. "
                "Use lossless WebP or PNG."
            )
        return rows, columns

    def _short(self, split, name):
        return f"cifar10/{split}/{self._sheet(split, name).name}"

    def _sheet(self, split, name):
        folder = self.folder / split
        for suffix in (".webp", ".png"):
            if (path := folder / (name + suffix)).is_file():
                return path
        hint = ""
        if (folder / f"{name}.jpg").is_file() or (folder / f"{name}.jpeg").is_file():
            hint = " The JPEG file there cannot take its place: it has lost detail."
        elif (folder / name).is_dir():
            hint = f" The folder {name}/ there, with one picture a file, is not read."
        raise FileNotFoundError(
            f"CIFAR-10: cifar10/{split}/{name}.webp (or .png) is missing. A folder of contact sheets holds one for "
            f"each of {', '.join(CIFAR10_CLASSES)}, in train/ and in test/.{hint}"
        )


def _lossless(image, path):
    if image.format != "WEBP":
        return image.format in ("PNG", "BMP")
    with open(path, "rb") as file:
        file.seek(12)  # past RIFF, size, WEBP come chunks of kind, size, content
        while len(header := file.read(8)) == 8:
            kind, size = header[:4], int.from_bytes(header[4:], "little")
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            file.seek(size + size % 2, 1)
    return False
