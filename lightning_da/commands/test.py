"""`lightning-da test`: evaluates a fit on the test splits."""

from collections.abc import Mapping, Sequence

import pandas as pd
from lightning.pytorch.utilities import rank_zero_only

from lightning_da.cli import TransferCLI
from lightning_da.grids.tables import print_table


def run(args: Sequence[str]) -> TransferCLI:
    """Evaluates a fit on the test splits.

    Args:
        args: The arguments after `test`.
    """
    return evaluate("test", args)


def evaluate(command: str, args: Sequence[str]) -> TransferCLI:
    """Runs `test` or `validate` and prints its metrics.

    Args:
        command: `test` or `validate`.
        args: The arguments after it.
    """
    cli = TransferCLI(command, args).build().run()
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    names = {domain: getattr(cli.datamodule, domain) for domain in cli.datamodule.domains}
    for title, text in _tables(metrics, names):
        rank_zero_only(print_table)(title, text)
    return cli


def _tables(metrics: Mapping[str, float], names: Mapping[str, str]) -> list[tuple[str, pd.DataFrame]]:
    """A table of the metrics of each domain or group, STAGE/GROUP/NAME, and one of the others, each with its title."""
    of_domains: dict[str, dict[str, str]] = {}
    others = []
    for key, value in metrics.items():
        _, group, *name = key.split("/")
        if name:
            domain = f"{group} ({names[group]})" if group in names else group
            column = domain if len(name) == 1 else f"{group} {name[0]}"
            of_domains.setdefault(name[-1], {})[column] = f"{value:.4f}"
        else:
            others.append((key, f"{value:.4f}"))
    by_domain = pd.DataFrame.from_dict(of_domains, orient="index").fillna("").rename_axis("metric").reset_index()
    found = [("metrics", by_domain), ("without target labels", pd.DataFrame(others, columns=["score", "value"]))]
    return [(title, text) for title, text in found if len(text)]
