from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, linear

from lightning_da.errors import ConfigError, check_range
from lightning_da.gather import mean_over_processes
from lightning_da.methods.base import PARTS, features_of
from lightning_da.methods.fine_tune import FineTune
from lightning_da.methods.hooks import essential
from lightning_da.networks.norms import set_domain
from lightning_da.networks.weights import check_weights, read_checkpoint

HEAD = ("head.weight", "head.bias")


class Conservative(FineTune):
    """Conservative training: fine-tuning that is held near the network it starts from.

    Two terms are added to the task loss. By weights (L2-SP; Li, Grandvalet and Davoine, "Explicit inductive bias for
    transfer learning with convolutional networks", ICML 2018, equation 3): `start_decay / 2 * ||w - w0||^2` for the
    weights that are copied, `new_decay / 2 * ||w||^2` for the new ones. By outputs (Yu et al., "KL-divergence
    regularized deep neural network adaptation", ICASSP 2013; Li and Hoiem, "Learning without forgetting", ECCV 2016):
    `output_weight * KL(p0 || p)`, the mean over the training samples, with the classes of the earlier network. p0 are
    its predictions, and p are those of its head on the features of this network; with `keep_head`, those of this
    network.

    With all weights 0 it is `FineTune`.

    Source: https://arxiv.org/abs/1802.01483, https://doi.org/10.1109/ICASSP.2013.6639201,
    https://arxiv.org/abs/1606.09282

    Args:
        start_decay: Weight of the distance to the start, for copied weights.
        new_decay: Weight decay of new weights.
        output_weight: Weight of the divergence from the earlier network's predictions; it needs `init_from`.
        **kwargs: Arguments of `FineTune`.

    Raises:
        ConfigError: If a weight is negative; when a fit begins, if there are no weights to start from, or if
            `output_weight` has no whole earlier network, or one of other layers or scaling.
    """

    can_regress = False

    def __init__(
        self, start_decay: float = 0.1, new_decay: float = 0.01, output_weight: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        weights = {"start_decay": start_decay, "new_decay": new_decay, "output_weight": output_weight}
        for name, value in weights.items():
            check_range(name, value, 0)
        self._start_decay, self._new_decay, self._output_weight = start_decay, new_decay, output_weight
        self._start: dict[str, Tensor] = {}
        self._copied: list[str] = []
        self._earlier: list[nn.Module] = []  # in a list: no part of this network and of its checkpoints

    def initialise(self) -> None:
        if self.starts_random():
            raise ConfigError(
                "conservative training stays near earlier weights: give an earlier run (--model.init_from RUN, or "
                "--after source_only), or a backbone with pretrained weights"
            )
        whole = self.starts_from and "bottleneck." in self.initialised
        if self._output_weight > 0 and not whole:
            raise ConfigError(
                "output_weight: it needs the whole network of an earlier run; set --model.init_from, and leave "
                "init_layers at all"
            )
        fresh = {name: value.detach().clone() for name, value in self.named_parameters()}
        super().initialise()
        self._start = {name: value.detach().clone() for name, value in self.state_dict().items()}
        changed = {name.rpartition(".")[0] for name, p in self.named_parameters() if not torch.equal(p, fresh[name])}
        self._copied = [name for name in fresh if name.rpartition(".")[0] in changed]
        if self._output_weight > 0:
            (path,) = self.starts_from
            state = read_checkpoint(path)["state_dict"]
            if missing := [name for name in HEAD if name not in state]:
                raise ConfigError(
                    f"output_weight: {path!r} has no head that names classes ({missing[0]}); set --model.output_weight "
                    "0, or start from a run that has one, such as source_only or fine_tune"
                )
            theirs, ours = (
                {name: value for name, value in part.items() if name.startswith(PARTS)} for part in (state, self._start)
            )
            check_weights(theirs, ours, f"output_weight: {path!r}")
            self._start |= {f"earlier.{name}": state[name].clone() for name in (*theirs, *HEAD)}

    @essential
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["start"], checkpoint["copied"] = self._start, self._copied

    @essential
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._start, self._copied = checkpoint.get("start", {}), checkpoint.get("copied", [])

    @essential
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._start = {name: value.to(self.device) for name, value in self._start.items()}
        if self._output_weight > 0:
            network = deepcopy(nn.ModuleDict({name: getattr(self, name) for name in PARTS}))
            network.load_state_dict({name: self._start[f"earlier.{name}"] for name in network.state_dict()})
            self._earlier = [network.eval().requires_grad_(False)]

    def set_domain(self, domain: str | Mapping[str, int]) -> None:
        super().set_domain(domain)
        for network in self._earlier:
            set_domain(network, domain)

    def weight_penalty(self) -> Tensor:
        """Distance of the copied weights to the start, and decay of the new ones, each with its weight."""
        copied = set(self._copied)
        terms = [
            self._start_decay / 2 * (weight - self._start[name]).square().sum()
            if name in copied
            else self._new_decay / 2 * weight.square().sum()
            for name, weight in self.named_parameters()
            if weight.requires_grad
        ]
        return torch.stack(terms).sum()

    def output_penalty(self, x: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Divergence from the earlier network's predictions, the mean over the samples of all processes.

        Args:
            x: Samples, shape (B, *input_shape), of the domains that are set.
            features: Their features in this network, shape (B, width).
            logits: Their logits in this network, shape (B, num_classes).
        """
        earlier = features_of(self._earlier[0], x)
        head = [self._start[f"earlier.{name}"].to(earlier) for name in HEAD]
        now = logits if "head." in self.initialised else linear(features, *head)
        p, p0 = (part.float().log_softmax(dim=1) for part in (now, linear(earlier, *head)))
        divergence = kl_div(p, p0, reduction="sum", log_target=True)
        return mean_over_processes(divergence, len(x))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        loss, x, features, logits = self.supervised_pass(batch)
        if self._start_decay > 0 or self._new_decay > 0:
            penalty = self.weight_penalty()
            self.log("train/weight_penalty", penalty)
            loss = loss + penalty
        if self._output_weight > 0:
            penalty = self.output_penalty(x, features, logits)
            self.log("train/output_penalty", penalty)
            loss = loss + self._output_weight * penalty
        return loss
