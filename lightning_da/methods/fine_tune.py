from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from lightning_da.errors import ConfigError, list_choices
from lightning_da.methods.base import TransferModule
from lightning_da.methods.hooks import essential
from lightning_da.networks.layers import module_depths

Start = Literal["random", "frozen", "fine_tuned"]
"""How a block of the network starts: with random weights, or with those of an earlier run, frozen or not."""


class FineTune(TransferModule):
    """Supervised training, starting from random weights, pretrained weights or an earlier run.

    Trained on the source it is the lower bound for adaptation methods (source-only), on the target the upper bound.

    Args:
        init_layers: Number of backbone layers, counted from the input, copied from the run `init_from`. With a number,
            all other layers are new, including the bottleneck; `all` copies backbone and bottleneck.
        keep_head: Whether to copy the head of the run `init_from` too; otherwise the head is new.
        blocks: How each block of the network starts, instead of `init_layers`, `keep_head` and `freeze`: `random`, or
            with the weights of the run `init_from`, `frozen` or `fine_tuned`. Blocks are the layers of the backbone,
            `bottleneck` and `head`; those that are not named are random (Mou et al., EMNLP 2016, section 4,
            https://aclanthology.org/D16-1046).
        **kwargs: Arguments of `TransferModule`.

    Raises:
        ConfigError: If `keep_head`, `init_layers` or a copied block is set without `init_from`, two of them are set,
            `init_layers` is not between 1 and the number of layers, the network has no such block, or all are frozen.
            Whether there is a run `init_from` is known when a fit begins.
    """

    can_regress = True

    _frozen: tuple[nn.Module, ...] = ()
    """Modules of frozen blocks, which stay in evaluation mode."""

    def __init__(
        self,
        init_layers: int | Literal["all"] = "all",
        keep_head: bool = False,
        blocks: dict[str, Start] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._copies = "keep_head" if keep_head else "" if init_layers == "all" else f"init_layers: {init_layers}"
        if blocks is not None:
            if init_layers != "all" or keep_head or self._freezing.any:
                raise ConfigError(
                    "blocks: they say what is copied and frozen; leave out init_layers, keep_head, freeze"
                )
            self._start_blocks(blocks)
            return
        copied = self.initialised
        if init_layers != "all":
            depth = len(self.backbone.layers)
            if keep_head or not 1 <= init_layers <= depth:
                raise ConfigError(f"init_layers: {init_layers} is not 1 to {depth} with a new head (keep_head false)")
            copied = self._names(self._modules_of(set(self.backbone.layers[:init_layers])))
        self.initialised = (*copied, "head.") if keep_head else copied

    def _start_blocks(self, blocks: Mapping[str, Start]) -> None:
        for name in blocks:
            if name not in self.depths:
                raise ConfigError(f"blocks: the network has no block {name!r}; {list_choices(name, self.depths)}")
        copied = {name for name, start in blocks.items() if start != "random"}
        self._copies = f"blocks: {min(copied)}" if copied else ""
        self.initialised = self._names(self._modules_of(copied))
        frozen = self._modules_of({name for name, start in blocks.items() if start == "frozen"})
        for module in frozen.values():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigError("blocks: all are frozen, so nothing is left to learn; `test` needs no fit")
        self._frozen = tuple(module for module in frozen.values() if set(module.modules()) <= set(frozen.values()))
        self.train()

    def initialise(self) -> None:
        if self._copies and not self.starts_from:
            raise ConfigError(
                f"{self._copies} needs an earlier run to copy from; set --model.init_from, or train it first with "
                "--after source_only"
            )
        super().initialise()

    def _modules_of(self, blocks: set[str]) -> dict[str, nn.Module]:
        """The modules of blocks by their name; a module between two layers belongs to the later one."""
        layers = self.backbone.layers
        depths = dict(module_depths(self.backbone, layers))
        found = {
            ".".join(filter(None, ("backbone", name))): module
            for name, module in self.backbone.named_modules()
            if depths[module] < len(layers) and layers[depths[module]] in blocks
        }
        for name in blocks & {"bottleneck", "head"}:
            found |= {part: module for part, module in self.named_modules() if f"{part}.".startswith(f"{name}.")}
        return found

    @staticmethod
    def _names(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
        """Names of the parameters and buffers of modules, without those of their submodules."""
        return tuple(
            f"{name}.{own}" for name, module in modules.items() for own in (*module._parameters, *module._buffers)
        )

    @essential
    def train(self, mode: bool = True) -> "FineTune":
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self
