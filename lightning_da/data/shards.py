"""Images in a few large files, the shards of LitData."""

import json
import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lightning_da.data.base import DataError
from lightning_da.data.image_files import Listing, find_damaged, list_images
from lightning_da.data.image_folders import ImageFolders
from lightning_da.inputs import decode
from lightning_da.paths import write_whole

INDEX, LISTING = "index.json", "images.npz"
SHARD = 64_000_000
"""Most bytes in a shard, unless one image has more."""


def write_shards(folder: Path, out: Path) -> int:
    """Writes the images of a domain into shards, in the order in which `ImageFolders` lists them.

    The files are stored as they are, beside LitData's index and a list of their names.

    Args:
        folder: Folder of the domain, as `ImageFolders` reads it.
        out: The new folder; it appears when it is complete.

    Returns:
        The number of images.

    Raises:
        DataError: If LitData is not installed, the new folder exists, or `ImageFolders` would refuse the images.
        OSError: If a file cannot be written.
    """
    try:
        from litdata.streaming import Cache  # noqa: PLC0415  # an extra
    except ImportError:
        raise DataError(
            "writing shards needs the package litdata: pip install 'litdata>=0.2.76,<0.3', or install this project "
            "with the extra [streaming]"
        ) from None
    folder, out = folder.absolute(), out.absolute()
    if out.exists():
        raise DataError(f"{out}: it exists already; name a new folder")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for message in find_damaged(folder, list_images(folder)).values():
        raise DataError(message)
    images = ImageFolders(str(folder.parent), None, folder.name, protocol="all").dataset(folder.name, "train")
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(out) as part:
        part.mkdir()
        shards = Cache(str(part), chunk_bytes=SHARD)
        sizes = []
        for row, file in enumerate(tqdm(images.files, desc=f"shards of {folder.name}", unit="file")):
            content = Path(file).read_bytes()
            shards[row] = content
            sizes.append(len(content))
        shards.done()
        shards.merge()
        names = [os.fsencode(name.removeprefix(images.prefix)) for name in images.names]
        np.savez(part / LISTING, names=np.array(names), sizes=np.array(sizes))
    return len(images)


class Shards:
    """Reads images from shards, one at a time.

    LitData writes the shards, and its `StreamingDataset` reads them too. It is not used here: it executes pickles and
    imports modules that the index names, asks the disk for a whole shard when one image is read, and has an order of
    samples that depends on the number of processes. Here one image is two reads from its shard, at the offset that the
    head of the shard gives, so the samplers of `DomainPairDataModule` choose any order.

    Args:
        folder: A folder from `write_shards`.

    Attributes:
        files: Names and sizes of the images, in the order of the shards.

    Raises:
        DataError: If there are no shards, or one is missing or not whole.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / INDEX).is_file():
            raise DataError(f"{folder}: no shards; write them with `lightning-da shard IMAGES {folder}`")
        again = f"write the shards again with `lightning-da shard IMAGES {folder}`"
        place = folder / INDEX
        try:
            chunks = json.loads(place.read_text())["chunks"]
            self._paths = [folder / chunk["filename"] for chunk in chunks]
            self._ends = np.cumsum([chunk["chunk_size"] for chunk in chunks])
            sizes = [int(chunk["chunk_bytes"]) for chunk in chunks]
            place = folder / LISTING
            with np.load(place) as listing:
                names, bytes_of = listing["names"], listing["sizes"]
            if not len(names) == len(bytes_of) == self._ends[-1]:
                raise ValueError(f"it lists {len(names)} images, and {INDEX} {self._ends[-1]}")
        except Exception as error:  # broken files raise exceptions of many kinds
            raise DataError(f"{place}: not readable ({error}); {again}") from error
        for path, size in zip(self._paths, sizes, strict=True):
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                state = "the shard is missing" if found is None else f"{found} bytes instead of {size}"
                raise DataError(f"{path}: {state}; copy it again, or {again}")
        self.files = Listing(names, bytes_of, np.zeros(len(names), dtype=np.uint64))
        self._places = {tuple(os.fsdecode(name).split("/")[:-1][:2]) for name in names.tolist()}

    def folders(self, part: str = "") -> list[str]:
        """Sorted names of the folders that the images were in, or of the folders in one of them."""
        depth = 1 if part else 0
        found = {place[depth] for place in self._places if len(place) > depth and (not part or place[0] == part)}
        return sorted(found)

    def read(self, row: int) -> Image.Image:
        """Reads an image as RGB.

        Raises:
            DataError: If it cannot be read.
        """
        shard = int(np.searchsorted(self._ends, row, side="right"))
        path, first = self._paths[shard], self._ends[shard - 1] if shard else 0
        try:
            with path.open("rb") as stream:
                stream.seek(4 + 4 * (row - first))  # behind the number of images, the offset of each
                start, end = struct.unpack("<2I", stream.read(8))
                stream.seek(start + 4)  # behind the number of bytes
                content = stream.read(end - start - 4)
            if len(content) != self.files.sizes[row]:
                raise ValueError(f"{len(content)} bytes instead of {self.files.sizes[row]}")
            return decode(BytesIO(content))
        except FileNotFoundError:
            raise DataError(f"{path}: the shard is gone; put it back") from None
        except Exception as error:
            name = self.files.names[row].decode(errors="replace")
            raise DataError(f"{path}: the image {name!r} is not readable ({error}); write the shards again") from error
