"""Write the data of this machine into a folder for `COURSE_DATA`, to carry it where there is no network."""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from helpers import data, folders, settings


def pack(folder, longer_side=224):
    """Write every data set that is on this machine into `folder`, and print what came of each.

    CIFAR-10 as contact sheets, without loss; VOC-animals as a devkit, images and masks reduced to `longer_side` pixels
    where they are larger; ISBI 2012 as it is. Each appears complete or not at all, and none replaces what is there.
    Raises ValueError for an impossible size, FileNotFoundError when there is nothing to pack.
    """
    if longer_side < 32:
        raise ValueError(f"longer side {longer_side} is too small for VOC's images. Use at least 32 pixels.")
    folder = Path(folder).expanduser()
    writers = {
        "cifar10": ("cifar10", _write_sheets),
        "voc2012": ("VOCdevkit", lambda source, target: _write_devkit(source, target / "VOC2012", longer_side)),
        "isbi2012": ("isbi2012", _copy_slices),
    }
    sources = {name: source for name in writers if (source := data.find(name))}
    if not sources:
        raise FileNotFoundError("There is nothing to pack: no real data are here. First: ./course data fetch cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        place, write = writers[name]
        if (folder / place).exists():
            print(f"{name}: {place}/ is in that folder already and stays as it is.")
            continue
        scratch = folder / f".{place}.packing"
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        try:
            write(source, scratch)
            os.replace(scratch, folder / place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"{name}: written to {place}/.")
    print(f"To use it: COURSE_DATA={folder.resolve()}")


def _write_sheets(source, target):
    arrays = source.read()
    for split in ("train", "test"):
        (target / split).mkdir(parents=True)
        images, labels = (arrays[f"{split}.{key}"].numpy() for key in ("images", "targets"))
        bar = tqdm(folders.CIFAR10_CLASSES, desc=f"packing CIFAR-10, {split}", leave=False, disable=settings.silent())
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
    everything, masked = [], []
    for split in ("train", "val"):
        names = list(source.animals(split))
        with_mask = [name for name in names if (source.folder / source.mask_folder / f"{name}.png").is_file()]
        everything, masked = everything + names, masked + with_mask
        _write_list(target, "Main", split, names)
        _write_list(target, "Segmentation", split, with_mask)
    _write_list(target, "Main", "trainval", sorted(everything))
    _write_list(target, "Segmentation", "trainval", sorted(masked))
    for name in tqdm(everything, desc="packing VOC-animals", leave=False, disable=settings.silent()):
        _write_reduced(source, target, name, longer_side)


def _write_list(target, task, split, names):
    (target / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _write_reduced(source, target, name, longer_side):
    """One image with its annotation and mask; copied as they are when the image is small enough."""
    photograph, note = f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml"
    mask = f"{source.mask_folder}/{name}.png"
    with Image.open(source.folder / photograph) as image:
        width, height = image.size
        scale = min(1, longer_side / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if scale < 1:
            reduced = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            reduced.save(target / photograph, quality=92)
    if (source.folder / mask).is_file():
        with Image.open(source.folder / mask) as image:
            image.resize(size, Image.Resampling.NEAREST).save(target / mask)
    if scale < 1:
        tree = ElementTree.parse(source.folder / note)
        _rescale(tree, size, size[0] / width, size[1] / height)
        tree.write(target / note)
    else:
        shutil.copyfile(source.folder / photograph, target / photograph)
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
    for path in source.files():
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.parent.name / path.name)
