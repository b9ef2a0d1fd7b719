"""PASCAL VOC 2012 as published, or the part of it that shows animals, in its official folders."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from tqdm.auto import tqdm

from helpers import settings
from helpers.data.annotation import read_annotation
from helpers.data.classes import VOC_ANIMALS, VOC_CLASSES
from helpers.data.order import balanced_order
from helpers.data.pictures import hidden, opened, pixels

VOID = 255  # in masks: the border between objects, and what is not annotated
_INVALID = 254
_PERSON = 1 + VOC_CLASSES.index("person")
_MASK_CLASSES = np.full(256, _INVALID, np.uint8)  # VOC's index -> ours: 0 background, 1 cat ... 5 sheep, 255 void
_MASK_CLASSES[: len(VOC_CLASSES) + 1] = 0
_MASK_CLASSES[[1 + VOC_CLASSES.index(name) for name in VOC_ANIMALS]] = range(1, 6)
_MASK_CLASSES[VOID] = VOID


@dataclass(frozen=True)
class Devkit:
    """The folder `VOCdevkit/VOC2012/`."""

    root: Path  # holds VOCdevkit/VOC2012
    layout = "VOC devkit"
    place = "VOCdevkit/VOC2012"

    @classmethod
    def find(cls, root):
        return cls(root) if (root / cls.place).is_dir() else None

    @property
    def folder(self):
        return self.root / self.place

    @functools.cached_property  # asked for every photograph, and it lists a folder of thousands of files
    def mask_folder(self):
        """`SegmentationClassAug` (masks of VOC and of SBD) where it holds any, else `SegmentationClass`."""
        both = self.folder / "SegmentationClassAug"
        return both.name if any(not hidden(path) for path in both.glob("*.png")) else "SegmentationClass"

    def files(self):
        lists = [self._list(image_set) for image_set in ("train", "val")]
        folders = [self.folder / name for name in ("JPEGImages", "Annotations", self.mask_folder)]
        return [path for path in lists if path.is_file()] + [
            path for folder in folders if folder.is_dir() for path in folder.iterdir() if not hidden(path)
        ]

    def counts(self):
        """Numbers of training and validation images with animals. Raises an error for a listed file that is missing."""
        splits = self.splits()
        for name in (name for images in splits.values() for name in images):
            if not self._photograph(name).is_file():
                raise FileNotFoundError(f"VOC 2012: JPEGImages/{name}.jpg is missing, though the split lists it.")
        return tuple(len(images) for images in splits.values())

    def splits(self):
        """{"train": {image name: its Annotation}, "val": ...}, without the images that show no animal.

        Raises ValueError for an image that both splits list, and for an annotation that cannot be read.
        """
        listed = {image_set: self._listed(image_set) for image_set in ("train", "val")}
        if both := sorted(set(listed["train"]) & set(listed["val"])):
            names = ", ".join(both[:3]) + (" ..." if len(both) > 3 else "")
            stand = "(1 image) stands" if len(both) == 1 else f"({len(both):,} images) stand"
            raise ValueError(
                f"VOC 2012: {names} {stand} in ImageSets/Main/train.txt and in val.txt, so the test would be on images "
                "of the training."
            )
        notes = {
            image_set: {name: read_annotation(self.folder / "Annotations" / f"{name}.xml") for name in names}
            for image_set, names in listed.items()
        }
        return {
            image_set: {name: note for name, note in images.items() if note.animals}
            for image_set, images in notes.items()
        }

    def _list(self, image_set):
        return self.folder / "ImageSets" / "Main" / f"{image_set}.txt"

    def _listed(self, image_set):
        short = f"VOC 2012: ImageSets/Main/{image_set}.txt"
        try:
            lines = self._list(image_set).read_text("utf-8-sig").splitlines()
        except FileNotFoundError:
            raise FileNotFoundError(f"{short} is missing from VOCdevkit/VOC2012.") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{short} cannot be read: it is not a list of names in UTF-8.") from error
        return [line.strip() for line in lines if line.strip()]

    def _photograph(self, name):
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def photograph(self, name, size=None):
        """A photograph as a Pillow image in RGB, as large as `size`, (width, height), where its annotation tells.

        Raises ValueError for another size, and for a picture that its EXIF data turn: its boxes may lie elsewhere.
        """
        short = f"VOC 2012: JPEGImages/{name}.jpg"
        with opened(self._photograph(name), short) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
            if turned not in (0, 1):
                raise ValueError(
                    f"{short} is turned by its EXIF data (orientation {turned}), so its boxes and mask may not fit. "
                    "Turn its pixels and remove the tag, or copy the published file."
                )
            if size not in (None, image.size):
                raise ValueError(
                    f"{short} is {image.width}x{image.height} pixels, but Annotations/{name}.xml was made for "
                    f"{size[0]}x{size[1]}."
                )
            return Image.fromarray(pixels(image, short, "RGB"))

    def mask(self, name, size):
        """The mask of an image of that size as a Pillow image of VOC's class indices, or None where there is none."""
        path = self.folder / self.mask_folder / f"{name}.png"
        if not path.is_file():
            return None
        short = f"VOC 2012: {self.mask_folder}/{name}.png"
        with opened(path, short) as image:
            if image.size != size:
                raise ValueError(
                    f"{short} is {image.width}x{image.height} pixels, but its image is {size[0]}x{size[1]}."
                )
            if image.mode not in ("P", "L"):
                raise ValueError(f"{short} must hold class indices (palette or grey), not {image.mode} colours.")
            if (_MASK_CLASSES[pixels(image, short)] == _INVALID).any():
                raise ValueError(f"{short} holds values that are neither a VOC class (0 to 20) nor void (255).")
            return image.copy()

    def read(self, size):
        """Named tensors of both splits, for squares of `size` pixels; see `helpers.data.voc_animals`.

        An image that cannot be read is an error and not left out: the numbers measured on the rest would quietly be
        numbers on another data set.
        """
        splits = self.splits()
        splits = {"train": splits["train"], "test": splits["val"]}
        most = max((len(note.animals) for images in splits.values() for note in images.values()), default=1)
        arrays = {}
        for split, images in splits.items():
            if not images:
                raise ValueError(f"VOC 2012: no image of the {split} split shows {', '.join(VOC_ANIMALS)}.")
            arrays |= {f"{split}.{key}": array for key, array in self._read_split(images, size, most, split).items()}
        return arrays

    def _read_split(self, images, size, most, split):
        from joblib import Parallel, delayed

        largest = [max(note.animals, key=lambda animal: animal.area).label for note in images.values()]
        names = np.array(list(images))[balanced_order(np.array(largest))].tolist()
        n = len(names)
        arrays = {
            "images": torch.empty(n, 3, size, size, dtype=torch.uint8),
            "boxes": torch.zeros(n, most, 4),
            "labels": torch.full((n, most), -1),
            "masks": torch.full((n, size, size), VOID, dtype=torch.uint8),
            "has_mask": torch.zeros(n, dtype=torch.bool),
            "has_person": torch.tensor([images[name].person for name in names]),
        }

        def read(i):
            note = images[names[i]]
            values, boxes, mask, masked_person = self._read_one(names[i], note, size)
            arrays["images"][i] = torch.from_numpy(values)
            arrays["boxes"][i, : len(boxes)] = torch.from_numpy(boxes)
            arrays["labels"][i, : len(boxes)] = torch.tensor([animal.label for animal in note.animals])
            if mask is not None:
                arrays["masks"][i] = torch.from_numpy(mask)
                arrays["has_mask"][i] = True
                arrays["has_person"][i] |= masked_person

        # threads, because Pillow lets go of Python's lock while it decodes and resizes
        jobs = Parallel(n_jobs=-1, prefer="threads", return_as="generator_unordered", batch_size=16)
        done = jobs(delayed(read)(i) for i in range(n))
        for _ in tqdm(done, total=n, desc=f"VOC-animals, {split}", leave=False, disable=settings.silent()):
            pass
        return arrays

    def _read_one(self, name, note, size):
        """Pixels uint8 (3, size, size), boxes float32 (animals, 4) in them, mask uint8 (size, size) or None, and
        whether the mask has a person."""
        photograph = self.photograph(name, note.size)
        width, height = photograph.size
        # 1-based inclusive pixels -> edges in a continuous plane, so that a box over the whole image is (0, 0, w, h)
        boxes = np.array([animal.box for animal in note.animals], np.float32) - (1, 1, 0, 0)
        boxes = np.clip(boxes, 0, (width, height, width, height))
        if ((boxes[:, 2:] - boxes[:, :2]) <= 0).any():
            raise ValueError(
                f"VOC 2012: a box in Annotations/{name}.xml is empty or lies outside its {width}x{height} image."
            )
        scaled = (boxes * (size / width, size / height, size / width, size / height)).astype(np.float32)
        # Pillow's reduction averages over all source pixels, so it is anti-aliased
        values = np.asarray(photograph.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        mask = self.mask(name, (width, height))
        person = False
        if mask is not None:
            person = bool((np.asarray(mask) == _PERSON).any())
            ours = Image.fromarray(_MASK_CLASSES[np.asarray(mask)])
            mask = np.array(ours.resize((size, size), Image.Resampling.NEAREST))
        return np.ascontiguousarray(values), scaled, mask, person
