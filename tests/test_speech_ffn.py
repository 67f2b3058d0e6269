"""Speech transfer: standardisation in the checkpoint, the second stage, domain losses beside it, the ensemble."""

import csv
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import precision_score, recall_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from lightning_da.callbacks import test_figures as figures
from lightning_da.callbacks.test_figures import per_class
from lightning_da.callbacks.transfer_curve import TransferCurve
from lightning_da.data import SpeechCorpora
from lightning_da.errors import ConfigError
from lightning_da.main import main
from lightning_da.methods import DeepCORAL, FineTune, MarginEnsemble
from lightning_da.methods.classifier import scores
from lightning_da.methods.margin_ensemble import join_by_margin
from lightning_da.networks.backbones import FeedForward
from lightning_da.networks.standardize import Standardize, moments
from lightning_da.networks.weights import load_weights
from lightning_da.paths import PROJECT
from lightning_da.store import client
from lightning_da.tracking import find_fit
from tests import toy, voices

CONF = PROJECT / "conf"


BACKBONE = partial(FeedForward, hidden=[16, 8], activation="sigmoid")


def speech(**given: Any) -> FineTune:
    """As conf/method/speech_ffn.yaml has it."""
    defaults: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": BACKBONE, "optimizer": toy.ADAM}
    return FineTune(**(defaults | {"train_on": "target", "standardize": True} | given))


# ---------------------------------------------------------------- standardisation


@pytest.mark.parametrize("shape", [(100, 5), (40, 3, 4, 6)])
def test_moments_are_those_of_the_whole_whatever_the_parts(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(1e3, 0.1, shape)
    x[:, 1] = 0.1  # constant, and not exact in floating point
    over = (0, 2, 3)[: len(shape) - 1]
    mean, std = moments([torch.from_numpy(part) for part in (x[:7], x[7:8], x[8:])])
    np.testing.assert_allclose(mean.numpy(), x.mean(over, keepdims=True), rtol=1e-6)
    expected = x.std(over, keepdims=True)
    expected[:, 1] = 1
    np.testing.assert_allclose(std.numpy(), expected, rtol=1e-5)
    assert mean.dtype == std.dtype == torch.float32


def test_the_numbers_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    module = toy.fit(speech(), 3)
    module.trainer.save_checkpoint(tmp_path / "one.ckpt")
    L.seed_everything(9, verbose=False)
    fresh = speech()
    fresh.load_state_dict(torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"])
    x = torch.randn(5, 8)
    assert torch.equal(fresh.eval()(x), module.eval()(x))
    assert isinstance(fresh.standardize, Standardize)
    assert not torch.equal(fresh.standardize.std, torch.ones(1, 8))


# ---------------------------------------------------------------- the second stage


@pytest.fixture
def first_stage(tmp_path: Path) -> Path:
    L.seed_everything(1, verbose=False)
    path = tmp_path / "first.ckpt"
    toy.fit(speech(train_on="source", num_classes=3), 20).trainer.save_checkpoint(path)
    return path


class Start(L.Callback):
    """Keeps the weights that training starts with."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 0:
            self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}


def test_the_second_stage_starts_as_the_first_ended_but_for_the_output_layer(first_stage: Path) -> None:
    L.seed_everything(2, verbose=False)
    module, start = speech(init_from=str(first_stage), freeze=1), Start()
    new = {key: value.clone() for key, value in module.state_dict().items() if key.startswith("head.")}
    toy.fit(module, 10, callbacks=[start])
    before = torch.load(first_stage, weights_only=True)["state_dict"]
    for key, value in start.state.items():
        if key.startswith("backbone."):
            assert torch.equal(value, before[key]), key
        elif key.startswith("head."):
            assert torch.equal(value, new[key]), key
            assert not torch.equal(value, before[key]), key
    after = module.state_dict()
    moved = {
        key for key in after if key.startswith(("backbone.", "head.")) and not torch.equal(after[key], before[key])
    }
    assert {key.split(".")[1] for key in moved if key.startswith("backbone.")} == {"fc2"}  # the first layer is frozen


def test_the_network_is_sigmoid_and_of_the_given_widths() -> None:
    module = speech(backbone=partial(FeedForward, hidden=[7, 5], activation="sigmoid"), standardize=False)
    x = torch.randn(4, 8, dtype=torch.float64)
    module = module.double()
    (w1, b1), (w2, b2), (w3, b3) = ((layer.weight, layer.bias) for layer in linear_layers(module))
    expected = torch.sigmoid(torch.sigmoid(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    torch.testing.assert_close(module(x), expected)
    assert module.depths == ["fc1", "fc2", "bottleneck", "head"]


def linear_layers(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]


# ---------------------------------------------------------------- a domain loss beside labels of the target


# weights of kernels, soft labels or weights of classes move with every step, and with them the loss; the first stage
# has no hash layer; a memory network has other layers
@pytest.mark.parametrize(
    "method", [name for name in toy.ON_ONE_NETWORK if name not in ("dan", "domain_confusion", "pada", "dhn", "amn")]
)
@pytest.mark.parametrize("train_on", ["target", "both"])
def test_a_domain_loss_stands_beside_labels_of_the_target(method: str, train_on: Any, first_stage: Path) -> None:
    layers: dict[str, Any] = {} if method in toy.OF_HEAD_INPUT else {"layers": ("fc2", "head")}
    module = toy.build(
        method,
        backbone=BACKBONE,
        train_on=train_on,
        init_from=str(first_stage),
        standardize=True,
        optimizer=toy.ADAM,
        **layers,
    )
    data = toy.Toy()
    toy.trainer(2, limit_val_batches=0).fit(module, data)
    batch = next(iter(data.train_dataloader()))[0]
    assert isinstance(batch["target"], tuple | list)
    assert isinstance(batch["source"], Tensor) == (train_on == "target")
    # both losses reach the network
    gradients = []
    for weight, labels in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
        module.zero_grad()
        module._domain_weight, module._domain_schedule = weight, lambda _: 1.0
        module.log = module.log_dict = lambda *_, **__: None
        whole = module.task_loss
        module.task_loss = lambda logits, y, w=labels, f=whole: w * f(logits, y)
        L.seed_everything(0, verbose=False)
        module.training_step(batch, 0).backward()
        module.task_loss = whole
        gradient = linear_layers(module)[0].weight.grad
        assert gradient is not None
        gradients.append(gradient.clone())
    both, task, domain = gradients
    assert task.norm() > 0
    assert domain.norm() > 0
    torch.testing.assert_close(both, task + domain, rtol=1e-3, atol=1e-6)


def test_without_a_weight_the_domain_loss_changes_nothing(first_stage: Path) -> None:
    given: dict[str, Any] = {
        "num_classes": 3,
        "input_shape": (8,),
        "backbone": BACKBONE,
        "train_on": "target",
        "init_from": str(first_stage),
        "optimizer": toy.ADAM,
    }
    states = []
    for method in (FineTune, lambda **kw: DeepCORAL(domain_weight=0.0, batch_norm="joint", **kw)):
        L.seed_everything(4, verbose=False)
        states.append(toy.fit(method(**given), 15).state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_joint_and_separate_passes_are_one_without_batch_norm(first_stage: Path) -> None:
    states = []
    for passes in ("joint", "separate"):
        given: dict[str, Any] = {"batch_norm": passes, "train_on": "both", "init_from": str(first_stage)}
        states.append(toy.fit(toy.build("dann", backbone=BACKBONE, layers=("fc2",), **given), 10).state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- curves and figures


def test_curves_over_the_two_hidden_layers(first_stage: Path) -> None:
    curve = TransferCurve(every_n_epochs=0, samples=100, measures=("a_distance", "mmd", "logme"))
    module = speech(init_from=str(first_stage))
    toy.trainer(5, limit_val_batches=0, callbacks=[curve]).fit(module, toy.Toy())
    trained = curve.table[curve.table["network"] == "trained"]
    assert list(trained[trained["measure"] == "mmd"]["layer"]) == ["fc1", "fc2", "bottleneck", "head"]
    assert trained["value"].notna().all()
    # that of the start is a network which has learnt already
    start = curve.table[(curve.table["network"] == "start") & (curve.table["layer"] == "fc2")]
    untrained = curve.table[(curve.table["network"] == "untrained") & (curve.table["layer"] == "fc2")]
    assert not np.allclose(start["value"], untrained["value"])


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    # class 4 is never predicted, class 5 does not occur, class 6 neither
    y, predicted = rng.integers(5, size=200), rng.choice([0, 1, 2, 3, 5], size=200)
    found = scores(multiclass_confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(y), 7))
    assert float(found["acc"]) == pytest.approx((y == predicted).mean())
    assert float(found["class_acc"]) == pytest.approx(recall_score(y, predicted, average="macro", labels=range(5)))
    assert float(found["class_precision"]) == pytest.approx(
        precision_score(y, predicted, average="macro", zero_division=0)
    )


def test_the_table_of_the_classes() -> None:
    counts = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    frame = per_class([np.zeros((3, 3)), counts], ["here", "there"], ["a", "b", "c"])
    assert list(frame["domain"]) == ["there"] * 3
    assert list(frame["samples"]) == [4, 4, 0]
    np.testing.assert_allclose(frame["recall"], [0.75, 0.5, np.nan])
    np.testing.assert_allclose(frame["precision"], [0.6, 2 / 3, np.nan])


# ---------------------------------------------------------------- the ensemble


def test_the_paper_s_rule_by_hand() -> None:
    first = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).double()
    second = torch.tensor([[0.1, 0.8, 0.1], [0.0, 0.0, 1.0], [0.0, 0.5, 0.25], [0.4, 0.3, 0.3]]).double()
    # margins .2 against .7, .05 against 1, .25 against .25 (a tie, which the first net wins), .25 against .1
    chosen = join_by_margin([first, second])
    assert torch.equal(chosen, torch.stack([second[0], second[1], first[2], first[3]]))
    assert chosen.argmax(dim=1).tolist() == [1, 2, 0, 1]
    third = torch.tensor([[0.9, 0.1, 0.0]] * 4).double()
    assert join_by_margin([first, second, third]).argmax(dim=1).tolist() == [0, 2, 0, 0]


def configs(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(CONF / f"{name}.yaml"))]


HIDDEN = "--model.init_args.backbone.init_args.hidden"
QUIET = [
    *("--config", str(PROJECT / "tests" / "short.yaml")),
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger.init_args.experiment_name=speech",
]


def words(pair: Path, *more: str) -> list[str]:
    return [
        *configs("data/speech"),
        *QUIET,
        f"--data.init_args.root={pair}",
        "--data.init_args.source=source.csv",
        "--data.init_args.target=target.csv",
        "--data.init_args.batch_size=4",
        "--trainer.max_steps=20",
        *more,
    ]


def run(cli: Any) -> Any:
    return client().get_run(cli.trainer.logger.run_id)


@pytest.mark.slow
def test_from_two_stages_to_an_ensemble_and_a_sound(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    drawn: list[Any] = []
    draw = figures.before_after_figure

    def keep(*given: Any) -> Any:
        drawn.append(given[0])
        return draw(*given)

    monkeypatch.setattr(figures, "before_after_figure", keep)
    for hidden in ("[16, 8]", "[24, 12]"):
        cli = main(["fit", *configs("method/speech_ffn"), *words(pair, f"{HIDDEN}={hidden}", f"--name=net{hidden}")])
        first = client().get_run(run(cli).data.tags["started_from"])
        assert (first.data.params["method"], first.data.params["task"]) == ("speech_speaker", "speaker")
        assert first.data.params["backbone.hidden"] == hidden
        test = main(["test", "--ckpt_path", run(cli).info.run_id])
        assert {"test/target/acc", "test/target/class_precision"} <= set(run(test).data.metrics)
        files = {file.path for file in client().list_artifacts(run(cli).info.run_id)}
        assert {"per_class.csv", "confusion.png", "embedding.png", "before_after.png"} <= files
        runs.append(run(cli).info.run_id)
    # the picture of the start has left the weights alone
    assert torch.equal(
        test.model.backbone.get_submodule("fc1.0").weight, cli.model.backbone.get_submodule("fc1.0").weight
    )

    x = test.datamodule.dataset("target.csv", "test").x
    after = test.model.eval().features(x)
    load_weights(test.model, find_fit(first.info.run_id).checkpoint, test.model.initialised)
    for pictured, network in zip(drawn[-1], (test.model.features(x), after), strict=True):
        np.testing.assert_allclose(pictured, network.detach().numpy(), atol=1e-5)
    assert np.abs(drawn[-1][0] - drawn[-1][1]).max() > 1e-3

    experiment = "--trainer.logger.init_args.experiment_name=speech"
    joined = client().get_run(main(["ensemble", *runs, experiment]).logger.run_id)
    assert joined.data.tags["started_from"] == ", ".join(runs)
    assert joined.info.run_name == "margin_ensemble-source-target-s0"
    files = {file.path for file in client().list_artifacts(joined.info.run_id)}
    assert files == {"checkpoints", "config.yaml", "per_class.csv", "confusion.png", "embedding.png"}
    learnt = [torch.load(find_fit(one).checkpoint, weights_only=True)["state_dict"] for one in runs]
    for first_run in runs:  # the ensemble's checkpoint is whole
        Path(find_fit(first_run).checkpoint).unlink()
    tested = main(["test", "--ckpt_path", joined.info.run_id])
    assert run(tested).info.run_id == joined.info.run_id
    for network, weights in zip(tested.model.networks, learnt, strict=True):
        assert all(torch.equal(network.state_dict()[key], value) for key, value in weights.items())
    networks = [network.eval()(x).softmax(dim=1) for network in tested.model.networks]
    expected = join_by_margin(networks)
    torch.testing.assert_close(tested.model.eval()(x).softmax(dim=1), expected)
    assert not torch.equal(networks[0], networks[1])
    accuracy = float((expected.argmax(dim=1) == tested.datamodule.dataset("target.csv", "test").y).double().mean())
    assert run(tested).data.metrics["test/target/acc"] == pytest.approx(accuracy)

    voices.sound(pair / "new.wav", 140.0, 12.0)
    main(["predict", "--ckpt_path", joined.info.run_id, "--data.init_args.recordings=new.wav"])
    with open("predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    new = SpeechCorpora("source.csv", "target.csv", root=str(pair), recordings="new.wav").dataset("target.csv", "new")
    probabilities = tested.model(new.x).softmax(dim=1)[0].detach()
    assert (row["sample"], row["class"]) == ("new.wav", ["angry", "sad"][int(probabilities.argmax())])
    assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-4)


def complaint(args: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(args)
    return str(stop.value)


def test_a_sound_is_classified_without_the_corpora(pair: Path) -> None:
    fitted = main(["fit", *configs("method/speech_ffn"), *words(pair, f"{HIDDEN}=[8]", "--after=null")])
    voices.sound(pair / "new.wav", 140.0, 12.0)
    predict = ["predict", "--ckpt_path", run(fitted).info.run_id, "--data.init_args.recordings=new.wav"]
    main([*predict, "--predictions.path=with.csv"])
    for name in ("source.csv", "target.csv"):
        (pair / name).unlink()
    assert "there is no file or folder" in complaint(predict)
    main([*predict, "--data.init_args.emotions=[angry, sad]", "--predictions.path=without.csv"])
    assert Path("with.csv").read_text() == Path("without.csv").read_text()
    other = "the checkpoint was fitted with classes ['angry', 'sad'], but the data have ['sad', 'angry']"
    assert other in complaint([*predict, "--data.init_args.emotions=[sad, angry]"])


@pytest.mark.slow
def test_members_that_do_not_fit(pair: Path, first_stage: Path) -> None:
    def members(*given: object) -> str:
        return complaint(["ensemble", *map(str, given)])

    gender = main(["fit", *configs("method/speech_gender"), *words(pair, f"{HIDDEN}=[8]", "--trainer.max_steps=1")])
    speaker = main(["fit", *configs("method/speech_speaker"), *words(pair, f"{HIDDEN}=[8]", "--trainer.max_steps=1")])
    genders, speakers = run(gender).info.run_id, run(speaker).info.run_id
    assert "needs two runs or more" in members(genders)
    assert "needs two runs or more, each once" in members(genders, genders)
    assert "'nothing' is no checkpoint file" in members(genders, "nothing")
    assert "was fitted with num_classes 6, but the data have 2" in members(genders, speakers)
    assert "has no network arguments" in members(genders, first_stage)
    other = main(["fit", *configs("method/speech_gender"), *words(pair, f"{HIDDEN}=[8]", "--data.init_args.seed=3")])
    assert "was fitted on other data or other splits" in members(genders, run(other).info.run_id)


def test_a_stage_that_learnt_what_is_tested_is_refused(pair: Path) -> None:
    leave_out = "--data.init_args.test_speakers"
    source = "--data.init_args.source=target.csv"
    first = main(["fit", *configs("method/speech_gender"), *words(pair, f"{HIDDEN}=[8]", source, f"{leave_out}=[t-0]")])
    start = f"--model.init_args.init_from={run(first).info.run_id}"
    second = [*configs("method/speech_ffn"), *words(pair, f"{HIDDEN}=[8]", start)]
    message = "and is speaker 't-1' in the test split of 'target.csv'; give both runs the same seed"
    assert message in complaint(["fit", *second, f"{leave_out}=[t-1]"])
    fitted = main(["fit", *second, f"{leave_out}=[t-0]"])
    # nor is a fit tested on what it has learnt itself
    test = ["test", "--ckpt_path", run(fitted).info.run_id, "--trainer.logger=false"]
    main([*test, f"{leave_out}=[t-0]"])
    assert message in complaint([*test, f"{leave_out}=[t-1]"])


@pytest.mark.slow
def test_what_was_learnt_before_the_earlier_stage_counts_as_well(pair: Path) -> None:
    left_out = "--data.init_args.test_speakers=[t-0]"
    common = words(pair, f"{HIDDEN}=[8]")
    source = "--data.init_args.source=target.csv"
    first = main(["fit", *configs("method/speech_gender"), *common, source, left_out])
    start = f"--model.init_args.init_from={run(first).info.run_id}"
    second = main(["fit", *configs("method/speech_gender"), *common, start])
    # and without its labels
    other = main(["fit", *configs("method/deep_coral"), *common, "--data.init_args.task=gender", left_out])
    for earlier in (second, other):
        start = f"--model.init_args.init_from={run(earlier).info.run_id}"
        third = [*configs("method/speech_ffn"), *common, start, "--data.init_args.test_speakers=[t-1]"]
        assert "is speaker 't-1' in the test split of 'target.csv'" in complaint(["fit", *third])
    # what is not known is said
    moved = pair / "moved.ckpt"
    content = torch.load(find_fit(run(first).info.run_id).checkpoint, weights_only=True)
    torch.save({**content, "callbacks": {}}, moved)
    with pytest.warns(UserWarning, match=r"samples of .*moved.ckpt' cannot be compared .* not in this MLflow store"):
        main(["fit", *configs("method/speech_ffn"), *common, f"--model.init_args.init_from={moved}"])


@pytest.mark.slow
def test_runs_after_different_stages_are_told_apart(pair: Path) -> None:
    experiment = "--trainer.logger.init_args.experiment_name=told apart"
    fit = [*configs("method/speech_ffn"), *words(pair, f"{HIDDEN}=[8]"), experiment, "--data.init_args.val_share=0.34"]
    after = {}
    for first in ("speech_gender", "null"):
        after[first] = run(main(["fit", *fit, "--after", first])).info.run_id
        main(["test", "--ckpt_path", after[first]])
    assert run(main(["test", *fit, "--after", "speech_gender"])).info.run_id == after["speech_gender"]
    rows = main(["compare", "--experiment", "told apart"]).set_index("method")
    assert set(rows.index) == {"speech_ffn (after=None)", "speech_ffn (after=speech_gender)"}
    assert rows["source acc"].isna().all()
    metrics = client().get_run(after["null"]).data.metrics
    assert rows["target acc"]["speech_ffn (after=None)"] == metrics["test/target/acc"]
    table = main(["curve", "--ckpt_path", after["null"], "--measures", "mmd"])
    assert list(table["layer"].unique()) == ["fc1", "bottleneck", "head"]


@pytest.mark.slow
def test_the_sounds_of_the_first_stage_need_not_be_there(pair: Path) -> None:
    first = main(["fit", *configs("method/speech_gender"), *words(pair, f"{HIDDEN}=[8]")])
    (pair / "source.csv").rename(pair / "other.csv")
    start = f"--model.init_args.init_from={run(first).info.run_id}"
    second = [*words(pair, f"{HIDDEN}=[8]", start), "--data.init_args.source=other.csv"]
    with pytest.warns(UserWarning, match=r"cannot be compared with the test split: there is no file .*source.csv"):
        main(["fit", *configs("method/speech_ffn"), *second])


def test_curves_of_an_ensemble_are_refused() -> None:
    members = [FineTune(num_classes=2, input_shape=(964,), backbone=toy.BACKBONE) for _ in range(2)]
    module = MarginEnsemble(2, (964,), list(members))
    with pytest.raises(ConfigError, match="layers of one network, which MarginEnsemble is not"):
        TransferCurve().setup(toy.trainer(1), module, "fit")


def test_a_fit_without_steps_leaves_the_network_as_it_starts(pair: Path) -> None:
    cli = main(["fit", *configs("method/speech_gender"), *words(pair, f"{HIDDEN}=[8]", "--trainer.max_steps=0")])
    path = client().download_artifacts(run(cli).info.run_id, "checkpoints/last.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in cli.model.state_dict().items())
    assert os.path.getsize(path) > 0


def test_any_method_starts_from_an_earlier_run(pair: Path) -> None:
    more = ["--model.init_args.train_on=target", f"{HIDDEN}=[12]", "--name=coral"]
    args = [*configs("method/deep_coral"), *words(pair, *more, "--after=speech_speaker")]
    args.append("--model.init_args.layers=[fc1]")
    cli = main(["fit", *args])
    first = client().get_run(run(cli).data.tags["started_from"])
    assert first.data.params["task"] == "speaker"
    assert isinstance(cli.model, DeepCORAL)
    assert cli.model.supervised == ("target",)
    assert isinstance(cli.model.standardize, Standardize)
