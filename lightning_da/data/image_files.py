"""Image files: their listing, their reading, and checks that are remembered."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lightning_da.data.base import DataError
from lightning_da.paths import cache_folder, write_whole

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
"""Last bytes of a complete file in each format."""


class Listing(NamedTuple):
    """Image files below a folder.

    Attributes:
        names: Paths relative to the folder, shape (n,), as bytes: an array, because each loading process would copy a
            list of strings when it counts references to them.
        sizes: Bytes in each file, shape (n,); -1 if the file cannot be found, as behind a broken link.
        times: Nanoseconds of the last change of content and of status, shape (n, 2).
    """

    names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]

    def select(self, indices: NDArray[np.int64]) -> "Listing":
        """The files with these indices."""
        return Listing(self.names[indices], self.sizes[indices], self.times[indices])


def list_images(folder: Path, parts: Sequence[str] = ("",)) -> Listing:
    """Lists the images in a folder and its sub-folders, without hidden files and folders.

    Links to files and folders are followed.

    Args:
        folder: The folder that names are relative to.
        parts: Sub-folders to list, one after the other; the empty name is the folder itself.

    Returns:
        The files, sorted by name within each part.

    Raises:
        DataError: If a link leads to a folder that it is in.
    """
    rows = [row for part in parts for row in sorted(_scan(os.path.join(folder, part), f"{part}/".lstrip("/"), ()))]
    return Listing(
        np.array([row[0] for row in rows], dtype=np.bytes_),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2:] for row in rows], dtype=np.int64).reshape(-1, 2),
    )


def _scan(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, size and times of each image in a folder and its sub-folders, in any order."""
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in above:
        raise DataError(f"{folder}: the link leads to a folder that it is in; remove it")
    above = (*above, (place.st_dev, place.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.is_dir():
                yield from _scan(entry.path, f"{prefix}{entry.name}/", above)
            elif entry.name.lower().endswith(SUFFIXES):
                try:
                    found = entry.stat()
                    stat = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                except OSError:  # the check reports it
                    stat = (-1, 0, 0)
                yield os.fsencode(prefix + entry.name), *stat


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
    table = pd.DataFrame({"name": files.names.astype(object), "size": files.sizes})
    table[["modified", "changed"]] = files.times
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
    """Reads an image as RGB.

    Grey images get three equal channels. Transparency is dropped and CMYK converted by Pillow, as in torchvision and
    timm. Pixels of 16 bits are reduced to their upper 8 bits. The first frame of an animation is read. The orientation
    in the EXIF data is not applied, as in torchvision and timm.

    Raises:
        DataError: If the file is not a readable image, its pixels are floating-point numbers, or integers outside 16
            bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("pixels are floating-point numbers of unknown range")
            if image.mode.startswith("I"):
                grey = np.asarray(image)
                if grey.min() < 0 or grey.max() >= 2**16:
                    raise ValueError("pixels are outside the range of 16 bits")
                return Image.fromarray((grey // 2**8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: the file is gone; put it back, or start again without it") from None
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds
        raise DataError(f"{path}: not a readable image ({error}); remove or replace it") from error
