"""Models that leave the project: what they answer, where they load, and how they lie in the store."""

import base64
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from PIL import Image
from torch import Tensor, nn

from lightning_da import exporting, testing
from lightning_da.callbacks.log_model import NO_MODEL
from lightning_da.data import DomainPairDataModule, ImageFolders, TensorDomain
from lightning_da.errors import RunError
from lightning_da.exporting import check, export, save
from lightning_da.inputs import Images, Numbers, Sounds, Texts, described, of_description
from lightning_da.logged_models import models_of
from lightning_da.main import main
from lightning_da.methods import ADDA, DANN, FineTune, MarginEnsemble
from lightning_da.networks.backbones import LeNet, TimmBackbone
from lightning_da.paths import methods
from lightning_da.served import Served
from lightning_da.store import client
from lightning_da.transferability.verdict import JUDGES, mean_ranks
from tests import toy
from tests.test_bad_input import latest
from tests.test_image_folders import fill
from tests.test_lstm import NETWORK, Pair, reviews
from tests.test_regression import write
from tests.test_server import free_port, started
from tests.toy import equal

SHORT = [
    *("--config", str(Path(__file__).parent / "short.yaml"), "--trainer.accelerator", "cpu"),
    *("--trainer.max_steps", "12", "--trainer.enable_progress_bar", "false"),
    "--trainer.callbacks+={class_path: lightning_da.callbacks.LogModel}",
]
IMAGES = [
    *("--config", "data/image_folders.yaml", "--data.root", "images", "--data.source", "art"),
    *("--data.target", "photo", "--data.image_size", "16", "--data.num_workers", "0", "--data.batch_size", "4"),
    "--model.backbone=LeNet",
]
VECTORS = [
    *("--config", "data/features.yaml", "--data.source", "one.npz", "--data.target", "two.npz"),
    *("--data.batch_size", "16", "--model.backbone={class_path: FeedForward, init_args: {hidden: [8]}}"),
]
VOICES = [
    *("--config", "data/speech.yaml", "--data.source", "source.csv", "--data.target", "target.csv"),
    *("--data.root", "pair", "--data.rate", "8000", "--data.batch_size", "4", "--model.train_on", "target"),
    "--model.backbone={class_path: FeedForward, init_args: {hidden: [8]}}",
]

SENTENCES = [
    *("--config", "data/sentences.yaml", "--data.source", "a.csv", "--data.target", "b.csv"),
    *("--data.batch_size", "8", "--data.max_length", "9", "--model.backbone.words", "300"),
]


def fitted(*words: str, method: str = "source_only") -> Run:
    main(["fit", "--config", f"method/{method}.yaml", *words, *SHORT])
    return latest()[0]


def model_of(run: Run) -> LoggedModel:
    (model,) = models_of(client(), client().get_run(run.info.run_id))
    return model


def place(model: LoggedModel) -> Path:
    return Path(model.artifact_location.removeprefix("file://"))


def predicted(run: Run) -> dict[str, tuple[str, float]]:
    """The class and its probability that `predict` gives to each sample."""
    main(["predict", "--ckpt_path", run.info.run_id])
    with Path("predictions.csv").open() as file:
        return {row["sample"]: (row["class"], float(row["probability"])) for row in csv.DictReader(file)}


def compare(answers: pd.DataFrame, expected: list[tuple[str, float]]) -> None:
    assert len(answers) == len(expected) > 1
    assert answers["class"].tolist() == [name for name, _ in expected]
    np.testing.assert_allclose(answers["probability"], [probability for _, probability in expected], atol=6e-5)
    for row in answers.to_dict("records"):
        found = row["probabilities"]
        assert max(found, key=found.get) == row["class"]
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- answers


def test_image_files_get_the_answers_of_predict(tmp_path: Path) -> None:
    fill(tmp_path / "images" / "art")
    fill(tmp_path / "images" / "photo", suffix="png")
    Image.new("L", (90, 31), 200).save(tmp_path / "images" / "photo" / "mug" / "grey.png")
    run = fitted(*IMAGES, "--data.resize", "20")
    expected = predicted(run)
    model = mlflow.pyfunc.load_model(str(place(model_of(run))))
    files = [(tmp_path / "images" / name).read_bytes() for name in expected]
    compare(model.predict(pd.DataFrame({"image": files})), list(expected.values()))
    with pytest.raises(MlflowException, match="sample 1, counted from 0: not a readable image"):
        model.predict(pd.DataFrame({"image": [files[0], b"text"]}))


def test_vectors_get_the_answers_of_predict(tmp_path: Path) -> None:
    toy.write_tables(tmp_path)
    run = fitted(*VECTORS, method="dann")
    expected = predicted(run)
    model = mlflow.pyfunc.load_model(str(place(model_of(run))))
    x = np.load(tmp_path / "two.npz")["x"].astype(np.float32)
    compare(model.predict(x[[int(name) for name in expected]]), list(expected.values()))
    assert model.predict(x[:1]).shape == (1, 3)
    with pytest.raises(ValueError, match=r"shape \(4,\), but the model reads \(5,\)"):
        Served(place(model_of(run)) / "data" / "network.pt2").outputs(x[:2, :4])


def test_texts_get_the_answers_of_predict(tmp_path: Path) -> None:
    """Of any length and with unknown words, as a table of them has them."""
    reviews(tmp_path / "a.csv", "book")
    reviews(tmp_path / "b.csv", "The pan, as I’ve said,", labelled=False)
    run = fitted(*SENTENCES)
    expected = predicted(run)
    assert len(expected) == 120
    model = mlflow.pyfunc.load_model(str(place(model_of(run))))
    texts = pd.read_csv(tmp_path / "b.csv")["text"].tolist()
    rows = [int(name.removeprefix("row ")) - 1 for name in expected]
    compare(model.predict(pd.DataFrame({"text": [texts[row] for row in rows]})), list(expected.values()))
    assert model.predict(pd.DataFrame({"text": [texts[rows[0]]]}))["class"].tolist() == [
        next(iter(expected.values()))[0]
    ]
    for wrong in (" ", None):
        with pytest.raises(MlflowException, match="sample 1, counted from 0: there is no text"):
            model.predict(pd.DataFrame({"text": [texts[0], wrong]}))


@pytest.mark.slow
def test_sound_files_get_the_answers_of_predict(pair: Path) -> None:
    run = fitted(*VOICES, method="speech_ffn")
    expected = predicted(run)
    model = mlflow.pyfunc.load_model(str(place(model_of(run))))
    sounds = [(pair / name).read_bytes() for name in expected]
    compare(model.predict(pd.DataFrame({"sound": sounds})), list(expected.values()))
    with pytest.raises(MlflowException, match="sample 0, counted from 0: a sound: not a readable sound file"):
        model.predict(pd.DataFrame({"sound": [b"text"]}))


def columns_of_predictions(run: Run) -> tuple[list[int], Tensor]:
    """The rows of a table of vectors that `predict` answers for, and the numbers that it writes."""
    main(["predict", "--ckpt_path", run.info.run_id])
    found = pd.read_csv("predictions.csv")
    return found.pop("sample").tolist(), torch.tensor(found.drop(columns="split").to_numpy())


def test_a_regression_gives_the_numbers_of_predict() -> None:
    """In the unit of the labels."""
    write(Path("one.npz"), unit=1000.0)
    write(Path("two.npz"), shift=5, unit=1000.0)
    run = fitted(*VECTORS, "--data.labels", "numbers", method="dann")
    assert NO_MODEL not in run.data.tags
    rows, expected = columns_of_predictions(run)
    assert expected.min() > 10_000
    x = np.load("two.npz")["x"][rows]
    logged = model_of(run)
    model = mlflow.pyfunc.load_model(str(place(logged)))
    answers = model.predict(x)
    assert (logged.model_type, answers.columns.tolist()) == ("regressor", ["value"])
    assert model.metadata.signature.outputs.input_names() == ["value"]
    np.testing.assert_allclose(answers, expected, rtol=1e-5)


@pytest.mark.slow
def test_metric_learning_gives_the_embeddings_of_predict() -> None:
    pytest.importorskip("pytorch_metric_learning")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        y = np.arange(240) % 24
        np.savez(f"{name}.npz", x=rng.normal(size=(24, 5))[y] + rng.normal(0, 0.3, (240, 5)), y=y)
    words = [word.replace("data/features", "data/identities") for word in VECTORS]
    run = fitted(*words, method="dtml")
    rows, expected = columns_of_predictions(run)
    model = mlflow.pyfunc.load_model(str(place(model_of(run))))
    answers = model.predict(np.load("two.npz")["x"].astype(np.float32)[rows])
    assert answers.columns.tolist() == ["embedding"]
    np.testing.assert_allclose(np.stack(answers["embedding"]), expected, rtol=1e-4, atol=1e-5)
    assert main(["export", run.info.run_id]).is_file()


@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_numbers_are_compared_in_the_scale_of_the_labels(mean: float) -> None:
    network, data = testing.build(FineTune, num_classes=1), toy.Toy()
    network.label_scale.fit(torch.tensor([mean - 100, mean + 100]))
    _, x = data.probe(exporting.PROBED)
    network.eval()
    answers = network.answers(network(x)).detach()
    assert answers.std() > 10
    for error, fine in ((1e-3, True), (0.1 + 2e-6 * mean, False), (torch.nan, False)):
        if fine:
            check(lambda given, error=error: answers[: len(given)] + error, network, data)  # type: ignore[misc]
            continue
        with pytest.raises(RunError, match="the program's values differ from those of the network by"):
            check(lambda given, error=error: answers[: len(given)] + error, network, data)  # type: ignore[misc]


# ---------------------------------------------------------------- programs


def images(size: int = 28, channels: int = 3, number: int = 20) -> DomainPairDataModule:
    """Two domains of noise as small images."""

    class Noise(DomainPairDataModule):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            generator = torch.Generator().manual_seed(len(domain + split))
            x = torch.randint(256, (number, channels, size, size), generator=generator, dtype=torch.uint8)
            return TensorDomain(x, torch.arange(number) % 2, ["even", "odd"])

    return Noise("a", "bb", 4)


@pytest.mark.parametrize("name", toy.each(toy.METHODS))
def test_every_method_is_exported(name: str, tmp_path: Path) -> None:
    """In evaluation mode, of the target, and without the weights that only training needs."""
    data = toy.Toy()
    network = toy.build(name, standardize="per_domain", freeze=1)
    if network.num_classes > len(data.classes):
        data.class_sets = "open"
    network.fit_inputs(data)
    program = export(network, data)
    _, x = data.probe(300)
    network.set_domain("target")
    np.testing.assert_allclose(program.module()(x), network.eval()(x).softmax(dim=1).detach(), atol=1e-5)
    assert not any("discriminator" in key or "source" in key or "_counted" in key for key in program.state_dict)
    save(program, tmp_path / "x.pt2", network, data)
    served = Served(tmp_path / "x.pt2")
    np.testing.assert_allclose(served.outputs(list(x.numpy())), program.module()(x), atol=1e-6)
    assert served.classes == data.classes


def test_an_ensemble_and_separate_batch_norms_are_exported() -> None:
    data = images()
    backbone = partial(LeNet, batch_norm=True)
    shape: dict[str, Any] = {"num_classes": 2, "input_shape": (3, 28, 28), "backbone": backbone}
    members = [DANN(batch_norm="per_domain", **shape), FineTune(**shape), ADDA(**shape)]
    for member in members:  # statistics of the two domains that differ
        for norm in member.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
    given, x = data.probe(20)
    assert given.dtype == torch.uint8
    for network in (members[0], MarginEnsemble(2, (3, 28, 28), list(members))):
        program = export(network, data).module()
        network.set_domain("target")
        np.testing.assert_allclose(program(given), network(x).softmax(dim=1), atol=1e-5)
    members[0].set_domain("source")
    assert not torch.allclose(members[0](x).softmax(dim=1), export(members[0], data).module()(given))


OF_OTHER_DATA = ("amn", "class_embedding", "dap", "ddml", "dstml", "dtml", "stml", "segmentation", "unet")
"""Methods that read words, descriptions, identities or masks."""
SMALL = {
    "tradaboost": ("--data.target_labels", "3/class"),
    "osbp": ("--data.class_sets", "open"),
    "ati": ("--data.class_sets", "open"),
    "cotrans": ("--model.forest_reads", "lightning_da.networks.Raw"),
    "taisl": ("--model.estimator.shape", "[5]"),
    **dict.fromkeys(("conservative", "fine_tune", "gradual_unfreezing", "progressive"), ("--after", "source_only")),
    **dict.fromkeys(
        ("bda", "djp_mmd", "gfk", "jda", "jgsa", "meda", "subspace_alignment", "tca", "tjm", "vda"),
        ("--model.estimator.dim", "3"),
    ),
}
"""Options for five features."""


@pytest.mark.slow
@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    "name", sorted(set(methods()) - {"vgg16", *toy.OF_PICTURES, *OF_OTHER_DATA})
)  # weights of vgg16 are downloaded; for its network see below
def test_each_shipped_method_logs_a_model(name: str, tmp_path: Path) -> None:
    toy.write_tables(tmp_path)
    words = VOICES if name.startswith("speech") else VECTORS
    if name in ("speech_gender", "speech_speaker"):
        words = [word for word in VOICES if word not in ("--model.train_on", "target")]
    run = fitted(*words, *SMALL.get(name, ()), "--trainer.max_steps", "2", method=name)
    if NO_MODEL in run.data.tags:
        assert name in ("artl", "ati", "gfk", "jdot", "meda", "optimal_transport", "tradaboost")
        assert "is no affine map and linear classifier" in run.data.tags[NO_MODEL]
        return
    assert model_of(run).status == "READY"


BACKBONES = ["resnet50", "mobilenetv2_100", "vgg16", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("written", ["torch", "onnx"])
def test_backbones_of_timm_are_exported(name: str, written: str, tmp_path: Path) -> None:
    """On smaller images than theirs where they allow it."""
    size = 224 if "swin" in name or "vit" in name else 64
    data = images(size, number=8)
    args: dict[str, Any] = {"flatten": True} if name == "vgg16" else {}
    backbone = partial(TimmBackbone, model=name, **args)
    network = FineTune(num_classes=2, input_shape=(3, size, size), backbone=backbone)
    program = export(network, data)
    if written == "onnx":
        check(exporting.save_onnx(program, tmp_path / "x.onnx", network, data), network, data)


class Wrong(FineTune):
    """A network whose answers depend on the mode of Python, which a program does not keep."""

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().classify(x)
        return features, logits + (5.0 * torch.compiler.is_compiling()) * torch.arange(logits.shape[1])


class Branching(FineTune):
    """A network that cannot be exported: what it computes depends on the values of a batch."""

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().classify(x)
        return (features, logits) if float(x.mean()) > 0 else (features, -logits)


def test_the_chosen_checkpoint_is_logged_and_the_network_stays_as_it_is(tmp_path: Path) -> None:
    """With a monitor, `test` and `predict` read other weights than those of the last step."""
    toy.write_tables(tmp_path)
    choose = {"monitor": "val/source/acc", "mode": "min", "save_on_train_epoch_end": False}
    words = [*VECTORS, *SHORT, "--trainer.max_steps", "60", "--trainer.limit_val_batches", "3"]
    given = json.dumps([{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": choose}])
    plain = [word for word in words if "LogModel" not in word]
    alone = main(["fit", "--config", "method/source_only.yaml", *plain, f"--trainer.callbacks={given}"])
    logged = "--trainer.callbacks+={class_path: lightning_da.callbacks.LogModel}"
    cli = main(["fit", "--config", "method/source_only.yaml", *plain, f"--trainer.callbacks={given}", logged])
    assert equal(alone.model.state_dict(), cli.model.state_dict())
    for one, other in ((alone.model.modules(), "training"), (alone.model.parameters(), "requires_grad")):
        there = cli.model.modules() if other == "training" else cli.model.parameters()
        assert [getattr(part, other) for part in one] == [getattr(part, other) for part in there]
    run = latest()[0]
    best = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert not equal(best["state_dict"], cli.model.state_dict())
    assert [output.step for output in run.outputs.model_outputs] == [best["global_step"]]  # type: ignore[union-attr]
    expected = predicted(run)
    model = mlflow.pyfunc.load_model(str(place(model_of(run))))
    x = np.load(tmp_path / "two.npz")["x"].astype(np.float32)
    compare(model.predict(x[[int(name) for name in expected]]), list(expected.values()))


def test_a_program_with_other_answers_is_refused() -> None:
    with pytest.raises(RunError, match="the program's probabilities differ from those of the network by"):
        export(testing.build(Wrong), toy.Toy())


def test_a_fit_whose_network_cannot_be_exported_goes_on_and_says_so(tmp_path: Path) -> None:
    toy.write_tables(tmp_path)
    with pytest.warns(UserWarning, match="no model is logged, since the network cannot be exported"):
        run = fitted(*VECTORS, "--model=tests.test_models.Branching")
    assert run.info.status == "FINISHED"
    assert "checkpoint" in run.data.tags
    assert run.data.tags[NO_MODEL].count("\n") == 0
    assert not models_of(client(), run)
    with pytest.raises(SystemExit):
        main(["export", run.info.run_id])
    assert not list(tmp_path.glob("*.pt2"))


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    "reads",
    [Numbers((2, 3)), Images((5, 7), 1), Images((5, 7), 3, 8, (0.1,) * 3), Sounds("functionals", 8000), Texts(6)],
)
def test_an_input_is_the_same_after_json(reads: Any) -> None:
    again: Any = of_description(json.loads(json.dumps(described(reads))))
    assert type(again) is type(reads)
    assert torch.equal(again.blank, reads.blank)
    x = torch.stack([reads.blank, reads.blank + 3])
    assert torch.equal(again.scaled(x), reads.scaled(x))
    if not isinstance(reads, Numbers):
        assert again.read(again.example()).shape == reads.blank.shape


def test_small_images_of_any_size_become_samples() -> None:
    reads = Images((28, 28), 1)
    pixels = (np.arange(28)[:, None] * 5 + np.arange(28) * 4).astype(np.uint8)
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    assert np.array_equal(reads.read(content.getvalue())[0], pixels)
    large = BytesIO()
    Image.fromarray(pixels).resize((280, 280)).save(large, "PNG")
    near = reads.read(large.getvalue())[0].float() - torch.from_numpy(pixels)
    assert near.abs().max() < 5
    assert reads.scaled(torch.full((1, 1, 28, 28), 255)).max() == 1


def test_a_transform_of_ones_own_reads_what_the_network_reads(tmp_path: Path) -> None:
    class Mirrored(ImageFolders):
        def _transform(self, split: str) -> Any:
            usual = super()._transform(split)
            return lambda image: usual(image).flip(2)

    fill(tmp_path / "art")
    fill(tmp_path / "photo", suffix="png")
    data = Mirrored(str(tmp_path), "art", "photo", image_size=8, num_workers=0)
    assert data.reads == Numbers((3, 8, 8))
    given, x = data.probe(2)
    assert torch.equal(given, x)


# ---------------------------------------------------------------- the store


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on vectors that was fitted and tested; its data are beside it."""
    folder = tmp_path_factory.mktemp("tested")
    toy.write_tables(folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        run = fitted(*VECTORS, "--data.root", str(folder), "--trainer.logger.experiment_name", "leaving", method="dann")
        main(["test", "--ckpt_path", run.info.run_id])
    finally:
        os.chdir(here)
    return client().get_run(run.info.run_id)


def test_a_model_is_linked_to_step_data_and_metrics(tested: Run) -> None:
    model = model_of(tested)
    assert (model.status, model.source_run_id) == ("READY", tested.info.run_id)
    assert [(output.model_id, output.step) for output in tested.outputs.model_outputs] == [(model.model_id, 12)]  # type: ignore[union-attr]
    sets = {tag.value: part.dataset for part in tested.inputs.dataset_inputs for tag in part.tags}  # type: ignore[union-attr]
    assert set(sets) == {"source/train", "target/unlabelled", "source/test", "target/test"}
    assert {sets["source/train"].name, sets["target/test"].name} == {"one.npz", "two.npz"}
    assert len({part.digest for part in sets.values()}) == 4
    linked = {metric.key: metric for metric in model.metrics or []}
    assert linked["test/target/acc"].value == tested.data.metrics["test/target/acc"]
    assert linked["test/target/acc"].dataset_digest == sets["target/test"].digest
    assert linked["test/source/acc"].dataset_digest == sets["source/test"].digest
    assert linked["val/target/acc"].dataset_digest is None
    for key in linked:  # the link adds no point
        steps = [point.step for point in client().get_metric_history(tested.info.run_id, key)]
        assert len(set(steps)) == len(steps)


def test_the_digest_of_a_data_set_changes_with_its_content(tmp_path: Path) -> None:
    toy.write_tables(tmp_path)
    first, same = (
        dict(zip(("one", "two"), toy.Toy(number=number).sets(("source",), ()), strict=False)) for number in (320, 320)
    )
    other = dict(zip(("one", "two"), toy.Toy(number=321).sets(("source",), ()), strict=False))
    assert first == same != other


def test_one_data_set_for_training_and_test_has_both_contexts() -> None:
    class Whole(toy.Toy):
        def dataset(self, domain: str, split: str) -> TensorDomain:  # noqa: ARG002
            return super().dataset(domain, "train")

    assert [uses for *_, uses in Whole().sets(("source",), ("target",))] == [
        "source/train, source/test",
        "target/unlabelled, target/test",
    ]


def test_a_fit_that_goes_on_leaves_one_model(tmp_path: Path) -> None:
    toy.write_tables(tmp_path)
    run = fitted(*VECTORS)
    first = model_of(run)
    main(["fit", "--ckpt_path", run.info.run_id, "--trainer.max_steps", "20"])
    second = model_of(run)
    assert second.model_id != first.model_id
    outputs = client().get_run(run.info.run_id).outputs.model_outputs  # type: ignore[union-attr]
    assert [output.step for output in outputs if output.model_id == second.model_id] == [20]


WITHOUT = """
import pickle, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lightning_da", "lightning", "timm", "torchvision"):
            raise ModuleNotFoundError(name)
def refuse(*args, **kwargs):
    raise AssertionError("unpickled")
sys.meta_path.insert(0, Refused())
import mlflow.pyfunc
pickle.load = pickle.loads = refuse
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(model.input_example).to_json(orient="records"))
"""


def answer_without(model: Path, folder: Path) -> dict[str, Any]:
    """What a model answers to its example where neither this project nor pickle is."""
    settings = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(model)],
        env=os.environ | settings,
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert found.returncode == 0, found.stderr
    (answer,) = json.loads(found.stdout)
    return answer  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_model_loads_without_the_project_and_without_pickle(tested: Run, tmp_path: Path) -> None:
    model = place(model_of(tested))
    answer = answer_without(model, tmp_path)
    here = Served(model / "data" / "network.pt2").outputs(list(np.zeros((1, 5))))
    np.testing.assert_allclose(list(answer["probabilities"].values()), here[0], atol=1e-6)
    requirements = (model / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "lightning" not in requirements


# ---------------------------------------------------------------- commands


def test_register_gives_the_row_of_the_table_as_tags(tested: Run, capsys: pytest.CaptureFixture[str]) -> None:
    version = main(["register", tested.info.run_id, "--alias", "champion"])
    assert (version.name, int(version.version)) == ("one-two", 1)
    assert "--model-uri models:/one-two@champion " in capsys.readouterr().out
    main(["register", tested.info.run_id])  # a second time, nothing changes
    (there,) = client().search_model_versions("name = 'one-two'")
    model = model_of(tested)
    assert there.source == f"models:/{model.model_id}"
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "one-two", "version": 1}]
    assert there.tags["method"] == "dann"
    assert there.tags["target acc"] == f"{tested.data.metrics['test/target/acc']:.3f}"
    assert there.tags["chosen"] == "last epoch"
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    loaded = mlflow.pyfunc.load_model("models:/one-two@champion")
    assert loaded.predict(np.zeros((2, 5), dtype=np.float32)).shape == (2, 3)
    assert int(client().get_model_version_by_alias(there.name, "champion").version) == 1


def test_register_refuses_what_cannot_be_registered(tested: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["nothing"], "'nothing' is no checkpoint file"),
        ([tested.info.run_id, "--name", "a/b"], "register: MLflow refuses it"),
        ([tested.info.run_id, "--name", "numbered", "--alias", "v1"], "register: MLflow refuses it"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["register", *words])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not client().search_registered_models("name = 'numbered'")


def test_register_takes_the_figures_of_the_run_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of a later run with the same settings and seed; a run without a test has none."""
    toy.write_tables(tmp_path)
    words = (*VECTORS, "--trainer.logger.experiment_name", "again")
    first = fitted(*words)
    with pytest.raises(SystemExit):
        main(["register", first.info.run_id])
    assert f"{first.info.run_id!r} is not tested" in capsys.readouterr().err
    main(["test", "--ckpt_path", first.info.run_id, *SHORT])
    later = fitted(*words)
    with pytest.raises(SystemExit):
        main(["register", later.info.run_id])
    assert f"{later.info.run_id!r} is not tested" in capsys.readouterr().err
    main(["test", "--ckpt_path", later.info.run_id, *SHORT])
    for run, value in ((first, 0.123), (later, 0.456)):
        client().log_metric(run.info.run_id, "test/target/acc", value)
        assert main(["register", run.info.run_id, "--name", "own"]).tags["target acc"] == f"{value:.3f}"


def test_export_writes_files_that_answer_alike(tested: Run) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = main(["export", tested.info.run_id])
    assert path == Path("dann-one-two-s0.pt2")
    written = path.read_bytes()
    with pytest.raises(SystemExit):
        main(["export", tested.info.run_id])
    assert path.read_bytes() == written
    x = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    extra = {"model.json": ""}
    plain = torch.export.load(path, extra_files=extra).module()(torch.from_numpy(x)).numpy()
    assert json.loads(extra["model.json"])["classes"] == ["0", "1"]
    logged = mlflow.pyfunc.load_model(str(place(model_of(tested))))
    np.testing.assert_allclose(plain.max(axis=1), logged.predict(x)["probability"], atol=1e-6)
    assert main(["export", tested.info.run_id, "--onnx", "--output", "net.onnx"]) == Path("net.onnx")
    session = onnxruntime.InferenceSession("net.onnx")
    for number in (9, 1):
        np.testing.assert_allclose(session.run(None, {"samples": x[:number]})[0], plain[:number], atol=1e-5)
    described = json.loads(session.get_modelmeta().custom_metadata_map["model.json"])
    assert described["classes"] == ["0", "1"]


def test_export_names_what_onnx_has_not(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = Pair()
    network = testing.build(FineTune, **NETWORK)
    network.fit_inputs(data)
    with pytest.raises(RunError, match=r"--onnx: ONNX has no aten\.searchsorted, which the network needs; leave out"):
        exporting.save_onnx(export(network, data), tmp_path / "x.onnx", network, data)
    assert not list(tmp_path.iterdir())


def test_export_names_the_extra_that_is_missing(
    tested: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit) as stop:
        main(["export", tested.info.run_id, "--onnx"])
    assert stop.value.code == 2
    assert (
        "onnxruntime is missing; install the extra onnx: .venv/bin/pip install -e '.[onnx]'" in capsys.readouterr().err
    )
    assert not list(Path().glob("*.onnx"))


@pytest.mark.slow
def test_of_a_sweep_the_model_is_registered_that_is_chosen_without_target_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_tables(tmp_path)
    main(
        [
            *("sweep", "--methods", "source_only", "dann", "--seeds", "0", "1", "--jobs", "1", *VECTORS, *SHORT),
            "--trainer.callbacks+={class_path: lightning_da.callbacks.LabelFreeScores}",
            *("--trainer.logger.experiment_name", "chosen", "--trainer.logger.tags={team: blue}"),
        ]
    )
    said = capsys.readouterr().out
    (chosen,) = re.findall(r"chosen without target labels: (\w+)", said)
    grid = next(run for run in latest(10) if "grid" in run.data.tags)
    children = [run for run in latest(10) if run.data.tags.get("mlflow.parentRunId") == grid.info.run_id]
    assert {run.data.tags["team"] for run in (grid, *children)} == {"blue"}
    version = main(["register", grid.info.run_name or "", "--name", "best", "--alias", "champion"])
    of_method = [run for run in children if run.data.params["method"] == chosen]
    scores = [[run.data.metrics[f"score/{name}"] for name in JUDGES] for run in of_method]
    ranks = mean_ranks(scores)
    best = [
        f"models:/{model_of(run).model_id}" for run, rank in zip(of_method, ranks, strict=True) if rank == max(ranks)
    ]
    assert version.source in best
    assert version.tags["seeds"] == "2"
    assert f"chosen without target labels: {chosen}" in version.tags["chosen"]
    assert version.tags["target acc"] in said


def test_load_and_memory_of_the_machine_are_logged_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    toy.write_tables(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run = fitted(*VECTORS)
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert not any(key.startswith("system/") for key in fitted(*VECTORS).data.metrics)


# ---------------------------------------------------------------- a server


@contextmanager
def serving(model: LoggedModel, folder: Path) -> Iterator[Callable[[str], Any]]:
    """`mlflow models serve` on this machine; yields a function that posts a file of JSON with curl."""
    port = free_port()
    command = ["models", "serve", "--model-uri", f"models:/{model.model_id}", "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    settings = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": "", "PATH": path}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log, stderr=log, cwd=folder, env=os.environ | settings, start_new_session=True,
        )  # fmt: skip

        def post(content: str) -> Any:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", content.encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return pd.DataFrame(json.loads(answer.read())["predictions"])

        try:
            started(port, "/ping", server)
            yield post
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "vector", "sound", "text"])
def test_a_server_gives_the_answers_of_predict(kind: str, tmp_path: Path, pair: Path) -> None:
    """An image and a sound as the content of a file, in base64; a vector as numbers; a sentence as it is."""
    if kind == "image":
        for name in ("art", "photo"):
            fill(tmp_path / "images" / name)
        run = fitted(*IMAGES)
        expected, folder = predicted(run), tmp_path / "images"
    elif kind == "sound":
        run = fitted(*VOICES, method="speech_ffn")
        expected, folder = predicted(run), pair
    elif kind == "text":
        reviews(tmp_path / "a.csv", "book")
        reviews(tmp_path / "b.csv", "a „pan“")
        run = fitted(*SENTENCES)
        expected, folder = predicted(run), tmp_path
        assert "class" in answer_without(place(model_of(run)), tmp_path)
    else:
        toy.write_tables(tmp_path)
        run = fitted(*VECTORS)
        expected, folder = predicted(run), tmp_path
    few = dict(list(expected.items())[:5])
    if kind == "vector":
        x = np.load(folder / "two.npz")["x"]
        content: dict[str, Any] = {"inputs": [x[int(name)].tolist() for name in few]}
    elif kind == "text":
        texts = pd.read_csv(folder / "b.csv")["text"]
        rows = [int(name.removeprefix("row ")) - 1 for name in few]
        content = {"dataframe_split": {"columns": [kind], "data": [[texts[row]] for row in rows]}}
    else:
        files = [base64.b64encode((folder / name).read_bytes()).decode() for name in few]
        content = {"dataframe_split": {"columns": [kind], "data": [[file] for file in files]}}
    with serving(model_of(run), tmp_path) as post:
        compare(post(json.dumps(content)), list(few.values()))
        example = (place(model_of(run)) / "serving_input_example.json").read_text()
        assert len(post(example)) == 1
        with pytest.raises(urllib.error.HTTPError) as wrong:
            post('{"inputs": [["a"]]}')
        assert wrong.value.code == 400
        if kind == "image":
            damaged = {"dataframe_split": {"columns": [kind], "data": [[base64.b64encode(b"text").decode()]]}}
            with pytest.raises(urllib.error.HTTPError) as wrong:
                post(json.dumps(damaged))
            assert wrong.value.code == 400
            said = json.load(wrong.value)
            assert "sample 0, counted from 0: not a readable image" in said["message"]
            assert "stack_trace" not in said


@pytest.mark.slow
def test_a_server_and_an_exported_file_give_the_numbers_of_predict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    write(Path("one.npz"))
    write(Path("two.npz"), shift=5)
    run = fitted(*VECTORS, "--data.labels", "numbers")
    rows, expected = columns_of_predictions(run)
    x = np.load("two.npz")["x"][rows[:5]]
    assert set(answer_without(place(model_of(run)), tmp_path)) == {"value"}
    with serving(model_of(run), tmp_path) as post:
        np.testing.assert_allclose(post(json.dumps({"inputs": x.tolist()})), expected[:5], rtol=1e-5)
    capsys.readouterr()
    main(["export", run.info.run_id, "--onnx", "--output", "net.onnx"])
    assert capsys.readouterr().out == "net.onnx: from samples (n, 8) of float32 to values (n, 1)\n"
    session = onnxruntime.InferenceSession("net.onnx")
    np.testing.assert_allclose(session.run(["values"], {"samples": x})[0], expected[:5], rtol=1e-5)
    main(["test", "--ckpt_path", run.info.run_id, *SHORT])
    version = main(["register", run.info.run_id, "--name", "numbers", "--alias", "champion"])
    found = client().get_run(run.info.run_id).data.metrics["test/target/rmse"]
    assert float(version.tags["target rmse"]) == pytest.approx(found, rel=1e-3)
