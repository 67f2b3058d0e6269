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
"""Largest difference of a probability between a program and its network; of a number as a share of the deviation of the
labels, of an embedding as a share of the largest value."""
ROUNDING = 1e-6
"""What is allowed besides, as a share of a value: numbers far from 0 have no more digits in float32."""
PROBED = 8
"""Samples of the target that a program is checked with."""
SAMPLES = "samples"
"""Name of the input of an ONNX file."""
OUTPUTS = {"class": "probabilities", "mask": "probabilities", "value": "values", "embedding": "embeddings"}
"""What a program gives, by what its network answers with; also the name of the output of an ONNX file."""


class Answer(nn.Module):
    """From samples as `reads` gives them to the answers of a network, as `predict` computes them.

    Args:
        network: The network; samples are of the target.
        reads: What gives the samples.
    """

    def __init__(self, network: Classifier, reads: Input) -> None:
        super().__init__()
        network.set_domain("target")
        self.network, self._reads = network, reads
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the `answers` of the network, for example class probabilities (n, classes), of samples (n, ...)."""
        return self.network.answers(self.network(self._reads.scaled(x)))


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
        A program from samples as `data.reads` gives them to the `answers` of the network.

    Raises:
        RunError: If the outputs differ.
        Exception: Of many kinds, if torch cannot export the network.
    """
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
        RunError: If an answer differs by more than `TOLERANCE` and `ROUNDING`.
    """
    given, x = data.probe(PROBED)
    network.eval()
    network.set_domain("target")
    expected = network.answers(network(x))
    unit = 1.0
    if network.answers_with == "value":
        unit = float(network.label_scale.deviation)
    elif network.answers_with == "embedding":
        unit = float(expected.abs().max())
    for number in (len(x), 1):
        difference = (program(given[:number]) - expected[:number]).abs()
        if not bool((difference <= TOLERANCE * unit + ROUNDING * expected[:number].abs()).all()):
            raise RunError(
                f"the program's {OUTPUTS[network.answers_with]} differ from those of the network by "
                f"{float(difference.max()):.2g}"
            )


def description(network: Classifier, data: DomainPairDataModule) -> str:
    """What a file says about its model, as JSON: the kind of input and of answer, and the classes in their order."""
    classes = data.classes if network.answers_with in ("class", "mask") else []
    return json.dumps({"input": described(data.reads), "answer": network.answers_with, "classes": classes})


def save(program: ExportedProgram, path: Path, network: Classifier, data: DomainPairDataModule) -> None:
    """Writes a program as a file of torch.export.

    Args:
        program: The program.
        path: The file.
        network: The network of the program.
        data: The data that it was trained on.
    """
    with path.open("wb") as stream:  # torch warns of a path that does not end in .pt2
        torch.export.save(program, stream, extra_files={DESCRIPTION: description(network, data)})


def save_onnx(
    program: ExportedProgram, path: Path, network: Classifier, data: DomainPairDataModule
) -> Callable[[Tensor], Tensor]:
    """Writes a program as an ONNX file.

    Args:
        program: The program.
        path: The file.
        network: The network of the program.
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
        names: dict[str, Any] = {"input_names": [SAMPLES], "output_names": [OUTPUTS[network.answers_with]]}
        try:
            written = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        except torch.onnx.OnnxExporterError as error:
            if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error)):
                raise RunError(
                    f"--onnx: ONNX has no {missing[1]}, which the network needs; leave out --onnx"
                ) from error
            raise
    assert written is not None
    written.model.metadata_props[DESCRIPTION] = description(network, data)
    written.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {SAMPLES: x.numpy()})[0])
