"""What the base of the methods offers to all of them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_da import testing
from lightning_da.data.base import UNKNOWN
from lightning_da.errors import ConfigError
from lightning_da.methods import DANN, AdaptationModule, FineTune, TransferModule
from lightning_da.networks.backbones import FeedForward, TimmBackbone
from lightning_da.schedules import constant, inverse_decay, ramp
from tests.toy import (
    ADAM,
    BACKBONE,
    Toy,
    accuracy,
    build,
    equal,
    fit,
    replace,
    state,
    trainer,
)

NORMED = partial(FeedForward, hidden=[32, 16], batch_norm=True)


@pytest.mark.parametrize("batch_norm", ["joint", "separate"])
def test_with_weight_zero_the_source_is_normalised_by_its_own_statistics(batch_norm: str) -> None:
    def weights(name: str, **kwargs: Any) -> dict[str, Tensor]:
        model = fit(build(name, backbone=NORMED, **kwargs), steps=5)
        return {key: p for key, p in model.named_parameters() if key.startswith(("backbone.", "head."))}

    assert equal(weights("dann", domain_weight=0.0, batch_norm=batch_norm), weights("source_only"))


@pytest.mark.parametrize("train_on", ["source", "target", "both"])
def test_fine_tune_reads_the_domains_it_names(train_on: str) -> None:
    model = build("source_only", train_on=train_on, optimizer=ADAM)
    seen: list[Any] = []
    replace(model, "on_train_batch_start", lambda batch, _idx: seen.append(batch))
    result = accuracy(fit(model, steps=150))
    named = {"source", "target"} if train_on == "both" else {train_on}
    assert set(seen[0]) == named
    assert all(isinstance(batch[domain], list | tuple) for batch in seen for domain in named)
    for domain in named:
        assert result[f"test/{domain}/acc"] > 0.95


def test_task_loss_counts_known_labels_only() -> None:
    model = build("source_only", label_smoothing=0.1)
    logits, y = torch.randn(6, 3), torch.tensor([0, UNKNOWN, 2, 1, UNKNOWN, 0])
    known = y != UNKNOWN
    expected = cross_entropy(logits[known], y[known], label_smoothing=0.1)
    torch.testing.assert_close(model.task_loss(logits, y), expected)
    assert model.task_loss(logits, torch.full((6,), UNKNOWN)).item() == 0


def test_accuracy_is_that_of_all_samples_and_the_mean_of_classes() -> None:
    model, data = fit(build("source_only")), Toy()
    found = accuracy(model, data)
    for domain, name in (("source", "calm"), ("target", "noisy")):
        split = data.dataset(name, "test")
        right = model.eval()(split.x).argmax(1) == split.y
        assert found[f"test/{domain}/acc"] == pytest.approx(right.double().mean().item())
        classes = [right[split.y == c].double().mean().item() for c in range(3)]
        assert found[f"test/{domain}/class_acc"] == pytest.approx(sum(classes) / 3)


def test_unlabelled_target_has_no_accuracy() -> None:
    class Unlabelled(Toy):
        def dataset(self, domain: str, split: str) -> Any:
            data = super().dataset(domain, split)
            if domain == "noisy":
                data.y, data.classes = torch.full_like(data.y, UNKNOWN), []
            return data

    data = Unlabelled()
    found = accuracy(fit(build("dann"), steps=5, data=data), data)
    assert set(found) == {f"test/source/{key}" for key in ("acc", "class_acc", "class_precision", "imbalance")}


# ---------------------------------------------------------------- schedules and optimizer


def test_progress_and_learning_rate_follow_the_trainer() -> None:
    model = build("source_only", lr_schedule=inverse_decay)
    seen: list[tuple[float, float]] = []

    def note(*_args: Any) -> None:
        seen.append((model.progress, model.trainer.optimizers[0].param_groups[0]["lr"]))

    replace(model, "on_train_batch_start", note)
    fit(model, steps=20)
    assert [p for p, _ in seen] == pytest.approx([i / 20 for i in range(20)])
    assert [lr for _, lr in seen] == pytest.approx([0.05 * (1 + 10 * i / 20) ** -0.75 for i in range(20)])


def test_progress_counts_optimizer_steps_when_gradients_accumulate() -> None:
    model = build("dann", lr_schedule=inverse_decay)
    seen: list[tuple[float, float, float]] = []

    def note(*_args: Any) -> None:
        seen.append((model.progress, model.domain_weight, model.trainer.optimizers[0].param_groups[0]["lr"]))

    replace(model, "on_train_batch_start", note)
    fit(model, steps=10, accumulate_grad_batches=2)
    progress = [i // 2 / 10 for i in range(20)]
    assert [p for p, _, _ in seen] == pytest.approx(progress)
    assert [weight for _, weight, _ in seen] == pytest.approx([ramp(p) for p in progress])
    assert [lr for _, _, lr in seen] == pytest.approx([0.05 * inverse_decay(p) for p in progress])
    assert model.progress == 1


def test_schedules_need_an_end_of_training() -> None:
    with pytest.raises(ConfigError, match="max_steps or trainer"):
        trainer(-1, max_epochs=-1).fit(build("dann"), Toy())


def test_learning_rate_scales() -> None:
    model = build(
        "dann",
        bottleneck=partial(FeedForward, hidden=[8]),
        backbone_lr_scale=0.1,
        layer_lr_decay=0.5,
        head_lr_scale=10.0,
    )
    model.trainer = trainer()
    optimizer = model.configure_optimizers()["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))

    def rate(module: nn.Module) -> float:
        (found,) = {float(rates[id(p)]) for p in module.parameters()}
        return found

    assert rate(model.backbone.get_submodule("fc2")) == pytest.approx(0.005)
    assert rate(model.backbone.get_submodule("fc1")) == pytest.approx(0.0025)
    assert rate(model.bottleneck) == pytest.approx(0.5)
    assert rate(model.head) == pytest.approx(0.5)
    assert isinstance(model, DANN)
    assert rate(model.discriminators) == pytest.approx(0.05)


# ---------------------------------------------------------------- hooks

HOOKS: dict[str, tuple[Any, ...]] = {
    "train": (),
    "setup": ("validate",),
    "on_fit_start": (),
    "on_train_batch_start": (None, 0),
    "on_before_optimizer_step": (None,),
    "on_validation_epoch_start": (),
    "on_validation_epoch_end": (),
    "on_test_epoch_start": (),
    "on_test_epoch_end": (),
    "on_save_checkpoint": ({},),
    "on_load_checkpoint": ({},),
}


def overriding(base: type, name: str, hook: str, calls_super: bool | Iterator[bool]) -> Any:
    def own(self: Any, *args: Any) -> Any:
        calls = calls_super if isinstance(calls_super, bool) else next(calls_super)
        return getattr(super(made, self), hook)(*args) if calls else None

    made = type(name, (base,), {hook: own})
    return made


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_without_super_fails_and_says_which(hook: str) -> None:
    def call(cls: Any) -> None:
        getattr(testing.build(cls), hook)(*HOOKS[hook])

    kept = overriding(DANN, "Kept", hook, calls_super=True)
    call(kept)
    call(overriding(kept, "KeptToo", hook, calls_super=True))
    lost = overriding(DANN, "Lost", hook, calls_super=False)
    for cls, owner in (
        (lost, "Lost"),
        (overriding(lost, "Above", hook, calls_super=True), "Lost"),
        (overriding(kept, "Below", hook, calls_super=False), "Below"),
        (type("Mixed", (overriding(object, "Mixin", hook, calls_super=False), DANN), {}), "Mixed"),
    ):
        with pytest.raises(TypeError, match=rf"^{owner}\.{hook} replaces a hook .* super\(\)\.{hook}"):
            call(cls)


def test_a_hook_that_calls_super_now_and_then_fails_where_it_does_not() -> None:
    model = testing.build(overriding(DANN, "Fickle", "on_fit_start", iter([True, False])))
    model.on_fit_start()
    with pytest.raises(TypeError, match=r"^Fickle\.on_fit_start replaces"):
        model.on_fit_start()


# ---------------------------------------------------------------- freezing


@pytest.mark.parametrize(("freeze", "kept"), [(1, ["fc1"]), (2, ["fc1", "fc2"]), ("all", ["fc1", "fc2"])])
def test_frozen_layers_keep_weights_and_statistics(freeze: Any, kept: list[str]) -> None:
    model = build("dann", freeze=freeze, backbone=NORMED)
    before = state(model)
    fit(model)
    for key, value in state(model).items():
        same = torch.equal(before[key], value)
        assert same == (key.split(".")[1] in kept), key
    assert all(not m.training for layer in kept for m in model.backbone.get_submodule(layer).modules())
    assert model.head.training


def test_gradual_unfreezing_releases_the_deepest_first() -> None:
    model = build("source_only", freeze="all", unfreeze_by=0.5, backbone=NORMED)
    history: list[tuple[bool, bool]] = []
    last = {layer: state(model, (f"backbone.{layer}.0",)) for layer in ("fc1", "fc2")}

    def note(*_args: Any) -> None:
        now = {layer: state(model, (f"backbone.{layer}.0",)) for layer in ("fc1", "fc2")}
        history.append((not equal(now["fc1"], last["fc1"]), not equal(now["fc2"], last["fc2"])))
        assert model.backbone.get_submodule("fc1").training == history[-1][0]
        last.update(now)

    replace(model, "on_train_batch_end", note)
    fit(model, steps=30)
    fc1, fc2 = ([moved[i] for moved in history] for i in (0, 1))
    # three steps of depth (tail, fc2, fc1) over the first half: one is released every 5 steps
    assert fc2 == [False] * 10 + [True] * 20
    assert fc1 == [False] * 15 + [True] * 15


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"freeze": 3}, "freeze: 3 of the backbone's 2 layers"),
        ({"freeze": -1}, "freeze: -1"),
        ({"unfreeze_by": 0.5}, "unfreeze_by"),
        ({"freeze": 1, "unfreeze_by": 1.5}, "unfreeze_by"),
        ({"label_smoothing": 1.5}, "label_smoothing: 1.5"),
    ],
)
def test_fine_tune_refuses(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("source_only", **args)


# ---------------------------------------------------------------- adapted layers and batch norm


def test_unknown_layer_is_refused_with_the_near_name() -> None:
    with pytest.raises(ConfigError, match="no layer 'fc9'; did you mean 'fc"):
        build("dann", layers=("fc9",))


def test_layers_named_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="each once"):
        build("dann", layers=("fc1", "fc1"))


def test_what_is_logged_is_computed_once_a_logged_step() -> None:
    model = build("dan")
    assert isinstance(model, AdaptationModule)
    seen: list[int] = []
    replace(model, "on_train_batch_start", lambda *_args: seen.extend([model.global_step] * model.logs_now))
    fit(model, steps=6, log_every_n_steps=2, accumulate_grad_batches=3)
    assert seen == [1, 3, 5]


def test_adapted_widths() -> None:
    model = build("deep_coral")
    assert isinstance(model, AdaptationModule)
    assert model.adapted_widths() == [32, 16, 3]
    assert model.training


def norms(model: nn.Module) -> list[nn.BatchNorm1d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]


def test_joint_statistics_are_those_of_both_domains() -> None:
    model = build("dann", batch_norm="joint", backbone=NORMED, domain_schedule=constant)
    fit(model, steps=1)
    batch = next(iter(_first_batches()))
    both = torch.cat([batch["source"][0], batch["target"]])
    fresh = build("dann", batch_norm="joint", backbone=NORMED)
    first = fresh.backbone.get_submodule("fc1.0")(both)
    torch.testing.assert_close(norms(model)[0].running_mean, 0.1 * first.mean(0), rtol=1e-4, atol=1e-6)


def test_per_domain_statistics_are_kept_apart_and_used() -> None:
    model = build("dann", batch_norm="per_domain", backbone=NORMED)
    fit(model, steps=1)
    batch = next(iter(_first_batches()))
    fresh = build("dann", batch_norm="per_domain", backbone=NORMED)
    linear = fresh.backbone.get_submodule("fc1.0")
    source, target = norms(model)[:2]
    assert source.weight is target.weight
    torch.testing.assert_close(source.running_mean, 0.1 * linear(batch["source"][0]).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(target.running_mean, 0.1 * linear(batch["target"]).mean(0), rtol=1e-4, atol=1e-6)
    model.eval()
    x = torch.randn(4, 8)
    answers = []
    for domain in ("source", "target"):
        model.set_domain(domain)
        answers.append(model(x))
    assert not torch.allclose(*answers)


def test_per_domain_statistics_start_from_weights_without_domains(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    theirs: Any = timm.create_model("resnet18", num_classes=5)
    torch.nn.init.uniform_(theirs.bn1.running_mean)
    torch.save(theirs.state_dict(), path)
    model = DANN(
        num_classes=3,
        input_shape=(3, 32, 32),
        backbone=partial(TimmBackbone, model="resnet18", weights=str(path)),
        batch_norm="per_domain",
    )
    model.initialise()
    for domain in ("source", "target"):
        norm = model.backbone.get_submodule(f"model.bn1.{domain}")
        assert torch.equal(norm.get_buffer("running_mean"), theirs.bn1.running_mean)


def test_frozen_random_layers_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="are frozen, but have random weights"):
        fit(build("source_only", freeze=1), steps=1)


def _first_batches() -> Any:
    class Peek(FineTune):
        unlabelled = ("target",)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
            batches.append(batch)
            x, y = batch["source"]
            return self.task_loss(self(x), y)

    batches: list[Any] = []
    L.seed_everything(0, verbose=False)
    model: TransferModule = Peek(num_classes=3, input_shape=(8,), backbone=BACKBONE)
    L.seed_everything(0, verbose=False)
    fit(model, steps=1)
    return batches


# ---------------------------------------------------------------- checkpoints and earlier runs


def test_python_checkpoint_loads_with_weights_only(tmp_path: Path) -> None:
    model = build("dann")
    t = trainer(3, limit_val_batches=0)
    t.fit(model, Toy())
    t.save_checkpoint(tmp_path / "model.ckpt")
    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": BACKBONE}
    loaded = DANN.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True, **given)
    x = torch.randn(5, 8)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_fine_tune_starts_from_an_earlier_run(tmp_path: Path) -> None:
    earlier = fit(build("source_only"))
    path = tmp_path / "earlier.ckpt"
    earlier.trainer.save_checkpoint(path)
    for keep_head in (False, True):
        model = build("source_only", seed=5, train_on="target", init_from=str(path), keep_head=keep_head)
        fresh = state(model, ("head.",))
        fit(model, steps=0)
        assert equal(state(model, ("backbone.",)), state(earlier, ("backbone.",)))
        assert equal(state(model, ("head.",)), state(earlier, ("head.",)) if keep_head else fresh)
    wider = build("source_only", init_from=str(path), backbone=partial(FeedForward, hidden=[32, 17]))
    with pytest.raises(ConfigError, match=r"earlier\.ckpt.*backbone\.fc2.*\(16, 32\) there, \(17, 32\) here"):
        fit(wider, steps=1)
    normed = build("source_only", init_from=str(path), backbone=NORMED)
    with pytest.raises(ConfigError, match=r"differs from this one.*backbone\.fc1"):
        fit(normed, steps=1)
    fit(build("source_only", backbone=NORMED)).trainer.save_checkpoint(tmp_path / "normed.ckpt")
    with pytest.raises(ConfigError, match=r"backbone\.fc1\.1\.weight: \(32,\) there, missing here"):
        fit(build("source_only", init_from=str(tmp_path / "normed.ckpt")), steps=1)
    with pytest.raises(ConfigError, match=r"'gone\.ckpt' is no checkpoint file"):
        fit(build("source_only", init_from="gone.ckpt"), steps=1)
