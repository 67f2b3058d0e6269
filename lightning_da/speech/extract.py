"""Feature extraction for many sound files, in parallel and with a cache."""

import hashlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from joblib import Parallel, delayed, parallel_config
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_da.errors import ConfigError, list_choices
from lightning_da.paths import write_whole
from lightning_da.process import cores
from lightning_da.speech import audio, functionals
from lightning_da.speech.audio import SoundError, read_sound

OPENSMILE_WIDTHS = {
    "IS09": 384,
    "IS10": 1582,
    "IS11": 4368,
    "IS12": 6125,
    "IS13": 6373,
    "ComParE_2016": 6373,
    "eGeMAPSv02": 88,
    "emobase": 988,
}
FEATURE_SETS: tuple[str, ...] = ("functionals", *OPENSMILE_WIDTHS)
LOWEST_RATE, HIGHEST_RATE = 8000, 48000
OPENSMILE_SHORTEST = 0.1  # seconds: enough frames for every openSMILE set
FEW = 64  # files whose features take about as long as starting a process

Array = NDArray[np.float32]


def width(features: str) -> int:
    """Number of values in a feature set.

    Raises:
        ConfigError: If the feature set is unknown.
    """
    if features not in FEATURE_SETS:
        raise ConfigError(f"no feature set {features!r}; {list_choices(features, FEATURE_SETS)}")
    return OPENSMILE_WIDTHS.get(features, len(functionals.NAMES))


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


def describe(sound: Array, features: str, rate: int) -> Array:
    """The feature vector of one sound.

    For openSMILE sets, a sound shorter than 0.1 s is padded with silence, and NaN or infinite values are set to 0.

    Args:
        sound: Shape (n,), n at least 1.
        features: One of `FEATURE_SETS`.
        rate: Samples per second.

    Returns:
        Shape (width(features),), all finite.
    """
    if features == "functionals":
        return functionals.functionals(sound, rate)
    padded = np.pad(sound, (0, max(0, round(OPENSMILE_SHORTEST * rate) - len(sound))))
    row: Array = _opensmile(features).process_signal(padded, rate).to_numpy(dtype=np.float32)[0]
    return np.nan_to_num(row, nan=0.0, posinf=0.0, neginf=0.0)


def extract(paths: Sequence[Path], features: str, rate: int, cache: Path, jobs: int | None = None) -> Array:
    """Feature vectors of sound files, read from the cache or computed and added to it.

    The key of a cache entry is the content of the file, the feature set, the rate, and the source code of the built-in
    set or the version of openSMILE. An entry is written completely or not at all, so an interrupted extraction
    continues where it stopped.

    Args:
        paths: WAV and FLAC files.
        features: One of `FEATURE_SETS`; all but `functionals` need the package opensmile.
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


@lru_cache
def _opensmile(features: str) -> Any:
    import opensmile  # noqa: PLC0415  # an extra, and slow to import

    return opensmile.Smile(opensmile.FeatureSet[features], opensmile.FeatureLevel.Functionals)
