"""Write the data of this machine into a folder for `COURSE_DATA`, to carry it where there is no network."""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from helpers import settings
from helpers.data.cifar10 import CIFAR10
from helpers.data.classes import CIFAR10_CLASSES
from helpers.data.isbi2012 import ISBI2012
from helpers.data.voc import VOC2012


def pack(folder, longer_side=224):
    """Write every data set that is on this machine into `folder`, and print what came of each.

    CIFAR-10 as contact sheets, without loss; VOC-animals as a devkit, images and masks reduced to `longer_side` pixels
    where they are larger; ISBI 2012 as it is. Each appears complete or not at all, and none replaces what is there.
    Raises ValueError for an impossible size, FileNotFoundError when there is nothing to pack, and the error of a
    data set that is damaged, after the others have been written.
    """
    if longer_side < 32:
        raise ValueError(f"longer side {longer_side} is too small for VOC's images. Use at least 32 pixels.")
    folder = Path(folder).expanduser()
    writers = (
        (CIFAR10, "cifar10", _write_sheets),
        (VOC2012, "VOCdevkit", lambda found, target: _write_devkit(found, target / "VOC2012", longer_side)),
        (ISBI2012, "isbi2012", _copy_slices),
    )
    here = [(found, place, write) for source, place, write in writers if (found := source.find())]
    if not here:
        raise FileNotFoundError("There is nothing to pack: no real data are here. First: ./course data fetch cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    errors = []
    for found, place, write in here:
        try:
            _pack_one(found, folder, place, write)
        except (ValueError, OSError) as error:
            errors.append(error)
    if errors:
        raise errors[0]
    print(f"To use it: COURSE_DATA={folder.resolve()}")


def _pack_one(found, folder, place, write):
    if (folder / place).exists():
        print(f"{place}/ is in that folder already and stays as it is.")
        return
    scratch = folder / f".{place}.packing"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    try:
        write(found, scratch)
        os.replace(scratch, folder / place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{place}/ is written.")


def _write_sheets(source, target):
    for split, (images, labels) in source.read().items():
        (target / split).mkdir(parents=True)
        bar = tqdm(CIFAR10_CLASSES, desc=f"packing CIFAR-10, {split}", leave=False, disable=settings.silent())
        for label, name in enumerate(bar):
            tiles = images[labels == label]
            columns = max(n for n in range(1, 101) if len(tiles) % n == 0)
            grid = tiles.reshape(-1, columns, *tiles.shape[1:]).transpose(0, 3, 1, 4, 2)
            height, width = grid.shape[0] * grid.shape[1], columns * grid.shape[3]
            sheet = Image.fromarray(np.ascontiguousarray(grid).reshape(height, width, 3))
            sheet.save(target / split / f"{name}.webp", lossless=True, quality=20, method=4)


def _write_devkit(source, target, longer_side):
    for place in ("JPEGImages", "Annotations", source.mask_folder, "ImageSets/Main", "ImageSets/Segmentation"):
        (target / place).mkdir(parents=True)
    everything, masked = {}, []
    for split, images in source.splits().items():
        with_mask = [name for name in images if (source.folder / source.mask_folder / f"{name}.png").is_file()]
        everything, masked = everything | images, masked + with_mask
        _write_list(target, "Main", split, images)
        _write_list(target, "Segmentation", split, with_mask)
    _write_list(target, "Main", "trainval", sorted(everything))
    _write_list(target, "Segmentation", "trainval", sorted(masked))
    bar = tqdm(everything.items(), desc="packing VOC-animals", leave=False, disable=settings.silent())
    for name, note in bar:
        _write_reduced(source, target, name, note.size, longer_side)


def _write_list(target, task, split, names):
    (target / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _write_reduced(source, target, name, annotated, longer_side):
    """One image with its annotation and mask; copied as they are when the image is small enough."""
    place, note = f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml"
    photograph = source.photograph(name, annotated)
    width, height = photograph.size
    scale = min(1, longer_side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    mask = source.mask(name, photograph.size)
    if mask is not None:
        mask.resize(size, Image.Resampling.NEAREST).save(target / source.mask_folder / f"{name}.png")
    if scale < 1:
        photograph.resize(size, Image.Resampling.LANCZOS).save(target / place, quality=92)
        tree = ElementTree.parse(source.folder / note)
        _rescale(tree, size, size[0] / width, size[1] / height)
        tree.write(target / note)
    else:
        shutil.copyfile(source.folder / place, target / place)
        shutil.copyfile(source.folder / note, target / note)


def _rescale(tree, size, x_scale, y_scale):
    """Scale the size and the boxes of an annotation in place; boxes stay whole pixels, 1-based and inclusive."""
    for element, value in zip(("width", "height"), size, strict=True):
        if (entry := tree.find(f"size/{element}")) is not None:
            entry.text = str(value)
    for box in tree.iter("bndbox"):
        for low, high, scale, most in (("xmin", "xmax", x_scale, size[0]), ("ymin", "ymax", y_scale, size[1])):
            start = min(round((float(box.findtext(low)) - 1) * scale), most - 1)
            end = round(float(box.findtext(high)) * scale)
            box.find(low).text, box.find(high).text = str(start + 1), str(max(start + 1, min(end, most)))


def _copy_slices(source, target):
    source.read()  # what cannot be read is not carried along
    for path in source.files():
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.parent.name / path.name)
