"""Sentences in tables or folders of texts."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_da.data.base import SPLITS, DataError, DomainPairDataModule, Roles, TensorDomain
from lightning_da.data.splits import SPLIT_FOLDERS, split_indices
from lightning_da.data.tables import encode_labels, read_table
from lightning_da.errors import check_range, list_choices
from lightning_da.names import Names
from lightning_da.text.synthesis import GOODS, write_reviews
from lightning_da.text.words import code_of, encode, split_words

SEPARATORS = {".csv": ",", ".tsv": "\t"}
MADE = 1200
"""Number of reviews of a synthetic domain."""


class _Texts(NamedTuple):
    """The texts of a domain.

    Attributes:
        place: File or folder.
        table: One row for each text, with the columns text, label, split and domain: text, empty if unknown.
        names: Name of each text.
    """

    place: Path
    table: pd.DataFrame
    names: list[str]


class Sentences(DomainPairDataModule):
    """Two domains of sentences or short texts, or one domain with labels, held in memory.

    A domain is one of these, below `root`:

    - A table, `.csv` or `.tsv`, in UTF-8, with the column `text`, and optionally `label`, `split` (train, val, test)
      and `domain`. If the column `domain` has several names, a domain is `FILE:NAME`.
    - A folder of texts, `<class>/*.txt` or `<split>/<class>/*.txt`, one text a file; the splits are train and test, and
      optionally val. Texts directly in a folder without class folders have no label.
    - `synthetic-books`, `synthetic-kitchen` or `synthetic-hotels`: reviews that the project makes.

    Labels are integers or names; an empty label is an unknown one. The target may have no labels. Texts without splits
    are split with `seed`, stratified by class.

    A sample is the sequence of its words, each an integer that does not depend on the other words (see
    `lightning_da.text.words`), int64, shape (max_length,), with 0 after its end. The vocabulary is part of the network.

    Args:
        source: The domain with labels, or several; None if there is one domain.
        target: The domain to transfer to, or several; None if there is one domain.
        batch_size: Samples per batch and domain, on each process.
        root: Folder that `source` and `target` are relative to.
        max_length: Largest number of words of a text; the later ones are not read.
        protocol: `split` uses different texts for training and test. `all` uses all texts of a domain in each split:
            training reads the unlabelled target texts that are tested later. Results of the two protocols are not
            comparable. With `all`, source accuracies, and target accuracies of methods that read target labels, are
            those of training texts.
        seed: Seed of the splits.
        val_share: Fraction of texts for validation; if there are only a training and a test split, a fraction of the
            training texts.
        test_share: Fraction of texts for test.
        **kwargs: Arguments of `DomainPairDataModule`, `target_labels` for example.
    """

    words = True

    def __init__(
        self,
        source: Names | None = None,
        target: Names | None = None,
        batch_size: int = 32,
        root: str = ".",
        max_length: int = 100,
        protocol: Literal["split", "all"] = "split",
        seed: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, target, batch_size, **kwargs)
        check_range("data.max_length", max_length, 1, 10_000)
        self.root, self.max_length, self.protocol = Path(root), max_length, protocol
        self.predicted = ("test",) if protocol == "all" else SPLITS
        self.seed, self.val_share, self.test_share = seed, val_share, test_share
        self._domains: dict[str, dict[str, TensorDomain]] = {}
        self._longer: dict[str, dict[str, int]] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(max_length,)."""
        return (self.max_length,)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        if domain not in self._domains:
            self._domains[domain] = self._encoded(domain, self._read(domain))
        return self._domains[domain][split]

    def spelling(self) -> dict[int, str]:
        texts = {text for role in self.domains for name in self.named[role] for text in self._read(name).table["text"]}
        return {code_of(word): word for text in texts for word in split_words(text)[: self.max_length]}

    def check(self, roles: Roles = Roles()) -> None:  # noqa: B008
        """Runs the checks of the base class, and warns of test sentences that are trained on."""
        super().check(roles)
        if self.protocol == "all":
            return
        read = [role for role in self.domains if role in roles.supervised + roles.unlabelled or len(self.domains) < 2]
        trained = {text for role in read for domain in self.named[role] for text in self._whole(domain, "train")}
        for domain in self.named["target"]:
            tested = self._whole(domain, "test")
            if number := sum(text in trained for text in tested):
                rank_zero_warn(
                    f"{number} of the {len(tested)} test sentences of {domain!r} are training sentences, too; remove "
                    "them from one of the two"
                )

    def _whole(self, domain: str, split: str) -> list[tuple[bytes, int | None]]:
        """What tells the texts of a split apart: the words that are read and, of longer texts, a hash of all words."""
        part = self.dataset(domain, split)
        longer = (self._longer.get(domain, {}).get(name) for name in part.names)
        return list(zip((row.tobytes() for row in part.x.numpy()), longer, strict=True))

    def _encoded(self, domain: str, texts: _Texts) -> dict[str, TensorDomain]:
        """The three splits of a domain."""
        place, table, names = texts
        if table.empty:
            raise DataError(f"{place}: there are no texts")
        codes, sizes = encode(table["text"].tolist(), self.max_length)
        if not sizes.all():
            raise DataError(f"{place}: the text of {names[sizes.argmin()]} is empty; remove it")
        longer = np.flatnonzero(sizes > self.max_length)
        self._longer[domain] = {names[row]: hash(tuple(split_words(table["text"].iloc[row]))) for row in longer}
        if longer.size:
            rank_zero_info(
                f"{domain!r}: {len(longer)} of {len(sizes)} texts have more than {self.max_length} words "
                "(data.max_length); the others of their words are not read"
            )
        y, classes = encode_labels(place, "label", table["label"].to_numpy(dtype=object))
        if domain in self.named["source"] and not classes:
            raise DataError(
                f"{place}: the source needs labels, but there are none; add a column 'label' or class folders"
            )
        given = table["split"].to_numpy(dtype=str) if table["split"].any() else None
        splits = split_indices(y, self.seed, self.val_share, self.test_share, given)
        if self.protocol == "all":
            splits = dict.fromkeys(SPLITS, np.arange(len(y)))
        x, labels = torch.from_numpy(codes), torch.from_numpy(y)
        return {
            split: TensorDomain(x[rows], labels[rows], classes, [names[row] for row in rows])
            for split, rows in splits.items()
        }

    def _read(self, domain: str) -> _Texts:
        path, name = self.root / domain, ""
        file, _, ending = domain.rpartition(":")
        if not path.exists() and Path(file).suffix.lower() in SEPARATORS:
            path, name = self.root / file, ending
        if path.is_dir():
            return _read_folder(path)
        if path.suffix.lower() in SEPARATORS and path.is_file():
            return _read_file(path, name)
        if domain in GOODS:
            texts, labels = write_reviews(domain, MADE)
            table = pd.DataFrame({"text": texts, "label": labels, "split": ""})
            return _Texts(path, table, [str(row) for row in range(len(table))])
        there = [*GOODS, *(entry.name for entry in path.parent.glob("*"))]
        raise DataError(
            f"{str(path)!r} is neither a table ({', '.join(SEPARATORS)}) nor a folder of texts; "
            f"{list_choices(path.name, there)} (--data.root, --data.source, --data.target)"
        )


def _read_file(path: Path, name: str) -> _Texts:
    """The rows of a table, those of the domain `name` if it has several."""
    table = read_table(path, "text", ("label", "split", "domain"), SEPARATORS[path.suffix.lower()])
    named = sorted(set(table["domain"]))
    if (name or len(named) > 1) and name not in named:
        raise DataError(
            f"{path}: {f'no domain {name!r}' if name else 'the file has several domains'} in the column 'domain'; "
            f"{list_choices(name, named)}; name one as {path.name}:NAME"
        )
    table = table[table["domain"] == name] if name else table
    return _Texts(path, table, [f"row {row + 1}" for row in table.index])


def _read_folder(folder: Path) -> _Texts:
    """The texts in the files of a folder."""
    inner = _folders(folder)
    splits = dict.fromkeys(inner) if inner and set(inner) <= set(SPLIT_FOLDERS) else {"": None}
    rows = []
    for split in splits:
        classes = _folders(folder / split)
        for label in classes or [""]:
            files = sorted((folder / split / label).rglob("*.txt"))
            if not files:
                raise DataError(
                    f"{folder / split / label}: there are no texts (*.txt); remove the folder or put some there"
                )
            rows += [(file, label, SPLIT_FOLDERS.get(split, "")) for file in files]
    table = pd.DataFrame(
        {
            "text": [_text(file) for file, _, _ in rows],
            "label": [row[1] for row in rows],
            "split": [row[2] for row in rows],
        }
    )
    return _Texts(folder, table, [file.relative_to(folder).as_posix() for file, _, _ in rows])


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
