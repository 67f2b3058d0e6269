"""The trials of a search: an Optuna study in a journal file, its trainings as children of one run."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
import pandas as pd
import yaml
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_da.callbacks.prune_trial import PruneTrial
from lightning_da.cli import TransferCLI
from lightning_da.errors import ConfigError, RunError, one_line
from lightning_da.grids.cell import run_cell
from lightning_da.grids.engine import Cell, Result, add_fit, order_of, reason, result_of
from lightning_da.grids.pool import Workers
from lightning_da.grids.space import as_words, as_yaml, value_of
from lightning_da.store import client, search_runs
from lightning_da.tracking import artifact_file, is_local, parameters, send_waiting

STUDY = "search"
HELD_BY, REASON, RUN, SCORE = "held by", "reason", "run", "score"
"""User attributes of a trial: the lock of its command, why it has no score, its run, its last score."""


@dataclass(frozen=True)
class Search:
    """A search for settings.

    Attributes:
        name: Name of the search's run.
        config: Configuration shared by the trials; it is recorded in the search's run.
        words: Options of `fit`, without those of a trial.
        space: Distribution of each option, as from `read_space`.
        metric: The metric to maximise, of the last validation.
        reads_labels: Whether the metric reads target labels.
        journal: File of the study. Commands with the same file work on one study.
        trials: Number of trials in all.
    """

    name: str
    config: dict[str, Any]
    words: list[str]
    space: Mapping[str, BaseDistribution]
    metric: str
    reads_labels: bool
    journal: Path
    trials: int

    @property
    def chosen_by(self) -> str:
        """The metric, and whether it reads target labels."""
        return f"{self.metric} (oracle: it reads target labels)" if self.reads_labels else self.metric

    def values(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """The values of the options in a trial."""
        return {key: value_of(entry, trial.params[key]) for key, entry in self.space.items()}


def run_search(search: Search, cli: TransferCLI, workers: Workers) -> pd.DataFrame:
    """Runs the missing trials, then prints and records the best settings.

    Args:
        search: The search.
        cli: A fit with the same trainer options as the trials.
        workers: Who runs the trials.

    Returns:
        One row per trial: its number, state, score, options and run.

    Raises:
        RunError: If the search is interrupted, a process is killed, or no trial has a score.
    """
    send_waiting()
    experiment = client().get_experiment_by_name(cli.config.trainer.logger.init_args.experiment_name)
    assert experiment is not None  # created by the logger
    seed = int(search.config["seed_everything"])
    # the pool first: a machine without SLURM is an error before anything is recorded
    with workers.pool(cli.trainer, search.journal.stem) as pool, _holding(search.journal) as held_by:
        with _alone(search.journal):
            study = _open(search.journal)
            _restart_interrupted(study, search.journal, experiment.experiment_id)
            parent = _parent(search, study, experiment.experiment_id)
        try:
            _run_missing(
                search, study, parent, pool, workers.count(cli.trainer), lambda: _ask(search, study, seed, held_by)
            )
            busy = _running(study)
            if busy:
                print(f"{len(busy)} trials still run in other processes; the command that ends last reports all")
                return trials_table(search, study)
            table = _report(search, study, parent)
        except BaseException as error:
            if not [trial for trial in _running(study) if trial.user_attrs.get(HELD_BY) != held_by]:
                client().set_terminated(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            if isinstance(error, KeyboardInterrupt):
                raise RunError("interrupted; run the same command again to continue") from None
            if isinstance(error, BrokenExecutor):
                raise RunError(
                    "the process of a trial was killed; if memory ran out, run again with fewer --jobs"
                ) from error
            raise
    client().set_terminated(parent)
    return table


def _run_missing(
    search: Search,
    study: optuna.Study,
    parent: str,
    pool: Executor,
    jobs: int,
    ask: Callable[[], Trial | None],
) -> None:
    """Runs trials until there are enough."""
    running: dict[Future[str], Trial] = {}
    while True:
        while len(running) < jobs and (trial := ask()) is not None:
            try:
                cell = _cell(search, trial)
            except ConfigError as error:
                _end(search, study, trial, parent, error)
                continue
            future = pool.submit(run_trial, cell, parent, search.journal, trial._trial_id, search.metric)
            running[future] = trial
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            failure = future.exception()
            if isinstance(failure, BrokenExecutor | KeyboardInterrupt):
                raise failure
            _end(search, study, running.pop(future), parent, failure or future.result())


def run_trial(cell: Cell, parent: str, journal: Path, trial: int, metric: str) -> str:
    """Trains and validates one trial, in a process of its own.

    Args:
        cell: The trial's training.
        parent: Id of the search's run.
        journal: File of the study.
        trial: Id of the trial in the study.
        metric: The metric to report after each validation.

    Returns:
        Id of the trial's run; the tag `pruned` says that the training was ended early.
    """
    bases = [_first_stage(base, parent, journal) for base in cell.bases]
    prune = PruneTrial(Trial(_open(journal), trial), metric)
    run_id = run_cell(order_of(cell, bases, parent, False, 1, validates=True), prune).run_id
    if prune.pruned:
        client().set_tag(run_id, "pruned", "true")
    return run_id


def _first_stage(cell: Cell, parent: str, journal: Path) -> Result:
    """The training that a trial starts from; trials with equal first stages share it."""
    experiment = client().get_run(parent).info.experiment_id
    with FileLock(journal.with_suffix(".first_stage.lock")):
        for run in search_runs(experiment, f"tags.`mlflow.parentRunId` = '{parent}' and tags.whole = 'true'"):
            if run.data.tags["cell"] == json.dumps(cell.factors) and artifact_file(run, "checkpoints").is_dir():
                return result_of(run)
        bases = [_first_stage(base, parent, journal) for base in cell.bases]
        return result_of(client().get_run(run_cell(order_of(cell, bases, parent, True, 1)).run_id))


def _cell(search: Search, trial: Trial) -> Cell:
    fit = TransferCLI("fit", [*search.words, *as_words(search.values(trial))])
    cell = add_fit({}, fit, fit.config.seed_everything)
    return replace(cell, name=f"{cell.name}-t{trial.number}", factors={**cell.factors, "trial": trial.number})


# ---------------------------------------------------------------- the study


def _open(journal: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"journal: {journal} is no file of a search, or cannot be written: {one_line(error)}"
        ) from error


def _alone(journal: Path) -> FileLock:
    """A lock of the study, for what no other command may do at the same time."""
    return FileLock(journal.with_suffix(".lock"))


@contextmanager
def _holding(journal: Path) -> Iterator[str]:
    """Name of a lock file that is held as long as this process lives: its running trials are not interrupted."""
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.open("ab").close()
    except OSError as error:
        raise ConfigError(f"journal: {journal} cannot be written: {error.strerror}") from error
    path = journal.with_name(f"{journal.stem}.{uuid4().hex[:8]}.held")
    try:
        with FileLock(path):
            yield path.name
    finally:
        path.unlink(missing_ok=True)


def _restart_interrupted(study: optuna.Study, journal: Path, experiment_id: str) -> None:
    """Puts the trials of processes that are gone back in the queue, and marks their runs as killed."""
    for trial in _running(study):
        path = journal.with_name(trial.user_attrs.get(HELD_BY, f"{journal.stem}.held"))
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)
        for run in search_runs(experiment_id, f"tags.`mlflow.parentRunId` = '{study.user_attrs[RUN]}'"):
            mine = json.loads(run.data.tags.get("cell", "{}")).get("trial") == trial.number
            if mine and run.info.status == "RUNNING":
                client().set_terminated(run.info.run_id, "KILLED")


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have ended by themselves."""
    ends = (TrialState.COMPLETE, TrialState.PRUNED)
    return [t for t in study.get_trials(deepcopy=False) if t.state in ends or REASON in t.user_attrs]


def _ask(search: Search, study: optuna.Study, seed: int, held_by: str) -> Trial | None:
    """The next trial, or None if there are enough."""
    with _alone(search.journal):
        number = len(_ended(study)) + len(_running(study))
        if number >= search.trials:
            return None
        # Its own seed for each trial: a search that goes on proposes what an unbroken one would.
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        study.sampler = TPESampler(seed=own, constant_liar=True)
        trial = study.ask(dict(search.space))
        trial.set_user_attr(HELD_BY, held_by)
        return trial


def _end(search: Search, study: optuna.Study, trial: Trial, parent: str, outcome: str | BaseException) -> None:
    """Tells the study how a trial has ended, and prints it."""
    place = len(_ended(study)) + 1
    values = ", ".join(f"{_short(key)} {_text(value)}" for key, value in search.values(trial).items())
    if isinstance(outcome, BaseException):
        said = reason(outcome)
        trial.set_user_attr(REASON, said)
        study.tell(trial, state=TrialState.FAIL)
        print(f"[{place}/{search.trials}] failed: {said}  {values}", flush=True)
        return
    run = client().get_run(outcome)
    score = run.data.metrics.get(search.metric)
    trial.set_user_attr(RUN, outcome)
    if "pruned" in run.data.tags:
        study.tell(trial, state=TrialState.PRUNED)
        said = f"ended early: {search.metric} {score:.3f} is below the median of the others"
    elif score is None or score - score != 0:
        trial.set_user_attr(REASON, f"{search.metric} has no finite value")
        study.tell(trial, state=TrialState.PRUNED)
        said = f"failed: {search.metric} has no finite value"
    else:
        study.tell(trial, score)
        client().log_metric(parent, search.metric, score, step=trial.number)
        said = f"{search.metric} {score:.3f}{' (best)' if study.best_trial.number == trial.number else ''}"
    print(f"[{place}/{search.trials}] {said}  {values}", flush=True)


def _short(key: str) -> str:
    """An option without `init_args`, as it may be typed."""
    return key.replace(".init_args", "").removeprefix("model.")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- the run in the store


def _parent(search: Search, study: optuna.Study, experiment_id: str) -> str:
    """Id of the search's run, which is created if it does not exist."""
    if RUN in study.user_attrs:
        run_id: str = study.user_attrs[RUN]
        client().update_run(run_id, "RUNNING", search.name)
        return run_id
    run_id = client().create_run(experiment_id, run_name=search.name).info.run_id
    for key, value in parameters(search.config).items():
        client().log_param(run_id, key, value)
    client().log_text(run_id, yaml.safe_dump(search.config), "config.yaml")
    client().set_tag(run_id, "journal", str(search.journal))
    study.set_user_attr(RUN, run_id)
    return run_id


def trials_table(search: Search, study: optuna.Study) -> pd.DataFrame:
    """One row per ended trial: its number, state, score, options and run; the best first."""
    rows = pd.DataFrame(
        {
            "trial": trial.number,
            "state": "failed" if REASON in trial.user_attrs else trial.state.name.lower(),
            "score": trial.value if trial.state == TrialState.COMPLETE else None,
            **search.values(trial),
            "run": trial.user_attrs.get(RUN),
        }
        for trial in _ended(study)
    )
    if rows.empty:
        return rows
    return rows.sort_values("score", ascending=False, kind="stable", na_position="last").reset_index(drop=True)


def _report(search: Search, study: optuna.Study, parent: str) -> pd.DataFrame:
    """Prints the best settings, and records them with table and picture in the search's run."""
    table = trials_table(search, study)
    if table["score"].isna().all():
        reasons = [trial.user_attrs[REASON] for trial in _ended(study) if REASON in trial.user_attrs]
        raise RunError(f"no trial has a score; the first: {(reasons or ['it was ended early'])[0]}")
    best = study.best_trial
    values = search.values(best)
    head = f"# Trial {best.number} of {len(table)}, chosen by {search.chosen_by}: {best.value:.4f}\n"
    client().log_text(parent, head + as_yaml(values), "best.yaml")
    client().log_text(parent, table.to_csv(index=False), "trials.csv")
    client().log_figure(parent, picture(search, table), "search.png")
    client().log_metric(parent, "best", float(best.value or 0.0), step=len(table))
    client().set_tag(parent, "selection", search.chosen_by)
    counts = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts(sort=False).items())
    print(f"\nbest of {len(table)} trials ({counts}), chosen by {search.chosen_by}: {best.value:.3f}")
    print("\n".join(f"  {word}" for word in as_words(values)))
    if (ties := int((table["score"] == best.value).sum())) > 1:
        print(f"{ties} trials have this score, which does not tell them apart; this is the first, try another --score")
    run = client().get_run(parent)
    if is_local(run.info.artifact_uri):
        print(f"to use them, add --config {_shown(artifact_file(run, 'best.yaml'))}")
    return table


def _shown(path: Path) -> Path:
    """The path, from the working folder if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def picture(search: Search, table: pd.DataFrame) -> Figure:
    """The score over each option, a point for each finished trial.

    Args:
        search: The search.
        table: Its trials, as from `trials_table`.
    """
    done = table[table["score"].notna()]
    drawn = Figure(figsize=(1 + 2.8 * len(search.space), 3.4), layout="constrained")
    for place, (axes, (key, entry)) in enumerate(
        zip(drawn.subplots(1, len(search.space), sharey=True, squeeze=False)[0], search.space.items(), strict=True)
    ):
        if isinstance(entry, CategoricalDistribution):
            texts = list(entry.choices)
            at = [texts.index(json.dumps(value, sort_keys=True)) for value in done[key]]
            axes.set_xticks(range(len(texts)), [str(json.loads(str(text))) for text in texts], fontsize=8)
        else:
            at = list(done[key])
            axes.set_xscale("log" if getattr(entry, "log", False) else "linear")
            axes.set_xlim(entry.low, entry.high)  # type: ignore[attr-defined]
            axes.tick_params(which="minor", labelbottom=False)
        axes.plot(at, done["score"], "o", alpha=0.6, clip_on=False)
        axes.plot(at[:1], done["score"][:1], "o", color="C3", label="best", clip_on=False)
        axes.set_xlabel(_short(key), fontsize=9)
        axes.grid(alpha=0.3)
        if place == 0:
            axes.set_ylabel(search.metric)
            axes.legend(fontsize=8)
    return drawn
