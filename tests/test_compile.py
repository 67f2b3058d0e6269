"""Compiled layers train as layers that are not compiled."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from lightning_da.callbacks import CompileLayers
from lightning_da.errors import ConfigError
from lightning_da.networks.backbones import FeedForward
from lightning_da.testing import fit
from tests import toy

DEEP = partial(FeedForward, hidden=[32] * 4 + [16], batch_norm=True)


@pytest.mark.parametrize(
    "name", ["dan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dann", "adda", "dsn"))]
)
def test_compiled_layers_train_as_others(name: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    eager, compiled = (toy.build(name, backbone=DEEP) for _ in range(2))
    fit(eager, steps=4)
    fit(compiled, steps=4, callbacks=[CompileLayers("aot_eager")])
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["recompile_limit"]
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], value, msg=key)
    assert not any("forward" in vars(module) for module in compiled.modules())


def test_a_backend_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no backend 'inductr'; did you mean 'inductor'\?"):
        CompileLayers("inductr")
