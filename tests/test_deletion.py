"""The repository as a template: in a copy, a method or a kind of data is deleted, and the rest runs.

What is deleted: the files themselves, their lines in `__init__.py`, the files of `conf` that name their classes, and
their names in the template of `lightning-da new`, which offers the kinds of data that have a file in `conf`.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from lightning_da import methods
from lightning_da.commands.new import KINDS
from lightning_da.commands.sweep import METHODS
from lightning_da.methods import AdaptationModule
from lightning_da.paths import PROJECT
from tests import toy

KEPT = ("AdaptationModule", "Classifier", "DomainBatch", "FineTune", "MarginEnsemble", "TransferModule")
"""What the commands and the other methods are made of."""
DELETED = [name for name in methods.__all__ if name not in KEPT]
DATA = {
    "Digits": ("data/digits.py",),
    "FeatureTables": ("data/features.py", "data/identities.py", "data/sketches.py"),
    "Hearts": ("data/hearts.py",),
    "Identities": ("data/identities.py", "data/sketches.py"),
    "Shapes": ("data/shapes.py",),
    "ImageFolders": (
        *("data/image_folders.py", "data/image_files.py", "data/streamed_images.py", "data/shards.py"),
        *("data/mask_folders.py", "commands/shard.py"),
    ),
    "MaskFolders": ("data/mask_folders.py",),
    "StreamedImages": ("data/streamed_images.py", "data/shards.py", "commands/shard.py"),
    "Sentences": ("data/sentences.py", "text/synthesis.py"),
    "Trajectories": ("data/trajectories.py",),
    "SpeechCorpora": ("data/speech.py", "speech", "grids/speech.py", "commands/speech_transfer.py"),
}
"""Each kind of data with its files. Plans and commands for one kind only go with it."""
NEW_PROJECTS = {
    "FeatureTables": {"features"},
    "ImageFolders": {"images", "pair-of-images"},
    "Sentences": {"text"},
    "SpeechCorpora": {"speech"},
}
"""What `lightning-da new` offers no more."""
TEMPLATE = Path("lightning_da", "project_template", "copier.yml")
"""What `lightning-da new` answers for each kind of data."""
LEARNING = "beats_source_only"
"""The longest tests: what the other methods learn does not change."""
TESTS = ("__init__.py", "conftest.py", "toy.py", "test_properties.py", "test_structure.py")


def copied(folder: Path) -> Path:
    """A copy of the package, its configurations, and the tests that no method and no kind of data has of its own."""
    for name in ("lightning_da", "conf"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in TESTS:
        shutil.copy(PROJECT / "tests" / name, folder / "tests")
    shutil.copy(PROJECT / "pyproject.toml", folder)
    (folder / "mlruns").mkdir()
    return folder


def delete(copy: Path, files: Iterable[str]) -> None:
    """Deletes parts of the package, their lines in `__init__.py`, and the configurations with their classes."""
    classes: set[str] = set()
    for name in files:
        path = copy / "lightning_da" / name
        if path.is_dir():
            shutil.rmtree(path)
            continue
        classes |= {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
        path.unlink()
        drop_lines(path.parent / "__init__.py", rf'\.{path.stem} import|"{path.stem.replace("_", "-")}":')
        if path.parent.name == "methods":
            template = copy / TEMPLATE
            text = re.sub(rf" {path.stem}\b", "", template.read_text())
            template.write_text(text.replace(f"'{path.stem}'", "'source_only'"))
    for room in ("methods", "data"):
        drop_lines(copy / "lightning_da" / room / "__init__.py", rf'"({"|".join(classes)})"')
    configs = {path: yaml.safe_load(path.read_text()) for path in (copy / "conf").glob("*/*.yaml")}
    while gone := [path for path, config in configs.items() if names(config, classes, copy)]:
        for path in gone:  # a configuration that starts from it goes in the next round
            path.unlink()
            del configs[path]
    without(copy / "tests" / "toy.py", classes)


def drop_lines(path: Path, pattern: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not re.search(pattern, line)))


def names(config: object, classes: set[str], copy: Path) -> bool:
    """Whether a configuration has a class that is gone, or begins after a configuration that is gone."""
    if isinstance(config, list):
        return any(names(part, classes, copy) for part in config)
    if not isinstance(config, dict):
        return False
    after = config.get("after")
    if str(config.get("class_path")).rpartition(".")[2] in classes or (
        after and not any((copy / "conf" / place).exists() for place in (after, f"method/{after}.yaml"))
    ):
        return True
    return any(names(part, classes, copy) for part in config.values())


def without(path: Path, classes: set[str]) -> None:
    """Takes classes out of `toy.py`: their imports, what is made of them, and their entries in `METHODS`."""

    def uses(node: ast.AST) -> bool:
        return any(isinstance(part, ast.Name) and part.id in classes for part in ast.walk(node))

    tree = ast.parse(path.read_text())
    named = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    while more := {node.name for node in named if uses(node)} - classes:
        classes = classes | more
    gone = [node for node in named if node.name in classes]
    tree.body = [node for node in tree.body if node not in gone]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            node.names = [alias for alias in node.names if alias.name not in classes]
        elif isinstance(node, ast.Dict):
            kept = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if not uses(value)]
            node.keys, node.values = [key for key, _ in kept], [value for _, value in kept]
    path.write_text(ast.unparse(tree))


def call(copy: Path, *words: str | Path) -> str:
    return execute(copy, copy, sys.executable, "-m", *words)


def execute(folder: Path, copy: Path, *words: str | Path) -> str:
    """The output of a command in a folder, which succeeds and finds the copy of the package."""
    environ = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=environ | {"PATH": path, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows(copy: Path, config: str, *options: str | Path) -> list[str]:
    """The methods in the table of a sweep with its own choice of methods."""
    short = ["--trainer.max_steps", "4", "--trainer.enable_progress_bar", "false"]
    table = call(copy, "lightning_da", "sweep", "--config", config, *options, *short)
    return re.findall(r"^(\w+) +1 ", table, re.MULTILINE)


def on_tables(copy: Path, *options: str) -> list[str]:
    toy.write_tables(copy)
    domains = ("--data.source", copy / "one.npz", "--data.target", copy / "two.npz")
    return rows(copy, "data/features.yaml", *domains, *options)


def with_dependents(copy: Path, module: str) -> list[str]:
    """A method's file, and those of the methods that are made of it."""
    line = f"from lightning_da.methods.{module} import"
    room = copy / "lightning_da" / "methods"
    using = [path.name for path in room.glob("*.py") if path.stem != "__init__" and line in path.read_text()]
    return [f"methods/{name}" for name in (f"{module}.py", *using)]


@pytest.mark.slow
@pytest.mark.parametrize("name", DELETED)
def test_a_method_can_be_deleted(name: str, tmp_path: Path) -> None:
    copy = copied(tmp_path)
    kind = getattr(methods, name)
    module = kind.__module__.rpartition(".")[2]
    delete(copy, with_dependents(copy, module))
    assert not [line for line in call(copy, "lightning_da", "--help").splitlines() if "Error" in line]
    tests = "tests" if issubclass(kind, AdaptationModule) else "tests/test_structure.py"
    words = ("-q", "-p", "no:cacheprovider", "-p", "no:warnings", "-m", "not slow", "-k", f"not {LEARNING}", tests)
    found = call(copy, "pytest", *words)
    assert "skipped" not in found.splitlines()[-1]
    if module in METHODS:
        assert sorted(on_tables(copy)) == sorted(set(METHODS) - {module})
    else:
        assert on_tables(copy, "--methods", "source_only", "dann") == ["source_only", "dann"]
    if re.search(rf"\b{module}\b", (PROJECT / TEMPLATE).read_text()):
        call(copy, "lightning_da", "new", "task", "--kind", "features")
        execute(copy / "task", copy, "make", "test", "demo")


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_a_kind_of_data_can_be_deleted(name: str, tmp_path: Path) -> None:
    copy = copied(tmp_path)
    delete(copy, DATA[name])
    call(copy, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", "tests/test_structure.py")
    offered = "from lightning_da.commands.new import KINDS; print(*KINDS)"
    assert set(execute(copy, copy, sys.executable, "-c", offered).split()) == set(KINDS) - NEW_PROJECTS.get(name, set())
    found = rows(copy, "data/digits.yaml") if name == "FeatureTables" else on_tables(copy)
    assert sorted(found) == sorted(METHODS)


def test_every_method_and_every_kind_of_data_is_deleted_once() -> None:
    """A new one joins by itself, or this test asks for it."""
    kinds = {path.stem for path in (PROJECT / "conf" / "data").glob("*.yaml")} - {"template"}
    assert kinds == {Path(files[0]).stem for files in DATA.values()}
    assert len(DELETED) >= 20
