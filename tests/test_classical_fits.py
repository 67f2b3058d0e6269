"""The classical methods as Lightning modules: fits, checkpoints, layers, export and the command line."""

from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from lightning_da.classical import ATI, BDA, CORAL, CTC, JDA, KMM, TCA, TJM, InstanceWeighting, SourceOnly, TrAdaBoost
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.exporting import export
from lightning_da.grids.space import corners, read_space
from lightning_da.main import main
from lightning_da.methods import Classical, FineTune
from lightning_da.networks.fitted import Fitted
from lightning_da.paths import CONF, methods
from lightning_da.store import client
from lightning_da.testing import Toy, build, check_method, fit, state, trainer
from tests.toy import write_tables


class Small(Toy):
    """Toy data whose target is moved."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(number=96, shift="moved", **kwargs)


def made(part: dict[str, Any]) -> Any:
    """The object of a class path and its arguments, as the command line makes it."""
    module, _, name = part["class_path"].rpartition(".")
    args = {key: made(value) if isinstance(value, dict) else value for key, value in part.get("init_args", {}).items()}
    return getattr(import_module(module), name)(**args)


@cache
def shipped() -> dict[str, dict[str, Any]]:
    """The arguments of the classical methods in `conf/method`."""
    files = {name: yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text()) for name in methods()}
    named = f"lightning_da.methods.{Classical.__name__}"
    return {name: file["model"]["init_args"] for name, file in files.items() if file["model"]["class_path"] == named}


NAMES = [name for name in methods() if Classical.__name__ in (CONF / "method" / f"{name}.yaml").read_text()]


@pytest.mark.parametrize("name", NAMES)
def test_each_shipped_method_fits_and_answers(name: str) -> None:
    if name in ("optimal_transport", "jdot"):
        pytest.importorskip("ot")
    given = shipped()[name]
    estimator = made(given["estimator"])
    if "dim" in estimator.get_params():
        estimator.set_params(dim=3)
    data = Small()
    if given.get("train_on") == "both":
        data.target_labels = "3/class"
    number = 4 if name == "ati" else 3  # with an output for `unknown`
    model = fit(
        build(Classical, estimator=estimator, train_on=given.get("train_on", "source"), num_classes=number), 5, data
    )
    assert model.trainer.global_step == 1
    test = data.dataset("noisy", "test")
    x, y = test.x, test.y
    logits = model.eval()(x)
    assert logits.shape == (96, number)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1).sum(1), torch.ones(96))
    assert (logits.argmax(1) == y).float().mean() > 0.5
    features, again = model.classify(x)
    assert torch.equal(again, logits)
    assert len(features) == 96
    expected = model.adapter.estimator.predict(x.double().numpy())
    np.testing.assert_array_equal(logits.argmax(1).numpy(), expected)


NEAREST, SOFT = partial(Classical, estimator=SourceOnly()), partial(Classical, estimator=TCA(dim=3, kernel="rbf"))


@pytest.mark.parametrize("method", [NEAREST, SOFT], ids=["source_only", "tca"])
def test_the_properties_of_a_method_without_a_domain_loss_hold(method: Any) -> None:
    check_method(method)


class Peeking(Classical):
    """Takes the labels of the target from the data module."""

    def on_train_start(self) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        x = [torch.cat(list(data.training_samples((role,)))) for role in ("source", "target")]
        labels = data.training_labels("target")
        self.adapter.fit(x[::-1], [labels, torch.full_like(labels, UNKNOWN)])


class Forgetful(Classical):
    """Its checkpoint has no state."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state_dict = checkpoint["state_dict"]
        for key in [key for key in state_dict if key.startswith("adapter.")]:
            del state_dict[key]
        super().on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(("kind", "prop"), [(Peeking, "labels"), (Forgetful, "checkpoint")])
def test_the_properties_find_what_they_are_about(kind: Any, prop: str) -> None:
    with pytest.raises(AssertionError, match=f"^{prop}: "):
        check_method(partial(kind, estimator=SourceOnly()))


@pytest.fixture(scope="module")
def fitted() -> Any:
    return fit(build(Classical, estimator=CORAL(estimator=LogisticRegression()), standardize=True), 5, Small())


def test_the_estimator_gets_all_training_samples_and_no_target_label(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Fitted, "fit", lambda _self, vectors, labels: seen.append((vectors, labels)))
    data = Small()
    model = fit(build(Classical, estimator=SourceOnly(), standardize=True), 5, data)
    ((vectors, labels),) = seen
    for role, part in zip(("calm", "noisy"), vectors, strict=True):
        torch.testing.assert_close(part, model.standardize(data.dataset(role, "train").x))
    assert torch.equal(labels[0], data.dataset("calm", "train").y)
    assert set(labels[1].tolist()) == {UNKNOWN}


@pytest.mark.parametrize("estimator", [TrAdaBoost(iterations=2), InstanceWeighting(target_share=0.5)])
def test_few_labels_of_the_target_reach_a_method_that_asks_for_them(estimator: Any) -> None:
    data = Small()
    data.target_labels = 6
    model = fit(build(Classical, estimator=estimator, train_on="both"), 5, data)
    assert len(model.adapter.estimator.labels_) == 96 + 6


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (CORAL(estimator=LogisticRegression()), ""),
        (CTC(dim=3), ""),
        (InstanceWeighting(), ", unless model.estimator.target_share is above 0"),
    ],
)
def test_a_method_that_reads_no_label_of_the_target_says_so(estimator: Any, said: str) -> None:
    with pytest.warns(
        UserWarning, match=rf"train_on both: {type(estimator).__name__} reads no label of the target{said}$"
    ):
        fit(build(Classical, estimator=estimator, train_on="both"), 5, Small())


def test_layers_are_the_vectors_and_what_the_estimator_makes_of_them(fitted: Any) -> None:
    assert fitted.depths == ["vectors", "bottleneck", "head"]
    x = Small().dataset("calm", "test").x
    logits, (vectors, features, head) = fitted.activations(x, "source", fitted.depths)
    torch.testing.assert_close(vectors, fitted.standardize(x))
    expected = fitted.adapter.estimator.transform(vectors.double().numpy(), np.ones(len(x), int))
    torch.testing.assert_close(features, torch.from_numpy(expected).float())
    assert torch.equal(head, logits)
    both = torch.cat([x[:5], x[:5]])
    _, (of_both,) = fitted.activations(both, {"source": 5, "target": 5}, ["bottleneck"])
    torch.testing.assert_close(of_both[:5], features[:5])
    assert not torch.allclose(of_both[5:], features[:5])  # CORAL maps the source alone


def test_vectors_of_length_one_are_the_last_step_before_the_estimator() -> None:
    """After the scaling of the samples, and for whatever reads the vectors: the estimator, its answers, the export."""
    model = fit(build(Classical, estimator=SourceOnly(estimator=LogisticRegression()), unit=True), 5, Small())
    x = Small().dataset("noisy", "test").x
    vectors = model.eval().read(x)
    plain = model.standardize(x).flatten(1)
    torch.testing.assert_close(vectors, plain / plain.norm(dim=1, keepdim=True))
    assert vectors[:1].equal(model.read(x[:1]))
    program = export(model, Small()).module()
    torch.testing.assert_close(program(x), model(x).softmax(dim=1))
    assert not build(Classical, estimator=SourceOnly(), unit=True).read(torch.zeros(2, *x.shape[1:])).any()


def test_until_it_is_fitted_vectors_stay_as_they_are() -> None:
    model = build(Classical, estimator=CORAL()).eval()
    x = Small().dataset("calm", "test").x
    features, logits = model.classify(x)
    assert torch.equal(features, x)
    assert not logits.any()


def test_the_vectors_are_those_of_any_layer_of_an_earlier_run(tmp_path: Path) -> None:
    earlier = fit(build(FineTune), 10, Small())
    path = tmp_path / "earlier.ckpt"
    torch.save({"state_dict": earlier.state_dict()}, path)
    x = Small().dataset("noisy", "test").x
    for layer, expected in (("fc1", "fc1"), ("fc2", "fc2"), (None, "bottleneck")):
        model = fit(build(Classical, 7, estimator=SourceOnly(), init_from=str(path), layer=layer), 5, Small()).eval()
        _, (wanted,) = earlier.eval().activations(x, "target", [expected])
        _, (found,) = model.activations(x, "target", ["vectors"])
        torch.testing.assert_close(found, wanted)
        assert model.depths == {"fc1": ["vectors"], "fc2": ["fc1", "vectors"], None: ["fc1", "fc2", "vectors"]}[
            layer
        ] + [
            "bottleneck",
            "head",
        ]
        assert all(torch.equal(value, earlier.state_dict()[key]) for key, value in state(model, "backbone.").items())
    random = build(Classical, estimator=SourceOnly())
    assert random.depths == ["vectors", "bottleneck", "head"]  # the samples
    assert not state(random, "backbone.")
    with pytest.raises(ConfigError, match=r"^layer: the network has no layer 'fc3'; did you mean 'fc2'"):
        build(Classical, estimator=SourceOnly(), layer="fc3")


@pytest.mark.parametrize(
    "estimator",
    [SourceOnly(), CORAL(estimator=LinearSVC()), InstanceWeighting(), TCA(dim=3), KMM(steps=50)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_affine_maps_with_simple_classifiers_are_exported(estimator: Any) -> None:
    data = Small()
    model = fit(build(Classical, estimator=estimator, standardize=True), 5, data)
    program = export(model, data).module()
    x = data.dataset("noisy", "val").x
    torch.testing.assert_close(program(x), model.eval()(x).softmax(1), atol=1e-5, rtol=0)


def test_other_maps_are_not_exported_and_the_error_says_why() -> None:
    data = Small()
    model = fit(build(Classical, estimator=TCA(dim=3, kernel="rbf")), 5, data)
    with pytest.raises(Exception, match="TCA is no affine map and linear classifier"):
        export(model, data)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train_on: a classical method learns from labels of the source"):
        build(Classical, estimator=SourceOnly(), train_on="target")
    model = build(Classical, estimator=SourceOnly())
    model.trainer = trainer(5, devices=2)
    with pytest.raises(ConfigError, match=r"^trainer.devices: a classical method fits in one process, not in 2"):
        model.setup("fit")
    with pytest.raises(
        ConfigError, match=r"^ATI answers `unknown` beside the classes of the source; set --data.class_sets"
    ):
        fit(build(Classical, estimator=ATI(cost=0.1)), 5, Small())


def test_the_settings_of_the_space_are_those_of_the_projections() -> None:
    for corner in corners(read_space(CONF / "space" / "classical.yaml")):
        settings = {key.removeprefix("model.init_args.estimator.init_args."): value for key, value in corner.items()}
        for method in (TCA, JDA, BDA, TJM):
            assert method(**settings).get_params() == method().get_params() | settings


@pytest.mark.slow
def test_settings_are_chosen_without_labels(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "space.yaml").write_text(
        "model.estimator.dim: {low: 2, high: 3}\nmodel.estimator.lam: {choices: [1, 2]}"
    )
    words = ["--config", "method/tca.yaml", "--config", "data/features.yaml", "--jobs", "1", "--space", "space.yaml"]
    words += ["--data.source", "one.npz", "--data.target", "two.npz", "--trainer.accelerator", "cpu", "--trials", "3"]
    table = main(["search", *words, f"--trainer.logger.experiment_name={tmp_path.name}"])
    assert table["score"].between(0, 1).all()
    assert set(table["model.init_args.estimator.init_args.dim"]) <= {2, 3}


@pytest.mark.slow
def test_deep_and_shallow_stand_in_one_table(tmp_path: Path) -> None:
    """A sweep whose classical method reads a layer of a run; the deep one does not."""
    write_tables(tmp_path)
    words = [
        *("--config", "data/features.yaml", "--data.source", "one.npz", "--data.target", "two.npz"),
        *("--data.batch_size", "16", "--trainer.max_steps", "4", "--trainer.accelerator", "cpu"),
        *(f"--config={Path(__file__).parent / 'short.yaml'}", "--trainer.enable_progress_bar", "false"),
        f"--trainer.logger.experiment_name={tmp_path.name}",
    ]
    main(["fit", "--config", "method/source_only.yaml", *words, "--name", "earlier"])
    of_layer = ["--features_of", "earlier-one-two-s0", "--layer", "fc1"]
    table = main(["sweep", "--methods", "nearest_neighbour", "source_only", *words, *of_layer, "--jobs", "1"])
    assert set(table["method"]) == {"nearest_neighbour-fc1", "source_only"}
    raw = main(["sweep", "--methods", "nearest_neighbour", *words, "--jobs", "1"])
    assert set(raw["method"]) == {"nearest_neighbour"}
    both = main(["compare", "--experiment", tmp_path.name])
    assert set(both["method"]) == {"nearest_neighbour-fc1", "nearest_neighbour", "source_only"}
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client().search_runs([experiment.experiment_id])}
    shallow, deep = runs["nearest_neighbour-fc1-one-two-s0"], runs["source_only-one-two-s0"]
    assert shallow.data.params["layer"] == "fc1"
    assert shallow.data.tags["started_from"] == runs["earlier-one-two-s0"].info.run_id
    assert "started_from" not in deep.data.tags
    options = ["--model.estimator.estimator", "sklearn.neighbors.KNeighborsClassifier"]
    cli = main(["fit", "--config", "method/nearest_neighbour.yaml", *words, *options, "--name", "once"])
    before = cli.trainer.callback_metrics
    tested = main(["test", "--ckpt_path", "once-one-two-s0"])
    assert tested.trainer.callback_metrics["test/target/acc"] > 0.5
    assert before["val/source/acc"] > 0.5
    with pytest.raises(SystemExit, match=r"unknown key 'dimm' of lightning_da.classical.TCA; did you mean 'dim'"):
        main(["fit", "--config", "method/tca.yaml", *words, "--model.estimator.dimm", "3"])


def test_a_class_that_no_sample_has_is_unknown_the_last_one() -> None:
    estimator = SimpleNamespace(classes_=np.array([0, 1, 2]))
    module: Any = SimpleNamespace(adapter=SimpleNamespace(estimator=estimator), num_classes=4)
    labels = torch.tensor([0, 1, 1, -1])
    with pytest.raises(ConfigError, match=r"set --data\.class_sets open"):
        Classical._name_unknown(module, SimpleNamespace(class_sets="closed"), labels)  # type: ignore[arg-type]
    Classical._name_unknown(module, SimpleNamespace(class_sets="open"), labels)  # type: ignore[arg-type]
    assert estimator.classes_.tolist() == [0, 1, 3]
