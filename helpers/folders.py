"""Data sets in a folder of the reader's own, or in the folder that downloads go to: the layouts that are understood.

| data set    | in the folder                                                                         |
|-------------|---------------------------------------------------------------------------------------|
| CIFAR-10    | `cifar-10-batches-py/` (official, also inside `cifar10/`), read by torchvision        |
| CIFAR-10    | `cifar10/{train,test}/airplane.webp` ...: one lossless sheet of 32x32 tiles per class |
| VOC-animals | `VOCdevkit/VOC2012/` (official), read by torchvision                                  |
| ISBI 2012   | `isbi2012/{image,label}/NN.png`                                                       |

Each layout is a class: `find(root)` gives None when it is not there, `files()` what it consists of, `counts()` how many
images it holds, `read()` its arrays. Messages name files by their place in the layout, never by the machine's folders.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from helpers import settings

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ANIMALS = {"cat": 8, "cow": 10, "dog": 12, "horse": 13, "sheep": 17}  # class name -> index in VOC's masks
VOID = 255  # in VOC's masks: the border between objects, and what is not annotated
SLICES = (25, 5)  # ISBI 2012: the last five of the stack are the test set, apart from the slices trained on
TILE = 32


def balanced_order(labels, tie_break=None):
    """The order that deals out the classes in turn, so that the first n are balanced for every n.

    labels: int (N,). Inside a class the order is by `tie_break` (N,), else by position. Returns indices (N,).
    """
    position = np.arange(len(labels)) if tie_break is None else tie_break
    by_class = np.lexsort((position, labels))
    counts = np.bincount(labels)
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.lexsort((labels, rank))


def _pixel_hash(images):
    """One uint64 per image from its pixels (N, 3, 32, 32): the same whichever layout the image came in."""
    words = np.ascontiguousarray(images).reshape(len(images), -1).view("<u8")
    factors = np.cumprod(np.full(words.shape[1], 0x9E3779B97F4A7C15, np.uint64))
    return np.concatenate([(chunk * factors).sum(1, dtype=np.uint64) for chunk in np.array_split(words, 100)])


def _cifar10_arrays(splits):
    """{"train": (images, labels), ...} -> named tensors in the balanced order, which depends on pixels alone."""
    arrays = {}
    for split, (images, labels) in splits.items():
        order = balanced_order(labels, _pixel_hash(images))
        arrays[f"{split}.images"] = torch.from_numpy(images[order])
        arrays[f"{split}.targets"] = torch.from_numpy(labels[order])
    return arrays


@dataclass(frozen=True)
class Batches:
    """CIFAR-10 as published: five training batches and a test batch, pickled. torchvision checks their md5 first."""

    folder: Path
    layout = "official batches"

    @classmethod
    def find(cls, root):
        places = (root / "cifar-10-batches-py", root / "cifar10" / "cifar-10-batches-py")
        return next((cls(folder) for folder in places if folder.is_dir()), None)

    def files(self):
        return [path for path in self.folder.iterdir() if path.is_file()]

    def counts(self):
        return 50_000, 10_000

    def read(self):
        """Named tensors: `train.images` uint8 (N, 3, 32, 32), `train.targets` int64 (N,), and the same for test."""
        from torchvision.datasets import CIFAR10

        splits = {}
        for split in ("train", "test"):
            try:
                official = CIFAR10(self.folder.parent, train=split == "train", download=False)
            except RuntimeError as error:
                raise ValueError(
                    "CIFAR-10: cifar-10-batches-py is incomplete, or its bytes are not the published ones. "
                    "Delete that folder (`./course data` says where it is) and fetch it again."
                ) from error
            images = np.ascontiguousarray(official.data.transpose(0, 3, 1, 2))
            splits[split] = images, np.array(official.targets)
        return _cifar10_arrays(splits)


@dataclass(frozen=True)
class Sheets:
    """CIFAR-10 as one lossless contact sheet (WebP or PNG) per class and split, tiles in rows."""

    folder: Path
    layout = "contact sheets"

    @classmethod
    def find(cls, root):
        folder = root / "cifar10"
        return cls(folder) if (folder / "train").is_dir() or (folder / "test").is_dir() else None

    def files(self):
        return [self._sheet(split, name) for split in ("train", "test") for name in CIFAR10_CLASSES]

    def counts(self):
        return tuple(
            sum(len(self._tiles(split, name, count_only=True)) for name in CIFAR10_CLASSES)
            for split in ("train", "test")
        )

    def read(self):
        """Named tensors: `train.images` uint8 (N, 3, 32, 32), `train.targets` int64 (N,), and the same for test."""
        splits = {}
        for split in ("train", "test"):
            bar = tqdm(CIFAR10_CLASSES, desc=f"CIFAR-10, {split}", leave=False, disable=settings.silent())
            tiles = [self._tiles(split, name) for name in bar]
            splits[split] = np.concatenate(tiles), np.repeat(np.arange(10), [len(part) for part in tiles])
        return _cifar10_arrays(splits)

    def _sheet(self, split, name):
        for suffix in (".webp", ".png"):
            if (path := self.folder / split / (name + suffix)).is_file():
                return path
        raise FileNotFoundError(
            f"CIFAR-10: cifar10/{split}/{name}.webp (or .png) is missing. A folder of contact sheets holds one for "
            f"each of {', '.join(CIFAR10_CLASSES)}, in train/ and in test/."
        )

    def _tiles(self, split, name, count_only=False):
        """The tiles of one sheet, row by row, uint8 (N, 3, 32, 32); or a range as long, from the header alone."""
        path = self._sheet(split, name)
        short = f"cifar10/{split}/{path.name}"
        with _opened(path, short) as image:
            width, height = image.size
            if width % TILE or height % TILE:
                raise ValueError(
                    f"CIFAR-10: {short} is {width}x{height} pixels, which {TILE}x{TILE} tiles do not fill."
                )
            rows, columns = height // TILE, width // TILE
            if count_only:
                return range(rows * columns)
            pixels = _pixels(image, short, "RGB")
        grid = pixels.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(grid).reshape(-1, 3, TILE, TILE)


def _opened(path, short):
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{short} is missing, though the data set lists it.") from None
    except OSError as error:
        raise ValueError(f"{short} cannot be read: it is not an image, or damaged. Copy it again.") from error


def _pixels(image, short, mode=None):
    """Decode a PIL image into an array, in `mode` where one is given."""
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        raise ValueError(f"{short} cannot be read: it is damaged or cut short. Copy it again.") from error


@dataclass(frozen=True)
class Animal:
    """One object of VOC: its class index (0 cat ... 4 sheep) and its box in VOC's pixels (1-based, inclusive)."""

    label: int
    box: tuple[float, float, float, float]

    @property
    def area(self):
        left, top, right, bottom = self.box
        return (right - left + 1) * (bottom - top + 1)


@dataclass(frozen=True)
class Devkit:
    """PASCAL VOC 2012 as published, or the part of it that shows animals."""

    root: Path  # holds VOCdevkit/VOC2012
    layout = "VOC devkit"

    @classmethod
    def find(cls, root):
        return cls(root) if (root / "VOCdevkit" / "VOC2012").is_dir() else None

    @property
    def folder(self):
        return self.root / "VOCdevkit" / "VOC2012"

    @property
    def mask_folder(self):
        """`SegmentationClassAug` (masks of VOC and of SBD) where it is present, else `SegmentationClass`."""
        return "SegmentationClassAug" if (self.folder / "SegmentationClassAug").is_dir() else "SegmentationClass"

    def files(self):
        lists = [self.folder / "ImageSets" / "Main" / f"{split}.txt" for split in ("train", "val")]
        folders = [self.folder / name for name in ("JPEGImages", "Annotations", self.mask_folder)]
        return [path for path in lists if path.is_file()] + [
            path for folder in folders if folder.is_dir() for path in folder.iterdir()
        ]

    def counts(self):
        return tuple(len(self.animals(image_set)) for image_set in ("train", "val"))

    def animals(self, image_set):
        """{image name: its Animals} of an official split, without the images that show none.

        Objects of other classes and those marked difficult are left out.
        """
        from torchvision.datasets import VOCDetection

        try:
            official = VOCDetection(self.root, year="2012", image_set=image_set, download=False)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"VOC 2012: ImageSets/Main/{image_set}.txt is missing from VOCdevkit/VOC2012."
            ) from error
        found = {Path(path).stem: _animals(Path(path)) for path in official.annotations}
        return {name: animals for name, animals in found.items() if animals}

    def read(self, size):
        """Named tensors of both splits, for squares of `size` pixels; see `helpers.data.voc_animals`.

        An image that cannot be read is an error and not left out: the numbers measured on the rest would quietly be
        numbers on another data set.
        """
        splits = {"train": self.animals("train"), "test": self.animals("val")}
        most = max((len(animals) for split in splits.values() for animals in split.values()), default=1)
        arrays = {}
        for split, images in splits.items():
            if not images:
                raise ValueError(f"VOC 2012: no image of the {split} split shows {', '.join(ANIMALS)}.")
            arrays |= {f"{split}.{key}": array for key, array in self._read_split(images, size, most, split).items()}
        return arrays

    def _read_split(self, images, size, most, split):
        from joblib import Parallel, delayed

        largest = [max(animals, key=lambda animal: animal.area).label for animals in images.values()]
        names = np.array(list(images))[balanced_order(np.array(largest))].tolist()
        n = len(names)
        arrays = {
            "images": torch.empty(n, 3, size, size, dtype=torch.uint8),
            "boxes": torch.zeros(n, most, 4),
            "labels": torch.full((n, most), -1),
            "masks": torch.full((n, size, size), VOID, dtype=torch.uint8),
            "has_mask": torch.zeros(n, dtype=torch.bool),
        }

        def read(i):
            animals = images[names[i]]
            pixels, boxes, mask = self._read_one(names[i], animals, size)
            arrays["images"][i] = torch.from_numpy(pixels)
            arrays["boxes"][i, : len(animals)] = torch.from_numpy(boxes)
            arrays["labels"][i, : len(animals)] = torch.tensor([animal.label for animal in animals])
            if mask is not None:
                arrays["masks"][i] = torch.from_numpy(mask)
                arrays["has_mask"][i] = True

        # threads, because Pillow lets go of Python's lock while it decodes and resizes
        jobs = Parallel(n_jobs=-1, prefer="threads", return_as="generator_unordered", batch_size=16)
        done = jobs(delayed(read)(i) for i in range(n))
        for _ in tqdm(done, total=n, desc=f"VOC-animals, {split}", leave=False, disable=settings.silent()):
            pass
        return arrays

    def _read_one(self, name, animals, size):
        """Pixels uint8 (3, size, size), boxes float32 (len(animals), 4) in them, mask uint8 (size, size) or None."""
        short = f"VOC 2012: JPEGImages/{name}.jpg"
        with _opened(self.folder / "JPEGImages" / f"{name}.jpg", short) as image:
            width, height = image.size
            photograph = Image.fromarray(_pixels(image, short, "RGB"))
        # 1-based inclusive pixels -> edges in a continuous plane, so that a box over the whole image is (0, 0, w, h)
        boxes = np.array([animal.box for animal in animals], np.float32) - (1, 1, 0, 0)
        boxes = np.clip(boxes, 0, (width, height, width, height))
        if ((boxes[:, 2:] - boxes[:, :2]) <= 0).any():
            raise ValueError(
                f"VOC 2012: a box in Annotations/{name}.xml is empty or lies outside its {width}x{height} image."
            )
        scaled = (boxes * (size / width, size / height, size / width, size / height)).astype(np.float32)
        # Pillow's reduction averages over all source pixels, so it is anti-aliased
        pixels = np.asarray(photograph.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels), scaled, self._read_mask(name, (width, height), size)

    def _read_mask(self, name, expected, size):
        path = self.folder / self.mask_folder / f"{name}.png"
        if not path.is_file():
            return None
        short = f"VOC 2012: {self.mask_folder}/{name}.png"
        with _opened(path, short) as image:
            if image.size != expected:
                raise ValueError(
                    f"{short} is {image.width}x{image.height} pixels, but its image is {expected[0]}x{expected[1]}."
                )
            if image.mode not in ("P", "L"):
                raise ValueError(f"{short} must hold class indices (palette or grey), not {image.mode} colours.")
            mask = _MASK_CLASSES[_pixels(image, short)]
        if (mask == _INVALID).any():
            raise ValueError(f"{short} holds values that are neither a VOC class (0 to 20) nor void (255).")
        return np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


_INVALID = 254
_MASK_CLASSES = np.full(256, _INVALID, np.uint8)  # VOC's index -> ours: 0 background, 1 cat ... 5 sheep, 255 void
_MASK_CLASSES[:21] = 0
_MASK_CLASSES[list(ANIMALS.values())] = range(1, 6)
_MASK_CLASSES[VOID] = VOID


def _animals(path):
    """The Animals of one annotation file, in its order."""
    short = f"VOC 2012: Annotations/{path.name}"
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        names = list(ANIMALS)
        return [
            Animal(
                names.index(name),
                tuple(float(thing.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")),
            )
            for thing in objects
            if (name := thing.findtext("name")) in ANIMALS and thing.findtext("difficult", "0") != "1"
        ]
    except FileNotFoundError:
        raise FileNotFoundError(f"{short} is missing, though the split lists it.") from None
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f"{short} cannot be read: it is not the XML of a VOC annotation.") from error


@dataclass(frozen=True)
class Slices:
    """ISBI 2012: 30 annotated electron-microscopy slices and their masks."""

    folder: Path
    layout = "slices"

    @classmethod
    def find(cls, root):
        folder = root / "isbi2012"
        return cls(folder) if folder.is_dir() else None

    def files(self):
        return self._images + [self.folder / "label" / path.name for path in self._images]

    @cached_property
    def _images(self):
        return sorted((self.folder / "image").glob("*.png"))

    def counts(self):
        return SLICES

    def read(self):
        """Images uint8 (30, 1, H, W) and masks uint8 (30, H, W): 0 membrane, 1 inside a cell."""
        if len(self._images) != sum(SLICES):
            raise ValueError(
                f"ISBI 2012: isbi2012/image holds {len(self._images)} PNG files; the {sum(SLICES)} annotated slices "
                "are expected as image/00.png ... image/29.png, and their masks as label/00.png ..."
            )
        images, masks = [], []
        for path in self._images:
            for folder, arrays in (("image", images), ("label", masks)):
                short = f"ISBI 2012: isbi2012/{folder}/{path.name}"
                with _opened(self.folder / folder / path.name, short) as image:
                    arrays.append(_pixels(image, short, "L"))
                if arrays[-1].shape != images[0].shape:
                    (h, w), (h0, w0) = arrays[-1].shape, images[0].shape
                    raise ValueError(f"{short} is {w}x{h} pixels, but the first slice is {w0}x{h0}.")
            if not np.isin(masks[-1], (0, 255)).all():
                raise ValueError(f"{short} must hold 255 (inside a cell) and 0 (membrane) only.")
        return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks)) // 255


LAYOUTS = {"cifar10": (Batches, Sheets), "voc2012": (Devkit,), "isbi2012": (Slices,)}


def find(name, root):
    """The layout in which the data set `name` lies in the folder `root`, or None."""
    return next((found for layout in LAYOUTS[name] if (found := layout.find(root))), None)
