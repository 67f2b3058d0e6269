"""Corpora of speech: manifests and folders, splits by speaker, labels of each task, leakage, cached features."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from lightning_da.data import DataError, SpeechCorpora
from lightning_da.data import speech as speech_data
from lightning_da.data.base import SPLITS, UNKNOWN
from lightning_da.data.speech import read_corpus
from lightning_da.methods import FineTune
from lightning_da.speech.extract import extract
from tests import toy, voices


def corpora(folder: Path, **given: Any) -> SpeechCorpora:
    defaults: dict[str, Any] = {"source": "source.csv", "target": "target.csv", "root": str(folder), "batch_size": 4}
    return SpeechCorpora(**(defaults | given))


def speakers(data: SpeechCorpora, role: str, split: str) -> set[str]:
    return {name.split("-")[1] for name in data.names(role, split)}


# ---------------------------------------------------------------- what is read


def test_a_manifest_may_leave_out_columns_and_fields(tmp_path: Path) -> None:
    voices.write(tmp_path / "sounds", 3, 2)
    rows = [{"path": " sounds/s-0-0.wav ", "emotion": "sad", "text": "x"}, {"path": "sounds/s-1-0.wav", "emotion": ""}]
    voices.manifest(tmp_path / "some.csv", rows, ["path", "emotion", "text"])
    corpus = read_corpus(tmp_path / "some.csv", "emotion")
    assert corpus.files == [tmp_path / "sounds/s-0-0.wav", tmp_path / "sounds/s-1-0.wav"]
    assert corpus.table.to_dict("list") == {
        "speaker": ["", ""], "gender": ["", ""], "emotion": ["sad", ""], "split": ["", ""]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["file"], [["a.wav"]], "no column 'path'; .*'file'"),
        (["path"], [], "lists no sound files"),
        (["path"], [["a.wav"], ["a.wav"]], "'a.wav' is listed twice"),
        (["path"], [["a.wav"], ["b.m4a"]], r"'b.m4a' is no sound file \(.wav, .flac, .mp3, .ogg\); convert it"),
        (["path", "emotions"], [["a.wav", "sad"]], "column 'emotions' is not read; rename it to 'emotion'"),
        (["path", "Speaker"], [["a.wav", "a"]], "column 'Speaker' is not read; rename it to 'speaker'"),
        (["path"], [["a.wav", "b"], ["a", "b", "c"]], "not a table of comma-separated values"),
        (["path", "split"], [["a.wav", "training"]], "'training' in the column 'split'; did you mean 'train'"),
    ],
)
def test_a_manifest_that_cannot_be_used(
    tmp_path: Path, columns: list[str], rows: list[list[str]], message: str
) -> None:
    voices.sound(tmp_path / "a.wav", 100.0)
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    with pytest.raises(DataError, match=message) as error:
        read_corpus(tmp_path / "m.csv", "emotion")
    assert "m.csv" in str(error.value)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_a_sound_of_each_kind_is_read_from_a_table_a_folder_and_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / f"a.{kind}", np.sin(np.arange(8000) / 9), 8000)
    (tmp_path / "m.csv").write_text(f"path\nclips/a.{kind}\n")
    for place in ("m.csv", "clips", f"clips/a.{kind}"):
        assert read_corpus(tmp_path / place, "emotion").files == [tmp_path / "clips" / f"a.{kind}"]


def test_a_link_to_nothing_is_named(pair: Path) -> None:
    (pair / "target" / "t-0-0.wav").unlink()
    (pair / "target" / "t-0-0.wav").symlink_to("gone.wav")
    for place, name in (("target.csv", "target/t-0-0.wav"), ("target", "t-0-0.wav")):
        with pytest.raises(DataError, match=f"{place}: '{name}' not found: it is a link to 'gone.wav'; restore"):
            corpora(pair, recordings=place).dataset(place, "new")


@pytest.mark.slow
def test_corpora_of_different_bandwidth_are_warned_of(pair: Path, recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(0)
    for role, rate in (("source", 8000), ("target", 44100)):
        for path in sorted((pair / role).glob("*.wav")):
            soundfile.write(path, soundfile.read(path)[0] + 0.1 * rng.normal(size=len(soundfile.read(path)[0])), rate)
    said = "'source.csv' to 5000 Hz, and of 'target.csv' to 8000 Hz: .*; add --data.rate 8000"
    with pytest.warns(UserWarning, match=said):
        corpora(pair, task="gender").check()
    recwarn.clear()
    corpora(pair, task="gender", rate=8000).check()
    corpora(pair, task="gender", target="source.csv").check()
    assert not [warning for warning in recwarn if "Hz" in str(warning.message)]


def test_a_manifest_that_is_no_table(tmp_path: Path) -> None:
    for content in (b"", "päth,speaker\n".encode("latin-1")):
        (tmp_path / "m.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"m.csv: not a table of comma-separated values in UTF-8"):
            read_corpus(tmp_path / "m.csv", "emotion")


@pytest.mark.parametrize("name", ["../away.wav", "in/../../away.wav", "{folder}/away.wav"])
def test_a_manifest_lists_files_of_its_folder(name: str, tmp_path: Path) -> None:
    """Others only if that is asked for."""
    name = name.format(folder=tmp_path)
    (tmp_path / "corpus").mkdir()
    manifest = tmp_path / "corpus" / "m.csv"
    manifest.write_text(f"path\nin/./a.wav\n{tmp_path}/corpus/b.wav\n{name}\n")
    with pytest.raises(DataError, match=rf"m.csv: '{name}' is outside of the folder .* set --data.outside true"):
        read_corpus(manifest, "emotion")
    assert read_corpus(manifest, "emotion", outside=True).names[2] == name
    assert SpeechCorpora(str(manifest), str(manifest), outside=True).with_labels("speaker").outside


def test_sounds_that_are_gone_are_named_when_they_are_read(pair: Path) -> None:
    data = corpora(pair, recordings="source.csv")
    assert data.classes == ["angry", "sad"]
    for name in ("t-0-0", "t-0-1"):
        (pair / "target" / f"{name}.wav").unlink()
    data.dataset("target.csv", "new")  # other sounds are predicted all the same
    with pytest.raises(DataError, match=r"target.csv: 'target/t-0-0.wav' and 1 more not found"):
        data.dataset("target.csv", "train")


def test_folders_are_labels_and_sounds_beside_them_have_none(tmp_path: Path) -> None:
    for name in ("angry/a.wav", "sad/deep/b.FLAC", "c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        voices.sound(tmp_path / name, 100.0)
    (tmp_path / "notes.txt").write_text("no sound")
    corpus = read_corpus(tmp_path, "emotion")
    assert dict(zip(corpus.names, corpus.table["emotion"], strict=True)) == {
        "angry/a.wav": "angry", "sad/deep/b.FLAC": "sad", "c.wav": ""
    }  # fmt: skip
    assert list(read_corpus(tmp_path, "speaker").table["speaker"]) == list(corpus.table["emotion"])
    one = read_corpus(tmp_path / "angry" / "a.wav", "emotion")
    assert (one.names, list(one.table["emotion"])) == (["a.wav"], [""])


def test_what_is_no_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*nowhere'; .*'synthetic-speakers'"):
        read_corpus(tmp_path / "nowhere", "emotion")
    (tmp_path / "table.txt").write_text("path")
    with pytest.raises(DataError, match=r"table.txt' is no manifest"):
        read_corpus(tmp_path / "table.txt", "emotion")
    with pytest.raises(DataError, match=r"no sound files \(\.wav, \.flac, \.mp3, \.ogg\)"):
        read_corpus(tmp_path, "emotion")


# ---------------------------------------------------------------- splits


def test_speakers_are_in_one_split_only_and_every_sound_is_in_one(pair: Path) -> None:
    drawn = []
    for seed in range(4):
        data = corpora(pair, task="gender", seed=seed)
        for role in ("source", "target"):
            found = [speakers(data, role, split) for split in SPLITS]
            assert all(found)
            assert sum(map(len, found)) == len(set().union(*found)) == 6
            assert sum(len(data.names(role, split)) for split in SPLITS) == 6 * 4
        drawn.append(frozenset(speakers(data, "target", "test")))
    assert len(set(drawn)) > 1
    assert frozenset(speakers(corpora(pair, task="gender", seed=0), "target", "test")) == drawn[0]


def test_the_splits_of_a_corpus_do_not_depend_on_the_task(pair: Path) -> None:
    splits = [speakers(corpora(pair, task=task), "target", "test") for task in ("gender", "emotion")]
    assert splits[0] == splits[1]


def test_genders_are_spread_over_the_splits(tmp_path: Path) -> None:
    voices.pair(tmp_path, speakers=10)
    for seed in range(5):
        data = corpora(tmp_path, task="gender", seed=seed)  # two of ten speakers
        assert len({int(name) % 2 for name in speakers(data, "target", "test")}) == 2


def uneven(folder: Path) -> None:
    """Twelve speakers, each angry or sad throughout, four sounds each."""
    for name in ("source", "target"):
        rows = [
            {"path": f"{name[0]}-{i}-{k}.wav", "speaker": f"{name[0]}-{i}", "gender": "",
             "emotion": "angry" if i < 6 else "sad"}
            for i in range(12) for k in range(4)
        ]  # fmt: skip
        for number, row in enumerate(rows):
            voices.sound(folder / row["path"], 100.0 + number + (500 if name == "source" else 0))
        voices.manifest(folder / f"{name}.csv", rows, ["path", "speaker", "gender", "emotion"])


@pytest.mark.parametrize("seed", range(4))
def test_emotions_are_spread_over_the_splits_as_far_as_speakers_allow(tmp_path: Path, seed: int) -> None:
    uneven(tmp_path)
    data = corpora(tmp_path, seed=seed, test_share=0.34, val_share=0.17)
    for split in SPLITS:
        y = torch.as_tensor(data._get("target.csv", split).y)
        assert torch.bincount(y, minlength=2).float().std() == 0, split
    others = {frozenset(speakers(corpora(tmp_path, seed=s, test_share=0.34, val_share=0.17), "target", "test"))
              for s in range(4)}  # fmt: skip
    assert len(others) > 1


def test_the_counts_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_da.data.speech.rank_zero_info", said.append)
    uneven(tmp_path)
    corpora(tmp_path, test_share=0.34, val_share=0.17).check()
    assert [line.split(":")[0] for line in said] == ["'source.csv', emotion", "'target.csv', emotion"]
    assert said[1].endswith("train 24 (angry 12, sad 12), val 8 (angry 4, sad 4), test 16 (angry 8, sad 8)")


def test_a_speaker_to_leave_out(pair: Path) -> None:
    data = corpora(pair, test_speakers=["t-2"])
    assert speakers(data, "target", "test") == {"2"}
    with pytest.raises(DataError, match="no speaker 't-9'; did you mean 't-"):
        corpora(pair, test_speakers=["t-9"]).names("target", "test")
    half = corpora(pair, test_speakers=["t-0", "t-1", "t-2"])
    assert [len(speakers(half, "target", split)) for split in SPLITS] == [2, 1, 3]
    rows = [
        {**row, "split": "test" if row["speaker"] == "t-0" else "train"} for row in voices.rows(pair / "target.csv")
    ]
    voices.manifest(pair / "target.csv", rows)
    with pytest.raises(DataError, match=r"test_speakers: the column 'split' of .* defines the test split"):
        corpora(pair, test_speakers=["t-2"]).names("target", "test")


def test_an_unknown_speaker_leaves_the_others_in_one_split_each(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    rows[5]["speaker"] = ""
    voices.manifest(pair / "target.csv", rows)
    known = {row["path"]: row["speaker"] for row in rows if row["speaker"]}
    for seed in range(4):
        data = corpora(pair, seed=seed)
        found = [{known[name] for name in data.names("target", split) if name in known} for split in SPLITS]
        assert sum(map(len, found)) == len(set().union(*found)) == 6
        assert sum(len(data.names("target", split)) for split in SPLITS) == 24


def test_splits_of_a_manifest_hold_and_a_missing_validation_is_of_other_speakers(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    for row in rows:
        row["split"] = "test" if row["speaker"] in ("t-0", "t-3") else "train"
    voices.manifest(pair / "target.csv", rows)
    data = corpora(pair)
    found = {split: speakers(data, "target", split) for split in SPLITS}
    assert found["test"] == {"0", "3"}
    assert len(found["val"]) == 1
    assert not found["val"] & found["train"]


def test_a_speaker_in_two_splits_is_refused(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    for place, row in enumerate(rows):
        row["split"] = SPLITS[place % 3]
    voices.manifest(pair / "target.csv", rows)
    with pytest.raises(DataError, match=r"target.csv: speaker 't-0' is in several splits"):
        corpora(pair).check()
    # to tell speakers apart they have to be
    data = corpora(pair, task="speaker", source="target.csv")
    assert [len(data.names("source", split)) for split in SPLITS] == [8, 8, 8]


def test_utterances_are_split_where_speakers_are_not_known(pair: Path) -> None:
    voices.manifest(pair / "target.csv", voices.rows(pair / "target.csv"), ["path", "emotion"])
    data = corpora(pair)
    assert [len(data.names("target", split)) for split in SPLITS] == [17, 2, 5]


def test_two_speakers_cannot_be_split(tmp_path: Path) -> None:
    voices.pair(tmp_path, speakers=2)
    with pytest.raises(DataError, match=r"2 speaker\(s\) cannot be split"):
        corpora(tmp_path).names("target", "test")


# ---------------------------------------------------------------- tasks


def test_speakers_of_the_source_are_all_in_each_split_and_those_of_the_target_are_nobody(pair: Path) -> None:
    data = corpora(pair, task="speaker", val_share=0.25, test_share=0.25)
    data.check()
    assert data.classes == [f"s-{i}" for i in range(6)]
    assert [speakers(data, "source", split) for split in SPLITS] == [set("012345")] * 3
    assert data.classes_of("target.csv") == []
    assert set(data.dataset("target.csv", "train").y.tolist()) == {UNKNOWN}


def test_speakers_that_are_tested_on_emotions_are_not_learnt(pair: Path) -> None:
    tested = speakers(corpora(pair, source="target.csv"), "target", "test")
    for data in (
        corpora(pair, task="speaker", source="target.csv"),
        corpora(pair, task="speaker", test_speakers=["s-1", "t-0"]),
    ):
        every = set.union(*(speakers(data, "source", split) for split in SPLITS))
        assert not every & (tested if data.source == "target.csv" else {"1"})


def test_test_speakers_of_a_manifest_are_not_learnt(pair: Path) -> None:
    rows = [
        {**row, "split": "test" if row["speaker"] == "s-4" else "train"} for row in voices.rows(pair / "source.csv")
    ]
    voices.manifest(pair / "source.csv", rows)
    data = corpora(pair, task="speaker", val_share=0.25, test_share=0.25)
    learnt = set.union(*(speakers(data, "source", split) for split in SPLITS))
    assert "4" not in learnt
    assert data.classes == [f"s-{name}" for name in sorted(learnt)]


def test_the_classes_are_the_targets_where_the_source_has_none(pair: Path) -> None:
    data = corpora(pair)
    assert data.classes_of("source.csv") == []
    assert data.classes == ["angry", "sad"]
    names, train = data.names("target", "train"), data.dataset("target.csv", "train")
    emotions = {row["path"].split("/")[1]: row["emotion"] for row in voices.rows(pair / "target.csv")}
    assert [train.classes[int(y)] for y in train.y] == [emotions[Path(name).name] for name in names]


def test_genders_of_the_target_that_are_not_the_sources_are_not_read(pair: Path) -> None:
    women = [row for row in voices.rows(pair / "target.csv") if row["gender"] == "female"]
    voices.manifest(pair / "target.csv", women)
    data = corpora(pair, task="gender")
    data.check()
    assert data.classes_of("target.csv") == []


def test_one_class_is_not_enough(pair: Path) -> None:
    voices.manifest(pair / "target.csv", [{**row, "gender": ""} for row in voices.rows(pair / "target.csv")])
    voices.manifest(pair / "source.csv", [{**row, "gender": "male"} for row in voices.rows(pair / "source.csv")])
    with pytest.raises(DataError, match=r"task 'gender': neither .* two classes; .* for: emotion, gender, speaker"):
        _ = corpora(pair, task="gender").num_classes


def test_a_source_whose_labels_are_all_one_is_unlabelled(pair: Path) -> None:
    voices.manifest(pair / "source.csv", [{**row, "emotion": "neutral"} for row in voices.rows(pair / "source.csv")])
    data = corpora(pair)
    assert (data.classes, data.classes_of("source.csv")) == (["angry", "sad"], [])
    assert set(data.dataset("source.csv", "train").y.tolist()) == {UNKNOWN}


def test_a_speaker_who_is_tested_in_the_target_is_not_trained_on_in_the_source(pair: Path) -> None:
    rows = [{**row, "speaker": row["speaker"].replace("s", "t")} for row in voices.rows(pair / "source.csv")]
    voices.manifest(pair / "source.csv", rows)
    tested = speakers(corpora(pair), "target", "test")
    for task in ("gender", "speaker"):
        data = corpora(pair, task=task)
        assert not tested & (speakers(data, "source", "train") | speakers(data, "source", "val"))
        with pytest.warns(UserWarning, match=r"'t-.*: tested in 'target.csv', and therefore not trained on"):
            data.check()
    others = sorted({"0", "1", "2", "3", "4", "5"} - tested)
    splits = {others[0]: "val", others[1]: "test"}
    given = [{**row, "split": splits.get(row["speaker"][2:], "train")} for row in rows]
    voices.manifest(pair / "source.csv", given)
    with pytest.raises(
        DataError, match=r"speaker 't-.' of 'source.csv' is trained on, and is speaker 't-.' in the test"
    ):
        corpora(pair, task="gender").check()


def test_a_source_that_is_not_read_may_split_its_speakers(pair: Path) -> None:
    rows = [{**row, "split": SPLITS[place % 3]} for place, row in enumerate(voices.rows(pair / "source.csv"))]
    voices.manifest(pair / "source.csv", rows)
    module = FineTune(num_classes=2, input_shape=(964,), backbone=toy.BACKBONE, train_on="target", standardize=True)
    toy.trainer(1).fit(module, corpora(pair))
    with pytest.raises(DataError, match=r"source.csv: speaker 's-0' is in several splits"):
        corpora(pair, task="gender").check()


def test_both_genders_are_tested_and_three_speakers_are_enough(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    rows = [{**row, "gender": "female" if row["speaker"] < "t-3" else "male"} for row in rows]
    voices.manifest(pair / "target.csv", rows)
    for seed in range(5):
        tested = corpora(pair, seed=seed, test_share=0.34).names("target", "test")
        assert {row["gender"] for row in rows if row["path"] in tested} == {"female", "male"}
    voices.manifest(pair / "target.csv", [row for row in rows if row["speaker"] < "t-3"])
    few = corpora(pair, test_share=0.05)
    assert [len(speakers(few, "target", split)) for split in SPLITS] == [1, 1, 1]


def test_a_class_that_is_never_trained_on_is_named(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    data = corpora(pair, test_speakers=["t-2"])
    tested = data.names("target", "test")
    voices.manifest(
        pair / "target.csv", [row | ({"emotion": "bored"} if row["path"] in tested else {}) for row in rows]
    )
    data = corpora(pair, test_speakers=["t-2"])
    assert data.classes == ["angry", "bored", "sad"]
    module = FineTune(num_classes=3, input_shape=(964,), backbone=toy.BACKBONE, train_on="target", standardize=True)
    with pytest.warns(UserWarning, match="'target.csv': there is no sample of class .*'bored' in train"):
        toy.trainer(1).fit(module, data)


def test_some_emotions_are_told_apart_and_others_are_not_read(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    rows = [row | ({"emotion": "bored"} if place % 4 == 3 else {}) for place, row in enumerate(rows)]
    voices.manifest(pair / "target.csv", rows)
    emotion = {row["path"]: row["emotion"] for row in rows}
    module = FineTune(num_classes=2, input_shape=(964,), backbone=toy.BACKBONE, train_on="target", standardize=True)
    data = corpora(pair, emotions=["sad", "angry"])
    toy.trainer(1).fit(module, data)
    assert data.classes == ["sad", "angry"]
    for split in SPLITS:
        dataset = data.dataset("target.csv", split)
        known = {"sad": 0, "angry": 1, "bored": UNKNOWN}
        assert dataset.y.tolist() == [known[emotion[name]] for name in dataset.names]
    assert corpora(pair, emotions=["sad", "angry"], task="gender").classes == ["female", "male"]
    with pytest.raises(DataError, match="emotions: no sound is labelled 'sat'; did you mean 'sad'"):
        corpora(pair, emotions=["sat", "angry"]).check()
    for wrong in (["sad"], ["sad", "sad"]):
        with pytest.raises(DataError, match="emotions: name at least two, and each once"):
            corpora(pair, emotions=wrong)


def test_labels_that_differ_in_case_are_refused(pair: Path) -> None:
    rows = voices.rows(pair / "target.csv")
    voices.manifest(pair / "target.csv", [{**rows[0], "emotion": "Angry"}, *rows[1:]])
    with pytest.raises(DataError, match=r"target.csv: 'Angry' and 'angry' in 'emotion' differ in case"):
        corpora(pair).check()


def test_an_odd_sound_is_used(pair: Path) -> None:
    """One of a few frames, whose slopes are far from those of all others."""
    rows = voices.rows(pair / "target.csv")
    soundfile.write(pair / "target" / "short.wav", np.r_[np.zeros(600), 0.9 * np.ones(360)], 16000)
    voices.manifest(pair / "target.csv", [*rows, {**rows[0], "path": "target/short.wav"}])
    data = corpora(pair, task="gender")
    data.check()
    reach = [max(float(data.dataset(domain, split).x.abs().max()) for split in SPLITS) for domain in data._corpora]
    assert max(reach) > 50 * min(reach)


def test_a_sound_that_is_trained_on_and_tested_is_refused(pair: Path) -> None:
    data = corpora(pair, task="gender")
    data.check()
    tested = pair / data.names("target", "test")[0]
    trained = pair / data.names("source", "train")[0]
    trained.write_bytes(tested.read_bytes())
    with pytest.raises(DataError, match=f"{trained.name}' of 'source.csv' is trained on, and is .*{tested.name}"):
        corpora(pair, task="gender").check()
    # nor unlabelled, nor within the source
    (pair / data.names("target", "train")[0]).write_bytes(tested.read_bytes())
    trained.write_bytes((pair / data.names("source", "train")[1]).read_bytes())
    with pytest.raises(DataError, match=r"of 'target.csv' is trained on, and is .* in the test split of 'target.csv'"):
        corpora(pair, task="gender").check()
    (pair / data.names("target", "train")[0]).write_bytes((pair / data.names("target", "train")[1]).read_bytes())
    trained.write_bytes((pair / data.names("source", "test")[0]).read_bytes())
    with pytest.raises(DataError, match=r"of 'source.csv' is trained on, and is .* in its test split; remove one"):
        corpora(pair, task="gender").check()


def test_a_copy_in_the_targets_own_training_split_is_refused_where_it_is_read(pair: Path) -> None:
    data = corpora(pair)
    tested, trained = pair / data.names("target", "test")[0], pair / data.names("target", "train")[0]
    trained.write_bytes(tested.read_bytes())
    module = FineTune(num_classes=2, input_shape=(964,), backbone=toy.BACKBONE, train_on="target", standardize=True)
    with pytest.raises(DataError, match=f"{trained.name}' of 'target.csv' is trained on"):
        toy.trainer(1).fit(module, corpora(pair))


# ---------------------------------------------------------------- features


def test_samples_are_the_features_of_their_sounds(pair: Path, tmp_path: Path) -> None:
    data = corpora(pair, rate=8000)
    for split in SPLITS:
        part = data.dataset("target.csv", split)
        expected = extract([pair / name for name in part.names], "functionals", 8000, tmp_path / "other cache")
        np.testing.assert_array_equal(part.x.numpy(), expected)
    assert data.input_shape == tuple(part.x.shape[1:])


def test_classes_and_shape_are_known_without_a_sound(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(speech_data, "extract", fail)
    data = corpora(pair, task="gender")
    assert (data.num_classes, data.classes, data.input_shape) == (2, ["female", "male"], (964,))
    data.setup("predict")


def test_new_recordings_are_predicted_in_place_of_the_target(pair: Path) -> None:
    voices.sound(pair / "new" / "one.wav", 150.0)
    data = corpora(pair, recordings="new")
    assert (data.predicted, data.names("target", "new")) == (("new",), ["one.wav"])
    (loader,) = data.predict_dataloader()
    ((x, y),) = list(loader)
    assert x.shape == (1, 964)
    assert y.tolist() == [UNKNOWN]
    with pytest.raises(DataError, match=r"recordings: only `predict` reads them, not test"):
        data.setup("test")


def test_unknown_features_are_refused_at_once(pair: Path) -> None:
    with pytest.raises(ValueError, match="no feature set 'IS21'"):
        corpora(pair, features="IS21")


def test_the_synthetic_corpora_need_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    voices.small_synthesis(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = SpeechCorpora(task="gender", batch_size=2)
    data.check()
    assert data.classes == ["female", "male"]
    assert SpeechCorpora().classes == ["angry", "happy", "neutral", "sad"]
    sounds: Sequence[Path] = list(tmp_path.rglob("synthetic-*/*.wav"))
    assert {soundfile.info(path).samplerate for path in sounds} == {16000}
    assert torch.isfinite(data.dataset("synthetic-emotions", "train").x).all()
