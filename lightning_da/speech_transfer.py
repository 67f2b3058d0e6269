"""`lightning-da speech-transfer`: what learning speakers or genders first does for emotions, in two sizes of a network.

A network learns the source task, its output layer is replaced, and all of it is trained on the emotions of the target;
beside it one that is trained on the emotions alone, and the ensemble of the sizes.

Source: Huang et al., CCPR 2016, tables 2 and 3.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from lightning_da.backbones import FeedForward
from lightning_da.data import SpeechCorpora
from lightning_da.data.speech import TASKS
from lightning_da.errors import ConfigError
from lightning_da.grid import Main, Result, check_trainable, digest, run_grid
from lightning_da.methods import SpeechFFN
from lightning_da.tracking import PROJECT, client

EXPERIMENT = "speech_transfer"
RESERVED = {"train_on": "target", "init_from": None, "init_layers": "all", "keep_head": False}
"""Arguments of `SpeechFFN` that the experiment sets, and what they are where nobody has set them."""
SOURCE_TASKS = ("none", "gender", "speaker")
ENSEMBLE = "ensemble"
FIGURES = {"accuracy": "test/target/acc", "MAP": "test/target/class_precision", "UAR": "test/target/class_acc"}
"""Columns of the table, and the metrics that they show."""


class Cell(NamedTuple):
    """One training, or one ensemble.

    Attributes:
        learns: `source`, or `target` for emotions.
        source_task: What the network learns first: `speaker`, `gender` or `none`.
        sizes: Hidden widths of the network, 1024:1024 say; of an ensemble those of each member, joined by +.
        seed: Of the repetition: it draws the speakers of each split.
    """

    learns: str
    source_task: str
    sizes: str
    seed: int

    @property
    def bases(self) -> tuple["Cell", ...]:
        """The training, or those, that it starts from."""
        if "+" in self.sizes:
            return tuple(Cell("target", self.source_task, size, self.seed) for size in self.sizes.split("+"))
        if self.learns == "source" or self.source_task == "none":
            return ()
        return (Cell("source", self.source_task, self.sizes, self.seed),)

    @property
    def metric(self) -> str:
        """Accuracy on what it learns."""
        return f"test/{self.learns}/acc"

    @property
    def name(self) -> str:
        """What it learns, after what, in which size: gender-emotion-1024:1024-s0, say."""
        learnt = [] if self.source_task == "none" else [self.source_task]
        tasks = [*learnt, *(["emotion"] if self.learns == "target" else [])]
        return "-".join([*tasks, ENSEMBLE if "+" in self.sizes else self.sizes, f"s{self.seed}"])

    def random_seed(self) -> int:
        """The seed of weights and batches, different in each cell."""
        key = [ord(letter) for letter in f"{self.learns} {self.source_task} {self.sizes}"]
        return int(np.random.SeedSequence([self.seed, *key]).generate_state(1)[0])


def plan(seeds: Sequence[int], source_tasks: Sequence[str], sizes: Sequence[str]) -> list[Cell]:
    """The cells of an experiment; what another one starts from comes before it."""
    cells = []
    for seed in seeds:
        targets = [Cell("target", task, size, seed) for task in source_tasks for size in sizes]
        joined = [Cell("target", task, "+".join(sizes), seed) for task in source_tasks] if len(sizes) > 1 else []
        cells += [*(base for cell in targets for base in cell.bases), *targets, *joined]
    return list(dict.fromkeys(cells))


class Experiment(NamedTuple):
    """What all cells have in common.

    Attributes:
        config: The configuration of the second stage.
        sizes: Of the networks, which an ensemble joins.
        data: A digest of all samples and labels.
    """

    config: dict[str, Any]
    sizes: tuple[str, ...]
    data: str = ""

    def digest(self) -> str:
        """Equal for experiments whose cells can stand in one table."""
        return digest(self.config, self.sizes, self.data)

    def data_of(self, cell: Cell) -> dict[str, Any]:
        """The arguments of `SpeechCorpora` for a cell."""
        task = cell.source_task if cell.learns == "source" else "emotion"
        return {**self.config["data"]["init_args"], "task": task, "seed": cell.seed}

    def cell_config(self, cell: Cell, bases: list[str]) -> dict[str, Any]:
        """The configuration of a fit that is one cell.

        Args:
            cell: The cell.
            bases: Ids of the runs that it starts from.
        """
        config = copy.deepcopy(self.config)
        config["name"], config["seed_everything"] = cell.name.rsplit("-s", 1)[0], cell.random_seed()
        config["data"]["init_args"] = self.data_of(cell)
        if "+" in cell.sizes:
            config["model"] = {"class_path": "lightning_da.methods.MarginEnsemble", "init_args": {"members": bases}}
        else:
            widths = [int(width) for width in cell.sizes.split(":")]
            config["model"]["init_args"]["backbone"]["init_args"]["hidden"] = widths
            config["model"]["init_args"] |= {
                "train_on": cell.learns,
                "init_from": bases[0] if bases else None,
            }
            if not bases:  # random layers are not frozen
                config["model"]["init_args"] |= {"freeze": 0, "unfreeze_by": None}
        pictures = {"class_path": "lightning_da.figures.TestFigures", "init_args": {"samples": 200}}
        config["trainer"]["callbacks"] = [pictures] if cell.learns == "target" else []
        return config


def speech_transfer(args: Sequence[str], load: Callable[[Sequence[str]], Any], main: Main) -> pd.DataFrame:
    """`lightning-da speech-transfer`: runs what is not there yet of an experiment, reports it and returns its table.

    Args:
        args: The words behind `speech-transfer`.
        load: From the words of a command to its `TransferCLI`, not run.
        main: Runs the command line `fit ...` in another process, and returns it.

    Raises:
        ConfigError: If the options do not fit the data or the method, another process runs the same experiment, or a
            training failed.
    """
    given, options = _parser().parse_known_args(args)
    for option, instead in (("--after", "source_tasks"), ("--model.init_args.backbone.init_args.hidden", "sizes")):
        if any(word.split("=")[0] == option for word in options):
            raise ConfigError(f"{option}: speech-transfer sets it for each training; give --{instead}")
    stage_2 = ["--config", str(PROJECT / "conf" / "method" / "speech_ffn.yaml")]
    experiment = ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    cli = load(["fit", *stage_2, *experiment, *options, "--after", "null"])
    if not isinstance(cli.model, SpeechFFN) or not isinstance(cli.model.backbone, FeedForward):
        raise ConfigError("speech-transfer trains SpeechFFN on a FeedForward backbone; leave out other methods")
    if not isinstance(cli.datamodule, SpeechCorpora):
        raise ConfigError("speech-transfer reads SpeechCorpora; leave out other data")
    sizes = tuple(_size(text) for text in given.sizes)
    if len(set(sizes)) < len(sizes):
        raise ConfigError(f"sizes: {' '.join(sizes)} names one twice")
    grid = Experiment(check_trainable(cli, given.seeds, RESERVED), sizes)
    for key, default in (("task", "emotion"), ("seed", 0)):
        if getattr(cli.datamodule, key) != default:
            raise ConfigError(f"data.init_args.{key}: speech-transfer sets it for each training; leave it out")
    cells = plan(given.seeds, given.source_tasks, sizes)
    grid = grid._replace(data=_check(grid, cli, cells))
    roles = (getattr(cli.datamodule, role) for role in ("source", "target"))
    name = given.name or "-".join(["speech-transfer", *(Path(role).stem for role in roles)])
    return run_grid(grid, cells, cli, main, name, given.jobs, partial(report, name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-da speech-transfer",
        description="Train networks to tell speakers, or genders, apart in the source, and then, with a new output "
        "layer, emotions in the target, beside networks for emotions alone; join the sizes by their margins. What was "
        "finished before an interruption is not run again. Further options are those of `fit`.",
        usage="lightning-da speech-transfer --config conf/data/speech.yaml [--seeds ...] [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="repetitions (default: 0 1 2)"
    )
    parser.add_argument(
        "--source_tasks", nargs="+", default=SOURCE_TASKS, choices=SOURCE_TASKS, metavar="NAME",
        help="what is learnt first: none, gender, speaker (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", default=["1024:1024", "2048:2048"], metavar="N:N",
        help="widths of the hidden layers (default: 1024:1024 2048:2048)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, help="trainings at a time (default: one a GPU, else one a core)")
    parser.add_argument("--name", help="name of the run of the whole experiment")
    return parser


def _size(text: str) -> str:
    if not all(part.isdecimal() and int(part) for part in text.split(":")):
        raise ConfigError(f"sizes: {text!r} is no list of widths, as 1024:1024 is")
    return text


def _check(grid: Experiment, cli: Any, cells: Sequence[Cell]) -> str:
    """Checks the data of all cells before the first is trained, and returns a digest of the corpora."""
    cli.trainer.strategy.connect(cli.model)
    for learns, task, seed in dict.fromkeys((cell.learns, cell.source_task, cell.seed) for cell in cells):
        data = SpeechCorpora(**grid.data_of(Cell(learns, task, "", seed)))
        data.trainer, cli.model.supervised = cli.trainer, (learns,)
        data.check()
    return " ".join(SpeechCorpora(**{**grid.config["data"]["init_args"], "task": task}).fingerprint() for task in TASKS)


# ---------------------------------------------------------------- the result


def table(done: dict[Cell, Result]) -> pd.DataFrame:
    """A row for each finished cell: what it learns, source task, network, seed, its figures in per cent, run.

    Of a source task the figure is `error`, of emotions those of `FIGURES`.
    """

    def place(item: tuple[Cell, Result]) -> tuple[Any, ...]:
        cell = item[0]
        sizes = [tuple(int(width) for width in size.split(":")) for size in cell.sizes.split("+")]
        return cell.learns, SOURCE_TASKS.index(cell.source_task), len(sizes), sizes, cell.seed

    rows = []
    for cell, result in sorted(done.items(), key=place):
        network = ENSEMBLE if "+" in cell.sizes else cell.sizes
        row = {"learns": cell.learns, "source task": cell.source_task, "network": network, "seed": cell.seed}
        if cell.learns == "source":
            row["error"] = 100 - 100 * result.metrics[cell.metric]
        else:
            row |= {column: 100 * result.metrics[metric] for column, metric in FIGURES.items()}
        rows.append({**row, "seconds": result.seconds, "run": result.run_id})
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds for each source task and network.

    Args:
        rows: Of `table`, all of one stage.
        columns: The figures.
    """
    groups = rows.groupby(["source task", "network"], sort=False)[list(columns)]
    return groups.agg(["mean", "std", "count"])


def figure(rows: pd.DataFrame, title: str) -> Figure:
    """Unweighted average recall of emotions for each source task and network: means as bars, seeds as points.

    Args:
        rows: Of `table`.
        title: Of the figure.
    """
    rows = rows[rows["learns"] == "target"]
    tasks, networks = list(rows["source task"].unique()), list(rows["network"].unique())
    drawn = Figure(figsize=(1.5 + 2 * len(tasks), 4), layout="constrained")
    axes = drawn.subplots()
    for place, network in enumerate(networks):
        offsets = np.arange(len(tasks)) + 0.8 * ((place + 0.5) / len(networks) - 0.5)
        own = [rows[(rows["source task"] == task) & (rows["network"] == network)]["UAR"] for task in tasks]
        colour = colormaps["tab10"](place)
        axes.bar(offsets, [part.mean() for part in own], 0.7 / len(networks), color=colour, alpha=0.6, label=network)
        for offset, part in zip(offsets, own, strict=True):
            axes.plot([offset] * len(part), part, ".", color="black", ms=4)
    axes.set_xticks(range(len(tasks)), [f"after {task}" if task != "none" else "baseline" for task in tasks])
    axes.set(ylabel="UAR of emotions, test split (%)", title=title, ylim=(0, 100))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return drawn


def report(name: str, done: dict[Cell, Result], parent: str) -> pd.DataFrame:
    """Prints the two tables, writes figures, cells and picture into the experiment's run, and returns its cells."""
    rows, tracked = table(done), client()
    stages = {"source": ["error"], "target": list(FIGURES)}
    titles = {"source": "source task, error in per cent", "target": "emotions after a source task, per cent"}
    for learns, columns in stages.items():
        own = rows[rows["learns"] == learns]
        if own.empty:
            continue
        means = summary(own, columns)
        for column in columns:
            for index, mean in zip(means.index.tolist(), means[column, "mean"], strict=True):
                key = "_".join(index).replace(":", "-")
                tracked.log_metric(parent, f"{'source_error' if learns == 'source' else column}/{key}", mean)
        text: dict[str, Any] = {"seeds": means[columns[0], "count"].to_list()}
        text |= {column: [_number(*row) for row in means[column].itertuples(index=False)] for column in columns}
        print(f"\n{titles[learns]}, test split")
        print(pd.DataFrame(text, index=means.index).reset_index().to_string(index=False))
    tracked.log_text(parent, rows.to_csv(index=False), "cells.csv")
    tracked.log_figure(parent, figure(rows, name), "speech_transfer.png")
    print(f"\ntables and figure: run {name} ({parent})")
    return rows


def _number(mean: float, deviation: float, _count: int) -> str:
    return f"{mean:.1f}" + ("" if pd.isna(deviation) else f" ± {deviation:.1f}")
