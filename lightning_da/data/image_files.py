"""Image files: their listing, their reading, and checks that are remembered."""

import hashlib
import multiprocessing
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image

from lightning_da.data.base import DataError
from lightning_da.inputs import decode
from lightning_da.paths import cache_folder, write_whole
from lightning_da.process import cores

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
_NOT_READ = (b".gif", b".heic", b".heif", b".avif", b".jfif", b".jp2", b".svg")
"""Suffixes of other formats of pictures."""
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a complete file in each format."""
MANY = 20_000
"""Number of files from which on folders are listed in several processes."""


class Listing(NamedTuple):
    """Image files below a folder.

    Attributes:
        names: Paths relative to the folder, shape (n,), as bytes: an array, because each loading process would copy a
            list of strings when it counts references to them.
        sizes: Bytes in each file, shape (n,); -1 if the file cannot be found, as behind a broken link.
        keys: A number for each file, shape (n,), that changes with its name, its size, the time of the last change of
            its content, and that of its status, which no program can set back.
    """

    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    keys: NDArray[np.uint64]

    def select(self, rows: NDArray[np.int64]) -> "Listing":
        """The files with these indices."""
        return Listing(self.names[rows], self.sizes[rows], self.keys[rows])


def list_images(folder: Path, parts: Sequence[str] = ("",)) -> Listing:
    """Lists the images in a folder and its sub-folders, without hidden files and folders.

    Links to files and folders are followed. A warning counts the pictures in formats that are not read.

    Args:
        folder: The folder that names are relative to.
        parts: Sub-folders to list, one after the other; the empty name is the folder itself.

    Returns:
        The files, sorted by name within each part.

    Raises:
        DataError: If a link leads to one of its own parent folders.
    """
    listed, not_read = [], Counter[str]()
    for part in map(os.fsencode, parts):
        places = [_Place(os.path.join(os.fsencode(folder), part), part and part + b"/")]
        found = []
        while places:
            scanned = _scan_each(places)
            found += [files for files, _, _ in scanned]
            places = [inner for _, folders, _ in scanned for inner in folders]
            not_read.update(suffix for _, _, suffixes in scanned for suffix in suffixes)
        files = Listing(*map(np.concatenate, zip(*found, strict=True)))
        listed.append(files.select(np.argsort(files.names, kind="stable")))
    if not_read:
        what = ", ".join(f"{number} {suffix}" for suffix, number in sorted(not_read.items()))
        rank_zero_warn(
            f"{folder}: pictures in formats that are not read are left out ({what}); convert them to PNG or JPEG"
        )
    return Listing(*map(np.concatenate, zip(*listed, strict=True)))


class _Place(NamedTuple):
    """A folder to scan: its path, the start of the names of its files, and device and number of its parent folders."""

    path: bytes
    prefix: bytes
    parents: tuple[tuple[int, int], ...] = ()


class _Scanned(NamedTuple):
    """What is directly in a folder, sorted: its images, its sub-folders, the suffixes of pictures that are not read."""

    files: Listing
    folders: list[_Place]
    not_read: list[str]


def _scan_each(places: Sequence[_Place]) -> list[_Scanned]:
    """Scans folders, in several processes if they seem to have `MANY` files.

    The time goes to a question to the file system about each file, which threads would ask one after the other.
    """
    workers = min(len(places), _processes())
    if workers < 2 or len(os.listdir(places[0].path)) * len(places) < MANY:
        return list(map(_scan, places))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_scan, places, chunksize=1 + len(places) // (8 * workers)))


def _processes() -> int:
    """Number of processes that may list folders: one where a fork is not safe or not allowed."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return cores()


def _scan(place: _Place) -> _Scanned:
    here = os.stat(place.path)
    if (here.st_dev, here.st_ino) in place.parents:
        raise DataError(f"{os.fsdecode(place.path)}: the link leads to one of its own parent folders; remove it")
    parents = (*place.parents, (here.st_dev, here.st_ino))
    names: list[bytes] = []
    numbers: list[int] = []
    folders, not_read = [], []
    opened = os.open(place.path, os.O_RDONLY)
    try:
        for name in sorted(os.listdir(place.path)):
            if name.startswith(b"."):
                continue
            try:
                status = os.stat(name, dir_fd=opened)  # faster than by its whole path
            except OSError:  # a broken link, which the check reports
                status = None
            if status is not None and stat.S_ISDIR(status.st_mode):
                folders.append(_Place(os.path.join(place.path, name), place.prefix + name + b"/", parents))
            elif name.lower().endswith(_SUFFIXES):
                names.append(place.prefix + name)
                numbers += (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if status else (-1, 0, 0)
            elif name.lower().endswith(_NOT_READ):
                not_read.append(os.fsdecode(os.path.splitext(name)[1].lower()))
    finally:
        os.close(opened)
    columns = np.array(numbers, dtype=np.int64).reshape(-1, 3)
    table = pd.DataFrame(columns).assign(names=names)
    keys = np.asarray(pd.util.hash_pandas_object(table, index=False, categorize=False), dtype=np.uint64)
    return _Scanned(Listing(np.array(names, dtype=np.bytes_), columns[:, 0], keys), folders, not_read)


def find_damaged(folder: Path, files: Listing) -> dict[int, str]:
    """Finds the files that are no complete images.

    The start and the end of each file are read; the whole file only if they are not enough. Files that were found
    complete are remembered by path, size and times in the cache folder, and are not read again until these change.

    Args:
        folder: The folder that the names are relative to.
        files: The files.

    Returns:
        An error message for each damaged file, by its index.
    """
    memory = cache_folder() / "images" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.npy"
    known = _load(memory)
    if np.array_equal(files.keys, known):
        return {}
    new = np.flatnonzero(~np.isin(files.keys, known))
    if not len(new):
        return {}

    def check(indices: NDArray[np.int64]) -> dict[int, str]:
        messages = {int(i): _fault(folder / os.fsdecode(files.names[i])) for i in indices}
        return {i: message for i, message in messages.items() if message is not None}

    with ThreadPoolExecutor() as pool:
        damaged = dict(chain.from_iterable(found.items() for found in pool.map(check, np.array_split(new, 64))))
    _save(memory, np.delete(files.keys, list(damaged)))
    return dict(sorted(damaged.items()))


def _load(path: Path) -> NDArray[np.uint64]:
    try:
        keys: NDArray[np.uint64] = np.load(path)
        return keys
    except Exception:  # a broken file raises exceptions of many kinds, and the files are checked again
        return np.empty(0, dtype=np.uint64)


def _save(path: Path, keys: NDArray[np.uint64]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part, part.open("wb") as stream:
            np.save(stream, keys)
    except OSError:  # without a place to remember them, the next start checks the files again
        pass


def _fault(path: Path) -> str | None:
    """The error message about a file; None if it is a complete image."""
    if path.exists() and not path.is_file():
        return f"{path}: no regular file; remove it"
    try:
        if not _looks_complete(path):
            read_image(path)
            _check_end(path)
    except DataError as error:
        return str(error)
    return None


def _looks_complete(path: Path) -> bool:
    """Whether the start and the end of a file are those of its format; False also if this cannot be decided."""
    try:
        with path.open("rb") as stream, Image.open(stream) as image:
            end = ENDS.get(image.format or "")
            if image.format == "PNG":
                image.verify()  # compares its checksums
                return True
            if end is None:
                return False
            stream.seek(-len(end), os.SEEK_END)
            return stream.read() == end
    except Exception:  # `read_image` reports the reason
        return False


def _check_end(path: Path) -> None:
    """Refuses a file that lacks its end and was filled up with zeros, which decoders read without a word."""
    content = path.read_bytes()
    with Image.open(path) as image:
        jpeg, png = image.format == "JPEG", image.format == "PNG"
    if (jpeg and content.rfind(ENDS["JPEG"]) < content.rfind(b"\xff\xda")) or (png and ENDS["PNG"] not in content):
        raise DataError(f"{path}: not a readable image (its end is missing); remove or replace it")


def read_image(path: Path) -> Image.Image:
    """Reads an image file as RGB; see `lightning_da.inputs.decode`.

    Raises:
        DataError: If the file is not a readable image, its pixels are floating-point numbers, or integers outside 16
            bits.
    """
    try:
        return decode(path)
    except FileNotFoundError:
        raise DataError(f"{path}: the file is gone; put it back, or start again without it") from None
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds
        raise DataError(f"{path}: not a readable image ({error}); remove or replace it") from error
