"""Speech corpora: sound files with speaker, gender and emotion labels."""

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from lightning_da.data.base import DOMAINS, SPLITS, UNKNOWN, DataError, DomainPairDataModule, Roles, TensorDomain
from lightning_da.data.splits import Indices, check_apart, split_indices
from lightning_da.data.tables import read_table
from lightning_da.errors import list_choices
from lightning_da.inputs import Sounds
from lightning_da.names import Names
from lightning_da.paths import cache_folder
from lightning_da.speech.audio import SUFFIXES
from lightning_da.speech.bandwidth import bandwidth, common_rate
from lightning_da.speech.extract import digest, extract
from lightning_da.speech.feature_sets import width
from lightning_da.speech.synthesis import CORPORA, write_corpus

Label = Literal["speaker", "gender", "emotion"]
LABELS: tuple[Label, ...] = ("speaker", "gender", "emotion")
MANY = 12
"""With more classes, speakers for example, the number of sounds of each is not printed."""
DRAWS = 50
"""Draws of speakers, of which the one with the most even emotions is taken."""
NARROWER = 0.8
"""A corpus whose sounds end below this share of the other's highest frequency is a narrower one."""
NEW = "new"
"""Name of the split with the recordings that `predict` classifies."""


class Corpus(NamedTuple):
    """Sound files and their labels.

    Attributes:
        place: The manifest or folder of the corpus.
        files: Paths of the sound files.
        names: Paths of the sound files relative to the folder of the corpus.
        table: One row per sound, with the columns speaker, gender, emotion and split: text, empty if unknown.
    """

    place: Path
    files: list[Path]
    names: list[str]
    table: pd.DataFrame


def read_corpus(place: Path, folders: Label, outside: bool = False) -> Corpus:
    """Reads the table of a corpus. Sound files are not opened, and the files of a manifest need not exist.

    Args:
        place: A manifest (.csv, see `SpeechCorpora`), a folder of sound files, or a sound file.
        folders: The kind of label that the names of sub-folders are.
        outside: Whether a manifest may list files outside of its folder.

    Raises:
        DataError: If `place` does not exist, a folder has no sounds, or a manifest is unreadable, has no column `path`,
            lists a file twice, a file of another kind or one outside of its folder, has a duplicate column, a
            misspelled column name or an unknown split.
    """
    if place.suffix.lower() == ".csv" and place.is_file():
        return _read_manifest(place, outside)
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
        if not files:
            raise DataError(f"{place}: no sound files ({', '.join(SUFFIXES)}) in this folder or below it")
    elif place.suffix.lower() in SUFFIXES and place.is_file():
        files, place = [place], place.parent
    elif not place.exists():
        raise DataError(
            f"there is no file or folder {str(place)!r}; the synthetic corpora are {' and '.join(map(repr, CORPORA))}"
        )
    else:
        raise DataError(f"{str(place)!r} is no manifest (.csv), folder or sound file ({', '.join(SUFFIXES)})")
    names = [path.relative_to(place) for path in files]
    table = pd.DataFrame({folders: [name.parts[0] if len(name.parts) > 1 else "" for name in names]})
    return Corpus(place, files, [str(name) for name in names], _with_columns(table))


def _read_manifest(path: Path, outside: bool) -> Corpus:
    table = read_table(path, "path", (*LABELS, "split"))
    if table.empty:
        raise DataError(f"{path}: the manifest lists no sound files")
    if table["path"].duplicated().any():
        raise DataError(f"{path}: {table['path'][table['path'].duplicated()].iloc[0]!r} is listed twice")
    for name in table["path"]:
        if Path(name).suffix.lower() not in SUFFIXES:
            raise DataError(f"{path}: {name!r} is no sound file ({', '.join(SUFFIXES)}); convert it, or remove its row")
        if not (outside or Path(os.path.abspath(path.parent / name)).is_relative_to(os.path.abspath(path.parent))):
            raise DataError(
                f"{path}: {name!r} is outside of the folder of the manifest; set --data.outside true if you trust it"
            )
    return Corpus(path, [path.parent / name for name in table["path"]], list(table["path"]), _with_columns(table))


def _with_columns(table: pd.DataFrame) -> pd.DataFrame:
    return table.reindex(columns=[*LABELS, "split"], fill_value="")


class SpeechCorpora(DomainPairDataModule):
    """Two speech corpora as feature vectors, one vector per utterance.

    A corpus is a manifest, a folder, or the name of a synthetic corpus that the project generates:
    `synthetic-speakers` or `synthetic-emotions`. A manifest is a CSV file with a column `path`, relative to its folder,
    and optional columns `speaker`, `gender`, `emotion` and `split` (train, val, test); an empty field means unknown. In
    a folder, the names of the sub-folders are labels. Sounds are WAV, FLAC, MP3 or OGG files of any sampling rate, with
    any number of channels.

    Splits come from the column `split`. Without it, whole speakers are drawn; an utterance of an unknown speaker is
    drawn on its own. Speakers in the test split are in no other split. The same name means the same person in both
    corpora, so speakers in the test split of the target are not in the other splits of the source. Speaker recognition
    (`task: speaker`) needs each speaker in each split, so it draws utterances; if the corpus also has a
    speaker-independent test split, it draws them from the training speakers only.

    A corpus with fewer than two labels of the task is unlabelled.

    The features of a sound are computed once and cached by the content of the file and the settings below, in the
    folder `lightning_da` of `$XDG_CACHE_HOME` or ~/.cache.

    Args:
        source: Corpus of the source domain, or several.
        target: Corpus of the target domain, or several.
        task: The label to predict. The source defines the classes, or the target if the source has no such labels. For
            `speaker` and `gender`, a target with other classes than the source is unlabelled.
        features: `functionals`, the built-in set, or an openSMILE set: IS09, IS10, IS11, IS12 (used in the paper),
            IS13, ComParE_2016, eGeMAPSv02, emobase.
        rate: Sampling rate for feature extraction in Hz, 8000 to 48000; all sounds are resampled to it.
        batch_size: Samples per batch and domain, on each process.
        root: Folder that `source`, `target` and `recordings` are relative to.
        source_folders: The kind of label that sub-folder names are, if the source is a folder.
        target_folders: The kind of label that sub-folder names are, if the target is a folder.
        test_speakers: Speakers of the test split, for example one speaker to leave out; None draws them.
        seed: Seed of the splits.
        val_share: Fraction for validation: of the speakers, or of the utterances if speakers are unknown.
        test_share: Fraction for test.
        recordings: Corpus, folder or sound file that `predict` classifies instead of the target.
        outside: Whether manifests may list files outside of their folders.
        emotions: Emotions to classify, in the order of the labels; other emotions are unlabelled. None uses all. If
            given, `predict` with `recordings` does not need the two corpora.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.

    Raises:
        DataError: If fewer than two emotions are given, or one twice, or recordings beside several targets.
    """

    def __init__(
        self,
        source: Names = "synthetic-speakers",
        target: Names = "synthetic-emotions",
        task: Label = "emotion",
        features: str = "functionals",
        rate: int = 16000,
        batch_size: int = 32,
        root: str = ".",
        source_folders: Label = "speaker",
        target_folders: Label = "emotion",
        test_speakers: list[str] | None = None,
        seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.2,
        recordings: str | None = None,
        outside: bool = False,
        emotions: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        width(features)
        self._arguments: dict[str, Any] = {
            "source": source, "target": target, "features": features, "rate": rate, "batch_size": batch_size,
            "root": root, "source_folders": source_folders, "target_folders": target_folders,
            "test_speakers": test_speakers, "seed": seed, "val_share": val_share, "test_share": test_share,
            "outside": outside,
        }  # fmt: skip
        self.task, self.features, self.rate, self.root = task, features, rate, Path(root)
        self.folders = (source_folders, target_folders)
        self.test_speakers, self.recordings, self.outside = test_speakers, recordings, outside
        self.seed, self.val_share, self.test_share = seed, val_share, test_share
        self._corpora: dict[str, Corpus] = {}
        self._parts: dict[str, dict[str, Indices]] = {}
        self._features: dict[str, NDArray[np.float32]] = {}
        if recordings is not None:
            self.predicted = (NEW,)
            if len(self.named["target"]) > 1:
                raise DataError(f"recordings: they are read in place of one target, not of {self.target!r}; name one")
        if emotions is not None and len(set(emotions)) < max(2, len(emotions)):
            raise DataError(f"emotions: name at least two, and each once, not {emotions}")
        self._named = emotions if task == "emotion" else None

    def with_labels(self, task: Label) -> "SpeechCorpora":
        """The same corpora and splits with other labels."""
        return SpeechCorpora(task=task, **self._arguments)

    @property
    def classes(self) -> list[str]:
        """Class names: `emotions` if given, otherwise the classes of the source, otherwise of the target."""
        return super().classes if self._named is None else list(self._named)

    @property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            DataError: If there are fewer than two.
        """
        if not self.classes:
            every = self._every(DOMAINS)
            known = {name for domain in every for name in LABELS if self._read(domain).table[name].any()}
            raise DataError(
                f"task {self.task!r}: neither {self.source!r} nor {self.target!r} has two classes; there are labels "
                f"for: {', '.join(sorted(known)) or 'nothing'}"
            )
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: the number of features."""
        return (width(self.features),)

    def classes_of(self, domain: str) -> list[str]:
        """Class names of a domain; empty if no label is known. Sound files are not read."""
        labels = self._read(domain).table[self.task].iloc[np.concatenate(list(self._splits(domain).values()))]
        known: list[str] = sorted(set(labels) - {""})
        if self._named is not None:
            return list(self._named) if len(set(known) & set(self._named)) > 1 else []
        if len(known) < 2:
            return []
        if self.task == "emotion" or domain in self.named["source"]:
            return known
        return known if known == self.classes_in("source") else []

    def dataset(self, domain: str, split: str) -> TensorDomain:
        if split == NEW:
            corpus = self._open(str(self.recordings), self.task)
            x = self._extract(corpus)
            return TensorDomain(torch.from_numpy(x), torch.full((len(x),), UNKNOWN), [], corpus.names)
        corpus, rows, classes = self._read(domain), self._splits(domain)[split], self.classes_of(domain)
        if domain not in self._features:
            self._features[domain] = self._extract(corpus)
        number = {name: label for label, name in enumerate(classes)}
        y = torch.tensor([number.get(label, UNKNOWN) for label in corpus.table[self.task].iloc[rows]], dtype=torch.long)
        x = self._features[domain][rows]
        names = [corpus.names[row] for row in rows]
        return TensorDomain(torch.from_numpy(x), y, classes, names, Sounds(self.features, self.rate))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "features": self.features, "rate": self.rate}

    def setup(self, stage: str) -> None:
        if self.recordings is not None and stage != "predict":
            raise DataError(f"recordings: only `predict` reads them, not {stage}; set --data.source or --data.target")
        if self.recordings is None:
            super().setup(stage)

    def check(self, roles: Roles = Roles()) -> None:  # noqa: B008
        """Checks labels and splits, then runs the checks of the base class.

        Args:
            roles: The domains that training reads.

        Raises:
            DataError: If a sound is missing, a label is misspelled, a speaker is in several splits, a sound or speaker
                is in both training and test, or a check of the base class fails.
        """
        there = {name for domain in self._every(DOMAINS) for name in self._read(domain).table["emotion"]} - {""}
        for name in self._named or ():
            if name not in there:
                raise DataError(f"emotions: no sound is labelled {name!r}; {list_choices(name, there)}")
        read = self._every(role for role in DOMAINS if role in roles.supervised + roles.unlabelled)
        for domain in dict.fromkeys((*read, *self.named["target"])):
            self._check_corpus(domain)
        tested, labelled = self.tested(), self._every(roles.supervised)
        for domain in read:
            trained = self.trained_on(domain)
            how = f"of {domain!r} is trained on"
            check_apart(trained, tested, how, f"in the test split of {self.target!r}; remove one of them")
            if domain in labelled:
                own = _sounds(self._read(domain), self._splits(domain)["test"])
                check_apart(trained, own, how, "in its test split; remove one of them")
        for domain in self.named["source"] if self.test_speakers is None else ():
            if domain in read and (shared := self._left_out(domain)):
                rank_zero_warn(
                    f"{', '.join(map(repr, shared))}: tested in {self.target!r}, and therefore not trained on in "
                    f"{domain!r}, which has speakers with the same names; rename them if they are different people"
                )
        super().check(roles)
        self._check_bandwidths()
        for domain in self._every(DOMAINS):
            rank_zero_info(f"{domain!r}, {self.task}: {self._counts(domain)}")

    def _check_bandwidths(self) -> None:
        """Warns if one corpus has sound at frequencies where another, telephone speech for example, has none."""
        files = {name: [file for file in self._read(name).files if file.is_file()] for name in self._every(DOMAINS)}
        if len(files) < 2 or not all(files.values()):
            return
        ends = {name: bandwidth(of_corpus, self.rate) for name, of_corpus in files.items()}
        low, high = min(ends.values()), max(ends.values())
        if 0 < low < NARROWER * high:
            each = ", and of ".join(f"{name!r} to {end} Hz" for name, end in ends.items())
            rank_zero_warn(
                f"the sounds reach, of {each}: the features tell the corpora apart by that; add --data.rate "
                f"{common_rate(low)}, which leaves out what only one of them has"
            )

    def _counts(self, domain: str) -> str:
        """The number of sounds of each class in each split."""
        parts = []
        for split in SPLITS:
            y = torch.as_tensor(self._get(domain, split).y)
            numbers = torch.bincount(y[y != UNKNOWN], minlength=self.num_classes).tolist()
            named = ", ".join(f"{name} {number}" for name, number in zip(self.classes, numbers, strict=True) if number)
            if self.num_classes > MANY:
                named = f"{sum(number > 0 for number in numbers)} classes"
            parts.append(f"{split} {len(y)} ({named or 'no labels'})")
        return ", ".join(parts)

    def _check_pair(self) -> None:
        """Source and target may be the same corpus: first its speakers are learned, then its emotions."""

    def _check_corpus(self, domain: str) -> None:
        corpus = self._read(domain)
        self._check_there(corpus)
        alike = pd.Series(sorted(set(corpus.table[self.task]) - {""}), dtype=str)
        if alike.str.lower().duplicated().any():
            both = alike[alike.str.lower().duplicated(keep=False)].iloc[:2]
            raise DataError(
                f"{corpus.place}: {' and '.join(map(repr, both))} in {self.task!r} differ in case only; use one of them"
            )
        shared = _shared_speaker(corpus.table)
        if shared is not None and self.task != "speaker":
            raise DataError(
                f"{corpus.place}: speaker {shared!r} is in several splits, so the test does not measure new voices; "
                "put all sounds of a speaker into one split"
            )
        twice = all(domain in self.named[role] for role in DOMAINS)
        if twice and len(set(self.folders)) > 1 and corpus.place.is_dir():
            raise DataError(
                f"{corpus.place} is source and target; set --data.source_folders and --data.target_folders to the same "
                "label"
            )

    def _check_ranges(self, *_: Any) -> None:
        """No check: all corpora have the same features, and one unusual sound may have extreme values."""

    def trained_on(self, domain: str) -> dict[str, str]:
        """Speakers and sounds in the training split of a corpus: text for messages, by identity."""
        corpus, rows = self._read(domain), self._splits(domain)["train"]
        return _speakers(corpus, rows) | _sounds(corpus, rows)

    def tested(self) -> dict[str, str]:
        """Speakers and sounds in the target's test split for every task: text for messages, by identity."""
        found: dict[str, str] = {}
        for domain in self.named["target"]:
            corpus, rows = self._read(domain), self._whole_splits(domain)["test"]
            found |= (_speakers(corpus, rows) if _shared_speaker(corpus.table) is None else {}) | _sounds(corpus, rows)
        return found

    # ---------------------------------------------------------------- splits

    def _read(self, domain: str) -> Corpus:
        if domain not in self._corpora:
            self._corpora[domain] = self._open(domain, self.folders[domain in self.named["target"]])
        return self._corpora[domain]

    def _open(self, name: str, folders: Label) -> Corpus:
        place = write_corpus(name, cache_folder()) if name in CORPORA else self.root / name
        return read_corpus(place, folders, self.outside)

    def _check_there(self, corpus: Corpus) -> None:
        missing = [pair for pair in zip(corpus.names, corpus.files, strict=True) if not pair[1].is_file()]
        if missing:
            (name, file), more = missing[0], f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            if file.is_symlink():
                raise DataError(
                    f"{corpus.place}: {name!r}{more} not found: it is a link to {str(file.readlink())!r}; restore that "
                    "file, or remove the link"
                )
            raise DataError(
                f"{corpus.place}: {name!r}{more} not found; paths are relative to the folder of the manifest"
            )

    def _extract(self, corpus: Corpus) -> NDArray[np.float32]:
        self._check_there(corpus)
        return extract(corpus.files, self.features, self.rate, cache_folder())

    def _splits(self, domain: str) -> dict[str, Indices]:
        """Rows of each split for the current task."""
        whole = self._whole_splits(domain)
        if self.task != "speaker":
            return whole
        table = self._read(domain).table
        speakers = table["speaker"]
        held_out = domain in self.named["target"] or table["split"].any() or self._left_out(domain)
        if held_out and set(speakers.iloc[whole["test"]]) <= set(speakers.iloc[whole["train"]]):
            return whole
        pool = whole["train"] if held_out else np.arange(len(speakers))
        parts = split_indices(_codes(speakers.iloc[pool]), self.seed, self.val_share, self.test_share)
        return {split: pool[rows] for split, rows in parts.items()}

    def _whole_splits(self, domain: str) -> dict[str, Indices]:
        """Rows of each speaker-independent split of a corpus; the same for every task."""
        if domain not in self._parts:
            self._parts[domain] = self._draw_splits(domain)
        return self._parts[domain]

    def _draw_splits(self, domain: str) -> dict[str, Indices]:
        corpus = self._read(domain)
        speakers, given = (corpus.table[column].to_numpy(dtype=str) for column in ("speaker", "split"))
        shared, left_out = _shared_speaker(corpus.table), self._left_out(domain)
        if left_out and given[0]:
            raise DataError(
                f"test_speakers: the column 'split' of {corpus.place} defines the test split; remove one of them"
            )
        if shared is not None or not speakers.any():
            labels = corpus.table["speaker" if shared else "emotion" if corpus.table["emotion"].any() else "gender"]
            return split_indices(
                _codes(labels), self.seed, self.val_share, self.test_share, given if given[0] else None
            )
        # a sound of an unknown speaker is a group of its own
        groups = np.where(speakers == "", [f"\t{row}" for row in range(len(speakers))], speakers)
        names, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        given_of = given[first] if given[0] else np.where(np.isin(names, left_out), "test", "train")
        drawn = not given[0] and not left_out
        rest = len(names) if drawn else int((given_of != "test").sum())
        if rest < (3 if drawn else 2):
            raise DataError(
                f"{corpus.place}: {len(names)} speaker(s) cannot be split into training, validation and test; add a "
                "column 'split', or remove the speaker labels"
            )
        genders = _codes(corpus.table["gender"].iloc[first])
        shares = max(self.val_share, 1 / rest), max(self.test_share, 1 / rest)
        seeds = [self.seed, *np.random.SeedSequence(abs(self.seed)).generate_state(DRAWS - 1).tolist()]
        draws = [split_indices(genders, seed, *shares, None if drawn else given_of) for seed in seeds]
        emotions = _counts_of(inverse, corpus.table["emotion"])
        of_speakers = min(draws, key=partial(_unevenness, emotions))
        return {split: np.flatnonzero(np.isin(inverse, rows)) for split, rows in of_speakers.items()}

    def _left_out(self, domain: str) -> list[str]:
        """Speakers reserved for the test split: `test_speakers`, or, in the source, the target's test speakers."""
        own = set(self._read(domain).table["speaker"]) - {""}
        if self.test_speakers is not None:
            known = {name for every in self._every(DOMAINS) for name in self._read(every).table["speaker"]} - {""}
            for name in self.test_speakers:
                if name not in known:
                    raise DataError(f"test_speakers: no speaker {name!r}; {list_choices(name, known)}")
            return [name for name in self.test_speakers if name in own]
        if domain in self.named["target"] or self._read(domain).table["split"].any():
            return []
        tested: set[str] = set()
        for name in self.named["target"]:
            tested |= set(self._read(name).table["speaker"].iloc[self._whole_splits(name)["test"]])
        return sorted(own & tested)


def _counts_of(groups: Indices, emotions: pd.Series) -> NDArray[np.float64]:
    """The number of sounds of each emotion in each group, shape (groups, emotions)."""
    known = (emotions != "").to_numpy()
    codes = _codes(emotions[known]) if known.any() else np.zeros(0, dtype=np.int64)
    counts = np.zeros((groups.max() + 1, codes.max(initial=0) + 1))
    np.add.at(counts, (groups[known], codes), 1)
    return counts


def _unevenness(counts: NDArray[np.float64], splits: dict[str, Indices]) -> float:
    """How far the shares of the emotions in the splits are from those of the corpus: the sum of all differences.

    Args:
        counts: The number of sounds of each emotion of each speaker, shape (speakers, emotions).
        splits: The speakers in each split.
    """
    parts = [counts[rows].sum(axis=0) for rows in (*splits.values(), np.arange(len(counts)))]
    *shares, whole = (part / max(part.sum(), 1) for part in parts)
    return round(sum(float(np.abs(share - whole).sum()) for share in shares), 6)


def _sounds(corpus: Corpus, rows: Indices) -> dict[str, str]:
    """Names of the sounds, by digest of their content."""
    return {digest(corpus.files[row]): repr(corpus.names[row]) for row in rows}


def _speakers(corpus: Corpus, rows: Indices) -> dict[str, str]:
    """Speakers, by name."""
    return {f"speaker {name!r}": f"speaker {name!r}" for name in corpus.table["speaker"].iloc[rows] if name}


def _shared_speaker(table: pd.DataFrame) -> str | None:
    """A speaker with sounds in more than one split of a manifest; None if there is none."""
    known = table[table["speaker"] != ""]
    splits = known.groupby("speaker")["split"].nunique()
    return next((str(name) for name in splits.index[splits > 1]), None)


def _codes(labels: "pd.Series[str]") -> Indices:
    return np.unique(labels.to_numpy(dtype=str), return_inverse=True)[1].astype(np.int64)
