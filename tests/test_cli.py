"""The command line as it is typed: every YAML, joining runs, repeating them, and what is said of mistakes."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from mlflow.entities import Run
from PIL import Image

from lightning_da.cli import TransferCLI
from lightning_da.commands import COMMANDS
from lightning_da.main import main
from lightning_da.methods import DANN, DomainBatch
from lightning_da.networks.backbones import TimmBackbone
from lightning_da.paths import PROJECT
from lightning_da.process import shorten_warnings
from lightning_da.signatures import arguments
from lightning_da.store import by_name, client
from lightning_da.tracking import deciding_checkpoint, find_fit, find_run

CONF = PROJECT / "conf"
SHORT = [
    *("--config", str(PROJECT / "tests" / "short.yaml")),
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=2",
    "--data.init_args.batch_size=16",
]


def configs(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(CONF / f"{name}.yaml"))]


def digits(method: str = "dann", *more: str, experiment: str = "tests") -> list[str]:
    return [
        *configs(f"method/{method}", "data/digits"),
        *SHORT,
        "--data.init_args.num_typeset=200",
        f"--trainer.logger.init_args.experiment_name={experiment}",
        *more,
    ]


def run_of(cli: TransferCLI) -> Run:
    return client().get_run(cli.trainer.logger.run_id)  # type: ignore[union-attr]


def metrics(cli: TransferCLI) -> dict[str, float]:
    return dict(run_of(cli).data.metrics)


def complaint(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(args)
    message = str(stop.value.code) + capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for domain in ("source", "target"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / domain / name
            folder.mkdir(parents=True)
            for i in range(12):
                Image.fromarray(rng.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("source", "target"):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(120, 5)), y=np.arange(120) % 3)
    return tmp_path


# ---------------------------------------------------------------- every YAML

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
BACKBONES = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml") if "weights:" in path.read_text())
NETWORK = "--model.init_args.backbone.init_args"
TABLES = ("--data.init_args.source=source.npz", "--data.init_args.target=target.npz")
PAIR = ("--data.init_args.source=source", "--data.init_args.target=target", "--data.init_args.num_workers=0")
LENET = "lightning_da.networks.LeNet"
SPEECH = [*configs("method/speech_ffn", "data/speech"), "--after=null"]


def without_download(name: str) -> list[str]:
    return [f"{NETWORK}.weights=random"] if name in ("vgg16", *BACKBONES) else []


ELSEWHERE = (
    *("vgg16", "speech_ffn", "speech_gender", "speech_speaker", "margin_ensemble"),
    *("amn", "class_embedding", "cotrans", "dap", "ddml", "dstml", "dtml", "stml"),
    *("segmentation", "unet"),
)
"""Methods of other data than digits, tested on those."""
CLASSICAL = [name for name in METHODS if "methods.Classical" in (CONF / "method" / f"{name}.yaml").read_text()]
"""One of them stands for all here; each is fitted in test_classical_fits.py."""


ON_DIGITS = [name for name in METHODS if name not in (*ELSEWHERE, *CLASSICAL[1:])]
STANDING_FOR_ALL = (
    *("source_only", "target_only", "fine_tune", "dan", "deep_coral", "dann", "adda", "shot", "dsn"),
    *("multi_task", "self_taught", "progressive", CLASSICAL[0]),
)
"""The methods that differ in what they read, or in their stages; the others are trained by slow tests here."""


def of(method: str) -> list[str]:
    return digits(method, *(["--data.init_args.class_sets=open"] if method == "osbp" else []))


@pytest.mark.parametrize("method", [name for name in ON_DIGITS if name not in STANDING_FOR_ALL])
def test_every_method_is_built(method: str) -> None:
    assert TransferCLI("fit", of(method)).build().model.num_classes >= 10


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in STANDING_FOR_ALL else [pytest.mark.slow]) for name in ON_DIGITS],
)
def test_every_method_fits_tests_and_loads(method: str) -> None:
    words = of(method)
    cli = main(["fit", *words])
    fitted = run_of(cli)
    tested = main(["test", *words])
    assert tested.trainer.logger.run_id == fitted.info.run_id
    found = metrics(tested)
    assert {"test/source/acc", "test/target/acc", "test/target/class_acc", "fit/seconds"} <= set(found)
    path = client().download_artifacts(fitted.info.run_id, "checkpoints/last.ckpt")
    loaded = type(cli.model).load_from_checkpoint(path, weights_only=True)
    x = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded.eval()(x), tested.model.cpu().eval()(x))


def runs(experiment: str) -> list[Run]:
    found = client().get_experiment_by_name(experiment)
    assert found is not None
    return sorted(client().search_runs([found.experiment_id]), key=lambda run: run.info.start_time)


def test_one_command_runs_both_stages_of_adda() -> None:
    args = digits("adda", "--seed_everything=3", experiment="stages")
    cli = main(["fit", *args])
    first, second = runs("stages")
    assert [run.info.run_name for run in (first, second)] == [
        "source_only-typeset-handwritten-s3",
        "adda-typeset-handwritten-s3",
    ]
    assert second.data.tags["started_from"] == first.info.run_id
    start = torch.load(client().download_artifacts(first.info.run_id, "checkpoints/last.ckpt"), weights_only=True)
    for key, value in cli.model.source.state_dict().items():
        assert torch.equal(value.cpu(), start["state_dict"][key])
    # what is recorded repeats both stages, and seeds of one configuration are one row of the table
    assert second.data.params["init_from"] == "None"
    # the checkpoint is whole
    Path(find_fit(first.info.run_id).checkpoint).unlink()
    before = metrics(main(["test", *args]))
    assert metrics(main(["test", "--ckpt_path", second.info.run_id, *SHORT])) == before
    main(["predict", "--ckpt_path", second.info.run_id, *SHORT])
    assert len(pd.read_csv("predictions.csv")) == 1797


def test_the_second_stage_takes_a_run_or_a_file() -> None:
    first = main(["fit", *digits("source_only", experiment="second stage")])
    run_id, path = first.trainer.logger.run_id, first.trainer.checkpoint_callback.best_model_path
    for reference in (run_id, path, "source_only-typeset-handwritten-s0"):
        start = f"--model.init_args.init_from={reference}"
        cli = main(["fit", *digits("adda", start, experiment="second stage")])
        assert run_of(cli).data.tags["started_from"] == run_id
    assert len(runs("second stage")) == 4


@pytest.mark.slow
def test_the_same_seed_gives_the_same_second_stage_whoever_ran_the_first() -> None:
    args = digits("adda", experiment="alike")
    alone = main(["fit", *args]).model.state_dict()
    sweep_words = [word for word in args if "conf/method" not in word]
    sweep_words.remove("--config")
    main(["sweep", "--methods", "source_only", "adda", *sweep_words])
    found = [run for run in runs("alike") if "grid" not in run.data.tags]
    assert [run.data.params["method"] for run in found] == ["source_only", "adda", "source_only", "adda"]
    assert found[3].data.tags["started_from"] == found[2].info.run_id
    assert found[3].data.params["init_from"] == "None"
    path = client().download_artifacts(found[3].info.run_id, "checkpoints/last.ckpt")
    swept = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(alone[key].cpu(), value) for key, value in swept.items())


def test_a_resumed_second_stage_does_not_repeat_the_first() -> None:
    args = digits("adda", experiment="resumed stage")
    path = main(["fit", *args]).trainer.checkpoint_callback.best_model_path
    cli = main(["fit", *args, "--trainer.max_steps=4", "--ckpt_path", path])
    assert cli.trainer.global_step == 4
    assert len(runs("resumed stage")) == 2


def test_ddc_is_the_squared_distance_of_the_means() -> None:
    model = main(["fit", *digits("ddc")]).model
    source, target = torch.randn(9, 100), torch.randn(7, 100)
    model.log = model.log_dict = lambda *_args: None
    expected = (source.mean(0) - target.mean(0)).square().sum()
    batches = (DomainBatch([x], x[:, :10], torch.zeros(len(x))) for x in (source, target))
    torch.testing.assert_close(model.domain_loss(*batches), expected)


def test_a_first_stage_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    start = "--model.init_args.init_from"
    assert "'nothing' is no checkpoint file" in complaint(["fit", *digits("adda", f"{start}=nothing")], capsys)
    gone = main(["fit", *digits("source_only", experiment="gone")])
    Path(gone.trainer.checkpoint_callback.best_model_path).unlink()
    message = complaint(["fit", *digits("adda", f"{start}={gone.trainer.logger.run_id}")], capsys)
    assert "its checkpoint" in message
    assert "is gone" in message
    target_only = main(["fit", *digits("target_only", experiment="gone")]).trainer.logger.run_id
    message = complaint(["fit", *digits("adda", f"{start}={target_only}")], capsys)
    assert "has read labels of the target (train_on: target)" in message
    message = complaint(["fit", *digits("adda", "--after=source_olny")], capsys)
    assert "after: no method 'source_olny'; did you mean 'source_only'?" in message
    assert "ADDA starts from a supervised run" in complaint(["fit", *digits("adda", "--after=null")], capsys)


def test_the_textbooks_vgg16(image_root: Path) -> None:
    args = [*configs("method/vgg16", "data/image_folders"), *SHORT, *without_download("vgg16")]
    args += [
        *PAIR,
        f"--data.init_args.root={image_root}",
        "--data.init_args.image_size=32",
        "--data.init_args.num_workers=0",
    ]
    args += ["--trainer.max_epochs=1", "--trainer.logger=false", "--data.init_args.batch_size=8"]
    model = main(["fit", *args]).model
    convolutions = [m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    frozen = [not m.weight.requires_grad for m in convolutions]
    assert frozen == [True] * 3 + [False] * 10
    widths = [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [1024, 1024, 2]
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.5]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_on_image_folders(backbone: str, image_root: Path) -> None:
    args = [*configs("data/image_folders", f"backbone/{backbone}", "method/dann"), *SHORT, *without_download(backbone)]
    args += [
        *PAIR,
        f"--data.init_args.root={image_root}",
        "--data.init_args.image_size=32",
        "--data.init_args.num_workers=0",
    ]
    cli = main(["fit", *args, "--trainer.max_steps=1", "--trainer.logger=false", "--data.init_args.batch_size=8"])
    rates = {group["name"]: group["lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert rates["backbone"] == pytest.approx(0.1 * rates["head"])


def test_feature_tables(tables: Path) -> None:
    args = [*configs("data/features", "method/deep_coral"), *SHORT, *TABLES, f"--data.init_args.root={tables}"]
    cli = main(["fit", *args])
    assert run_of(cli).info.run_name == "deep_coral-source-target-s0"


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_trainer_files(precision: str) -> None:
    cli = main(["fit", *digits("dann"), *configs("trainer/cpu"), f"--trainer.precision={precision}"])
    assert cli.trainer.precision == precision


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("3", 3), ("0.5", 0.5)])
def test_one_batch_is_not_the_share_of_all(text: str, value: float) -> None:
    for part in ("train", "val", "test", "predict"):
        cli = TransferCLI("fit", [*digits("dann"), f"--trainer.limit_{part}_batches={text}"])
        found = cli.config.trainer[f"limit_{part}_batches"]
        assert (found, type(found)) == (value, type(value))


def test_method_and_data_in_either_order() -> None:
    one = main(["fit", *configs("method/dann", "data/digits"), *digits()[4:]])
    other = main(["fit", *configs("data/digits", "method/dann"), *digits()[4:]])
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert run_of(one).data.params == run_of(other).data.params


# ---------------------------------------------------------------- runs


def test_what_is_recorded_of_a_run() -> None:
    cli = main(["fit", *digits("deep_coral", "--seed_everything=3", "--model.init_args.domain_weight=0.5")])
    main(["test", *digits("deep_coral", "--seed_everything=3", "--model.init_args.domain_weight=0.5")])
    run = run_of(cli)
    assert run.info.run_name == "deep_coral-typeset-handwritten-s3"
    assert run.info.status == "FINISHED"
    expected = {
        "method": "deep_coral",
        "model": "DeepCORAL",
        "seed": "3",
        "source": "typeset",
        "target": "handwritten",
        "batch_size": "16",
        "optimizer": "Adam",
        "optimizer.lr": "0.001",
        "backbone": "LeNet",
        "backbone.batch_norm": "True",
        "domain_weight": "0.5",
        "max_steps": "2",
    }
    assert {key: run.data.params.get(key) for key in expected} == expected
    assert run.data.tags["data"] == cli.datamodule.fingerprint()
    assert run.data.tags["selection"] == "last epoch"
    assert f"torch {torch.__version__.split('+')[0]}" in run.data.tags["versions"]
    if (PROJECT / ".git").exists() and shutil.which("git"):
        assert len(run.data.tags["mlflow.source.git.commit"]) == 40
        assert run.data.tags["git.dirty"] in ("True", "False")
    paths = {file.path for file in client().list_artifacts(run.info.run_id)}
    assert paths == {"checkpoints", "config.yaml", "confusion.png", "embedding.png", "per_class.csv"}
    for picture in ("confusion.png", "embedding.png"):
        with Image.open(client().download_artifacts(run.info.run_id, picture)) as image:
            assert min(image.size) > 300


def test_a_run_repeats_from_its_recorded_configuration() -> None:
    # one option that --help shows and one that it leaves out
    clipped = ["--trainer.gradient_clip_val=0.0001", "--trainer.gradient_clip_algorithm=value"]
    first = main(["fit", *digits("dann", "--model.init_args.domain_weight=0.3", *clipped)])
    path = client().download_artifacts(run_of(first).info.run_id, "config.yaml")
    again = main(["fit", "--config", path])
    assert run_of(again).info.run_id != run_of(first).info.run_id
    assert run_of(again).data.params == run_of(first).data.params
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert again.trainer.gradient_clip_algorithm == "value"
    assert run_of(main(["fit", "--config", path, "--seed_everything=4"])).info.run_name == "dann-typeset-handwritten-s4"


def test_test_by_file_by_id_and_by_name_needs_no_other_argument(capsys: pytest.CaptureFixture[str]) -> None:
    cli = main(["fit", *digits("dann", "--seed_everything=11", experiment="other")])
    run = run_of(cli)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"run {run.info.run_name} is finished; to test it: lightning-da test --ckpt_path {run.info.run_id}"
    file = client().download_artifacts(run.info.run_id, "checkpoints/last.ckpt")
    experiment = "--trainer.logger.init_args.experiment_name=other"
    main(["fit", *digits("dann", "--seed_everything=11", experiment="yet another")])  # a later run of that name
    found = []
    for reference in (file, run.info.run_id, run.info.run_name, run.info.run_name):
        tested = main(["test", "--ckpt_path", reference, experiment])
        experiment = experiment.replace(".init_args", "") if reference == run.info.run_name else experiment
        assert tested.trainer.logger.run_id == run.info.run_id
        found.append(tested.trainer.callback_metrics["test/target/acc"].item())
        header, _, accuracy = capsys.readouterr().out.splitlines()[-6:][:3]
        assert header.split() == ["metric", "source", "(typeset)", "target", "(handwritten)"]
        assert accuracy.split()[0] == "acc"
        assert accuracy.split()[2] == f"{found[-1]:.4f}"
    assert len(set(found)) == 1
    assert len(client().search_runs([run.info.experiment_id], "run_name = 'dann-typeset-handwritten-s11'")) == 1


def test_sweep_equals_fit_and_test() -> None:
    table = main(["sweep", *digits()[2:], "--methods", "source_only", "--seeds", "0", "1"])
    assert table["seeds"].tolist() == [2]
    main(["fit", *digits("source_only", "--seed_everything=1", experiment="alone")])
    found = metrics(main(["test", *digits("source_only", "--seed_everything=1", experiment="alone")]))
    runs = client().search_runs(
        [client().get_experiment_by_name("tests").experiment_id],  # type: ignore[union-attr]
        "run_name = 'source_only-typeset-handwritten-s1'",
    )
    assert runs[0].data.metrics["test/target/acc"] == found["test/target/acc"]


def test_selection_by_target_labels_is_called_an_oracle(tmp_path: Path) -> None:
    path = tmp_path / "oracle.yaml"
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    checkpoint["init_args"] = {"monitor": "val/target/acc", "mode": "max"}  # type: ignore[assignment]
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [checkpoint], "check_val_every_n_epoch": 1}}))
    args = digits(
        "dann", "--config", str(path), "--trainer.max_steps=-1", "--trainer.max_epochs=1", experiment="oracle"
    )
    cli = main(["fit", *args])
    assert run_of(cli).data.tags["selection"].startswith("oracle (val/target/acc")
    main(["test", *args])
    table = main(["compare", "--experiment", "oracle"])
    assert table["method"].tolist() == ["dann (oracle)"]


def test_a_checkpoint_is_selected_without_target_labels() -> None:
    given = digits("dann", *configs("trainer/select"), "--trainer.max_steps=-1", "--trainer.max_epochs=3")
    cli = main(["fit", *given, "--trainer.check_val_every_n_epoch=1"])
    run = run_of(cli)
    assert run.data.tags["selection"] == "best score/class_ami"
    history = client().get_metric_history(run.info.run_id, "score/class_ami")
    best = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)["global_step"]
    assert len(history) > 1
    assert cli.trainer.checkpoint_callback.best_model_score == pytest.approx(max(point.value for point in history))
    assert run.data.tags["checkpoint"] in {
        file.path.split("/")[-1] for file in client().list_artifacts(run.info.run_id, "checkpoints")
    }
    assert 0 < best <= cli.trainer.global_step


def test_the_callback_with_a_monitor_decides_wherever_it_stands() -> None:
    plain, watching = ModelCheckpoint(save_last=True), ModelCheckpoint(monitor="score/dev", mode="max")
    orders: tuple[list[Callback], ...] = ([plain, watching], [watching, plain])
    for callbacks in orders:
        assert deciding_checkpoint(Trainer(callbacks=callbacks, logger=False, accelerator="cpu")) is watching
    assert deciding_checkpoint(Trainer(callbacks=[plain], logger=False, accelerator="cpu")) is plain
    assert deciding_checkpoint(Trainer(enable_checkpointing=False, logger=False, accelerator="cpu")) is None


def test_predict_writes_every_target_sample_once(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*configs("method/dann", "data/features"), *SHORT, *TABLES, f"--data.init_args.root={tables}"]
    main(["fit", *args])
    cli = main(["predict", *args, "--predictions.path=found.csv"])
    assert "120 predictions in found.csv" in capsys.readouterr().out
    with Path("found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["sample"]) for row in rows) == list(range(120))
    assert list(rows[0]) == ["sample", "split", "class", "probability"]
    sizes = {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")}
    assert sizes == {"train": 84, "val": 12, "test": 24}
    row = rows[-1]
    place = cli.datamodule.names("target", row["split"]).index(row["sample"])
    x = cli.datamodule.dataset("target.npz", row["split"])[place][0]
    cli.model.cpu().eval().set_domain("target")
    best = cli.model(x[None]).softmax(1).max(1)
    assert row["class"] == cli.datamodule.classes[int(best.indices)]
    assert float(row["probability"]) == pytest.approx(best.values.item(), abs=1e-3)
    assert not list(Path().glob("*.part"))


def test_predict_refuses_other_samples_and_other_classes(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*TABLES, f"--data.init_args.root={tables}"]
    run = run_of(main(["fit", *configs("method/source_only", "data/features"), *SHORT, *given])).info.run_id
    np.savez(tables / "wide.npz", x=np.ones((120, 7)), y=np.arange(120) % 3)
    np.savez(tables / "later.npz", x=np.ones((120, 5)), y=1 + np.arange(120) % 3)

    def said(name: str) -> str:
        pair = [f"--data.init_args.{role}={name}.npz" for role in ("source", "target")]
        return complaint(["predict", "--ckpt_path", run, *given, *pair, "--predictions.path=found.csv"], capsys)

    assert "the checkpoint was fitted with input_shape (5,), but the data have (7,)" in said("wide")
    assert "the checkpoint was fitted with classes ['0', '1', '2'], but the data have ['1', '2', '3']" in said("later")
    assert not Path("found.csv").exists()


def test_one_labelled_folder(image_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shortest command: no data file, and one domain, which is named, validated, tested and shown once."""
    folder = ["--data.init_args.root", str(image_root / "target"), "--data.init_args.val_share=0.4"]
    folder += ["--data.init_args.image_size=32", "--data.init_args.num_workers=0", *without_download("mobilenetv2")]
    words = [*configs("method/fine_tune", "backbone/mobilenetv2"), *SHORT[2:], *folder, "--data.init_args.batch_size=8"]
    fit = main(["fit", *words])
    assert run_of(fit).info.run_name == "fine_tune-target-s0"
    main(["test", *words])
    assert {key for key in metrics(fit) if key.startswith("test/")} == {
        f"test/target/{name}" for name in ("acc", "class_acc", "class_precision", "imbalance")
    }
    two = ("val/source", "score/", "depth/mmd", "depth/a_distance", "depth/probe_target")
    assert not [key for key in metrics(fit) if key.startswith(two)]
    assert "depth/probe_source" in metrics(fit)
    capsys.readouterr()
    main(["compare"])
    assert "target, test split" in capsys.readouterr().out
    assert "one domain" in complaint(["fit", *configs("method/dann", "backbone/mobilenetv2"), *SHORT, *folder], capsys)


def test_predict_images_of_the_transductive_protocol_once(image_root: Path) -> None:
    args = [*configs("method/source_only", "data/image_folders"), *SHORT, "--data.init_args.protocol=all"]
    args += [
        *PAIR,
        f"--data.init_args.root={image_root}",
        "--data.init_args.image_size=28",
        "--data.init_args.num_workers=0",
    ]
    args += ["--model.init_args.backbone=lightning_da.networks.LeNet"]
    main(["fit", *args])
    main(["predict", *args])
    frame = pd.read_csv("predictions.csv")
    assert sorted(frame["sample"]) == sorted(f"target/{c}/{i}.png" for c in ("cat", "dog") for i in range(12))


def test_pretrained_weights_are_not_needed_after_the_fit(image_root: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("mobilenetv2_100").state_dict(), weights)
    args = [*configs("method/linear_probe", "data/image_folders", "backbone/mobilenetv2"), *SHORT]
    args += [
        *PAIR,
        f"--data.init_args.root={image_root}",
        "--data.init_args.image_size=32",
        "--data.init_args.num_workers=0",
    ]
    args += [f"{NETWORK}.weights={weights}"]
    cli = main(["fit", *args])
    reference = TimmBackbone((3, 32, 32), "mobilenetv2_100", weights=str(weights))
    reference.load_pretrained()
    assert all(torch.equal(p, q) for p, q in zip(cli.model.backbone.parameters(), reference.parameters(), strict=True))
    weights.unlink()
    assert "test/target/acc" in metrics(main(["test", *args]))


def test_fine_tune_from_a_run_by_name() -> None:
    earlier = main(["fit", *digits("source_only", "--seed_everything=21", experiment="lightning_da")])
    name = run_of(earlier).info.run_name
    start = [f"--model.init_args.init_from={name}", "--trainer.max_steps"]
    theirs = earlier.model.backbone.state_dict()
    cli = main(["fit", *digits("fine_tune", *start, "0")])
    assert torch.equal(theirs["conv1.0.weight"], cli.model.backbone.state_dict()["conv1.0.weight"])
    cli = main(["fit", *digits("fine_tune", *start, "1")])
    assert not torch.equal(theirs["conv1.0.weight"], cli.model.backbone.state_dict()["conv1.0.weight"])
    rates = {group["name"]: group["initial_lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert rates["head"] == pytest.approx(10 * rates["backbone"])


def test_resume() -> None:
    args = digits("dann", "--trainer.max_steps=-1", experiment="resume")
    cli = main(["fit", *args, "--trainer.max_epochs=1"])
    path = client().download_artifacts(run_of(cli).info.run_id, "checkpoints/last.ckpt")
    resumed = main(["fit", *args, "--trainer.max_epochs=2", "--ckpt_path", path])
    assert resumed.trainer.global_step == 2 * cli.trainer.global_step
    run = run_of(resumed)
    assert run.info.run_id == run_of(cli).info.run_id
    assert run.info.status == "FINISHED"
    assert (run.data.tags["resumed_from"], run.data.tags["extended.max_epochs"]) == (path, "2")
    for key in run.data.metrics:  # in one line, nothing twice
        steps = [point.step for point in client().get_metric_history(run.info.run_id, key)]
        assert steps == sorted(set(steps)), key


def test_test_refuses_other_data_and_other_settings(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*configs("method/source_only", "data/features"), *SHORT, *TABLES, f"--data.init_args.root={tables}"]
    args += ["--trainer.logger.init_args.experiment_name=refusals"]
    cli = main(["fit", *args])
    main(["test", *args])
    before = metrics(cli)
    said = complaint(["test", *args, "--model.init_args.optimizer.init_args.lr=0.5"], capsys)
    assert "was fitted with optimizer.lr=0.001, not 0.5" in said
    assert "was fitted on other data" in complaint(["test", *args, "--data.init_args.seed=9"], capsys)
    np.savez(tables / "subset.npz", x=np.ones((120, 5)), y=1 + np.arange(120) % 2)
    run = run_of(cli).info.run_id
    said = complaint(["test", "--ckpt_path", run, "--data.init_args.target=subset.npz"], capsys)
    assert "classes differ" in said
    assert metrics(cli) == before
    assert run_of(cli).info.status == "FINISHED"


def test_test_finds_the_run_with_its_settings_among_others() -> None:
    first = main(["fit", *digits("dann", "--model.init_args.domain_weight=0.7", experiment="settings")])
    main(["fit", *digits("dann", "--model.init_args.domain_weight=0.2", experiment="settings")])
    tested = main(["test", *digits("dann", "--model.init_args.domain_weight=0.7", experiment="settings")])
    assert tested.trainer.logger.run_id == run_of(first).info.run_id


def test_sweep_goes_on_without_the_method_that_cannot_run(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tables / "unlabelled.npz", x=np.random.default_rng(1).normal(size=(120, 5)))
    args = [*configs("data/features"), *SHORT, *TABLES, f"--data.init_args.root={tables}"]
    args += ["--data.init_args.target=unlabelled.npz", "--trainer.logger.init_args.experiment_name=unlabelled"]
    said = complaint(["sweep", *args, "--methods", "source_only", "target_only", "dann"], capsys)
    assert "1 of 3 cannot run; the first: target_only-source-unlabelled-s0: domain 'unlabelled.npz': its train" in said
    table = main(["compare", "--experiment", "unlabelled"])
    assert sorted(table["method"]) == ["dann", "source_only"]
    assert table["target acc"].isna().all()


# ---------------------------------------------------------------- compare


def log(experiment: str, method: str, seed: int, target: float, data: str = "d", **params: Any) -> str:
    found = client().get_experiment_by_name(experiment)
    where = found.experiment_id if found else client().create_experiment(experiment)
    run = client().create_run(where)
    client().set_tag(run.info.run_id, "data", data)
    for key, value in {"method": method, "seed": seed, "source": "a", "target": "b", **params}.items():
        client().log_param(run.info.run_id, key, str(value))
    for key, number in {"test/source/acc": 0.9, "test/target/acc": target, "fit/seconds": 7.0}.items():
        client().log_metric(run.info.run_id, key, number)
    return str(run.info.run_id)


def test_a_target_only_of_few_labels_is_no_upper_bound() -> None:
    log("few", "source_only", 0, 0.4, target_labels=10)
    log("few", "dann", 0, 0.7, target_labels=10)
    log("few", "target_only", 0, 0.6, target_labels=10)
    assert main(["compare", "--experiment", "few"])["gap closed"].isna().all()
    log("few", "target_only", 0, 1.0)
    frame = main(["compare", "--experiment", "few"]).set_index("method")
    assert frame.loc["dann", "gap closed"] == pytest.approx(0.5)


def test_no_gap_is_closed_where_target_only_is_not_the_better() -> None:
    for name, upper in (("worse", 0.3), ("equal", 0.4)):
        log(name, "source_only", 0, 0.4)
        log(name, "dann", 0, 0.7)
        log(name, "target_only", 0, upper)
        assert main(["compare", "--experiment", name])["gap closed"].isna().all()


def test_compare_has_mean_deviation_and_gap_by_seed(capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (lower, middle, upper) in enumerate([(0.4, 0.7, 1.0), (0.5, 0.6, 0.9)]):
        log("table", "source_only", seed, lower)
        log("table", "dann", seed, middle, domain_weight=1)
        log("table", "target_only", seed, upper)
    log("table", "dann", 0, 0.1, domain_weight=2)
    log("table", "source_only", 0, 0.99, max_steps=5)  # no bound of the others: shorter
    log("table", "dann", 2, 0.5, domain_weight=3)  # no bounds of its own: its seed has none
    log("table", "dann", 0, 0.8, domain_weight=1)  # the same again: the later one counts
    frame = main(["compare", "--experiment", "table"]).set_index("method")
    row = frame.loc["dann (domain_weight=1)"]
    assert row["seeds"] == 2
    assert row["target acc"] == pytest.approx(0.7)
    assert row["target acc std"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert row["gap closed"] == pytest.approx(((0.8 - 0.4) / 0.6 + (0.6 - 0.5) / 0.4) / 2)
    assert frame.loc["source_only", "gap closed"] == 0
    assert np.isnan(frame.loc["dann (domain_weight=3)", "gap closed"])
    assert frame.loc["target_only", "gap closed"] == 1
    assert frame.loc["dann (domain_weight=2)", "target acc"] == pytest.approx(0.1)
    printed = capsys.readouterr().out
    assert "a -> b, test split" in printed
    assert "0.700 ± 0.141" in printed


def test_compare_shows_class_accuracy_where_classes_are_uneven(capsys: pytest.CaptureFixture[str]) -> None:
    for pair, imbalance in (("even", 1.2), ("uneven", 1.8)):
        for seed in (0, 1):
            run_id = log(pair, "dann", seed, 0.8)
            for key, value in {"class_acc": 0.25 + 0.1 * seed, "imbalance": imbalance}.items():
                client().log_metric(run_id, f"test/target/{key}", value)
        main(["compare", "--experiment", pair])
        printed = capsys.readouterr().out
        assert ("target class acc" in printed) == (pair == "uneven")
        assert ("0.300 ± 0.071" in printed) == (pair == "uneven")


@pytest.mark.parametrize("file", [["--config=method/dann.yaml"], ["--config", "method/dann.yaml"]])
def test_options_override_files_wherever_they_stand(file: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before, behind = ["--model.domain_weight", "0.5"], ["--data.num_typeset", "333", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *before, *file, "--config", "data/digits.yaml", *behind])
    assert not stop.value.code
    printed = capsys.readouterr().out
    assert "domain_weight: 0.5" in printed
    assert "num_typeset: 333" in printed


@pytest.mark.parametrize(
    ("dann", "said"),
    [
        ((0.9, 0.9), "dann (best by the scores neighbours, class_ami, mmd, bnm; clearly above source_only by 4 of 4)"),
        ((0.9, 0.81), "source_only (dann is best by the scores neighbours, class_ami, mmd, bnm, but clearly above "),
        ((0.8, 0.8), "source_only (best by the scores neighbours, class_ami, mmd, bnm: adaptation does not seem to"),
    ],
)
def test_compare_chooses_a_method_without_target_labels(
    dann: tuple[float, float], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the target accuracy, nor a method that has read target labels; a tie is source-only's."""
    values = {
        "source_only": (0.9, (0.8, 0.8)),
        "dann": (0.3, dann),
        "dan": (0.99, (0.5, 0.5)),
        "target_only": (1.0, (1.0, 1.0)),
    }
    for seed in (0, 1):
        for method, (accuracy, (two, others)) in values.items():
            read = {"train_on": "target"} if method == "target_only" else {}
            run_id = log("choice", method, seed, accuracy, **read)
            for name, score in zip(("neighbours", "class_ami", "mmd", "bnm"), (two, two, others, others), strict=True):
                client().log_metric(run_id, f"score/{name}", score + 0.01 * seed)
            client().log_dict(run_id, {"predicted": [0] * 400}, "target_sample.json")
    main(["compare", "--experiment", "choice"])
    printed = capsys.readouterr().out
    assert f"chosen without target labels: {said}" in printed
    assert "its target accuracy is about 0.90, from 0.75 to 1.00" in printed  # all predict class 0; the source has 0.9


@pytest.mark.parametrize("name", ["it's", 'a "good" run', "plain"])
def test_a_name_with_a_quote_is_found(name: str) -> None:
    run_id = client().create_run("0", tags={"mlflow.runName": name}).info.run_id
    client().create_run("0", tags={"mlflow.runName": name + "2"})
    found = find_run(name)
    assert found is not None
    assert found.info.run_id == run_id
    client().create_registered_model(name)
    assert [own.name for own in client().search_registered_models(by_name("name", name))] == [name]


def test_a_name_of_several_runs_is_the_latest_and_it_is_said() -> None:
    made = [client().create_run("0", run_name="twice", start_time=start) for start in (1_000, 3_000, 2_000)]
    latest, other = made[1].info.run_id, made[2].info.run_id
    client().create_run("0", run_name="other")
    with pytest.warns(UserWarning, match=f"3 runs have the name 'twice'; the latest is taken, {latest} of 1970-01-01"):
        assert find_run("twice").info.run_id == latest  # type: ignore[union-attr]
    client().set_tag(other, "checkpoint", "last.ckpt")  # the only fit that ended
    with warnings.catch_warnings(action="error"):
        assert find_run("twice").info.run_id == other  # type: ignore[union-attr]


def test_compare_says_why_no_method_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    log("no scores", "source_only", 0, 0.4)
    main(["compare", "--experiment", "no scores"])
    assert "no choice" not in capsys.readouterr().out  # there is nothing to choose from
    log("no scores", "dann", 0, 0.7)
    main(["compare", "--experiment", "no scores"])
    assert "no choice without target labels: the fits recorded no scores" in capsys.readouterr().out


def test_warnings_of_the_project_are_short_and_those_of_others_name_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    shorten_warnings()
    own, other = str(PROJECT / "lightning_da" / "data" / "base.py"), torch.__file__
    assert warnings.formatwarning("text", UserWarning, own, 3) == "warning: text\n"
    assert warnings.formatwarning("text", UserWarning, other, 3) == f"{other}:3: UserWarning: text\n"


def test_compare_says_which_runs_showed_signs_of_failure(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(5):
        run_id = log("failing", "dann", seed, 0.8)
        client().set_tag(run_id, "warnings", "it diverges: try less" + ("\nit collapses" if seed == 2 else ""))
    main(["compare", "--experiment", "failing"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == 2
    assert lines[0].endswith(" and 2 more: it diverges: try less")
    assert lines[1].endswith(": it collapses")


def test_compare_of_an_unknown_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no experiment 'nowhere'" in complaint(["compare", "--experiment", "nowhere"], capsys)


# ---------------------------------------------------------------- help and errors


def test_help_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    overview = capsys.readouterr().out
    assert all(command in overview for command in COMMANDS)
    assert len(overview.splitlines()) < 30
    for command in ("fit", "test", "predict"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert "--trainer.max_steps" in text
        assert "--trainer.profiler" not in text
        lines = [line for line in text.splitlines() if not re.fullmatch(r" +\w+(\.\w+)+[,)]*", line)]
        assert len(lines) < 140  # without most known classes, which other tests add to


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--model.init_args.domain_wieght=3"],
            "'domain_wieght' of lightning_da.methods.DANN; did you mean 'domain_weight'",
        ),
        (["--modle.x=3"], "did you mean 'model'"),
        (["--trainer.max_stepss=3"], "did you mean 'trainer.max_steps'"),
        (["--data.init_args.sorce=x"], "'sorce' of lightning_da.data.Digits; did you mean 'source'"),
        (["--data.init_args.source=tipeset"], "did you mean 'typeset'"),
        (["--model.init_args.optimizer.init_args.lrr=3"], "'lrr' of torch.optim.Adam; did you mean 'lr'"),
        (
            [f"{NETWORK}.batchnorm=true"],
            "'batchnorm' of lightning_da.networks.LeNet; did you mean 'batch_norm'",
        ),
        (["--model.class_path=lightning_da.methods.DAN2"], "did you mean 'DAN'"),
        (["--model.init_args.layers=[fc3]"], "no layer 'fc3'; did you mean 'fc2'"),
        (["--model.init_args.batch_norm=seperate"], "did you mean 'separate'"),
        (["--config=nofile.yaml"], "nofile.yaml"),
        (["--trainer.max_steps=many"], "trainer.max_steps"),
        (["--trainer.max_step=9"], "did you mean 'trainer.max_steps'"),
        (["--trainer.strategy=dpp"], "strategy"),
        (["--data.init_args.batch_size=0"], "batch_size: 0"),
        (["--data.init_args.num_typeset=5"], "num_typeset: 5"),
        (["--model.init_args.layers=[]"], "name at least one layer"),
        (["--model.init_args.optimizer=torch.optim.Adamm"], "did you mean 'Adam'"),
        (["--model.init_args.lr_schedule=lightning_da.schedules.cosin"], "cosin"),
        (["--data.init_args.batch_size=5000"], "fewer than a batch of 5000"),
        (["--model.standardize=per-domain"], "neither true nor false nor a valid choice; did you mean 'per_domain'"),
    ],
)
def test_a_mistake_is_named(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(["fit", *digits("dann"), *more], capsys)
    assert message in said
    assert len(said) < 900


def test_a_typo_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text((CONF / "method" / "deep_coral.yaml").read_text().replace("layers", "layer"))
    said = complaint(["fit", "--config", str(path), *digits()[2:]], capsys)
    assert "unknown key 'layer' of lightning_da.methods.DeepCORAL; did you mean 'layers'" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fti"], "did you mean 'fit'"),
        (["fit", *configs("data/digits")], "no method is given; add --config method/NAME.yaml"),
        (
            ["fit", *configs("method/dann"), f"--model.init_args.backbone={LENET}"],
            "no data are given; add --config data/NAME.yaml",
        ),
        (
            ["fit", *configs("method/dann", "data/image_folders")],
            "no backbone is given; add --config backbone/NAME.yaml",
        ),
        (["test", *digits("dann", "--seed_everything=99")], "'dann-typeset-handwritten-s99' is no checkpoint file"),
        (
            ["fit", *SPEECH, "--data.init_args.test_speakers=[03]"],
            "test_speakers: YAML reads 3, which is not text; put",
        ),
        (["fit", *SPEECH, "--data.init_args.test_speakers=03"], "test_speakers: a list is needed, as in '[A, B]'"),
        (["fit", *SPEECH, "--data.init_args.seed=-1"], "data.seed: -1 is less than 0"),
        (["test", "--ckpt_path", "nowhere"], "'nowhere' is no checkpoint file, and neither id nor name of a run"),
        (["sweep", *digits()[2:], "--methods", "dnan"], "no method 'dnan'; did you mean 'dan'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_missing_is_named(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in complaint(args, capsys)


def test_an_interrupted_fit_is_not_taken_for_a_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    args = digits("dann", "--seed_everything=31")
    original = DANN.domain_loss
    try:
        DANN.domain_loss = lambda *_args: 1 / 0  # type: ignore[method-assign,assignment]
        with pytest.raises(ZeroDivisionError):
            main(["fit", *args])
    finally:
        DANN.domain_loss = original  # type: ignore[method-assign]
    assert "has no checkpoint: its fit did not end" in complaint(["test", *args], capsys)


# ---------------------------------------------------------------- as a process


def process(code: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        cwd=folder,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: lightning-da COMMAND"),
        (["--help"], "usage: lightning-da COMMAND"),
        (["fti"], "did you mean 'fit'"),
        (["fit", "--modle", "x"], "unknown key 'modle'; did you mean 'model'?"),
        (
            ["fit", "--config", "method/dnan.yaml"],
            "no file 'method/dnan.yaml'; in conf did you mean 'method/dan.yaml'?",
        ),
        (["test", "--trainer.max_stepss", "3"], "did you mean 'trainer.max_steps'"),
        (["fit", "--config", "method/dann.yaml", "--model.layer", "x"], "did you mean 'layers'"),
        (["sweep", "--config", "data/digits.yaml", "--data.sorce", "x"], "'sorce' of lightning_da.data.Digits; did"),
        (["fit", "--data=lightning_da.data.Digits", "--data.init_args.sorce=x"], "did you mean 'source'"),
        (["fit", "--config", "data/digits.yaml", "--model.backbone.batch_nrm", "1"], "did you mean 'batch_norm'"),
        (["fit", "--config", "method/dann.yaml", "--model.optimizer.lrr", "1"], "'lrr' of torch.optim.Adam; did you"),
    ],
)
def test_a_typo_is_named_before_anything_slow_is_imported(words: list[str], said: str) -> None:
    code = """
import sys
from lightning_da.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(stop)
print([name for name in ("torch", "lightning", "mlflow", "numpy", "pandas") if name in sys.modules])
"""
    found = process(code, *words)
    assert said in found.stdout
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_arguments_of_all_base_classes_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mixed.py").write_text(
        "from lightning_da.methods import DANN\n"
        "class Plain:\n    pass\n"
        "class Mixin:\n    def __init__(self, alpha: float = 1.0, **kwargs):\n        super().__init__(**kwargs)\n"
        "class Mixed(Plain, Mixin, DANN):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"alpha", "discriminator", "domain_weight", "backbone"} <= set(arguments("mixed.Mixed"))


def test_what_a_method_sets_itself_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert "train_on" in arguments("lightning_da.methods.DANN")
    said = complaint(["fit", *configs("method/shot", "data/digits"), "--model.train_on", "both"], capsys)
    hint = said.split("unknown key 'train_on' of lightning_da.methods.SHOT; ")[1]
    assert "init_from" in hint
    assert not {"train_on", "label_smoothing"} & set(re.findall(r"\w+", hint))


def test_classes_of_the_working_folder_are_found_by_the_console_script(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(
        "from lightning_da.data.template import Template\nclass MyTask(Template):\n    pass\n"
    )
    script = "from lightning_da.__main__ import run; import sys; sys.path[:] = sys.path[1:]; run()"
    words = ["fit", "--config", "method/dann.yaml", "--config", "data/template.yaml", "--data", "my_task.MyTask"]
    found = process(script, *words, "--print_config", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert yaml.safe_load(found.stdout)["data"]["class_path"] == "my_task.MyTask"


def test_a_process_ends_as_python_ends_it() -> None:
    script = (
        "import atexit, threading, time; from concurrent.futures import ThreadPoolExecutor\n"
        "from lightning_da.process import end\n"
        "atexit.register(print, 'last')\n"
        "pool = ThreadPoolExecutor(1)\n"  # its thread waits for work until Python ends the pool
        "pool.submit(print, 'pool').result()\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "end(3)"
    )
    found = process(script)
    assert (found.returncode, found.stdout.split()) == (3, ["pool", "thread", "last"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("stream", "code", "said"),
    [("> /dev/full", 120, "cannot be written (No space left on device)"), (">&-", 0, ""), ("2>&-", 0, "")],
)
def test_output_that_is_lost_is_said(stream: str, code: int, said: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    found = subprocess.run(
        f"{sys.executable} -m lightning_da --help {stream}",
        shell=True, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(PROJECT)}, check=False,
    )  # fmt: skip
    assert found.returncode == code
    assert said in found.stderr


def test_imports_are_not_collected_again_and_a_script_ends_without_a_report() -> None:
    script = (
        "import contextlib, gc; from lightning_da.main import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['fit', '--config', 'method/dann.yaml', '--config', 'data/digits.yaml', '--print_config'])\n"
        "print('frozen', gc.get_freeze_count() > 100_000, gc.isenabled())"
    )
    found = process(script)
    assert found.stdout.splitlines()[-1] == "frozen True True"
    assert not found.stderr


def test_as_a_module() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "lightning_da", "fit", "--modle", "x"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.strip().endswith("unknown key 'modle'; did you mean 'model'?")
    assert json.dumps(found.stdout) == '""'
