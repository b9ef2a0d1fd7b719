"""The animals of PASCAL VOC 2012."""

import re
from dataclasses import replace

import torch

from helpers.data import amounts, download, standin
from helpers.data.classes import VOC_ANIMALS
from helpers.data.dataset import Dataset, Provenance, Split
from helpers.data.devkit import VOID, Devkit
from helpers.data.prepared import fingerprint, prepared
from helpers.data.source import READER, SEED, Source

DRAWN = (600, 150)  # images of the stand-in, unless asked for more or fewer
PUBLISHED = 3_600  # photographs of train and val together, nearly; how they are divided differs between copies

_RENAME = "The folder with JPEGImages/ must be called VOCdevkit/VOC2012; COURSE_DATA is the one that holds VOCdevkit/."
VOC2012 = Source(
    "voc2012",
    "PASCAL VOC 2012 animals",
    (Devkit,),
    download.voc2012_archive,
    "",
    {"/".join(["*"] * depth + ["JPEGImages"]): _RENAME for depth in range(4)},
)


def voc_animals(size=128, train=None, test=None):
    """The images of PASCAL VOC 2012 that show a cat, cow, dog, horse or sheep. Returns a Dataset.

    size: each image is resized, anti-aliased, to size x size pixels (32 to 512). That does not keep its aspect ratio;
    boxes and masks are scaled alike. train, test: how many images, None for all of the official train and val
    splits; they are the first of a fixed order that deals out the classes (of the largest animal) in turn.

    Targets, with N images and at most M animals in one of them:
    `boxes` float32 (N, M, 4): left, top, right, bottom in pixels of the resized image, where (0, 0, size, size) is all
    of it; rows beyond an image's animals are 0. `labels` int64 (N, M): positions in `classes`, -1 for those rows.
    `masks` uint8 (N, size, size): 0 background, 1 + position in `classes`, 255 void, and 255 everywhere for an
    image without a mask; other classes of VOC are background. `has_mask` bool (N,). `has_person` bool (N,): whether
    the annotation or the mask names a person.

    Left out are animals marked difficult and images without any other. Masks are those of
    `SegmentationClassAug/` (VOC's and those of SBD) where that folder holds any, else of `SegmentationClass/`.
    The arrays are kept in the cache. Where the files hold clearly fewer images than were published, the provenance says
    so. Raises ValueError for a size or number that cannot be had, or for damaged files, which it names.
    """
    amounts.check_size(size)
    amounts.check_counts(train, test)
    source = VOC2012.real()
    if source is None:
        train, test = amounts.of_standin(train, test, DRAWN)
        splits = []
        for arrays in standin.voc_animals(train, test, size=size, seed=SEED):
            arrays = {key: torch.from_numpy(array) for key, array in arrays.items()}
            splits.append(Split(arrays.pop("images"), arrays))
        return Dataset(*splits, VOC_ANIMALS, VOC2012.standin_provenance(train, test, f" at {size} px"))
    stamp = fingerprint(source.files(), READER, size, source.mask_folder)
    arrays = prepared(f"voc2012-{size}", source.folder, stamp, lambda: source.read(size))
    splits = [amounts.first(arrays, split, n, VOC2012.title) for split, n in (("train", train), ("test", test))]
    masks = ", masks of VOC and SBD" if source.mask_folder == "SegmentationClassAug" else ""
    detail = f"{amounts.said(arrays, splits)} images at {size} px{masks}"
    if sum(len(arrays[f"{split}.images"]) for split in ("train", "test")) < 0.95 * PUBLISHED:
        detail += f" (published: some {PUBLISHED:,})"
    return Dataset(*splits, VOC_ANIMALS, Provenance(VOC2012.title, True, detail))


def with_masks(data):
    """The images of `voc_animals` that have a mask; targets are the masks alone, uint8 (N, H, W), 255 is void."""

    def keep(split):
        known = split.targets["has_mask"]
        return Split(split.images[known], split.targets["masks"][known])

    train, test = keep(data.train), keep(data.test)
    number = r"[\d,]+(?: of [\d,]+)?"
    amount = f"{len(train):,} + {len(test):,} images"
    detail = re.sub(rf"{number} \+ {number} images", amount, data.provenance.detail)
    return replace(data, train=train, test=test, provenance=replace(data.provenance, detail=detail))


def largest_animal(data):
    """The images of `voc_animals` with one label each, int64 (N,): the class of the animal with the largest box."""

    def label(split):
        left, top, right, bottom = split.targets["boxes"].unbind(2)
        largest = ((right - left) * (bottom - top)).argmax(1, keepdim=True)
        return Split(split.images, split.targets["labels"].gather(1, largest)[:, 0])

    return replace(data, train=label(data.train), test=label(data.test))


def clear_examples(split, each=1):
    """Positions of photographs of a `voc_animals` split that are good to look at, class by class, int64.

    These are the first `each` of every class (of the largest animal) with one animal alone, whose box covers a fifth to
    half of the picture and whose mask is in one piece, as nothing stands before it, and without a person. Where a class
    has too few of them, its other photographs follow.
    """
    targets, area = split.targets, split.images.shape[-2] * split.images.shape[-1]
    left, top, right, bottom = targets["boxes"].unbind(2)
    share, largest = ((right - left) * (bottom - top) / area).max(1)
    label = targets["labels"].gather(1, largest[:, None])[:, 0]
    alone = (targets["labels"] >= 0).sum(1) == 1
    clear = alone & (share >= 0.2) & (share <= 0.5) & targets["has_mask"] & ~targets["has_person"]
    for i in clear.nonzero()[:, 0].tolist():
        clear[i] = _pieces(targets["masks"][i]) == 1
    chosen = []
    for each_class in range(len(VOC_ANIMALS)):
        ours = label == each_class
        chosen.append(torch.cat([(ours & clear).nonzero(), (ours & ~clear).nonzero()])[:each, 0])
    return torch.cat(chosen)


def _pieces(mask):
    """How many connected pieces the animals of a mask (H, W) have; diagonal neighbours are connected."""
    from scipy import ndimage

    return ndimage.label((mask > 0) & (mask < VOID), ndimage.generate_binary_structure(2, 2))[1]
