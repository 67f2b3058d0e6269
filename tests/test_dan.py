"""DAN, its ablations and JAN: their losses, their learned weights and their logs."""

from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_da.errors import ConfigError
from lightning_da.losses.mmd import GaussianKernel, joint_mmd, linear_kernel, mmd
from lightning_da.methods import DAN, JAN, TransferModule
from lightning_da.methods.adaptation import DomainBatch
from tests.toy import ADAM, BACKBONE, Toy, trainer

DEEP = ("fc1", "fc2", "head")
GIVEN: dict[str, Any] = {"num_classes": 3, "input_shape": (8,), "backbone": BACKBONE, "optimizer": ADAM}


def activations(model: DAN | JAN) -> tuple[list[Tensor], list[Tensor]]:
    widths = model.adapted_widths()
    return [torch.randn(12, w) for w in widths], [torch.randn(10, w) + 1 for w in widths]


def loss(model: DAN | JAN, source: list[Tensor], target: list[Tensor]) -> Tensor:
    model.trainer = trainer()
    model.log = model.log_dict = lambda *_args: None  # type: ignore[method-assign,assignment]
    batches = [
        DomainBatch(layers, torch.zeros(len(layers[0]), 3), torch.zeros(len(layers[0]), dtype=torch.long))
        for layers in (source, target)
    ]
    return model.domain_loss(*batches)


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "linear"])
def test_dan_adds_up_the_layers(estimator: Any) -> None:
    model = DAN(layers=DEEP, estimator=estimator, bandwidths=(0.5, 2.0), beta=(1.0, 3.0), **GIVEN)
    source, target = activations(model)
    kernel = GaussianKernel((0.5, 2.0), (0.25, 0.75))
    expected = sum(mmd(s, t, kernel, estimator) for s, t in zip(source, target, strict=True))
    torch.testing.assert_close(loss(model, source, target), expected)


def test_ddc_is_the_distance_of_the_means_of_one_layer() -> None:
    model = DAN(layers=("bottleneck",), estimator="biased", bandwidths="linear", beta="uniform", **GIVEN)
    source, target = activations(model)
    expected = (source[0].mean(0) - target[0].mean(0)).square().sum()
    torch.testing.assert_close(loss(model, source, target), expected)
    torch.testing.assert_close(mmd(source[0], target[0], linear_kernel, "biased"), expected)


def test_jan_multiplies_the_kernels_of_features_and_probabilities() -> None:
    model = JAN(**GIVEN)
    source, target = activations(model)
    kernels = [GaussianKernel((0.25, 0.5, 1, 2, 4)), GaussianKernel((1.68,), of_median=False)]
    expected = joint_mmd([source[0], source[1].softmax(1)], [target[0], target[1].softmax(1)], kernels)
    torch.testing.assert_close(loss(model, source, target), expected)


def test_learned_weights_alternate_with_the_network_and_are_in_the_state() -> None:
    model = DAN(layers=DEEP, **GIVEN)
    trainer(15, limit_val_batches=0).fit(model, Toy())
    for kernel in model.kernels:
        assert isinstance(kernel, GaussianKernel)
        assert kernel.observations == 15
        assert kernel.beta.sum().item() == pytest.approx(1, abs=1e-6)
        assert kernel.beta.max() > 2 / 33
    assert {"kernels.0.beta", "kernels.0.mean", "kernels.0.covariance", "kernels.0.observations"} <= set(
        model.state_dict()
    )


@pytest.mark.parametrize("estimator", ["unbiased", "linear"])
def test_the_weights_of_a_step_are_learned_before_it(estimator: Any) -> None:
    """Weights learned on the batch itself would be chosen to make its distance large: no unbiased estimate."""
    torch.manual_seed(0)
    model = DAN(layers=DEEP, estimator=estimator, **GIVEN)
    loss(model, *activations(model))
    before = [kernel.get_buffer("beta").clone() for kernel in model.kernels]
    source, target = activations(model)
    found = loss(model, source, target)
    kernels = [GaussianKernel(beta=beta.tolist()) for beta in before]
    expected = sum(mmd(s, t, k, estimator) for s, t, k in zip(source, target, kernels, strict=True))
    torch.testing.assert_close(found, expected)
    for kernel, beta in zip(model.kernels, before, strict=True):
        assert (kernel.get_buffer("beta") - beta).abs().max() > 1e-2


@pytest.mark.parametrize("beta", ["uniform", (0.2, 0.8)])
def test_given_weights_stay(beta: Any) -> None:
    model = DAN(bandwidths=(1.0, 2.0), beta=beta, **GIVEN)
    trainer(5, limit_val_batches=0).fit(model, Toy())
    expected = torch.tensor([0.5, 0.5] if beta == "uniform" else beta)
    for kernel in model.kernels:
        torch.testing.assert_close(kernel.get_buffer("beta"), expected)


def logged(model: TransferModule, tmp_path: Any) -> dict[str, float]:
    logger = CSVLogger(tmp_path)
    trainer(4, logger=logger, log_every_n_steps=2, limit_val_batches=0).fit(model, Toy())
    row = pd.read_csv(f"{logger.log_dir}/metrics.csv").iloc[-1]
    return {str(key): float(value) for key, value in row.items()}


def test_the_distance_is_logged_beside_its_null_floor(tmp_path: Any) -> None:
    found = logged(DAN(layers=DEEP, domain_weight=0.0, **GIVEN), tmp_path)
    for layer in ("fc1", "fc2"):
        # There are 32 samples of each domain. The target is twelve times as wide in six dimensions.
        assert abs(found[f"mmd/{layer}_null"]) < found[f"mmd/{layer}_null_std"]
        assert found[f"mmd/{layer}"] > 4 * found[f"mmd/{layer}_null_std"]
        assert found[f"mmd/{layer}_power"] > 0
        assert found[f"mmd/{layer}_linear"] > 0
        assert -8 <= found[f"mmd/{layer}_log2_bandwidth"] <= 8
    assert found["train/domain_loss"] == pytest.approx(sum(found[f"mmd/{layer}"] for layer in DEEP), rel=1e-5)


def test_jan_logs_one_distance(tmp_path: Any) -> None:
    found = logged(JAN(**GIVEN), tmp_path)
    assert {"mmd/joint", "mmd/joint_null", "mmd/joint_null_std"} <= set(found)
    assert found["mmd/joint"] == pytest.approx(found["train/domain_loss"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"bandwidths": "linear"}, "beta: the linear kernel is one kernel"),
        ({"bandwidths": (1.0, 2.0), "beta": (1.0,)}, "beta: give 2 weights"),
        ({"bandwidths": (1.0, -2.0)}, "bandwidths: .* not all positive"),
        ({"bandwidths": ()}, "bandwidths: .* not all positive"),
    ],
)
def test_what_makes_no_sense_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DAN(**args, **GIVEN)
