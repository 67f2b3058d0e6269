"""Folders of images: what is read, how it is split, and what is refused."""

import os
import shutil
from contextlib import nullcontext
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_da.data.base import UNKNOWN, DataError, Roles
from lightning_da.data.image_folders import ImageFolders
from lightning_da.data.splits import split_indices
from lightning_da.errors import list_choices

CLASSES = ("bike", "mug")


def draw(path: Path, value: int = 0, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> Path:
    """Writes an image of noise, another for each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def fill(folder: Path, number: int = 10, suffix: str = "jpg", classes: tuple[str, ...] = CLASSES) -> None:
    for label, name in enumerate(classes):
        for i in range(number):
            draw(folder / name / f"{i:02}.{suffix}", value=1000 * label + i)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "art")
    fill(tmp_path / "photo", suffix="png")
    return tmp_path


def folders(root: Path, **arguments: Any) -> ImageFolders:
    small: dict[str, Any] = {"batch_size": 4, "image_size": 8, "num_workers": 0}
    return ImageFolders(**{"root": str(root), "source": "art", "target": "photo"} | small | arguments)


def names(data: ImageFolders, domain: str) -> dict[str, list[str]]:
    return {split: data.dataset(domain, split).names for split in ("train", "val", "test")}


def test_a_copy_of_a_domain_is_no_other_domain(root: Path) -> None:
    shutil.copytree(root / "art", root / "copy")
    with pytest.raises(DataError, match="source 'art' and target 'copy' are the same data"):
        folders(root, target="copy").check()
    draw(root / "copy" / "bike" / "00.jpg", value=7).write_bytes((root / "art" / "bike" / "01.jpg").read_bytes())
    folders(root, target="copy").check()


def test_images_and_labels(root: Path) -> None:
    data = folders(root, mean=(0, 0, 0), std=(1, 1, 1), augment=False)
    data.check()
    assert data.classes == ["bike", "mug"]
    assert data.input_shape == (3, 8, 8)
    for domain in ("art", "photo"):
        dataset = data.dataset(domain, "train")
        for i, file in enumerate(dataset.files):
            x, y = dataset[i]
            assert (x.shape, x.dtype) == ((3, 8, 8), torch.float32)
            assert dataset.classes[y] == Path(file).parent.name == dataset.names[i].split("/")[1]
            assert 0 <= x.min() < x.max() <= 1


def test_resize_and_centre_crop(root: Path) -> None:
    """An image whose right half is white: the crop keeps the edge in the middle, at any size of the file."""
    for size in (16, 64):
        halves = np.zeros((size, 2 * size, 3), dtype=np.uint8)
        halves[:, size:] = 255
        Image.fromarray(halves).save(root / "photo" / "mug" / f"half{size}.png")
    data = folders(root, mean=(0, 0, 0), std=(0.5, 0.5, 0.5), augment=False, resize=16, protocol="all")
    dataset = data.dataset("photo", "train")
    for size in (16, 64):
        x, _ = dataset[dataset.names.index(f"photo/mug/half{size}.png")]
        assert (x[:, :, :3] == 0).all()
        assert (x[:, :, 5:] == 2).all()


def test_only_training_images_are_augmented(root: Path) -> None:
    for augment in (True, False):
        data = folders(root, augment=augment)
        for split in ("train", "val", "test"):
            dataset = data.dataset("art", split)
            same = all(torch.equal(dataset[0][0], dataset[0][0]) for _ in range(4))
            assert same == (split != "train" or not augment)


def test_input_shape_reads_no_image(root: Path) -> None:
    for file in root.rglob("*.*"):
        file.write_bytes(b"")
    assert folders(root, image_size=24).input_shape == (3, 24, 24)


def test_resize_follows_image_size(root: Path) -> None:
    assert folders(root, image_size=224).resize == 256
    assert folders(root, image_size=96).resize == 110
    with pytest.raises(DataError, match=r"resize \(100\).*image_size \(224\)"):
        folders(root, image_size=224, resize=100)


def test_nested_folders_and_other_files(root: Path) -> None:
    draw(root / "art" / "mug" / "more" / "deep" / "nested.JPEG")
    for name in ("notes.txt", ".DS_Store", "._00.jpg"):
        (root / "art" / "mug" / name).write_bytes(b"no image")
    draw(root / "art" / ".cache" / "hidden.jpg")
    data = folders(root, protocol="all")
    data.check()
    dataset = data.dataset("art", "train")
    assert len(dataset) == 21
    assert dataset.y[dataset.names.index("art/mug/more/deep/nested.JPEG")] == 1


def test_linked_folders(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("disk")
    for folder in (root / "art", root / "photo" / "mug", root / "photo" / "bike"):
        folder.rename(elsewhere / folder.name)
        folder.symlink_to(elsewhere / folder.name)
    draw(elsewhere / "more" / "inner.png")
    (elsewhere / "mug" / "more").symlink_to(elsewhere / "more")
    data = folders(root, protocol="all")
    data.check()
    assert (len(data.dataset("art", "train")), len(data.dataset("photo", "train"))) == (20, 21)


# ---------------------------------------------------------------- splits


def test_splits_are_disjoint_complete_and_stratified(root: Path) -> None:
    fill(root / "art", 40, classes=("cup",))
    parts = names(folders(root, val_share=0.2, test_share=0.3), "art")
    assert sorted(chain(*parts.values())) == sorted(p.relative_to(root).as_posix() for p in root.glob("art/*/*"))
    for name, number in (("bike", 10), ("mug", 10), ("cup", 40)):
        for split, share in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
            assert abs(sum(f"/{name}/" in file for file in parts[split]) - share * number) <= 2
    assert [len(part) for part in parts.values()] == [30, 12, 18]


def test_splits_depend_on_the_seed_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = names(folders(root), "art"), names(folders(root, seed=1), "art")
    assert first != other
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: nullcontext(sorted(scan(folder), key=attrgetter("name"))[::-1]))
    assert names(folders(root), "art") == first


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.5, 0.5)])
def test_shares_that_leave_nothing(root: Path, shares: tuple[float, float]) -> None:
    with pytest.raises(DataError, match=rf"val_share \({shares[0]}\).*test_share \({shares[1]}\)"):
        folders(root, val_share=shares[0], test_share=shares[1]).check()


def test_small_classes_reach_every_split() -> None:
    """Shares that round to nothing in each class, yet not in all of them together."""
    labels = np.repeat(np.arange(31), 4)
    parts = split_indices(labels, seed=0)
    assert {split: len(part) for split, part in parts.items()} == {"train": 87, "val": 12, "test": 25}
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(labels)))
    assert all(
        np.bincount(labels[part], minlength=31).max() <= 4 * share + 2
        for part, share in zip(parts.values(), (0.7, 0.1, 0.2), strict=True)
    )
    assert np.bincount(labels[parts["train"]], minlength=31).min() >= 1


def test_splits_draw_at_random() -> None:
    """Over seeds, each sample comes into the test split about as often as the next."""
    labels = np.repeat([0, 1], [30, 70])
    counts = sum(np.bincount(split_indices(labels, seed)["test"], minlength=100) for seed in range(400))
    assert np.abs(counts / 400 - 0.2).max() < 0.1


def test_given_splits(root: Path) -> None:
    for split, number in (("train", 8), ("val", 2), ("test", 4)):
        fill(root / "art" / split, number)
    for name in CLASSES:
        for file in (root / "art" / name).iterdir():
            file.unlink()
        (root / "art" / name).rmdir()
    data = folders(root)
    data.check()
    assert data.classes == ["bike", "mug"]
    for split, part in names(data, "art").items():
        assert part == sorted(p.relative_to(root).as_posix() for p in root.glob(f"art/{split}/*/*"))


def test_val_is_split_off_train(root: Path) -> None:
    for split, number in (("train", 10), ("test", 4)):
        fill(root / "own" / split, number)
    parts = names(folders(root, source="own"), "own")
    assert {split: len(part) for split, part in parts.items()} == {"train": 18, "val": 2, "test": 8}
    assert sorted(parts["train"] + parts["val"]) == sorted(
        p.relative_to(root).as_posix() for p in root.glob("own/train/*/*")
    )
    assert {part.split("/")[2] for part in parts["val"]} == {"bike", "mug"}


@pytest.mark.parametrize("other", ["val", "valid", "validation", "test"])
def test_the_only_split_beside_train_is_for_test(root: Path, other: str) -> None:
    for split, number in (("train", 10), (other, 4)):
        fill(root / "own" / split, number)
    parts = names(folders(root, source="own"), "own")
    assert {part.split("/")[1] for part in parts["test"]} == {other}
    assert {part.split("/")[1] for part in parts["train"] + parts["val"]} == {"train"}
    assert {split: len(part) for split, part in parts.items()} == {"train": 18, "val": 2, "test": 8}


@pytest.mark.parametrize("other", [("val", "valid"), ()])
def test_splits_need_train_and_test(root: Path, other: tuple[str, ...]) -> None:
    for split in ("train", *other):
        fill(root / "own" / split)
    with pytest.raises(DataError, match=r"'own'.*only; predefined splits need"):
        folders(root, source="own").check()


# ---------------------------------------------------------------- one domain


def test_one_folder_is_one_domain(root: Path) -> None:
    data = folders(root / "photo", source=None, target=None)
    data.check(Roles(("target",), ()))
    assert (data.source, data.target, data.domains) == ("photo", "photo", ("target",))
    assert data.classes == ["bike", "mug"]
    named = folders(root, source=None)
    assert names(data, "photo") == names(named, "photo")
    assert data.fingerprint() == named.fingerprint()
    assert len(data.val_dataloader()) == len(data.test_dataloader()) == 1


def test_one_domain_may_name_its_labels_source(root: Path) -> None:
    folders(root, target=None).check(Roles(("source",), ()))


def test_two_domains_are_asked_for_where_a_method_reads_two(root: Path) -> None:
    for roles in (Roles(), Roles(("source", "target"), ())):
        with pytest.raises(DataError, match=r"there is one domain, 'photo'; set --data.source"):
            folders(root, source=None).check(roles)


def test_a_folder_of_domains_is_not_one_domain(root: Path) -> None:
    with pytest.raises(DataError, match=r"'art', 'photo' have the same folders, like domains"):
        folders(root, source=None, target=None).check(Roles(("target",), ()))
    draw(root / "art" / "more.png")
    assert folders(root, source=None, target=None).classes == ["art", "photo"]


def test_one_domain_needs_labels(root: Path) -> None:
    for i in range(20):
        draw(root / "new" / f"{i}.png", value=i)
    with pytest.raises(DataError, match=r"'new'.*labels are needed"):
        folders(root, source=None, target="new").check(Roles(("target",), ()))


def test_a_class_may_be_called_train(root: Path) -> None:
    """VisDA's domains are `train` and `validation`, and one of its classes is `train`."""
    for domain in ("train", "validation"):
        fill(root / domain, suffix="png" if domain == "train" else "jpg", classes=("bus", "train"))
    data = folders(root, source="train", target="validation")
    data.check()
    assert data.classes == ["bus", "train"]


def test_protocol_all(root: Path) -> None:
    fill(root / "own" / "train", 8)
    fill(root / "own" / "test", 4)
    data = folders(root, source="own", protocol="all")
    for domain, number in (("own", 24), ("photo", 20)):
        parts = names(data, domain)
        assert parts["train"] == parts["val"] == parts["test"]
        assert len(set(parts["train"])) == len(parts["train"]) == number


def test_unlabelled_target(root: Path) -> None:
    for i in range(20):
        draw(root / "new" / f"{i}.png", value=i)
    data = folders(root, target="new")
    data.check()
    assert sorted(chain(*names(data, "new").values())) == sorted(f"new/{i}.png" for i in range(20))
    for split in ("train", "val", "test"):
        dataset = data.dataset("new", split)
        assert dataset.classes == []
        assert all(dataset[i][1] == UNKNOWN for i in range(len(dataset)))


def test_partly_labelled_target(root: Path) -> None:
    draw(root / "photo" / "loose.png")
    data = folders(root, protocol="all")
    dataset = data.dataset("photo", "train")
    assert dataset.classes == ["bike", "mug"]
    assert [name for name, label in zip(dataset.names, dataset.y, strict=True) if label == UNKNOWN] == [
        "photo/loose.png"
    ]


# ---------------------------------------------------------------- loading


def test_workers_load_the_same(root: Path) -> None:
    def load(workers: int) -> list[torch.Tensor]:
        data = folders(root, num_workers=workers, augment=False, batch_size=3)
        data.check()
        return [part for loader in data.test_dataloader() for batch in loader for part in batch]

    alone, shared = load(0), load(2)
    assert len(alone) == len(shared) > 2
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_training_batches(root: Path) -> None:
    batch, _, _ = next(iter(folders(root).train_dataloader()))
    x, y = batch["source"]
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 8, 8), torch.float32, torch.int64)
    assert batch["target"].shape == (4, 3, 8, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_lost_while_training_is_named(root: Path, workers: int) -> None:
    data = folders(root, num_workers=workers)
    data.check()
    lost = Path(data.dataset("photo", "test").files[0])
    lost.write_bytes(lost.read_bytes()[:60])
    with pytest.raises(DataError, match=lost.name):
        list(data.test_dataloader()[1])


def test_fingerprint_changes_with_the_data(root: Path) -> None:
    digests = [folders(root).fingerprint()]
    assert folders(root).fingerprint() == digests[0]
    assert folders(root, image_size=16).fingerprint() == digests[0]
    digests.append(folders(root, seed=1).fingerprint())
    (root / "art" / "mug" / "00.jpg").rename(root / "art" / "mug" / "renamed.jpg")
    digests.append(folders(root).fingerprint())
    draw(root / "photo" / "mug" / "00.png", size=(30, 30))
    digests.append(folders(root).fingerprint())
    (root / "photo" / "bike" / "00.png").unlink()
    digests.append(folders(root).fingerprint())
    assert len(set(digests)) == len(digests)


def test_fingerprint_does_not_depend_on_the_place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = folders(root).fingerprint()
    assert folders(root.rename(tmp_path_factory.mktemp("moved") / "here")).fingerprint() == before


# ---------------------------------------------------------------- errors


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*there are: none"):
        folders(tmp_path / "nowhere").check()


def test_missing_domain_names_those_there_are(root: Path) -> None:
    with pytest.raises(DataError, match=r"'photos'; did you mean 'photo'\? there are: 'art', 'photo'"):
        folders(root, target="photos").check()


def test_long_lists_of_choices_are_cut() -> None:
    message = list_choices("zzz", [f"{i:03}" for i in range(345)])
    assert message.startswith("there are: '000', '001'")
    assert message.endswith(" ...")
    assert len(message) < 300


def test_domain_without_images(root: Path) -> None:
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"'empty': no image"):
        folders(root, target="empty").check()


def test_class_without_images(root: Path) -> None:
    (root / "photo" / "cup").mkdir()
    (root / "photo" / "cup" / "readme.txt").write_text("")
    with pytest.raises(DataError, match=r"'photo': no image of class 'cup'"):
        folders(root).check()


def test_classes_one_level_down(root: Path) -> None:
    fill(root / "office" / "images")
    with pytest.raises(DataError, match=r"'images' is the only class.*'office/images'"):
        folders(root, source="office").check()
    folders(root, source="office/images").check()


def test_classes_that_differ(root: Path) -> None:
    fill(root / "photo", classes=("cup",))
    with pytest.raises(DataError, match=r"classes differ.*'photo' has 'cup' alone"):
        folders(root).check()


@pytest.mark.parametrize(
    "name", ["art/bike/03.jpg", "photo/mug/07.png", "art/mug/x.webp", "art/mug/x.bmp", "art/mug/x.tif"]
)
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.6, 0.98])
def test_truncated_files(root: Path, name: str, keep: float) -> None:
    path = draw(root / name, size=(64, 48))
    content = path.read_bytes()
    path.write_bytes(content[: round(keep * len(content))])
    with pytest.raises(DataError, match=rf"{path}.*not a readable image"):
        folders(root).dataset(path.relative_to(root).parts[0], "train")


def test_no_image_at_all(root: Path) -> None:
    for name in ("00.jpg", "01.jpg", "02.jpg"):
        (root / "art" / "bike" / name).write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"art/bike/00\.jpg.*\(and 2 more files of domain 'art'\)"):
        folders(root).check()


@pytest.mark.parametrize("name", ["art/bike/00.jpg", "photo/bike/00.png"])
def test_bytes_after_the_end_do_no_harm(root: Path, name: str) -> None:
    with open(root / name, "ab") as file:
        file.write(b"\0" * 100)
    folders(root).check()
