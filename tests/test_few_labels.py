"""A few labels of the target: which are read, by whom, and what they are good for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor

from lightning_da.cli import TransferCLI
from lightning_da.data import DataError, DomainPairDataModule, TensorDomain
from lightning_da.data.base import UNKNOWN, Roles, Selection
from lightning_da.data.labels import draw_labelled
from lightning_da.data.loading import Shuffle
from lightning_da.errors import ConfigError
from lightning_da.methods import ADDA, DAN, DANN, JAN, AdaptationModule, DeepCORAL, FineTune
from lightning_da.testing import ADAM, Toy, accuracy, build, equal, fit, ready, state, trainer


class Few(Toy):
    """The toy pair, with a few labels of the target; each label of the target is another class than in the source."""

    def __init__(self, target_labels: int | str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_labels = target_labels

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        return TensorDomain(data.x, (data.y + 1) % 3, data.classes) if domain == "noisy" else data


MOVED = Few(None, shift="moved")


def seen(model: Any, data: Toy, steps: int) -> list[dict[str, Any]]:
    """The training batches of a fit."""
    found: list[dict[str, Any]] = []
    model.on_train_batch_start = lambda batch, _idx: found.append(batch)
    trainer(steps, limit_val_batches=0).fit(model, data)
    return found


# ---------------------------------------------------------------- the draw


@pytest.mark.parametrize("seed", [0, 1])
def test_the_classes_take_turns(seed: int) -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 2)
    for wanted, counts in ((3, [1, 1, 1]), (5, None), (6, [2, 2, 2]), (20, [9, 9, 2]), (82, [50, 30, 2])):
        drawn = y[draw_labelled(y, wanted, seed, "labels")]
        assert len(drawn) == wanted
        assert counts is None or torch.bincount(drawn).tolist() == counts
    assert torch.bincount(y[draw_labelled(y, "4/class", seed, "labels")]).tolist() == [4, 4, 2]


def test_more_labels_contain_the_fewer_and_other_seeds_draw_others() -> None:
    y = torch.arange(300) % 3
    few, more = (set(draw_labelled(y, n, 0, "labels").tolist()) for n in (9, 30))
    assert few < more
    assert few == set(draw_labelled(y, "3/class", 0, "labels").tolist())
    assert few != set(draw_labelled(y, 9, 1, "labels").tolist())


@pytest.mark.parametrize("wanted", [0, -3, "many", "3/klass", "0/class", "3.5", ""])
def test_what_is_no_number_is_refused(wanted: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"data.target_labels: .* is no number of labels; give for example 10, or 3/cla"
    ):
        draw_labelled(torch.arange(9) % 3, wanted, 0, "data.target_labels")


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data.target_labels: there are 320 training samples with a label, fewer than 321"
    ):
        Few(321).check()


# ---------------------------------------------------------------- what is read


def test_the_data_stay_as_they_are() -> None:
    """Only what training reads depends on the option: not the digest of the data, checks, tests or predictions."""
    data, whole = Few("3/class"), Few(None)
    assert data.fingerprint() == whole.fingerprint()
    assert len(data._rows("target")) == 9
    assert len(data._rows("source")) == 320
    data.target_labels = 321  # new data have no labels at all
    assert len(trainer().predict(build(DANN), data)) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("train_on", ["target", "both"])
def test_supervised_training_reads_the_labelled_samples_alone_in_epochs_of_the_same_length(train_on: Any) -> None:
    data = Few(10)
    rows = data._get("noisy", "train").x[data._rows("target")]
    batches = seen(build(FineTune, train_on=train_on), data, 25)
    assert len(batches) == 25
    for batch in batches:
        x, y = batch["target"]
        assert len(x) == 10
        assert sorted(x.sum(dim=1).tolist()) == sorted(rows.sum(dim=1).tolist())
        assert (y != UNKNOWN).all()
    model = build(FineTune, train_on=train_on)
    fit(model, 1, data)
    assert model.trainer.num_training_batches == 10


@pytest.mark.parametrize("method", [DAN, DANN, DeepCORAL, JAN])
def test_adaptation_reads_all_samples_and_the_labelled_ones_with_labels(method: type[AdaptationModule]) -> None:
    data = Few(10)
    batches = seen(build(method, train_on="both"), data, 20)
    first = torch.cat([batch["target"] for batch in batches[:10]])
    assert len(first) == len(first.unique(dim=0)) == 320
    for batch in batches:
        assert {len(batch["source"][0]), len(batch["target"])} == {32}
        assert len(batch["labelled"][0]) == 10
        assert (batch["labelled"][1] != UNKNOWN).all()


def test_the_loss_is_the_mean_of_both_domains_and_the_domain_loss_reads_no_labelled_sample() -> None:
    """Against the network called by hand, in float64."""
    model = ready(DeepCORAL, train_on="both", batch_norm="separate")
    generator = torch.Generator().manual_seed(0)
    x = {part: torch.randn(n, 8, generator=generator).double() for part, n in (("s", 12), ("t", 12), ("l", 4))}
    y = {part: torch.randint(3, (n,), generator=generator) for part, n in (("s", 12), ("l", 4))}
    batch = {"source": (x["s"], y["s"]), "target": x["t"], "labelled": (x["l"], y["l"])}
    loss = model.training_step(batch, 0)

    logits = {part: model(x[part]) for part in x}
    task = sum(torch.nn.functional.cross_entropy(logits[part], y[part]) for part in ("s", "l")) / 2
    covariances = [torch.cov(model.features(x[part]).T) for part in ("s", "t")]
    width = covariances[0].shape[0]
    distance = (covariances[0] - covariances[1]).square().sum() / (4 * width**2)
    torch.testing.assert_close(loss, task + distance)


def test_the_labels_help_where_the_domains_disagree() -> None:
    """Every label of the target is another: alignment alone is wrong, 30 labels put it right."""
    kept: dict[str, Any] = {"domain_weight": 0.05, "optimizer": ADAM}
    blind = accuracy(fit(build(DANN, **kept), 300, MOVED), MOVED)["test/target/acc"]
    few = Few(30, shift="moved")
    told = accuracy(fit(build(DANN, **kept, train_on="both"), 300, few), few)["test/target/acc"]
    assert blind < 0.3
    assert told > 0.8


def test_adda_learns_the_labels_of_the_target(tmp_path: Path) -> None:
    first = build(FineTune, optimizer=ADAM)
    run = trainer(60, limit_val_batches=0, enable_checkpointing=False)
    run.fit(first, MOVED)
    run.save_checkpoint(tmp_path / "first.ckpt")
    found = {}
    for train_on in ("source", "both"):
        model = build(
            ADDA, init_from=str(tmp_path / "first.ckpt"), train_on=train_on, optimizer=ADAM, domain_weight=0.05
        )
        data = Few(30, shift="moved")
        found[train_on] = accuracy(fit(model, 150, data), data)["test/target/acc"]
        assert equal(state(model, "head."), state(first, "head."))
    assert found["both"] > found["source"] + 0.3


def test_a_method_that_reads_no_label_of_the_target_says_so(recwarn: pytest.WarningsRecorder) -> None:
    fit(build(DANN), 1, Few(10))
    assert [
        w for w in recwarn if "the method reads no label of the target; set --model.train_on both" in str(w.message)
    ]


def test_one_name_for_both_is_refused() -> None:
    with pytest.raises(DataError, match="target_labels: source and target have the same name"):
        DomainPairDataModule("calm", "calm", target_labels=3)


def test_a_resumed_run_reads_the_same_labels(tmp_path: Path) -> None:
    run = trainer(2, limit_val_batches=0)
    run.fit(build(FineTune, train_on="target"), Few(9))
    checkpoint = str(tmp_path / "two.ckpt")
    run.save_checkpoint(checkpoint)
    trainer(4, limit_val_batches=0).fit(
        build(FineTune, train_on="target"), datamodule=Few("3/class"), ckpt_path=checkpoint
    )
    for other in (30, None):
        with pytest.raises(DataError, match="trained on other labels of the target; resume"):
            trainer(4, limit_val_batches=0).fit(
                build(FineTune, train_on="target"), datamodule=Few(other), ckpt_path=checkpoint
            )
    trainer().test(build(FineTune, train_on="target"), datamodule=Few(30), ckpt_path=checkpoint, verbose=False)


@pytest.mark.parametrize("wanted", [1, 5, "1/class"])
def test_a_few_labels_of_files_are_found(wanted: Any) -> None:
    """Of data that are not in memory only some samples are looked at."""

    class Files(Few):
        def dataset(self, domain: str, split: str) -> Any:
            data = super().dataset(domain, split)
            return Selection(data, torch.arange(len(data)), data.y, data.classes)

    Files(wanted).check(Roles(("target",), ()))


def test_the_first_stage_of_one_domain_reads_no_hidden_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.arange(60) % 2)
    words = ["--config", "method/fine_tune.yaml", "--config", "data/features.yaml", f"--data.root={tmp_path}"]
    words += ["--after=source_only", "--data.target=one.npz", "--data.target_labels=4"]
    stage = TransferCLI("fit", words).first_stage()
    assert stage is not None
    assert stage["data"]["init_args"]["target_labels"] == 4
    pair = TransferCLI("fit", [*words, "--data.source=two.npz"]).first_stage()
    assert pair is not None
    assert "target_labels" not in pair["data"]["init_args"]


# ---------------------------------------------------------------- the stream


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 5, 12])
def test_longer_and_shorter_epochs_read_the_same_stream(world: int, length: int) -> None:
    data = list(range(23))

    def stream(length: int | None, epochs: int, rank: int) -> list[int]:
        read: list[int] = []
        sampler = Shuffle(data, world, rank, 7, 2, lambda: len(read) // 2, length)
        for _ in range(epochs):
            number = len(sampler)
            new = list(sampler)
            assert len(new) == number
            read += new
        return read

    for rank in range(world):
        one = stream(length, 24 // length, rank)
        other = stream(None, 9, rank)
        shared = min(len(one), len(other))
        assert one[:shared] == other[:shared]


def test_the_epoch_is_that_of_all_samples() -> None:
    data = Few(10)
    loader = data.train_dataloader()
    assert isinstance(loader, CombinedLoader)
    assert len(loader.iterables["target"]) == 10


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", ["digits", "features", "image_folders", "speech", "template"])
@pytest.mark.parametrize(("text", "value"), [("10", 10), ("3/class", "3/class")])
def test_every_kind_of_data_takes_it(name: str, text: str, value: Any) -> None:
    words = ["--config", "method/dann.yaml", "--config", f"data/{name}.yaml", f"--data.target_labels={text}"]
    backbone = ["--config", "backbone/mobilenetv2.yaml"] if name == "image_folders" else []
    assert TransferCLI("fit", [*words, *backbone]).config.data.init_args.target_labels == value


def test_labels_in_a_file_may_be_few(tmp_path: Path) -> None:
    """Without the option: a target of which a few samples have a label."""
    rng = np.random.default_rng(0)
    names = {0: "cat", 1: "dog"}
    for file, known in (("a", 100), ("b", 12)):
        lines = ["one,two,label"]
        for i in range(100):
            x: Tensor | Any = rng.normal(size=2) + 3 * (i % 2)
            lines.append(f"{x[0]},{x[1]},{names[i % 2] if i < known else ''}")
        (tmp_path / f"{file}.csv").write_text("\n".join(lines))
    words = ["--config", "method/dann.yaml", "--config", "data/features.yaml", "--model.train_on=both"]
    words += [f"--data.root={tmp_path}", "--data.source=a.csv", "--data.target=b.csv", "--data.batch_size=16"]
    cli = TransferCLI("fit", [*words, "--trainer.logger=false"]).build()
    batch = seen(cli.model, cli.datamodule, 2)[0]
    assert len(batch["target"]) == 16
    assert len(batch["labelled"][0]) == len(cli.datamodule._rows("target")) > 0
