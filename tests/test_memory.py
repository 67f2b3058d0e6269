"""The memory network and AMN: attention, its gradient reversal, and the words that it reads."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_da.callbacks import TestFigures
from lightning_da.callbacks.attention import ReadSentences, attention_figure, attention_table
from lightning_da.data import Sentences
from lightning_da.errors import ConfigError
from lightning_da.exporting import export
from lightning_da.methods import AMN, FineTune
from lightning_da.networks import LSTM, MemoryNetwork
from lightning_da.testing import AT_ONCE, build, gradients, ready, step, trainer
from lightning_da.text.words import encode
from lightning_da.tracking import Tracker

LENGTH = 12
SMALL = partial(MemoryNetwork, width=6, words=60)
NETWORK: dict[str, Any] = {"num_classes": 2, "input_shape": (LENGTH,), "backbone": SMALL}
TEXTS = ("a good book", "bad", "the plot of this long book was not so good , say", "a fine plot")


def codes(*texts: str, length: int = LENGTH) -> Tensor:
    return torch.from_numpy(encode(texts, length)[0])


def network(**arguments: Any) -> MemoryNetwork:
    """One that knows the words of `TEXTS`, and looks at some words much more than at others."""
    torch.manual_seed(0)
    found = SMALL((LENGTH,), **arguments)
    found.fit(lambda _: [codes(*TEXTS)])
    with torch.no_grad():
        found.memory.query.mul_(4)
    return found.eval().double()


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("hops", [1, 3])
def test_the_output_is_the_formula(hops: int) -> None:
    found = network(hops=hops)
    memory = {name: value.detach().numpy() for name, value in found.memory.named_parameters()}
    for text in TEXTS:
        m = found.embedding(codes(text))[0][: len(text.split())].detach().numpy()
        q = memory["query"]
        for hop in range(hops):
            scores = np.array([np.tanh(memory["key.weight"] @ row + memory["key.bias"]) @ q for row in m])
            weights = np.exp(scores) / np.exp(scores).sum()
            seen = found.attention(codes(text))[0, hop].detach().numpy()
            np.testing.assert_allclose(seen[: len(m)], weights, rtol=1e-9)
            q = weights @ m + memory["turn.weight"] @ q
        np.testing.assert_allclose(found(codes(text))[0].detach().numpy(), q, rtol=1e-9)
    assert weights.max() > 1.2 * weights.min()


def test_padding_gets_no_attention_and_changes_nothing() -> None:
    found = network()
    together, weights = found(codes(*TEXTS)), found.attention(codes(*TEXTS))
    assert weights.shape == (4, 3, LENGTH)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(4, 3, dtype=torch.float64))
    for row, text in enumerate(TEXTS):
        assert not weights[row, :, len(text.split()) :].any()
        assert weights[row, :, : len(text.split())].min() > 0
        torch.testing.assert_close(found(codes(text, length=40))[0], together[row])
    found(codes("a good book", length=30)).sum().backward()
    moved = found.embedding.weight.grad.abs().sum(dim=1).nonzero()[:, 0]  # type: ignore[union-attr]
    assert sorted(moved.tolist()) == sorted(found.embedding.rows(codes("a good book")[0, :3]).tolist())


def test_the_order_of_the_words_does_not_matter() -> None:
    found = network()
    one, other = codes("the plot was not good", "good not was the plot")
    torch.testing.assert_close(found(one[None]), found(other[None]))
    weights = found.attention(torch.stack([one, other]))
    torch.testing.assert_close(weights[0, :, :5], weights[1, :, [3, 4, 2, 1, 0]])


def test_a_sentence_without_words_is_finite() -> None:
    assert network()(codes("")).isfinite().all()


def test_numbers_out_of_range_and_other_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="hops: 0 is less"):
        SMALL((LENGTH,), hops=0)
    with pytest.raises(ConfigError, match="MemoryNetwork reads sentences"):
        SMALL((1, 28, 28))


# ---------------------------------------------------------------- the method


def test_the_gradient_of_the_domains_is_reversed_for_the_network_alone() -> None:
    """Against the gradient of the discriminator's cross-entropy that nothing reverses."""
    model = ready(AMN, **NETWORK, **AT_ONCE, domain_weight=0.3)
    model.backbone.fit(lambda _: [codes(*TEXTS)])
    s, t = codes(*TEXTS[:2]), codes(*TEXTS[2:])
    seen = step(model, {"source": (s, torch.tensor([1, 0])), "target": t})
    (discriminator,) = model.discriminators
    assert isinstance(discriminator, nn.Linear)
    plain = softplus(-discriminator(model.features(s))).mean() + softplus(discriminator(model.features(t))).mean()
    assert seen.domain_loss.item() == pytest.approx(plain.item(), rel=1e-12)
    for part, factor in ((model.backbone, -0.3), (discriminator, 1.0)):
        pairs = zip(*(gradients(loss, part.parameters()) for loss in (seen.domain_loss, plain)), strict=True)
        for found, wanted in pairs:
            assert wanted.abs().max() > 0
            torch.testing.assert_close(found, factor * wanted)
    assert not any(g.any() for g in gradients(seen.domain_loss, model.head.parameters()))


def test_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"give --config backbone/memory_network\.yaml"):
        build(AMN, **NETWORK | {"backbone": LSTM})


# ---------------------------------------------------------------- what it reads


@pytest.fixture
def data(tmp_path: Path) -> Sentences:
    """Two domains of short texts with words of their own."""
    for name in ("one", "two"):
        texts = [f"the {name} is {('bad', 'good')[i % 2]} {'very ' * (i % 3)}" for i in range(60)]
        pd.DataFrame({"text": texts, "label": [i % 2 for i in range(60)]}).to_csv(tmp_path / f"{name}.csv", index=False)
    return Sentences("one.csv", "two.csv", batch_size=8, root=str(tmp_path), max_length=LENGTH)


def test_a_test_records_what_is_read_and_an_exported_network_is_the_same(data: Sentences) -> None:
    model = build(AMN, **NETWORK, optimizer=partial(torch.optim.Adam, lr=0.01))
    logger = Tracker("attention", run_name="amn")
    fit = trainer(6, limit_val_batches=0, logger=logger, callbacks=[TestFigures(samples=20)])
    fit.fit(model, data)
    fit.test(model, data, verbose=False)
    store, run = logger.experiment, logger.run_id
    assert "attention.png" in {file.path for file in store.list_artifacts(run)}
    table = pd.read_csv(store.download_artifacts(run, "attention.csv"))
    assert list(table.columns) == ["word", "one.csv", "two.csv"]
    assert set(table["word"]) == {"the", "one", "two", "is", "bad", "good", "very"}
    assert table["one.csv"].isna().tolist() == (table["word"] == "two").tolist()
    assert set(table["word"][-2:]) == {"one", "two"}  # a word of one domain is no pivot
    batch = codes(*TEXTS)
    expected = model.eval()(batch).softmax(dim=1)
    torch.testing.assert_close(export(model, data).module()(batch), expected)


def test_no_figure_of_another_network() -> None:
    model = build(FineTune, **NETWORK | {"backbone": partial(LSTM, width=6, hidden=8, words=60)})
    figures = TestFigures()
    figures._kept = {"target": [(codes(*TEXTS), torch.zeros(4, 8), torch.zeros(4))]}
    assert figures._read(model) == []


def test_the_table_has_means_over_the_places_of_a_word() -> None:
    spelling = {1: "a", 2: "b", 3: "c"}
    one = ReadSentences(
        np.array([[1, 2, 0], [1, 3, 2], [1, 0, 0]]), np.array([[0.9, 0.1, 0], [0.2, 0.2, 0.6], [1, 0, 0]])
    )
    other = ReadSentences(np.array([[1, 1, 1, 2]]), np.array([[0.1, 0.1, 0.1, 0.7]]))
    table = attention_table({"x": one, "y": other}, spelling).set_index("word")
    assert table["x"]["a"] == pytest.approx((0.9 * 2 + 0.2 * 3 + 1) / 3)
    assert table["y"]["a"] == pytest.approx(0.4)
    assert list(table.index) == ["a"]  # the others stand too few times
    figure = attention_figure({"x": one, "y": other}, spelling)
    assert [text.get_text() for text in figure.axes[1].texts] == ["a", "b", "a", "c", "b", "a"]
