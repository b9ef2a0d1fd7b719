"""Write the drawn data in the official layouts, so that the readers of the real data sets can be exercised on it."""

import pickle
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from helpers.data.classes import CIFAR10_CLASSES

from .draw import check, cifar10
from .scenes import scenes


def write_cifar10(folder, n_train, n_test, seed=0, **options):
    """Write `folder/cifar-10-batches-py`: data_batch_1 ... 5, test_batch, batches.meta. Returns its Path.

    Arguments as of `cifar10`. The pickles hold what the official ones give with `encoding="latin1"`; their checksums
    differ, naturally.
    """
    train_images, train_labels, test_images, test_labels = cifar10(n_train, n_test, seed, **options)
    root = Path(folder) / "cifar-10-batches-py"
    root.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(np.arange(n_train), 5)
    for number, part in enumerate(parts, 1):
        _write_batch(root / f"data_batch_{number}", f"training batch {number} of 5", train_images, train_labels, part)
    _write_batch(root / "test_batch", "testing batch 1 of 1", test_images, test_labels, np.arange(n_test))
    meta = {"label_names": list(CIFAR10_CLASSES), "num_cases_per_batch": len(parts[0]), "num_vis": 3 * 32 * 32}
    _write_pickle(root / "batches.meta", meta)
    return root


def _write_batch(path, title, images, labels, part):
    batch = {
        "batch_label": title,
        "labels": labels[part].tolist(),
        "data": images[part].reshape(len(part), -1),  # all red values, then green, then blue
        "filenames": [f"{CIFAR10_CLASSES[labels[i]]}_s_{i:06d}.png" for i in part],
    }
    _write_pickle(path, batch)


def _write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))


def voc_palette():
    """VOC's colours: 256 RGB triples (list of 768 integers); the bits of the index are dealt out to R, G, B in turn."""
    palette = []
    for index in range(256):
        for channel in range(3):
            bits = ((index >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
            palette.append(sum(bits))
    return palette


def write_voc(folder, n_train, n_val, size=128, seed=0, *, test_style="train", mask_every=1):
    """Write `folder/VOCdevkit/VOC2012` with images, annotations, masks and the lists of both tasks. Returns its Path.

    Arguments as of `voc_animals`. mask_every: every how many images one has a mask; only those are listed in
    ImageSets/Segmentation, as only a part of the real images is. Annotations and masks name all VOC classes in
    sight, not only the animals. Images are JPEG of quality 95, so they differ slightly from `voc_animals`.
    """
    check(seed, test_style, n_train=n_train, n_val=n_val)
    root = Path(folder) / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True, exist_ok=True)
    names = {"train": [], "val": []}
    masked = {"train": [], "val": []}
    for split, style, count in (("train", "train", n_train), ("val", test_style, n_val)):
        for i, scene in enumerate(scenes(count, split, style, seed, size)):
            name = f"2012_{len(names['train']) + len(names['val']) + 1:06d}"
            names[split].append(name)
            Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            has_mask = i % mask_every == 0
            if has_mask:
                masked[split].append(name)
                _write_mask(root / "SegmentationClass" / f"{name}.png", scene.mask)
            _annotation(name, scene, has_mask).write(root / "Annotations" / f"{name}.xml")
    for task, listed in (("Main", names), ("Segmentation", masked)):
        for split, lines in {**listed, "trainval": listed["train"] + listed["val"]}.items():
            (root / "ImageSets" / task / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def _write_mask(path, mask):
    image = Image.fromarray(mask)
    image.putpalette(voc_palette())
    image.save(path)


def _annotation(name, scene, has_mask):
    height, width, depth = scene.image.shape
    root = ElementTree.Element("annotation")
    _fill(root, folder="VOC2012", filename=f"{name}.jpg")
    _fill(ElementTree.SubElement(root, "source"), database="drawn stand-in for PASCAL VOC 2012")
    _fill(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _fill(root, segmented=int(has_mask))
    for thing in scene.things:
        entry = ElementTree.SubElement(root, "object")
        _fill(entry, name=thing.name, pose="Unspecified", truncated=int(thing.truncated), occluded=int(thing.occluded))
        left, top, right, bottom = thing.box
        # VOC counts pixels from 1 and includes the last one.
        _fill(ElementTree.SubElement(entry, "bndbox"), xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)
        _fill(entry, difficult=int(thing.difficult))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _fill(parent, **texts):
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)
