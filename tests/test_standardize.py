"""The scaling of inputs: known values, domains apart and together, counts, and what is far away."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_da.data.base import DOMAINS, DataError, TensorDomain
from lightning_da.methods import DAN, FineTune
from lightning_da.networks.backbones import FeedForward
from lightning_da.networks.standardize import Standardize, moments, root_shares
from lightning_da.networks.weights import load_weights
from tests import toy


def fitted(source: Tensor, target: Tensor, per_domain: bool = False, chunk: int = 7) -> tuple[Standardize, int]:
    """A module with the statistics of two domains, read in chunks, and the number of features that are far."""
    domains = {"source": source, "target": target}

    module = Standardize(tuple(source.shape[1:]), per_domain)
    return module, module.fit(lambda domain: list(domains[domain].split(chunk)))


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def apart(module: Standardize, domain: str, x: Tensor) -> Tensor:
    module.set_domain(domain)
    scaled: Tensor = module(x)
    return scaled


def test_together_the_domains_have_equal_weight() -> None:
    source, target = normal(300, 3, 0), normal(30, 3, 1, shift=2, scale=3)
    module, _ = fitted(source, target)
    mean = (source.mean(0) + target.mean(0)) / 2
    second = (source.square().mean(0) + target.square().mean(0)) / 2
    torch.testing.assert_close(module.mean[0], mean)
    torch.testing.assert_close(module.std[0], (second - mean.square()).sqrt())
    expected = ((target - mean) / (second - mean.square()).sqrt()).clamp(-5, 5)
    torch.testing.assert_close(apart(module, "target", target), expected)
    assert torch.equal(apart(module, "target", target), apart(module, "source", target))


def test_per_domain_each_has_zero_mean_and_unit_variance() -> None:
    source, target = normal(300, 3, 0), normal(50, 3, 1, shift=20, scale=0.1)
    module, _ = fitted(source, target, per_domain=True)
    for domain, x in zip(DOMAINS, (source, target), strict=True):
        scaled = apart(module, domain, x)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_a_batch_of_both_domains_is_scaled_as_its_parts() -> None:
    source, target = normal(40, 3, 0), normal(25, 3, 1, shift=20)
    module, _ = fitted(source, target, per_domain=True)
    parts = [apart(module, domain, x) for domain, x in (("source", source[:5]), ("target", target[:9]))]
    module.set_domain({"source": 5, "target": 9})
    assert torch.equal(module(torch.cat([source[:5], target[:9]])), torch.cat(parts))


def test_a_feature_that_is_rare_in_the_source_does_not_explode_in_the_target() -> None:
    source, target = torch.zeros(1000, 2), torch.zeros(1000, 2)
    source[0, 0] = 1.0
    target[::2, 0] = 1.0
    source[:, 1], target[:, 1] = normal(1000, 1, 0)[:, 0], normal(1000, 1, 1)[:, 0]
    source_alone = (target - moments([source])[0]) / moments([source])[1]
    assert source_alone.max() > 30
    for per_domain in (False, True):
        module, far = fitted(source, target, per_domain)
        assert far == 1
        assert apart(module, "target", target).abs().max() <= 5
    assert apart(module, "target", target)[:, 0].std() == pytest.approx(1, abs=0.01)


def test_a_constant_feature_becomes_zero_even_if_the_target_has_another_constant() -> None:
    source, target = normal(40, 2, 0), normal(40, 2, 1)
    source[:, 0] = target[:, 0] = 0.1
    module, far = fitted(source, target)
    assert far == 0
    assert apart(module, "target", target)[:, 0].abs().max() < 1e-6
    target[:, 0] = 0.3
    module, far = fitted(source, target)
    assert far == 1
    torch.testing.assert_close(apart(module, "source", source)[:, 0], -torch.ones(40))
    torch.testing.assert_close(apart(module, "target", target)[:, 0], torch.ones(40))


def test_each_channel_of_images_is_scaled() -> None:
    images = (
        torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 50, 200])[:, None, None]
    )
    module, _ = fitted(images, images + 1)
    scaled = torch.cat([module(images), module(images + 1)])
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert not module.counts


# ---------------------------------------------------------------- counts


def words(n: int, length: float, seed: int) -> Tensor:
    """Word counts of texts, with frequent and rare words."""
    rate = length / torch.arange(1, 201)
    return torch.poisson(rate.expand(n, -1), generator=torch.Generator().manual_seed(seed))


def test_root_shares_of_a_text_and_of_its_double_are_equal() -> None:
    counts = torch.tensor([[1.0, 3.0, 0.0], [2.0, 6.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]).sqrt()
    torch.testing.assert_close(root_shares(counts), expected)


def test_counts_are_recognised_and_the_length_of_a_text_does_not_matter() -> None:
    short, long = words(200, 3, 0), words(200, 12, 1)
    module, _ = fitted(short, long)
    assert module.counts
    assert "counts" in module.extra_repr()
    torch.testing.assert_close(module(long), module(2 * long))


@pytest.mark.parametrize(
    "x",
    [
        words(200, 3, 0) - 1,
        words(200, 3, 0) / 2,
        words(200, 3, 0) + 1,
        torch.cat([words(200, 3, 0), torch.full((200, 1), 1e4)], dim=1),
        torch.rand(200, 8, generator=torch.Generator().manual_seed(0)),
        (words(200, 3, 0) > 0).float(),
    ],
    ids=["negative", "fractions", "no zeros", "a table with one large column", "numbers", "flags"],
)
def test_what_is_not_counts_is_not_taken_for_counts(x: Tensor) -> None:
    module, _ = fitted(x, x)
    assert not module.counts
    torch.testing.assert_close(module(x), ((x - x.mean(0)) / module.std).clamp(-5, 5), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- in a network


class Shifted(toy.Toy):
    """The toy pair, with the target's features moved and scaled, which `per_domain` removes exactly."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        if domain == self.target:
            data.x = 20 + 4 * data.x
        return data


def network(kind: type[FineTune | DAN] = FineTune, **given: Any) -> FineTune | DAN:
    L.seed_everything(0, verbose=False)
    return kind(num_classes=3, input_shape=(8,), backbone=partial(FeedForward, hidden=[16]), **given)


@pytest.mark.parametrize("given", [{}, {"train_on": "both"}], ids=["source", "both"])
def test_per_domain_training_does_not_see_a_shift_of_every_feature(given: dict[str, Any]) -> None:
    losses = []
    for data in (toy.Toy(), Shifted()):
        module = toy.fit(network(standardize="per_domain", **given), 20, data)
        losses.append([float(value) for key, value in module.trainer.callback_metrics.items() if "loss" in key])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("batch_norm", ["joint", "separate", "per_domain"])
def test_adaptation_scales_each_domain_however_the_batch_is_passed(batch_norm: str) -> None:
    found = []
    for data in (toy.Toy(), Shifted()):
        module = toy.fit(network(DAN, standardize="per_domain", batch_norm=batch_norm), 5, data)
        found.append(float(module.trainer.callback_metrics["train/domain_loss"]))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_the_report_names_the_scaling_and_warns_of_what_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_da.methods.base.rank_zero_info", said.append)
    with pytest.warns(UserWarning, match=r"features of the target 'noisy' are far.*per_domain"):
        toy.fit(network(standardize=True), 1, Shifted())
    assert said == ["standardize: mean and deviation of all training samples, clipped at 5 deviations"]


def test_words_of_one_distribution_are_not_far() -> None:
    source, target = (torch.poisson(torch.full((200, 1000), 0.005), torch.Generator().manual_seed(i)) for i in (0, 1))
    assert fitted(source, target)[1] == 0


def test_domains_with_other_units_are_scaled_each_by_itself_or_refused() -> None:
    class Bytes(toy.Toy):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            if domain == self.target:
                data.x = 255 * data.x
            return data

    with pytest.raises(DataError, match=r"value ranges differ: .* --model\.standardize per_domain"):
        toy.fit(network(standardize=True), 1, Bytes())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are far from")
        toy.fit(network(standardize="per_domain"), 1, Bytes())


def test_a_resumed_fit_keeps_the_numbers_of_its_checkpoint(tmp_path: Path) -> None:
    first = toy.fit(network(standardize=True), 3)
    first.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = network(standardize=True)
    toy.trainer(6).fit(resumed, Shifted(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert toy.equal(first.standardize.state_dict(), resumed.standardize.state_dict())


def test_a_checkpoint_without_the_flag_of_counts_is_loaded() -> None:
    module, _ = fitted(words(200, 3, 0), words(200, 3, 1))
    state = module.state_dict()
    again = Standardize((200,))
    again.load_state_dict(state)
    torch.testing.assert_close(again(words(9, 3, 2)), module(words(9, 3, 2)))
    state.pop("counts")
    again.load_state_dict(state)
    assert "counts" not in again.extra_repr()


def test_weights_of_an_earlier_run_do_not_change_the_scaling(tmp_path: Path) -> None:
    module, _ = fitted(words(200, 3, 0), words(200, 3, 1))
    whole = torch.nn.ModuleDict({"standardize": module, "backbone": torch.nn.Linear(200, 2)})
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "earlier.ckpt")
    load_weights(whole, str(tmp_path / "earlier.ckpt"), ("backbone.",))
    assert "counts" in module.extra_repr()
    torch.testing.assert_close(module(words(9, 3, 2)), module(2 * words(9, 3, 2)))


def test_labels_and_other_splits_do_not_change_the_scaling() -> None:
    class Changed(toy.Toy):
        def dataset(self, domain: str, split: str) -> TensorDomain:
            data = super().dataset(domain, split)
            if split != "train":
                data.x = 5 * data.x + 3
            data.y = data.y.roll(1)
            return data

    one, other = (toy.fit(network(standardize=True), 1, data).standardize for data in (toy.Toy(), Changed()))
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.std, other.std)


def test_a_normal_feature_is_almost_never_clipped() -> None:
    inside = math.erf(5 / math.sqrt(2))
    assert 1 - inside < 1e-6
