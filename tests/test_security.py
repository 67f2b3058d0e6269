"""Nothing is executed that comes from data, checkpoints, weights or YAML."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from lightning_da.main import main


class Payload:
    """An object that makes the file `executed` when it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch executed",))


TOUCH = "touch executed"
VALUES = np.random.default_rng(0).normal(size=(60, 4))
LABELS = np.arange(60) % 2


def pickled_features(path: Path) -> None:
    np.savez(path, x=VALUES, y=np.array([Payload()] * 60, dtype=object))


def pickle_itself(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def torch_file(path: Path) -> None:
    torch.save({"state_dict": Payload(), "x": Payload()}, path)


def old_torch_file(path: Path) -> None:
    torch.save({"state_dict": Payload()}, path, _use_new_zipfile_serialization=False)


def zip_with_a_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload()))
        file.writestr("archive/version", "3\n")


def mat_with_a_function(path: Path) -> None:
    savemat(path, {"fts": VALUES, "labels": np.array(["system('touch executed')"] * 60, dtype=object)})


def table_with_formulas(path: Path) -> None:
    rows = "\n".join(f"=cmd|'/c {TOUCH}'!A0,1,2,{label}" for label in LABELS)
    path.write_text(f"a,b,c,label\n{rows}\n")


FILES = [
    ("npz", pickled_features),
    ("npy", pickle_itself),
    ("npz", pickle_itself),
    ("pt", torch_file),
    ("pkl", pickle_itself),
    ("mat", mat_with_a_function),
    ("csv", table_with_formulas),
]
CHECKPOINTS = [pickle_itself, torch_file, old_torch_file, zip_with_a_pickle]
YAML = [
    "model: !!python/object/apply:os.system ['touch executed']",
    "trainer: {max_steps: !!python/object/apply:os.system ['touch executed']}",
    "model: {class_path: os.system, init_args: {command: touch executed}}",
    "model: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}",
    "data: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}",
    "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, executed]}}]}",
    "trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}}",
    "trainer: {plugins: [{class_path: subprocess.Popen, init_args: {args: [touch, executed]}}]}",
    "trainer: {strategy: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}}",
    "model: {init_args: {backbone: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}}}",
    "model: {init_args: {optimizer: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}}}",
    "model: {init_args: {optimizer: os.system}}",
    "model: {init_args: {lr_schedule: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}}}",
]


def refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code in (1, 2)


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", x=VALUES, y=LABELS)
    network = "--model.backbone={class_path: FeedForward, init_args: {hidden: [8]}}"
    data = ["--config", "data/features.yaml", "--data.source=one.npz", "--data.target=two.npz", network]
    return ["fit", "--config", "method/dann.yaml", *data, "--trainer.max_steps=1"]


@pytest.mark.parametrize(("kind", "write"), FILES, ids=lambda value: getattr(value, "__name__", value))
def test_data(kind: str, write: Any, tables: list[str]) -> None:
    write(Path(f"given.{kind}"))
    refused([*tables, f"--data.source=given.{kind}"])
    assert not Path("executed").exists()


@pytest.mark.parametrize("write", CHECKPOINTS, ids=lambda value: value.__name__)
@pytest.mark.parametrize("option", ["--ckpt_path", "--model.init_from"])
def test_checkpoints(option: str, write: Any, tables: list[str]) -> None:
    write(Path("given.ckpt"))
    refused([*tables, f"{option}=given.ckpt"])
    assert not Path("executed").exists()


@pytest.mark.parametrize("write", CHECKPOINTS, ids=lambda value: value.__name__)
def test_weights_of_a_backbone(write: Any, tables: list[str]) -> None:
    write(Path("given.pth"))
    refused([*tables, "--model.backbone={class_path: TimmBackbone, init_args: {name: resnet18, weights: given.pth}}"])
    assert not Path("executed").exists()


@pytest.mark.parametrize("text", YAML)
def test_yaml(text: str, tables: list[str]) -> None:
    Path("given.yaml").write_text(text)
    refused([*tables, "--config", "given.yaml"])
    assert not Path("executed").exists()


def test_the_payload_works(tmp_path: Path) -> None:
    """Otherwise the tests above could not fail."""
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "executed").exists()
