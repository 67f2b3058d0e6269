"""Places of the project's files, and files that are written whole."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_da.errors import ConfigError, list_choices

PROJECT = Path(__file__).resolve().parent.parent
CONF = PROJECT / "conf"


def find_config(name: str) -> Path:
    """A YAML file: a path as given, or a file of the project's folder `conf`.

    Args:
        name: `my.yaml`, `method/dann.yaml` or `conf/method/dann.yaml`; for the last two, from any working folder.

    Raises:
        ConfigError: If there is no such file.
    """
    for path in (Path(name), CONF / name, PROJECT / name):
        if path.is_file():
            return path
    known = [path.relative_to(CONF).as_posix() for path in CONF.glob("**/*.yaml")]
    raise ConfigError(f"config: no file {name!r}; in conf {list_choices(name.removeprefix('conf/'), known)}")


def find_method(name: str) -> Path:
    """The YAML file of a method.

    Args:
        name: The name of a file in `conf/method`, `dann` for example, or the path of a YAML file in any folder.

    Raises:
        ConfigError: If there is no such file.
    """
    if name.endswith((".yaml", ".yml")) or Path(name).name != name:
        return find_config(name)
    path = CONF / "method" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no method {name!r}; {list_choices(name, methods())}; or give the path of a YAML file")
    return path


def methods() -> list[str]:
    """Names of the files in `conf/method`."""
    return sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


def with_found_configs(words: Sequence[str]) -> list[str]:
    """The words of a command line with the path of each file that `--config` names."""
    found = list(words)
    for place, word in enumerate(words):
        if word in ("--config", "-c") and place + 1 < len(words):
            found[place + 1] = str(find_config(words[place + 1]))
        elif word.startswith("--config="):
            found[place] = f"--config={find_config(word.removeprefix('--config='))}"
    return found


def cache_folder() -> Path:
    """The folder `lightning_da` of `$XDG_CACHE_HOME` or ~/.cache, for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_da"


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A file, or a new folder, that appears when it is whole.

    Args:
        path: The file or folder to write; the folder that holds it exists.

    Yields:
        A path beside it, to write to. It takes the place of `path` as the block ends, and is removed if an exception
        leaves the block.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
