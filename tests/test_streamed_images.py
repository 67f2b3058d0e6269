"""Images in shards: the same samples and fits as from files, and what is refused."""

import errno
import json
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_da.callbacks import KeepRandomState
from lightning_da.data import StreamedImages
from lightning_da.data import shards as shards_module
from lightning_da.data.base import SPLITS, DataError, Roles
from lightning_da.data.shards import Shards, write_shards
from lightning_da.main import main
from lightning_da.methods import DANN
from lightning_da.networks import FeedForward
from lightning_da.store import client
from lightning_da.testing import equal, state, trainer
from tests.test_distributed import TWO, lightning_da
from tests.test_image_folders import draw, fill, folders, names
from tests.toy import ADAM

litdata = pytest.importorskip("litdata")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two domains as files, and in `shards` as several shards each."""
    monkeypatch.setattr(shards_module, "SHARD", 6000)
    fill(tmp_path / "art", 20)
    fill(tmp_path / "photo", 20, suffix="png")
    for domain in ("art", "photo"):
        write_shards(tmp_path / domain, tmp_path / "shards" / domain)
        assert len(list((tmp_path / "shards" / domain).glob("*.bin"))) > 2
    return tmp_path


def streamed(root: Path, /, **arguments: Any) -> StreamedImages:
    small: dict[str, Any] = {"batch_size": 4, "image_size": 8, "num_workers": 0}
    return StreamedImages(**{"root": str(root / "shards"), "source": "art", "target": "photo"} | small | arguments)


# ---------------------------------------------------------------- the same samples


def test_litdata_reads_the_files_as_they_were(root: Path) -> None:
    stored = litdata.StreamingDataset(str(root / "shards" / "art"))
    files = sorted((root / "art").glob("*/*"))
    assert [bytes(stored[row]) for row in range(len(stored))] == [file.read_bytes() for file in files]


def splits(root: Path) -> None:
    for split, number in (("train", 8), ("valid", 4), ("test", 4)):
        fill(root / "own" / split, number)
    draw(root / "own" / "beside.png")


def unlabelled(root: Path) -> None:
    for i in range(30):
        draw(root / "own" / f"{i}.png", value=i)


def nested(root: Path) -> None:
    fill(root / "own", 6, classes=("bike/a/b", "mug/a", "train/a"))


@pytest.mark.parametrize("arguments", [{}, {"protocol": "all", "augment": False}, {"seed": 3, "val_share": 0.3}])
@pytest.mark.parametrize("make", [splits, unlabelled, nested])
def test_samples_are_those_of_the_files(root: Path, make: Callable[[Path], None], arguments: dict[str, Any]) -> None:
    make(root)
    write_shards(root / "own", root / "shards" / "own")
    files, shards = (new(root, source="art", target="own", **arguments) for new in (folders, streamed))
    assert shards.fingerprint() == files.fingerprint()
    for domain in ("art", "own"):
        assert names(shards, domain) == names(files, domain)
        assert shards.classes_of(domain) == files.classes_of(domain)
        for split in SPLITS:
            one, other = files.dataset(domain, split), shards.dataset(domain, split)
            assert torch.equal(one.y, other.y)
            for index in range(len(one)):
                assert np.array_equal(np.asarray(one.read(index)), np.asarray(other.read(index)))


def test_the_shards_of_one_domain(root: Path) -> None:
    files = folders(root / "photo", source=None, target=None)
    shards = streamed(root, root=str(root / "shards" / "photo"), source=None, target=None)
    shards.check(Roles(("target",), ()))
    assert shards.fingerprint() == files.fingerprint()
    fill(root / "both" / "art")
    fill(root / "both" / "photo")
    write_shards(root / "both", root / "shards" / "both")
    with pytest.raises(DataError, match=r"'art', 'photo' have the same folders, like domains"):
        streamed(root, root=str(root / "shards" / "both"), source=None, target=None).check(Roles(("target",), ()))


# ---------------------------------------------------------------- the same fits


def test_a_fit_on_shards_is_that_on_files_and_goes_on_within_a_pass(root: Path) -> None:
    """With augmentation, bit by bit, and also with another number of loading processes."""
    keep = ModelCheckpoint(root / "kept", "{step}", save_top_k=-1, every_n_train_steps=3, enable_version_counter=False)

    def fit(data: Any, workers: int, seed: int, checkpoint: Path | None = None) -> DANN:
        L.seed_everything(seed, verbose=False)
        small = partial(FeedForward, hidden=[16, 16], dropout=0.5)
        model = DANN(num_classes=2, input_shape=(3, 8, 8), backbone=small, optimizer=ADAM, domain_weight=0.1)
        L.seed_everything(5, verbose=False)
        callbacks = [KeepRandomState(), *([] if checkpoint else [keep])]
        last = trainer(-1, max_epochs=3, enable_checkpointing=checkpoint is None, callbacks=callbacks)
        last.fit(
            model, data(root, num_workers=workers), ckpt_path=checkpoint, weights_only=True if checkpoint else None
        )
        assert last.global_step == 21  # 7 in a pass
        return model

    on_files, on_shards = fit(folders, 0, seed=0), fit(streamed, 2, seed=0)
    assert equal(state(on_shards, ("",)), state(on_files, ("",)))
    resumed = fit(streamed, 0, seed=9, checkpoint=root / "kept" / "step=9.ckpt")
    assert equal(state(resumed, ("",)), state(on_files, ("",)))


def test_no_sample_twice_in_a_pass_over_processes(root: Path) -> None:
    """Two processes with two loading processes each; the images are recognized by their pixels."""

    def read(rank: int) -> list[bytes]:
        data = streamed(root, augment=False, num_workers=2, batch_size=7)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=2,
            global_rank=rank,
            state=SimpleNamespace(fn="fit"),
            lightning_module=SimpleNamespace(),
            fit_loop=SimpleNamespace(
                epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(ready=0)))
            ),
        )
        return [image.numpy().tobytes() for batch in data._train_loader("target", labels=False) for image in batch]

    whole = streamed(root, augment=False).dataset("photo", "train")
    first, second = read(0), read(1)
    assert len(first) == len(second) == len(whole) // 2
    assert set(first + second) == {whole[index][0].numpy().tobytes() for index in range(len(whole))}


@pytest.mark.slow
def test_a_fit_on_two_processes_is_that_of_one_with_the_whole_batch(root: Path) -> None:
    """Also on files: the second fit is theirs."""
    data = ["--data.source", "art", "--data.target", "photo", "--data.image_size", "8", "--data.num_workers", "1"]
    model = ["--model.backbone", "lightning_da.networks.FeedForward", "--model.backbone.hidden", "[16]"]
    options = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false"]
    found = []
    for name, folder, batch, processes in (("streamed_images", "shards", "4", TWO), ("image_folders", ".", "8", [])):
        words = ["--config", "method/deep_coral.yaml", "--config", f"data/{name}.yaml", *data, *model, *options]
        words += ["--data.root", str(root / folder), "--data.batch_size", batch, *processes]
        lightning_da("fit", *words, "--trainer.logger.experiment_name", name)
        (run,) = client().search_runs([client().get_experiment_by_name(name).experiment_id])  # type: ignore[union-attr]
        kept = client().download_artifacts(run.info.run_id, "checkpoints/last.ckpt")
        found.append(torch.load(kept, weights_only=True)["state_dict"])
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-4, atol=1e-6, msg=key)


# ---------------------------------------------------------------- what is refused


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "chunk-0-1.bin",
            Path.unlink,
            r"chunk-0-1.bin: the shard is missing; copy it again, or write the shards again",
        ),
        ("chunk-0-1.bin", cut, r"chunk-0-1.bin: \d+ bytes instead of \d+; copy it again, or write"),
        ("index.json", cut, r"index.json: not readable .*; write the shards again"),
        ("index.json", Path.unlink, r"shards/art: no shards; write them with `lightning-da shard IMAGES"),
        ("images.npz", cut, r"images.npz: not readable .*; write the shards again"),
        ("images.npz", Path.unlink, r"images.npz: not readable .*; write the shards again"),
    ],
)
def test_torn_and_missing_shards_are_named(root: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(root / "shards" / "art" / name)
    with pytest.raises(DataError, match=message) as found:
        streamed(root).check()
    assert "\n" not in str(found.value)


def test_a_listing_of_other_shards_is_refused(root: Path) -> None:
    fill(root / "more", 30)
    write_shards(root / "more", root / "shards" / "more")
    (root / "shards" / "more" / "images.npz").rename(root / "shards" / "art" / "images.npz")
    with pytest.raises(DataError, match=r"images.npz: not readable \(it lists 60 images, and index.json 40\)"):
        streamed(root).check()


@pytest.mark.parametrize(
    ("damage", "message"), [(Path.unlink, "the shard is gone"), (overwrite, r"the image 'mug/\d+.png' is not readable")]
)
def test_a_shard_lost_while_training_is_named(root: Path, damage: Callable[[Path], None], message: str) -> None:
    data = streamed(root)
    data.check()
    last = max((root / "shards" / "photo").glob("*.bin"), key=lambda path: int(path.stem.split("-")[2]))
    damage(last)
    with pytest.raises(DataError, match=rf"{last.name}: {message}"):
        list(chain(*data._train_loader("target", labels=True), *data.test_dataloader()[1]))


class Payload:
    def __reduce__(self) -> Any:
        return (os.system, ("touch executed",))


def test_nothing_is_executed_from_shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    bad, folder = pickle.dumps(Payload()), root / "shards" / "art"
    for file in (root / "art").glob("*/*"):
        file.write_bytes(bad)
    monkeypatch.setattr(shards_module, "find_damaged", lambda *_: {})
    monkeypatch.setattr("lightning_da.data.image_folders.find_damaged", lambda *_: {})
    write_shards(root / "art", root / "shards" / "bad")
    index = json.loads((root / "shards" / "bad" / "index.json").read_text())
    index["config"]["data_format"] = ["pickle"]
    (root / "shards" / "bad" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"the image 'bike/00\.jpg' is not readable"):
        Shards(root / "shards" / "bad").read(0)
    np.savez(folder / "images.npz", names=np.array([Payload()], dtype=object), sizes=np.array([1]))
    with pytest.raises(DataError, match=r"images\.npz: not readable"):
        streamed(root).check()
    assert not (root / "executed").exists()
    litdata.StreamingDataset(str(root / "shards" / "bad"))[0]
    assert (root / "executed").exists(), "the test can fail"


# ---------------------------------------------------------------- the command


def shard(*words: object) -> None:
    main(["shard", *map(str, words)])


def test_the_command_writes_shards(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(root / "art", root / "new" / "art")
    assert capsys.readouterr().out == f"40 images in {root / 'new' / 'art'}\n"
    assert (
        streamed(root, root=str(root / "new"), target=None).fingerprint() == streamed(root, target=None).fingerprint()
    )


def test_the_command_says_what_is_wrong(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, *words: object, code: int = 2) -> None:
        with pytest.raises(SystemExit) as stop:
            shard(*words)
        error = capsys.readouterr().err.splitlines(keepends=True)[-1]
        assert (stop.value.code, message in error) == (code, True), error

    new = root / "new"
    refused("art: it exists already; name a new folder", root / "art", root / "shards" / "art")
    refused("none: no such folder", root / "none", new)
    (root / "file").touch()
    refused("file/new: not written ([Errno ", root / "art", root / "file" / "new", code=1)
    cut(root / "art" / "mug" / "03.jpg")
    refused("remove or replace it\n", root / "art", new)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", Mock(side_effect=full))  # behind the last shard
        refused("new: not written ([Errno 28] No space", root / "photo", new, code=1)
    monkeypatch.setitem(sys.modules, "litdata.streaming", None)
    refused("install this project with the extra [streaming]", root / "photo", new)
    assert not list(root.glob(".*")), "nothing half-written is left"
    assert not new.exists()
