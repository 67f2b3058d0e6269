"""Networks as programs that run without this project: torch.export and ONNX."""

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from lightning_da.data.base import DomainPairDataModule
from lightning_da.errors import ConfigError, RunError
from lightning_da.inputs import Input, described
from lightning_da.methods.classifier import Classifier
from lightning_da.networks.weights import read_checkpoint
from lightning_da.served import DESCRIPTION

TOLERANCE = 1e-4
"""Largest difference of a probability between a program and its network."""
PROBED = 8
"""Samples of the target that a program is checked with."""
SAMPLES, PROBABILITIES = "samples", "probabilities"
"""Names of the input and the output of an ONNX file."""


class Answer(nn.Module):
    """From samples as `reads` gives them to class probabilities, as `predict` computes them.

    Args:
        network: The classifier; samples are of the target.
        reads: What gives the samples.
    """

    def __init__(self, network: Classifier, reads: Input) -> None:
        super().__init__()
        network.set_domain("target")
        self.network, self._reads = network, reads
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Computes class probabilities (n, classes), or (n, classes, height, width), of samples (n, ...)."""
        probabilities: Tensor = self.network(self._reads.scaled(x)).softmax(dim=1)
        return probabilities


@contextmanager
def restored(network: Classifier, checkpoint: str) -> Iterator[None]:
    """Within it, a network has the weights of a checkpoint in float32; afterwards its own again, and its modes.

    A copy of the network would be one of the data and the trainer too, to which its optimizer leads.

    Args:
        network: The network, on the CPU.
        checkpoint: The checkpoint file of one of its fits.
    """
    own = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [(part, part.training) for part in network.modules()]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    half = next((part.dtype for part in trained if part.dtype in (torch.float16, torch.bfloat16)), None)
    try:
        if half is not None:
            network.float()
        network.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
        yield
    finally:
        if half is not None:
            network.to(half)
        network.load_state_dict(own)
        for part, mode in modes:
            part.training = mode
        for parameter in trained:
            parameter.requires_grad_()


def export(network: Classifier, data: DomainPairDataModule) -> ExportedProgram:
    """The program of a network, for any number of samples; its outputs are compared with those of the network.

    Args:
        network: The network, on the CPU. It is set to evaluation mode, without gradients.
        data: Its data, whose target gives the samples to compare with.

    Returns:
        A program from samples as `data.reads` gives them to class probabilities.

    Raises:
        ConfigError: If the network gives embeddings or numbers.
        RunError: If the outputs differ.
        Exception: Of many kinds, if torch cannot export the network.
    """
    if network.embeds or network.regresses:
        kind = "embeddings" if network.embeds else "numbers"
        raise ConfigError(
            f"{type(network).__name__} gives {kind}, and a program answers with classes; use lightning-da predict"
        )
    answer = Answer(network, data.reads)
    example = torch.stack([data.reads.blank] * 2)  # of one sample, the number would become a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own modules
        program = torch.export.export(answer, (example,), dynamic_shapes=({0: torch.export.Dim("samples")},))
    _drop_unused(program)
    check(program.module(), network, data)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Drops the weights that no output needs, such as those of discriminators."""
    specs = program.graph_signature.input_specs
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(inputs, list(specs), strict=True):
        if spec.target is not None and not node.users:
            program.graph.erase_node(node)
            specs.remove(spec)
            program.state_dict.pop(spec.target, None)
    program.graph_module.recompile()


@torch.no_grad()
def check(program: Callable[[Tensor], Tensor], network: Classifier, data: DomainPairDataModule) -> None:
    """Compares the outputs of a program with those of its network on samples of the target, many and one.

    Raises:
        RunError: If a probability differs by more than `TOLERANCE`.
    """
    given, x = data.probe(PROBED)
    network.eval()
    network.set_domain("target")
    expected: Tensor = network(x).softmax(dim=1)
    for number in (len(x), 1):
        difference = float((program(given[:number]) - expected[:number]).abs().max())
        if not difference <= TOLERANCE:
            raise RunError(f"the program's probabilities differ from those of the network by {difference:.2g}")


def description(data: DomainPairDataModule) -> str:
    """What a file says about its model: the classes in the order of the outputs, and the kind of input, as JSON."""
    return json.dumps({"classes": data.classes, "input": described(data.reads)})


def save(program: ExportedProgram, path: Path, data: DomainPairDataModule) -> None:
    """Writes a program as a file of torch.export.

    Args:
        program: The program.
        path: The file.
        data: The data that it was trained on.
    """
    with path.open("wb") as stream:  # torch warns of a path that does not end in .pt2
        torch.export.save(program, stream, extra_files={DESCRIPTION: description(data)})


def save_onnx(program: ExportedProgram, path: Path, data: DomainPairDataModule) -> Callable[[Tensor], Tensor]:
    """Writes a program as an ONNX file.

    Args:
        program: The program.
        path: The file.
        data: The data that it was trained on.

    Returns:
        The function that ONNX Runtime computes with the file.

    Raises:
        ConfigError: If the packages of the extra `onnx` are missing.
        RunError: If ONNX lacks an operation of the network.
    """
    try:
        import onnxruntime  # noqa: PLC0415  # an extra
        import onnxscript  # noqa: F401, PLC0415  # torch needs it
    except ImportError as error:
        raise ConfigError(
            f"--onnx: the package {error.name} is missing; install the extra onnx: .venv/bin/pip install -e '.[onnx]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names: dict[str, Any] = {"input_names": [SAMPLES], "output_names": [PROBABILITIES]}
        try:
            written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        except torch.onnx.OnnxExporterError as error:
            if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)):
                raise RunError(
                    f"--onnx: ONNX has no {missing[1]}, which the network needs; leave out --onnx"
                ) from error
            raise
    assert written is not None
    written.model.metadata_props[DESCRIPTION] = description(data)
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {SAMPLES: x.numpy()})[0])
