"""Turns a folder of shared data sets into files that the readers of the project take.

    python benchmarks/prepare.py --data-root FOLDER --out FOLDER

writes, for FeatureTables, images of 28 x 28 pixels with their training and test splits: `mnist.npz` and `mnist_m.npz`
in colour, `grey/mnist.npz` and `grey/usps.npz`, and `sampled_<seed>/` with the same but 2,000 training images of MNIST
and 1,800 of USPS (the protocol of Long et al. 2013; further 500 are for validation). In `aligned/` the digits of USPS
are as large as those of MNIST, without predefined splits. For ImageFolders it writes
`office_caltech10/<domain>/<class>/*.jpg`. As vectors it writes `surf/<domain>.npz` (800 counts of visual words),
`mobilenetv2/<domain>.npz` (1,280 features of the same images by the network of `linear_probe`), `jda/mnist.npz` and
`jda/usps.npz` (256 pixels) and `words/<corpus>.npz` (5,000 counts of words in reviews). For SpeechCorpora it writes
`emodb/men.csv` and `emodb/women.csv`, with their sounds. Animals with Attributes is in `awa/`: features of the 40 seen
classes and the 10 unseen ones (square root, length 1, 300 principal components of the seen classes), and attributes,
`binary.csv` and `continuous.csv`. What is there already is not written again.
"""

import argparse
import lzma
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from torch.utils.data import DataLoader

from lightning_da.data import ImageFolders
from lightning_da.networks.backbones import TimmBackbone

TILE, TILES = 32, 10000
MEN, WOMEN = ("03", "10", "11", "12", "15"), ("08", "09", "13", "14", "16")


def tiles(path: Path, number: int) -> NDArray[np.uint8]:
    """The middle 28 x 28 pixels of the first tiles of a mosaic, shape (number, 28, 28, 3)."""
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = mosaic.shape[0] // TILE, mosaic.shape[1] // TILE
    parts = mosaic.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, 3)
    return parts[:number, 2:30, 2:30]


def save(path: Path, arrays: dict[str, Any]) -> None:
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.rename(path)


def load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return {key: file[key] for key in file}


def grey(root: Path, out: Path) -> None:
    part = out / "grey.part"
    part.mkdir(exist_ok=True)
    save(part / "mnist.npz", load(root / "mnist" / "mnist.npz"))
    usps = load(root / "usps" / "usps.npz")
    for key in ("x_train", "x_test"):
        pixels = (usps[key].reshape(-1, 16, 16) * 255).round().astype(np.uint8)
        usps[key] = np.stack(
            [np.asarray(Image.fromarray(x).resize((28, 28), Image.Resampling.BILINEAR)) for x in pixels]
        )
    save(part / "usps.npz", usps)
    part.rename(out / "grey")


def aligned(root: Path, out: Path) -> None:
    part = out / "aligned.part"
    part.mkdir(exist_ok=True)
    save(part / "mnist.npz", load(root / "mnist" / "mnist.npz"))
    usps = load(root / "usps" / "usps.npz")
    pixels = (np.concatenate([usps["x_train"], usps["x_test"]]).reshape(-1, 16, 16) * 255).round().astype(np.uint8)
    x = np.zeros((len(pixels), 28, 28), np.uint8)
    x[:, 4:24, 4:24] = [np.asarray(Image.fromarray(p).resize((20, 20), Image.Resampling.BILINEAR)) for p in pixels]
    save(part / "usps.npz", {"x": x, "y": np.concatenate([usps["y_train"], usps["y_test"]])})
    part.rename(out / "aligned")


def sampled(root: Path, out: Path, seed: int) -> None:  # noqa: ARG001
    part = out / f"sampled_{seed}.part"
    part.mkdir(exist_ok=True)
    for name, number in (("mnist", 2000), ("usps", 1800)):
        arrays = load(out / "grey" / f"{name}.npz")
        order = np.random.default_rng([seed, number]).permutation(len(arrays["y_train"]))
        chosen = {"train": order[:number], "val": order[number : number + 500]}
        drawn = {f"{kind}_{split}": arrays[f"{kind}_train"][rows] for split, rows in chosen.items() for kind in "xy"}
        save(part / f"{name}.npz", arrays | drawn)
    part.rename(out / f"sampled_{seed}")


def mnist(root: Path, out: Path) -> None:
    arrays = load(root / "mnist" / "mnist.npz")
    colour = {key: np.repeat(value[..., None], 3, axis=3) for key, value in arrays.items() if key.startswith("x")}
    save(out / "mnist.npz", arrays | colour)


def mnist_m(root: Path, out: Path) -> None:
    folder, arrays = root / "mnist_m", {}
    labels = load(folder / "labels.npz")
    for split in ("train", "test"):
        y = labels[f"y_{split}"]
        mosaics = sorted(folder.glob(f"{split}_*.webp"))
        arrays[f"x_{split}"] = np.concatenate([tiles(mosaic, TILES) for mosaic in mosaics])[: len(y)]
        arrays[f"y_{split}"] = y
    save(out / "mnist_m.npz", arrays)


def office(root: Path, out: Path) -> None:
    folder = out / "office_caltech10"
    part = out / "office_caltech10.part"
    for tar in sorted((root / "office_caltech10_images").glob("*.tar")):
        with tarfile.open(tar) as archive:
            archive.extractall(part, filter="data")
    part.rename(folder)


OFFICE = ("amazon", "caltech10", "dslr", "webcam")


def surf(root: Path, out: Path) -> None:
    part = out / "surf.part"
    part.mkdir(exist_ok=True)
    for name in OFFICE:
        table = scipy.io.loadmat(root / "office_caltech10_surf" / f"{name}.mat")
        save(part / f"{name}.npz", {"x": table["fts"].astype(np.float32), "y": table["labels"].ravel()})
    part.rename(out / "surf")


def mobilenetv2(root: Path, out: Path) -> None:
    part = out / "mobilenetv2.part"
    part.mkdir(exist_ok=True)
    weights = str(root / "imagenet_weights" / "mobilenetv2_100_tf2ptq_fp16.pth")
    network = TimmBackbone((3, 224, 224), "mobilenetv2_100", weights, model_args={"pad_type": "same"}).eval()
    network.load_pretrained()
    half = (0.5, 0.5, 0.5)
    for name in OFFICE:
        other = next(domain for domain in OFFICE if domain != name)
        data = ImageFolders(str(out / "office_caltech10"), name, other, 32, mean=half, std=half, protocol="all")
        features, labels = [], []
        with torch.inference_mode():
            for x, y in DataLoader(data.dataset(name, "test"), batch_size=32):
                features.append(network(x))
                labels.append(y)
        save(part / f"{name}.npz", {"x": torch.cat(features).numpy(), "y": torch.cat(labels).numpy()})
    part.rename(out / "mobilenetv2")


def jda(root: Path, out: Path) -> None:
    part = out / "jda.part"
    part.mkdir(exist_ok=True)
    table = scipy.io.loadmat(root / "jda_digits" / "MNIST_vs_USPS.mat")
    for name, suffix in (("mnist", "src"), ("usps", "tar")):
        x, y = table[f"X_{suffix}"].T.astype(np.float32), table[f"Y_{suffix}"].ravel()
        save(part / f"{name}.npz", {"x": x, "y": y})
    part.rename(out / "jda")


def words(root: Path, out: Path) -> None:
    part = out / "words.part"
    part.mkdir(exist_ok=True)
    corpora = {}
    for name, number in (("imdb/imdb_train", 2000), ("text_small/mr", 4000), ("text_small/cr", 4000)):
        with lzma.open(root / f"{name}.tsv.xz", "rt", encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file]
        order = np.random.default_rng(0).permutation(len(rows))[:number]
        label, text = zip(*[(rows[i][0], rows[i][-1]) for i in order], strict=True)
        corpora[name.rpartition("/")[2].removesuffix("_train")] = (text, [int(value) for value in label])
    counter = CountVectorizer(max_features=5000, min_df=5).fit(
        [text for texts, _ in corpora.values() for text in texts]
    )
    for name, (texts, labels) in corpora.items():
        save(part / f"{name}.npz", {"x": counter.transform(texts).toarray().astype(np.uint8), "y": np.array(labels)})
    part.rename(out / "words")


def awa(root: Path, out: Path) -> None:
    part = out / "awa.part"
    part.mkdir(exist_ok=True)
    found = load(root / "awa" / "awa_features.npz")
    kinds = [np.sqrt(found[key].astype(np.float32)) for key in ("rgsift", "lss", "phog")]
    x = np.concatenate([kind / np.linalg.norm(kind, axis=1, keepdims=True).clip(1e-9) for kind in kinds], axis=1)
    seen = ~np.isin(found["y"], found["unseen"])
    x = PCA(300, random_state=0).fit(x[seen]).transform(x)
    x /= x[seen].std()
    names = found["classes"][found["y"]]
    for name, rows, parts in (
        ("seen", seen, (44, 4, 12)),
        ("seen_whole", seen, (58, 1, 1)),
        ("unseen", ~seen, (1, 1, 58)),
    ):
        place = np.empty(rows.sum(), dtype=int)  # of a picture in its class
        for own in np.unique(names[rows]):
            place[names[rows] == own] = np.random.default_rng(0).permutation(60)
        split = np.repeat(["train", "val", "test"], parts)[place]
        arrays = {
            f"{key}_{one}": value[rows][split == one]
            for one in ("train", "val", "test")
            for key, value in (("x", x), ("y", names))
        }
        save(part / f"{name}.npz", arrays)
    for name in ("binary", "continuous"):
        table = pd.DataFrame(found[f"predicate_{name}"], found["classes"], found["attributes"])
        table.clip(lower=0).to_csv(part / f"{name}.csv", index_label="class")  # -1, four times: missing, as 0
    part.rename(out / "awa")


def emodb(root: Path, out: Path) -> None:
    part = out / "emodb.part"
    with tarfile.open(root / "emodb_4class" / "emodb_4class_flac.tar") as archive:
        archive.extractall(part, filter="data")
    files = sorted(part.rglob("*.flac"))
    for name, speakers in (("men", MEN), ("women", WOMEN)):
        rows = [(str(f.relative_to(part)), f.name[:2], f.parent.name) for f in files if f.name[:2] in speakers]
        text = "path,speaker,emotion\n" + "".join(",".join(row) + "\n" for row in rows)
        (part / f"{name}.csv").write_text(text)
    part.rename(out / "emodb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Path, Path], None]] = {
        "mnist.npz": mnist,
        "mnist_m.npz": mnist_m,
        "office_caltech10": office,
        "grey": grey,
        "aligned": aligned,
        "surf": surf,
        "mobilenetv2": mobilenetv2,
        "jda": jda,
        "words": words,
        "emodb": emodb,
        "awa": awa,
    }
    makers |= {f"sampled_{seed}": partial(sampled, seed=seed) for seed in range(5)}
    for name, make in makers.items():
        if (given.out / name).exists():
            print(f"{name} is there already")
        else:
            make(given.data_root, given.out)
            print(f"{name} written")


if __name__ == "__main__":
    main()
