"""Arrays kept from one session to the next, so that photographs are decoded once.

One safetensors file per data set and size. It is memory-mapped when it is opened again, which costs neither time
nor memory for what is not used; its header carries a fingerprint of the files it was made from and a checksum.
"""

import hashlib
import os
import tempfile
import threading
import warnings
import zlib

from helpers import settings


def fingerprint(files, *details):
    """A hash of the names, sizes and times of `files` (paths) and of `details` (anything with a stable repr)."""
    stats = [(path.name, stat.st_size, stat.st_mtime_ns) for path in sorted(files) for stat in [path.stat()]]
    return hashlib.sha256(repr((stats, details)).encode()).hexdigest()


def prepared(name, folder, stamp, build):
    """What `build()` returns (a dict of tensors), from the cache where its fingerprint is still `stamp`.

    name: of the data set and its size; with `folder`, the source, it makes the file name. A damaged or outdated
    file is built anew. A cache that cannot be written to costs only the time, with a warning.
    """
    source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    path = settings.cache_folder() / "prepared" / f"{name}-{source}.safetensors"
    arrays = _read(path, stamp)
    if arrays is None:
        arrays = build()
        try:
            _write(path, stamp, arrays)
        except OSError as error:
            warnings.warn(
                f"The prepared arrays of {name} could not be kept ({error.strerror}), so the next session has to "
                "prepare them again. Set COURSE_CACHE to a folder with room that you can write to.",
                stacklevel=2,
            )
    return arrays


def _checksum(arrays):
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].numpy().reshape(-1).view("uint8"), crc)
    return str(crc)


def _read(path, stamp):
    """The arrays at `path`, or None when they are missing, outdated or damaged."""
    import safetensors

    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("fingerprint") != stamp:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError):
        return None
    return arrays if _checksum(arrays) == header.get("checksum") else None


def _write(path, stamp, arrays):
    """Write beside `path`, then rename: a reader sees the old file or the new one, never a part."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    os.close(handle)
    try:
        mode = _usual_mode(path.parent)
        try:
            save_file(arrays, scratch, metadata={"fingerprint": stamp, "checksum": _checksum(arrays)})
        except Exception as error:  # safetensors reports a full disk as an error of its own
            raise OSError(None, str(error).splitlines()[0]) from error
        os.chmod(scratch, mode)  # mkstemp and safetensors leave it to its owner alone
        os.replace(scratch, path)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


def _usual_mode(folder):
    """The permissions of a file that is made in `folder` in the ordinary way, as the umask has them."""
    probe = folder / f".mode-{os.getpid()}-{threading.get_ident()}"
    try:
        with open(probe, "w"):
            return probe.stat().st_mode & 0o666
    finally:
        probe.unlink(missing_ok=True)
