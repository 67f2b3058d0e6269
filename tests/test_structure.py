"""The rooms of the package and the imports between them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lightning_da.commands import COMMANDS
from lightning_da.paths import CONF, PROJECT

PACKAGE = PROJECT / "lightning_da"
FLOORS = (
    {"errors"},
    {"yaml_files"},
    {"names", "paths", "process", "gather", "schedules", "signatures"},
    {"classical", "logged_models", "losses", "pages", "speech", "store", "text"},
    {"networks", "outbox", "checkpoint_io", "inputs", "mlflow_view"},
    {"data", "served"},
    {"methods", "tracking"},
    {"testing", "exporting"},
    {"transferability"},
    {"callbacks"},
    {"parser"},
    {"cli"},
    {"grids"},
    {"commands"},
    {"main"},
)
"""Rooms from the lowest floor up. A room imports none of its own floor."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in set(PACKAGE.glob("**/*.py")) - set(PACKAGE.glob("project_template/**/*.py")):  # of other projects
        yield ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(path: Path, at_the_top: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_the_top else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_imports_run_downward() -> None:
    floor = {name: place for place, names in enumerate(FLOORS) for name in names}
    wrong = []
    for module, path in modules():
        own = room(module)
        if own in ("", "__main__"):
            continue
        for name in imported(path):
            other = room(name) if name.startswith("lightning_da.") else own
            if other != own and floor[other] >= floor[own]:
                wrong.append(f"{module} imports {name}")
    assert not wrong


LOW = ("classical", "data", "methods", "losses", "networks", "transferability.measures", "testing")


def test_the_lower_rooms_know_neither_mlflow_nor_the_command_line() -> None:
    """What they import, all the way down: a fresh process is asked."""
    wanted = [module for module, _ in modules() if module.removeprefix("lightning_da.").startswith(LOW)]
    assert len(wanted) > 20
    code = f"""
import importlib, sys
for name in {wanted!r}: importlib.import_module(name)
print([m for m in sys.modules if m.split('.')[0] == 'mlflow' or m in
       ('lightning_da.store', 'lightning_da.tracking', 'lightning_da.cli', 'lightning_da.parser', 'lightning_da.main')])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert found.stdout.strip() == "[]"


def test_the_command_line_starts_without_anything_heavy() -> None:
    light = {"lightning_da", "yaml", *sys.stdlib_module_names}
    queue, seen = ["lightning_da.main"], set()
    paths = dict(modules())
    while queue:
        module = queue.pop()
        seen.add(module)
        for name in imported(paths[module], at_the_top=True):
            assert name.split(".")[0] in light, f"{module} imports {name}"
            found = name if name in paths else name.rpartition(".")[0]
            if found in paths and found not in seen:
                queue.append(found)


def test_every_command_has_a_file_and_every_file_a_command() -> None:
    files = {path.stem.replace("_", "-") for path in (PACKAGE / "commands").glob("*.py")} - {"--init--"}
    assert files == set(COMMANDS)


def test_conf_names_what_is_there() -> None:
    for path in CONF.glob("**/*.yaml"):
        for line in path.read_text().splitlines():
            if "class_path: lightning_da." in line:
                module, _, name = line.split("class_path:")[1].split("#")[0].strip().rpartition(".")
                assert hasattr(__import__(module, fromlist=[name]), name), f"{path}: {module}.{name}"
