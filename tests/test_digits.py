from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from lightning_da.data import DataError, Digits
from lightning_da.data.base import SPLITS
from lightning_da.data.digits import blend, draw_typeset, load_handwritten, load_photographs

EMBEDDED = ("handwritten", "typeset", "photo")


@pytest.mark.parametrize(("source", "target"), list(permutations(EMBEDDED, 2)))
def test_any_ordered_pair_is_a_task(source: Any, target: Any) -> None:
    data = Digits(source, target, num_typeset=400)
    data.check()
    assert data.num_classes == 10
    assert data.input_shape == (3 if "photo" in (source, target) else 1, 28, 28)
    for domain in (source, target):
        x, y = data.dataset(domain, "val").__getitems__([0, 1, 2])
        assert x.shape == (3, *data.input_shape)
        assert 0 <= x.min() < x.max() <= 1
        assert set(y.tolist()) <= set(range(10))


@pytest.mark.parametrize("domain", EMBEDDED)
def test_splits_are_disjoint_and_hold_every_class(domain: Any) -> None:
    data = Digits(domain, "typeset" if domain != "typeset" else "photo", num_typeset=1000)
    images = {split: data.dataset(domain, split).x.flatten(1) for split in SPLITS}
    rows = torch.cat(list(images.values()))
    assert len(rows.unique(dim=0)) == len(rows)
    for split in SPLITS:
        assert data.dataset(domain, split).y.unique().tolist() == list(range(10))
    assert len(images["train"]) > len(images["test"]) > len(images["val"])


def test_a_blended_digit_stays_in_the_split_of_its_digit() -> None:
    data = Digits("handwritten", "photo")
    for split in SPLITS:
        assert torch.equal(data.dataset("handwritten", split).y, data.dataset("photo", split).y)
    black = blend(data._images("handwritten", "val")[0], (np.zeros((40, 40, 3), np.uint8),), np.random.default_rng(0))
    assert np.array_equal(black, np.repeat(data._images("handwritten", "val")[0], 3, axis=3))


def test_handwritten_are_scikit_learns() -> None:
    images, labels = load_handwritten()
    theirs = load_digits()
    assert np.array_equal(labels, theirs.target)
    assert images.shape == (1797, 28, 28, 1)
    ours = torch.from_numpy(images).movedim(-1, 1).float()
    inside = ours[:, 0].flatten(1)
    similarity = np.corrcoef(inside.mean(1).numpy(), theirs.images.mean(axis=(1, 2)))[0, 1]
    assert similarity > 0.999


def test_typeset_are_as_many_as_asked_for_and_repeat_by_seed() -> None:
    images, labels = draw_typeset(120, 4)
    again, _ = draw_typeset(120, 4)
    other, _ = draw_typeset(120, 5)
    assert images.shape == (120, 28, 28, 1)
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    assert set(labels) == set(range(10))
    assert all(image.max() > 100 for image in images), "an empty picture"
    assert max(image[[0, -1]].max() for image in images) < 200, "a digit that is cut off"


def test_seed_changes_the_split_and_nothing_else_does() -> None:
    one, same, other = (Digits(seed=seed).dataset("handwritten", "test").x for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    beside_photo = Digits("handwritten", "photo").dataset("handwritten", "test")
    assert torch.equal(beside_photo.x[:, :1], one)


def test_blend_is_the_absolute_difference() -> None:
    digits = np.full((5, 28, 28, 1), 200, np.uint8)
    photograph = np.full((28, 28, 3), [10, 200, 250], np.uint8)
    blended = blend(digits, (photograph,), np.random.default_rng(0))
    assert np.array_equal(blended, np.broadcast_to(np.array([190, 0, 50], np.uint8), (5, 28, 28, 3)))


def test_photographs_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.jpg or \.png of at least 28 x 28"):
        load_photographs(str(tmp_path))
    Image.new("RGB", (50, 40), (1, 2, 3)).save(tmp_path / "a.png")
    assert load_photographs.__wrapped__(str(tmp_path))[0].shape == (40, 50, 3)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png: not a readable picture"):
        load_photographs.__wrapped__(str(tmp_path))


def test_unknown_domain() -> None:
    with pytest.raises(DataError, match="no digit domain 'klingon'; there are: 'handwritten'"):
        Digits("klingon", "photo").check()  # type: ignore[arg-type]


# ---------------------------------------------------------------- torchvision's sets, written small


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    return head + array.tobytes()


def write_mnist(root: Path, train: int = 200) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    folder = root / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    made = {}
    for name, number in (("train", train), ("t10k", 40)):
        made[name] = rng.integers(256, size=(number, 28, 28), dtype=np.uint8)
        labels = np.arange(number, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(made[name]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return made


def write_svhn(root: Path) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    (root / "svhn").mkdir()
    made = {}
    for name, number in (("train", 100), ("test", 40)):
        made[name] = rng.integers(256, size=(32, 32, 3, number), dtype=np.uint8)
        labels = 1 + np.arange(number, dtype=np.uint8)[:, None] % 10
        savemat(root / "svhn" / f"{name}_32x32.mat", {"X": made[name], "y": labels})
    return made


def write_usps(root: Path) -> None:
    import bz2

    (root / "usps").mkdir()
    rng = np.random.default_rng(2)
    for name, number in (("usps.bz2", 100), ("usps.t.bz2", 30)):
        rows = [
            f"{1 + i % 10} " + " ".join(f"{j + 1}:{value:.3f}" for j, value in enumerate(rng.uniform(-1, 1, 256)))
            for i in range(number)
        ]
        (root / "usps" / name).write_bytes(bz2.compress("\n".join(rows).encode()))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_args: True)


@pytest.mark.usefixtures("unchecked")
def test_torchvisions_sets_are_read(tmp_path: Path) -> None:
    mnist, svhn = write_mnist(tmp_path), write_svhn(tmp_path)
    write_usps(tmp_path)
    data = Digits("mnist", "svhn", batch_size=16, root=str(tmp_path))
    data.check()
    test = data.dataset("mnist", "test")
    assert np.array_equal(test.x[:, 0].numpy(), mnist["t10k"])
    assert test.y.tolist() == [i % 10 for i in range(40)]
    sizes = [len(data.dataset("mnist", split)) for split in SPLITS]
    assert sizes == [180, 20, 40]
    colour = data.dataset("svhn", "test")
    assert colour.x.shape == (40, 3, 28, 28)
    assert colour.y.tolist() == [(1 + i % 10) % 10 for i in range(40)]
    assert colour.x.float().mean().item() == pytest.approx(svhn["test"].mean(), abs=2)
    usps = Digits("usps", "mnist", root=str(tmp_path)).dataset("usps", "test")
    assert usps.x.shape == (30, 1, 28, 28)
    assert usps.y.tolist() == [i % 10 for i in range(30)]
    blended = Digits("mnist", "mnist-m", batch_size=16, root=str(tmp_path))
    blended.check()
    assert blended.dataset("mnist-m", "test").x.shape == (40, 3, 28, 28)
    assert torch.equal(blended.dataset("mnist-m", "train").y, blended.dataset("mnist", "train").y)


@pytest.mark.parametrize(("domain", "download"), list(product(("mnist", "usps", "svhn", "mnist-m"), (False, True))))
def test_missing_set_says_where_and_what_to_do(
    domain: Any, download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("urllib.request.urlretrieve", no_network)
    data = Digits(domain, "typeset", root=str(tmp_path), download=download)
    advice = "is there a network" if download else "set --data.download true"
    with pytest.raises(DataError, match=f"'{domain.removesuffix('-m')}'.*{tmp_path}.*{advice}"):
        data.check()
