"""Reverse validation: its data, its score, and what it refuses."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_da.data import DataError, FeatureTables, Reversed
from lightning_da.main import main
from lightning_da.store import client
from tests import toy


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    toy.write_tables(tmp_path)
    return [
        *("--config", "data/features.yaml", "--config", str(Path(__file__).parent / "short.yaml")),
        *("--data.source", "one.npz", "--data.target", "two.npz", "--model.backbone.hidden=[4]"),
        *("--trainer.max_steps", "8", "--trainer.accelerator", "cpu"),
        f"--trainer.logger.experiment_name={tmp_path.name}",
    ]


def test_the_labels_of_the_reverse_are_the_predicted_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(60, 3)), y=np.arange(60) % 2)
    pair = FeatureTables("one.npz", "two.npz", batch_size=8)
    wanted = {}
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("sample", "split", "class", "probability"))
        for split in ("train", "val", "test"):
            names = pair.names("target", split)
            wanted[split] = rng.integers(0, 2, len(names))
            writer.writerows((name, split, pair.classes[k], 1) for name, k in zip(names, wanted[split], strict=True))
    back = Reversed(pair, "predictions.csv")
    assert (back.source, back.target, back.classes) == ("two.npz", "one.npz", pair.classes)
    for split, y in wanted.items():
        source = back.dataset(back.source, split)
        assert torch.as_tensor(source.y).tolist() == y.tolist()
        assert torch.equal(source[3][0], pair.dataset("two.npz", split)[3][0])
    assert back.dataset(back.target, "train").y.tolist() == pair.dataset("one.npz", "train").y.tolist()
    back.check()

    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    (tmp_path / "predictions.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"predictions\.csv: its samples are not those of domain 'two\.npz', test"):
        Reversed(pair, "predictions.csv").dataset("two.npz", "test")
    with pytest.raises(DataError, match="there is one domain"):
        Reversed(FeatureTables(None, "two.npz"), "predictions.csv")


@pytest.mark.slow
def test_reverse_validation_is_a_score_of_the_run(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sweep", *options, "--methods", "source_only", "adda", "target_only", "--jobs", "1"])
    table = main(["reverse", "--experiment", tmp_path.name, "--jobs", "1"])
    assert set(table["run"]) == {"source_only-one-two-s0", "adda-one-two-s0"}
    assert "score/reverse" in capsys.readouterr().out
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client().search_runs([experiment.experiment_id])}
    for row in table.to_dict("records"):
        assert runs[row["run"]].data.metrics["score/reverse"] == row["score/reverse"]
    reverse = client().get_experiment_by_name("reverse")
    assert reverse is not None
    trained = client().search_runs([reverse.experiment_id], "tags.whole = 'true'")
    assert all(run.data.params["data"] == "Reversed" for run in trained)
    before = len(trained)
    again = main(["reverse", "source_only-one-two-s0", "--jobs", "1"])
    assert again["run"].tolist() == ["source_only-one-two-s0"]
    assert len(client().search_runs([reverse.experiment_id], "tags.whole = 'true'")) == before
    with pytest.raises(SystemExit, match="'target_only-one-two-s0' has read target labels"):
        main(["reverse", "target_only-one-two-s0"])


def test_reverse_without_runs() -> None:
    with pytest.raises(SystemExit, match="give the runs to score, or --experiment NAME"):
        main(["reverse"])
    with pytest.raises(SystemExit, match="no experiment 'nothing'"):
        main(["reverse", "--experiment", "nothing"])
