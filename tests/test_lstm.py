"""The LSTM: padding, vocabulary, word vectors, blocks from an earlier run, and whole fits on sentences."""

import copy
import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_da.data import Sentences
from lightning_da.data.base import TensorDomain
from lightning_da.errors import ConfigError
from lightning_da.exporting import export
from lightning_da.main import main
from lightning_da.methods import DAN, DANN, DeepCORAL, FineTune, MultiTask
from lightning_da.methods.fine_tune import Start
from lightning_da.networks import LSTM
from lightning_da.networks.layers import as_vectors, capture
from lightning_da.paths import PROJECT
from lightning_da.schedules import constant
from lightning_da.store import client
from lightning_da.testing import build, equal, state, trainer
from lightning_da.text.words import UNUSED, code_of, encode
from lightning_da.tracking import find_fit

LENGTH = 12
SMALL = partial(LSTM, width=6, hidden=8, words=60)
NETWORK: dict[str, Any] = {"num_classes": 2, "input_shape": (LENGTH,), "backbone": SMALL}


def codes(*texts: str, length: int = LENGTH) -> Tensor:
    return torch.from_numpy(encode(texts, length)[0])


def ready(*texts: str, **arguments: Any) -> LSTM:
    """An LSTM that knows the words of some texts."""
    torch.manual_seed(0)
    network = SMALL((LENGTH,), **arguments)
    network.fit(lambda _: [codes(*texts)])
    return network.eval()


TEXTS = ("a good book", "bad", "the plot of this long book was not so good , say", "a fine plot")


# ---------------------------------------------------------------- padding


def test_padding_changes_nothing() -> None:
    """A sentence alone, in a batch with longer ones, and with more padding: the same outputs, in each layer."""
    network = ready(*TEXTS)
    with capture(network, network.layers, as_vectors) as seen:
        together, layers = network(codes(*TEXTS)), dict(seen)
        for row, text in enumerate(TEXTS):
            alone = network(codes(text))
            assert torch.allclose(alone[0], together[row], atol=1e-6)
            for name in network.layers:
                assert torch.allclose(seen[name][0], layers[name][row], atol=1e-6), name
            longer = network(codes(text, length=40))
            assert torch.equal(longer, alone)


def test_the_output_is_the_largest_state_of_all_words_and_a_layer_the_mean_of_the_words() -> None:
    network = ready(*TEXTS)
    plain = nn.LSTM(6, 8, batch_first=True)
    plain.load_state_dict(network.lstm.state_dict())
    for text in TEXTS:
        words = codes(text)[0][: len(text.split())]
        vectors = torch.stack([network.embedding.weight[network.embedding.words.tolist().index(int(w))] for w in words])
        assert torch.allclose(network(codes(text))[0], plain(vectors[None])[0][0].max(0).values, atol=1e-6)
        assert torch.allclose(network.embedding(codes(text)).mean(1)[0], vectors.mean(0), atol=1e-6)


def test_an_exported_network_gives_the_same_outputs() -> None:
    """Though it cuts no batch to its longest sentence: batches of any size, of short and long sentences."""
    data = Pair()
    model: FineTune = build(FineTune, 3, **NETWORK)
    model.fit_inputs(data)
    program = export(model, data).module()
    texts = ("good", *TEXTS, "very good x", "very " * 40)
    for batch in (codes(*texts), *(codes(text) for text in texts), codes(*texts[:2]), codes(*texts * 9)):
        expected = model(batch).softmax(dim=1)
        assert torch.allclose(program(batch), expected, atol=1e-6)
    assert expected.std(dim=0).min() > 1e-3


def test_padding_sends_no_gradient() -> None:
    network = ready(*TEXTS)
    short, long = codes("a good book"), codes("a good book", length=30)
    for x in (short, long):
        network.zero_grad()
        network(x).sum().backward()
        rows = network.embedding.weight.grad.abs().sum(1).nonzero()[:, 0]  # type: ignore[union-attr]
        assert sorted(rows.tolist()) == sorted(network.embedding.rows(short[0, :3]).tolist())


# ---------------------------------------------------------------- the vocabulary


def test_the_vocabulary_is_that_of_both_domains_the_most_frequent_words() -> None:
    domains = {"source": [codes("a a a b"), codes("b c")], "target": [codes("d d d e")]}
    network = LSTM((LENGTH,), words=3)
    network.fit(lambda role: domains[role])
    assert set(network.embedding.words.tolist()) == {code_of(word) for word in "abd"}
    wide = LSTM((LENGTH,), words=50)
    wide.fit(lambda role: domains[role])
    assert set(wide.embedding.words.tolist()) == {code_of(word) for word in "abcde"} | {UNUSED}
    assert wide.embedding.words.tolist() == sorted(wide.embedding.words.tolist())


def test_all_unknown_words_are_one() -> None:
    network = ready("a good book")
    outputs = network(codes("a new book", "a strange book", "a good book", "a book"))
    assert torch.equal(outputs[0], outputs[1])
    assert len({tuple(row.tolist()) for row in outputs}) == 3
    assert network.embedding.rows(codes("new")[:, :1]).item() == 60
    assert not network.embedding.weight[60].any()


def test_numbers_out_of_range_are_named() -> None:
    for name in ("width", "hidden", "words"):
        sizes: dict[str, Any] = {name: 0}
        with pytest.raises(ConfigError, match=f"{name}: 0 is less"):
            LSTM((LENGTH,), **sizes)


# ---------------------------------------------------------------- vectors of a file


def test_vectors_of_a_file_are_those_of_its_words(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("good 1 2 3 4 5 6\nother 0 0 0 0 0 0\nbook 6 5 4 3 2 1\n")
    network, plain = ready("a good book", vectors=str(tmp_path / "v.txt")), ready("a good book")
    network.load_pretrained()
    rows = {word: int(network.embedding.rows(codes(word)[:, :1])) for word in ("a", "good", "book")}
    assert network.embedding.weight[rows["good"]].tolist() == [1, 2, 3, 4, 5, 6]
    assert network.embedding.weight[rows["book"]].tolist() == [6, 5, 4, 3, 2, 1]
    same = (network.embedding.weight == plain.embedding.weight).all(1)
    assert same.nonzero()[:, 0].tolist() == [row for row in range(61) if row not in (rows["good"], rows["book"])]


def test_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("good 1 2 3\n")
    with pytest.raises(ConfigError, match="line 1: 3 values after 'good', not 6"):
        ready("good", vectors=str(tmp_path / "v.txt")).load_pretrained()
    (tmp_path / "v.txt").write_text("other 1 2 3 4 5 6\n")
    with pytest.raises(ConfigError, match="has no word of the training sentences"):
        ready("good", vectors=str(tmp_path / "v.txt")).load_pretrained()


# ---------------------------------------------------------------- blocks of an earlier run


class Pair(Sentences):
    """Two domains with words of their own, split in one way."""

    def __init__(self, own: str = "x", **arguments: Any) -> None:
        super().__init__("one", "two", batch_size=8, max_length=LENGTH, **arguments)
        self.own = own

    def dataset(self, domain: str, split: str) -> TensorDomain:
        start = {"train": 0, "val": 40, "test": 60}[split]
        labels = [i % 2 for i in range(start, start + (40 if split == "train" else 20))]
        end = domain if domain == "two" else self.own
        texts = [f"{('bad', 'good')[y]} {'very ' * (i % 4)}{end}" for i, y in enumerate(labels)]
        return TensorDomain(codes(*texts), torch.tensor(labels), ["neg", "pos"])


def trained(path: Path, own: str = "x", **kwargs: Any) -> FineTune:
    """A run on words, `own` among them, that is kept."""
    model: FineTune = build(FineTune, 5, **NETWORK | kwargs)
    fit = trainer(6, limit_val_batches=0)
    fit.fit(model, Pair(own))
    fit.save_checkpoint(path)
    return model


def started(path: Path, steps: int = 0, **kwargs: Any) -> FineTune:
    """A run on the words of `Pair("y")` that starts from an earlier one."""
    model: FineTune = build(FineTune, 9, **NETWORK | {"init_from": str(path), **kwargs})
    if steps:
        trainer(steps, limit_val_batches=0).fit(model, Pair("y"))
    else:
        model.fit_inputs(Pair("y"))
        model.initialise()
    return model


def vector(model: FineTune, word: str) -> Tensor:
    words: Any = model.backbone.embedding
    return words.weight[words.rows(codes(word)[:, :1])].flatten().detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("words", [60, 40])
def test_vectors_are_matched_word_by_word(words: int, tmp_path: Path) -> None:
    """Those of the same words are the earlier ones; a new word keeps its own; vocabularies may differ in size."""
    before = trained(tmp_path / "a.ckpt", backbone=partial(LSTM, width=6, hidden=8, words=words))
    now = started(tmp_path / "a.ckpt", init_layers=1)
    fresh: Any = build(FineTune, 9, **NETWORK)
    fresh.fit_inputs(Pair("y"))
    for word in ("good", "bad", "very", "two", "strange"):
        assert torch.equal(vector(now, word), vector(before, word)), word
    assert torch.equal(vector(now, "y"), vector(fresh, "y"))
    assert not torch.equal(vector(now, "y"), vector(before, "x"))
    assert equal(state(now, "backbone.lstm"), state(fresh, "backbone.lstm"))


def test_the_vector_of_unknown_words_is_matched_too() -> None:
    before, now = ready("a good book").embedding, ready("a bad book", words=9).embedding
    with torch.no_grad():
        before.weight[-1] = 3.0
    assert now.translate(before.state_dict())["weight"][-1].tolist() == [3.0] * 6


def test_a_resumed_or_tested_run_has_its_own_words(tmp_path: Path) -> None:
    before = trained(tmp_path / "a.ckpt")
    now: Any = build(FineTune, 9, **NETWORK)
    trainer().test(now, Pair("y"), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True, verbose=False)
    assert equal(state(now), state(before))


ROOM = {"embedding": "backbone.embedding.", "lstm": "backbone.lstm.", "head": "head."}
GRID: list[dict[str, Start]] = [
    {"embedding": "frozen"},
    {"embedding": "fine_tuned", "lstm": "frozen"},
    {"embedding": "frozen", "lstm": "fine_tuned", "head": "fine_tuned"},
    {"embedding": "random", "lstm": "frozen", "head": "frozen"},
    {"embedding": "fine_tuned", "lstm": "random", "head": "frozen"},
]


@pytest.mark.parametrize("blocks", GRID)
def test_each_block_starts_as_it_is_told(blocks: dict[str, Start], tmp_path: Path) -> None:
    trained(tmp_path / "a.ckpt")
    copy = started(tmp_path / "a.ckpt", blocks=dict.fromkeys(ROOM, "fine_tuned"))
    fresh: Any = build(FineTune, 9, **NETWORK)
    fresh.fit_inputs(Pair("y"))
    start, end = (started(tmp_path / "a.ckpt", steps, blocks=blocks) for steps in (0, 5))
    for name, prefix in ROOM.items():
        how = blocks.get(name, "random")
        origin = fresh if how == "random" else copy
        assert equal(state(start, prefix), state(origin, prefix)), name
        weights = [value for key, value in state(end, prefix).items() if "words" not in key]
        before = [value for key, value in state(start, prefix).items() if "words" not in key]
        same = [torch.equal(one, other) for one, other in zip(weights, before, strict=True)]
        assert all(same) if how == "frozen" else not any(same), name


def test_dropout_of_a_frozen_network_is_on_where_something_learns() -> None:
    model: FineTune = build(FineTune, **NETWORK | {"init_from": "x", "blocks": {"embedding": "frozen"}})
    assert not model.backbone.get_submodule("embedding").training
    assert model.backbone.training
    assert model.backbone.get_submodule("lstm").training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": {"embeding": "frozen"}, "init_from": "x"}, "no block 'embeding'; did you mean 'embedding'"),
        ({"blocks": {"lstm": "frozen"}}, "blocks: lstm needs an earlier run to copy from"),
        ({"blocks": {"lstm": "frozen"}, "init_from": "x", "freeze": 1}, "leave out init_layers, keep_head, freeze"),
        ({"blocks": dict.fromkeys(ROOM, "frozen"), "init_from": "x"}, "nothing is left to learn"),
    ],
)
def test_blocks_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FineTune(**NETWORK | arguments).initialise()


def test_another_width_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "a.ckpt", backbone=partial(LSTM, width=5, hidden=8, words=60))
    with pytest.raises(ConfigError, match=r"embedding\.weight: \(61, 5\) there, \(61, 6\) here"):
        started(tmp_path / "a.ckpt")


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("method", [DANN, DAN, DeepCORAL])
@pytest.mark.parametrize("layer", ["bottleneck", "embedding"])
def test_the_domain_loss_reaches_words_that_have_no_label(method: Any, layer: str) -> None:
    """The vector of a word of the target alone learns by the domain loss, and not at all without it."""

    def moved(kind: Any, **kwargs: Any) -> bool:
        model = build(kind, **NETWORK | kwargs)
        fresh: Any = build(kind, **NETWORK | kwargs)
        fresh.fit_inputs(Pair())
        trainer(2, limit_val_batches=0).fit(model, Pair())
        return not torch.equal(vector(model, "two"), vector(fresh, "two"))

    assert moved(method, layers=(layer,), domain_schedule=constant, domain_weight=1e3)
    assert not moved(method, layers=(layer,), domain_weight=0.0)
    assert not moved(FineTune)


class TwoTasks(Pair):
    """`Pair`, whose target asks another question of three classes, in short sentences."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        part = super().dataset(domain, split)
        if domain == "one":
            return part
        labels = torch.arange(len(part)) % 3
        texts = [f"{('who', 'when', 'very good')[y]} {i}" for i, y in enumerate(labels.tolist())]
        return TensorDomain(codes(*texts), labels, ["person", "time", "praise"])


def test_the_gradient_of_shared_layers_is_the_sum_of_those_of_two_tasks() -> None:
    """Two networks of the same weights, each for one task, are the reference."""
    data = TwoTasks()
    model: Any = build(MultiTask, 3, **NETWORK | {"num_classes": data.num_classes})
    model.fit_inputs(data)
    model.log = model.log_dict = lambda *_args, **_kwargs: None
    batch = {role: next(iter(data.sample_dataloader(role, "train", 20))) for role in ("source", "target")}
    model.training_step(batch, 0).backward()
    shared: dict[str, list[Tensor]] = {}
    for role, head, classes in (("source", model.source_head, [0, 1]), ("target", model.head, [2, 3, 4])):
        alone, output = copy.deepcopy(model.backbone), copy.deepcopy(head)
        (x, y), parts = batch[role], (alone, output)
        for part in parts:
            part.zero_grad()
        cross_entropy(output(alone(x))[:, classes], torch.tensor([classes.index(label) for label in y])).backward()
        assert torch.allclose(head.weight.grad, output.weight.grad, atol=1e-6)
        assert not head.weight.grad[[row for row in range(5) if row not in classes]].any()
        for name, parameter in alone.named_parameters():
            shared.setdefault(name, []).append(parameter.grad)
    assert set(shared) == {name for name, _ in model.backbone.named_parameters()}
    for name, (source, target) in shared.items():
        found = model.backbone.get_parameter(name).grad
        torch.testing.assert_close(found, source + target, rtol=1e-4, atol=1e-6)
        assert not any(torch.allclose(found, one, rtol=0.01) for one in (source, target)), name


def test_two_tasks_start_with_the_network_for_one(tmp_path: Path) -> None:
    """E and H are the earlier ones, word by word; each head is new."""
    before, data = trained(tmp_path / "a.ckpt"), TwoTasks()
    fresh, model = (
        build(MultiTask, 9, **NETWORK | {"num_classes": data.num_classes, "init_from": start})
        for start in (None, str(tmp_path / "a.ckpt"))
    )
    for network in (fresh, model):
        network.fit_inputs(data)
        network.initialise()
    assert equal(state(model, "backbone.lstm"), state(before, "backbone.lstm"))
    for word in ("good", "bad", "x"):
        assert torch.equal(vector(model, word), vector(before, word))
    assert torch.equal(vector(model, "who"), vector(fresh, "who"))
    for head in ("head", "source_head"):
        assert equal(state(model, head), state(fresh, head))


# ---------------------------------------------------------------- whole fits


def reviews(path: Path, first: str, labelled: bool = True) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for i in range(120):
            writer.writerow((f"{first} was {('bad', 'good')[i % 2]} {'so ' * (i % 5)} {i}", "np"[i % 2] * labelled))


WORDS = [
    *("--config", "method/dann.yaml", "--config", "data/sentences.yaml"),
    *("--config", str(PROJECT / "tests/short.yaml"), "--data.source", "a.csv", "--data.target", "b.csv"),
    *("--data.batch_size", "8", "--model.backbone.words", "300", "--model.backbone.dropout", "0.2"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]


def test_a_fit_is_tested_and_predicts_sentences_with_other_words(tmp_path: Path) -> None:
    for name, first, labelled in (("a", "book", True), ("b", "pan", False), ("c", "a room", False)):
        reviews(tmp_path / f"{name}.csv", first, labelled)
    cli = main(["fit", *WORDS, "--trainer.max_steps", "20"])
    main(["test", *WORDS])
    main(["predict", "--ckpt_path", "dann-a-b-s0", "--data.target", "c.csv"])
    texts = [line.split(",")[0] for line in (tmp_path / "c.csv").read_text().splitlines()[1:]]
    with torch.no_grad():
        expected = cli.model.eval()(codes(*texts, length=100)).argmax(1).tolist()
    with open("predictions.csv") as file:
        found = {row["sample"]: row["class"] for row in csv.DictReader(file)}
    assert found == {f"row {i + 1}": "np"[label] for i, label in enumerate(expected)}


@pytest.mark.slow
def test_a_resumed_fit_is_the_unbroken_one(tmp_path: Path) -> None:
    for name, first in (("a", "book"), ("b", "pan")):
        reviews(tmp_path / f"{name}.csv", first)
    words = [*WORDS, "--model.lr_schedule", "lightning_da.schedules.constant"]
    whole = main(["fit", *words, "--trainer.max_steps", "40"])
    main(["fit", *words, "--trainer.max_steps", "20", "--name", "part"])
    resumed = main(["fit", "--ckpt_path", "part-a-b-s0", "--trainer.max_steps", "40"])
    first, second = (cli.model.state_dict() for cli in (whole, resumed))
    assert resumed.trainer.global_step == 40
    assert equal(first, second)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    for name, first in (("a", "book"), ("b", "pan")):
        reviews(tmp_path / f"{name}.csv", first)
    words = ["fit", *WORDS, "--model.backbone.dropout", "0", "--trainer.max_steps", "4"]
    words += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.init_args.lr", "0.1"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for name, more in (("one", ["--data.batch_size", "16"]), ("two", two)):
        command = [sys.executable, "-m", "lightning_da", *words, "--name", name, *more]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, check=True, capture_output=True)
    one, both = (
        torch.load(find_fit(f"{name}-a-b-s0").checkpoint, weights_only=True)["state_dict"] for name in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(value, both[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.slow
def test_layers_transfer_to_a_task_with_other_classes(tmp_path: Path, capsys: Any) -> None:
    reviews(tmp_path / "a.csv", "book")
    with (tmp_path / "b.csv").open("w") as file:
        file.write(
            "text,label\n" + "".join(f"{w} comes {i},{w}\n" for i in range(50) for w in ("who", "when", "who else"))
        )
    words = ["layer-transfer", *WORDS[2:], "--across_domains", "--trainer.max_steps", "3"]
    rows = main([*words, "--treatments", "AnB", "random", "--name", "other"])
    assert list(zip(rows["treatment"], rows["n"], strict=True)) == [
        *(("A", 0), ("B", 0)),
        *(("AnB", 1), ("random", 1), ("AnB", 2), ("random", 2)),
    ]
    assert "largest class 0.3" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_learns_two_tasks_with_other_classes(tmp_path: Path) -> None:
    reviews(tmp_path / "a.csv", "book")
    with (tmp_path / "b.csv").open("w") as file:
        file.write("text,label\n" + "".join(f"{w} comes {i},{w}\n" for i in range(50) for w in ("who", "when", "how")))
    alone = ["--data.source", "null", "--data.target", "a.csv", "--trainer.max_steps", "5", "--name", "first"]
    main(["fit", *WORDS[2:], "--config", "method/target_only.yaml", *alone])
    words = ["sweep", "--methods", "multi_task", *WORDS[2:], "--trainer.max_steps", "60"]
    for start in ([], ["--model.init_from", "first-a-s0"]):
        (found,) = main([*words, *start])["target acc"]
        assert found > 0.9
    with pytest.raises(SystemExit):
        main(["sweep", "--methods", "source_only", *WORDS[2:]])


@pytest.mark.slow
def test_the_head_transfers_where_the_classes_are_the_same(tmp_path: Path) -> None:
    """E+H+O frozen is the network for A, tested on B."""
    for name, first in (("a", "book"), ("b", "pan")):
        reviews(tmp_path / f"{name}.csv", first)
    words = ["layer-transfer", *WORDS[2:], "--across_domains", "--trainer.max_steps", "30"]
    rows = main([*words, "--treatments", "AnB", "AnB+", "random", "--depths", "3", "--name", "head"])
    found = dict(zip(rows["treatment"], rows["run"], strict=True))
    assert list(found) == ["A", "B", "AnB", "AnB+"]
    assert rows["layer"].tolist() == ["", "", "head", "head"]
    config = client().download_artifacts(found["AnB"], "config.yaml")
    frozen = main(["fit", "--config", config, "--trainer.logger", "false"]).model.state_dict()
    base = torch.load(find_fit(found["A"]).checkpoint, weights_only=True)["state_dict"]
    same = [key for key in base if key.startswith(("backbone.lstm", "head."))]
    assert len(same) == 6
    assert all(torch.equal(frozen[key], base[key]) for key in same)
