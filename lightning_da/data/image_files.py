"""Image files: their listing, their reading, and checks that are remembered."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lightning_da.data.base import DataError
from lightning_da.inputs import decode
from lightning_da.paths import cache_folder, write_whole

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SUFFIXES = tuple(suffix.encode() for suffix in SUFFIXES)
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a complete file in each format."""


class Listing(NamedTuple):
    """Image files below a folder.

    Attributes:
        names: Paths relative to the folder, shape (n,), as bytes: an array, because each loading process would copy a
            list of strings when it counts references to them.
        sizes: Bytes in each file, shape (n,); -1 if the file cannot be found, as behind a broken link.
        modified: Time of the last change of each file's content in nanoseconds, shape (n,).
        changed: Time of the last change of its status, which no program can set back, shape (n,).
    """

    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    modified: NDArray[np.int64]
    changed: NDArray[np.int64]

    def select(self, rows: NDArray[np.int64]) -> "Listing":
        """The files with these indices."""
        return Listing(self.names[rows], self.sizes[rows], self.modified[rows], self.changed[rows])


def list_images(folder: Path, parts: Sequence[str] = ("",)) -> Listing:
    """Lists the images in a folder and its sub-folders, without hidden files and folders.

    Links to files and folders are followed.

    Args:
        folder: The folder that names are relative to.
        parts: Sub-folders to list, one after the other; the empty name is the folder itself.

    Returns:
        The files, sorted by name within each part.

    Raises:
        DataError: If a link leads to one of its own parent folders.
    """
    listed = []
    for part in map(os.fsencode, parts):
        found: list[bytes] = []
        numbers: list[int] = []
        _scan(os.path.join(os.fsencode(folder), part), part and part + b"/", (), found, numbers)
        names, columns = np.array(found, dtype=np.bytes_), np.array(numbers, dtype=np.int64).reshape(-1, 3).T
        listed.append(Listing(names, *columns).select(np.argsort(names)))
    return Listing(*map(np.concatenate, zip(*listed, strict=True)))


def _scan(
    folder: bytes, prefix: bytes, above: tuple[os.stat_result, ...], names: list[bytes], numbers: list[int]
) -> None:
    """Appends the name of each image in a folder and its sub-folders, and its size and times, in any order."""
    place = os.stat(folder)
    if any(os.path.samestat(place, other) for other in above):
        raise DataError(f"{os.fsdecode(folder)}: the link leads to one of its own parent folders; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir():
                _scan(entry.path, prefix + entry.name + b"/", (*above, place), names, numbers)
            elif entry.name.lower().endswith(_SUFFIXES):
                names.append(prefix + entry.name)
                try:
                    stat = entry.stat()
                    numbers += stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
                except OSError:  # the check reports it
                    numbers += -1, 0, 0


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
    keys = _keys(files)
    memory = cache_folder() / "images" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.npy"
    new = np.flatnonzero(~np.isin(keys, _load(memory)))
    if not len(new):
        return {}

    def check(indices: NDArray[np.int64]) -> dict[int, str]:
        messages = {int(i): _fault(folder / os.fsdecode(files.names[i])) for i in indices}
        return {i: message for i, message in messages.items() if message is not None}

    with ThreadPoolExecutor() as pool:
        damaged = dict(chain.from_iterable(found.items() for found in pool.map(check, np.array_split(new, 64))))
    _save(memory, np.delete(keys, list(damaged)))
    return dict(sorted(damaged.items()))


def _keys(files: Listing) -> NDArray[np.uint64]:
    """A number for each file, shape (n,), that changes with its name, size and times."""
    table = pd.DataFrame(files._asdict() | {"names": files.names.astype(object)})
    return np.asarray(pd.util.hash_pandas_object(table, index=False, categorize=False), dtype=np.uint64)


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
