"""Loads the weights of an earlier fit from its checkpoint file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_da.errors import ConfigError


def load_weights(module: nn.Module, checkpoint: str, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Copies the weights of an earlier fit whose names start with one of the prefixes.

    Args:
        module: The network to copy into.
        checkpoint: Checkpoint file of the earlier fit.
        prefixes: Name prefixes of parameters and buffers.

    Returns:
        The arguments of the earlier fit's method; empty if the checkpoint has none.

    Raises:
        ConfigError: If the file is missing, is not a checkpoint, or has different layers.
    """
    if not Path(checkpoint).is_file():
        raise ConfigError(f"init_from: {checkpoint!r} is no checkpoint file; give the path of a checkpoint file")
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state = content["state_dict"]
    except Exception as error:  # a file of another kind raises exceptions of many kinds
        raise ConfigError(f"init_from: {checkpoint!r} is not a checkpoint of a fit ({error})") from error
    theirs = {key: value for key, value in state.items() if key.startswith(prefixes)}
    ours = {key: value for key, value in module.state_dict().items() if key.startswith(prefixes)}
    shapes = [{key: tuple(value.shape) for key, value in part.items()} for part in (theirs, ours)]
    wrong = [key for key in {**ours, **theirs} if shapes[0].get(key) != shapes[1].get(key)]
    if wrong:
        there, here = (shape.get(wrong[0], "missing") for shape in shapes)
        raise ConfigError(
            f"init_from {checkpoint!r}: its network differs from this one in {len(wrong)} tensors, the first is "
            f"{wrong[0]}: {there} there, {here} here; use the same backbone and bottleneck"
        )
    module.load_state_dict(theirs, strict=False)
    settings: dict[str, Any] = content.get("hyper_parameters", {})
    return settings
