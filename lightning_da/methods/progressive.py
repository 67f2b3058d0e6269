from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.errors import ConfigError, check_range
from lightning_da.methods.base import PARTS, TransferModule, features_of
from lightning_da.networks.layers import module_depths
from lightning_da.networks.weights import check_weights, read_checkpoint

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class Progressive(TransferModule):
    """A progressive network: each task has a column, which reads those of all earlier tasks and does not change them.

    Layer i of a column reads its own layer i - 1 and, through lateral connections U, layer i - 1 of each earlier
    column: `h_i = f(W_i h_{i-1} + sum_j U_i^j h_{i-1}^j)`, from the second layer to the head. The connections begin at
    0, so that the column begins as a network from scratch. Columns make a chain: a run that starts from a progressive
    network has one column more.

    Source: Rusu et al., "Progressive neural networks", 2016, equation 1, https://arxiv.org/abs/1606.04671. The first
    linear map or convolution of each layer takes the sum, and U has its shape; a layer without one, such as an LSTM,
    has no U.

    Args:
        columns: Number of earlier columns in the run `init_from`: 1 for a run of another method, whose network is the
            first column.
        laterals: Whether the lateral connections are there; without them the column is a network from scratch.
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If `columns` is negative; when a fit begins, if `init_from` is missing or has another number of
            columns or another network.
    """

    always_eval = ("columns",)

    def __init__(self, columns: int = 1, laterals: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("columns", columns, 0)
        parts = {name: deepcopy(getattr(self, name)) for name in PARTS}
        units = self._units(self)
        earlier = [nn.ModuleDict(deepcopy(parts)) for _ in range(columns)]
        for number, column in enumerate(earlier):
            column["laterals"] = _laterals(units[:-1] if laterals else [], number)
        self.columns = nn.ModuleList(earlier).requires_grad_(False)
        self.laterals = _laterals(units if laterals else [], columns)
        self.train()

    @staticmethod
    def _units(column: nn.Module) -> list[nn.Module]:
        """The linear map or convolution at the entrance of each layer, from the second on, and of the head."""
        backbone: Any = column.get_submodule("backbone")
        first: dict[int, nn.Module] = {}
        for module, depth in module_depths(backbone, backbone.layers):
            if isinstance(module, WEIGHTED) and depth < len(backbone.layers):
                first.setdefault(depth, module)
        first.pop(0, None)
        bottleneck = [m for m in column.get_submodule("bottleneck").modules() if isinstance(m, WEIGHTED)][:1]
        head = [column.get_submodule("head")] if isinstance(column, TransferModule) else []
        return [*first.values(), *bottleneck, *head]

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not any(map(len, self.laterals)):  # type: ignore[arg-type]
            return super().classify(x)
        entered: list[list[Tensor]] = []
        with torch.no_grad():
            for column in self.columns:
                with self._joined(column, entered) as own:
                    features = features_of(column, x)
                entered.append([*own, features])
        with self._joined(self, entered):
            features = self.features(x)
            return features, self.head(features)

    @contextmanager
    def _joined(self, column: nn.Module, entered: list[list[Tensor]]) -> Iterator[list[Tensor]]:
        """Inside a `with` block a column reads the earlier ones, and what enters its own layers is recorded."""
        own: list[Tensor] = []
        handles = []
        laterals: Any = column.get_submodule("laterals")
        for place, module in enumerate(self._units(column)):
            sources = [(u[place], inputs[place]) for u, inputs in zip(laterals, entered, strict=True) if len(u)]
            handles += [
                module.register_forward_pre_hook(lambda _module, args: own.append(args[0])),
                # before the hooks of `capture`, which must see the sum
                module.register_forward_hook(partial(_add, sources), prepend=True),
            ]
        try:
            yield own
        finally:
            for handle in handles:
                handle.remove()

    def starts_random(self) -> bool:
        return not self.backbone.pretrained

    def initialise(self) -> None:
        self.backbone.load_pretrained()
        number = len(self.columns)
        if number and not self.starts_from:
            raise ConfigError(
                "a progressive network adds a column to those of an earlier run; set --model.init_from to its "
                "checkpoint file, run id or run name, train it first with --after source_only, or begin with "
                "--model.columns 0"
            )
        for checkpoint in self.starts_from:
            state = read_checkpoint(checkpoint)["state_dict"]
            found = 1 + len({name.split(".")[1] for name in state if name.startswith("columns.")})
            if found != number:
                raise ConfigError(f"columns: {checkpoint!r} has {found}, not {number}; set --model.columns {found}")
            theirs = {name: value for name, value in state.items() if name.startswith("columns.")}
            last = f"columns.{number - 1}."
            theirs |= {
                last + name: value for name, value in state.items() if name.split(".")[0] in (*PARTS, "laterals")
            }
            ours = {name: value for name, value in self.state_dict().items() if name.startswith("columns.")}
            theirs = {name: value for name, value in theirs.items() if name in ours or ".laterals." not in name}
            check_weights(theirs, ours, f"init_from {checkpoint!r}")
            self.load_state_dict(theirs, strict=False)


def _laterals(units: list[nn.Module], columns: int) -> nn.ModuleList:
    """For each earlier column a connection of zeros into each unit, without bias."""
    found = nn.ModuleList()
    for _ in range(columns):
        copies = deepcopy(nn.ModuleList(units))
        for copy in copies:
            copy.register_parameter("bias", None)
            nn.init.zeros_(copy.weight)  # type: ignore[arg-type]
        found.append(copies)
    return found


def _add(sources: list[tuple[nn.Module, Tensor]], _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    for lateral, entered in sources:
        output = output + lateral(entered)
    return output
