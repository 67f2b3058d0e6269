"""The classical methods on the twelve pairs of Office-Caltech10 (SURF) and on MNIST and USPS.

    python benchmarks/classical.py --data-root FOLDER --out results

The protocols are those of the published tables: all labelled rows of the source, accuracy on all rows of the target,
which the method sees without labels. SURF: rows divided by their sum, each domain standardised; digits: rows of
length 1. Columns: the method as it is, with rows scaled to length 1 before it where its authors' code does so, and the
final classifier in the name where it is not the nearest neighbour. `splits` are those of the code of the CORAL paper:
20 rows a class of the source, drawn 20 times. `its kernel` is the SVM of that code: see `CoralSVM`.

A finished pair is a line of `results/classical.jsonl`; what is there is not run again. `--table` prints what is there
and runs nothing, `--methods` runs some.
"""

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.io
from joblib import Parallel, delayed
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from lightning_da.classical.algebra import unit_rows
from lightning_da.classical.base import Adapter, Array, Labels
from lightning_da.classical.classifiers import ARTL, DTMKL, MEDA
from lightning_da.classical.manifolds import CTC, DIP, DME, StatisticalManifold
from lightning_da.classical.projections import ACA, BDA, DJPMMD, JDA, JGSA, TCA, TJM, VDA
from lightning_da.classical.selection import FSSL, FSSP, SCL
from lightning_da.classical.source_only import SourceOnly
from lightning_da.classical.subspaces import CORAL, GFK, SA, SDA, SGF
from lightning_da.classical.transport import JDOT, OptimalTransport
from lightning_da.classical.weights import KLIEP, KMM, InstanceWeighting

NAMES = {"C": "caltech10", "A": "amazon", "W": "webcam", "D": "dslr"}
PAIRS = [f"{s}>{t}" for s, t in itertools.permutations("CAWD", 2)]
DIGITS = ["MNIST>USPS", "USPS>MNIST"]
DRAWS, EACH = 20, 20


@dataclass(eq=False, repr=False, kw_only=True)
class CoralSVM(CORAL):
    """The SVM of the CORAL paper's code, with the matrix A of CORAL on one side of the kernel.

    Between two rows of the source the kernel is (A^T x)^T y, which is not symmetric, and between a row of the source
    and one of the target (A^T x)^T y as well. With A on both rows of the source it would be CORAL and a linear SVM.
    """

    def _fit(self, source: Array, labels: Labels, target: Array) -> None:
        super()._fit(source, labels, target)
        self.rows_ = source - self.source_mean_

    def fit_estimator(self) -> None:
        self.estimator_ = svm("precomputed").fit(self.features_ @ self.rows_.T, self.labels_)

    def predict(self, X: Any, sample_domain: Any = None) -> Any:
        return self.classes_[self.estimator_.predict(self.transform(X, sample_domain) @ self.features_.T)]


def svm(kernel: str = "linear") -> GridSearchCV:
    """An SVM whose C is chosen by cross-validation on the source."""
    return GridSearchCV(SVC(kernel=kernel), {"C": [0.001, 0.01, 0.1, 1.0]}, cv=3)


class Entry(NamedTuple):
    """A row of the table: how the method is made, whether rows are scaled to length 1, and the published averages."""

    make: Callable[[], Adapter]
    unit: bool = False
    surf: float | None = None
    splits: bool = False
    digits: tuple[float, float] | None = None


METHODS = {
    "1-NN": Entry(SourceOnly, surf=31.4, digits=(65.94, 44.70)),
    "SVM": Entry(lambda: SourceOnly(estimator=svm())),
    "SA": Entry(lambda: SA(dim=30), surf=44.7),
    "SDA": Entry(lambda: SDA(dim=30), surf=44.5),
    "GFK": Entry(GFK, surf=43.1, digits=(67.22, 46.45)),
    "SGF": Entry(SGF),
    "CORAL": Entry(CORAL),
    "CORAL + SVM": Entry(lambda: CORAL(estimator=svm())),
    "CORAL + SVM, its kernel": Entry(CoralSVM, surf=48.8),
    "TCA": Entry(TCA, True, 46.2, digits=(56.28, 51.05)),
    "JDA": Entry(JDA, True, 46.8, digits=(67.28, 59.65)),
    "BDA": Entry(BDA, True),
    "DJP-MMD": Entry(DJPMMD, True),
    "VDA": Entry(VDA, True, 49.0),
    "TJM": Entry(TJM, True, 46.3),
    "ACA": Entry(ACA, True),
    "JGSA": Entry(JGSA, True, 50.0),
    "ARTL": Entry(ARTL),
    "MEDA": Entry(MEDA, surf=52.7),
    "DTMKL": Entry(lambda: DTMKL(theta=1e-8), True, 47.5),
    "DIP": Entry(DIP, True),
    "statistical manifold": Entry(StatisticalManifold, True),
    "DME": Entry(DME, True),
    "CTC + logistic regression": Entry(CTC, True),
    "FSSL": Entry(FSSL, True, 38.8),
    "FSSP": Entry(FSSP, True),
    "SCL": Entry(SCL),
    "KMM + SVM": Entry(lambda: KMM(estimator=SVC(kernel="linear")), surf=45.4),
    "KLIEP + SVM": Entry(lambda: KLIEP(estimator=SVC(kernel="linear"))),
    "domain classifier + SVM": Entry(lambda: InstanceWeighting(estimator=SVC(kernel="linear"))),
    "optimal transport": Entry(OptimalTransport, True),
    "JDOT + logistic regression": Entry(JDOT, True),
    "SVM, splits": Entry(lambda: SourceOnly(estimator=svm()), splits=True),
    "CORAL + SVM, splits": Entry(lambda: CORAL(estimator=svm()), splits=True),
    "CORAL + SVM, its kernel, splits": Entry(CoralSVM, splits=True),
}


def load(root: Path) -> dict[str, tuple[Array, Labels]]:
    """Rows and labels of each domain."""
    domains = {}
    for short, name in NAMES.items():
        file = scipy.io.loadmat(root / "office_caltech10_surf" / f"{name}.mat")
        x = file["fts"].astype(float)
        x /= x.sum(1, keepdims=True)
        domains[short] = (x - x.mean(0)) / np.maximum(x.std(0, ddof=1), 1e-12), file["labels"].ravel().astype(np.intp)
    file = scipy.io.loadmat(root / "jda_digits" / "MNIST_vs_USPS.mat")
    for name, part in (("MNIST", "src"), ("USPS", "tar")):
        domains[name] = unit_rows(file[f"X_{part}"].T.astype(float)), file[f"Y_{part}"].ravel().astype(np.intp)
    return domains


def accuracy(make: Callable[[], Adapter], source: tuple[Array, Labels], target: tuple[Array, Labels]) -> float:
    x = np.vstack([source[0], target[0]])
    labels = np.r_[source[1], np.full(len(target[1]), -1)]
    domain = np.r_[np.ones(len(source[1]), int), -np.ones(len(target[1]), int)]
    return float(np.mean(make().fit(x, labels, domain).predict(target[0]) == target[1]))


def draw(domain: tuple[Array, Labels], each: int, seed: int) -> tuple[Array, Labels]:
    """So many rows of each class."""
    generator = np.random.default_rng(seed)
    x, y = domain
    rows = np.concatenate([generator.permutation(np.flatnonzero(y == c))[:each] for c in np.unique(y)])
    return x[rows], y[rows]


def run(entry: Entry, pair: str, domains: dict[str, tuple[Array, Labels]]) -> float:
    source, target = (domains[name] for name in pair.split(">"))
    if entry.unit:
        source, target = (unit_rows(source[0]), source[1]), (unit_rows(target[0]), target[1])
    if not entry.splits:
        return accuracy(entry.make, source, target)
    return float(np.mean([accuracy(entry.make, draw(source, EACH, seed), target) for seed in range(DRAWS)]))


def row(name: str, pair: str, domains: dict[str, tuple[Array, Labels]]) -> dict[str, Any]:
    """A line of the file of results."""
    warnings.filterwarnings("ignore")
    start = time.process_time()
    found = run(METHODS[name], pair, domains)
    return {"method": name, "pair": pair, "accuracy": found, "seconds": time.process_time() - start}


def table(rows: pd.DataFrame) -> str:
    """Markdown: accuracies in percent, their mean, the published one and seconds."""
    lines = [f"| method | {' | '.join(PAIRS)} | mean | published | seconds |", "|---" * (len(PAIRS) + 4) + "|"]
    lines_digits = [f"| method | {' | '.join(DIGITS)} | published | seconds |", "|---" * 5 + "|"]
    for name, entry in METHODS.items():
        own = rows[rows["method"] == name].drop_duplicates("pair").set_index("pair")
        for pairs, into in ((PAIRS, lines), (DIGITS, lines_digits)):
            if not set(pairs) <= set(own.index):
                continue
            found = 100 * own.loc[pairs, "accuracy"]
            cells = [f"{value:.1f}" for value in found]
            if pairs is PAIRS:
                cells += [f"{found.mean():.2f}", f"{entry.surf or ''}"]
            else:
                cells += [", ".join(f"{value:.1f}" for value in entry.digits or ())]
            into.append(f"| {name} | {' | '.join(cells)} | {own.loc[pairs, 'seconds'].sum():.0f} |")
    return "\n".join([*lines, "", *lines_digits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data sets")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    file = given.out / "classical.jsonl"
    finished = pd.read_json(file, lines=True) if file.is_file() else pd.DataFrame(columns=["method", "pair"])
    done = set(zip(finished["method"], finished["pair"], strict=True))
    if not given.table:
        if given.data_root is None:
            parser.error("--data-root: give the folder of the shared data sets, or --table")
        domains = load(given.data_root)
        given.out.mkdir(parents=True, exist_ok=True)
        wanted = [(name, pair) for name in given.methods for pair in PAIRS + DIGITS * (not METHODS[name].splits)]
        todo = [delayed(row)(*cell, domains) for cell in wanted if cell not in done]
        with file.open("a") as lines:
            for found in Parallel(given.jobs, return_as="generator_unordered")(todo):
                lines.write(json.dumps(found) + "\n")
                lines.flush()
                print(*(found[key] for key in ("method", "pair", "accuracy")), f"{found['seconds']:.1f} s", flush=True)
    if file.is_file():
        print(table(pd.read_json(file, lines=True)))


if __name__ == "__main__":
    main()
