from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.data.base import DOMAINS
from lightning_da.errors import ConfigError, check_range
from lightning_da.gather import gather
from lightning_da.losses.hashing import category_entropy, pair_likelihood, quantization
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.dan import DAN
from lightning_da.methods.retrieval import Retrieval


class DHN(DAN):
    """Deep hashing network: binary codes that find samples of one class, also in the domain without labels.

    The bottleneck is the hash layer; the signs of its outputs are the code. Codes of source samples are similar if, and
    only if, these are of one class (`pair_likelihood`), and near to their signs (`quantization`). The domain loss is
    that of DAN and the entropy of the target's classes by similar source codes (`category_entropy`).

    Validation and test log `retrieval_map` for each domain, too (see `Retrieval`).

    Source: Venkateswara et al., "Deep hashing network for unsupervised domain adaptation", CVPR 2017, where the network
    is called DAH. There a target sample gets the class of the source codes that are most similar; here a linear head on
    the codes learns with cross-entropy beside them, and answers.
    https://arxiv.org/abs/1706.07522

    Args:
        layers: Names of the layers whose MMD is reduced; `bottleneck` is among them.
        hash_weight: Weight of the supervised losses of source codes, beside the task loss.
        entropy_weight: Weight of the entropy, beside the MMD.
        **kwargs: Arguments of `DAN`; a `bottleneck` is needed.

    Raises:
        ConfigError: If there is no bottleneck, it is not adapted, or a weight is negative.
    """

    can_regress = False

    def __init__(
        self,
        layers: tuple[str, ...] = ("bottleneck",),
        hash_weight: float = 1.0,
        entropy_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(layers=layers, **kwargs)
        check_range("hash_weight", hash_weight, 0)
        check_range("entropy_weight", entropy_weight, 0)
        if "bottleneck" not in self.adapted or not self._has_both_signs():
            raise ConfigError(
                "the codes are the signs of the bottleneck: give one whose outputs have both signs, as in "
                "--config method/dhn.yaml, and name it in `layers`"
            )
        self._hash_weight, self._entropy_weight = hash_weight, entropy_weight
        self._retrieved = nn.ModuleDict(
            {f"{stage}_{domain}": Retrieval() for stage in ("val", "test") for domain in DOMAINS}
        )

    @torch.no_grad()
    def _has_both_signs(self) -> bool:
        """Whether the outputs of the bottleneck can be negative, and there is one."""
        if isinstance(self.bottleneck, nn.Identity):
            return False
        x = torch.randn(64, self.backbone.num_features, generator=torch.Generator().manual_seed(0))
        self.bottleneck.eval()
        found = bool((self.bottleneck(x) < 0).any())
        self.bottleneck.train()
        return found

    def codes(self, batch: DomainBatch) -> Tensor:
        """The outputs of the hash layer, (n, bits)."""
        return batch.layers[self.adapted.index("bottleneck")]

    def domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        loss = category_entropy(self.codes(target), self.codes(source), source.labels)
        self.log("train/category_entropy", loss)
        return super().domain_loss(source, target) + self._entropy_weight * loss

    def weighted_domain_loss(self, source: DomainBatch, target: DomainBatch) -> Tensor:
        """The domain loss as in the base, and the supervised losses, which its weight does not reach."""
        codes, y = gather(self.codes(source)), gather(source.labels)
        losses = {"pair": pair_likelihood(codes, y), "quantization": quantization(codes)}
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})
        supervised = self._hash_weight * torch.stack(list(losses.values())).sum()
        return super().weighted_domain_loss(source, target) + supervised

    # ---------------------------------------------------------------- retrieval

    def retrieved(self, stage: str, domain: str) -> Any:
        """The metric of retrieval in a domain for the stage `val` or `test`."""
        return self._retrieved[f"{stage}_{domain}"]

    def _evaluate(self, stage: str, batch: tuple[Tensor, ...], dataloader_idx: int) -> dict[str, Tensor]:
        found = super()._evaluate(stage, batch, dataloader_idx)
        self.retrieved(stage, self.evaluated[dataloader_idx]).update(found["features"], found["y"])
        return found

    def _reset(self, stage: str) -> None:
        super()._reset(stage)
        for domain in self.evaluated:
            self.retrieved(stage, domain).reset()

    def scores_of(self, stage: str, domain: str) -> dict[str, Tensor]:
        """The scores of the base, and `retrieval_map` where the domain is all of the source or the target."""
        retrieved = dict(self.retrieved(stage, domain).compute()) if domain in self.evaluated else {}
        return super().scores_of(stage, domain) | retrieved
