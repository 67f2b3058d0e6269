"""Two domains of images in shards: a few large files instead of one for each image."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from lightning_da.data.image_files import Listing
from lightning_da.data.image_folders import ImageFiles, ImageFolders
from lightning_da.data.shards import Shards
from lightning_da.data.splits import Indices
from lightning_da.names import Names


class ShardedFiles(ImageFiles):
    """One split of one domain, read from shards.

    Args:
        shards: The shards of the domain.
        rows: Place of each sample in the shards, shape (n,).
        *arguments: The arguments of `ImageFiles`.
    """

    def __init__(self, shards: Shards, rows: Indices, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shards, self.rows = shards, rows

    def read(self, index: int) -> Image.Image:
        return self.shards.read(int(self.rows[index]))


class StreamedImages(ImageFolders):
    """Two domains of images in shards, `root/<domain>/`, that `lightning-da shard` wrote from image folders.

    Classes, splits, samples, their order and their digest are those of `ImageFolders` on the same images: a fit has the
    same weights, and a checkpoint of one goes on with the other. Images are read when they are needed and not kept.

    Args:
        root: Folder of the domains, or the shards of one domain.
        source: Folder of the domain with labels, below `root`, or several folders; None if there is one domain.
        target: Folder of the domain to transfer to, below `root`, or several folders; None if there is one domain.
        **kwargs: Arguments of `ImageFolders`, but for `damaged`: no damaged file gets into shards.
    """

    def __init__(self, root: str, source: Names | None = None, target: Names | None = None, **kwargs: Any) -> None:
        super().__init__(root, source, target, damaged="refuse", **kwargs)
        self._shards: dict[str, Shards] = {}

    def _open(self, domain: str) -> Shards:
        if domain not in self._shards:
            self._shards[domain] = Shards(self.root / domain)
        return self._shards[domain]

    def _folders(self, domain: str, part: str = "") -> list[str]:
        return self._open(domain).folders(part)

    def _files(self, domain: str, parts: Sequence[str]) -> Listing:  # noqa: ARG002  # the shards hold no others
        return self._open(domain).files

    def _find_damaged(self, domain: str, files: Listing) -> list[int]:  # noqa: ARG002  # checked before they were written
        return []

    def _images(self, domain: str, rows: Indices, *arguments: Any) -> ImageFiles:
        return ShardedFiles(self._open(domain), rows, self.root / domain, *arguments)
