"""A fit that is interrupted and goes on equals an unbroken one, in the same run."""

import os
import random
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from mlflow.entities import Run

from lightning_da import tracking
from lightning_da.callbacks import KeepRandomState, StopAtSignal, record_run
from lightning_da.data.loading import Drawn, StatelessLoader
from lightning_da.main import main
from lightning_da.methods import DANN, FineTune
from lightning_da.networks import FeedForward
from lightning_da.schedules import inverse_decay
from lightning_da.store import client
from lightning_da.testing import build, equal, state, trainer
from tests import toy
from tests.test_image_folders import fill, folders
from tests.toy import ADAM, Toy

DROPOUT: dict[str, Any] = {"backbone": partial(FeedForward, hidden=[16, 16], dropout=0.5), "optimizer": ADAM}


# ---------------------------------------------------------------- the same weights


@pytest.mark.parametrize("step", [2, 4, 6, 10])
@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        (DANN, {}, {}),
        (FineTune, {"lr_schedule": inverse_decay}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}),
    ],
    ids=["dann", "accumulate"],
)
def test_a_fit_with_dropout_goes_on_from_any_step(
    method: Any, arguments: dict[str, Any], options: dict[str, Any], step: int, tmp_path: Path
) -> None:
    """Nine batches an epoch: the checkpoints are within an epoch, at its end, and after it."""
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)

    def new(seed: int) -> Any:
        return build(method, seed, **DROPOUT, **arguments)

    def data() -> Toy:
        return Toy(number=288)

    unbroken = new(0)
    L.seed_everything(5, verbose=False)
    callbacks = [keep, KeepRandomState()]
    trainer(14, enable_checkpointing=True, callbacks=callbacks, **options).fit(unbroken, data())
    resumed = new(9)
    L.seed_everything(5, verbose=False)
    last = trainer(14, callbacks=[KeepRandomState()], **options)
    last.fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert last.global_step == 14
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_images_go_on_within_an_epoch(workers: int, tmp_path: Path) -> None:
    """A schedule asks for the number of steps, so that Lightning makes the iterators before it restores its counts."""
    for domain in ("art", "photo"):
        fill(tmp_path / domain, number=20, suffix="png" if domain == "art" else "jpg")
    data = partial(folders, tmp_path, num_workers=workers)
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)

    def new(seed: int) -> DANN:
        L.seed_everything(seed, verbose=False)
        return DANN(num_classes=2, input_shape=(3, 8, 8), **DROPOUT, lr_schedule=inverse_decay, domain_weight=0.1)

    unbroken, resumed = new(0), new(9)
    trainer(-1, max_epochs=3, enable_checkpointing=True, callbacks=[keep, KeepRandomState()]).fit(unbroken, data())
    trainer(-1, max_epochs=3, callbacks=[KeepRandomState()]).fit(
        resumed, data(), ckpt_path=tmp_path / "step=9.ckpt", weights_only=True
    )
    assert equal(state(resumed, ("",)), state(unbroken, ("",)))


def test_dropout_needs_the_random_state(tmp_path: Path) -> None:
    """The test above can fail."""
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=4)
    unbroken, resumed = (build(FineTune, seed, **DROPOUT) for seed in (0, 9))
    trainer(8, enable_checkpointing=True, callbacks=[keep]).fit(unbroken, Toy())
    trainer(8).fit(resumed, Toy(), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert not equal(state(resumed, ("",)), state(unbroken, ("",)))


def test_random_states_of_python_and_numpy_are_kept() -> None:
    callback = KeepRandomState()
    kept = callback.state_dict()
    drawn = random.random(), np.random.rand(), torch.rand(())
    again = KeepRandomState()
    again.load_state_dict(kept)
    again.on_train_batch_start()
    assert (random.random(), np.random.rand(), torch.rand(())) == drawn
    again.on_train_batch_start()  # once alone
    assert random.random() != drawn[0]


# ---------------------------------------------------------------- the same images


def test_augmentation_depends_on_seed_sample_and_pass_alone(tmp_path: Path) -> None:
    fill(tmp_path / "art")
    dataset = folders(tmp_path, target=None).dataset("art", "train")
    drawn, number = Drawn(dataset, 3, 0), len(dataset)
    before = torch.get_rng_state()
    first = [drawn[index][0] for index in (4, number + 4, 2 * number + 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], first[1])  # each pass crops anew
    assert torch.equal(drawn[4][0], first[0])
    assert not torch.equal(Drawn(dataset, 4, 0)[4][0], first[0])
    assert torch.equal(Drawn(dataset, 3, 0).__getitems__([7, number + 4])[1][0], first[1])
    orders = [[4, 7, number + 4, number + 2], [number + 4, 4]]
    for workers in (0, 2):  # whichever process reads it, and whatever it has read before
        for order in orders:
            loader = StatelessLoader(drawn, sampler=order, batch_size=2, num_workers=workers)
            found = torch.cat([x for x, _ in loader])
            assert torch.equal(found[order.index(number + 4)], first[1])


def test_the_sampler_says_the_pass() -> None:
    data = Toy(number=96)
    fit = trainer(7)
    fit.fit(build(FineTune, 0), data)
    (loader,) = data.train_dataloader().iterables.values()
    loader.sampler.batches_read = lambda: 0
    passes = [[index // 96 for index in loader.sampler]]
    loader.sampler.batches_read = lambda: 4
    passes.append([index // 96 for index in loader.sampler])
    assert passes == [[0] * 96, [1] * 64]


# ---------------------------------------------------------------- the same run


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Ctrl-C reaches the tests also where they run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At(L.Callback):
    """Sends a signal to the own process after a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ARG002
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    toy.write_tables(tmp_path)
    return [
        *toy.DANN_OF_TABLES,
        "--model.backbone={class_path: FeedForward, init_args: {hidden: [8], dropout: 0.5}}",
        f"--trainer.logger.experiment_name={tmp_path.name}",
    ]


def runs(tmp_path: Path) -> list[Run]:
    experiment = client().get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    return list(client().search_runs([experiment.experiment_id]))


def interrupt(
    words: list[str], capsys: pytest.CaptureFixture[str], step: int = 11, number: int = signal.SIGTERM
) -> str:
    """Starts a fit that gets a signal; returns its message."""
    at = [
        f"--trainer.callbacks+={{class_path: tests.test_resume.At, init_args: {{step: {step}, number: {int(number)}}}}}"
    ]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, *at])
    assert stop.value.code == 1
    assert {number: signal.getsignal(number) for number in before} == before
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_the_fit_after_the_step_and_it_goes_on(
    number: int, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = interrupt(words, capsys, number=number)
    (killed,) = runs(tmp_path)
    assert killed.info.status == "KILLED"
    assert said.endswith(f"interrupted at step 12; to go on: lightning-da fit --ckpt_path {killed.info.run_id}")

    resumed = main(["fit", "--ckpt_path", killed.info.run_id])
    unbroken = main(["fit", *words, f"--trainer.logger.experiment_name={tmp_path.name}-whole"])
    assert equal(state(resumed.model, ("",)), state(unbroken.model, ("",)))
    (run,) = runs(tmp_path)
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert "failure" not in run.data.tags
    whole = client().get_run(unbroken.trainer.logger.run_id)
    assert run.data.params == whole.data.params
    assert run.data.metrics.keys() == whole.data.metrics.keys()
    for key in whole.data.metrics.keys() - {"fit/seconds"}:
        lines = [
            [(point.step, point.value) for point in client().get_metric_history(one.info.run_id, key)]
            for one in (run, whole)
        ]
        assert lines[0] == lines[1], key
    assert run.data.metrics["fit/seconds"] > 0
    left = sorted(path.name for path in Path(resumed.trainer.checkpoint_callback.dirpath).iterdir())
    assert left == ["last.ckpt"]


class CrashAt(L.Callback):
    """An error at a step: nothing is saved then."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ARG002
        if trainer.global_step == self.step and not Path("crashed").exists():
            Path("crashed").touch()
            raise RuntimeError("crash")


def test_a_crash_goes_on_from_the_last_finished_epoch(words: list[str], tmp_path: Path) -> None:
    """With the checkpoints of the default file."""
    place = words.index("--config", 4)
    words = [*words[:place], *words[place + 2 :], "--data.batch_size", "32", "--trainer.callbacks.TransferCurve=null"]
    words = [word for word in words if "TransferCurve" not in word]
    crash = "--trainer.callbacks+={class_path: tests.test_resume.CrashAt, init_args: {step: 11}}"
    with pytest.raises(RuntimeError, match="crash"):
        main(["fit", *words, crash])
    (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    kept = torch.load(folder / "last.ckpt", weights_only=True)
    assert kept["global_step"] in (8, 9)  # epochs of 3 or 4 steps
    resumed = main(["fit", "--ckpt_path", run.info.run_id, *words])
    unbroken = main(["fit", *words, f"--trainer.logger.experiment_name={tmp_path.name}-whole"])
    assert equal(state(resumed.model, ("",)), state(unbroken.model, ("",)))
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_last_is_the_run_with_these_settings(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, other = ([*words, f"--model.domain_weight={weight}"] for weight in (0.1, 0.7))
    interrupt(words, capsys)
    interrupt(other, capsys)
    main(["fit", *words, "--ckpt_path", "last"])
    assert {run.data.params["domain_weight"]: run.info.status for run in runs(tmp_path)} == {
        "0.1": "FINISHED",
        "0.7": "KILLED",
    }


def test_the_latest_run_goes_on_not_an_earlier_finished_one(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *words])
    interrupt(words, capsys)
    main(["fit", *words, "--ckpt_path", "last", "--trainer.max_steps=22"])
    assert sorted((run.info.status, str(run.data.tags.get("extended.max_steps"))) for run in runs(tmp_path)) == [
        ("FINISHED", "22"),
        ("FINISHED", "None"),
    ]


def test_an_extended_fit_that_is_interrupted_goes_on_to_its_new_length(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = main(["fit", *words]).trainer.logger.run_id
    at = "--trainer.callbacks+={class_path: tests.test_resume.At, init_args: {step: 24, number: 15}}"
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", run_id, "--trainer.max_steps=30", at])
    assert "interrupted at step 25" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", run_id, "--trainer.max_steps=20"])
    assert "max_steps: it is 20, but the run was fitted with 30" in capsys.readouterr().err
    cli = main(["fit", "--ckpt_path", run_id, "--trainer.callbacks=[]"])
    assert cli.trainer.global_step == 30
    main(["test", "--ckpt_path", run_id])
    assert main(["compare", "--experiment", tmp_path.name])["settings"][0]["max_steps"] == "30"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--trainer.limit_train_batches=2",
            r"trainer\.limit_train_batches: it is 2, but the run was fitted with None",
        ),
        ("--model.optimizer.init_args.lr=0.5", r"optimizer\.lr: it is 0\.5, but the run was fitted with 0\.001"),
        ("--data.batch_size=8", "batch_size: it is 8, but the run was fitted with 16"),
        ("--seed_everything=3", "seed: it is 3, but the run was fitted with 0"),
        ("--trainer.max_steps=15", "max_steps: it is 15, but the run was fitted with 20, and a run cannot get shorter"),
        ("--trainer.max_epochs=0", "max_epochs: it is 0, but the run was fitted with .*, and a run cannot get shorter"),
        ("--trainer.accumulate_grad_batches=2", "accumulate_grad_batches: it is 2, but the run was fitted with 1"),
        ("--data.source=three.npz", "source: it is three.npz, but the run was fitted with one.npz"),
    ],
)
def test_other_settings_are_refused_by_name(
    more: str, message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(words, capsys, step=3)
    (killed,) = runs(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", killed.info.run_id, more])
    assert re.search(message, capsys.readouterr().err)
    (run,) = runs(tmp_path)
    assert run.info.status == "KILLED"  # nothing is changed, and nothing is deleted


def test_a_run_that_is_older_than_an_option_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(words, capsys, step=3)
    (killed,) = runs(tmp_path)
    path = Path(killed.info.artifact_uri.removeprefix("file://")) / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    older = [line for line in lines if "micro_batch" not in line]
    assert len(older) == len(lines) - 1
    path.write_text("".join(older))
    assert main(["fit", "--ckpt_path", killed.info.run_id]).trainer.global_step == 20


def test_other_data_under_the_same_name_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(words, capsys, step=3)
    (killed,) = runs(tmp_path)
    y = np.arange(160) % 2
    np.savez(tmp_path / "two.npz", x=np.random.default_rng(7).normal(size=(160, 5)), y=y)
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", killed.info.run_id])
    assert "was fitted on other data; go on with the same data" in capsys.readouterr().err


def test_a_fit_that_ended_on_another_machine_goes_on_here(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is in the store alone."""
    for module in (tracking, record_run):
        monkeypatch.setattr(module, "is_local", lambda _: False)

    def longer(*places: str) -> tuple[str, Any]:
        """A fit in the first place that goes on in the last one."""
        for place in places:
            monkeypatch.setattr(tracking, "_uploads", lambda place=place: tmp_path / place)
            if place == places[0]:
                run_id = main(["fit", *words]).trainer.logger.run_id
        return run_id, main(["fit", "--ckpt_path", run_id, "--trainer.max_steps=24"])

    run_id, moved = longer("there", "here")
    assert tmp_path / "here" in Path(moved.trainer.checkpoint_callback.dirpath).parents
    assert client().get_run(run_id).data.tags["extended.max_steps"] == "24"
    assert equal(state(moved.model, ("",)), state(longer("here")[1].model, ("",)))


def test_a_run_without_a_checkpoint_cannot_go_on(words: list[str], tmp_path: Path, capsys: Any) -> None:
    without = [*words, "--trainer.callbacks=null", "--trainer.enable_checkpointing=false"]
    assert "there is no checkpoint to go on from" in interrupt(without, capsys, step=3)
    (killed,) = runs(tmp_path)
    for reference, message in (
        (killed.info.run_id, "has no checkpoint to go on from"),
        ("nobody", "no checkpoint file"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", "--ckpt_path", reference])
        assert message in capsys.readouterr().err


def test_a_signal_before_training_is_said(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DANN, "on_fit_start", lambda self: os.kill(os.getpid(), signal.SIGINT))  # noqa: ARG005
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words])
    signal.signal(signal.SIGINT, before)
    assert stop.value.code == 1
    assert "lightning-da: error: interrupted at step 0, without a new checkpoint" in capsys.readouterr().err
    (run,) = runs(tmp_path)
    assert run.info.status == "KILLED"


def test_ctrl_c_after_a_signal_ends_at_once() -> None:
    """Other signals come from machines, which send some of them twice."""
    stop = StopAtSignal()
    stop._note(signal.SIGTERM, None)
    stop._note(signal.SIGUSR2, None)
    with pytest.raises(KeyboardInterrupt):
        stop._note(signal.SIGINT, None)


def test_the_last_step_is_kept_between_two_checkpoints(words: list[str]) -> None:
    keep = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_top_k: 0, save_last: true, "
    cli = main(["fit", *words, f"--trainer.callbacks=[{keep}every_n_train_steps: 7}}}}]"])
    path = client().download_artifacts(cli.trainer.logger.run_id, "checkpoints/last.ckpt")
    kept = torch.load(path, weights_only=True)
    assert kept["global_step"] == 20
    assert all(torch.equal(kept["state_dict"][key], value) for key, value in cli.model.state_dict().items())
