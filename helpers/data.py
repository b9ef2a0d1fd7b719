"""The course's data: CIFAR-10, the animals of PASCAL VOC 2012, and the cells of ISBI 2012, as tensors in memory.

    from helpers.data import cifar10
    data = cifar10()
    data.train.images, data.train.targets     # uint8 (50000, 3, 32, 32), int64 (50000,)
    data.normalize(data.train.images[:64])    # float32, what a network takes

Where the data come from is decided by `COURSE_SOURCE` (see `helpers.settings`): `auto` takes real data that are on
this machine, in the folder `COURSE_DATA` or from an earlier download, and else draws a stand-in and says so; `real`
downloads what is missing; `standin` always draws. `data.provenance` says which it was and belongs on every result.

    python -m helpers.data                    # what is here
    python -m helpers.data fetch cifar10      # download
    python -m helpers.data pack FOLDER        # a folder to carry to a machine without a network
"""

import argparse
import re
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from numbers import Integral

import torch

from helpers import folders, settings
from helpers.prepared import fingerprint, prepared

TITLES = {"cifar10": "CIFAR-10", "voc2012": "PASCAL VOC 2012 animals", "isbi2012": "ISBI 2012"}
CIFAR10_CLASSES = folders.CIFAR10_CLASSES
VOC_ANIMALS = tuple(folders.ANIMALS)
READER = 1  # raise it when a reader gives other arrays from the same files
SEED = 0  # of the stand-ins
STANDIN_IMAGES = {"cifar10": (4_000, 1_000), "voc2012": (600, 150)}  # unless asked for more or fewer
STANDIN_LIMIT = (50_000, 10_000)


@dataclass(frozen=True)
class Provenance:
    """Where data come from: `str()` of it goes with every result."""

    name: str
    real: bool
    detail: str

    def __str__(self):
        return f"{'' if self.real else 'drawn stand-in for '}{self.name}, {self.detail}"


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (N, C, H, W) and what is known of them: a tensor, or a dict of tensors, with first axis N."""

    images: torch.Tensor
    targets: torch.Tensor | dict[str, torch.Tensor]

    def __len__(self):
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, the names of the classes, and where all this comes from."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    provenance: Provenance

    @property
    def mean(self):
        """Mean of each channel over the training images, float32 (C,), for pixels in [0, 1]."""
        return self._moments[0]

    @property
    def std(self):
        """Standard deviation of each channel over the training images, float32 (C,), for pixels in [0, 1]."""
        return self._moments[1]

    @cached_property
    def _moments(self):
        # a histogram per channel is exact, and needs no float copy of the images
        channels = self.train.images.shape[1]
        counts = torch.zeros(channels, 256, dtype=torch.float64)
        for chunk in self.train.images.split(1_000):
            for channel in range(channels):
                counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        values = torch.arange(256, dtype=torch.float64) / 255
        frequency = counts / counts.sum(1, keepdim=True)
        mean = frequency @ values
        variance = (frequency * (values - mean[:, None]) ** 2).sum(1)
        return mean.float(), variance.sqrt().float()

    def normalize(self, images):
        """(pixels / 255 - mean) / std for uint8 images (N, C, H, W), as float32 on the images' device.

        Raises TypeError for another dtype, ValueError for another shape.
        """
        channels = len(self.mean)
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
            kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(
                f"normalize() takes a uint8 tensor of pixels from 0 to 255, not {kind}. "
                "Floats have been normalised already, or need (255 * x).round().to(torch.uint8) first."
            )
        if images.ndim != 4 or images.shape[1] != channels:
            hint = " One image needs a batch axis: image[None]." if images.ndim == 3 else ""
            raise ValueError(
                f"normalize() takes images of shape (N, {channels}, H, W), not {tuple(images.shape)}.{hint}"
            )
        mean, std = self._per_channel(images.device)
        return images.float().sub_(255 * mean).div_(255 * std)

    def denormalize(self, x):
        """The pixels in [0, 1] behind normalised images (N, C, H, W); what lies outside is clipped."""
        channels = len(self.mean)
        if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(
                f"denormalize() takes floats of shape (N, {channels}, H, W), not {x.dtype} of shape {tuple(x.shape)}."
            )
        mean, std = self._per_channel(x.device)
        return (x * std + mean).clamp(0, 1)

    def _per_channel(self, device):
        # a grey image without any contrast would divide by zero
        return self.mean.to(device)[:, None, None], self.std.clamp_min(1e-6).to(device)[:, None, None]


# ----------------------------------------------------------------------------------------- the data sets


def cifar10(train=None, test=None):
    """CIFAR-10 (Krizhevsky, 2009): colour photographs of 32x32 pixels in ten classes. Returns a Dataset.

    train, test: how many images, None for all (50,000 and 10,000; of the stand-in 4,000 and 1,000). They are the first
    of a fixed order that deals out the classes in turn, so a subset is balanced and part of every larger one, and is
    the same whichever way the images are stored.

    Targets: int64 (N,), positions in `classes`, which are in the official order (airplane ... truck).
    Raises ValueError for a number that cannot be had, or for damaged files, which it names.
    """
    _check_counts(train, test)
    source = _real("cifar10")
    if source is None:
        from helpers import standin

        train, test = _standin_counts("cifar10", train, test)
        images, labels, test_images, test_labels = map(torch.from_numpy, standin.cifar10(train, test, seed=SEED))
        splits = Split(images, labels), Split(test_images, test_labels)
        return Dataset(*splits, CIFAR10_CLASSES, _standin_provenance("cifar10", train, test))
    stamp = fingerprint(source.files(), READER)
    arrays = prepared("cifar10", source.folder, stamp, source.read)
    splits = [_first(arrays, split, n, "cifar10") for split, n in (("train", train), ("test", test))]
    detail = _amounts(arrays, splits) + " images"
    return Dataset(*splits, CIFAR10_CLASSES, Provenance(TITLES["cifar10"], True, detail))


def voc_animals(size=128, train=None, test=None):
    """The images of PASCAL VOC 2012 that show a cat, cow, dog, horse or sheep. Returns a Dataset.

    size: each image is resized, anti-aliased, to size x size pixels (32 to 512). That does not keep its aspect ratio;
    boxes and masks are scaled alike. train, test: how many images, None for all of the official train and val
    splits; they are the first of a fixed order that deals out the classes (of the largest animal) in turn.

    Targets, with N images and at most M animals in one of them:
    `boxes` float32 (N, M, 4): left, top, right, bottom in pixels of the resized image, where (0, 0, size, size) is all
    of it; rows beyond an image's animals are 0. `labels` int64 (N, M): positions in `classes`, -1 for those rows.
    `masks` uint8 (N, size, size): 0 background, 1 + position in `classes`, 255 void, and 255 everywhere for an
    image without a mask; other classes of VOC are background. `has_mask` bool (N,).

    Left out are animals marked difficult and images without any other. Masks are those of
    `SegmentationClassAug/` (VOC's and those of SBD) where that folder is present, else of `SegmentationClass/`.
    The arrays are kept in the cache. Raises ValueError for a size or number that cannot be had, or for damaged files,
    which it names.
    """
    _check_size(size)
    _check_counts(train, test)
    source = _real("voc2012")
    if source is None:
        from helpers import standin

        train, test = _standin_counts("voc2012", train, test)
        drawn = standin.voc_animals(train, test, size=size, seed=SEED)
        splits = []
        for arrays in drawn:
            arrays = {key: torch.from_numpy(array) for key, array in arrays.items()}
            splits.append(Split(arrays.pop("images"), arrays))
        return Dataset(*splits, VOC_ANIMALS, _standin_provenance("voc2012", train, test, f" at {size} px"))
    stamp = fingerprint(source.files(), READER, size, source.mask_folder)
    arrays = prepared(f"voc2012-{size}", source.folder, stamp, lambda: source.read(size))
    splits = [_first(arrays, split, n, "voc2012") for split, n in (("train", train), ("test", test))]
    masks = ", masks of VOC and SBD" if source.mask_folder == "SegmentationClassAug" else ""
    detail = f"{_amounts(arrays, splits)} images at {size} px{masks}"
    return Dataset(*splits, VOC_ANIMALS, Provenance(TITLES["voc2012"], True, detail))


def with_masks(data):
    """The images of `voc_animals` that have a mask; targets are the masks alone, uint8 (N, H, W), 255 is void."""

    def keep(split):
        known = split.targets["has_mask"]
        return Split(split.images[known], split.targets["masks"][known])

    train, test = keep(data.train), keep(data.test)
    detail = re.sub(r"[\d,]+ \+ [\d,]+ images", f"{len(train):,} + {len(test):,} images", data.provenance.detail)
    return replace(data, train=train, test=test, provenance=replace(data.provenance, detail=detail))


def largest_animal(data):
    """The images of `voc_animals` with one label each, int64 (N,): the class of the animal with the largest box."""

    def label(split):
        left, top, right, bottom = split.targets["boxes"].unbind(2)
        largest = ((right - left) * (bottom - top)).argmax(1, keepdim=True)
        return Split(split.images, split.targets["labels"].gather(1, largest)[:, 0])

    return replace(data, train=label(data.train), test=label(data.test))


def isbi2012(size=None):
    """The annotated slices of the ISBI 2012 challenge: cells under the electron microscope. Returns a Dataset.

    size: side in pixels (32 to 512), None for the 512 that they have. Images uint8 (N, 1, size, size); targets are
    masks uint8 (N, size, size): 0 membrane, 1 inside a cell. The first 25 slices of the stack train, the last 5 test:
    neighbours resemble each other, so a random split would flatter. The stand-in draws cells that touch.
    """
    if size is not None:
        _check_size(size)
    source = _real("isbi2012")
    train, test = folders.SLICES
    if source is None:
        from helpers import cells

        images, masks = cells.draw(train + test, SEED)
        provenance = _standin_provenance("isbi2012", train, test)
    else:
        images, masks = source.read()
        provenance = Provenance(TITLES["isbi2012"], True, f"{train} + {test} images")
    if size is not None:
        from torch.nn import functional

        images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        masks = functional.interpolate(masks[:, None], size=(size, size), mode="nearest-exact")[:, 0]
    splits = Split(images[:train], masks[:train]), Split(images[train:], masks[train:])
    return Dataset(*splits, ("membrane", "cell"), provenance)


# --------------------------------------------------------------------------------- how many, and from where


def _check_size(size):
    if not isinstance(size, Integral) or not 32 <= size <= 512:
        raise ValueError(f"size={size!r} is not possible. Use a whole number of pixels from 32 to 512.")


def _check_counts(train, test):
    for split, n in (("train", train), ("test", test)):
        if n is None:
            continue
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise TypeError(f"{split}={n!r} is not a number of images. Use a whole number, or None for all.")
        if n <= 0:
            raise ValueError(f"{split}={n} leaves nothing. Use a positive number of images, or None for all.")


def _first(arrays, split, n, name):
    """The first `n` of a split of named tensors, as a Split."""
    arrays = {key.removeprefix(f"{split}."): array for key, array in arrays.items() if key.startswith(f"{split}.")}
    available = len(arrays["images"])
    if n is not None and n > available:
        raise ValueError(
            f"{split}={n:,} is more than there is: {TITLES[name]} has {available:,} {split} images here. "
            "Ask for fewer, or for None to get all."
        )
    arrays = {key: array[:n] for key, array in arrays.items()}
    images = arrays.pop("images")
    return Split(images, arrays.get("targets", arrays))


def _amounts(arrays, splits):
    """How many images of each split: `50,000 + 10,000`, or `5,000 of 50,000 + 10,000` when only a part is used."""
    texts = []
    for split, name in zip(splits, ("train", "test"), strict=True):
        available = len(arrays[f"{name}.images"])
        texts.append(f"{len(split):,}" + (f" of {available:,}" if len(split) < available else ""))
    return " + ".join(texts)


def _standin_counts(name, train, test):
    counts = []
    for split, n, default, limit in zip(
        ("train", "test"), (train, test), STANDIN_IMAGES[name], STANDIN_LIMIT, strict=True
    ):
        if n is not None and n > limit:
            raise ValueError(f"{split}={n:,} is more than the stand-in draws: {limit:,} {split} images. Ask for fewer.")
        counts.append(default if n is None else int(n))
    return counts


def _standin_provenance(name, train, test, size=""):
    return Provenance(TITLES[name], False, f"seed {SEED}, {train:,} + {test:,} images{size}")


def find(name):
    """The layout (see `helpers.folders`) in which real data are on this machine, or None.

    Looks into `COURSE_DATA` first, then among the downloads. Raises ValueError for a name that does not exist.
    """
    _check_name(name)
    roots = [settings.data_folder(), settings.cache_folder()]
    return next((found for root in roots if root and (found := folders.find(name, root))), None)


def _check_name(name):
    if name not in TITLES:
        raise ValueError(f"There is no data set {name!r}. Use one of: {', '.join(TITLES)}.")


def _real(name):
    """Real data as `COURSE_SOURCE` wants them; None means: draw the stand-in (the reader has been told)."""
    if settings.source() == "standin":
        _announce(name, f"Drawn stand-in for {TITLES[name]}", "as COURSE_SOURCE=standin asks for.")
        return None
    found = find(name)
    if found is None and settings.source() == "real":
        fetch(name)
        found = find(name)
    if found is None:
        where = ", and not in the folder of COURSE_DATA either" if settings.data_folder() else ""
        _announce(
            name,
            f"Drawn stand-in, not {TITLES[name]}",
            f"The real images are not among the downloads on this machine{where}, so what follows is measured on "
            f"drawn ones and must not be compared with the paper. {_remedy(name)}",
        )
    return found


def _remedy(name):
    if name == "isbi2012":
        return WHERE_TO_GET_ISBI
    return f"To download the real ones ({_archive(name).size}): ./course data fetch {name}"


WHERE_TO_GET_ISBI = (
    "The slices of ISBI 2012 cannot be downloaded without registering with the challenge. If you have them, put the "
    "30 annotated ones into a folder as isbi2012/image/00.png ... 29.png, with their masks (255 inside a cell, "
    "0 membrane) as isbi2012/label/00.png ... 29.png, and set COURSE_DATA to that folder."
)

_announced = set()


def _announce(name, heading, text):
    """Show a banner, once per process and data set: HTML in a notebook, a line of text elsewhere."""
    if name in _announced:
        return
    _announced.add(name)
    plain = f"{heading}: {text[0].lower()}{text[1:]}" if text.startswith("as ") else f"{heading}. {text}"
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython.display import display

        style = "border-left: 0.3em solid #b45309; padding: 0.3em 0.8em; margin: 0.5em 0"
        page = f'<div class="course-standin" style="{style}"><strong>{escape(heading)}.</strong> {escape(text)}</div>'
        display({"text/html": page, "text/plain": plain}, raw=True)
    else:
        print(plain, flush=True)


def _archive(name):
    from helpers import download

    return {"cifar10": download.cifar10_archive, "voc2012": download.voc2012_archive}[name]()


def fetch(name):
    """Download a data set, `"cifar10"` or `"voc2012"`, unless it is on this machine already.

    A download that was cut off goes on where it stopped. Raises ValueError for an unknown name, FileNotFoundError
    for `"isbi2012"`, which has to be put there by hand, ConnectionError when no mirror delivers.
    """
    if find(name) is not None:
        return
    if name == "isbi2012":
        raise FileNotFoundError(WHERE_TO_GET_ISBI)
    from helpers import download

    download.fetch(_archive(name), settings.cache_folder())


# --------------------------------------------------------------------------------------- the command


def status():
    """Print which data sets are here, from where, and how many images they hold."""
    for name, title in TITLES.items():
        found = find(name)
        if found is None:
            print(f"{name:9} not here. {_remedy(name)}")
        else:
            train, test = found.counts()
            print(f"{name:9} {title}, {train:,} + {test:,} images: {found.layout} in {found.folder}")
    print(f"COURSE_SOURCE={settings.source()}; COURSE_DATA={settings.data_folder() or '(not set)'}; ", end="")
    print(f"downloads and prepared arrays: {settings.cache_folder()}")


def main(arguments=None):
    """The command `python -m helpers.data`; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.data", description="The data sets of the course.")
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("status", help="what is on this machine (the default)")
    fetching = verbs.add_parser("fetch", help="download a data set")
    fetching.add_argument("name", metavar="NAME", help=" or ".join(TITLES))
    packing = verbs.add_parser("pack", help="write the data that are here into a folder to carry along")
    packing.add_argument("folder", metavar="FOLDER")
    packing.add_argument("--longer-side", type=int, default=224, metavar="PIXELS", help="of VOC's images (224)")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "fetch":
            fetch(options.name)
            print(f"{TITLES[options.name]} is on this machine.")
        elif options.verb == "pack":
            from helpers.pack import pack

            pack(options.folder, options.longer_side)
        else:
            status()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
