"""Layers of sentence networks between tasks, beside the paper's figures, and bags of words beside both.

    python benchmarks/text.py --data-root FOLDER --out results imdb-mr imdb-trec mr-cr

Mou et al., "How transferable are neural networks in NLP applications?", EMNLP 2016, tables 3 and 4. A network for the
first task gives the second one its embedding (E), its hidden layer (H) and its output (O), frozen or fine-tuned. MULT
trains one network on both tasks, which share E and H; INIT+MULT starts it with the network for the first task. All
networks start with GloVe's word vectors; `random` alone does not. `FOLDER` has the shared data imdb, text_small and
word_vectors_50d. Reviews and sentences are cut to 100 words. A finished training is not run again; `--table` runs
nothing and prints what is there.
"""

import argparse
import json
import lzma
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lightning_da.data import Sentences
from lightning_da.grids.tables import mean_and_spread
from lightning_da.main import main as lightning_da
from lightning_da.paths import PROJECT, write_whole

LENGTH, STEPS = 100, 1500
SENTIMENT = {"0": "negative", "1": "positive"}
PUBLISHED: dict[str, dict[str, float]] = {
    "imdb-mr": {"largest class": 0.500, "E: GloVe": 0.751}
    | {"frozen E": 0.782, "frozen E+H": 0.788, "frozen E+H+O": 0.736}
    | {"fine-tuned E": 0.783, "fine-tuned E+H": 0.814, "fine-tuned E+H+O": 0.809},
    "imdb-trec": {"largest class": 0.229, "E: GloVe": 0.908}
    | {"frozen E": 0.932, "frozen E+H": 0.556, "fine-tuned E": 0.926, "fine-tuned E+H": 0.904},
    "mr-cr": {},
}
"""The paper's accuracies; its first vectors are of Wikipedia, as GloVe's are, and its second task is named QC there."""
ROWS = (
    *("largest class", "bag of words", "bag of words on A", "random", "E: GloVe"),
    *(f"{how} {what}" for how in ("frozen", "fine-tuned") for what in ("E", "E+H", "E+H+O")),
    *("MULT", "INIT+MULT"),
)


def read(path: Path) -> pd.DataFrame:
    """The columns of a shared file, the label first and the sentence last."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return pd.DataFrame([line.rstrip("\n").split("\t") for line in file])


def prepare(data: Path, out: Path) -> None:
    """Writes the tasks as tables, and GloVe's vectors as text."""
    if (out / "glove.txt").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    small, parts = data / "text_small", {}
    parts["imdb"] = [(read(data / "imdb" / f"imdb_{split}.tsv.xz"), split) for split in ("train", "test")]
    parts["trec"] = [(read(small / f"trec_{split}.tsv.xz"), split) for split in ("train", "test")]
    parts |= {name: [(read(small / f"{name}.tsv.xz"), "")] for name in ("mr", "cr")}
    for name, of_task in parts.items():
        tables = []
        for table, split in of_task:
            label = table[0].str.split(":").str[0].replace(SENTIMENT if name != "trec" else {})
            text = table[table.columns[-1]].str.replace("<br />", " ", regex=False)
            tables.append(pd.DataFrame({"text": text, "label": label, "split": split}))
        pd.concat(tables).to_csv(out / f"{name}.csv", index=False)
    (vectors,) = (data / "word_vectors_50d").glob("glove*.npz")
    found = np.load(vectors)
    words, values = (found[next(key for key in found if found[key].ndim == ndim)] for ndim in (1, 2))
    lines = [" ".join([str(word), *(f"{x:.5g}" for x in row)]) for word, row in zip(words, values, strict=True)]
    with write_whole(out / "glove.txt") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def options(out: Path, given: argparse.Namespace) -> list[str]:
    """The options of every training."""
    values = {
        "data.init_args.root": out.absolute(),
        "data.init_args.max_length": LENGTH,
        "model.init_args.backbone.init_args.dropout": 0.3,
        "trainer.max_steps": given.steps,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    words = ["--config", str(PROJECT / "conf/data/sentences.yaml")]
    return words + [word for key, value in values.items() for word in (f"--{key}", str(value))]


def run(pair: str, given: argparse.Namespace) -> dict[str, list[float]]:
    """The accuracies on B, one a seed, by row; what is finished is read from the MLflow store in `out`."""
    first, second = pair.split("-")
    seeds, tables = list(map(str, range(given.seeds))), given.out / "tables"
    jobs = ["--jobs", str(given.jobs)]
    glove = ["--model.init_args.backbone.init_args.vectors", str((tables / "glove.txt").absolute())]
    tasks = ["--data.init_args.source", f"{first}.csv", "--data.init_args.target", f"{second}.csv"]
    how = ["--across_domains", "--treatments", "AnB", "AnB+", "--seeds", *seeds, "--name", pair, *jobs]
    cells = lightning_da(["layer-transfer", *how, *options(tables, given), *tasks, *glove])
    alone = ["--data.init_args.source", "null", "--data.init_args.target", f"{second}.csv"]
    found = bags(tables, first, second) | {"random": []}
    for seed in seeds:  # the table of a sweep has the mean over its seeds
        how = ["--methods", "target_only", "--seeds", seed]
        found["random"] += lightning_da(["sweep", *how, *jobs, *options(tables, given), *alone])["target acc"].tolist()
    found["E: GloVe"] = cells[cells["treatment"] == "B"]["accuracy"].tolist()
    for treatment, name in (("AnB", "frozen"), ("AnB+", "fine-tuned")):
        for n, what in enumerate(("E", "E+H", "E+H+O"), start=1):
            rows = cells[(cells["treatment"] == treatment) & (cells["n"] == n)]
            found |= {f"{name} {what}": rows["accuracy"].tolist()} if len(rows) else {}
    first_task = cells[cells["treatment"] == "A"]
    runs = dict(zip(first_task["seed"], first_task["run"], strict=True))
    found |= multi_task([*options(tables, given), *tasks, *glove, *jobs], runs)
    return found


def multi_task(words: list[str], runs: dict[int, str]) -> dict[str, list[float]]:
    """The accuracies on B of networks for A and B that share E and H, one a seed.

    Args:
        words: The options of a training.
        runs: The run of the network for A, by seed.
    """
    found: dict[str, list[float]] = {"MULT": [], "INIT+MULT": []}
    for seed, run in runs.items():
        for name, start in (("MULT", []), ("INIT+MULT", ["--model.init_args.init_from", run])):
            how = ["--methods", "multi_task", "--seeds", str(seed), "--model.init_args.optimizer.init_args.lr", "1e-3"]
            found[name] += lightning_da(["sweep", *how, *words, *start])["target acc"].tolist()
    return found


def bags(tables: Path, first: str, second: str) -> dict[str, list[float]]:
    """Accuracies on B of its largest class, and of logistic regression on words and pairs of words."""
    data = Sentences(f"{first}.csv", f"{second}.csv", root=str(tables), max_length=LENGTH)

    def texts(role: str, split: str) -> tuple[list[str], Any]:
        part: Any = data.dataset(f"{role}.csv", split)
        return [" ".join(str(word) for word in row if word) for row in part.x.tolist()], part.y.numpy()

    def fitted(role: str) -> Any:
        bag = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True)
        return make_pipeline(bag, LogisticRegression(C=10, max_iter=1000)).fit(*texts(role, "train"))

    x, y = texts(second, "test")
    found = {"largest class": [float(np.bincount(y).max() / len(y))], "bag of words": [fitted(second).score(x, y)]}
    if data.classes_of(f"{first}.csv") == data.classes_of(f"{second}.csv"):
        found["bag of words on A"] = [fitted(first).score(x, y)]
    return found


def show(found: dict[str, dict[str, list[float]]], out: Path) -> None:
    """Prints a table for each pair, and draws all of them."""
    figure = Figure(figsize=(4.2 * len(found), 4.2), layout="constrained")
    for axes, (pair, rows) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        there = [row for row in ROWS if row in rows]
        first, second = pair.upper().split("-")
        print(f"\n{first} -> {second}, accuracy on the test split\n{'':20} {'seen':>15} {'published':>10}")
        for place, row in enumerate(there):
            values = np.array(rows[row])
            seen = mean_and_spread(values.mean(), pd.Series(values).std(), ".3f")
            published = PUBLISHED[pair].get(row)
            print(f"{row:20} {seen:>15} {'' if published is None else f'{published:.3f}':>10}")
            colour = "tab:red" if "frozen" in row else "tab:orange" if "tuned" in row else "tab:grey"
            axes.barh(place, values.mean(), color=colour, alpha=0.6)
            axes.plot(values, [place] * len(values), "k.", ms=4, label="a seed" if not place else None)
            if published is not None:
                axes.plot(published, place, "D", color="tab:blue", ms=5, label="published" if not place else None)
        axes.set_yticks(range(len(there)), there)
        axes.set_ylim(len(there) - 0.5, -0.5)
        axes.tick_params(labelleft=True)
        axes.set(xlim=(0, 1), xlabel=f"accuracy on {second}", title=f"{first} to {second}")
        axes.grid(axis="x", alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(out / "text.png", dpi=110)
    print(f"\n{out / 'text.png'}")


def command_line(
    parser: argparse.ArgumentParser,
    pairs: Collection[str],
    steps: int,
    run: Callable[[str, argparse.Namespace], Any],
    show: Callable[[dict[str, Any], Path], None],
) -> None:
    """Parses the command line, runs the wanted pairs, and keeps and shows what is found.

    Args:
        parser: The parser, with the options of one benchmark.
        pairs: Names of all pairs.
        steps: Steps of a training.
        run: From a pair and the options to its figures.
        show: Prints the figures of all pairs; the folder is for pictures.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"{', '.join(pairs)} (default: all)")
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each training (default: 3)")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps of a training (default: {steps})")
    parser.add_argument("--table", action="store_true", help="print and draw what is finished")
    given = parser.parse_args()
    if unknown := [name for name in given.pairs if name not in pairs]:
        parser.error(f"no pair {unknown[0]!r}; there are {', '.join(pairs)}")
    path = given.out / f"{Path(parser.prog).stem}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if not given.table:
        if given.data_root is None:
            parser.error("give --data-root")
        prepare(given.data_root, given.out / "tables")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{given.out.absolute() / 'mlflow.db'}"
        for pair in given.pairs or pairs:
            found[pair] = run(pair, given)
            with write_whole(path) as part:
                part.write_text(json.dumps(found, indent=1))
    if found:
        show(found, given.out)
    else:
        print("nothing is finished yet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    command_line(parser, PUBLISHED, STEPS, run, show)


if __name__ == "__main__":
    main()
