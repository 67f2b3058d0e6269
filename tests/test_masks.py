"""Masks as labels: data, network, losses, scores, methods and commands."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics.functional.segmentation import dice_score, mean_iou

from lightning_da.callbacks.keep_random_state import KeepRandomState
from lightning_da.callbacks.masks import Drawn, mask_table, masks_figure
from lightning_da.callbacks.write_predictions import WritePredictions, _parts
from lightning_da.commands import compare
from lightning_da.data import DataError, Hearts, MaskFolders
from lightning_da.data.base import SPLITS, UNKNOWN, TensorDomain
from lightning_da.data.hearts import PARTS
from lightning_da.errors import ConfigError
from lightning_da.losses.masks import absolute_error
from lightning_da.main import main as lightning_da
from lightning_da.methods import DANN, AdversarialSegmentation, FineTune, Segmentation
from lightning_da.methods.adaptation import DomainBatch
from lightning_da.methods.masks import MaskScores
from lightning_da.networks import FeedForward, LeNet, TimmBackbone, UNetEncoder
from lightning_da.networks.layers import capture
from lightning_da.networks.unet import feature_maps
from lightning_da.schedules import constant, inverse_decay
from lightning_da.served import Served
from lightning_da.store import client
from lightning_da.testing import ADAM, build, equal, fit, ready, state, trainer
from lightning_da.tracking import _latest
from tests.toy import check_two_processes

SIZE = 32
TINY = partial(UNetEncoder, widths=(2, 4))
NETWORK: dict[str, Any] = {"num_classes": 3, "input_shape": (1, SIZE, SIZE), "backbone": TINY, "decoder": 2}
ADVERSARIAL: dict[str, Any] = NETWORK | {"discriminator": 2, "domain_schedule": constant}


def hearts(**kwargs: Any) -> Hearts:
    return Hearts(**{"number": 20, "size": SIZE, "batch_size": 4} | kwargs)


def random_masks(*shape: int, unknown: bool = True) -> Tensor:
    return torch.randint(UNKNOWN if unknown else 0, 3, shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- made data


def test_hearts_are_the_same_for_a_seed_and_fewer_are_the_first_of_more() -> None:
    few, more, other = (hearts(number=number, seed=seed).dataset("scanner_a", "train") for number, seed in
                        ((10, 0), (20, 0), (10, 1)))  # fmt: skip
    for one, same in ((few.x, more.x), (few.masks, more.masks)):
        assert one is not None
        assert same is not None
        assert torch.equal(one, same[: len(one)])
    assert not torch.equal(few.x, other.x)
    sizes = {split: len(hearts().dataset("scanner_a", split)) for split in SPLITS}
    assert sizes == {"train": 12, "val": 2, "test": 6}
    small = hearts(source_number=10)
    assert [len(small.dataset(domain, "train")) for domain in ("scanner_a", "scanner_b")] == [6, 12]


def test_the_wall_is_around_the_cavity_and_parts_differ_in_brightness() -> None:
    for domain in ("scanner_a", "scanner_b"):
        data = hearts(number=40, size=64).dataset(domain, "train")
        assert data.masks is not None
        cavity, wall = (data.masks == PARTS.index(name) for name in ("cavity", "wall"))
        beside = nn.functional.max_pool2d(cavity.float()[:, None], 3, 1, 1)[:, 0].bool()
        assert (cavity | wall)[beside].all()  # no pixel of the background touches the cavity
        bright = [data.x[:, 0][part].float().mean() for part in (cavity, wall)]
        assert bright[0] > 1.3 * bright[1]


def test_kinds_of_hearts_are_classes_with_another_share_of_cavity() -> None:
    data = hearts(number=60, labels="classes")
    kinds, masks = (hearts(number=60, labels=labels).dataset("scanner_a", "train") for labels in ("classes", "masks"))
    assert data.num_classes == 3
    assert masks.masks is not None
    assert kinds.masks is None
    share = (masks.masks == 1).flatten(1).sum(1) / (masks.masks > 0).flatten(1).sum(1)
    means = {name: share[kinds.y == place].mean().item() for place, name in enumerate(kinds.classes)}
    assert means["thick"] < means["normal"] < means["dilated"]


def test_batches_have_masks_and_the_target_none() -> None:
    data = hearts()
    data.check()
    batch = next(iter(data.train_dataloader()))[0]
    assert (batch["source"][1].shape, batch["source"][1].dtype) == ((4, SIZE, SIZE), torch.int64)
    assert isinstance(batch["target"], Tensor)
    assert data.fingerprint() == hearts().fingerprint() != hearts(seed=1).fingerprint()
    with pytest.raises(DataError, match="label-curve counts right classes, and the labels are masks; take data with a"):
        data.check_has_classes("label-curve")


def test_a_mask_is_part_of_the_fingerprint_and_follows_its_image_into_several_domains() -> None:
    data = hearts(source=["scanner_a", "scanner_b"], target=None)
    joined = data._get(data.source, "train")
    for domain, start in (("scanner_a", 0), ("scanner_b", 12)):
        one = hearts().dataset(domain, "train")
        assert torch.equal(joined[start + 3][1], one[3][1])
        before = one.fingerprint()
        assert one.masks is not None
        one.masks = 2 - one.masks
        assert one.fingerprint() != before


# ---------------------------------------------------------------- folders


def write(folder: Path, name: str, mask: Any, size: tuple[int, int] = (8, 6), **kwargs: Any) -> None:
    """An image below `folder`, and its mask; no mask with None."""
    for place in (folder / "images" / name, folder / "masks" / name):
        place.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, str(folder) + name))
    pixels = np.random.default_rng(seed).integers(256, size=size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / name)
    if mask is not None:
        Image.fromarray(mask).save((folder / "masks" / name).with_suffix(".png"), **kwargs)


def drawn(seed: int, size: tuple[int, int] = (8, 6)) -> Any:
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], dtype=np.uint8), size=size[::-1])


def folders(**kwargs: Any) -> MaskFolders:
    given: dict[str, Any] = {"source": "one", "target": "two", "image_size": 6, "batch_size": 2} | kwargs
    return MaskFolders(".", ["background", "cavity", "wall"], **given)


def write_domains(number: int = 10) -> None:
    for domain in ("one", "two"):
        for place in range(number):
            write(Path(domain), f"p{place // 2}/{place}.bmp", drawn(place, (6, 6)), (6, 6))


def test_folders_give_each_image_its_mask_and_keep_a_patient_in_one_split() -> None:
    write_domains(20)
    Path("two/unlabelled").mkdir()
    Image.new("L", (5, 5)).save("two/unlabelled/x.png")
    data = folders()
    data.check()
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        part = data.dataset("one", split)
        for place, name in enumerate(part.names):
            seen.setdefault(Path(name).parent.name, set()).add(split)
            expected = torch.from_numpy(drawn(int(Path(name).stem), (6, 6)).astype(np.int64))
            assert torch.equal(part[place][1], torch.where(expected == 255, UNKNOWN, expected))
            with Image.open(name) as image:
                assert torch.equal(part.x[place, 0], torch.from_numpy(np.asarray(image)))
    assert sorted(seen, key=lambda name: int(name[1:])) == [f"p{place}" for place in range(10)]
    assert all(len(splits) == 1 for splits in seen.values())
    others = [data.dataset("two", split) for split in SPLITS]
    alone = [
        (part.y[place], part[place][1]) for part in others for place, name in enumerate(part.names) if "unl" in name
    ]
    assert len(alone) == 1
    assert alone[0][0] == UNKNOWN
    assert (alone[0][1] == UNKNOWN).all()


def test_a_mask_is_scaled_to_the_nearest_pixel() -> None:
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[:, 4:] = 2
    write(Path("one"), "a.png", mask)
    write(Path("one"), "b.png", mask, bits=8)
    for size in (2, 4, 24):
        found = folders(source=None, target="one", image_size=size)._splits("one")
        masks = torch.cat([part.masks for part in found.values() if part.masks is not None])
        assert masks[..., : size // 2].eq(0).all()
        assert masks[..., size // 2 :].eq(2).all()
    palette = Image.fromarray(mask, mode="P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    palette.save("one/masks/b.png")
    assert folders(source=None, target="one")._splits("one")["train"].masks.unique().tolist() == [0, 2]  # type: ignore[union-attr]


def test_visits_and_slices_without_a_mask_are_in_the_split_of_their_patient() -> None:
    for place in range(60):
        patient, visit = place // 6, place % 2
        write(Path("one"), f"p{patient}/visit{visit}/{place}.bmp", drawn(place, (6, 6)), (6, 6))
        if not place % 6:
            Path(f"one/unlabelled/p{patient}/visit0").mkdir(parents=True)
            Image.new("L", (6, 6)).save(f"one/unlabelled/p{patient}/visit0/x.png")
    data = folders(source=None, target="one")
    parts = {split: data.dataset("one", split).names for split in SPLITS}
    patients = {split: {Path(name).parts[2] for name in names} for split, names in parts.items()}
    assert sum(map(len, patients.values())) == len(set().union(*patients.values())) == 10
    assert sum(map(len, parts.values())) == 70
    assert all(patients.values())


def test_an_image_whose_pixels_have_no_class_has_no_mask() -> None:
    write_domains(20)
    for place in range(20):
        if place % 2:
            Image.new("L", (6, 6), 255).save(f"one/masks/p{place // 2}/{place}.png")
    data = folders()
    y = data.dataset("one", "train").y
    assert (y == 0).sum() == (y == UNKNOWN).sum() > 0
    assert (folders(source="two", target="one", target_labels=2).training_labels("target") == 0).sum() == 2
    for path in Path("one/masks").rglob("*.png"):
        Image.new("L", (6, 6), 255).save(path)
    with pytest.raises(DataError, match="domain 'one': its training labels are needed, but no sample has one"):
        folders().check()


def test_masks_of_one_class_teach_nothing() -> None:
    write_domains(20)
    for path in Path("one/masks").rglob("*.png"):
        mask = np.zeros((6, 6), dtype=np.uint8)
        mask[2:4] = 255  # black and white, where 255 stands for no class
        Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match="domain 'one': each pixel with a class in its training masks has the value 0"):
        folders().check()
    folders(source="two", target="one").check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_sets": "open"}, "class_sets: open is for classes, and the labels are masks; leave it out"),
        ({"class_sets": "partial"}, "class_sets: partial is for classes, and the labels are masks; leave it out"),
        ({"target_labels": "2/class"}, "target_labels: 2/class counts labels of each class, and the labels are masks"),
    ],
)
def test_options_for_classes_are_refused_for_masks(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        hearts(**given).check()
    hearts(labels="classes", **given).check()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda: Path("one/masks/p1/3.png").unlink(), r"masks/p1/3\.png: there is no such mask for 'images/p1/3\.bmp'"),
        (
            lambda: Image.new("L", (7, 6)).save("one/masks/p1/3.png"),
            r"p1/3\.png: the mask has 7 x 6 pixels, its image 6 x 6",
        ),
        (
            lambda: Image.new("L", (6, 6), 3).save("one/masks/p1/3.png"),
            r"p1/3\.png: value 3 is no place in data\.classes, 0 to 2; 255",
        ),
        (lambda: Image.new("RGB", (6, 6)).save("one/masks/p1/3.png"), r"p1/3\.png: a mask has one value a pixel"),
        (lambda: Path("one/masks/p1/3.png").write_text("no"), r"p1/3\.png: not a readable image"),
        (
            lambda: Image.new("L", (6, 6)).save("one/images/p1/3.png"),
            r"p1/3\.png: 'images/p1/3\.bmp' has the same name",
        ),
    ],
)
def test_broken_folders_are_refused_by_the_name_of_the_file(break_it: Any, message: str) -> None:
    write_domains(6)
    break_it()
    with pytest.raises(DataError, match=message) as found:
        folders().dataset("one", "train")
    assert "\n" not in str(found.value)


def test_what_is_no_pair_of_folders_is_refused() -> None:
    write_domains(6)
    with pytest.raises(DataError, match=r"no folder .*for domain 'thre'"):
        folders(source="thre").dataset("thre", "train")
    Path("empty/masks").mkdir(parents=True)
    with pytest.raises(DataError, match="domain 'empty': no image in"):
        folders(source="empty").dataset("empty", "train")
    with pytest.raises(DataError, match=r"data\.classes: name each class of pixels once"):
        MaskFolders(".", ["a", "a"], "one", "two")
    with pytest.raises(DataError, match=r"data\.channels: 2 is neither"):
        folders(channels=2)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "backbone",
    [
        TINY,
        pytest.param(partial(TimmBackbone, model="resnet18"), marks=pytest.mark.slow),
        pytest.param(
            partial(TimmBackbone, model="swin_tiny_patch4_window7_224", model_args={"img_size": 32}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_backbone_with_feature_maps_is_an_encoder(backbone: Any) -> None:
    model = build(Segmentation, **NETWORK | {"backbone": backbone}).eval()
    x = torch.rand(2, 1, SIZE, SIZE)
    features, logits = model.classify(x)
    assert (features.shape, logits.shape) == ((2, 2), (2, 3, SIZE, SIZE))
    torch.testing.assert_close(model(x[1:]), logits[1:])  # no image depends on another
    assert [len(part) for part in feature_maps(model.backbone, x)] == [2] * len(model.backbone.layers)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_an_average_over_positions_tells_images_apart_with_batch_norm_alone(batch_norm: bool) -> None:
    network = TINY((1, SIZE, SIZE), batch_norm=batch_norm).eval()
    x = hearts().dataset("scanner_a", "test").__getitems__(list(range(6)))[0]
    with capture(network, ["stage2.1.4"]) as outputs:  # the last norm, before its ReLU
        features = network(x)
    means = outputs["stage2.1.4"].mean(dim=(2, 3))
    assert features.shape == (6, 4)
    assert (means.std(dim=0).max().item() < 1e-5) != batch_norm
    model = build(Segmentation, **NETWORK | {"backbone": partial(TINY, batch_norm=batch_norm)}).eval()
    torch.testing.assert_close(model(x[1:]), model(x)[1:])


def test_every_parameter_learns() -> None:
    model = build(Segmentation, **NETWORK)
    model(torch.rand(2, 1, SIZE, SIZE)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("backbone", "layer"), [(LeNet, "conv2"), (partial(FeedForward, hidden=[4]), "fc1")])
def test_a_backbone_without_feature_maps_is_refused(backbone: Any, layer: str) -> None:
    with pytest.raises(ConfigError, match=f"masks need .* and '{layer}' .* if the data have no masks, take"):
        build(Segmentation, **NETWORK | {"backbone": backbone})


def test_images_of_odd_sides_have_masks_of_their_size_and_a_discriminator() -> None:
    model = build(AdversarialSegmentation, **ADVERSARIAL | {"input_shape": (1, 33, 33)})
    before = state(model, ("discriminator.",))
    fit(model, 1, hearts(size=33))
    assert model(torch.rand(2, 1, 33, 33)).shape == (2, 3, 33, 33)
    assert not equal(before, state(model, ("discriminator.",)))


def test_an_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="widths: the list is empty"):
        UNetEncoder((1, 15, 15), ())
    with pytest.raises(ConfigError, match="at least 2 x 2 pixels in its last stage of 4"):
        UNetEncoder((1, 15, 15))


# ---------------------------------------------------------------- loss and scores


def test_the_absolute_error_is_that_of_one_hot_masks() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = random_masks(2, 4, 5)
    expected = (logits.softmax(dim=1) - one_hot(y.clamp(min=0), 3).movedim(-1, 1)).abs().mean(dim=1)
    expected[y == UNKNOWN] = 0
    torch.testing.assert_close(absolute_error(logits, y), expected)
    assert absolute_error(logits.half(), y).dtype == torch.float32


def test_the_task_loss_is_a_mean_over_known_pixels() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    y = random_masks(2, 4, 5)
    known = y != UNKNOWN
    p = logits.softmax(dim=1).movedim(1, -1)[known]
    hot = one_hot(y[known], 3)
    entropy, error = -(hot * p.log()).sum(dim=1).mean(), (p - hot).abs().mean()
    for weight in (0.0, 0.7):
        loss = ready(Segmentation, **NETWORK, mae_weight=weight).task_loss(logits, y)
        torch.testing.assert_close(loss, entropy + weight * error)
    gradient = torch.autograd.grad(loss, logits)[0].movedim(1, -1)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()
    assert ready(Segmentation, **NETWORK).task_loss(logits, torch.full_like(y, UNKNOWN)).item() == 0


def test_scores_of_two_rectangles_are_known() -> None:
    """4 x 4 pixels, and the same moved by one: 12 are right, 4 are missed, 4 are wrong."""
    true, answer = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    true[0, 2:6, 2:6], answer[0, 2:6, 3:7] = 1, 1
    scores = MaskScores(3)
    scores.update(answer, true)
    found = scores.compute()
    assert found["dice"][1] == pytest.approx(24 / 32)
    assert found["jaccard"][1] == pytest.approx(12 / 20)
    assert found["sensitivity"][1] == pytest.approx(12 / 16)
    assert found["dice"][2].isnan()
    assert found["images"].tolist() == [1, 1, 0]
    assert found["pixels"].tolist() == [[44, 4, 0], [4, 12, 0], [0, 0, 0]]


def test_scores_are_means_over_images_as_torchmetrics_has_them() -> None:
    y, answers = random_masks(6, 7, 7, unknown=False), torch.randint(3, (6, 7, 7))
    y[0][y[0] == 2] = 0
    answers[0][answers[0] == 2] = 1  # no pixel of class 2 in the first image, true or predicted
    y[1][y[1] == 1] = 0  # class 1 is predicted there, and never true
    scores = MaskScores(3)
    scores.update(answers[:2], y[:2])
    scores.update(answers[2:], y[2:])
    found = scores.compute()
    dice = dice_score(answers, y, 3, average="none", input_format="index")
    torch.testing.assert_close(found["dice"].float(), dice.nanmean(dim=0))
    jaccard = mean_iou(answers, y, 3, per_class=True, input_format="index")
    torch.testing.assert_close(found["jaccard"].float(), jaccard.where(jaccard >= 0, torch.nan).nanmean(dim=0))
    recall = torch.stack([torch.stack([(a[t == c] == c).double().mean() for c in range(3)])
                          for a, t in zip(answers, y, strict=True)])  # fmt: skip
    torch.testing.assert_close(found["sensitivity"], recall.nanmean(dim=0))
    assert found["images"].tolist() == [6, 5, 5]


def test_pixels_without_a_class_do_not_count() -> None:
    y, answers = random_masks(4, 6, 6, unknown=False), torch.randint(3, (4, 6, 6))
    whole, part = MaskScores(3), MaskScores(3)
    whole.update(answers[:, :3], y[:, :3])
    y[:, 3:] = UNKNOWN
    part.update(answers, y)
    part.update(answers[:1], torch.full((1, 6, 6), UNKNOWN))
    for name, values in whole.compute().items():
        torch.testing.assert_close(part.compute()[name], values, equal_nan=True)


# ---------------------------------------------------------------- methods


def parts() -> tuple[DomainBatch, DomainBatch]:
    labels = random_masks(2, SIZE, SIZE)
    unknown = torch.full_like(labels, UNKNOWN)
    logits = [torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return DomainBatch([], logits[0], labels), DomainBatch([], logits[1], unknown)


def test_the_adversarial_term_is_that_of_a_gan_on_masks() -> None:
    model = ready(AdversarialSegmentation, **ADVERSARIAL)
    source, target = parts()
    loss = model.domain_loss(source, target)
    predicted = torch.cat([source.logits, target.logits]).softmax(dim=1)
    known = (source.labels != UNKNOWN)[:, None]
    true = torch.where(known, one_hot(source.labels.clamp(min=0), 3).movedim(-1, 1).double(), predicted[:2])
    answers = [torch.sigmoid(model.discriminator(masks)) for masks in (true.detach(), predicted.detach())]
    expected = -answers[0].log().mean() - (1 - answers[1]).log().mean()
    torch.testing.assert_close(loss, expected)

    own = list(model.discriminator.parameters())
    torch.testing.assert_close(torch.autograd.grad(loss, own, retain_graph=True), torch.autograd.grad(expected, own))
    found = torch.autograd.grad(loss, [source.logits, target.logits])
    predicted_only = -(1 - torch.sigmoid(model.discriminator(predicted))).log().mean()
    reversed_ = torch.autograd.grad(predicted_only, [source.logits, target.logits])
    for one, other in zip(found, reversed_, strict=True):
        torch.testing.assert_close(one, -other)
        assert one.abs().sum() > 0


def test_weight_zero_is_plain_training_on_the_same_masks() -> None:
    plain = state(fit(build(Segmentation, **NETWORK, train_on="both"), 4, hearts(target_labels=3)))
    zero, played = (
        state(fit(build(AdversarialSegmentation, **ADVERSARIAL, domain_weight=weight), 4, hearts(target_labels=3)))
        for weight in (0.0, 1.0)
    )
    for key, value in plain.items():  # images pass the network in other batches
        torch.testing.assert_close(zero[key], value, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(played["head.weight"], zero["head.weight"], rtol=1e-3, atol=1e-5)


def test_weight_zero_is_training_on_the_source_bit_by_bit() -> None:
    plain = fit(build(Segmentation, **NETWORK, optimizer=ADAM), 4, hearts())
    zero = fit(build(AdversarialSegmentation, **ADVERSARIAL, train_on="source", domain_weight=0.0, optimizer=ADAM), 4,
               hearts())  # fmt: skip
    assert equal(state(plain), state(zero))


def test_no_mask_of_the_target_is_read_without_being_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = partial(build, AdversarialSegmentation, **ADVERSARIAL, train_on="source", optimizer=ADAM)
    one = fit(model(), 3, hearts())
    read = Hearts.dataset

    def other_masks(self: Hearts, domain: str, split: str) -> Any:
        found = read(self, domain, split)
        if domain == "scanner_b":
            assert found.masks is not None
            found.masks = 2 - found.masks
        return found

    monkeypatch.setattr(Hearts, "dataset", other_masks)
    other = fit(model(), 3, hearts())
    assert equal(one.state_dict(), other.state_dict())


def test_the_encoder_comes_from_a_classifier_and_frozen_layers_keep_its_bits(tmp_path: Path) -> None:
    classifier = fit(build(FineTune, input_shape=(1, SIZE, SIZE), backbone=TINY), 2, hearts(labels="classes"))
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "classifier.ckpt")
    start: dict[str, Any] = {"init_from": str(tmp_path / "classifier.ckpt"), "train_on": "target", "optimizer": ADAM}
    frozen = fit(build(Segmentation, **NETWORK, **start, freeze="all"), 4, hearts())
    assert equal(state(classifier, "backbone."), state(frozen, "backbone."))
    fresh = build(Segmentation, **NETWORK, **start)
    assert not equal(state(fresh, "bottleneck."), state(frozen, "bottleneck."))
    half = fit(build(Segmentation, **NETWORK, **start, freeze=1), 4, hearts())
    assert equal(state(classifier, "backbone.stage1."), state(half, "backbone.stage1."))
    assert not equal(state(classifier, "backbone.stage2."), state(half, "backbone.stage2."))
    released = fit(build(Segmentation, **NETWORK, **start, freeze="all", unfreeze_by=0.5), 4, hearts())
    assert not equal(state(classifier, "backbone.stage1."), state(released, "backbone.stage1."))


def test_methods_and_labels_of_two_kinds_are_refused() -> None:
    for method in (FineTune, DANN):
        with pytest.raises(DataError, match="the labels are masks, and the method needs a class for each sample"):
            fit(build(method, input_shape=(1, SIZE, SIZE), backbone=TINY), 1, hearts())
    with pytest.raises(DataError, match="the method answers with masks, and the labels are none"):
        fit(build(Segmentation, **NETWORK), 1, hearts(labels="classes"))


# ---------------------------------------------------------------- commands


def test_masks_are_written_as_png_files_and_read_back(tmp_path: Path) -> None:
    model, data = build(Segmentation, **NETWORK), hearts()
    nn.init.normal_(model.head.weight, std=5)  # so that it answers with more than one class
    writer = WritePredictions(str(tmp_path / "out.csv"))
    for _ in range(2):  # the second time over the files of the first
        trainer(callbacks=[writer]).predict(model, data)
    with Path("out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 12 + ["val"] * 2 + ["test"] * 6
    assert rows[0].keys() == {"sample", "split", "mask"}
    with torch.no_grad():
        expected = model.eval()(data.dataset("scanner_b", "test").__getitems__(list(range(6)))[0]).argmax(dim=1)
    assert len(expected.unique()) > 1
    for row, mask in zip(rows[-6:], expected, strict=True):
        with Image.open(row["mask"]) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), mask.numpy())
    assert len([path for path in Path("out_masks").rglob("*") if path.is_file()]) == 20


def test_names_of_masks_stay_in_their_folder() -> None:
    found = ["/".join(_parts(name)) for name in ("7", "one/images/a.b.JPG", "/etc/../x.v1", "two/images/p1/c.png")]
    assert found == ["7.png", "one/images/a.b.png", "etc/x.v1.png", "two/images/p1/c.png"]


def test_the_picture_shows_both_masks_and_the_table_each_class() -> None:
    scores = MaskScores(3)
    y = random_masks(2, 8, 8)
    scores.update(y.clamp(min=0), y)
    drawn_masks = Drawn(np.random.default_rng(0).random((2, 1, 8, 8)), y.numpy(), y.clamp(min=0).numpy())
    figure = masks_figure({"a": drawn_masks, "b": drawn_masks}, PARTS)
    assert len(figure.axes) == 12
    assert [axes.get_title() for axes in figure.axes[:6]] == ["a", "true", "predicted", "b", "true", "predicted"]
    shown: Any = figure.axes[1].images[0].get_array()
    assert np.array_equal(np.ma.getmaskarray(shown), y[0].numpy() == UNKNOWN)
    table = mask_table({"a": scores.compute(), "b": MaskScores(3).compute()}, PARTS)
    assert list(table["domain"]) == ["a"] * 3
    assert list(table["dice"]) == [1.0] * 3


def test_masks_and_classes_of_the_same_domains_are_in_two_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "answers_of", lambda _: None)

    def run(method: str, score: str, value: float, domains: tuple[str, ...] = ("source", "target")) -> Any:
        given = {"method": method, "seed": "0", "source": "a", "target": "b", "train_on": "source"}
        metrics = {f"test/{domain}/{score}": value for domain in domains}
        data = SimpleNamespace(params=given, metrics=metrics, tags={"data": score})
        return SimpleNamespace(data=data, info=SimpleNamespace(run_id=f"{method}{score}", run_name=method))

    masks = [run("unet", "dice", 0.9), run("segmentation", "dice", 0.8, ("source",))]
    classes = [run("source_only", "acc", 0.7), run("dann", "acc", 0.6)]
    compare.print_comparison(compare.comparison(compare.rows_of(masks)), masks)
    printed = capsys.readouterr().out
    assert "a -> b, test split" in printed
    assert "gap closed" not in printed, "no run with masks is a bound"
    runs = [*masks, *classes]
    compare.print_comparison(compare.comparison(compare.rows_of(runs)), runs)
    tables = capsys.readouterr().out.split("a -> b ")[1:]
    assert [table.split(",")[0] for table in tables] == ["(classes)", "(masks)"]
    for table, inside, outside in zip(tables, ("dann", "unet"), ("unet", "dann"), strict=True):
        assert inside in table
        assert outside not in table
    assert "target dice" not in tables[0]
    assert "target acc" not in tables[1]
    assert "segmentation" in tables[1], "the target has no mask"


SEGMENTATIONS = {
    "alone": partial(build, Segmentation, **NETWORK, train_on="both"),
    "adversarial": partial(build, AdversarialSegmentation, **ADVERSARIAL, train_on="both"),
}


class Gaps(Hearts):
    """Of each second image, most pixels have no class."""

    def dataset(self, domain: str, split: str) -> TensorDomain:
        data = super().dataset(domain, split)
        assert data.masks is not None
        masks = data.masks.short()
        masks[::2, SIZE // 2 :] = UNKNOWN
        data.masks = masks
        return data


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_two_processes_make_the_fit_of_one(name: str) -> None:
    given: dict[str, Any] = {"number": 40, "size": SIZE, "target_labels": 8}
    check_two_processes(SEGMENTATIONS[name], lambda batch_size: Gaps(batch_size=batch_size, **given), 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_resumed_equals_unbroken(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"lr_schedule": inverse_decay, "unfreeze_by": 0.8, "freeze": 1, "optimizer": ADAM}
    accumulated: dict[str, Any] = {"accumulate_grad_batches": 2}
    keep = [KeepRandomState(), ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)]
    unbroken = SEGMENTATIONS[name](**given)
    before = state(unbroken, "")
    runner = trainer(6, limit_val_batches=0, enable_checkpointing=True, callbacks=keep, **accumulated)
    runner.fit(unbroken, hearts(target_labels=6))
    assert not any(torch.equal(before[key], p) for key, p in unbroken.named_parameters())
    resumed = SEGMENTATIONS[name](seed=9, **given)
    L.seed_everything(0, verbose=False)
    again = trainer(6, limit_val_batches=0, callbacks=[KeepRandomState()], **accumulated)
    again.fit(resumed, hearts(target_labels=6), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert equal(state(resumed, ""), state(unbroken, ""))


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTATIONS)
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_weights_stay_finite_and_move_in_half_precision(name: str, precision: Any) -> None:
    model = SEGMENTATIONS[name](optimizer=ADAM)
    before = state(model, "")
    after = state(fit(model, 4, hearts(target_labels=4), precision=precision, log_every_n_steps=2), "")
    for key, value in after.items():
        assert value.isfinite().all(), key
        if precision == "bf16-mixed":
            assert value.dtype == before[key].dtype, key
    assert not any(torch.equal(before[key], after[key]) for key, _ in model.named_parameters())
    tested = trainer(precision=precision).test(model, hearts(), verbose=False)
    assert 0 < tested[1]["test/target/dice"] <= 1


@pytest.mark.slow
def test_the_commands_fit_test_and_compare_masks(capsys: pytest.CaptureFixture[str]) -> None:
    small = [f"--data.{key}={value}" for key, value in {"number": 90, "size": SIZE, "batch_size": 4}.items()]
    quick = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]
    lightning_da(["fit", "--config", "method/segmentation.yaml", "--config", "data/hearts.yaml", *small, *quick])
    run = "segmentation-scanner_a-scanner_b-s0"
    lightning_da(["test", "--ckpt_path", run])
    lightning_da(["predict", "--ckpt_path", run])
    assert len(list(Path("predictions_masks").rglob("*.png"))) == 54 + 9 + 27
    lightning_da(["export", run, "--output", "net.pt2"])
    assert "to probabilities (n, 3, 32, 32)" in capsys.readouterr().out
    with Image.open(Path("predictions_masks/test/0.png")) as image:
        mask = np.asarray(image)
    table = lightning_da(["compare"])
    printed = capsys.readouterr().out
    for score in ("dice", "jaccard", "sensitivity"):
        assert f"target {score}" in printed
    assert 0 <= table["target dice"].iloc[0] <= 1
    assert "target acc" not in printed
    assert "the labels are masks" in printed
    names = {artifact.path for artifact in client().list_artifacts(_latest(run, None, {}).info.run_id)}  # type: ignore[union-attr]
    assert {"masks.png", "confusion.png", "per_class.csv"} <= names

    data = Hearts(number=90, size=SIZE, batch_size=4)
    served = Served(Path("net.pt2"))
    x = data.dataset("scanner_b", "test").unscaled(0)
    answer = served.network(x[None]).argmax(dim=1)[0]
    assert np.array_equal(answer.numpy(), mask)


def test_a_network_that_has_diverged_predicts_nothing() -> None:
    model = build(Segmentation, **NETWORK)
    nn.init.constant_(model.head.bias, torch.nan)
    with pytest.raises(ConfigError, match="no finite answer"):
        model.predict_step((torch.rand(1, 1, SIZE, SIZE), None), 0)
