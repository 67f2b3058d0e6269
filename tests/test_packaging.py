import re
import tomllib
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from lightning_da.paths import PROJECT

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


def test_no_registry_is_named() -> None:
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile"):
        text = (PROJECT / name).read_text()
        assert set(re.findall(r"://([\w.-]+)", text)) <= {"127.0.0.1"}, name
        assert not re.search(r"\b(index|find)-(url|links)\b", text), name
