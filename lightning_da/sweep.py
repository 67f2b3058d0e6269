"""Several methods and seeds, one after the other, and their comparison."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from lightning.pytorch.utilities import rank_zero_only

from lightning_da.compare import table
from lightning_da.tracking import PROJECT, chosen_checkpoint, client

METHODS = ("source_only", "dan", "deep_coral", "dann", "adda", "target_only")


def sweep(args: Sequence[str], main: Callable[[list[str], dict[str, str]], Any]) -> pd.DataFrame | None:
    """`lightning-da sweep`: fits and tests each method with each seed, then prints and returns the table.

    Args:
        args: The words behind `sweep`.
        main: Runs the command line `fit ...`, given the checkpoints that it may start from, and returns it, with its
            trainer, model and data.
    """
    available = sorted(path.stem for path in (PROJECT / "conf" / "method").glob("*.yaml"))
    parser = argparse.ArgumentParser(
        "lightning-da sweep",
        description="Fit and test methods and seeds, then print their comparison. Further options are those of `fit`.",
        usage="lightning-da sweep --config conf/data/NAME.yaml [--methods ...] [--seeds ...] [options of fit ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=METHODS,
        choices=available,
        metavar="NAME",
        help=f"YAML files of conf/method: {', '.join(available)} (default: {' '.join(METHODS)})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of training (default: 0)")
    given, options = parser.parse_known_args(args)
    runs, refused = [], []
    fitted: dict[int, dict[str, str]] = {seed: {} for seed in given.seeds}
    plan = [(seed, method) for seed in given.seeds for method in given.methods]
    for place, (seed, method) in enumerate(plan, start=1):
        rank_zero_only(print)(f"\n[{place}/{len(plan)}] {method}, seed {seed}", flush=True)
        config = str(PROJECT / "conf" / "method" / f"{method}.yaml")
        try:
            cli = main(["fit", "--config", config, *options, "--seed_everything", str(seed)], fitted[seed])
        except SystemExit as stop:
            if len(plan) == 1:
                raise
            refused.append(f"{method}, seed {seed}: {stop}")
            continue
        fitted[seed][method] = chosen_checkpoint(cli.trainer)
        best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "") or None
        cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)
        if cli.trainer.is_global_zero:
            runs.append(client().get_run(cli.trainer.logger.run_id))
    found = table(runs[::-1]) if runs else None
    if refused:
        rank_zero_only(print)("\nnot run:\n  " + "\n  ".join(refused), file=sys.stderr)
    return found
