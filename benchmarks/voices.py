"""Emotions after speakers, genders or nothing, with few and many labels: paired differences over seeds.

    python benchmarks/voices.py --data-root FOLDER --out results synthetic real

synthetic: 200 voices with 25 utterances of four phrases, and the 20 speakers with emotions that the project makes.
real: EMO-DB in four classes after its training speakers and those of 600 spoken digits. A seed draws the speakers of
the test, the labels that are read, and the weights; what is compared shares them. Networks have two layers of 1,024
units, and the second stage has 200 steps of 32. Unweighted average recall at the last step. A finished training is not
run again; `--table` runs nothing, and prints and draws what is there.
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import soundfile
import torch
from matplotlib.figure import Figure
from speech import fit
from speech import prepare as prepare_recordings

from lightning_da.data import SpeechCorpora
from lightning_da.data.speech import Label
from lightning_da.paths import write_whole
from lightning_da.speech import synthesis

VOICES, UTTERANCES, PHRASES = 200, 25, 4
SIZE = 1024
LABELS = ("5/class", "10/class", "20/class", "all")
TASKS: tuple[Label, ...] = ("gender", "speaker")
FIRST_STAGE: dict[str, dict[str, Any]] = {"synthetic": {"steps": 2000, "lr": 1e-3}, "real": {"steps": 500}}


def prepare_voices(out: Path) -> Path:
    """Writes the voices and their manifest `voices.csv`; returns their folder."""
    folder = out / "voices"
    if folder.is_dir():
        return folder
    part = out / "voices.part"
    part.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(VOICES):
        gender = synthesis.GENDERS[number % 2]
        voice = synthesis.draw_voice(gender, np.random.default_rng([number]))
        for utterance in range(UTTERANCES):
            rng = np.random.default_rng([number, utterance + 1])
            manner = synthesis.draw_manner(voice, "neutral", rng)
            sound = np.concatenate([synthesis.speak(voice, manner, rng) for _ in range(PHRASES)])
            path = f"{number:03d}-{utterance:02d}.wav"
            soundfile.write(part / path, sound + rng.normal(0, 10 ** (-72 / 20), sound.shape), synthesis.RATE)
            rows.append({"path": path, "speaker": f"voice {number}", "gender": gender})
    pd.DataFrame(rows).to_csv(part / "voices.csv", index=False)
    part.rename(folder)
    return folder


def train(folder: Path, corpus: str, seed: int) -> list[dict[str, Any]]:
    """Everything that shares a seed."""
    names = {"synthetic": ("voices.csv", "synthetic-emotions"), "real": ("source.csv", "target.csv")}[corpus]
    batch_size = 128 if corpus == "synthetic" else 32
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        starts: dict[str, str | None] = {"none": None}
        data: SpeechCorpora
        for task in TASKS:
            data = SpeechCorpora(*names, root=str(folder), task=task, seed=seed, batch_size=batch_size)
            module, trainer = fit(data, SIZE, "source", None, seed, standardize="per_domain", **FIRST_STAGE[corpus])
            start = f"{temporary}/{task}.ckpt"
            trainer.save_checkpoint(start, weights_only=True)
            starts[task] = start
            trainer.test(module, data, verbose=False)
            rows.append({"task": task, "error": 1 - float(trainer.callback_metrics["test/source/acc"])})
        for labels in LABELS:
            few: dict[str, Any] = {} if labels == "all" else {"target_labels": labels}
            data = SpeechCorpora(*names, root=str(folder), seed=seed, **few)
            for name, earlier in starts.items():
                module, trainer = fit(data, SIZE, "target", earlier, seed + 1000, standardize="per_domain")
                trainer.test(module, data, verbose=False)
                recall = float(trainer.callback_metrics["test/target/class_acc"])
                rows.append({"task": name, "labels": labels, "recall": recall})
    return [{"corpus": corpus, "seed": seed, **row} for row in rows]


def show(rows: pd.DataFrame, out: Path) -> None:
    """Prints errors, recalls and paired differences to no first stage with 95 % intervals, and draws these."""
    corpora = list(rows["corpus"].unique())
    figure = Figure(figsize=(4.2 * len(corpora), 3.4), layout="constrained")
    panels = figure.subplots(1, len(corpora), sharey=True, squeeze=False)[0]
    for axes, corpus in zip(panels, corpora, strict=True):
        own = rows[rows["corpus"] == corpus]
        errors = 100 * own.dropna(subset="error").groupby("task")["error"].agg(["mean", "std", "count"])
        print(f"\n{corpus}: error of the first stage, per cent\n{errors[['mean', 'std']].round(1).to_string()}")
        recalls = own.dropna(subset="recall").pivot(index=["labels", "seed"], columns="task", values="recall") * 100
        for shift, task in enumerate(TASKS):
            for place, labels in enumerate(LABELS):
                part = recalls.loc[labels]
                difference = part[task] - part["none"]
                mean, half = difference.mean(), scipy.stats.t.ppf(0.975, len(difference) - 1) * difference.sem()
                print(
                    f"{labels:9} {task:8} {len(part)} seeds  UAR {part[task].mean():.1f} ± {part[task].std():.1f}, "
                    f"none {part['none'].mean():.1f} ± {part['none'].std():.1f}, "
                    f"difference {mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"
                )
                colour = ("tab:blue", "tab:orange")[shift]
                x = place + (shift - 0.5) * 0.2
                axes.errorbar(x, mean, half, fmt="o", color=colour, label=None if place else f"{task} first")
                axes.plot(np.full(len(difference), x + 0.06), difference, ".", ms=3, color=colour, alpha=0.5)
        axes.axhline(0, color="black", lw=0.8)
        axes.set(xticks=range(len(LABELS)), xticklabels=LABELS, xlabel="labels", title=corpus)
    panels[0].set_ylabel("UAR less that without\na first stage, points")
    panels[0].legend(fontsize=8)
    figure.savefig(out / "voices.png", dpi=110)
    print(f"\n{out / 'voices.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="CORPUS", help="synthetic, real (default: both)")
    parser.add_argument("--data-root", type=Path, help="the folder of the shared data sets; real reads it")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: 10)")
    parser.add_argument("--table", action="store_true", help="print and draw what is finished")
    given = parser.parse_args()
    if unknown := [name for name in given.corpora if name not in FIRST_STAGE]:
        parser.error(f"no corpus {unknown[0]!r}; there are {', '.join(FIRST_STAGE)}")
    wanted = given.corpora or list(FIRST_STAGE)
    if "real" in wanted and given.data_root is None and not given.table:
        parser.error("give --data-root")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    path = given.out / "voices.json"
    given.out.mkdir(parents=True, exist_ok=True)
    done = json.loads(path.read_text()) if path.exists() else []
    prepare: dict[str, Callable[[Path], Path]] = {
        "synthetic": prepare_voices,
        "real": partial(prepare_recordings, given.data_root),
    }
    for seed in range(given.seeds if not given.table else 0):
        for corpus in wanted:
            if not any(row["corpus"] == corpus and row["seed"] == seed for row in done):
                done += train(prepare[corpus](given.out).absolute(), corpus, seed)
                with write_whole(path) as part:
                    part.write_text(json.dumps(done, indent=1))
                print(f"{corpus}, seed {seed}", flush=True)
    if done:
        show(pd.DataFrame(done), given.out)
    else:
        print("nothing is finished yet")


if __name__ == "__main__":
    main()
