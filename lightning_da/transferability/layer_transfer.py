"""The experiment of copied layers: how far up a network for task A serves task B.

Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014, sections 2 and 4.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.accelerators import CUDAAccelerator
from matplotlib.figure import Figure
from mlflow.entities import Run

from lightning_da.data import DomainPairDataModule, Task
from lightning_da.errors import ConfigError, list_choices
from lightning_da.methods import FineTune
from lightning_da.tracking import PROJECT, Tracker, TrackingError, client, find_fit, parameters, tracking_uri

EXPERIMENT = "layer_transfer"
TREATMENTS = ("BnB", "AnB", "BnB+", "AnB+", "random")
"""The first n layers are those of a network for B, or for A, frozen or (+) trained further, or random and frozen."""
STYLES = {
    "BnB": ("tab:blue", "-", "o"),
    "BnB+": ("tab:cyan", "--", "o"),
    "AnB": ("tab:red", "-", "s"),
    "AnB+": ("tab:orange", "--", "s"),
    "random": ("tab:grey", ":", "^"),
}

OF_NO_EFFECT = (
    *("logger", "callbacks", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"),
    *("limit_val_batches", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps"),
)
"""Options of the trainer that change no result of a cell."""

RESERVED = {
    "train_on": "source",
    "init_from": None,
    "init_layers": "all",
    "keep_head": False,
    "freeze": 0,
    "unfreeze_by": None,
}
"""Arguments of `FineTune` that a cell sets, and what they are where nobody has set them."""

SPAWN = get_context("spawn")

Main = Callable[[list[str]], Any]
"""Runs a command line."""


# ---------------------------------------------------------------- the plan


class Cell(NamedTuple):
    """One training of the grid.

    Attributes:
        treatment: `A` or `B` for the networks to copy from, else one of `TREATMENTS`.
        n: How many layers are copied; 0 for the networks to copy from.
        labels: How many training labels the task has; None for all.
        seed: Of the repetition: it splits the classes and draws the labels.
    """

    treatment: str
    n: int
    labels: int | None
    seed: int

    @property
    def base(self) -> "Cell | None":
        """The training that the layers are copied from."""
        if not self.n or self.treatment == "random":
            return None
        task = self.treatment[0]
        return Cell(task, 0, None if task == "A" else self.labels, self.seed)

    @property
    def name(self) -> str:
        """A3B+, say: with the number of layers in the place of n; `labels` and seed follow."""
        head = f"base{self.treatment}" if not self.n else self.treatment.replace("n", str(self.n), 1)
        head = f"random{self.n}" if self.treatment == "random" else head
        return f"{head}{'' if self.labels is None else f'-{self.labels}'}-s{self.seed}"

    def random_seed(self) -> int:
        """The seed of weights and batches, different in each cell: new layers are not those that a base began with."""
        kind = ("A", "B", *TREATMENTS).index(self.treatment)
        state = np.random.SeedSequence([self.seed, kind, self.n, self.labels or 0]).generate_state(1)
        return int(state[0])


def plan(
    seeds: Sequence[int], labels: Sequence[int | None], depths: Sequence[int], treatments: Sequence[str]
) -> list[Cell]:
    """The cells of a grid; what another one copies from comes before it."""
    cells: list[Cell] = []
    for seed in seeds:
        treated = [Cell(t, n, number, seed) for number in labels for n in depths for t in treatments]
        bases = [Cell("B", 0, number, seed) for number in labels]
        cells += [*(cell.base for cell in treated if cell.base), *bases, *treated]
    return list(dict.fromkeys(cells))


class Grid(NamedTuple):
    """What all cells have in common.

    Attributes:
        config: The configuration of a fit on the whole data.
        classes: Names of all classes.
        layers: Names of the backbone's layers.
        task_a: Classes of A; None draws half of them for each seed.
        across: Whether A is the source and B the target, with all classes.
        data: A digest of all samples and labels.
    """

    config: dict[str, Any]
    classes: list[str]
    layers: list[str]
    task_a: list[str] | None
    across: bool
    data: str

    def digest(self) -> str:
        """Equal for grids whose cells can stand in one table."""
        trainer = {k: v for k, v in self.config["trainer"].items() if k not in OF_NO_EFFECT}
        same = [self.config["model"], self.config["data"], trainer, self.task_a, self.across, self.data]
        return hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def task(self, name: str, seed: int) -> dict[str, Any]:
        """The arguments of `Task` for A or B."""
        if self.across:
            return {"domain": "source" if name == "A" else "target", "classes": None}
        order = np.random.default_rng(seed).permutation(len(self.classes))
        half = {self.classes[i] for i in order[: len(order) // 2]}
        first = half if self.task_a is None else set(self.task_a)
        return {"domain": "source", "classes": [c for c in self.classes if (c in first) == (name == "A")]}

    def task_of(self, cell: Cell) -> dict[str, Any]:
        """The arguments of `Task` for what a cell reads."""
        whole = self.config["data"].get("init_args", {})
        batch = {key: whole[key] for key in ("batch_size",) if key in whole}
        task = self.task("A" if cell.treatment == "A" else "B", cell.seed)
        return {**task, "labels": cell.labels, "seed": cell.seed, **batch}

    def check(self, data: DomainPairDataModule, cells: Sequence[Cell]) -> None:
        """Checks the data of all cells before the first is trained.

        Args:
            data: The whole data.
            cells: All cells.

        Raises:
            ConfigError: If a task cannot be trained on.
        """
        read = {json.dumps(self.task_of(cell)): self.task_of(cell) for cell in cells}
        for arguments in read.values():
            Task(data, **arguments).check()

    def cell_config(self, cell: Cell, experiment: str, parent: str, base: str | None) -> dict[str, Any]:
        """The configuration of a fit that is one cell.

        Args:
            cell: The cell.
            experiment: Name of the MLflow experiment.
            parent: Id of the run of the whole grid.
            base: Id of the run that the layers are copied from.
        """
        config = copy.deepcopy(self.config)
        init_args = {"data": config["data"]} | self.task_of(cell)
        config["data"] = {"class_path": "lightning_da.data.Task", "init_args": init_args}
        frozen = 0 if cell.treatment.endswith("+") else cell.n
        config["model"]["init_args"] |= {
            "train_on": "source",
            "init_from": base,
            "init_layers": cell.n if base else "all",
            "keep_head": False,
            "freeze": frozen,
            "unfreeze_by": None,
        }
        config["name"], config["seed_everything"] = cell.name.rsplit("-s", 1)[0], cell.random_seed()
        trainer = config["trainer"]
        last = ("every_n_train_steps", "max_steps") if trainer["max_steps"] > 0 else ("every_n_epochs", "max_epochs")
        save = {"save_last": True, "save_top_k": 0, last[0]: trainer[last[1]]}
        checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": save}
        trainer["callbacks"] = [] if cell.n else [checkpoint]
        trainer |= {"enable_checkpointing": not cell.n, "enable_progress_bar": False, "limit_val_batches": 0}
        trainer["logger"]["init_args"] |= {
            "experiment_name": experiment,
            "run_name": cell.name,
            "run_id": None,
            "tags": {"mlflow.parentRunId": parent, "cell": json.dumps(cell)},
        }
        return config


# ---------------------------------------------------------------- the processes


class Result(NamedTuple):
    """What a finished cell leaves: accuracy on the test split of its task, seconds, and its run."""

    accuracy: float
    seconds: float
    run_id: str


def _start(counter: Any, gpus: list[str]) -> None:
    """Makes a process of the pool ready: one thread, so that results do not depend on `jobs`, and a GPU of its own."""
    with counter.get_lock():
        place = counter.value
        counter.value += 1
    torch.set_num_threads(1)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_cell(main: Main, config: dict[str, Any]) -> Result:
    """Fits and tests one cell; the tag `whole` is set when all is there."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        try:
            cli = main(["fit", "--config", str(path)])
        except SystemExit as stop:
            raise ConfigError(str(stop).removeprefix("lightning-da: error: ")) from stop
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    run_id = cli.trainer.logger.run_id
    seconds = time.monotonic() - start
    client().log_metric(run_id, "cell/seconds", seconds)
    client().set_tag(run_id, "whole", "true")
    return Result(float(cli.trainer.callback_metrics["test/target/acc"]), seconds, run_id)


def _run_all(
    grid: Grid,
    cells: list[Cell],
    done: dict[Cell, Result],
    main: Main,
    experiment: str,
    parent: str,
    pool: ProcessPoolExecutor,
) -> Iterator[tuple[Cell, Result | BaseException]]:
    """Runs what is not done in the processes of the pool, each cell after the one that it copies from."""
    waiting = [cell for cell in cells if cell not in done]
    running: dict[Future[Result], Cell] = {}
    try:
        while waiting or running:
            ready = [cell for cell in waiting if cell.base is None or cell.base in done]
            for cell in ready:
                base = done[cell.base].run_id if cell.base else None
                config = grid.cell_config(cell, experiment, parent, base)
                running[pool.submit(_run_cell, main, config)] = cell
            waiting = [cell for cell in waiting if cell not in ready]
            if not running:
                return  # what is left copies from a cell that failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenExecutor):
                    raise error
                cell = running.pop(future)
                if error is None:
                    done[cell] = future.result()
                yield cell, error or done[cell]
    except BrokenExecutor:
        for cell in running.values():
            yield cell, ConfigError("its process was killed; if memory ran out, call again with fewer --jobs")


@contextmanager
def _pool(jobs: int, gpus: list[str]) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once if an exception leaves it."""
    with ProcessPoolExecutor(jobs, SPAWN, _start, (SPAWN.Value("i", 0), gpus)) as pool:
        try:
            yield pool
        except BaseException:
            for worker in active_children():
                worker.kill()
            raise


# ---------------------------------------------------------------- the store


def _children(experiment_id: str, parent: str) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client().search_runs(
            [experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", page_token=token, order_by=["start_time"]
        )
        runs += page
        token = page.token
        if not token:
            return runs


def _finished(experiment_id: str, parents: Sequence[str], cells: Sequence[Cell]) -> dict[Cell, Result]:
    """The cells that are whole; what an interruption has left of others is marked as killed.

    Args:
        experiment_id: Id of the experiment.
        parents: Ids of the runs of the whole grid.
        cells: Those that are wanted; one whose checkpoint is gone counts as missing if another has to copy from it.
    """
    done = {}
    for run in (run for parent in parents for run in _children(experiment_id, parent)):
        if run.data.tags.get("whole"):
            cell = Cell(*json.loads(run.data.tags["cell"]))
            metrics = run.data.metrics
            done[cell] = Result(metrics["test/target/acc"], metrics["cell/seconds"], run.info.run_id)
        elif run.info.status not in ("FAILED", "KILLED"):
            client().set_terminated(run.info.run_id, "KILLED")
    for base in {cell.base for cell in cells if cell.base is not None and cell not in done} & done.keys():
        try:
            find_fit(done[base].run_id)
        except TrackingError:
            del done[base]
    return done


def _parents(grid: Grid, experiment: str) -> tuple[str, list[Run]]:
    """The id of the experiment, and the runs of the whole grid, the earliest first."""
    found = client().get_experiment_by_name(experiment)
    assert found is not None  # the logger of the configuration has made it
    wanted = f"tags.grid = '{grid.digest()}'"
    return found.experiment_id, list(client().search_runs([found.experiment_id], wanted, order_by=["start_time"]))


def _open(grid: Grid, experiment_id: str, parents: Sequence[Run], name: str, grows: bool) -> str:
    """The id of the run of the whole grid, which is made where there is none.

    One whose curves are drawn keeps them: a grid that grows beyond them gets a new run, and its trainings move there.
    """
    if parents and not (grows and parents[-1].data.metrics):
        parent: str = parents[-1].info.run_id
        client().update_run(parent, "RUNNING", name)
    else:
        parent = client().create_run(experiment_id, tags={"grid": grid.digest()}, run_name=name).info.run_id
        for key, value in parameters(grid.config).items():
            client().log_param(parent, key, value)
        client().log_text(parent, yaml.safe_dump(grid.config), "config.yaml")
    for earlier in (run.info.run_id for run in parents if run.info.run_id != parent):
        for run in _children(experiment_id, earlier):
            client().set_tag(run.info.run_id, "mlflow.parentRunId", parent)
    return parent


# ---------------------------------------------------------------- the report


def table(cells: Sequence[Cell], done: dict[Cell, Result], layers: Sequence[str]) -> pd.DataFrame:
    """A row for each finished cell: labels (0 for all), treatment, n, layer, seed, accuracy, seconds, run."""
    rows = []
    for cell in cells:
        if cell in done:
            result, layer = done[cell], layers[cell.n - 1] if cell.n else ""
            rows.append((cell.labels or 0, cell.treatment, cell.n, layer, cell.seed, *result))
    return pd.DataFrame(rows, columns=["labels", "treatment", "n", "layer", "seed", "accuracy", "seconds", "run"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and number of seeds for each treatment and depth; n = 0 is base B, for every treatment.

    Args:
        rows: Of `table`.
    """
    treated = rows[~rows["treatment"].isin(["A", "B"])]
    bases = rows[rows["treatment"] == "B"]
    start = [bases[bases["labels"] == labels].assign(treatment=name) for labels, name in _pairs(treated)]
    both = pd.concat([*start, treated])
    groups = both.groupby(["labels", "treatment", "n"], sort=False)["accuracy"]
    return groups.agg(["mean", "std", "count"]).reset_index()


def _pairs(rows: pd.DataFrame) -> list[tuple[int, str]]:
    return list(dict.fromkeys(zip(rows["labels"], rows["treatment"], strict=True)))


def figure(rows: pd.DataFrame, layers: Sequence[str], title: str) -> Figure:
    """Accuracy on B over the number of copied layers, in the form of figure 2 of the paper; a panel a number of labels.

    Args:
        rows: Of `table`.
        layers: Names of the backbone's layers.
        title: Of the figure.
    """
    means, panels = summary(rows), list(dict.fromkeys(rows[rows["treatment"] != "A"]["labels"]))
    drawn = Figure(figsize=(6.2 * len(panels), 4.4), layout="constrained")
    drawn.suptitle(title)
    for axes, labels in zip(drawn.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        base = rows[(rows["treatment"] == "B") & (rows["labels"] == labels)]["accuracy"]
        axes.axhline(base.mean(), color="black", lw=1, ls=":", label="base B")
        if len(base) > 1:
            axes.axhspan(base.mean() - base.std(), base.mean() + base.std(), color="black", alpha=0.08, lw=0)
        axes.plot([0] * len(base), base, "k.", ms=4)
        for treatment, (colour, line, marker) in STYLES.items():
            own = rows[(rows["treatment"] == treatment) & (rows["labels"] == labels)]
            if not own.empty:
                mean = means[(means["treatment"] == treatment) & (means["labels"] == labels)].sort_values("n")
                axes.plot(mean["n"], mean["mean"], line, color=colour, marker=marker, ms=5, label=treatment)
                axes.plot(own["n"], own["accuracy"], ".", color=colour, alpha=0.5, ms=4)
        names = ["0\n(base B)", *(f"{n}\n{layer}" for n, layer in enumerate(layers, start=1))]
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set(xlabel="layers copied (n)", ylabel="accuracy on B", title=_labels(labels))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return drawn


def _labels(number: int) -> str:
    return f"{number} labels of B" if number else "all labels of B"


def _report(grid: Grid, rows: pd.DataFrame, experiment_id: str, parent: str, name: str) -> None:
    """Writes curves, tables and figure into the grid's run; points that are there and unchanged are left alone."""
    tracked, means = client(), summary(rows)
    for row in means.to_dict("records"):
        prefix = f"layer_transfer_{row['labels']}" if row["labels"] else "layer_transfer"
        points = {"": row["mean"], "_std": row["std"]} if row["count"] > 1 else {"": row["mean"]}
        for ending, value in points.items():
            key = f"{prefix}/{row['treatment'].replace('+', '_plus')}{ending}"
            there = {point.step: point.value for point in tracked.get_metric_history(parent, key)}
            if there.get(row["n"]) != value:
                tracked.log_metric(parent, key, value, step=row["n"])
    tracked.log_text(parent, rows.to_csv(index=False), "cells.csv")
    tracked.log_text(parent, means.to_csv(index=False), "layer_transfer.csv")
    tracked.log_figure(parent, figure(rows, grid.layers, name), "layer_transfer.png")
    print(f"\n{name}, accuracy on the test split of B, {rows['seed'].nunique()} seed(s)")
    for labels, part in means.groupby("labels", sort=False):
        wide: dict[str, dict[str, str]] = {}
        for row in part.to_dict("records"):
            cell = f"{row['mean']:.3f}" + (f" ± {row['std']:.3f}" if row["count"] > 1 else "")
            wide.setdefault(f"{row['n']} {['base B', *grid.layers][row['n']]}", {})[row["treatment"]] = cell
        print(f"\n{_labels(int(str(labels)))}\n{pd.DataFrame(wide).T.to_string()}")
    print(f"\ntables and figure: run {parent} of experiment {client().get_experiment(experiment_id).name}")


# ---------------------------------------------------------------- the command


def layer_transfer(args: Sequence[str], load: Callable[[Sequence[str]], Any], main: Main) -> pd.DataFrame:
    """`lightning-da layer-transfer`: runs what is not there yet of a grid, reports it and returns its table.

    Args:
        args: The words behind `layer-transfer`.
        load: From the words of a command to its `TransferCLI`, not run.
        main: Runs the command line `fit ...` in another process, and returns it.

    Raises:
        ConfigError: If the options do not fit the data or the network, another process runs the same grid, or a cell
            failed.
    """
    given, options = _parser().parse_known_args(args)
    if given.jobs is not None and given.jobs < 1:
        raise ConfigError(f"jobs: {given.jobs} is less than 1")
    source_only = PROJECT / "conf" / "method" / "source_only.yaml"
    experiment = ["--trainer.logger.init_args.experiment_name", EXPERIMENT]
    cli = load(["fit", "--config", str(source_only), *experiment, *options])
    grid = _grid(cli, given)
    depths = _depths(given.depths, grid.layers)
    cells = plan(given.seeds, [_number(value) for value in given.labels], depths, given.treatments)
    grid.check(cli.datamodule, cells)
    experiment_name = cli.config.fit.trainer.logger.init_args.experiment_name
    domains = ("source", "target") if given.across_domains else ("source",)
    name = given.name or "-".join(["layer-transfer", *(Path(getattr(cli.datamodule, role)).stem for role in domains)])
    place = hashlib.sha256(tracking_uri().encode()).hexdigest()[:8]
    lock = FileLock(Path(tempfile.gettempdir()) / f"lightning_da-{grid.digest()}-{place}.lock")
    gpus = _gpus() if isinstance(cli.trainer.accelerator, CUDAAccelerator) else []
    jobs = given.jobs or len(gpus) or len(os.sched_getaffinity(0))
    try:
        with lock.acquire(timeout=0), _pool(jobs, gpus) as pool:
            return _work(grid, cells, main, experiment_name, name, pool)
    except Timeout as error:
        raise ConfigError("another process runs this grid; wait for it, or stop it") from error
    except KeyboardInterrupt:
        raise ConfigError("interrupted; the same command goes on where it stopped") from None


def _work(
    grid: Grid, cells: list[Cell], main: Main, experiment: str, name: str, pool: ProcessPoolExecutor
) -> pd.DataFrame:
    experiment_id, parents = _parents(grid, experiment)
    done, failed = _finished(experiment_id, [run.info.run_id for run in parents], cells), []
    place = sum(cell in done for cell in cells)
    if place:
        print(f"{place} of {len(cells)} trainings are there already")
    parent = _open(grid, experiment_id, parents, name, grows=place < len(cells))
    for cell, result in _run_all(grid, cells, done, main, experiment, parent, pool):
        place += 1
        if isinstance(result, Result):
            said = f"{result.accuracy:.3f} ({result.seconds:.0f} s)"
        else:
            failed.append(f"{cell.name}: {result}")
            said = f"failed: {result}"
        print(f"[{place}/{len(cells)}] {cell.name} {said}", flush=True)
    if failed:
        client().set_terminated(parent, "FAILED")
        missing = sum(cell not in done for cell in cells)
        raise ConfigError(f"{missing} of {len(cells)} trainings are missing; the first: {failed[0]}")
    rows = table(_in_order(done), done, grid.layers)
    _report(grid, rows, experiment_id, parent, name)
    client().set_terminated(parent)
    return rows


def _in_order(done: Iterable[Cell]) -> list[Cell]:
    """A plan that has all the cells: those of earlier calls are a part of the grid as well."""
    seeds, depths = sorted({cell.seed for cell in done}), sorted({cell.n for cell in done} - {0})
    labels = sorted({cell.labels for cell in done}, key=lambda number: -(number or math.inf))
    return plan(seeds, labels, depths, TREATMENTS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-da layer-transfer",
        description="Train networks for two tasks, A and B, copy the first n layers of each, and train the rest on B: "
        "frozen (AnB, BnB) or trained further (AnB+, BnB+), beside random frozen layers. What was finished before an "
        "interruption is not run again. Further options are those of `fit`.",
        usage="lightning-da layer-transfer --config conf/data/NAME.yaml [--seeds ...] [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument("--task_a", nargs="+", metavar="CLASS", help="classes of A, the others are B's (default: half)")
    tasks.add_argument(
        "--across_domains", action="store_true", help="A is the source and B the target, with all classes"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="repetitions (default: 0)")
    parser.add_argument(
        "--labels", nargs="+", default=["all"], metavar="N", help="training labels of B, several in turn (default: all)"
    )
    parser.add_argument("--depths", nargs="+", type=int, metavar="N", help="numbers of copied layers (default: every)")
    parser.add_argument(
        "--treatments", nargs="+", default=TREATMENTS, choices=TREATMENTS, metavar="NAME", help=" ".join(TREATMENTS)
    )
    parser.add_argument("--jobs", type=int, help="trainings at a time (default: one a GPU, else one a core)")
    parser.add_argument("--name", help="name of the run of the whole grid")
    return parser


def _grid(cli: Any, given: argparse.Namespace) -> Grid:
    if not isinstance(cli.model, FineTune) or cli.model.backbone.pretrained:
        raise ConfigError("layer-transfer trains FineTune from random weights: leave out the method and the weights")
    config = cli.plain(cli.config.fit)
    arguments = config["model"]["init_args"]
    set_here = [f"model.init_args.{key}" for key, default in RESERVED.items() if arguments[key] != default]
    set_here += [key for key in ("seed_everything", "after", "ckpt_path") if config[key]]
    if set_here:
        raise ConfigError(f"{set_here[0]}: layer-transfer sets it for each training; leave it out")
    if not isinstance(cli.trainer.logger, Tracker):
        raise ConfigError("trainer.logger: the grid is kept in MLflow; leave it out")
    if cli.trainer.world_size > 1:
        raise ConfigError(f"trainer.devices: a training runs on one, not {cli.trainer.world_size}; leave it out")
    if min(given.seeds) < 0:
        raise ConfigError(f"seeds: {min(given.seeds)} is less than 0")
    classes = cli.datamodule.classes
    for name in given.task_a or []:
        if name not in classes:
            raise ConfigError(f"task_a: no class {name!r}; {list_choices(name, classes)}")
    if (given.task_a and not 2 <= len(set(given.task_a)) <= len(classes) - 2) or len(
        classes
    ) < 4 - 2 * given.across_domains:
        raise ConfigError(f"task_a: each of the two tasks needs at least two of the {len(classes)} classes")
    cli.datamodule.setup("fit")
    task_a = sorted(set(given.task_a), key=classes.index) if given.task_a else None
    digest = cli.datamodule.fingerprint()
    return Grid(config, classes, cli.model.backbone.layers, task_a, given.across_domains, digest)


def _depths(given: Sequence[int] | None, layers: Sequence[str]) -> list[int]:
    for n in given or []:
        if not 1 <= n <= len(layers):
            raise ConfigError(f"depths: {n} of the backbone's {len(layers)} layers; give 1 to {len(layers)}")
    return sorted(set(given or range(1, len(layers) + 1)))


def _number(value: str) -> int | None:
    if value != "all" and not value.isdecimal():
        raise ConfigError(f"labels: {value!r} is neither a number nor `all`")
    return None if value == "all" else int(value)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(gpu) for gpu in range(torch.cuda.device_count())]
