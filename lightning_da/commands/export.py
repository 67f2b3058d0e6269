"""`lightning-da export`: writes the network of a run as a file that runs without this project."""

from collections.abc import Sequence
from pathlib import Path

from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError, RunError, first_line
from lightning_da.exporting import OUTPUTS, check, export, restored, save, save_onnx
from lightning_da.parser import CommandParser
from lightning_da.paths import check_output, write_whole


def run(args: Sequence[str]) -> Path:
    """Writes the network of a run as a file of torch.export or ONNX, after a comparison of its outputs.

    Args:
        args: The arguments after `export`.

    Returns:
        The file.

    Raises:
        ConfigError: If the run or its data are missing, or a package for ONNX is.
        RunError: If the network cannot be exported, or the file gives other outputs.
    """
    parser = CommandParser(
        "lightning-da export",
        description="Write the network of a run, from samples to class probabilities (numbers in a regression, "
        "embeddings in metric learning), as a file that runs without this project. Its outputs are compared with those "
        "of the network on samples of the target. All options of `predict` are accepted too.",
        usage="lightning-da export RUN [--onnx] [--output FILE] [--OPTION VALUE ...]",
    )
    parser.add_argument("run", metavar="RUN", help="checkpoint file, run id or run name")
    parser.add_argument("--onnx", action="store_true", help="write ONNX instead of torch.export (extra onnx)")
    parser.add_argument("--output", type=Path, help="the file (default: the name of the run, with .pt2 or .onnx)")
    given, options = parser.parse_known_args(args)
    cli = TransferCLI("predict", ["--ckpt_path", given.run, *options])
    path = given.output or Path(cli.run_name + (".onnx" if given.onnx else ".pt2"))
    check_output("output", path, [".onnx" if given.onnx else ".pt2"])
    if given.output is None and path.exists():
        raise ConfigError(f"{str(path)!r} is there already, perhaps of another run; name a file with --output")
    cli.config.trainer.logger = False
    cli.build()
    network, data = cli.model, cli.datamodule
    with restored(network, cli.config.ckpt_path), write_whole(path) as part:
        try:
            program = export(network, data)
            outputs = program.module()(data.probe(1)[0])
            if given.onnx:
                check(save_onnx(program, part, network, data), network, data)
            else:
                save(program, part, network, data)
        except (ConfigError, RunError, OSError):
            raise
        except Exception as error:  # torch raises exceptions of many kinds
            raise RunError(f"torch cannot export the network ({type(error).__name__}: {first_line(error)})") from error
    blank = data.reads.blank
    shape = ", ".join(map(str, ("n", *blank.shape)))
    answers = f"{OUTPUTS[network.answers_with]} ({', '.join(map(str, ('n', *outputs.shape[1:])))})"
    print(f"{path}: from samples ({shape}) of {str(blank.dtype)[6:]} to {answers}")
    return path
