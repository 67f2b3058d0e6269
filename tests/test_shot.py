"""SHOT in two stages: what stays fixed, what is read, and the centroids."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_da.data import TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.main import main
from lightning_da.methods import SHOT, DomainBatch, FineTune
from lightning_da.networks.backbones import FeedForward
from tests.toy import ADAM, Toy, accuracy, build, equal, fit, state

NORMED = partial(FeedForward, hidden=[32, 16], batch_norm=True)
TURNED = partial(Toy, shift="turned")


class Watched(TensorDomain):
    """Notes which samples are read."""

    def __init__(self, of: TensorDomain, name: str, seen: list[str]) -> None:
        super().__init__(of.x, of.y, of.classes)
        self.name, self.seen = name, seen

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        self.seen.append(self.name)
        return super().__getitems__(indices)


class WatchedToy(Toy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[str] = []

    def dataset(self, domain: str, split: str) -> TensorDomain:
        return Watched(super().dataset(domain, split), f"{domain} {split}", self.seen)


class WithoutSource(Toy):
    """One domain in the data, as with `--data.source null`; the other cannot be read."""

    def __init__(self) -> None:
        super().__init__(shift="turned")
        self.source, self.domains = self.target, ("target",)

    def dataset(self, domain: str, split: str) -> TensorDomain:
        assert domain == "noisy"
        return super().dataset(domain, split)


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> tuple[FineTune, str]:
    settings: dict[str, Any] = {"backbone": NORMED, "optimizer": ADAM, "standardize": True}
    model = fit(build("source_only", **settings), steps=60, data=TURNED())
    path = str(tmp_path_factory.mktemp("stage_1") / "model.ckpt")
    model.trainer.save_checkpoint(path)
    return model, path


def shot(path: str | None, **kwargs: Any) -> SHOT:
    given: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": NORMED, "optimizer": ADAM}
    return SHOT(init_from=path, **(given | {"standardize": True} | kwargs))


def test_the_head_and_the_scales_are_those_of_the_source_run(stage_1: tuple[FineTune, str]) -> None:
    first, path = stage_1
    model = shot(path)
    fit(model, steps=0, data=TURNED())
    assert equal(state(model), state(first))
    fit(model, steps=30, data=TURNED())
    kept = ("head.", "standardize.")
    assert equal(state(model, kept), state(first, kept))
    assert not equal(state(model, "backbone."), state(first, "backbone."))
    assert not model.head.training
    assert model.backbone.training


def test_the_loss_is_that_of_the_paper(stage_1: tuple[FineTune, str]) -> None:
    model = shot(stage_1[1], pseudo_weight=0.7).double()
    generator = torch.Generator().manual_seed(1)
    logits, features, centroids = (
        torch.randn(n, width, generator=generator, dtype=torch.float64) for n, width in ((6, 3), (6, 16), (3, 16))
    )
    model.centroids = centroids
    model.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    nothing = DomainBatch([features[:0]], logits[:0], torch.empty(0, dtype=torch.int64))
    loss = model.domain_loss(nothing, DomainBatch([features], logits, torch.full((6,), -1)))
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.numpy(), centroids.numpy())]
    nearest = (unit[0] @ unit[1].T).argmax(axis=1)
    assert (nearest != p.argmax(axis=1)).any()
    expected = -(p * np.log(p)).sum(axis=1).mean() + (p.mean(axis=0) * np.log(p.mean(axis=0))).sum()
    expected += 0.7 * -np.log(p[np.arange(6), nearest]).mean()
    assert loss.item() == pytest.approx(expected)


def test_training_reads_no_sample_of_the_source(stage_1: tuple[FineTune, str]) -> None:
    """After the checks of the data, which `setup` makes for every method."""
    data, model = WatchedToy(shift="turned"), shot(stage_1[1])
    start = model.setup

    def note(stage: str) -> None:
        data.seen.clear()
        start(stage)

    model.setup = note  # type: ignore[method-assign]
    fit(model, steps=25, data=data)
    assert set(data.seen) == {"noisy train"}


def test_it_needs_no_source_in_the_data_and_beats_its_start(stage_1: tuple[FineTune, str]) -> None:
    first, path = stage_1
    before = accuracy(first, TURNED())["test/target/acc"]
    alone, beside = shot(path), shot(path)
    fit(alone, steps=60, data=WithoutSource())
    fit(beside, steps=60, data=TURNED())
    assert equal(state(alone, ""), state(beside, ""))  # bit by bit, with or without a source beside it
    assert accuracy(alone, WithoutSource())["test/target/acc"] > before + 0.05


def test_the_centroids_are_those_of_the_paper(stage_1: tuple[FineTune, str]) -> None:
    """Two rounds with numpy, from all training samples of the target at the start."""
    model = shot(stage_1[1], domain_weight=0.0)
    data = TURNED()
    fit(model, steps=1, data=data)
    reference = stage_1[0].eval()
    with torch.no_grad():
        features, logits = reference.classify(data.dataset("noisy", "train").x)
    f, p = features.double().numpy(), logits.double().softmax(1).numpy()
    centroids = (p.T @ f) / p.sum(axis=0)[:, None]
    cosines = (f @ centroids.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(centroids, axis=1)
    nearest = cosines.argmax(axis=1)
    expected = np.stack([f[nearest == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(model.centroids.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(expected, centroids, rtol=1e-2)


def test_without_pseudo_labels_no_centroid_is_computed(stage_1: tuple[FineTune, str]) -> None:
    model, with_them = shot(stage_1[1], pseudo_weight=0.0), shot(stage_1[1], pseudo_weight=3.0)
    fit(model, steps=3)
    fit(with_them, steps=3)
    assert not model.centroids.any()
    assert not equal(state(model), state(with_them))


def test_without_a_first_stage_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SHOT starts from a supervised run.*init_from"):
        fit(shot(None), steps=1)
    path = tmp_path / "target_only.ckpt"
    torch.save({"hyper_parameters": {"train_on": "target"}, "state_dict": shot(None).state_dict()}, path)
    with pytest.raises(ConfigError, match=r"has read labels of the target.*SHOT"):
        fit(shot(str(path)), steps=1)


def test_the_embedded_digits_are_adapted_without_a_source() -> None:
    def words(method: str, *more: str) -> list[str]:
        files = [part for name in (f"method/{method}", "data/digits") for part in ("--config", f"{name}.yaml")]
        own = ["--data.num_typeset=200", "--data.batch_size=16", "--trainer.max_steps=2"]
        return ["fit", *files, *own, "--trainer.logger.experiment_name=shot", *more]

    first = main(words("source_only"))
    second = main(words("shot", "--data.source=null", f"--model.init_from={first.trainer.logger.version}"))
    assert second.model.trainer.global_step == 2
    assert second.datamodule.domains == ("target",)
