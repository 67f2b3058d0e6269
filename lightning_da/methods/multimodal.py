from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import check_range
from lightning_da.gather import gather
from lightning_da.losses.centroids import paired_error
from lightning_da.methods.base import TransferModule
from lightning_da.networks.backbones import BackboneCallable
from lightning_da.networks.standardize import Standardize
from lightning_da.schedules import check_schedule, ramp


class Multimodal(TransferModule):
    """Transfer between modalities, sound and picture for example: hidden features of the source as those of the target.

    Source and target have a network each, and samples of their own shape. A linear map learns from pairs of one class
    to turn the source's features, the output of its backbone, into those of the target. The layers above, bottleneck
    and head, then learn from the target's features and from the mapped ones.

    The loss of the map trains the map alone, and the mapped features train the layers above alone. Both networks, the
    map and the layers above learn at the same time, where the paper trains one after the other.

    Source: Moon, Kim and Wang, "Multimodal transfer deep learning with applications in audio-visual recognition", 2014.
    https://arxiv.org/abs/1412.3121

    Args:
        source_shape: Shape of one sample of the source; the data module gives it.
        source_backbone: From the shape of one sample of the source to a backbone.
        map_weight: Weight of the loss of the map.
        transfer_weight: Final weight of the task loss of mapped features.
        transfer_schedule: From the progress of training in [0, 1] to a factor of that weight.
        **kwargs: Arguments of `TransferModule` for the network of the target, which is trained on its labels.

    Raises:
        ConfigError: If a weight is negative.
    """

    modalities_differ = True
    """Whether samples of source and target may have different shapes and units."""

    def __init__(
        self,
        source_shape: tuple[int, ...],
        source_backbone: BackboneCallable,
        map_weight: float = 1.0,
        transfer_weight: float = 1.0,
        transfer_schedule: Callable[[float], float] = ramp,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_on="both", **kwargs)
        for name, weight in (("map_weight", map_weight), ("transfer_weight", transfer_weight)):
            check_range(name, weight, 0)
        check_schedule("transfer_schedule", transfer_schedule)
        self._map_weight, self._transfer_weight, self._schedule = map_weight, transfer_weight, transfer_schedule
        self._domain = "target"
        with torch.random.fork_rng(devices=[]):  # the target's network draws as it does without the source's
            network = source_backbone(tuple(source_shape))
            scaled = isinstance(self.standardize, Standardize) and not (network.reads_words or network.reads_units)
            scale = Standardize(tuple(source_shape)) if scaled else nn.Identity()
            head = nn.Linear(network.num_features, self.num_classes)
            self.source = nn.ModuleDict({"standardize": scale, "backbone": network, "head": head})
            self.map = nn.Linear(network.num_features, self.backbone.num_features)

    @property
    def depths(self) -> list[str]:
        """The layers that both networks have."""
        return ["bottleneck", "head"]

    def module_name(self, layer: str, domain: str) -> str:
        return "source.head" if layer == "head" and domain == "source" else super().module_name(layer, domain)

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        super().set_domain(domain)
        self._domain = domain if isinstance(domain, str) else next(iter(domain))

    def training_samples(self, data: DomainPairDataModule, role: str) -> Iterator[Tensor]:  # noqa: ARG002
        """Those of the target: its network reads no sample of the source."""
        return data.training_samples(("target",))

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        """Takes what the source's network needs from its samples, too."""
        super().fit_inputs(data)
        scale, network = self.source["standardize"], self.source["backbone"]
        if isinstance(scale, Standardize):
            scale.fit(lambda _: data.training_samples(("source",)))
        network.fit(lambda _: map(scale, data.training_samples(("source",))))  # type: ignore[operator]

    def initialise(self) -> None:
        super().initialise()
        self.source["backbone"].load_pretrained()  # type: ignore[operator]

    def hidden(self, x: Tensor, domain: str) -> Tensor:
        """The output (B, width) of the backbone of a domain, for samples (B, *shape of the domain)."""
        network = self.source if domain == "source" else self
        return network.get_submodule("backbone")(network.get_submodule("standardize")(x))  # type: ignore[no-any-return]

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(x, self._domain)
        if self._domain == "target":
            features = self.bottleneck(hidden)
            return features, self.head(features)
        return self.bottleneck(self.map(hidden)), self.source["head"](hidden)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        (x_s, y_s), (x_t, y_t) = batch["source"], batch["target"]
        h_s, h_t = self.hidden(x_s, "source"), self.hidden(x_t, "target")
        mapped = self.map(h_s.detach())
        losses = {
            "task": self.task_loss(self.head(self.bottleneck(h_t)), y_t),
            "source": self.task_loss(self.source["head"](h_s), y_s),
            "map": paired_error(gather(mapped), gather(y_s), gather(h_t.detach()), gather(y_t)),
            "transfer": self.task_loss(self.head(self.bottleneck(mapped.detach())), y_s),
        }
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        weight = self._transfer_weight * self._schedule(self.progress)
        return losses["task"] + losses["source"] + self._map_weight * losses["map"] + weight * losses["transfer"]
