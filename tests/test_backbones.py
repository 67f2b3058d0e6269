import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch

from lightning_da.errors import ConfigError
from lightning_da.networks import backbones
from lightning_da.networks.backbones import Backbone, FeedForward, LeNet, TimmBackbone

CASES: list[tuple[type[Backbone], tuple[int, ...], dict[str, Any]]] = [
    (LeNet, (1, 28, 28), {}),
    (LeNet, (3, 32, 40), {"batch_norm": True}),
    (FeedForward, (20,), {"hidden": [16, 8], "dropout": 0.2, "batch_norm": True}),
    (FeedForward, (2, 3, 3), {"hidden": [8], "activation": "sigmoid"}),
    (TimmBackbone, (1, 64, 64), {"model": "resnet18", "model_args": {"zero_init_last": False}}),
    (TimmBackbone, (3, 70, 90), {"model": "resnet18", "flatten": True, "model_args": {"zero_init_last": False}}),
    (TimmBackbone, (3, 64, 64), {"model": "mobilenetv3_small_050"}),
    (TimmBackbone, (3, 32, 32), {"model": "vit_tiny_patch16_224", "model_args": {"img_size": 32}}),
]


@pytest.mark.parametrize(("kind", "shape", "args"), CASES)
def test_contract(kind: type[Backbone], shape: tuple[int, ...], args: dict[str, Any]) -> None:
    backbone = kind(shape, **args)
    assert backbone.training
    features = backbone(torch.rand(4, *shape))
    assert features.shape == (4, backbone.num_features)
    names = [name for name, _ in backbone.named_modules()]
    places = [names.index(layer) for layer in backbone.layers]
    assert places == sorted(places)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_lenet_is_the_papers() -> None:
    shapes = [tuple(p.shape) for p in LeNet((1, 28, 28)).parameters() if p.ndim > 1]
    assert shapes == [(32, 1, 5, 5), (48, 32, 5, 5), (100, 768), (100, 100)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeNet((20,)), "FeedForward"),
        (lambda: LeNet((1, 8, 8)), "at least 16 x 16"),
        (lambda: FeedForward((4,), hidden=[]), "hidden"),
        (lambda: FeedForward((4,), hidden=[3, 3], dropout=[0.5]), "one dropout rate per layer"),
        (lambda: TimmBackbone((4,)), "channels, height, width"),
        (lambda: TimmBackbone((3, 8, 8), "resnet5"), "timm has no model 'resnet5'.*resnet"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_weights_from_a_file_are_read_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    theirs: Any = timm.create_model("resnet18", num_classes=7)
    torch.save(theirs.state_dict(), path)
    backbone = TimmBackbone((3, 32, 32), "resnet18", weights=str(path))
    x = torch.rand(2, 3, 32, 32)
    backbone.eval()
    theirs.eval()
    expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert not torch.allclose(backbone(x), expected)
    backbone.load_pretrained()
    torch.testing.assert_close(backbone(x), expected)
    path.unlink()
    with pytest.raises(ConfigError, match=r"no file .*weights\.pth"):
        backbone.load_pretrained()


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_of_weights_that_does_not_answer_is_asked_once(
    listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(backbones, "PATIENCE", 0.5)
        if not listens:
            server.close()
        backbone = TimmBackbone((3, 32, 32), "test_resnet", weights="pretrained")
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r"test_resnet cannot be downloaded \(\w+: .*give a file .* or `random`"):
            backbone.load_pretrained()
    assert time.monotonic() - start < 10
