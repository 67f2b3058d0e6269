"""The commands and code blocks of README and docs, and a small copy of the project in which they are run."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from lightning_da.paths import PROJECT
from lightning_da.text.synthesis import write_reviews
from tests import voices
from tests.test_digits import write_mnist

DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
ELSEWHERE = {
    # they install the project, run all its tests, or change its files
    "make install": ".ci/run",
    "make demo": "tests/test_demo.py",
    "make test": ".ci/run",
    "make test-slow": "Makefile",
    "make format": "Makefile",
    "make docs": "tests/test_site.py",
    # an environment that is not there in a copy, and packages that are downloaded into it
    "source .venv/bin/activate": "Makefile",
    ".venv/bin/pip install": "pyproject.toml",
    # a git repository, with a server for the tags
    ".venv/bin/pre-commit install": "tests/test_site.py",
    "git tag": "tests/test_packaging.py",
    "git push": "tests/test_packaging.py",
    # it ends when it is stopped
    "lightning-da ui": "benchmarks/walk.py",
    # several machines, and a cluster
    "torchrun": "tests/test_nodes.py",
    "lightning-da sweep --config data/digits.yaml --seeds 0 1 2 --executor slurm": "tests/test_slurm.py",
    # data that are not part of the project
    "python benchmarks/prepare.py": "benchmarks/prepare.py",
}
"""The beginnings of commands that are not run from their page, and the file that runs or tests them."""
SERVED = DOCS / "serve.md"
"""The page that is run in a shell as it is written: it has variables, a server and pipes."""


class Block(NamedTuple):
    """A block of code.

    Attributes:
        language: The word behind the fence.
        text: The lines of the block.
        file: The file that the paragraph before the block names, if it ends with a colon.
    """

    language: str
    text: str
    file: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page, in order."""
    parts = re.split(r"^```(.*)\n((?:.*\n)*?)```$", page.read_text(), flags=re.MULTILINE)
    for before, language, text in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        paragraph = before.rstrip().rpartition("\n\n")[2]
        names = re.findall(r"`([\w/]+\.(?:py|yaml))`", paragraph) if paragraph.endswith(":") else []
        named = language in ("python", "yaml") and names
        yield Block(language, text, names[0] if named else None)


def command_lines(page: Path) -> Iterator[str]:
    """The commands of a page as they are typed, without comments."""
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield shlex.join(words)


def runs_elsewhere(line: str) -> bool:
    return line.startswith(tuple(ELSEWHERE))


def named_file(page: Path, name: str) -> str:
    """The block of a file that a page names."""
    (text,) = (block.text for block in blocks(page) if block.file == name)
    return text


def shorter(line: str) -> str:
    """The same command with fewer repetitions: one seed, three trials, four steps."""
    for option, value in (
        ("seeds(?: \\d+)+", "seeds 0"),
        ("trials \\d+", "trials 3"),
        ("max_steps \\d{4,}", "max_steps 4"),
    ):
        line = re.sub(rf"(--[\w.]*){option}", rf"\g<1>{value}", line)
    grid = re.match(r"lightning-da (label-curve|layer-transfer|speech-transfer|chains)\b", line)
    return f"{line} --seeds 0" if grid and "--seeds" not in line else line


# ---------------------------------------------------------------- a reader's folder


def small_project(folder: Path) -> None:
    """A copy of the project in which every training has a few steps, and no weights are downloaded."""
    for name in ("lightning_da", "conf"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mlruns").mkdir()
    changes = {
        r"max_(steps|epochs): \d+": "max_steps: 4",
        r"weights: pretrained": "weights: random",
        r"model: resnet50": "model: test_resnet",  # tiny networks of timm
        r"model: mobilenetv2_100": "model: test_efficientnet",
        r"root: (data|shards)": r"root: \1\n    image_size: 32\n    batch_size: 8\n    num_workers: 0",
        r"hidden: \[\d+, \d+\]": "hidden: [16, 16]",
        r" +- class_path: lightning_da\.callbacks\.TransferCurve\n": "",
        r"target: handwritten": "target: handwritten\n    num_typeset: 300",
    }
    for path in (folder / "conf").rglob("*.yaml"):
        text = path.read_text()
        for old, new in changes.items():
            text = re.sub(old, new, text)
        path.write_text(text)


def write_images(folder: Path, classes: tuple[str, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(80, size=(40, 40, 3), dtype=np.uint8)
            pixels[..., place % 3] += np.uint8(120 + 10 * seed)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def write_vectors(path: Path, shift: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    table = pd.DataFrame(rng.normal(shift, 1, (120, 4)) + 3 * labels[:, None], columns=list("abcd"))
    table.assign(label=[("red", "green", "blue")[label] for label in labels]).to_csv(path, index=False)


def write_arrays(folder: Path) -> None:
    """Two modalities with the same classes, and trips of two cities, on foot and by car."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    for name, width in (("sounds", 6), ("pictures", 9)):
        np.savez(folder / f"{name}.npz", x=rng.normal(size=(120, width)) + 2 * labels[:, None], y=labels)
    seconds = np.broadcast_to(5.0 * np.arange(24), (120, 24))
    for name, speed in (("mine", 1.2), ("theirs", 1.5)):
        east = seconds * (speed + 8 * labels)[:, None] + rng.normal(size=(120, 24))
        np.savez(folder / f"{name}.npz", x=np.stack([seconds, east, rng.normal(size=(120, 24))], axis=2), y=labels)


def write_digits(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (28, 28, 3) if "sampled" not in str(path) else (28, 28)
    arrays: dict[str, Any] = {}
    for split, number in (("train", 200), ("test", 60)):
        arrays[f"x_{split}"] = rng.integers(256, size=(number, *shape), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % 10
    np.savez(path, **arrays)


def write_data(folder: Path, page: Path) -> None:
    """The data that the pages speak of, made up and small."""
    published = page.stem == "published"
    if not published:
        write_images(folder / "FOLDER", ("daisy", "rose", "tulip"), 0)
    names = ("FOLDER/mnist", "FOLDER/mnist_m", "FOLDER/sampled_0/mnist", "FOLDER/sampled_0/usps") if published else ()
    for seed, name in enumerate((*names, "prepared/mnist", "prepared/mnist_m")):
        write_digits(folder / f"{name}.npz", seed)
    for root in ("data/office", "prepared/office_caltech10"):
        for seed, domain in enumerate(("amazon", "webcam", "dslr")):
            write_images(folder / root / domain, ("bike", "calculator", "mug"), seed)
    for name, classes in (("lights", ("bright", "dark", "dim")), ("poverty", ("poor", "rich"))):
        write_images(folder / "data" / name, classes, 0)
    for seed, name in enumerate(("amazon", "webcam", "a", "b")):
        write_vectors(folder / f"{name}.csv", 0.5 * (seed % 2))
    for name, of in (("red", "a"), ("white", "b")):
        wine = pd.read_csv(folder / f"{of}.csv").drop(columns="label")
        wine.assign(quality=wine.sum(axis=1).round(2)).to_csv(folder / f"{name}.csv", index=False)
    write_mnist(folder / "data", 400)
    voices.pair(folder / "sounds", 10, 8)
    for old, new in (("source", "speakers"), ("target", "emotions")):
        table = pd.read_csv(folder / "sounds" / f"{old}.csv")
        table.assign(path=[f"sounds/{path}" for path in table["path"]]).to_csv(folder / f"{new}.csv", index=False)
    voices.sound(folder / "call.wav", 120.0)
    write_arrays(folder)
    write_texts(folder)
    write_masks(folder / "data" / "hearts")


def write_masks(folder: Path) -> None:
    """Images and masks of two scanners, five of each of six patients."""
    for seed, domain in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        for place in range(30):
            for kind, values in (("images", 256), ("masks", 3)):
                path = folder / domain / kind / f"p{place // 5}" / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(values, size=(16, 16), dtype=np.uint8)).save(path)


def write_texts(folder: Path) -> None:
    """Reviews with two classes, questions with others, and a few word vectors."""
    for name, domain in (("reviews", "books"), ("posts", "kitchen"), ("films", "books"), ("new", "kitchen")):
        texts, labels = write_reviews(f"synthetic-{domain}", 80)
        pd.DataFrame({"text": texts, "label": labels}).to_csv(folder / f"{name}.csv", index=False)
    asked = pd.DataFrame({"text": texts, "label": ["place" if "the" in text else "time" for text in texts]})
    asked.to_csv(folder / "questions.csv", index=False)
    vectors = "\n".join(f"{word} " + " ".join(["0.1"] * 50) for word in ("the", "good", "bad"))
    (folder / "glove.6B.50d.txt").write_text(vectors + "\n")
