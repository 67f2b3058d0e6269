"""The examples in the docstrings of losses and measures."""

import doctest
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from lightning_da import losses
from lightning_da.transferability import measures, scores

MODULES = [import_module(found.name) for found in pkgutil.iter_modules(losses.__path__, f"{losses.__name__}.")]


def public(module: ModuleType) -> Iterator[Any]:
    """Functions and classes that are defined in a module, without those that begin with an underscore."""
    for name, value in vars(module).items():
        own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
        if own and not name.startswith("_"):
            yield pytest.param(module, value, id=f"{module.__name__.rpartition('.')[2]}.{name}")


@pytest.mark.parametrize(
    ("module", "value"), [each for module in (*MODULES, measures, scores) for each in public(module)]
)
def test_a_public_name_has_an_example_that_runs(module: ModuleType, value: Any) -> None:
    # Without `module=False` the finder passes over decorated functions.
    found = doctest.DocTestFinder().find(value, value.__name__, module=False, globs=dict(vars(module)))
    examples = [test for test in found if test.examples]
    assert examples, f"{value.__name__} has no example"
    for test in examples:
        output: list[str] = []
        assert doctest.DocTestRunner(verbose=False).run(test, out=output.append).failed == 0, "".join(output)
