"""Reads the weights of an earlier fit from its checkpoint file."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_da.errors import ConfigError, one_line
from lightning_da.networks.word_vectors import WordVectors


def read_checkpoint(path: str, needed: tuple[str, ...] = ("state_dict",)) -> dict[str, Any]:
    """Content of the checkpoint file of a fit; the tensors are read from the file as they are used.

    Args:
        path: The file.
        needed: Keys that the checkpoint must have.

    Raises:
        ConfigError: If the file is missing, damaged or no checkpoint.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path!r} is no checkpoint file; give the path of a checkpoint file")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is empty, cut off or another kind of file")
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if damaged is None else None
    except Exception as error:  # a damaged file, or one of another kind, raises exceptions of many kinds
        raise ConfigError(f"{path!r} is not a checkpoint of a fit ({one_line(error)})") from error
    if damaged is not None:
        raise ConfigError(f"{path!r} is damaged: the checksum of {damaged!r} in it is wrong; take another checkpoint")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ConfigError(f"{path!r} is not a checkpoint of a fit: it has no {missing[0]!r}")
    found: dict[str, Any] = content
    return found


def check_weights(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], name: str) -> None:
    """Checks that weights fit a network.

    Args:
        theirs: The weights by name.
        ours: The network's own parameters and buffers by name.
        name: Name of the weights in the error message.

    Raises:
        ConfigError: If a tensor is missing, has another shape, or is not finite.
    """
    shapes = [{key: tuple(value.shape) for key, value in part.items()} for part in (theirs, ours)]
    wrong = [key for key in {**ours, **theirs} if shapes[0].get(key) != shapes[1].get(key)]
    if wrong:
        there, here = (shape.get(wrong[0], "missing") for shape in shapes)
        raise ConfigError(
            f"{name}: its network differs from this one in {len(wrong)} of {len({**ours, **theirs})} tensors, the "
            f"first is {wrong[0]}: {there} there, {here} here; use the same method, backbone and bottleneck"
        )
    if broken := not_finite(theirs, ours):
        raise ConfigError(
            f"{name}: {len(broken)} of its {len(theirs)} tensors are not finite, the first is {broken[0]}; its fit has "
            "diverged, so fit again, for example with a smaller learning rate"
        )


def not_finite(state: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values; a buffer that begins with infinity, as a mask does, is not one.

    Args:
        state: The tensors by name.
        fresh: The tensors of the same network before training.
    """
    return [name for name, value in state.items() if not value.isfinite().all() and fresh[name].isfinite().all()]


def load_weights(module: nn.Module, checkpoint: str, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Copies the weights of an earlier fit whose names start with one of the prefixes; vectors of words by their word.

    Args:
        module: The network to copy into.
        checkpoint: Checkpoint file of the earlier fit.
        prefixes: Name prefixes of parameters and buffers.

    Returns:
        The arguments of the earlier fit's method; empty if the checkpoint has none.

    Raises:
        ConfigError: If the file is missing, is not a checkpoint, has different layers, or weights that are not finite,
            or is of a progressive network and `module` is not.
    """
    try:
        content = read_checkpoint(checkpoint)
    except ConfigError as error:
        raise ConfigError(f"init_from: {error}") from error
    state = content["state_dict"]
    if any(key.startswith("laterals.") for key in state) and not hasattr(module, "laterals"):
        raise ConfigError(
            f"init_from {checkpoint!r}: it is a column of a progressive network, which is nothing without the columns "
            "that it reads; go on with --config method/progressive.yaml, or start from a run of another method"
        )
    theirs = {key: value for key, value in state.items() if key.startswith(prefixes)}
    for name, part in module.named_modules():
        if isinstance(part, WordVectors) and f"{name}.words" in theirs:
            there = {key: theirs[f"{name}.{key}"] for key in ("words", "weight")}
            theirs |= {f"{name}.{key}": value for key, value in part.translate(there).items()}
    ours = {key: value for key, value in module.state_dict().items() if key.startswith(prefixes)}
    check_weights(theirs, ours, f"init_from {checkpoint!r}")
    module.load_state_dict(theirs, strict=False)
    settings: dict[str, Any] = content.get("hyper_parameters", {})
    return settings
