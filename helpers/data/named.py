"""Pictures with names: those of CIFAR-10, and the animals of PASCAL VOC, cut out along their boxes."""

import torch
import torch.nn.functional as F

from helpers.data.cifar10 import cifar10
from helpers.data.classes import CIFAR10_CLASSES, VOC_ANIMALS
from helpers.data.dataset import Dataset, Provenance, Split
from helpers.data.voc import voc_animals

NAMED_CLASSES = CIFAR10_CLASSES + tuple(name for name in VOC_ANIMALS if name not in CIFAR10_CLASSES)
SIDE = 64  # px of a picture: an animal on a photograph of 128 px is about that large
VIEWS = (0.8, 1.0, 1.3, 1.8)  # side of a cut-out, relative to the box


def cut_out(split, view, side=SIDE):
    """The animals of a VOC split as images uint8 (animals, 3, side, side), and their classes in NAMED_CLASSES.

    view: side of what is cut out, relative to the box; beyond the photograph it is black.
    """
    from torchvision.ops import roi_align

    boxes, labels = split.targets["boxes"], split.targets["labels"]
    image, place = (labels >= 0).nonzero(as_tuple=True)
    boxes = boxes[image, place]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, view * (boxes[:, 2:] - boxes[:, :2]) / 2
    boxes = torch.cat([centre - half, centre + half], 1)
    pictures = []
    for start in range(0, len(split), 200):  # the photographs as floats, a few at a time
        here = (image >= start) & (image < start + 200)
        regions = torch.cat([image[here, None] - start, boxes[here]], 1)
        photographs = split.images[start : start + 200].float()
        pictures.append(roi_align(photographs, regions, side, aligned=True).round().to(torch.uint8))
    to_ours = torch.tensor([NAMED_CLASSES.index(name) for name in VOC_ANIMALS])
    return torch.cat(pictures), to_ours[labels[image, place]]


def named_pictures(side=SIDE):
    """CIFAR-10 at `side` px, and the animals of VOC, cut out in four sizes; the test split in one. A Dataset."""
    cifar, voc = cifar10(), voc_animals(size=224)

    def resized(images):
        if images.shape[-1] == side:
            return images
        parts = [
            F.interpolate(part.float(), side, mode="bicubic", antialias=True).clamp(0, 255).round().to(torch.uint8)
            for part in images.split(5_000)
        ]
        return torch.cat(parts)

    cuts = [cut_out(voc.train, view, side) for view in VIEWS]
    training = Split(
        torch.cat([resized(cifar.train.images), *(images for images, _ in cuts)]),
        torch.cat([cifar.train.targets, *(labels for _, labels in cuts)]),
    )
    images, labels = cut_out(voc.test, 1.3, side)
    test = Split(
        torch.cat([resized(cifar.test.images), images]),
        torch.cat([cifar.test.targets, labels]),
    )
    provenance = Provenance(
        f"{cifar.provenance.name} and {voc.provenance.name}",
        cifar.provenance.real and voc.provenance.real,
        f"{len(training):,} + {len(test):,} pictures at {side} px",
    )
    return Dataset(training, test, NAMED_CLASSES, provenance)
