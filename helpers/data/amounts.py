"""How many images: what can be asked for, and how it is said."""

from numbers import Integral

from helpers.data.dataset import Split

STANDIN_LIMIT = (50_000, 10_000)


def check_size(size):
    """Raise ValueError unless `size` is a side in pixels that the course works with."""
    if not isinstance(size, Integral) or not 32 <= size <= 512:
        raise ValueError(f"size={size!r} is not possible. Use a whole number of pixels from 32 to 512.")


def check_counts(train, test):
    """Raise TypeError or ValueError for what is no number of images; None asks for all."""
    for split, n in (("train", train), ("test", test)):
        if n is None:
            continue
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise TypeError(f"{split}={n!r} is not a number of images. Use a whole number, or None for all.")
        if n <= 0:
            raise ValueError(f"{split}={n} leaves nothing. Use a positive number of images, or None for all.")


def first(arrays, split, n, title):
    """The first `n` images of "train" or "test" as a Split; arrays: named tensors of both, `train.images` and so on."""
    arrays = {key.removeprefix(f"{split}."): array for key, array in arrays.items() if key.startswith(f"{split}.")}
    available = len(arrays["images"])
    if n is not None and n > available:
        raise ValueError(
            f"{split}={n:,} is more than there is: {title} has {available:,} {split} images here. "
            "Ask for fewer, or for None to get all."
        )
    arrays = {key: array[:n] for key, array in arrays.items()}
    images = arrays.pop("images")
    return Split(images, arrays.get("targets", arrays))


def said(arrays, splits):
    """How many images of each split: `50,000 + 10,000`, or `5,000 of 50,000 + 10,000` when only a part is used."""
    texts = []
    for split, name in zip(splits, ("train", "test"), strict=True):
        available = len(arrays[f"{name}.images"])
        texts.append(f"{len(split):,}" + (f" of {available:,}" if len(split) < available else ""))
    return " + ".join(texts)


def of_standin(train, test, default):
    """How many images to draw, as (train, test), where None asks for `default`."""
    counts = []
    for split, n, usual, limit in zip(("train", "test"), (train, test), default, STANDIN_LIMIT, strict=True):
        if n is not None and n > limit:
            raise ValueError(f"{split}={n:,} is more than the stand-in draws: {limit:,} {split} images. Ask for fewer.")
        counts.append(usual if n is None else int(n))
    return counts
