import pytest
import torch
from torch import nn

from lightning_da.networks.layers import as_vectors, capture, module_depths


def test_capture_reads_outputs_with_gradient_and_leaves_no_hook() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with capture(network, ["0", "2"]) as outputs:
        y = network(x)
    assert torch.equal(outputs["0"], network[0](x))
    assert outputs["2"] is y
    outputs["0"].sum().backward()
    assert network[0].weight.grad is not None
    outputs.clear()
    network(x)
    assert outputs == {}


def test_capture_removes_its_hooks_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(RuntimeError), capture(network, ["0"]):
        network(torch.randn(2, 7))
    assert not network[0]._forward_hooks


def test_capture_of_an_unknown_layer() -> None:
    with pytest.raises(AttributeError, match="nowhere"), capture(nn.Sequential(nn.Linear(3, 4)), ["nowhere"]):
        pass


def test_as_vectors() -> None:
    assert as_vectors(torch.ones(2, 5)).shape == (2, 5)
    torch.testing.assert_close(
        as_vectors(torch.arange(24.0).reshape(2, 3, 4)), torch.tensor([[4.0, 5, 6, 7], [16, 17, 18, 19]])
    )
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(as_vectors(maps), maps.flatten(2).mean(dim=2))


def test_depths_follow_the_order_of_registration() -> None:
    network = nn.Sequential()
    for name in ("stem", "first", "between", "second", "tail"):
        network.add_module(name, nn.Sequential(nn.Linear(2, 2)))
    depths = {id(module): depth for module, depth in module_depths(network, ["first", "second"])}
    found = {name: depths[id(network.get_submodule(f"{name}.0"))] for name, _ in network.named_children()}
    assert found == {"stem": 0, "first": 0, "between": 1, "second": 1, "tail": 2}
    assert len(depths) == len(list(network.modules()))
