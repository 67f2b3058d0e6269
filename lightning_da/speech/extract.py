"""Feature extraction for many sound files, in parallel and with a cache."""

import hashlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
from filelock import FileLock
from joblib import Parallel, delayed, parallel_config
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_da.errors import ConfigError
from lightning_da.paths import write_whole
from lightning_da.process import cores
from lightning_da.speech import audio, functionals
from lightning_da.speech.audio import SoundError, read_sound
from lightning_da.speech.feature_sets import describe, width

LOWEST_RATE, HIGHEST_RATE = 8000, 48000
FEW = 64  # files whose features take about as long as starting a process

Array = NDArray[np.float32]


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        SoundError: If the file cannot be read.
    """
    try:
        status = path.stat()
        return _digest(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except OSError as error:
        raise SoundError(
            f"cannot read {str(path)!r} ({error.strerror}); correct the path or the permissions"
        ) from error


@lru_cache(maxsize=1_000_000)
def _digest(path: Path, *_state: int) -> str:
    """Digest of a file; computed again only if its size or times change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(paths: Sequence[Path], features: str, rate: int, cache: Path, jobs: int | None = None) -> Array:
    """Feature vectors of sound files, read from the cache or computed and added to it.

    The key of a cache entry is the content of the file, the feature set, the rate, and the source code of the built-in
    set or the version of openSMILE. An entry is written completely or not at all, so an interrupted extraction
    continues where it stopped.

    Args:
        paths: WAV and FLAC files.
        features: One of `feature_sets.FEATURE_SETS`; all but `functionals` need the package opensmile.
        rate: Sampling rate in Hz, 8000 to 48000; sounds are resampled to it.
        cache: Folder of the entries; created if it does not exist.
        jobs: Largest number of processes; None uses one per CPU core.

    Returns:
        Shape (len(paths), width(features)), all finite.

    Raises:
        ConfigError: If `features`, `rate` or `jobs` is invalid.
        SoundError: If a file is unusable.
    """
    values = width(features)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ConfigError(f"rate: {rate} is not within {LOWEST_RATE} and {HIGHEST_RATE} samples per second")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: {jobs} is less than 1")
    folder = cache / f"{features}-{rate}-{_version(features)}"
    entries = [folder / f"{digest(path)}.npy" for path in paths]
    rows = {entry: _load(entry, values) for entry in set(entries)}
    if any(row is None for row in rows.values()):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # a second process waits here, then finds the entries of the first
            missing = {}
            for path, entry in zip(paths, entries, strict=True):
                if rows[entry] is None and (row := _load(entry, values)) is not None:
                    rows[entry] = row
                elif rows[entry] is None:
                    missing[entry] = path
            rows |= _compute(missing, features, rate, jobs)
    return np.array([rows[entry] for entry in entries], dtype=np.float32).reshape(len(paths), values)


def _version(features: str) -> str:
    """Version of the code that computes a feature set."""
    if features == "functionals":
        return digest(Path(functionals.__file__))[:8] + digest(Path(audio.__file__))[:8]
    try:
        return f"{package_version('opensmile')}-{digest(Path(audio.__file__))[:8]}"
    except PackageNotFoundError:
        raise ConfigError(
            f"the features {features!r} need the package opensmile, whose licence is for research: "
            "pip install 'opensmile>=2.5,<3', or install this project with the extra [speech]; 'functionals' needs no "
            "extra package"
        ) from None


def _load(entry: Path, values: int) -> Array | None:
    """Reads a cache entry; None if it is missing or broken."""
    try:
        row: Array = np.load(entry)
    except Exception:  # a broken file raises exceptions of many kinds
        return None
    return row if row.shape == (values,) and row.dtype == np.float32 and np.isfinite(row).all() else None


def _compute(missing: dict[Path, Path], features: str, rate: int, jobs: int | None) -> dict[Path, Array]:
    """Computes the features of files and writes their cache entries.

    Few files are computed in this process, many files in several processes with one thread each.
    """
    processes = max(min(jobs or cores(), len(missing) // FEW), 1)
    calls = (delayed(_make_entry)(entry, path, features, rate) for entry, path in missing.items())
    rows = {}
    try:
        with (
            parallel_config("loky", inner_max_num_threads=1),
            tqdm(total=len(missing), desc=f"features {features}", unit="file", disable=not missing) as bar,
        ):
            for entry, row in Parallel(processes, return_as="generator_unordered")(calls):
                rows[entry] = row
                bar.update()
    except BrokenProcessPool as error:
        raise ConfigError(
            f"a process that computed the features {features!r} was killed, perhaps for lack of memory; run the same "
            "command again to continue"
        ) from error
    return rows


def _make_entry(entry: Path, path: Path, features: str, rate: int) -> tuple[Path, Array]:
    """Computes the features of a file and writes its cache entry, completely or not at all."""
    sound = read_sound(path, rate)
    try:
        row = describe(sound, features, rate)
    except Exception as error:
        raise SoundError(f"{path}: no features {features!r} ({type(error).__name__}: {error}); remove it") from error
    with write_whole(entry) as part, part.open("wb") as file:
        np.save(file, row)
    return entry, row
