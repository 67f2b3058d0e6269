"""Quality of wine as a number, red to white and back: methods on a regressor beside source-only and target-only.

    python benchmarks/regression.py --data-root FOLDER --out results

The files of `conf/` as they are, 600 steps; the figures are those of the test splits at the last step. A finished
training is not run again.
"""

import argparse
import os
from pathlib import Path

import pandas as pd

from lightning_da.main import main as lightning_da
from lightning_da.paths import PROJECT

METHODS = ("source_only", "deep_coral", "dan", "dann", "target_only")
PAIRS = (("red", "white"), ("white", "red"))


def prepare(root: Path, out: Path) -> None:
    """Writes the tables as CSV files."""
    for name in ("red", "white"):
        path = out / f"{name}.csv"
        if not path.exists():
            pd.read_csv(root / "tabular" / f"wine_{name}.tsv.xz", sep="\t").to_csv(path, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--jobs", default="1")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
    prepare(given.data_root, given.out)
    for source, target in PAIRS:
        options = {
            "data.init_args.root": given.out.absolute(),
            "data.init_args.source": f"{source}.csv",
            "data.init_args.target": f"{target}.csv",
            "data.init_args.label_column": "quality",
            "data.init_args.labels": "numbers",
            "trainer.max_steps": 600,
            "trainer.logger.init_args.experiment_name": "regression",
        }
        quiet = ["--config", str(PROJECT / "benchmarks" / "no_harm.yaml"), "--jobs", given.jobs]
        words = ["--config", "data/features.yaml", *quiet, *(f"--{key}={value}" for key, value in options.items())]
        lightning_da(["sweep", "--methods", *METHODS, "--seeds", *given.seeds, *words])


if __name__ == "__main__":
    main()
