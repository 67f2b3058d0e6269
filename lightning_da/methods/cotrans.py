from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_da.data.base import DOMAINS, UNKNOWN, DomainPairDataModule
from lightning_da.errors import ConfigError, check_range
from lightning_da.gather import total
from lightning_da.methods.hooks import essential
from lightning_da.methods.semi_supervised import NEVER, SemiSupervised, bounds_of_classes, certain
from lightning_da.networks.backbones import BackboneCallable
from lightning_da.networks.forest import Forest
from lightning_da.schedules import constant


class CoTrans(SemiSupervised):
    """Co-training across domains: a random forest and a network, which see a sample differently, teach each other.

    The forest reads numbers that mean the same in both domains, the network reads the sample by its backbone. The
    forest learns from the labels of the source. What it is most certain of in the target, class by class, are labels
    for the network. When a round begins, the forest is grown anew, and what the network is most certain of is added to
    its labels. The answer is the mean of both probabilities.

    Source: Wang et al., "Ridesourcing car detection by transfer learning", 2017. Here the network learns from the
    source, too, and the forest's numbers stay the same. https://arxiv.org/abs/1705.08409

    Args:
        forest_reads: From the shape of one sample to a backbone without weights, which gives the forest's numbers.
        rounds: Number of rounds of equally many steps; in the first the forest knows the source alone.
        certain_share: The share of the target samples of each predicted class, the most certain ones, whose label one
            tells the other; with 0 the network learns as it does alone.
        forest_weight: The forest's weight in the answer: 0 is the network alone, 1 the forest alone.
        trees: Number of trees.
        unlabelled_schedule: As for `SemiSupervised`.
        **kwargs: Arguments of `SemiSupervised`.

    Raises:
        ConfigError: If a number is out of range, or `forest_reads` has weights.
    """

    round: Tensor  # from 0; -1 before the first
    bounds: Tensor  # the smallest probability of a label of the forest, for each class, shape (num_classes,)

    def __init__(
        self,
        forest_reads: BackboneCallable,
        rounds: int = 5,
        certain_share: float = 0.5,
        forest_weight: float = 0.5,
        trees: int = 100,
        unlabelled_schedule: Callable[[float], float] = constant,
        **kwargs: Any,
    ) -> None:
        super().__init__(read_unlabelled="target", unlabelled_schedule=unlabelled_schedule, **kwargs)
        check_range("rounds", rounds, 1)
        for name, value in (("certain_share", certain_share), ("forest_weight", forest_weight)):
            check_range(name, value, 0, 1)
        self._rounds, self._certain, self._weight_of_forest = rounds, certain_share, forest_weight
        self.numbers = forest_reads(self.input_shape)
        if next(self.numbers.parameters(), None) is not None or self.reads_words > self.numbers.reads_words:
            raise ConfigError("forest_reads: for numbers, not words, and without weights, which are never trained: Raw")
        self.forest = Forest(self.numbers.num_features, self.num_classes, trees)
        self.register_buffer("round", torch.tensor(-1))
        self.register_buffer("bounds", torch.full((self.num_classes,), NEVER))

    def fit_inputs(self, data: DomainPairDataModule) -> None:
        super().fit_inputs(data)
        self.numbers.fit(lambda role: self.training_samples(data, role))

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, width), and logits (B, num_classes): the network's in training, then those of the answer."""
        features, logits = super().classify(x)
        if self.training or self._weight_of_forest == 0:
            return features, logits
        answer = torch.lerp(logits.float().softmax(dim=1), self.forest(self.numbers(x)), self._weight_of_forest)
        return features, answer.clamp(min=torch.finfo(torch.float32).tiny).log()

    def unlabelled_loss(self, x: Tensor) -> Tensor:
        """Cross-entropy of the forest's labels; for the shapes see `SemiSupervised.unlabelled_loss`."""
        labels = certain(self.forest(self.numbers(x)), self.bounds)
        number, every = total((labels != UNKNOWN).sum()), total(torch.tensor(len(x), device=x.device))
        self.log("train/taught_by_forest", number / every)
        if number == 0:  # batch norm and dropout are those of the network alone
            return torch.zeros((), device=x.device)
        return self.loss_of_made_labels(self.classify(x)[1], labels)

    @essential
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        number = min(int(self.progress * self._rounds), self._rounds - 1)
        if number > self.round:
            self.teach_forest()
            self.round.fill_(number)

    @torch.no_grad()
    def teach_forest(self) -> None:
        """Grows the forest from the labels that are read and, after the first round, those of the network."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        numbers, labels = [], []
        for role in DOMAINS:
            found = torch.cat([self.numbers(self.moved(x)).float().cpu() for x in self.training_samples(data, role)])
            numbers.append(found)
            labels.append(data.training_labels(role) if role in self.supervised else torch.full((len(found),), UNKNOWN))
        if self.round >= 0:
            taught = self.trainer.strategy.broadcast(self.network_labels(data))
            self.log("train/taught_by_network", (taught != UNKNOWN).float().mean())
            labels[1] = torch.where(labels[1] == UNKNOWN, taught, labels[1])
        x, y = torch.cat(numbers), torch.cat(labels)
        self.forest.fit(x[y != UNKNOWN], y[y != UNKNOWN])
        self.bounds.copy_(bounds_of_classes(self.forest(numbers[1].to(self.device)), self._certain))

    def network_labels(self, data: DomainPairDataModule) -> Tensor:
        """What the network is most certain of in the target's training samples, (n,), int64, `UNKNOWN` elsewhere."""
        self.eval()
        self.set_domain("target")
        logits = [super(CoTrans, self).classify(self.moved(x))[1] for x in self.training_samples(data, "target")]
        self.train()
        probabilities = torch.cat(logits).float().softmax(dim=1)
        return certain(probabilities, bounds_of_classes(probabilities, self._certain)).cpu()
