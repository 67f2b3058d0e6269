"""The files of published results: whole, and shown beside the runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_da.cli import TransferCLI
from lightning_da.main import main
from lightning_da.paths import CONF

FILES = sorted((CONF / "experiment").glob("*.yaml"))
SHORT = [
    *("--config", str(Path(__file__).parent / "short.yaml"), "--trainer.max_steps", "2", "--jobs", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.logger.init_args.experiment_name", "published"),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_a_whole_fit_and_says_what_is_published(path: Path) -> None:
    cli = TransferCLI("fit", ["--config", str(path)])
    assert cli.config.trainer.max_steps > 0
    assert cli.config.name == yaml.safe_load(path.read_text())["name"]
    header = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    if cli.config.published is None:
        assert "has no figure" in header
    else:
        assert f"{cli.config.published:g}".lstrip("0") in header
        assert "table" in header
        assert "row" in header


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for name in ("mnist", "mnist_m"):
        images = rng.integers(256, size=(160, 28, 28, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", x_train=images, y_train=np.arange(160) % 10, x_test=images[:40],
                 y_test=np.arange(40) % 10)  # fmt: skip
    return ["--data.init_args.root", str(tmp_path), "--data.init_args.batch_size", "16"]


def test_a_sweep_takes_the_method_of_a_file_and_shows_the_published_figure(pair: list[str], capsys: Any) -> None:
    table = main(["sweep", "--config", "experiment/mnist_m_dann.yaml", *pair, *SHORT])
    assert table["method"].tolist() == ["dann"]
    assert table["published"].tolist() == [0.7666]
    assert " published " in capsys.readouterr().out

    table = main(["sweep", "--methods", "experiment/mnist_m_adda.yaml", *pair, *SHORT])
    assert table["method"].tolist() == ["source_only", "adda"]  # the first stage is a result of its own
    assert table["published"].isna().tolist() == [False, True]


def test_a_method_is_named_once(pair: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"name the method lightning_da\.methods\.DANN; leave out --methods"):
        main(["sweep", "--methods", "source_only", "--config", "experiment/mnist_m_dann.yaml", *pair, *SHORT])
