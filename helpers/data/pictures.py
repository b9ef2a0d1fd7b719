"""Picture files, decoded or refused by name.

`short` is always the file's place in its data set, never a path on this machine.
"""

import numpy as np
from PIL import Image


def hidden(path):
    """Whether an operating system has put the file there: `.DS_Store`, and `._NAME` of macOS."""
    return path.name.startswith(".")


def opened(path, short):
    """The Pillow image at `path`, its pixels not read yet. Raises FileNotFoundError or ValueError."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{short} is missing, though the data set lists it.") from None
    except OSError as error:
        raise ValueError(f"{short} cannot be read: it is not an image, or damaged. Copy it again.") from error


def pixels(image, short, mode=None):
    """The pixels of a Pillow image, uint8 (H, W) or (H, W, C), in `mode` where one is given.

    Raises ValueError for a damaged file, and for more than 8 bits a channel, which Pillow would clip to white.
    """
    if image.mode.startswith(("I", "F")):
        bits = "16-bit" if "16" in image.mode else "32-bit"
        raise ValueError(f"{short} holds {bits} values; 0 to 255 are expected. Convert it to 8 bits a channel first.")
    try:
        return np.asarray(image.convert(mode) if mode else image)
    except (OSError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        raise ValueError(f"{short} cannot be read: it is damaged or cut short. Copy it again.") from error
