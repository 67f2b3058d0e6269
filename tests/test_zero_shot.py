"""Zero-shot learning: descriptions of classes, two methods, and made pictures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from lightning_da.cli import TransferCLI
from lightning_da.commands.test import _tables
from lightning_da.data import Shapes
from lightning_da.data.base import UNKNOWN, DataError, DomainPairDataModule, Roles, TensorDomain
from lightning_da.data.descriptions import read_descriptions
from lightning_da.data.shapes import CLASSES, UNSEEN
from lightning_da.errors import ConfigError
from lightning_da.methods import DAP, ClassEmbedding
from lightning_da.networks import FeedForward, Raw
from lightning_da.schedules import cosine
from tests.toy import accuracy, equal, fit, state

ATTRIBUTES = 5
NAMES = [f"{code:05b}" for code in range(32)]
UNSEEN_CODES = (3, 12, 21, 30)


class Codes(DomainPairDataModule):
    """Vectors with a value near 1 or -1 for each bit of the name of their class; the target has classes of its own.

    Args:
        unseen: Classes of the target.
        labelled: Whether the target has labels.
        **kwargs: Arguments of `DomainPairDataModule`.
    """

    def __init__(self, unseen: tuple[int, ...] = UNSEEN_CODES, labelled: bool = True, **kwargs: Any) -> None:
        super().__init__("seen", "unseen", **kwargs)
        self.unseen, self.labelled = unseen, labelled

    def dataset(self, domain: str, split: str) -> TensorDomain:
        rng = np.random.default_rng([["train", "val", "test"].index(split), len(domain)])
        codes = self.unseen if domain == "unseen" else [code for code in range(32) if code not in UNSEEN_CODES]
        names = [NAMES[code] for code in codes]
        y = rng.integers(len(codes), size=200)
        bits = np.array([[2 * int(bit) - 1 for bit in names[label]] for label in y])
        x = torch.from_numpy(bits + rng.normal(0, 0.3, bits.shape)).float()
        if domain == "unseen" and not self.labelled:
            return TensorDomain(x, torch.full((200,), UNKNOWN), [])
        return TensorDomain(x, torch.from_numpy(y), names)


def write(path: Path, rows: dict[str, Any], separator: str = ",") -> str:
    lines = [["name", *(f"bit{i}" for i in range(ATTRIBUTES))], *([name, *row] for name, row in rows.items())]
    path.write_text("\n".join(separator.join(map(str, line)) for line in lines) + "\n")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "codes.csv", {name: list(name) for name in NAMES[::-1]})


def build(kind: Any, seed: int = 0, classes: int = 32, attributes: int = ATTRIBUTES, **kwargs: Any) -> Any:
    L.seed_everything(seed, verbose=False)
    given: dict[str, Any] = {
        "num_classes": classes,
        "input_shape": (ATTRIBUTES,),
        "num_attributes": attributes,
        "backbone": partial(FeedForward, hidden=[32]),
        "optimizer": partial(torch.optim.Adam, lr=0.01),
    }
    return kind(**given | kwargs)


# ---------------------------------------------------------------- descriptions


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_is_read_by_name(tmp_path: Path, suffix: str, separator: str) -> None:
    found = read_descriptions(
        Path(write(tmp_path / f"t{suffix}", {"None": [1, 0, 0, 0, 0.5], "cat": [0] * 5}, separator))
    )
    assert found.classes == ["None", "cat"]
    assert found.attributes[4] == "bit4"
    assert found.of(["cat", "None"]).tolist() == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0.5]]


def test_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", classes=["a", "b"], values=np.eye(2), attributes=["x", "y"])
    found = read_descriptions(tmp_path / "a.npz")
    assert (found.classes, found.attributes, found.values.tolist()) == (["a", "b"], ["x", "y"], [[1, 0], [0, 1]])


ROWS: dict[str, Any] = {"a": [1, 0, 0, 0, 2], "b": [0, 1, 0, 0, 3]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"b ": ROWS["a"]}, "class 'b' has two descriptions"),
        ({"c": [1, 0, "nan", 0, 1]}, "attribute 'bit2' of class 'c' is missing"),
        ({"c": [1, 0, "", 0, 1]}, "attribute 'bit2' of class 'c' is missing"),
        ({"c": [1, 0, "tall", 0, 1]}, "attribute 'bit2' of class 'c' is missing"),
        ({"c": [1, -1, 0, 0, 1]}, r"attribute 'bit1' of class 'c' is missing \(-1\)"),
    ],
)
def test_what_is_missing_or_double_is_named(tmp_path: Path, rows: dict[str, Any], message: str) -> None:
    path = Path(write(tmp_path / "t.csv", ROWS | rows))
    with pytest.raises(ConfigError, match=message) as error:
        read_descriptions(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_minus_one_is_a_value_among_negative_ones(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "t.csv", ROWS | {"c": [-1, -0.5, 0, 0, 0]}))
    assert read_descriptions(path).of(["c"])[0, 0] == -1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, "no file"),
        ("t.xls", b"", "give a .csv, .tsv or .npz"),
        ("t.csv", b"", "not a table"),
        ("t.csv", b"a,b\n", "a row for each class"),
        ("t.csv", b"\xff\xfe,b\n1,2\n", "not a table in UTF-8"),
        ("t.npz", b"no", "t.npz"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_descriptions(tmp_path / name)


@pytest.mark.parametrize(("arrays", "message"), [({"classes": ["a"]}, "no 'values'"), ({"values": [[0]]}, "no 'class")])
def test_arrays_that_are_missing_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read_descriptions(tmp_path / "a.npz")


def test_a_class_that_is_not_described_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "few.csv", {name: list(name) for name in NAMES[:-1]})
    with pytest.raises(ConfigError, match=r"few\.csv: class '11111' is not described; did you mean"):
        fit(build(DAP, classes=30), 0, Codes(unseen=(3, 12), descriptions=path))


def test_descriptions_count_in_the_fingerprint(tmp_path: Path, file: str) -> None:
    other = write(tmp_path / "other.csv", {name: [*name[:-1], 1 - int(name[-1])] for name in NAMES})
    prints = {Codes(descriptions=path).fingerprint() for path in (None, file, other)}
    assert len(prints) == 3


# ---------------------------------------------------------------- the methods


@pytest.mark.parametrize("kind", [DAP, ClassEmbedding])
def test_unseen_classes_are_recognised(kind: Any, file: str) -> None:
    data = Codes(descriptions=file)
    model = fit(build(kind, optimizer=partial(torch.optim.Adam, lr=0.05)), 80, data)
    found = accuracy(model, data)
    assert found["test/target/class_acc"] > 0.95
    assert found["test/source/class_acc"] > 0.9
    assert found["test/generalised/harmonic"] > 0.5
    x = 10 * torch.randn(100, ATTRIBUTES)
    for domain, own in (("source", model.own[0]), ("target", model.own[1])):
        model.set_domain(domain)
        assert own[model(x).argmax(dim=1)].all()


@pytest.mark.parametrize("kind", [DAP, ClassEmbedding])
def test_the_generalised_figures_are_those_of_all_classes(kind: Any, file: str) -> None:
    """Against the definition, from the predictions among all classes."""
    data = Codes(descriptions=file)
    model = fit(build(kind), 30, data)
    found = accuracy(model, data)
    model.eval()
    recalls = {}
    for role in ("source", "target"):
        x, y = (torch.cat(part) for part in zip(*data._loader(role, "test"), strict=True))
        right = model.head(model.features(x)).argmax(dim=1) == y
        recalls[role] = float(torch.stack([right[y == c].double().mean() for c in y.unique()]).mean())
    seen, unseen = recalls.values()
    assert found["test/generalised/seen"] == pytest.approx(seen)
    assert found["test/generalised/unseen"] == pytest.approx(unseen)
    assert found["test/generalised/harmonic"] == pytest.approx(2 / (1 / seen + 1 / unseen))
    assert found["test/target/class_acc"] >= unseen


def test_the_generalised_figures_are_those_of_one_test(file: str) -> None:
    model = fit(build(DAP), 2, Codes(descriptions=file))
    for _ in range(2):
        accuracy(model, model.trainer.datamodule)
        assert model._generalised["test"].compute().sum() == 2 * 200


@pytest.mark.parametrize(("other", "said"), [("00000", True), ("11100", True), (None, False)])
def test_an_unseen_class_with_the_description_of_another_one_is_warned_of(
    other: str | None, said: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Of a seen class or of an unseen one; two seen classes may be alike."""
    rows = {name: list(name) for name in NAMES} | {"00001": list("00000")}
    if other is not None:
        rows[NAMES[UNSEEN_CODES[0]]] = rows[other]
    fit(build(DAP), 0, Codes(descriptions=write(tmp_path / "t.csv", rows)))
    found = [str(w.message) for w in recwarn if "nothing tells them apart" in str(w.message)]
    assert [
        text.startswith("data.descriptions: the unseen class '00011' has the description of") for text in found
    ] == [True] * said


def test_scores_by_attributes_are_the_papers() -> None:
    """The product over the attributes, in float64; the third attribute is shared by the seen classes and left out."""
    model = build(DAP, classes=4)
    descriptions = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]).float()
    model.describe(descriptions, torch.tensor([True, True, True, False]))
    outputs = torch.randn(7, ATTRIBUTES)
    share = descriptions[:3].double().mean(dim=0)
    p = (outputs.double() + share.clamp(0.01, 0.99).logit()).sigmoid()
    expected = torch.zeros(7, 4).double()
    for n in range(7):
        for c in range(4):
            for m in (0, 1, 3, 4):
                has = descriptions[c, m] == 1
                expected[n, c] += torch.log(p[n, m] if has else 1 - p[n, m])
                expected[n, c] -= torch.log(share[m] if has else 1 - share[m])
    assert torch.allclose(model.scores(outputs).double(), expected, atol=1e-5)
    y = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    wanted = descriptions.double()[y]
    losses = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean(dim=1)
    assert torch.allclose(model.losses(outputs, y).double(), losses, atol=1e-6)
    assert model.scores(torch.tensor([[1e4, -1e4, 0, 1e4, -1e4]])).isfinite().all()


def test_a_penalised_attribute_is_a_logistic_regression(file: str) -> None:
    """Weights and intercept of scikit-learn's, from all 200 samples of the seen classes at once."""
    data = Codes(descriptions=file, batch_size=200)
    adam = partial(torch.optim.Adam, lr=0.05)
    model = build(DAP, penalty=1 / (0.05 * 200), backbone=Raw, optimizer=adam, lr_schedule=cosine)
    fit(model, 400, data)
    part = data.dataset("seen", "train")
    linear, scores = model.head.children()
    for place in range(ATTRIBUTES):
        has = [part.classes[label][place] == "1" for label in part.y]
        expected = LogisticRegression(C=0.05, tol=1e-8).fit(part.x.numpy(), has)
        np.testing.assert_allclose(linear.weight[place].detach(), expected.coef_[0], atol=1e-3)
        assert float(linear.bias[place] + scores.offset[place]) == pytest.approx(expected.intercept_[0], abs=1e-3)


def mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean()


@pytest.mark.parametrize(("others", "over"), [("all", mean), ("hardest", max)])
def test_the_ranking_loss_is_the_definition(others: str, over: Callable[[list[Tensor]], Tensor]) -> None:
    """Loss and gradient against a loop over the classes, in float64; unseen classes have no part."""
    model = build(ClassEmbedding, classes=4, width=3, margin=0.7, others=others)
    seen = torch.tensor([True, True, True, False])
    model.own[0], model.own[1] = seen, ~seen
    descriptions = torch.rand(4, ATTRIBUTES)
    model.describe(descriptions, seen)
    outputs, y = torch.randn(9, 3, requires_grad=True), torch.arange(9) % 3
    losses = model.losses(outputs, y)
    f, weight = outputs.detach().double().requires_grad_(), model.scores.embed.weight.detach().double()
    g = normalize(descriptions.double() - descriptions[:3].double().mean(dim=0), dim=1) @ weight.T
    expected = torch.stack(
        [over([(0.7 - f[n] @ g[y[n]] + f[n] @ g[m]).clamp(min=0) for m in range(3) if m != y[n]]) for n in range(9)]
    )
    assert 0 < (expected == 0).sum() < 9
    assert torch.allclose(losses.double(), expected, atol=1e-5)
    found, wanted = (torch.autograd.grad(a.sum(), b)[0] for a, b in ((losses, outputs), (expected, f)))
    assert torch.allclose(found.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [DAP, ClassEmbedding])
def test_every_parameter_learns_and_a_fit_repeats_itself(kind: Any, file: str) -> None:
    model = build(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, 5, Codes(descriptions=file))
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert equal(state(fit(build(kind), 5, Codes(descriptions=file))), state(model))


def test_samples_without_a_label_have_no_part_in_the_loss(file: str) -> None:
    model = fit(build(DAP), 0, Codes(descriptions=file))
    replace_log(model)
    x, y = next(iter(Codes().sample_dataloader("source", "train", 10)))
    some = torch.where(torch.arange(10) < 6, y, UNKNOWN)
    loss: Tensor = model.training_step({"source": (x, some)}, 0)
    assert loss.item() == pytest.approx(model.training_step({"source": (x[:6], y[:6])}, 0).item())
    assert model.training_step({"source": (x, torch.full((10,), UNKNOWN))}, 0) == 0


def replace_log(model: Any) -> None:
    model.log = lambda *_args: None
    model.train()


# ---------------------------------------------------------------- what is checked


def test_a_class_that_is_seen_and_unseen_is_named(file: str) -> None:
    with pytest.raises(DataError, match="'00000', '00001': seen in 'seen', and unseen in 'unseen'"):
        fit(build(DAP, classes=29), 0, Codes(unseen=(0, 1, 3), descriptions=file))


def test_labels_of_unseen_classes_are_not_read() -> None:
    roles = Roles.of(build(DAP), 1)
    assert (roles.supervised, roles.unlabelled, roles.tasks_differ) == (("source",), (), True)
    with pytest.raises(TypeError, match="train_on"):
        build(DAP, train_on="both")


def test_a_target_without_labels_may_have_all_other_described_classes(file: str) -> None:
    data = Codes(labelled=False, descriptions=file)
    assert set(data.classes) == set(NAMES)
    model = fit(build(DAP, optimizer=partial(torch.optim.Adam, lr=0.05)), 80, data)
    truth = Codes().dataset("unseen", "test")
    chosen = model.eval()(truth.x).argmax(dim=1)
    right = [data.classes[c] == truth.classes[y] for c, y in zip(chosen.tolist(), truth.y.tolist(), strict=True)]
    assert np.mean(right) > 0.9


def test_descriptions_are_needed() -> None:
    with pytest.raises(ConfigError, match="needs descriptions of the classes"):
        build(DAP, attributes=0)


def test_attributes_that_cannot_be_learnt_are_refused(tmp_path: Path) -> None:
    half = write(tmp_path / "half.csv", {name: [0.5, *name[1:]] for name in NAMES})
    with pytest.raises(ConfigError, match=r"attributes of 0 and 1, not 0\.5"):
        fit(build(DAP), 0, Codes(descriptions=half))
    fit(build(ClassEmbedding), 0, Codes(descriptions=half))
    same = write(tmp_path / "same.csv", {name: [1] * 5 for name in NAMES})
    with pytest.raises(ConfigError, match="differ in no attribute"):
        fit(build(DAP), 0, Codes(descriptions=same))


@pytest.mark.parametrize(
    ("kind", "arguments"), [(ClassEmbedding, {"width": 0}), (ClassEmbedding, {"margin": 0.0}), (DAP, {"penalty": -0.1})]
)
def test_numbers_are_in_range(kind: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        build(kind, **arguments)


# ---------------------------------------------------------------- shapes


def test_shapes_are_described_by_the_words_of_their_names() -> None:
    data = Shapes(number=10)
    assert set(data.classes) == set(CLASSES)
    assert set(data.classes_of("unseen")) == set(UNSEEN)
    words = data.described.attributes
    for name, row in zip(CLASSES, data.described.of(CLASSES), strict=True):
        assert {word for word, has in zip(words, row.tolist(), strict=True) if has} == set(name.split())
    for word in words:  # each value of an attribute is seen
        assert 0 < sum(word in name.split() for name in CLASSES if name not in UNSEEN) < len(CLASSES) - len(UNSEEN)
    assert data.num_attributes == 8
    parts = [data.dataset("seen", split).x for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [91, 13, 26]
    assert torch.equal(parts[0], Shapes(number=10).dataset("seen", "train").x)


def test_the_command_prints_figures_of_all_classes_beside_those_of_the_domain() -> None:
    metrics = {"test/target/acc": 0.5, "test/generalised/seen": 0.7, "score/snd": 1.0}
    (_, table), (_, scores) = _tables(metrics, {"target": "unseen"})
    assert table.to_numpy().tolist() == [["acc", "0.5000", ""], ["seen", "", "0.7000"]]
    assert list(table.columns) == ["metric", "target (unseen)", "generalised"]
    assert scores.to_numpy().tolist() == [["score/snd", "1.0000"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dap", "class_embedding"])
def test_the_defaults_recognise_unseen_shapes(name: str) -> None:
    """By the command line; five unseen classes."""
    words = [*("--config", f"method/{name}.yaml"), *("--config", "data/shapes.yaml"), *("--trainer.accelerator", "cpu")]
    cli = TransferCLI("fit", [*words, "--trainer.enable_progress_bar", "false"]).build().run()
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    assert cli.trainer.callback_metrics["test/target/class_acc"] > 0.7
    assert cli.trainer.callback_metrics["test/generalised/seen"] > 0.7
