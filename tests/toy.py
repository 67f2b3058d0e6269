"""The methods that are tested, each with what it sees."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_da import testing
from lightning_da.data.base import DomainPairDataModule
from lightning_da.methods import (
    ADDA,
    AMN,
    CDAN,
    CMD,
    DAN,
    DANN,
    DHN,
    DRCN,
    DSN,
    JAN,
    MCC,
    OSBP,
    PADA,
    SHOT,
    Autoencoder,
    Clusters,
    CoGAN,
    Conservative,
    CoTrans,
    DeepCORAL,
    DomainConfusion,
    FineTune,
    LabelEfficient,
    Multimodal,
    MultiTask,
    Progressive,
    PseudoLabels,
    SelfTaught,
    TransferModule,
)
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.networks import MemoryNetwork, Raw
from lightning_da.networks.backbones import FeedForward
from lightning_da.testing import ADAM, NETWORK, SGD, Shift, Toy, Uneven, accuracy, equal, fit, state, trainer

__all__ = ["ADAM", "NETWORK", "SGD", "Toy", "Uneven", "accuracy", "equal", "fit", "state", "trainer"]

BACKBONE = NETWORK["backbone"]
HASH_LAYER = partial(FeedForward, hidden=[12], activation="tanh")
DEEP = ("fc1", "fc2", "head")


@functools.cache
def _stage_1(seed: int, backbone: Any) -> Any:
    """Weights after a short fit on the source."""
    return fit(testing.build(FineTune, seed, backbone=backbone, optimizer=ADAM), steps=60).state_dict()


def two_stages(method: Callable[..., TransferModule], **kwargs: Any) -> TransferModule:
    """Both stages: a short fit on the source, then the method that starts from it."""
    seed, path = torch.initial_seed(), Path(tempfile.mkdtemp(dir=".")) / "stage_1.ckpt"
    torch.save({"state_dict": _stage_1(seed, kwargs["backbone"])}, path)
    L.seed_everything(seed, verbose=False)
    return method(init_from=str(path), **kwargs)


def osbp(num_classes: int, **kwargs: Any) -> OSBP:
    """With an output for `unknown`, which no sample of the toy data is."""
    return OSBP(num_classes=num_classes + 1, **kwargs)


class CoGANOfVectors(CoGAN):
    """It reads vectors of 8 values as pictures of 4 x 4."""

    def __init__(self, input_shape: tuple[int, ...], **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__(input_shape=(1, 4, 4), **{"noise": 4, "generator": 4} | kwargs)

    def training_samples(self, data: DomainPairDataModule, role: str) -> Iterator[Tensor]:
        return map(pictures, super().training_samples(data, role))

    def features(self, x: Tensor) -> Tensor:
        return super().features(pictures(x))

    def further_layers(self, x: Tensor, domain: str) -> list[Tensor]:
        return super().further_layers(pictures(x), domain)


def pictures(x: Tensor) -> Tensor:
    """Vectors (n, 8) as pictures (n, 1, 4, 4), which stay as they are."""
    return x if x.ndim == 4 else x.repeat(1, 2).view(-1, 1, 4, 4)


class MemoryOfVectors(MemoryNetwork):
    """It reads a vector of 8 values as a sentence of 8 words: each value, rounded, in its place."""

    reads_words = False  # for the checks of the data

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__(input_shape, width=16, words=256)
        self.get_buffer("embedding.words").copy_(torch.arange(256))

    def fit(self, samples: Callable[[str], Iterable[Tensor]]) -> None:
        super().fit(lambda role: map(words, samples(role)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(words(x))


def amn(**kwargs: Any) -> AMN:
    return AMN(**kwargs | {"backbone": MemoryOfVectors, "standardize": False})


def words(x: Tensor) -> Tensor:
    """Vectors (n, 8) as sentences of the words 1 to 248, (n, 8)."""
    return 31 * torch.arange(8) + 16 + (2 * x).round().clamp(-15, 15).long()


class CountedDAN(DAN):
    """Logs how many distances its kernels are given in a step."""

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        seen = []
        hooks = [kernel.register_forward_hook(lambda _, x, __: seen.append(x[0].numel())) for kernel in self.kernels]
        loss = super().domain_loss(source, target)
        for hook in hooks:
            hook.remove()
        self.log("distances", sum(seen))
        return loss


class Entry(NamedTuple):
    """A method, the shift that it sees, and the properties that it does not have by design."""

    method: Callable[..., TransferModule]
    shift: Shift = "wide"
    without: tuple[str, ...] = ()


METHODS: dict[str, Entry] = {
    "source_only": Entry(FineTune),
    "dan": Entry(partial(DAN, layers=DEEP)),
    "dan_linear": Entry(partial(DAN, layers=DEEP, estimator="linear", beta="uniform"), without=("order",)),
    "dan_biased": Entry(
        partial(DAN, layers=DEEP, estimator="biased", bandwidths=(0.5, 1, 2), beta=(1.0, 2.0, 1.0)), without=("null",)
    ),
    # a distance of means sees a shift of the means alone
    "ddc": Entry(
        partial(DAN, layers=("bottleneck",), estimator="biased", bandwidths="linear", beta="uniform"), shift="moved"
    ),
    "jan": Entry(JAN),
    "dann": Entry(DANN),
    "deep_coral": Entry(partial(DeepCORAL, layers=DEEP)),
    "adda": Entry(partial(two_stages, ADDA)),
    # what reads predictions for the target needs some that are right
    "mcc": Entry(MCC, shift="turned"),
    "cdan": Entry(partial(CDAN, domain_weight=0.3), shift="turned"),
    "cmd": Entry(partial(CMD, layers=DEEP), shift="moved", without=("null",)),
    "domain_confusion": Entry(DomainConfusion),
    "shot": Entry(partial(two_stages, SHOT), shift="turned"),
    # it rejects target samples, and has a test of its own on data with samples to reject
    "osbp": Entry(osbp, without=("better",)),
    # its class weights are in the task loss too
    "pada": Entry(PADA, without=("weight_zero",)),
    # a decoder of the target keeps the noise, where that is wide
    "drcn": Entry(partial(DRCN, domain_weight=0.3), shift="moved"),
    "dsn": Entry(partial(DSN, reconstruction_weight=0.01)),
    # the unbiased MMD of a sample with itself, which that property takes for chance, is below 0
    "dsn_mmd": Entry(partial(DSN, similarity="mmd", reconstruction_weight=0.01), without=("null",)),
    # its source has layers of its own
    "cogan": Entry(CoGANOfVectors, without=("weight_zero", "better")),
    # its losses of source codes do not fall with the weight of the domain loss, and source samples have labels there
    "dhn": Entry(partial(DHN, bottleneck=HASH_LAYER, beta="uniform"), shift="moved", without=("weight_zero", "null")),
    "label_efficient": Entry(partial(LabelEfficient, layers=("bottleneck",))),
    # words have no moved or turned classes
    "amn": Entry(partial(amn, domain_weight=0.1), without=("better",)),
    "clusters": Entry(Clusters),
    "cotrans": Entry(partial(CoTrans, forest_reads=Raw, trees=5)),
    # it reads the labels of the target
    "multimodal": Entry(partial(Multimodal, source_shape=(8,), source_backbone=BACKBONE), without=("labels",)),
    "conservative": Entry(partial(two_stages, Conservative, output_weight=1.0, train_on="target"), without=("labels",)),
    "multi_task": Entry(partial(MultiTask, weighting="uncertainty"), without=("labels",)),
    "progressive": Entry(partial(two_stages, Progressive)),
    "autoencoder": Entry(Autoencoder),
    "pseudo_labels": Entry(PseudoLabels),
    "self_taught": Entry(SelfTaught, without=("labels",)),
}
OF_LABELS = ("conservative", "multi_task", "progressive", "autoencoder", "pseudo_labels", "self_taught")
WITHOUT_DOMAIN_LOSS = ("source_only", "clusters", "cotrans", "multimodal", *OF_LABELS)
ADAPTING = [name for name in METHODS if name not in WITHOUT_DOMAIN_LOSS]
TWO_STAGES = ("adda", "shot")
OF_PICTURES = ("cogan", "cycle_gan", "disco_gan", "dual_gan", "gan_classifier")
"""Methods that need pictures."""
ON_ONE_NETWORK = [name for name in ADAPTING if name not in (*TWO_STAGES, *OF_PICTURES)]
"""Those that train one network for both domains, with a task loss and a domain loss."""
OF_HEAD_INPUT = ("osbp", "drcn", "dsn", "dsn_mmd", "dhn", "label_efficient")
"""Those that adapt the input of the head and no other layer."""
FURTHER = (
    *("mcc", "cdan", "cmd", "domain_confusion", "shot", "osbp", "pada", "drcn", "dsn", "dsn_mmd", "cogan"),
    *("dhn", "label_efficient", "amn", "clusters", "cotrans", "multimodal", *OF_LABELS),
)
"""Methods whose trainings are tested by slow tests: they share all but their loss with the others."""


def having(prop: str, names: Iterable[str]) -> list[str]:
    """The methods that have a property."""
    return [name for name in names if prop not in METHODS[name].without]


def each(names: Iterable[str]) -> list[Any]:
    """Names as parameters of a test that trains."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in FURTHER else []) for name in names]


def build(name: str, seed: int = 0, **kwargs: Any) -> Any:
    return testing.build(METHODS[name].method, seed, **kwargs)


def replace(model: nn.Module, method: str, function: Any) -> None:
    setattr(model, method, function)


def check_two_processes(new: Callable[[], Any], data: Callable[[int], DomainPairDataModule], steps: int) -> None:
    """A fit, and the test after it, of two processes are those of one whose batch is as large as theirs together.

    Args:
        new: Gives the model; the same each time.
        data: From the samples in a batch, an even number for one process, to the data.
        steps: Number of steps.
    """
    whole = data(8)
    one, two = fit(new(), steps, whole), new()
    before = state(two, "")
    trainer(steps, limit_val_batches=0, devices=2, strategy="ddp_spawn").fit(two, data(4))
    moved = 0
    for key, value in state(one, "").items():
        torch.testing.assert_close(two.state_dict()[key], value, rtol=1e-3, atol=1e-5, msg=key)
        moved += not torch.equal(before[key], value)
    assert moved
    results = trainer(devices=2, strategy="ddp_spawn").test(one, data(4), verbose=False)
    shared = {key: value for part in results for key, value in part.items()}
    assert shared == pytest.approx(accuracy(one, whole), abs=1e-6)


def write_tables(folder: Path) -> None:
    """Writes `one.npz` and `two.npz`: two domains of 160 vectors in two classes, which differ by their noise alone."""
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        y = np.arange(160) % 2
        np.savez(folder / f"{name}.npz", x=rng.normal(size=(160, 5)) + 3 * y[:, None], y=y)


DANN_OF_TABLES = [
    *("--config", "method/dann.yaml", "--config", "data/features.yaml"),
    *("--config", str(Path(__file__).parent / "short.yaml")),
    *("--data.source", "one.npz", "--data.target", "two.npz"),
    *("--data.batch_size", "16", "--trainer.max_steps", "20", "--trainer.accelerator", "cpu"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
]
"""The options of 20 steps on the tables of `write_tables`; the backbone is left to the test."""
