"""Accuracies on MNIST, USPS and MNIST-M beside the published ones: mean and deviation over seeds, last epoch.

    python benchmarks/prepare.py --data-root FOLDER --out prepared
    python benchmarks/digits.py --data-root prepared --out results sampled full mnist-m

Each method runs with its file in `conf/method` and the same network, LeNet with batch norm, or the papers' without
(`--plain`; `dann_paper` then reads the convolutions, as in the paper). A finished cell is a line of
`results/digits.jsonl`; what is there is not run again. `--table` prints what is there and runs nothing.

In `aligned` the digits of USPS are as large as those of MNIST, 20 x 20 pixels in the middle of 28 x 28, and a random
fifth of all 9,298 is for test. Many public programs have such a split, 7,438 and 1,860, in place of 7,291 and 2,007.
The choice among the methods without target labels is that of `lightning-da compare --experiment digits-aligned`.
"""

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lightning_da.main import main as lightning_da
from lightning_da.paths import PROJECT
from lightning_da.tracking import chosen_checkpoint

METHODS = ("source_only", "dann", "dan", "deep_coral", "adda")
OF_PICTURES = ("cogan", "cycle_gan", "disco_gan", "dual_gan")
"""Methods that make pictures, of values around 0."""
FURTHER = (
    *("dann_paper", "dan_paper", "jan", "cmd", "domain_confusion", "cdan", "mcc", "shot", "drcn", "dsn"),
    *OF_PICTURES,
)
TWO_STAGES = ("adda", "shot")
KEYS = ("protocol", "plain", "steps", "source", "target", "method", "seed")
"""What tells one cell from another."""


class Protocol(NamedTuple):
    """Pairs of files, seeds, and the length of a fit; `{seed}` in a folder is the seed."""

    folder: str
    pairs: tuple[tuple[str, str], ...]
    seeds: int
    steps: int


PROTOCOLS = {
    "sampled": Protocol("sampled_{seed}", (("mnist", "usps"), ("usps", "mnist")), 5, 1000),
    "aligned": Protocol("aligned", (("mnist", "usps"), ("usps", "mnist")), 3, 400),
    "full": Protocol("grey", (("mnist", "usps"), ("usps", "mnist")), 3, 2000),
    "mnist-m": Protocol(".", (("mnist", "mnist_m"),), 3, 3000),
}
PUBLISHED = {
    ("sampled", "mnist", "usps"): {
        **{"source_only": 0.752, "dann": 0.771, "adda": 0.894},
        **{"domain_confusion": 0.791, "cogan": 0.912},
    },
    ("sampled", "usps", "mnist"): {
        **{"source_only": 0.571, "dann": 0.730, "adda": 0.901},
        **{"domain_confusion": 0.665, "cogan": 0.891},
    },
    ("aligned", "mnist", "usps"): {"shot": 0.980},
    ("aligned", "usps", "mnist"): {"shot": 0.984},
    ("mnist-m", "mnist", "mnist_m"): {"source_only": 0.5225, "dann": 0.7666, "dann_paper": 0.7666, "dsn": 0.832},
}
"""Tzeng et al., CVPR 2017, table 2 (sampled protocol, gradient reversal as DANN); Ganin et al., JMLR 2016, table 2;
Liang et al., ICML 2020, for SHOT; Bousmalis et al., NeurIPS 2016, table 1, for DSN."""


def finished(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The cells that are there; a line that was cut off by an interruption is not one."""
    cells = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        cells[tuple(row[key] for key in KEYS)] = row
    return cells


def run(cell: dict[str, Any], data: Path, before: str | None) -> dict[str, Any]:
    """Fits and tests one cell; ADDA and SHOT start from `before`, the checkpoint of the source-only fit."""
    source, target, method, seed = (cell[key] for key in ("source", "target", "method", "seed"))
    options = {
        "data.init_args.root": data / PROTOCOLS[cell["protocol"]].folder.format(seed=seed),
        "data.init_args.source": f"{source}.npz",
        "data.init_args.target": f"{target}.npz",
        "model.init_args.standardize": str(method in OF_PICTURES).lower(),
        "model.init_args.backbone": "lightning_da.networks.backbones.LeNet",
        "model.init_args.backbone.init_args.batch_norm": str(not cell["plain"]).lower(),
        "trainer.max_steps": cell["steps"],
        "trainer.check_val_every_n_epoch": 1000,
        "trainer.enable_progress_bar": "false",
        "trainer.logger.init_args.experiment_name": f"digits-{cell['protocol']}",
        "seed_everything": seed,
    }
    if method == "dann_paper" and cell["plain"]:
        options["model.init_args.layers"] = "[conv2]"
    configs = [PROJECT / "conf" / part for part in (f"method/{method}.yaml", "data/features.yaml")]
    configs.append(PROJECT / "benchmarks" / "no_harm.yaml")
    words = [word for config in configs for word in ("--config", str(config))]
    words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    if before and method in TWO_STAGES:
        words += ["--model.init_args.init_from", before]
    cli = lightning_da(["fit", *words])
    (source_metrics, target_metrics) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    return cell | {
        "source_acc": source_metrics["test/source/acc"],
        "acc": target_metrics["test/target/acc"],
        "checkpoint": chosen_checkpoint(cli.trainer),
    }


def show(cells: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    if not cells:
        print("nothing is finished yet")
        return
    frame = pd.DataFrame(cells.values())
    for (name, source, target, plain, steps), part in frame.groupby(["protocol", "source", "target", "plain", "steps"]):
        network = "LeNet" if plain else "LeNet with batch norm"
        print(f"\n{name}: {source} -> {target}, {network}, {steps} steps of 64 + 64")
        for method, acc in part.groupby("method", sort=False)["acc"]:
            published = PUBLISHED.get((str(name), str(source), str(target)), {}).get(str(method))
            beside = f"published {published:.3f}" if published else ""
            spread = f"± {acc.std():.3f}" if len(acc) > 1 else ""
            print(f"  {method:12} {len(acc)} seeds  {acc.mean():.3f} {spread:8} {beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=", ".join(PROTOCOLS))
    parser.add_argument("--data-root", type=Path, help="the folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *FURTHER], default=METHODS)
    parser.add_argument("--plain", action="store_true", help="LeNet without batch norm")
    parser.add_argument("--seeds", type=int, help="seeds of each cell, in place of those of the protocol")
    parser.add_argument("--steps", type=int, help="steps of a fit, in place of those of the protocol")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    unknown = [name for name in given.protocols if name not in PROTOCOLS]
    if unknown:
        parser.error(f"no protocol {unknown[0]!r}; there are {', '.join(PROTOCOLS)}")
    path = given.out / "digits.jsonl"
    if not given.table:
        if given.data_root is None or not given.protocols:
            parser.error("name the protocols to run and give --data-root")
        given.out.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    for name in given.protocols if not given.table else []:
        protocol = PROTOCOLS[name]
        length = given.steps or protocol.steps
        for seed in range(given.seeds or protocol.seeds):
            for (source, target), method in itertools.product(protocol.pairs, given.methods):
                cells = finished(path)
                where = (name, given.plain, length, source, target)
                if (*where, method, seed) not in cells:
                    before = cells.get((*where, "source_only", seed), {}).get("checkpoint")
                    cell = dict(zip(KEYS, (*where, method, seed), strict=True))
                    row = run(cell, given.data_root.absolute(), before)
                    with path.open("a") as file:
                        file.write("\n" + json.dumps(row))
    show(finished(path))


if __name__ == "__main__":
    main()
