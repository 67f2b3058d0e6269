"""Segmentation from few masks: made slices of hearts, from one scanner to another.

    python benchmarks/masks.py --out results

Images have 32 x 32 pixels. The source has 120 for training, all with masks; so has the target, of which 5 or 20 keep
theirs. `scratch` reads the target's masks alone; `classifier` too, with an encoder that has learned the kinds of
hearts from the source's images, released layer by layer. `both` reads the masks of both domains, `adversarial` adds
the discriminator; with `classifier` before it, it begins as `classifier` does. `no MAE` leaves that term out. The
settings are those of `conf/method/unet.yaml` and `segmentation.yaml`. A finished training is not run again; `--table`
prints what is there.
"""

import argparse
import itertools
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from descriptions import built, train

from lightning_da.data import Hearts
from lightning_da.grids.tables import mean_and_spread
from lightning_da.methods import AdversarialSegmentation, FineTune, Segmentation
from lightning_da.methods.masks import SCORES
from lightning_da.networks import UNetEncoder
from lightning_da.paths import write_whole
from lightning_da.schedules import ramp

SIZE, LABELS, STEPS, RATE = 32, (5, 20), 150, 0.01
METHODS = (
    *("scratch", "classifier", "both", "adversarial"),
    *("classifier, both", "classifier, adversarial", "classifier, adversarial, no MAE"),
)


def classifier(out: Path, seed: int, backbone: Any) -> str:
    """The checkpoint of a classifier of the source."""
    path = out / f"classifier-{seed}.ckpt"
    if not path.exists():
        L.seed_everything(seed, verbose=False)
        data: Any = Hearts(labels="classes", size=SIZE)
        model = built(FineTune, data, RATE, backbone=backbone, standardize=True)
        print(f"classifier {seed}: {train(model, data, STEPS)['source/acc']:.3f} on the source", flush=True)
        torch.save({"state_dict": model.state_dict()}, path)
    return str(path)


def cell(out: Path, method: str, labels: int, seed: int, weight: float, batch_norm: bool) -> dict[str, list[float]]:
    """Scores of each class on the target after a training with some of its masks."""
    start: dict[str, Any] = {}
    backbone = partial(UNetEncoder, batch_norm=batch_norm)
    if "classifier" in method:
        start = {"init_from": classifier(out, seed, backbone), "freeze": "all", "unfreeze_by": 0.5}
    L.seed_everything(seed, verbose=False)
    data: Any = Hearts(target_labels=labels, size=SIZE)
    network: dict[str, Any] = {"backbone": backbone, "standardize": True}
    begun = time.perf_counter()
    if method in ("scratch", "classifier"):
        model = built(Segmentation, data, RATE, train_on="target", **network, **start)
    else:
        of_term: dict[str, Any] = {"domain_weight": weight if "adversarial" in method else 0, "domain_schedule": ramp}
        mae: dict[str, Any] = {"mae_weight": 0.0} if "no MAE" in method else {}
        model = built(AdversarialSegmentation, data, RATE, **of_term, **network, **start, **mae)
    train(model, data, STEPS)
    found = model.counted("test", "target").compute()
    return {name: found[name].tolist() for name in SCORES} | {"seconds": [time.perf_counter() - begun]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each training (default: 3)")
    parser.add_argument("--weight", type=float, default=0.03, help="domain weight of `adversarial`")
    parser.add_argument("--batch_norm", action="store_true", help="an encoder with batch normalisation")
    parser.add_argument("--table", action="store_true", help="print what is finished")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "masks.json"
    done: dict[str, dict[str, list[float]]] = json.loads(path.read_text()) if path.exists() else {}
    if not given.table:
        torch.set_num_threads(1)
        for seed, labels, method in itertools.product(range(given.seeds), LABELS, METHODS):
            name = f"{labels}/{method}/{seed}"
            if name not in done:
                done[name] = cell(given.out, method, labels, seed, given.weight, given.batch_norm)
                with write_whole(path) as part:
                    part.write_text(json.dumps(done, indent=1))
                print(name, *(f"{score} {done[name][score][1]:.3f}" for score in SCORES), flush=True)
    rows = [
        [int(labels), method, f"{score} {part}", scores[score][place]]
        for (labels, method, _), scores in ((key.split("/"), scores) for key, scores in done.items())
        for score in SCORES
        for place, part in ((1, "cavity"), (2, "wall"))
    ]
    frame = pd.DataFrame(rows, columns=["masks", "method", "score", "value"])
    seen = frame.groupby(["masks", "method", "score"], sort=False)["value"].agg(
        lambda x: mean_and_spread(x.mean(), x.std(), ".3f")
    )
    print(f"means over images of the target's test split\n{seen.unstack().to_string()}")


if __name__ == "__main__":
    main()
