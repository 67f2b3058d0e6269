import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from torch.utils.data import DataLoader

from lightning_da.paths import PROJECT
from tests import toy

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "soundfile": "pysoundfile"}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return found


def pinned() -> dict[str, Version]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_conda_and_pip_have_the_same_bounds() -> None:
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    conda = {}
    for line in environment["dependencies"]:
        if isinstance(line, str) and line != "pip":
            name, bounds = re.fullmatch(r"([\w-]+)(.*)", line).groups()  # type: ignore[union-attr]
            conda[name] = set(bounds.split(","))
    pip = {"python": set(project()["requires-python"].split(","))}
    for requirement in map(Requirement, project()["dependencies"]):
        pip[CONDA_NAMES.get(requirement.name, requirement.name)] = {str(s) for s in requirement.specifier}
    assert conda == pip
    assert environment["variables"]["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlruns/mlflow.db"


def test_pinned_versions_are_within_the_bounds_and_whole() -> None:
    versions = pinned()
    extras = [r for group in project()["optional-dependencies"].values() for r in group]
    for requirement in map(Requirement, project()["dependencies"] + extras):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_every_dependency_has_a_reason_or_is_what_the_project_is_for() -> None:
    block = (PROJECT / "pyproject.toml").read_text().split("dependencies = [")[1].split("\n]")[0]
    unexplained = [line.split('"')[1] for line in block.strip().splitlines() if "#" not in line]
    assert [re.split(r"[<>=]", line)[0] for line in unexplained] == ["torch"]


def test_a_wheel_has_every_package_and_the_configurations() -> None:
    tools = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {path.parent.relative_to(PROJECT) for path in (PROJECT / "lightning_da").glob("**/__init__.py")}
    assert set(tools["packages"]) == {".".join(path.parts) for path in found} | {"lightning_da.conf"}
    assert tools["package-dir"] == {"lightning_da.conf": "conf"}


def versions_of_python() -> list[str]:
    return [f"3.{minor}" for minor in range(20) if f"3.{minor}" in SpecifierSet(project()["requires-python"])]


def test_make_takes_every_version_of_python_that_is_allowed() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    assert [f"3.{minor}" for minor in re.findall(r"\bpython3\.(\d+)\b", makefile)] == versions_of_python()
    low, high = re.findall(r"\((3, \d+)\)", makefile)
    assert [low.replace(", ", "."), high.replace(", ", ".")] == [versions_of_python()[0], versions_of_python()[-1]]


def sources() -> list[Path]:
    rooms = ("lightning_da", "tests", "benchmarks", "docs")
    return [path for room in rooms for path in (PROJECT / room).glob("**/*.py")]


REMOVED = {
    *("aifc", "asynchat", "asyncore", "audioop", "cgi", "cgitb", "chunk", "crypt", "distutils", "imghdr", "imp"),
    *("mailcap", "msilib", "nis", "nntplib", "ossaudiodev", "pipes", "smtpd", "sndhdr", "spwd", "sunau", "telnetlib"),
    *("uu", "xdrlib", "lib2to3", "pkgutil.find_loader", "pkgutil.get_loader", "ast.Num", "ast.Str", "ast.NameConstant"),
    *("locale.resetlocale", "typing.io", "typing.re", "pathlib.Path.link_to", "datetime.datetime.utcnow"),
    *("importlib.abc.ResourceReader", "asyncio.get_event_loop_policy", "tarfile.TarFile.tarfile", "shutil.ExecError"),
}
"""Modules and names that are gone, or deprecated, between Python 3.12 and 3.14."""


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_code_is_of_every_version_of_python(path: Path) -> None:
    """Its syntax is that of the oldest, and it uses nothing that is gone in the newest."""
    oldest = versions_of_python()[0].split(".")
    tree = ast.parse(path.read_text(), feature_version=(int(oldest[0]), int(oldest[1])))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Try):  # a syntax warning since 3.14
            assert not [
                n for part in node.finalbody for n in ast.walk(part) if isinstance(n, ast.Return | ast.Continue)
            ]
    assert not used & REMOVED


def test_processes_that_load_samples_can_be_started_anew() -> None:
    """As Python 3.14 starts them: what they get is pickled, not inherited."""
    loader = toy.Toy().sample_dataloader("source", "val", 40)
    again = DataLoader(
        loader.dataset, 20, num_workers=1, collate_fn=loader.collate_fn, multiprocessing_context="forkserver"
    )
    assert sum(len(y) for _, y in again) == 40


@pytest.mark.slow
@pytest.mark.parametrize("python", versions_of_python())
def test_the_pinned_packages_can_be_installed(python: str, tmp_path: Path) -> None:
    """Every one has a file for this version, and they go together. It needs a network."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-deps"]
    command += ["--target", str(tmp_path), "--python-version", python, "--only-binary", ":all:"]
    found = subprocess.run(
        [*command, "--requirement", str(PROJECT / "constraints.txt")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.parametrize(
    ("git", "version"),
    [
        ([], r"0\.1\.0"),
        (["init --quiet", "add pyproject.toml", "commit --quiet -m first"], r"0\.1\.1\.dev1"),
        (["init --quiet", "add pyproject.toml", "commit --quiet -m first", "tag paper-2"], r"0\.1\.1\.dev1"),
        (["init --quiet", "add pyproject.toml", "commit --quiet -m first", "tag v3.2.0"], r"3\.2\.0"),
    ],
    ids=["no git", "no tag", "another tag", "a tag"],
)
def test_the_version_is_that_of_the_tag(git: list[str], version: str, tmp_path: Path) -> None:
    """A copy without git or without tags can be built too."""
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    for name in ("lightning_da", "conf"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    for words in git:
        subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b.example", *words.split()], cwd=source, check=True
        )
    code = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, check=True, capture_output=True)
    (metadata,) = out.glob("*.dist-info/METADATA")
    (found,) = re.findall(r"^Version: (.*)", metadata.read_text(), re.MULTILINE)
    assert re.fullmatch(version, found)


def test_no_registry_is_named() -> None:
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile"):
        text = (PROJECT / name).read_text()
        assert set(re.findall(r"://([\w.-]+)", text)) <= {"127.0.0.1"}, name
        assert not re.search(r"\b(index|find)-(url|links)\b", text), name
