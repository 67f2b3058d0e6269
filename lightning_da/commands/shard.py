"""`lightning-da shard`: writes a domain of images into shards."""

from collections.abc import Sequence
from pathlib import Path

from lightning_da.data.shards import write_shards
from lightning_da.errors import RunError
from lightning_da.parser import CommandParser


def run(args: Sequence[str]) -> None:
    """Writes the images of a domain into shards.

    Args:
        args: The arguments after `shard`.

    Raises:
        RunError: If a file cannot be written.
    """
    parser = CommandParser(
        "lightning-da shard",
        description="Write the images of a domain into a few large files, the shards that the data module "
        "StreamedImages reads.",
    )
    parser.add_argument("folder", type=Path, help="folder of the domain, FOLDER/<class>/* or FOLDER/<split>/<class>/*")
    parser.add_argument("out", type=Path, help="new folder; its name is that of the domain")
    given = parser.parse_args(args)
    try:
        number = write_shards(given.folder, given.out)
    except OSError as error:
        raise RunError(f"{given.out}: not written ({error})") from error
    print(f"{number} images in {given.out}")
