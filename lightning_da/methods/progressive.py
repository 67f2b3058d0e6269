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

    Layer i of a column reads its own layer i - 1 and, through an adapter, layer i - 1 of the earlier columns, from the
    second layer to the head (`Adapter`). An adapter begins at 0, so that the column begins as a network from scratch.
    Columns make a chain: a run that starts from a progressive network has one column more.

    Source: Rusu et al., "Progressive neural networks", 2016, equation 2, https://arxiv.org/abs/1606.04671. The first
    linear map or convolution of each layer takes the sum; a layer without one, such as an LSTM, has no adapter.

    Args:
        columns: Number of earlier columns in the run `init_from`: 1 for a run of another method, whose network is the
            first column.
        laterals: Whether the adapters are there; without them the column is a network from scratch.
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
            reading = units[:-1] if laterals and number else []
            column["laterals"] = nn.ModuleList(Adapter(unit, number) for unit in reading)
        self.columns = nn.ModuleList(earlier).requires_grad_(False)
        self.laterals = nn.ModuleList(Adapter(unit, columns) for unit in (units if laterals and columns else []))
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
        if not len(self.laterals):
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
            handles.append(module.register_forward_pre_hook(lambda _module, args: own.append(args[0])))
            if len(laterals):
                add = partial(_add, laterals[place], [inputs[place] for inputs in entered])
                # before the hooks of `capture`, which must see the sum
                handles.append(module.register_forward_hook(add, prepend=True))
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


class Adapter(nn.Module):
    """What a layer reads of the earlier columns: `U f(V [a_1 h_1, ..., a_n h_n])`, f is ReLU, U begins at 0, a at 1.

    h_j is the layer below in column j, a its learned scale. V reduces all h to the width of one, as a linear map or a
    1 x 1 convolution. U has the shape of the layer's own map.
    """

    def __init__(self, unit: Any, columns: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(columns))
        self.dim = -1 if isinstance(unit, nn.Linear) else 1
        if isinstance(unit, nn.Linear):
            self.reduce: nn.Module = nn.Linear(columns * unit.in_features, unit.in_features)
        else:
            self.reduce = type(unit)(columns * unit.in_channels, unit.in_channels, kernel_size=1)
        self.lateral = deepcopy(unit)
        self.lateral.register_parameter("bias", None)
        nn.init.zeros_(self.lateral.weight)

    def forward(self, entered: list[Tensor]) -> Tensor:
        """What is added to the layer, from what enters it in each earlier column, in their order."""
        scaled = [scale * h for scale, h in zip(self.scales, entered, strict=True)]
        added: Tensor = self.lateral(self.reduce(torch.cat(scaled, self.dim)).relu())
        return added


def _add(adapter: Adapter, entered: list[Tensor], _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    joined: Tensor = output + adapter(entered)
    return joined
