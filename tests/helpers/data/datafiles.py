"""Small data sets written file by file, and how two Datasets are compared."""

import hashlib

import numpy as np
import torch
import torchvision
from PIL import Image

from helpers.data import CIFAR10_CLASSES


def same(first, second):
    """Whether two Datasets hold the same images and targets in the same order."""
    pairs = [(first.train, second.train), (first.test, second.test)]
    return all(torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) for a, b in pairs)


def as_set(images):
    return sorted(image.tobytes() for image in np.asarray(images))


def same_scenes(first, second):
    return all(
        torch.equal(a.images, b.images) and all(torch.equal(a.targets[key], b.targets[key]) for key in a.targets)
        for a, b in ((first.train, second.train), (first.test, second.test))
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def trust_batches(monkeypatch, folder):
    """Let torchvision's checksums be those of the batches in `folder`."""
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    official = torchvision.datasets.CIFAR10
    monkeypatch.setattr(official, "train_list", [[name, md5[name]] for name, _ in official.train_list])
    monkeypatch.setattr(official, "test_list", [[name, md5[name]] for name, _ in official.test_list])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": md5["batches.meta"]})


def write_sheets(folder, images, labels, split, columns, suffix=".webp"):
    (folder / "cifar10" / split).mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(CIFAR10_CLASSES):
        tiles = images[labels == label].transpose(0, 2, 3, 1)
        rows = [np.concatenate(tiles[start : start + columns], 1) for start in range(0, len(tiles), columns)]
        sheet = Image.fromarray(np.concatenate(rows, 0))
        sheet.save(folder / "cifar10" / split / (name + suffix), lossless=True)


def thing(name, box, difficult=0, part=None):
    parts = f"<part><name>{part}</name><bndbox><xmin>1</xmin></bndbox></part>" if part else ""
    edges = "".join(
        f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{parts}<difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"


class TinyVOC:
    """A devkit of flat 80x40 photographs, written file by file."""

    def __init__(self, root):
        self.root = root / "VOCdevkit" / "VOC2012"
        for place in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
            (self.root / place).mkdir(parents=True)
        self.names = {"train": [], "val": []}
        for split in self.names:
            self.add(split, f"{split}_dog", thing("dog", (1, 1, 80, 40)))

    def add(self, split, name, *objects, mask=None, colour=(200, 100, 50), size=(80, 40)):
        Image.new("RGB", size, colour).save(self.root / "JPEGImages" / f"{name}.jpg", quality=95)
        self.note(name, f"<filename>{name}.jpg</filename>", *objects)
        if mask is not None:
            self.mask(name, mask)
        self.names[split].append(name)
        lines = "".join(f"{line}\n" for line in self.names[split])
        (self.root / "ImageSets/Main" / f"{split}.txt").write_text(lines)

    def note(self, name, *parts):
        text = f"<annotation>{''.join(parts)}</annotation>"
        (self.root / "Annotations" / f"{name}.xml").write_text(text)

    def mask(self, name, array, place="SegmentationClass", mode="P"):
        (self.root / place).mkdir(exist_ok=True)
        image = Image.fromarray(array)
        if mode == "P":
            image.putpalette([value // 3 for value in range(768)])
        image.save(self.root / place / f"{name}.png")
