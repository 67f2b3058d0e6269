"""DLID: the path of mixtures, what each point reads, and the classifier on features that labels do not teach."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_da import testing
from lightning_da.errors import ConfigError
from lightning_da.methods import DLID
from lightning_da.networks.backbones import FeedForward
from tests.toy import Toy, accuracy, equal, fit, state

NORMED = partial(FeedForward, hidden=[6, 4], batch_norm=True)


def dlid(**kwargs: Any) -> DLID:
    given: dict[str, Any] = {"backbone": NORMED, "points": 3, "optimizer": testing.ADAM}
    found: DLID = testing.build(DLID, **given | kwargs)
    return found


def normal(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_point_reads_its_share_of_the_target() -> None:
    """Seen by the gradients of its loss, which is that of an autoencoder of the mixture in float64."""
    model = testing.ready(DLID, points=5, decoder=(7,))
    source, target = normal(8).requires_grad_(), normal(8, 1).requires_grad_()
    losses = model.path_losses(source, target)
    for i, share in enumerate((0, 2, 4, 6, 8)):
        of_source, of_target = testing.gradients(losses[i], [source, target])
        assert of_source.any(dim=1).tolist() == [row >= share for row in range(8)]
        assert of_target.any(dim=1).tolist() == [row < share for row in range(8)]
        mixture = torch.cat([target[:share], source[share:]]).detach()
        expected = (model.decoders[i](model.backbone.networks[i](mixture)) - mixture).square().mean()
        assert losses[i].item() == pytest.approx(expected.item(), rel=1e-10)
        encoders = [list(network.parameters()) for network in model.backbone.networks]
        taught = [any(g.any() for g in testing.gradients(losses[i], own)) for own in encoders]
        assert taught == [point == i for point in range(5)]


def test_labels_teach_the_head_and_no_encoder() -> None:
    model = testing.ready(DLID, backbone=NORMED, points=3)
    batch = testing.batch_of(model, normal(12), normal(12, 1))
    task = model.supervised_pass(batch)[0]
    assert all(g.any() for g in testing.gradients(task, model.head.parameters()))
    others = [*model.backbone.parameters(), *model.decoders.parameters()]
    assert not any(g.any() for g in testing.gradients(task, others))
    path = model.training_step(batch, 0) - task
    assert not any(g.any() for g in testing.gradients(path, model.head.parameters()))


def test_other_labels_give_other_heads_and_the_same_features() -> None:
    class Turned(Toy):
        def dataset(self, domain: str, split: str) -> Any:
            data = super().dataset(domain, split)
            data.y = (data.y + 1) % 3
            return data

    one, other = (fit(dlid(), 8, data) for data in (Toy(), Turned()))
    features = ("backbone.", "decoders.")
    assert equal(state(one, features), state(other, features))
    assert not equal(state(one, "head."), state(other, "head."))


def test_no_label_of_the_target_is_read() -> None:
    testing.check_labels(DLID, backbone=NORMED, points=2)


def test_features_are_those_of_all_points_with_their_own_statistics() -> None:
    """In training, too, and the statistics are not those of the labelled samples."""
    model = fit(dlid(), 5)
    model.train()
    x, before = normal(5).float(), state(model, "backbone.")
    found = model.features(x)
    assert model.backbone.training
    assert equal(before, state(model, "backbone."))
    expected = torch.cat([network.eval()(x) for network in model.backbone.networks], dim=1)
    torch.testing.assert_close(found, expected)
    assert found.shape == (5, 12)
    means = [network.fc1[1].running_mean for network in model.backbone.networks]
    assert not torch.allclose(means[0], means[2])


def test_it_is_kept_in_a_checkpoint_and_repeats_itself() -> None:
    testing.check_checkpoint(DLID, backbone=NORMED, points=2)
    data = Toy(shift="moved")
    assert accuracy(fit(dlid(), 8, data), data) == accuracy(fit(dlid(), 8, data), data)


def test_few_labels_of_the_target_train_the_head_too() -> None:
    few = Toy()
    few.target_labels = 6
    found = [state(fit(dlid(train_on=domains), 4, few), ("",)) for domains in ("both", "source")]
    features = ("backbone.", "decoders.")
    kept = [{key: value for key, value in each.items() if key.startswith(features)} for each in found]
    assert equal(*kept)
    assert not torch.equal(found[0]["head.weight"], found[1]["head.weight"])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="points: 1 is less than 2"):
        dlid(points=1)
