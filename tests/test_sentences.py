"""Tables and folders of texts: how they are read and split, and what is refused."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lightning_da.data import DataError, Roles, Sentences, Task
from lightning_da.data.base import SPLITS, UNKNOWN, TensorDomain
from lightning_da.methods import FineTune
from lightning_da.networks import LSTM, FeedForward
from lightning_da.testing import check_data
from lightning_da.text.words import encode
from tests import toy


def table(number: int = 40, first: str = "a", **columns: Any) -> pd.DataFrame:
    texts = [f"{first} text {'good' if i % 2 else 'bad'} number {i}" for i in range(number)]
    return pd.DataFrame({"text": texts, "label": ["pos" if i % 2 else "neg" for i in range(number)]} | columns)


def write(path: Path, frame: pd.DataFrame, **how: Any) -> None:
    frame.to_csv(path, index=False, **how)


def data(root: Path, source: str | None = "a.csv", target: str | None = "b.csv", **arguments: Any) -> Sentences:
    return Sentences(source, target, root=str(root), **{"batch_size": 4, "max_length": 8} | arguments)


def read(root: Path, domain: str, **arguments: Any) -> dict[str, TensorDomain]:
    found = data(root, None, domain, **arguments)
    return {split: found.dataset(domain, split) for split in SPLITS}


def texts(root: Path, domain: str, **arguments: Any) -> dict[str, set[str]]:
    return {split: set(part.names) for split, part in read(root, domain, **arguments).items()}


# ---------------------------------------------------------------- reading


def test_each_row_is_a_sample_with_its_label(tmp_path: Path) -> None:
    frame = table()
    write(tmp_path / "a.csv", frame)
    parts = read(tmp_path, "a.csv")
    assert {split: len(part) for split, part in parts.items()} == {"train": 28, "val": 4, "test": 8}
    rows = {name: (x, int(y)) for part in parts.values() for name, x, y in zip(part.names, part.x, part.y, strict=True)}
    assert len(rows) == 40
    for row in (0, 7, 39):
        x, y = rows[f"row {row + 1}"]
        assert x.dtype == torch.int64
        assert x.tolist() == encode([frame["text"][row]], 8)[0][0].tolist()
        assert parts["test"].classes[y] == frame["label"][row]
    x, _ = parts["train"][0]
    assert x.dtype == torch.int64  # not as numbers


def test_a_tab_separated_table_and_quoted_texts_are_the_same(tmp_path: Path) -> None:
    frame = table()
    frame.loc[3, "text"] = 'commas, "quotes"\nand lines'
    write(tmp_path / "a.csv", frame)
    write(tmp_path / "a.tsv", frame, sep="\t")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    prints = {
        name: [part.fingerprint() for part in read(tmp_path, name).values()] for name in ("a.csv", "a.tsv", "bom.csv")
    }
    assert prints["a.csv"] == prints["a.tsv"] == prints["bom.csv"]


def test_splits_and_domains_of_a_file(tmp_path: Path) -> None:
    split = ["train"] * 20 + ["val"] * 4 + ["test"] * 16
    write(tmp_path / "all.csv", table(split=split, domain=["x", "x", "y", "y"] * 10))
    found = {name: texts(tmp_path, f"all.csv:{name}") for name in "xy"}
    assert found["x"]["val"] == {"row 21", "row 22"}
    assert found["y"]["val"] == {"row 23", "row 24"}
    assert not {name for part in found["x"].values() for name in part} & {
        n for part in found["y"].values() for n in part
    }
    with pytest.raises(DataError, match=r"several domains .*'x', 'y'; name one as all.csv:NAME"):
        read(tmp_path, "all.csv")
    with pytest.raises(DataError, match="no domain 'z'"):
        read(tmp_path, "all.csv:z")


@pytest.mark.parametrize("split", [False, True])
def test_a_folder_of_texts_is_read_as_a_table(split: bool, tmp_path: Path) -> None:
    for row in table(60).itertuples():
        for place in ("train", "test") if split else ("",):
            folder = tmp_path / "d" / place / str(row.label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row.Index}.txt").write_text(f"{row.text} {place}", encoding="utf-8")
    parts = read(tmp_path, "d")
    for name, place in (("train", "train"), ("test", "test")):
        part = parts[name]
        assert part.classes == ["neg", "pos"]
        assert set(part.y.tolist()) == {0, 1}
        inside = place if split else part.names[0].split("/")[0]
        assert all(sample.startswith(inside) or not split for sample in part.names)
        label = ["neg", "pos"][int(part.y[0])]
        assert Path(part.names[0]).parent.name == label
        assert part.x[0].tolist() == encode([(tmp_path / "d" / part.names[0]).read_text()], 8)[0][0].tolist()
    assert len(parts["test"]) == (60 if split else 12)


def test_texts_without_class_folders_have_no_label(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", table())
    (tmp_path / "b").mkdir()
    for row in range(30):
        (tmp_path / "b" / f"{row}.txt").write_text(f"some text {row}")
    pair = data(tmp_path, target="b")
    pair.check()
    assert pair.dataset("b", "train").y.unique().tolist() == [UNKNOWN]
    with pytest.raises(DataError, match="the source needs labels"):
        data(tmp_path, "b", "a.csv").check()


def test_numbers_as_labels_are_sorted_by_value(tmp_path: Path) -> None:
    frame = table()
    frame["label"] = [f"{i % 3 + 9}.0" if i else "" for i in range(40)]
    write(tmp_path / "a.csv", frame)
    assert read(tmp_path, "a.csv")["test"].classes == ["9", "10", "11"]


def test_protocol_all_and_seeds(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", table())
    whole = texts(tmp_path, "a.csv", protocol="all")
    assert whole["train"] == whole["test"]
    assert len(whole["test"]) == 40
    drawn = [texts(tmp_path, "a.csv", seed=seed)["test"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_made_reviews_are_whole() -> None:
    pair = Sentences("synthetic-books", "synthetic-kitchen")
    check_data(pair)
    assert pair.classes == ["negative", "positive"]
    assert pair.input_shape == (100,)


def test_data_of_ones_own_have_all_properties(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", table())
    write(tmp_path / "b.csv", table(first="another"))
    check_data(data(tmp_path))
    few = data(tmp_path, target_labels="3/class")
    few.check(Roles(("source", "target"), ()))
    assert len(few._rows("target")) == 6
    task = Task(data(tmp_path), "target", ["pos", "neg"])
    assert task.words
    assert task.dataset("b.csv", "train").x.dtype == torch.int64  # type: ignore[union-attr]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"label\npos\n", "no column 'text'; .*'label'"),
        (b"text,labels\na,pos\n", "column 'labels' is not read; rename it to 'label'"),
        (b"text,text\na,b\n", "two columns are named 'text'"),
        (b"", "not a table of comma-separated values"),
        (b"text,label\n", "there are no texts"),
        (b"text,label\na,pos\n,neg\n", "the text of row 2 is empty"),
        (b"text,label\n   ,pos\n", "the text of row 1 is empty"),
        (b"text,label\na,pos,more\nb,neg\n", "not a table .* quotes around a value"),
        (b'text,label\n"a,pos\nb,neg\n', "not a table"),
        (b"text,label\ncaf\xe9,pos\n", "not a table of .* in UTF-8"),
        ("text,label\na,pos\n".encode("utf-16"), "not a table of .* in UTF-8"),
        (b"text,label,split\na,pos,training\n", "unknown split 'training'.*did you mean 'train'"),
        (b"text,label\na,1.5\nb,2\n", "label 1.5 in 'label' is neither an integer nor a name"),
        (b"text,label\na,01\nb,2\nc,1\n", "the labels '01' and '1' in 'label' are the same number"),
    ],
)
def test_a_bad_table_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, "a.csv")
    assert str(tmp_path / "a.csv") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.csv", table())
    monkeypatch.setattr("os.sysconf", lambda _: 60)
    with pytest.raises(DataError, match="give fewer rows"):
        read(tmp_path, "a.csv")


def test_a_bad_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "d" / "pos").mkdir(parents=True)
    (tmp_path / "d" / "neg").mkdir()
    (tmp_path / "d" / "pos" / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"neg: there are no texts"):
        read(tmp_path, "d")
    (tmp_path / "d" / "neg" / "b.txt").write_text("")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8"):
        read(tmp_path, "d")
    (tmp_path / "d" / "pos" / "a.txt").write_text("good")
    with pytest.raises(DataError, match=r"the text of neg/b\.txt is empty"):
        read(tmp_path, "d")
    with pytest.raises(DataError, match=r"neither a table .* there are: 'd'"):
        read(tmp_path, "e")


def test_pairs_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", table())
    frame = table(first="another")
    frame.loc[:9, "label"] = "mixed"
    write(tmp_path / "b.csv", frame)
    with pytest.raises(DataError, match="'mixed' alone"):
        data(tmp_path).check()
    write(tmp_path / "c.csv", table())
    with pytest.raises(DataError, match="are the same data"):
        data(tmp_path, target="c.csv").check()
    for wrong in (0, 100_000):
        with pytest.raises(ValueError, match="max_length"):
            data(tmp_path, max_length=wrong)


def test_test_sentences_that_are_trained_on_are_said(tmp_path: Path) -> None:
    frame = table(split=["train"] * 28 + ["val"] * 4 + ["test"] * 8)
    write(tmp_path / "a.csv", frame)
    other = table(first="another", split=frame["split"])
    other.loc[32:33, "text"] = ["a text bad number 0", "another text bad number 2"]
    write(tmp_path / "b.csv", other)
    with pytest.warns(UserWarning, match="2 of the 8 test sentences of 'b.csv' are training sentences"):
        data(tmp_path).check()


def test_texts_that_differ_in_words_that_are_not_read_are_no_repetitions(tmp_path: Path) -> None:
    frame = table(split=["train"] * 28 + ["val"] * 4 + ["test"] * 8)
    write(tmp_path / "a.csv", frame)
    other = table(first="another", split=frame["split"])
    other["text"] = "the same eight words begin all of them " + other["text"]
    other.loc[33, "text"] = str(other.loc[1, "text"]).replace(" ", "  ")
    write(tmp_path / "b.csv", other)
    with pytest.warns(UserWarning, match="1 of the 8 test sentences of 'b.csv' are training sentences"):
        data(tmp_path).check()


def test_the_network_reads_what_the_data_are(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", table())
    write(tmp_path / "b.csv", table(first="another"))

    def build(backbone: Any, shape: tuple[int, ...]) -> FineTune:
        return FineTune(num_classes=2, input_shape=shape, backbone=backbone)

    vectors = build(lambda shape: FeedForward(shape, [4]), (8,))
    with pytest.raises(DataError, match=r"the samples are sentences; .*networks\.LSTM"):
        data(tmp_path).check(Roles.of(vectors, 1))
    words = build(LSTM, (8,))
    with pytest.raises(DataError, match="the samples are no sentences"):
        toy.Toy().check(Roles.of(words, 1))
    data(tmp_path).check(Roles.of(words, 1))
    with pytest.raises(ValueError, match="standardize: words have no mean"):
        FineTune(num_classes=2, input_shape=(8,), backbone=LSTM, standardize=True)
    with pytest.raises(ValueError, match=r"not \(3, 8, 8\)"):
        build(LSTM, (3, 8, 8))
