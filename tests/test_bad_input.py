"""Bad input: one line that names the file, the key or the value, exit code 2, and no run left behind."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import soundfile
import timm
import torch
from mlflow.entities import Run
from PIL import Image

from lightning_da import __main__ as program
from lightning_da.main import main
from lightning_da.paths import PROJECT
from lightning_da.store import client
from tests import voices

SHORT = ["--config", str(PROJECT / "tests" / "short.yaml")]
QUICK = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
TABLES = ["--config", "data/features.yaml", *SHORT, *QUICK, "--data.batch_size=8"]
PAIR = ["--data.source=source.csv", "--data.target=target.csv"]
FIT = ["fit", "--config", "method/dann.yaml", *TABLES, *PAIR]
GRID = [*TABLES, *PAIR]
IMAGES = [
    *("fit", "--config", "method/dann.yaml", "--config", "data/image_folders.yaml", *SHORT, *QUICK),
    *("--model.backbone=lightning_da.networks.TimmBackbone", "--model.backbone.model=test_resnet"),
    *("--data.root=images", "--data.source=p", "--data.target=q", "--data.image_size=32", "--data.num_workers=0"),
    "--data.batch_size=4",
]
SPEECH = [
    *("fit", "--config", "method/speech_ffn.yaml", "--after=null", "--config", "data/speech.yaml", *SHORT, *QUICK),
    *(*PAIR, "--data.root=speech", "--data.rate=8000", "--data.batch_size=2", "--model.backbone.hidden=[8]"),
]


STOP = ["--trainer.callbacks+=lightning_da.callbacks.StopAtDivergence"]


def method(name: str, *more: str) -> list[str]:
    return ["fit", "--config", f"method/{name}.yaml", *GRID, *more]


# ---------------------------------------------------------------- the files


def table(path: Path, x: Any, y: Any, header: str = "a,b,c,d,label") -> None:
    rows = [",".join([*(repr(float(value)) for value in row), str(label)]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")


def cut(path: Path, whole: Path) -> None:
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def write_tables(folder: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 4)) + y[:, None]
    for name, shift in (("source", 0), ("target", 0.5), ("copy", 0)):
        table(folder / f"{name}.csv", x + shift, y)
    for name, value in (("huge", 1e300), ("nan", np.nan), ("inf", np.inf)):
        wrong = x.copy()
        wrong[7, 1] = value
        table(folder / f"{name}.csv", wrong, y)
        np.savez(folder / f"{name}.npz", x=wrong, y=y)
    table(folder / "one_class.csv", x, 0 * y)
    table(folder / "one_class_too.csv", x + 0.5, 0 * y)
    table(folder / "few.csv", x[:3], y[:3])
    table(folder / "four.csv", x, np.arange(90) % 4)
    table(folder / "four_too.csv", x + 0.5, np.arange(90) % 4)
    table(folder / "columns.csv", x, y, "a,b,c,e,label")
    table(folder / "unlabelled.csv", x, y, "a,b,c,d,klass")
    table(folder / "halves.csv", x, y + 0.5)
    table(folder / "halves_huge.csv", x, np.where(np.arange(90) == 7, 1e300, y + 0.5))
    table(folder / "header.csv", x[:0], y[:0])
    for name, word in (("s", "good"), ("t", "fine")):
        rows = "".join(f"a {word} film {i},{i % 2}\n" for i in range(60))
        (folder / f"{name}.csv").write_text(f"text,label\n{rows}")
    (folder / "words.csv").write_text("a,label\n" + "".join(f"x{i},{i % 3}\n" for i in range(90)))
    (folder / "ragged.csv").write_text("a,b,label\n1,2,0\n1,2,3,4,0\n")
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    (folder / "utf16.csv").write_bytes((folder / "source.csv").read_text().encode("utf-16"))
    text = (folder / "source.csv").read_text()
    (folder / "semicolons.csv").write_text(text.replace(",", ";").replace(".", ","))
    (folder / "tabs.csv").write_text(text.replace(",", "\t"))
    (folder / "no_names.csv").write_text(text.partition("\n")[2])
    (folder / "one_word.csv").write_text(text + "abc,1,0\n")
    (folder / "folder.csv").mkdir()
    (folder / "data.xlsx").write_text("x")
    arrays = {
        "s": {"x": x, "y": y}, "t": {"x": x + 0.5, "y": y}, "nolabels": {"x": x}, "short": {"x": x, "y": y[:50]},
        "nosamples": {"z": x, "y": y}, "text": {"x": x.astype(str), "y": y}, "complex": {"x": x + 1j, "y": y},
        "scalar": {"x": np.float64(3), "y": y}, "width0": {"x": x[:, :0], "y": y},
        "objects": {"x": np.array([{}] * 90), "y": y},
    }  # fmt: skip
    for name, content in arrays.items():
        np.savez(folder / f"{name}.npz", **content)  # type: ignore[arg-type]
    scipy.io.savemat(folder / "s.mat", {"x": x, "y": y})
    np.save(folder / "s.npy", x)
    for suffix in ("npz", "mat", "npy"):
        cut(folder / f"cut.{suffix}", folder / f"s.{suffix}")
    for suffix in ("csv", "npz", "mat", "npy", "svmlight"):
        (folder / f"empty.{suffix}").write_bytes(b"")
    (folder / "words.npz").write_text("hello")
    (folder / "words.svmlight").write_text("1 a:b\n")


def write_odd_files(folder: Path) -> None:
    (folder / "dangling.csv").symlink_to("nowhere.csv")
    os.mkfifo(folder / "pipe.csv")
    rows = (folder / "source.csv").read_text().splitlines()
    for name, end in (("commas", ","), ("longer", ",9")):
        (folder / f"{name}.csv").write_text("\n".join([rows[0], *(row + end for row in rows[1:])]))
    for name, text in (
        ("null", "trainer: null"),
        ("octal", "seed_everything: 010"),
        ("sixty", "seed_everything: 1:30"),
    ):
        (folder / f"{name}.yaml").write_text(text)


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for root in ("images", "cut_images", "one_class_images"):
        for place in (f"{root}/{domain}/{name}" for domain in "pq" for name in ("cat", "dog")[: 2 - ("one" in root)]):
            (folder / place).mkdir(parents=True)
            for i in range(15):
                Image.fromarray(rng.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(folder / place / f"{i}.png")
    cut(folder / "cut_images/p/cat/3.png", folder / "images/p/cat/3.png")
    for domain in "pq":
        (folder / "no_images" / domain / "cat").mkdir(parents=True)


def write_sounds(folder: Path) -> None:
    for root in ("speech", "cut", "empty", "words", "nan", "gone"):
        voices.pair(folder / root, 4, 2)
    cut(folder / "cut/target/t-1-1.wav", folder / "speech/target/t-1-1.wav")
    (folder / "empty/target/t-1-1.wav").write_bytes(b"")
    (folder / "words/target/t-1-1.wav").write_text("hello")
    soundfile.write(folder / "nan/target/t-1-1.wav", np.full(3000, np.nan, dtype=np.float32), 8000, subtype="FLOAT")
    (folder / "gone/target/t-1-1.wav").unlink()


def write_weights(folder: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    torch.save(state, folder / "good.pth")
    cut(folder / "cut.pth", folder / "good.pth")
    torch.save({"x.weight": torch.ones(2, 2)}, folder / "other.pth")
    torch.save({f"my.{name}": value for name, value in state.items()}, folder / "prefix.pth")
    torch.save(dict(list(state.items())[: len(state) // 2]), folder / "half.pth")
    torch.save({name: value * (np.nan if value.is_floating_point() else 1) for name, value in state.items()},
               folder / "nan.pth")  # fmt: skip
    torch.save({name: value[..., None] for name, value in state.items()}, folder / "shapes.pth")
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), folder / "vit.pth")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"a": 1}, folder / "mapping.ckpt")
    for name in ("empty.pth", "empty.ckpt"):
        (folder / name).write_bytes(b"")
    for name in ("words.pth", "words.ckpt"):
        (folder / name).write_text("hello")


def latest(number: int = 1) -> list[Run]:
    """The runs of the store that were begun last."""
    places = [experiment.experiment_id for experiment in client().search_experiments()]
    return list(client().search_runs(places, order_by=["attributes.start_time DESC"], max_results=number))


def number_of_runs() -> int:
    """The number of runs in the store that are not deleted, asked of its file, which is quick."""
    client()
    with closing(sqlite3.connect(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))) as store:
        return int(store.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for write in (write_tables, write_odd_files, write_images, write_sounds, write_weights):
        write(folder)
    for name, (content, _) in YAML.items():
        (folder / f"{name}.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "empty_folder").mkdir()
    return folder


@pytest.fixture(autouse=True)
def _here(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Runs words that must be refused, and returns the one line that is said."""

    def said(words: list[str], code: int = 2) -> str:
        before = number_of_runs()
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == code
        found = capsys.readouterr()
        lines = [line for line in found.err.splitlines() if line.startswith("lightning-da: error: ")]
        assert lines == [str(stop.value)], found.err
        assert len(lines[0]) < 560
        assert "Traceback" not in found.err + found.out
        assert "usage:" not in found.err + found.out
        assert code == 1 or number_of_runs() == before
        return lines[0]

    return said


# ---------------------------------------------------------------- values of options

NUMBER, WHOLE, LIST = "is not a number", "is not a whole number", "a list is needed"
VALUES = {
    "model.optimizer.lr": {"-1": "optimizer: Invalid learning rate: -1.0", ".nan": "nan is not a finite",
                           ".inf": "inf is",
                           "abc": NUMBER, "true": NUMBER},
    "model.optimizer.betas": {"[2,2]": "optimizer: Invalid beta", "[0.9]": "a list of 2 is needed", "3": LIST},
    "model.optimizer.weight_decay": {"-1": "optimizer: Invalid weight_decay"},
    "model.optimizer.lrr": {"1": "unknown key 'lrr' of torch.optim.Adam; did you mean 'lr'"},
    "model.optimizer": {"torch.optim.Adamm": "did you mean 'Adam'",
                        "torch.nn.Linear": "torch.nn.Linear is no Optimizer"},
    "model.domain_weight": {"-1": "domain_weight: -1.0 is less than 0", ".nan": "nan is not a finite",
                            ".inf": "inf is not",
                            "x": NUMBER, "[1]": NUMBER, "null": "model.domain_weight: null is no value of it"},
    "model.domain_schedule": {"foo": "'foo' is not an import path", "3": "'3' is not an import path",
                              "lightning_da.schedules.nothing": "has no attribute 'nothing'",
                              "os.getcwd": "domain_schedule: no function of the progress of training"},
    "model.lr_schedule": {"lightning_da.schedules.cosin": "has no attribute 'cosin'", "1": "'1' is not an import path",
                          "math.log": "lr_schedule: no function of the progress of training"},
    "model.backbone.hidden": {"[0]": "hidden: 0 is less than 1", "[-3]": "hidden: -3 is less than 1",
                              "[]": "needs a hidden layer",
                              "x": LIST, "null": LIST, "3": LIST, "[1.5]": WHOLE, "[x]": WHOLE},
    "model.backbone.dropout": {"2": "dropout: 2.0 is more than 1", "-0.1": "dropout: -0.1 is less than 0",
                               ".nan": "nan is not a finite", "x": "'x' is not a number or a list",
                               "[0.1]": "one dropout"},
    "model.backbone.activation": {"rellu": "did you mean 'relu'", "3": "'3' is not a valid choice"},
    "model.backbone.batch_norm": {"3": "'3' is not true or false", "perhaps": "'perhaps' is not true or false"},
    "model.backbone": {"torch.nn.Linear": "torch.nn.Linear is no Backbone",
                       "nothing.There": "No module named 'nothing'",
                       "lightning_da.networks.FeedForwrd": "did you mean 'FeedForward'",
                       "lightning_da.networks.LeNet": "LeNet reads images"},
    "model.discriminator": {"[0]": "hidden: 0 is less than 1", "[-1]": "hidden: -1 is less than 1", "x": LIST},
    "model.layers": {"[]": "name at least one layer", "[nothing]": "no layer 'nothing'", "[head,head]": "each once",
                     "3": LIST},
    "model.batch_norm": {"x": "batch_norm: 'x' is not a valid choice; there are: 'joint'"},
    "model.train_on": {"nothing": "'nothing' is not a valid choice", "3": "'3' is not a valid choice"},
    "model.freeze": {"99": "give 0 to 2, or all", "-1": "give 0 to 2, or all",
                     "x": "neither a whole number nor a valid"},
    "model.unfreeze_by": {"2": "must be in (0, 1]", "0.5": "needs frozen layers"},
    "model.label_smoothing": {"1": "is not in [0, 1)", "-1": "is not in [0, 1)", ".nan": "nan is not a finite"},
    "model.backbone_lr_scale": {"-1": "backbone_lr_scale: -1.0 is less than 0", ".nan": "nan is not a finite"},
    "model.head_lr_scale": {"-1": "head_lr_scale: -1.0 is less than 0"},
    "model.layer_lr_decay": {"-1": "layer_lr_decay: -1.0 is less than 0"},
    "model.standardize": {"perhaps": "neither true nor false nor a valid choice"},
    "model.bottleneck": {"foo": "'foo' is not an import path",
                         "lightning_da.networks.Nothing": "no attribute 'Nothing'"},
    "model.init_from": {"nothing": "init_from: 'nothing' is no checkpoint file",
                        "empty_folder": "'empty_folder' is no"},
    "model": {"lightning_da.methods.DAN2": "did you mean 'DAN'",
              "torch.nn.Linear": "torch.nn.Linear is no TransferModule",
              "nothing.There": "model: No module named 'nothing'",
              "lightning_da.methods.AdaptationModule": "no method is given"},
    "data": {"torch.nn.Linear": "torch.nn.Linear is no DomainPairDataModule",
             "lightning_da.data.Digit": "did you mean 'Digits'"},
    "data.batch_size": {"0": "batch_size: 0 is less than 1", "-1": "batch_size: -1 is less", "1.5": WHOLE, "x": WHOLE,
                        "5000": "set --data.batch_size to at most", "null": "data.batch_size: null is no value of it"},
    "data.source": {"[]": "data.source: the list is empty", "[source.csv, source.csv]": "is named twice",
                    "[source.csv, 3]": "YAML reads 3, which is not text",
                    "[source.csv, copy.csv]": "are the same data", "[source.csv, four.csv]": "classes differ"},
    "data.source_weights": {"foo": "'foo' is not a valid choice", "equal": "is for several source domains",
                            "null": "data.source_weights: null is no value of it"},
    "data.class_sets": {"foo": "'foo' is not a valid choice"},
    "data.labels": {"foo": "'foo' is not a valid choice"},
    "data.seed": {"-1": "data.seed: -1 is less than 0", "x": WHOLE},
    "data.val_share": {"-1": "data.val_share (-1.0)", "1": "data.val_share (1.0)", ".nan": "nan is not a finite",
                       "0": "the val split is empty"},
    "data.test_share": {"2": "data.test_share (2.0)", "x": NUMBER},
    "data.protocol": {"foo": "'foo' is not a valid choice"},
    "data.samples_last": {"2": "'2' is not true or false"},
    "data.target_labels": {"0": "0 is no number of labels", "-3": "-3 is no number", "x": "'x' is no number",
                           "1/klass": "is no",
                           "9999": "fewer than 9999"},
    "data.root": {"nowhere": "no file 'nowhere/source.csv'", "source.csv": "no file 'source.csv/source.csv'"},
    "data.label_column": {"klass": "there are none in 'klass'"},
    "data.sorce": {"x": "did you mean 'source'"},
    "seed_everything": {"-1": "seed_everything: -1 is less than 0", "99999999999": "is more than 4294967295",
                        "1.5": "'1.5' is not", "abc": "'abc' is not", "null": "seed_everything: 'None' is not"},
    "model.num_classes": {"7": "model.num_classes: the data give it"},
    "model.input_shape": {"[3]": "model.input_shape: the data give it"},
    "published": {"-3": "-3.0 is less than 0", "7": "7.0 is more than 1",
                  "x": NUMBER, ".nan": "published: nan is not a finite number"},
    "after": {"nothing": "after: no method 'nothing'", "empty_folder": "after: no method 'empty_folder'"},
    "trainer.accumulate_grad_batches": {"0": "0 is less than 1", "-1": "-1 is less than 1", "1.5": WHOLE},
    "trainer.gradient_clip_val": {"-1": "-1.0 is less than 0", ".nan": "nan is not a finite number", "x": NUMBER},
    "trainer.gradient_clip_algorithm": {"foo": "gradient_clip_algorithm` foo is invalid"},
    "trainer.limit_train_batches": {"0": "0 is not more than 0", "-1": "-1 is not more than 0",
                                    "2.5": "invalid value 2.5",
                                    "0.001": "increase the `limit_train_batches`"},
    "trainer.limit_val_batches": {"-1": "invalid value -1 for limit_val_batches"},
    "trainer.max_steps": {"-5": "max_steps` must be", "1.5": WHOLE, "many": "max_steps: 'many' is not a whole number",
                          "null": WHOLE, "1e99": WHOLE, "": "max_steps: '' is not a whole number"},
    "trainer.max_epochs": {"-5": "max_epochs` must be", "x": WHOLE},
    "trainer.min_steps": {"-1": "-1 is less than 0"},
    "trainer": {"nothing.yaml": "'nothing.yaml' is no YAML file with options; one option alone is --trainer.NAME"},
    "predictions": {"a.csv": "'a.csv' is no YAML file with options; one option alone is --predictions.NAME"},
    "trainer.max_time": {"x": "not a valid duration"},
    "trainer.log_every_n_steps": {"-1": "-1 is less than 0", "x": WHOLE},
    "trainer.check_val_every_n_epoch": {"0": "0 is less than 1", "-1": "-1 is less than 1"},
    "trainer.val_check_interval": {"-1": "-1 is not more than 0", "0": "0 is not more than 0"},
    "trainer.precision": {"17": "'17' is not a valid choice", "foo": "precision: 'foo' is neither"},
    "trainer.accelerator": {"foo": "invalid accelerator name", "tpu": "torch_xla"},
    "trainer.devices": {"9999": "trainer.devices: 9999 are more than the", "0": "value is not a valid input",
                        "-2": "int > 0",
                        "x": "int > 0", "[0,0]": "int > 0"},
    "trainer.strategy": {"ddpp": "invalid strategy name"},
    "trainer.num_nodes": {"0": "num_nodes` must be a positive integer"},
    "trainer.deterministic": {"maybe": "neither true nor false nor a valid choice"},
    "trainer.callbacks": {"foo": "'foo' is not a list", "[{class_path: nothing.There}]": "No module named 'nothing'"},
    "trainer.logger": {"foo": "trainer.logger: 'foo' is not",
                       "nothing.There": "trainer.logger: No module named 'nothing'"},
    "trainer.fast_dev_run": {"-1": "fast_dev_run=-1"},
    "trainer.max_stepss": {"3": "did you mean 'trainer.max_steps'"},
    "modle.x": {"3": "unknown key 'modle.x'; did you mean 'model'"},
}  # fmt: skip
"""For each option the values that are refused, and what is said of them."""


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [(name, value, says) for name, part in VALUES.items() for value, says in part.items()],
)
def test_a_value_of_an_option(option: str, value: str, message: str, complaint: Complaint) -> None:
    assert message in complaint([*FIT, f"--{option}={value}"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_no_gpu(name: str, complaint: Complaint) -> None:
    assert "there is no GPU, only a CPU with" in complaint([*FIT, f"--trainer.accelerator={name}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*FIT, "--data.batch_size=1", "--model.backbone.batch_norm=true"], "data.batch_size: 1 is fewer than the 2"),
        (method("dan", "--data.batch_size=1"), "data.batch_size: 1 is fewer than the 2"),
        (method("deep_coral", "--data.batch_size=1"), "data.batch_size: 1 is fewer than the 2"),
        (method("target_only", "--data.target_labels=1", "--model.backbone.batch_norm=true"), "too few for batch norm"),
        (method("fine_tune", "--model.init_layers=3"), "init_layers: 3 is not 1 to 2 with a new head"),
        (method("fine_tune", "--model.keep_head=true"), "keep_head needs an earlier run"),
        (method("dan", "--model.bandwidths=[-1]", "--model.beta=uniform"), "bandwidths: [-1.0] are not all positive"),
        (method("adda", "--after=null"), "ADDA starts from a supervised run"),
        ([*IMAGES, "--data.image_size=0"], "data.image_size: 0 is less than 1"),
        ([*IMAGES, "--data.image_size=-3"], "data.image_size: -3 is less than 1"),
        ([*IMAGES, "--data.num_workers=-1"], "data.num_workers: -1 is less than 0"),
        ([*IMAGES, "--data.resize=0"], "data.resize (0) is less"),
        ([*IMAGES, "--data.std=[0,0,0]"], "data.std: 0.0 is not more than 0"),
        ([*IMAGES, "--data.mean=[0]"], "data.mean: a list of 3 is needed"),
        ([*IMAGES, "--model.backbone.model=resnet51"], "timm has no model 'resnet51'; did you mean 'resnet"),
        (
            ["fit", "--config", "method/dann.yaml", "--config", "data/digits.yaml", "--data.seed=-1"],
            "data.seed: -1 is less",
        ),
        ([*FIT, *STOP, "--trainer.callbacks.skip=-1"], "skip: -1 is less than 0"),
        ([*FIT, *STOP, "--trainer.callbacks.skip=many"], "trainer.callbacks.skip: 'many' is not a whole number"),
        ([*FIT, "--data.labels=numbers", "--data.class_sets=open"], "open is for classes, and the labels are numbers"),
        ([*FIT, "--data.labels=numbers", "--data.target_labels=2/class"], "2/class counts labels of each class"),
        ([*FIT, "--data.labels=numbers", "--model.label_smoothing=0.1"], "label_smoothing is for classes"),
        ([*FIT, "--data.labels=numbers", "--data.source=halves_huge.csv"], "label '1e+300' in 'label' is no finite 32"),
        ([*FIT, "--data.labels=numbers", "--data.source=one_class.csv"], "all training labels are 0; there is nothing"),
        ([*FIT, "--data.labels=numbers", "--trainer.precision=bf16-true"], "bf16-true rounds labels that are numbers"),
        (method("cdan", "--data.labels=numbers"), "the labels are numbers, and CDAN needs classes"),
        (method("multimodal", "--model.source_backbone=null"), "Multimodal needs a value of 'source_backbone'"),
        (method("cycle_gan", "--model.game=chess"), "model.game: 'chess' is not a valid choice"),
        (method("cogan"), "this method makes pictures of shape"),
        (method("amn"), "AMN reads the words of sentences"),
        (method("taisl", "--model.estimator.shape=[-2,-2]"), "shape: -2 is less than 1"),
        ([*SPEECH, "--data.outside=3"], "data.outside: '3' is not true or false"),
        ([*SPEECH, "--data.rate=3"], "rate: 3 is not within 8000 and 48000"),
        ([*SPEECH, "--data.features=foo"], "no feature set 'foo'"),
        ([*SPEECH, "--data.task=foo"], "data.task: 'foo' is not a valid choice"),
        ([*SPEECH, "--data.test_speakers=[nobody]"], "test_speakers: no speaker 'nobody'"),
        ([*SPEECH, "--data.emotions=[happy]"], "emotions: name at least two"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_values_that_do_not_go_together(words: list[str], message: str, complaint: Complaint) -> None:
    assert message in complaint(words)


DIGITS = ["--config", "data/digits.yaml", *SHORT, *QUICK, "--data.num_typeset=401", "--data.batch_size=8"]
SENTENCES = ["--config", "data/sentences.yaml", *SHORT, *QUICK, "--data.source=s.csv", "--data.target=t.csv"]
MEMORY = [*SENTENCES, "--data.batch_size=4", "--config", "backbone/memory_network.yaml"]
COMPILE = ["--trainer.callbacks+=lightning_da.callbacks.CompileLayers"]
NUMBERS = "--data.labels=numbers"


def pictures(name: str, *more: str) -> list[str]:
    return ["fit", "--config", f"method/{name}.yaml", *DIGITS, *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*FIT, "--data.source=[source.csv, target.csv]"], "are the same data"),
        ([*FIT, "--data.target=[]"], "data.target: the list is empty"),
        ([*FIT, "--data.target=[target.csv, target.csv]"], "data.target: domain 'target.csv' is named twice"),
        ([*FIT, "--data.source=[source.csv, '']"], "data.source: the name is empty"),
        ([*FIT, "--data.source=[[source.csv]]"], "which is not text"),
        ([*FIT, "--data.source=[null]"], "which is not text"),
        ([*FIT, "--data.source={a: source.csv}"], "is not text or a list"),
        ([*FIT, "--data.source=null"], "there is one domain, 'target.csv'"),
        ([*FIT, "--data.source=[source.csv, nothing.csv]"], "no file 'nothing.csv'"),
        ([*FIT, "--data.source=[source.csv, nan.csv]"], "nan.csv, line 9: column 'b' holds nan"),
        ([*FIT, "--data.source=[source.csv, huge.csv]"], "huge.csv, line 9: column 'b' holds 1e+300"),
        ([*FIT, "--data.source=[source.csv, one_class.csv]"], "classes differ"),
        ([*FIT, "--data.source=[source.csv, few.csv]"], "domain 'few.csv': the val split is empty"),
        ([*FIT, "--data.source=[source.csv, ./source.csv]"], "are the same data"),
        ([*FIT, "--data.source=[source.csv, s.npz]"], "are the same data"),
        ([*FIT, "--data.source_weights=[1,2]"], "is not a valid choice"),
        ([*FIT, "--data.class_sets=null"], "data.class_sets: null is no value of it"),
        ([*FIT, "--data.class_sets=partial", "--data.target=four.csv"], "classes differ"),
        (method("osbp"), "set --data.class_sets open"),
        (method("osbp", "--data.class_sets=open", "--model.threshold=2"), "threshold: 2.0 is not in (0, 1)"),
        (method("pada", "--model.warm_up=-1"), "warm_up: -1.0 is less than 0"),
        ([*FIT, NUMBERS, "--data.source=inf.csv", "--data.label_column=b"], "label 'inf' in 'b' is no finite 32"),
        ([*FIT, NUMBERS, "--data.source=words.csv", "--data.label_column=a"], "label 'x0' in 'a' is no finite 32"),
        *(
            (method(name, NUMBERS), "the labels are numbers, and")
            for name in ("tca", "mcc", "dhn", "label_efficient", "multimodal", "dsn")
        ),
        (["label-curve", *GRID, NUMBERS], "label-curve counts right classes"),
        (["search", "--config", "method/dann.yaml", *GRID, NUMBERS], "search counts right classes"),
        (pictures("dann", "--model.backbone=FeedForward"), "networks.FeedForward needs a value of 'hidden'; set it"),
        (pictures("dann", NUMBERS), "unknown key 'labels' of lightning_da.data.Digits"),
        ([*FIT, "--data.outside=true"], "unknown key 'outside'"),
        ([*FIT, *STOP, "--trainer.callbacks.skip=.nan"], "'nan' is not a whole number"),
        ([*FIT, *STOP, "--trainer.callbacks.skipp=1"], "did you mean 'skip'"),
        ([*FIT, *COMPILE, "--trainer.callbacks.backend=inductr"], "no backend 'inductr'; did you mean 'inductor'"),
        ([*FIT, "--trainer.strategy=fsdp"], "`fsdp` requires a GPU"),
        ([*FIT, "--config", "trainer/fsdp.yaml"], "there is no GPU"),
        (pictures("cogan", "--model.own_layers=-1"), "own_layers: -1 of the backbone's 4 layers"),
        (pictures("cogan", "--model.own_layers=99"), "own_layers: 99 of the backbone's 4 layers"),
        (pictures("cogan", "--model.pictures=0"), "pictures: 0 is less than 1"),
        (pictures("cogan", "--model.noise=0"), "noise: 0 is less than 1"),
        (pictures("cogan", "--model.generator=0"), "generator: 0 is less than 1"),
        (pictures("cogan", "--model.batch_norm=joint"), "'joint' is not a valid choice"),
        (pictures("cogan", "--model.layers=[conv1]"), "unknown key 'layers' of lightning_da.methods.CoGAN"),
        (method("cycle_gan"), "this method makes pictures"),
        (pictures("cycle_gan", "--model.cycle=foo"), "'foo' is not a valid choice"),
        (pictures("cycle_gan", "--model.game=null"), "model.game: null is no value of it"),
        (pictures("cycle_gan", "--model.cycle_weight=-1"), "cycle_weight: -1.0 is less than 0"),
        (pictures("cycle_gan", "--model.identity_weight=.nan"), "nan is not a finite number"),
        (pictures("cycle_gan", "--model.width=0"), "width: 0 is less than 1"),
        (pictures("cycle_gan", "--model.train_on=target"), "'target' is not a valid choice"),
        (method("gan_classifier"), "this method makes pictures"),
        (pictures("gan_classifier", "--data.target_labels=0/class"), "'0/class' is no number of labels"),
        (pictures("gan_classifier", "--model.unlabelled_weight=-1"), "unlabelled_weight: -1.0 is less than 0"),
        (pictures("gan_classifier", "--model.unlabelled_schedule=math.log"), "unlabelled_schedule: no function"),
        (pictures("amn"), "AMN reads the words of sentences"),
        (["fit", "--config", "method/amn.yaml", *SENTENCES, "--data.batch_size=4"], "with a memory network"),
        (["fit", "--config", "method/amn.yaml", *MEMORY, "--model.backbone.hops=0"], "hops: 0 is less than 1"),
        (["fit", "--config", "method/amn.yaml", *MEMORY, "--model.discriminator=[0]"], "hidden: 0 is less than 1"),
        (["fit", "--config", "method/dlid.yaml", *SENTENCES], "an autoencoder computes numbers, not words"),
        (method("multimodal", "--model.map_weight=-1"), "map_weight: -1.0 is less than 0"),
        (method("multimodal", "--model.transfer_weight=.nan"), "nan is not a finite number"),
        (method("multimodal", "--model.transfer_schedule=foo"), "'foo' is not an import path"),
        (method("multimodal", "--model.source_shape=[3]"), "model.source_shape: the data give it"),
        (method("multimodal", "--model.source_backbone=LeNet"), "LeNet reads images"),
        (method("multimodal", "--model.train_on=source"), "unknown key 'train_on'"),
        (method("dhn", "--model.bottleneck=null"), "the codes are the signs of the bottleneck"),
        (method("dhn", "--model.layers=[head]"), "the codes are the signs of the bottleneck"),
        (method("dhn", "--model.hash_weight=-1"), "hash_weight: -1.0 is less than 0"),
        (method("dhn", "--model.entropy_weight=.nan"), "nan is not a finite number"),
        (method("dhn", "--model.bottleneck.activation=tnh"), "did you mean 'tanh'"),
        (method("dlid", "--model.points=1"), "points: 1 is less than 2"),
        (method("dlid", "--model.points=2.5"), "model.points: '2.5' is not a whole number"),
        (method("dlid", "--model.points=null"), "model.points: null is no value of it"),
        (method("dlid", "--model.decoder=[0]"), "0 is less than 1"),
        (method("taisl", "--model.estimator.shape=[3]"), "shape: a row has 4 values"),
        (method("taisl", "--model.estimator.dims=[0]"), "dims: give one for each side"),
        (method("taisl", "--model.estimator.iterations=-1"), "iterations: -1 is less than 0"),
        (method("taisl", "--model.estimator.estimator=torch.nn.Linear"), "is no BaseEstimator"),
        (method("ati", "--model.estimator.cost=2"), "cost: 2.0 is more than 1"),
        (method("ati", "--model.estimator.ridge=0"), "ridge: 0.0 is not more than 0"),
        (method("ati", "--model.estimator.iterations=0"), "iterations: 0 is less than 1"),
        (method("ati", "--model.layer=fc9"), "the network has no layer 'fc9'"),
        (method("ati", "--model.train_on=target"), "a classical method learns from labels of the source"),
        (method("label_efficient", "--model.layers=[head]"), "classes are near in the bottleneck"),
        (method("label_efficient", "--model.hidden=0"), "hidden: 0 is less than 1"),
        (method("label_efficient", "--model.temperature=0"), "temperature: 0.0 is not more than 0"),
        (method("label_efficient", "--model.semantic_weight=-1"), "semantic_weight: -1.0 is less than 0"),
    ],
    ids=lambda value: " ".join([*value[2:3], value[-1]]) if isinstance(value, list) else "",
)
def test_an_argument_of_a_method_or_of_several_domains(words: list[str], message: str, complaint: Complaint) -> None:
    assert message in complaint(words)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti"], "no command 'fti'; did you mean 'fit'"),
        (["--config", "x"], "no command '--config'"),
        (["fit"], "no data are given"),
        (["fit", "stray"], "no data are given"),
        (["fit", "--config"], "no data are given"),
        (["fit", "--config="], "config: no file ''"),
        (["fit", "--config", "empty_folder"], "config: 'empty_folder' is a folder"),
        (["fit", "--config", "nothing.yaml"], "config: no file 'nothing.yaml'"),
        (["fit", "--config", "method/dnan.yaml"], "did you mean 'method/dan.yaml'"),
        (["fit", "--config", "method/dann.yaml"], "no data are given"),
        (["fit", *GRID], "no method is given"),
        (["fit", "--config", "method/dann.yaml", *TABLES], "no domain is given; set --data.source and --data.target"),
        (["fit", "--config", "method/dann.yaml", *TABLES, "--data.source=source.csv"], "there is one domain"),
        ([*FIT, "stray"], "unrecognized arguments: stray"),
        ([*FIT, "-x", "3"], "unrecognized arguments: -x 3"),
        ([*FIT, "--see", "3"], "unknown key 'see'; known: config"),
        ([*FIT, "--trainer.max_steps"], "argument --trainer.max_steps: expected one argument"),
        ([*FIT, "--data.source", "source.csv", "target.csv"], "unrecognized arguments: target.csv"),
        ([*FIT, "--ckpt_path=nothing"], "'nothing' is no checkpoint file"),
        ([*FIT, "--ckpt_path=source.csv"], "'source.csv' is not a checkpoint of a fit"),
        (["test"], "no data are given; add --config data/NAME.yaml (files of the folder conf), or name a run"),
        (["test", "--ckpt_path"], "argument --ckpt_path: expected one argument"),
        (["test", "--ckpt_path", ""], "'' is no checkpoint file"),
        (["test", "--ckpt_path", "nothing"], "'nothing' is no checkpoint file"),
        (["test", "--ckpt_path", "empty_folder"], "'empty_folder' is no checkpoint file"),
        (["test", *FIT[1:], "--seed_everything=77"], "'dann-source-target-s77' is no checkpoint file"),
        (["predict"], "no data are given"),
        (["validate", "--ckpt_path", "nothing"], "'nothing' is no checkpoint file"),
        (["sweep"], "no data are given"),
        (["sweep", *GRID, "--methods"], "argument --methods: expected at least one argument"),
        (["sweep", *GRID, "--methods", "dnan"], "no method 'dnan'; did you mean 'dan'"),
        (["sweep", *GRID, "--seeds", "x"], "argument --seeds: invalid int value: 'x'"),
        (["sweep", *GRID, "--methods", "source_only", "--seeds", "-1"], "seeds: -1 is less than 0"),
        (["sweep", *GRID, "--methods", "source_only", "--seeds", "99999999999"], "seeds: 99999999999 is more than"),
        (["sweep", *GRID, "--methods", "source_only", "--jobs", "0"], "jobs: 0 is less than 1"),
        (["sweep", *GRID, "--methods", "source_only", "dan", "--model.optimizer.lr=-1"], "Invalid learning rate: -1.0"),
        (["sweep", *GRID, "--model.optimizer.lr=x"], "model.optimizer.lr: 'x' is not a number"),
        (["compare", "--experiment", "nowhere"], "no experiment 'nowhere'"),
        (["compare", "--experiment"], "argument --experiment: expected one argument"),
        (["compare", "stray"], "unrecognized arguments: stray"),
        (["new", "there"], "give the kind of data with --kind; there are: 'custom', 'features'"),
        (["export", "a", "--onxx"], "unknown key 'onxx'; did you mean 'onnx'"),
        (["report", "a", "--ouput", "b"], "unknown key 'ouput'; did you mean 'out'"),
        (["sweep", *GRID, "--methds", "dan"], "unknown key 'methds'; did you mean 'methods'"),
        (["ensemble"], "the following arguments are required: RUN"),
        (["ensemble", "a", "b"], "'a' is no checkpoint file"),
        (["ensemble", "words.ckpt", "empty.ckpt"], "'words.ckpt' is not a checkpoint of a fit"),
        (["curve", *GRID, "--samples", "0"], "samples: 0 of each domain are too few"),
        (["curve", *GRID, "--layers", "nothing"], "no layer 'nothing'"),
        ([*FIT, "--model.optimizer.lr=0"], "optimizer.lr: a learning rate of 0 trains nothing"),
        ([*FIT, "--model.optimizer.lr=1e-400"], "optimizer.lr: a learning rate of 0 trains nothing"),
        (["test", *FIT[1:], "--trainer.limit_test_batches=0"], "limit_test_batches: 0 is not more than 0"),
        (["predict", *FIT[1:], "--trainer.limit_predict_batches=0"], "limit_predict_batches: 0 is not more than 0"),
        (method("tca", "--model.layer=fc1"), "layer: 'fc1' is a layer of random weights"),
        ([*FIT, "--trainer.min_steps=50"], "trainer.min_steps: 50 is more than max_steps, 2"),
        ([*FIT, "--trainer.num_sanity_val_steps=-7"], "num_sanity_val_steps: -7 is less than -1"),
        ([*FIT, "--trainer.default_root_dir=source.csv"], "default_root_dir: 'source.csv' is a file"),
        ([*FIT, "--trainer.barebones=true"], "trainer.barebones: it switches off what a fit records"),
        (["fit", "--config", "null.yaml"], "null.yaml, line 1: trainer needs options, not a value of null"),
        (["fit", "--config", "octal.yaml"], "octal.yaml, line 1: YAML reads 010 as 8; write the number in base 10"),
        (["fit", "--config", "sixty.yaml"], "YAML reads 1:30 as 90"),
        ([*FIT, "--name= "], "name: ' ' is no name"),
        ([*FIT, "--name=a\nb"], "is no name; give up to 100 characters in one line"),
        ([*FIT, f"--name={'x' * 101}"], "is no name"),
        ([*FIT, "--model.optimizer=torch.optim.LBFGS"], "optimizer: LBFGS doesn't support per-parameter options"),
        ([*FIT, "--model.optimizer=torch.optim.SparseAdam"], "optimizer: SparseAdam takes sparse gradients alone"),
        ([*FIT, "--data.target=dangling.csv"], "'dangling.csv' is a link to 'nowhere.csv', which is not there"),
        ([*FIT, "--data.target=longer.csv"], "longer.csv: a row has more values than the header has names"),
        ([*FIT, "--data.target=commas.csv"], "'source.csv' and target 'commas.csv' are the same data"),
        (["sweep", *GRID, "--methods", "source_only", "--ckpt_path=x"], "ckpt_path: this command starts its own"),
        (["report", "lightning_da", "--out=source.csv"], "'source.csv' does not end with .html or .htm"),
        (["curve", *GRID, "--measures", "mdm"], "no measure 'mdm'; did you mean 'mmd'"),
        (["curve", *GRID, "--out", "source.csv"], "to source.csv; choose another folder"),
        (["curve", "--ckpt_path", "words.ckpt"], "'words.ckpt' is not a checkpoint of a fit"),
        (["curve", "--ckpt_path", "a", "b", "c"], "give one run or two, not 3"),
        (["label-curve", *GRID, "--methods", "source_only", "--labels", "x"], "--labels: 'x' is no number of labels"),
        (["label-curve", *GRID, "--methods", "source_only", "--labels", "9999"], "fewer than 9999"),
        (["layer-transfer", *GRID, "--across_domains", "--depths", "99"], "depths: 99 of 3 layers (fc1, fc2, head)"),
        (["layer-transfer", *GRID, "--across_domains", "--labels", "x"], "'x' is neither a number nor `all`"),
        (["layer-transfer", *GRID, "--across_domains", "--task_a", "1"], "not allowed with argument"),
        (["layer-transfer", *GRID, "--treatments", "foo"], "invalid choice: 'foo'"),
        (["layer-transfer", *GRID, "--task_a", "9"], "no class '9'"),
        (["speech-transfer", "--source_tasks", "foo"], "invalid choice: 'foo'"),
        (["speech-transfer", *SPEECH[4:], "--sizes", "0"], "sizes"),
        (method("dann", "--data", "source.csv"), "data: 'source.csv' is a file, not the name of a class; for data in"),
        (["fit", "--data=empty_folder"], "'empty_folder' is a folder, not the name of a class; for data in it:"),
        (
            ["sweep", *GRID, "--methods", "dann", "--data=source.csv"],
            "--config data/NAME.yaml --data.source source.csv",
        ),
        (method("dann", "--model.optimizer=source.csv"), "model.optimizer: 'source.csv' is a file, not the name of"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_words(words: list[str], message: str, complaint: Complaint) -> None:
    assert message in complaint(words)


# ---------------------------------------------------------------- YAML

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML: dict[str, tuple[str | bytes, str]] = {
    "latin": (b"name: caf\xe9\n", "latin.yaml: byte 10 is not UTF-8"),
    "utf16": ("trainer:\n  max_steps: 3\n".encode("utf-16"), "utf16.yaml: byte 1 is not UTF-8"),
    "binary": (bytes(range(256)), "binary.yaml: byte 129 is not UTF-8"),
    "twice": ("trainer:\n  max_steps: 3\n  max_steps: 4\n", "twice.yaml, line 3: 'max_steps' is given twice"),
    "twice_outside": ("trainer: {}\nname: a\ntrainer: {}\n", "twice_outside.yaml, line 3: 'trainer' is given twice"),
    "empty": ("", "empty.yaml: the file is empty"),
    "comments": ("# nothing\n", "comments.yaml: the file is empty"),
    "list": ("- trainer\n- model\n", "list.yaml: holds a list"),
    "text": ("hello world\n", "text.yaml: holds 'hello world'"),
    "number": ("3\n", "number.yaml: holds '3'"),
    "broken": ("trainer: [1, 2\n", "broken.yaml: no valid YAML: expected ',' or ']'"),
    "tabs": ("trainer:\n\tmax_steps: 3\n", "tabs.yaml: no valid YAML: found character '\\t'"),
    "two": ("name: a\n---\nname: b\n", "two.yaml: no valid YAML: but found another document in line 2"),
    "bomb": (f"{BOMB}name: *i\n", "bomb.yaml: its aliases stand for more than 100000 values"),
    "loop": ("trainer: &t\n  callbacks: *t\n", "loop.yaml: its values are nested too deeply, or an alias"),
    "deep": (f"name: {'[' * 3000}{']' * 3000}", "deep.yaml: its values are nested too deeply"),
    "tag": ("name: !!python/object/apply:os.getcwd []\n", "tag.yaml: no valid YAML: could not determine a constructor"),
    "trainer_number": ("trainer: 3\n", "trainer_number.yaml, line 1: trainer needs options"),
    "trainer_list": ("trainer: [1]\n", "trainer_list.yaml, line 1: trainer needs options"),
    "model_number": ("model: 3\n", "model_number.yaml, line 1: model needs a class and its options"),
    "data_list": ("data: [1]\n", "data_list.yaml, line 1: data needs a class and its options"),
    "init_args": ("model:\n  class_path: a.B\n  init_args: 3\n", "init_args.yaml, line 3: init_args needs options"),
    "class_number": ("model:\n  class_path: 3\n", "class_number.yaml, line 2: class_path needs the import path"),
    "unknown": ("trainr:\n  max_steps: 2\n", "did you mean 'trainer.max_steps'"),
    "unknown_inside": ("trainer:\n  max_stepss: 2\n", "unknown key 'trainer.max_stepss'; did you mean"),
    "number_key": ("3: 4\n", "Key must be a string, got: 3"),
}  # fmt: skip
"""Files, and what is said of them."""


@pytest.mark.parametrize("name", YAML)
def test_a_yaml_file(name: str, complaint: Complaint) -> None:
    assert YAML[name][1] in complaint([*FIT, "--config", f"{name}.yaml"])


def test_aliases_of_a_few_values_are_no_mistake(files: Path, complaint: Complaint) -> None:
    (files / "alias.yaml").write_text("name: &n nothing\nafter: *n\n")
    assert "after: no method 'nothing'" in complaint([*FIT, "--config", "alias.yaml"])


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("one_class.csv", "one_class_too.csv", "there is only one class, '0'"),
        ("source.csv", "source.csv", "are the same data"),
        ("source.csv", "copy.csv", "are the same data"),
        ("huge.csv", "target.csv", "huge.csv, line 9: column 'b' holds 1e+300"),
        ("nan.csv", "target.csv", "nan.csv, line 9: column 'b' holds nan"),
        ("inf.csv", "target.csv", "inf.csv, line 9: column 'b' holds inf"),
        ("source.csv", "nan.csv", "nan.csv, line 9: column 'b' holds nan"),
        ("huge.npz", "t.npz", "huge.npz: sample 7 of 'x', counted from 0, holds 1e+300"),
        ("nan.npz", "t.npz", "nan.npz: sample 7 of 'x', counted from 0, holds nan"),
        ("inf.npz", "t.npz", "inf.npz: sample 7 of 'x', counted from 0, holds inf"),
        ("few.csv", "target.csv", "'few.csv': "),
        ("source.csv", "four.csv", "classes differ"),
        ("source.csv", "columns.csv", "need the same feature columns"),
        ("unlabelled.csv", "target.csv", "unlabelled.csv: the source needs labels", ),
        ("halves.csv", "target.csv", "halves.csv: label 0.5"),
        ("header.csv", "target.csv", "header.csv: it has a header and no rows"),
        ("words.csv", "target.csv", "words.csv, line 2: column 'a' holds 'x0', which is not a number"),
        ("one_word.csv", "target.csv", "one_word.csv, line 92: column 'a' holds 'abc', which is not a number"),
        ("semicolons.csv", "target.csv", "semicolons.csv: the columns are separated by ';'"),
        ("tabs.csv", "target.csv", "tabs.csv: the columns are separated by '\\t'"),
        ("no_names.csv", "target.csv", "no_names.csv: the first line holds the value "),
        ("ragged.csv", "target.csv", "ragged.csv: not a readable .csv file"),
        ("binary.csv", "target.csv", "binary.csv: not a readable .csv file"),
        ("utf16.csv", "target.csv", "utf16.csv: not a text in UTF-8"),
        ("folder.csv", "target.csv", "'folder.csv' is a folder"),
        ("empty_folder", "target.csv", "'empty_folder' is a folder"),
        (".", "target.csv", "'.' is a folder"),
        ("", "target.csv", "data.source: the name is empty"),
        ("nothing.csv", "target.csv", "no file 'nothing.csv'"),
        ("data.xlsx", "target.csv", "cannot read '.xlsx' files"),
        ("nolabels.npz", "t.npz", "nolabels.npz: the source needs labels"),
        ("short.npz", "t.npz", "short.npz: 'y' has shape (50,), but there are 90 samples"),
        ("nosamples.npz", "t.npz", "nosamples.npz: no 'x'"),
        ("objects.npz", "t.npz", "objects.npz: not a readable .npz file"),
        ("text.npz", "t.npz", "text.npz: 'x' is of type <U"),
        ("complex.npz", "t.npz", "complex.npz: 'x' is of type complex128"),
        ("scalar.npz", "t.npz", "scalar.npz: 'x' is of type float64 and shape ()"),
        ("width0.npz", "t.npz", "width0.npz: 'x' has shape (90, 0)"),
        ("s.npz:one", "t.npz", "s.npz: no 'x_one'"),
        ("s.npy", "t.npz", "s.npy: the source needs labels"),
        ("words.npz", "t.npz", "words.npz: not a readable .npz file"),
        ("words.svmlight", "t.npz", "words.svmlight: not a readable .svmlight file"),
        *((f"cut.{kind}", "t.npz", f"cut.{kind}: not a readable .{kind} file") for kind in ("npz", "mat", "npy")),
        *((f"empty.{kind}", "t.npz", f"empty.{kind}: ") for kind in ("csv", "npz", "mat", "npy", "svmlight")),
    ],
)  # fmt: skip
def test_a_table(source: str, target: str, message: str, complaint: Complaint) -> None:
    words = ["fit", "--config", "method/dann.yaml", *TABLES, f"--data.source={source}", f"--data.target={target}"]
    assert message in complaint(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*IMAGES, "--data.root=cut_images"], "cut_images/p/cat/3.png: not a readable image"),
        ([*IMAGES, "--data.root=one_class_images"], "'cat' is the only class"),
        ([*IMAGES, "--data.root=no_images"], "no image in"),
        ([*IMAGES, "--data.root=nowhere"], "no folder"),
        ([*IMAGES, "--data.root=source.csv"], "no folder"),
        ([*IMAGES, "--data.target=p"], "are the same data"),
        ([*IMAGES, "--data.target=r"], "for domain 'r'; there are: 'p', 'q'"),
        ([*SPEECH, "--data.root=cut"], "cut/target/t-1-1.wav: the file ends before its sound does"),
        ([*SPEECH, "--data.root=empty"], "empty/target/t-1-1.wav: not a readable sound file"),
        ([*SPEECH, "--data.root=words"], "words/target/t-1-1.wav: not a readable sound file"),
        ([*SPEECH, "--data.root=nan"], "nan/target/t-1-1.wav: some samples are NaN or infinite"),
        ([*SPEECH, "--data.root=gone"], "'target/t-1-1.wav' not found"),
        ([*SPEECH, "--data.root=nowhere"], "there is no file or folder 'nowhere/source.csv'"),
    ],
    ids=lambda value: " ".join([*value[2:3], value[-1]]) if isinstance(value, list) else "",
)
def test_images_and_sounds(words: list[str], message: str, complaint: Complaint) -> None:
    assert message in complaint(words)


# ---------------------------------------------------------------- weights and checkpoints


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.pth", "0 of the 15 weight tensors of test_resnet are in the file"),
        ("vit.pth", "0 of the 15 weight tensors"),
        ("prefix.pth", "0 of the 15 weight tensors"),
        ("half.pth", "8 of the 15 weight tensors"),
        ("nan.pth", "holds NaN or infinite values"),
        ("shapes.pth", "size mismatch"),
        ("empty.pth", "the file is cut off, or has no weights of test_resnet"),
        ("words.pth", "the file is cut off, or has no weights of test_resnet"),
        ("cut.pth", "the file is cut off, or has no weights of test_resnet"),
        ("nothing.pth", "no file 'nothing.pth'"),
        ("images", "no file 'images'"),
    ],
)
def test_a_file_of_weights(name: str, message: str, complaint: Complaint) -> None:
    said = complaint([*IMAGES, f"--model.backbone.weights={name}"])
    assert message in said
    assert name in said


def test_whole_weights_are_taken() -> None:
    cli = main([*IMAGES, "--model.backbone.weights=good.pth", "--trainer.max_steps=0"])
    assert torch.equal(cli.model.backbone.model.conv1[0].weight, torch.load("good.pth")["conv1.0.weight"])


@pytest.fixture(scope="module")
def fitted(files: Path) -> Path:
    """A folder with the checkpoint of a fit, and with broken copies."""
    here = Path.cwd()
    os.chdir(files)
    whole = Path(main([*FIT, "--name=whole"]).trainer.checkpoint_callback.best_model_path)
    os.chdir(here)
    content = torch.load(whole, weights_only=True)
    torch.save(content, files / "whole.ckpt")
    cut(files / "cut.ckpt", whole)
    content["state_dict"]["head.weight"][0, 0] = torch.nan
    torch.save(content, files / "nan.ckpt")
    return files


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut.ckpt", "it is empty, cut off or another kind of file"),
        ("empty.ckpt", "it is empty, cut off or another kind of file"),
        ("words.ckpt", "it is empty, cut off or another kind of file"),
        ("list.ckpt", "it has no 'state_dict'"),
        ("mapping.ckpt", "it has no 'state_dict'"),
        ("nan.ckpt", "1 of its 15 tensors are not finite, the first is head.weight; its fit has diverged"),
    ],
)
@pytest.mark.usefixtures("fitted")
def test_a_checkpoint(command: str, name: str, message: str, complaint: Complaint) -> None:
    said = complaint([command, *FIT[1:], "--trainer.logger=false", f"--ckpt_path={name}"])
    assert message in said
    assert name in said
    assert not Path("predictions.csv").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.backbone.hidden=[4]"], "its network differs from this one in"),
        (["--model=lightning_da.methods.DeepCORAL"], "discriminators.0.0.fc1.0.weight: (256, 128) there, missing here"),
        (["--data.target=four_too.csv", "--data.source=four.csv"], "num_classes 3, but the data have 4"),
    ],
)
@pytest.mark.usefixtures("fitted")
def test_a_checkpoint_of_another_network(
    more: list[str], message: str, complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is in another store, so that its settings are not known."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    other = [*FIT, *more] if "DeepCORAL" not in more[0] else method("deep_coral")
    assert message in complaint([*other, "--ckpt_path=whole.ckpt"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/found.csv", "there is no folder"),
        ("empty_folder", "'empty_folder' is a folder"),
        ("source.csv", "'source.csv' is there already and holds something else"),
        ("found.xlsx", "'found.xlsx' does not end with .csv"),
        ("pipe.csv", "'pipe.csv' is no regular file"),
    ],
)
@pytest.mark.usefixtures("fitted")
def test_a_place_for_predictions(path: str, message: str, complaint: Complaint) -> None:
    words = ["predict", *FIT[1:], "--trainer.logger=false", "--ckpt_path=whole.ckpt", f"--predictions.path={path}"]
    assert message in complaint(words)


@pytest.mark.parametrize("name", ["cut.ckpt", "nan.ckpt", "mapping.ckpt"])
@pytest.mark.usefixtures("fitted")
def test_a_start_from_a_broken_checkpoint(name: str, complaint: Complaint) -> None:
    said = complaint(method("fine_tune", f"--model.init_from={name}", "--model.keep_head=true"))
    assert f"'{name}'" in said
    assert "init_from" in said


# ---------------------------------------------------------------- divergence

WILD = ["--model.optimizer.lr=1.0e+30", "--trainer.max_steps=6"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (method("source_only", *WILD), "training diverged at step 2: train/task_loss is nan; try a smaller"),
        (method("source_only", *WILD, "--trainer.callbacks+=lightning_da.callbacks.StopAtDivergence",
                "--trainer.callbacks.skip=2"),
         "training diverged at step 4 (after 2 skipped steps): train/task_loss is nan; try a smaller"),
        (method("dann", *WILD), "train/task_loss is nan, train/domain_loss is nan"),
        (method("dan", *WILD), "train/task_loss is nan, train/domain_loss is nan"),
        (method("source_only", *WILD, "--model.optimizer=torch.optim.SGD", "--trainer.max_steps=1",
                "--model.optimizer.lr=1.0e+38", "--model.optimizer.weight_decay=1.0e+30"),
         "training diverged by step 1: "),
    ],
    ids=["source_only", "skip", "dann", "dan", "last step"],
)  # fmt: skip
def test_a_diverged_fit_is_no_result(words: list[str], message: str, complaint: Complaint) -> None:
    before = number_of_runs()
    assert message in complaint(words, code=1)
    assert number_of_runs() == before + 1
    (run,) = latest()
    assert run.info.status == "FAILED"
    assert message in run.data.tags["failure"]
    assert run.data.params["source"] == "source.csv"
    assert "has no checkpoint: its fit did not end" in complaint(["test", "--ckpt_path", run.info.run_id])


def test_a_sweep_of_diverged_methods_fails(complaint: Complaint) -> None:
    said = complaint(["sweep", *GRID, *WILD, "--methods", "source_only"], code=1)
    assert "1 of 1 trainings are missing; the first: source_only-source-target-s0: training diverged at step 2" in said
    found = latest(2)
    assert [run.info.status for run in found] == ["FAILED", "FAILED"]
    assert all("training diverged at step 2" in run.data.tags["failure"] for run in found)


def test_a_refused_sweep_leaves_no_run(complaint: Complaint) -> None:
    said = complaint(["sweep", *GRID, "--data.batch_size=5000", "--methods", "source_only"])
    assert "set --data.batch_size to at most" in said


# ---------------------------------------------------------------- the store


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///{files}/empty_folder", "/empty_folder cannot be opened (unable to open database file)"),
        ("sqlite:///{files}/source.csv", "/source.csv cannot be opened (file is not a database)"),
        ("sqlite:////proc/nowhere/mlflow.db", "sqlite:////proc/nowhere/mlflow.db cannot be opened"),
        ("foo://bar", "foo://bar does not answer"),
        ("./mlruns", "./mlruns does not answer"),
        ("postgresql+pg8000://me:secret@db/a", "postgresql+pg8000://me:***@db/a needs the package pg8000; install it"),
        ("http://me:secret@127.0.0.1:{closed}", "http://me:***@127.0.0.1:{closed} does not answer ([Errno "),
        ("http://me:secret@127.0.0.1:{silent}", "http://me:***@127.0.0.1:{silent} does not answer (timed out)"),
    ],
)
def test_a_store(
    uri: str, message: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as silent, socket.socket() as closed:
        for port in (silent, closed):
            port.bind(("127.0.0.1", 0))
        silent.listen()
        place = {"files": files, "silent": silent.getsockname()[1], "closed": closed.getsockname()[1]}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(**place))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with pytest.raises(SystemExit) as stop:
            main(["compare"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message.format(**place) in said
    assert "secret" not in said
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


# ---------------------------------------------------------------- as a process


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti"], "no command 'fti'"),
        (["fit", "--config", "twice.yaml"], "twice.yaml, line 3: 'max_steps' is given twice"),
        (["fit", "--modle", "x"], "unknown key 'modle'"),
    ],
)
def test_the_exit_code_of_wrong_words_is_2(words: list[str], message: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "lightning_da", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("lightning-da: error: ")
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_an_unforeseen_error_is_one_line_unless_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(program, "main", fails)
    monkeypatch.setattr(program, "end", sys.exit)
    with pytest.raises(SystemExit) as stop:
        program.run()
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said == "lightning-da: error: ZeroDivisionError: division by zero (LIGHTNING_DA_DEBUG=1 shows where)\n"
    monkeypatch.setenv("LIGHTNING_DA_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        program.run()
