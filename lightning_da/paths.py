"""Paths of the project's files, and atomic writing of files."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_da.errors import ConfigError, list_choices
from lightning_da.yaml_files import check_yaml

PACKAGE = Path(__file__).resolve().parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
"""The configurations: in the package if it was installed from a wheel, otherwise beside it."""
PROJECT = CONF.parent
"""The checkout; the package if it was installed from a wheel."""


def work_folder() -> Path:
    """The folder of the runs and the code that is worked on.

    It is the checkout. It is the working folder if that has a folder `mlruns`, as a project of `lightning-da new` has,
    or if the package was installed from a wheel.
    """
    here = Path.cwd()
    return here if PROJECT == PACKAGE or (here / "mlruns").is_dir() else PROJECT


def find_config(name: str) -> Path:
    """Path of a YAML file, given as a path or as a file of the project's folder `conf`.

    Args:
        name: For example `my.yaml`, `method/dann.yaml` or `conf/method/dann.yaml`; the last two are found from any
            working folder.

    Raises:
        ConfigError: If the file does not exist, or holds no options.
    """
    for path in (Path(name), CONF / name, CONF.parent / name):
        if path.is_file():
            check_yaml(path)
            return path
    if name and Path(name).is_dir():
        raise ConfigError(f"config: {name!r} is a folder; name a YAML file")
    known = [path.relative_to(CONF).as_posix() for path in CONF.glob("**/*.yaml")]
    raise ConfigError(f"config: no file {name!r}; in conf {list_choices(name.removeprefix('conf/'), known)}")


def find_method(name: str) -> Path:
    """Path of the YAML file of a method.

    Args:
        name: Name of a file in `conf/method`, for example `dann`, or the path of a YAML file in any folder.

    Raises:
        ConfigError: If the file does not exist.
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


def those_left(*names: str) -> tuple[str, ...]:
    """The given methods without those whose file was deleted from a copy of the project."""
    return tuple(name for name in names if name in methods())


def files_first(words: Sequence[str]) -> list[str]:
    """The words of a command line, its `--config` files first: options override them wherever they stand.

    Examples:
        >>> files_first(["--data.root", "photos", "--config", "data/image_folders.yaml"])
        ['--config', 'data/image_folders.yaml', '--data.root', 'photos']
    """
    files: list[str] = []
    others: list[str] = []
    is_file = False
    for word in words:
        follows, is_file = is_file, not is_file and word in ("--config", "-c")
        (files if follows or is_file or word.startswith("--config=") else others).append(word)
    return [*files, *others]


def with_found_configs(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the full path of each `--config` file."""
    found = list(words)
    for place, word in enumerate(words):
        if word in ("--config", "-c") and place + 1 < len(words):
            found[place + 1] = str(find_config(words[place + 1]))
        elif word.startswith("--config="):
            found[place] = f"--config={find_config(word.removeprefix('--config='))}"
    return found


def cache_folder() -> Path:
    """The cache folder: `lightning_da` in `$XDG_CACHE_HOME` or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_da"


def check_output(option: str, path: Path, suffixes: Sequence[str], start: str = "") -> None:
    """Refuses to write a file where it would replace another kind of file.

    Args:
        option: The option that names the file, in the error message.
        path: The file to write.
        suffixes: The suffixes that it may have.
        start: How a file of this kind begins.

    Raises:
        ConfigError: If the suffix is another, if the folder is missing, or if something else is there.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {str(path.absolute().parent)!r}")
    if path.is_dir():
        raise ConfigError(f"{option}: {str(path)!r} is a folder; name a file")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option}: {str(path)!r} does not end with {' or '.join(suffixes)}, as such a file does")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{option}: {str(path)!r} is no regular file; name another")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(len(start)).lower().startswith(start.lower().encode()):
                raise ConfigError(
                    f"{option}: {str(path)!r} is there already and holds something else; name another file"
                )


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Writes a file or a new folder atomically: it appears only when it is complete.

    Args:
        path: The file or folder to write; its parent folder exists.

    Yields:
        A temporary path in the same folder. It is renamed to `path` at the end of the block, or removed after an
        exception.

    Raises:
        ConfigError: If the path is that of a device, for example.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path}: no regular file, a device for example; name another file")
    try:
        yield part
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
