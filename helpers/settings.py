"""What a reader can set from outside, read when it is asked for and never at import.

| variable         | values                      | meaning                                              |
|------------------|-----------------------------|------------------------------------------------------|
| `COURSE_PROFILE` | `full` (default), `quick`   | real training, or every cell in seconds              |
| `COURSE_SOURCE`  | `auto` (default), `real`, `standin` | which data a chapter works on                |
| `COURSE_DATA`    | a folder                    | data sets that you already have                      |
| `COURSE_CACHE`   | a folder                    | where downloads and prepared arrays are kept         |
| `COURSE_SILENT`  | `1`                         | no progress bars (set while outputs are being saved) |
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("full", "quick")
SOURCES = ("auto", "real", "standin")


def _choice(variable, values):
    value = os.environ.get(variable) or values[0]
    if value not in values:
        raise ValueError(f"{variable}={value!r} is unknown. Use one of: {', '.join(values)}.")
    return value


def profile():
    """`"full"` or `"quick"`, from `COURSE_PROFILE`."""
    return _choice("COURSE_PROFILE", PROFILES)


def pick(**by_profile):
    """The value for the profile in force: `pick(full=10, quick=1)`.

    Raises ValueError when a profile is missing or one is named that does not exist.
    """
    if set(by_profile) != set(PROFILES):
        raise ValueError(f"pick() wants exactly these profiles: {', '.join(PROFILES)}; got {sorted(by_profile)}.")
    return by_profile[profile()]


def source():
    """`"auto"`, `"real"` or `"standin"`, from `COURSE_SOURCE`."""
    return _choice("COURSE_SOURCE", SOURCES)


def silent():
    """Whether progress bars are off, because the outputs of this run will be kept."""
    return os.environ.get("COURSE_SILENT") == "1"


def data_folder():
    """The reader's own data folder as a Path, or None when `COURSE_DATA` is not set.

    Raises FileNotFoundError when it is set to a folder that is not there.
    """
    folder = os.environ.get("COURSE_DATA")
    if not folder:
        return None
    path = _folder("COURSE_DATA", folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"COURSE_DATA={folder!r} is not a folder. Correct it, or unset it to work with downloads or the stand-in."
        )
    return path


def cache_folder():
    """Where downloads and prepared arrays live: `COURSE_CACHE`, else the user's cache folder."""
    folder = os.environ.get("COURSE_CACHE")
    if folder:
        return _folder("COURSE_CACHE", folder)
    import pooch

    path = Path(pooch.os_cache("cnn-papers"))
    if not path.is_absolute():
        raise FileNotFoundError(
            "There is no home folder here for downloads and prepared arrays. Set COURSE_CACHE to a folder for them."
        )
    return path


def caller_path(text):
    """A path that a reader typed, as an absolute Path: `~` is home, and relative is to where `./course` was called.

    `./course` works in its own folder and notes the caller's in `COURSE_CALLER`; kernels that it starts inherit that.
    Raises RuntimeError for the home folder of nobody.
    """
    return (Path(os.environ.get("COURSE_CALLER", "")) / Path(text).expanduser()).absolute()


def _folder(variable, text):
    try:
        return caller_path(text)
    except RuntimeError:
        raise FileNotFoundError(
            f"{variable}={text!r} begins with a home folder that does not exist here. Write the whole path."
        ) from None
