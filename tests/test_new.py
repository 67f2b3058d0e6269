"""`lightning-da new`: every kind of project is whole, runs, and can be updated; the package installs from a wheel."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from lightning_da.cli import TransferCLI
from lightning_da.commands import new
from lightning_da.main import main
from lightning_da.paths import CONF, PACKAGE, PROJECT, with_found_configs, work_folder
from lightning_da.signatures import check_options
from lightning_da.store import tracking_uri

KINDS = tuple(new.KINDS)
FILES = {
    *(".copier-answers.yml", ".github/workflows/test.yml", ".gitignore", "Makefile", "README.md", "conf/task.yaml"),
    *("environment.yml", "mlruns/.gitkeep", "pyproject.toml", "tests/test_task.py"),
}
TEMPLATE = ("lightning_da/project_template", "lightning_da/data/template.py", "conf/data/template.yaml", "copier.yml")
GIT = {f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def files(folder: Path) -> dict[str, str]:
    """The text of each file, without those of git."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def call(*words: str | Path, cwd: Path, **env: str) -> str:
    """The output of a command that succeeds, with the packages of this environment and the store of its folder."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = inherited | {"PATH": path, "PYTHONPATH": str(PROJECT)} | GIT | env
    found = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


@pytest.fixture(params=KINDS)
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    main(["new", "my-task", "--kind", request.param])
    monkeypatch.chdir(tmp_path / "my-task")
    monkeypatch.syspath_prepend(tmp_path / "my-task")
    yield tmp_path / "my-task"
    sys.modules.pop("my_task", None)


def kind_of(project: Path) -> str:
    return str(yaml.safe_load((project / ".copier-answers.yml").read_text())["kind"])


def test_a_project_is_whole(project: Path) -> None:
    """All files, nothing left of the template language, no word of another kind, and the marked places."""
    written = files(project)
    own = {"my_task.py"} if kind_of(project) == "custom" else {"example.py"}
    assert written.keys() == FILES | own
    for name, text in written.items():
        assert not re.search(r"\{\{|\{%|\{#|%\}", text), name
        assert text == "" or text[-1] == "\n" != text[-2:-1], name
    data = "my_task.py" if kind_of(project) == "custom" else "conf/task.yaml"
    for name in {data, "conf/task.yaml", "tests/test_task.py"}:
        assert written[name].count("EDIT:") >= 2
        assert name in written["README.md"]
    assert not [path for path in project.parent.iterdir() if path != project]


def test_the_lines_are_those_of_this_repository(project: Path) -> None:
    ruff, rules = [sys.executable, "-m", "ruff"], ["--config", str(PROJECT / "pyproject.toml")]
    call(*ruff, "format", "--check", *rules, ".", cwd=project)
    ours = ["--config", 'lint.isort.known-first-party=["lightning_da"]', "--ignore", "D103"]
    call(*ruff, "check", *rules, *ours, ".", cwd=project)


def test_the_bounds_are_those_of_this_repository(project: Path) -> None:
    def read(folder: Path) -> dict[str, Any]:
        return tomllib.loads((folder / "pyproject.toml").read_text())

    ours, made = read(PROJECT), read(project)
    assert made["build-system"]["build-backend"] == ours["build-system"]["build-backend"]
    assert set(made["build-system"]["requires"]) <= set(ours["build-system"]["requires"])
    assert made["project"]["requires-python"] == ours["project"]["requires-python"]
    assert set(made["project"]["optional-dependencies"]["dev"]) <= set(ours["project"]["optional-dependencies"]["dev"])
    (requirement,) = map(Requirement, made["project"]["dependencies"])
    assert (requirement.name, requirement.url) == ("lightning-da", PROJECT.as_uri())
    conda, ours_conda = (yaml.safe_load((root / "environment.yml").read_text()) for root in (project, PROJECT))
    assert conda["dependencies"][:2] == [ours_conda["dependencies"][0], "pip"]
    assert conda["variables"] == ours_conda["variables"]
    (steps,) = (
        job["steps"] for job in yaml.safe_load((project / ".github/workflows/test.yml").read_text())["jobs"].values()
    )
    assert steps[1]["with"]["python-version"] in requires(ours)


def requires(ours: dict[str, Any]) -> Any:
    return Requirement(f"python{ours['project']['requires-python']}").specifier


def test_the_commands_of_its_readme_are_right(project: Path) -> None:
    (block,) = re.findall(r"```sh\n(lightning-da.*?)```", (project / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines():
        _, command, *words = shlex.split(line)
        check_options(with_found_configs(words), all_known=command in ("fit", "test"))
        if command == "fit":
            data = TransferCLI("fit", words).config.data
            assert data.class_path.split(".")[0] in ("lightning_da", "my_task")


def test_the_configuration_holds_overrides_only(project: Path) -> None:
    """The data are those of a file of this repository, and each of their values is another one."""
    (config,) = re.findall(r"CONFIG := (.*)", (project / "Makefile").read_text())
    below, own = ([{}] + [yaml.safe_load(Path(path).read_text()) for path in with_found_configs(config.split())[1::2]])[
        -2:
    ]
    assert ("class_path" in own["data"]) == (kind_of(project) == "custom")
    assert not own["data"]["init_args"].items() & below.get("data", {}).get("init_args", {}).items()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["full", "--kind", "images"], "not an empty folder"),
        (["full/file", "--kind", "images"], "not an empty folder"),
        (["full/file/below", "--kind", "images"], "file"),
        (["3d", "--kind", "images"], "'3d' is no import path"),
        (["mine", "--kind", "images", "--name", "class"], "'class' is no import path"),
        (["mine", "--kind", "images", "--name", "a.b"], "'a.b' is no import path"),
        (["mine", "--kind", "images", "--name", "größe"], "'größe' is no import path"),
        (["torch", "--kind", "images"], "'torch' is taken"),
        (["tests", "--kind", "custom"], "'tests' is taken"),
        (["mine", "--kind", "image"], "did you mean 'images'"),
        (["mine"], "--kind"),
        (["--kind", "images"], "PATH"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["new", *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert said.count("\n") == 1
    assert files(tmp_path) == {"full/file": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(new, "ANSWERS", "not-there.yml")  # the last file that is written
    with pytest.raises(SystemExit):
        main(["new", "empty", "--kind", "custom", "--name", "mine"])
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "empty")
    main(["new", ".", "--kind", "custom", "--name", "mine"])
    assert Path("mine.py").is_file()  # the working folder is still there


def test_a_path_with_dots_leaves_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", "not_there/../dotted", "--kind", "custom"])
    assert "  cd dotted\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [tmp_path / "dotted"]


@pytest.mark.parametrize(
    ("direct", "requirement", "origin"),
    [
        (
            {"url": "https://h.example/da.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "lightning-da @ git+https://h.example/da.git@abc",
            {"_commit": "abc", "_src_path": "https://h.example/da.git"},
        ),
        ({"url": "file:///da.whl", "archive_info": {}}, "lightning-da @ file:///da.whl", {"_commit": "v0.3.1"}),
        (None, "lightning-da~=0.3.1", {"_commit": "v0.3.1"}),
    ],
)
def test_a_project_depends_on_what_was_installed(
    direct: dict[str, Any] | None, requirement: str, origin: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = None if direct is None else json.dumps(direct)
    installed = SimpleNamespace(version="0.3.1", read_text={"direct_url.json": text}.get)
    monkeypatch.setattr(new, "PROJECT", PACKAGE)  # no checkout
    monkeypatch.setattr(new, "distribution", {"lightning_da": installed}.get)
    assert new._origin() == (requirement, origin)


def test_the_kinds_are_those_of_the_template() -> None:
    assert yaml.safe_load((PACKAGE / "project_template" / "copier.yml").read_text())["kind"]["choices"] == list(KINDS)


def test_nothing_is_executed_in_a_new_project() -> None:
    """Settings of copier that run code need `--trust`, and are not there."""
    for path in (PROJECT / "copier.yml", PACKAGE / "project_template" / "copier.yml"):
        assert not re.search(r"^_(tasks|migrations|jinja_extensions)", path.read_text(), re.MULTILINE)


def test_runs_belong_to_the_folder_with_mlruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert work_folder() == PROJECT
    assert tracking_uri() == f"sqlite:///{PROJECT}/mlruns/mlflow.db"
    (tmp_path / "mlruns").mkdir()
    assert work_folder() == tmp_path
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


# ---------------------------------------------------------------- the projects run


@pytest.mark.slow
def test_its_tests_and_its_demo_pass_at_once(project: Path) -> None:
    made = call("make", "test", cwd=project)
    assert "2 passed" in made
    assert "warning" not in made
    table = call("make", "demo", cwd=project)
    assert re.search(r"test split\nmethod +seeds", table)
    assert (project / "mlruns" / "mlflow.db").is_file()


@pytest.mark.slow
def test_the_types_are_right(project: Path) -> None:
    call(sys.executable, "-m", "mypy", "--config-file", PROJECT / "pyproject.toml", *project.rglob("*.py"), cwd=project)


# ---------------------------------------------------------------- later versions


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone with the files of the working tree, tagged as a version."""
    if not (PROJECT / ".git").exists():
        pytest.skip("the project is no git repository")
    clone = tmp_path / "repository"
    call("git", "clone", "--quiet", PROJECT, clone, cwd=tmp_path)
    for name in ("lightning_da", "conf", "copier.yml", "pyproject.toml"):
        source, copy = PROJECT / name, clone / name
        if source.is_dir():
            shutil.rmtree(copy)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    call("git", "add", "--all", cwd=clone)
    call("git", "commit", "--quiet", "--allow-empty", "-m", "the working tree", cwd=clone)
    call("git", "tag", "v999.0", cwd=clone)
    return clone


def versions(clone: Path, since: str) -> list[str]:
    """Tags to update from: this version, or those with an earlier template.

    Where no version was tagged yet, the state before the last change of the template gets a tag.
    """
    if since == "this version":
        return ["v999.0"]
    listed = [tag for tag in call("git", "tag", cwd=clone).split() if tag != "v999.0"]
    found = [tag for tag in listed if call("git", "ls-tree", tag, "copier.yml", cwd=clone)]
    if found:
        return found
    before = call("git", "log", "-1", "--format=%P", "--", *TEMPLATE, cwd=clone).split()
    if not before:
        pytest.skip("a clone without the history of the template: git fetch --unshallow --tags")
    call("git", "tag", "v0.0.1", before[0], cwd=clone)
    return ["v0.0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("since", ["this version", "earlier versions"])
@pytest.mark.parametrize("kind", KINDS)
def test_update_brings_later_versions_and_keeps_edits(kind: str, since: str, repository: Path, tmp_path: Path) -> None:
    """From a tag to a later commit: the project is as if made anew, with the user's edits."""
    earlier = versions(repository, since)
    template = repository / "lightning_da" / "project_template" / "files"
    with open(template / ".gitignore", "a") as file:
        file.write("later/\n")
    (template / "{% if kind %}later.md{% endif %}.jinja").write_text("{{ name }}, {{ kind }}\n")
    with open(repository / "lightning_da" / "data" / "template.py", "a") as file:
        file.write("\n\nLATER = 1\n")
    call("git", "add", "--all", cwd=repository)
    call("git", "commit", "--quiet", "-m", "later", cwd=repository)
    here = {"PYTHONPATH": str(repository)}
    call(sys.executable, "-m", "lightning_da", "new", "anew", "--kind", kind, "--name", "mine", cwd=tmp_path, **here)
    for tag in earlier:
        call("git", "checkout", "--quiet", tag, cwd=repository)
        folder = tmp_path / f"from-{tag}"
        call(
            sys.executable, "-m", "lightning_da", "new", folder, "--kind", kind, "--name", "mine", cwd=tmp_path, **here
        )
        call("git", "checkout", "--quiet", "-", cwd=repository)
        assert yaml.safe_load((folder / ".copier-answers.yml").read_text())["_commit"] == tag
        task = folder / "conf" / "task.yaml"
        task.write_text(f"# mine\n{task.read_text()}")
        for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "mine"]):
            call("git", *words, cwd=folder)
        call(sys.executable, "-m", "copier", "update", "--defaults", "--vcs-ref", "HEAD", cwd=folder, **here)
        updated, anew = files(folder), files(tmp_path / "anew")
        assert updated["conf/task.yaml"] == f"# mine\n{anew['conf/task.yaml']}"
        assert updated["later.md"] == f"mine, {kind}\n"
        answers = [yaml.safe_load(found.pop(".copier-answers.yml")) for found in (updated, anew)]
        assert answers[0] == answers[1]
        assert updated | {"conf/task.yaml": ""} == anew | {"conf/task.yaml": ""}


# ---------------------------------------------------------------- the wheel


@pytest.mark.slow
def test_a_wheel_is_whole(tmp_path: Path) -> None:
    """In an environment that has the other packages, but not this repository: `new`, fit and test."""
    source, place = tmp_path / "source", tmp_path / "place"
    place.mkdir()
    for name in ("lightning_da", "conf"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    call(sys.executable, "-m", "pip", *build, cwd=source)
    call(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    (packages,) = (tmp_path / "env" / "lib").glob("python3.*/site-packages")
    (wheel,) = (source / "dist").glob("*.whl")
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    shutil.rmtree(source)
    others = next(path for path in sys.path if (Path(path) / "torch").is_dir())
    (packages / "others.pth").write_text(f"{others}\n")

    def program(*words: str, cwd: Path) -> str:
        return call(tmp_path / "env" / "bin" / "lightning-da", *words, cwd=cwd, PYTHONPATH="", PYTHONSAFEPATH="1")

    where = call(python, "-c", "import lightning_da; print(lightning_da.__file__)", cwd=place, PYTHONPATH="")
    assert where.startswith(str(packages))
    listed = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    assert {
        path.relative_to(packages / "lightning_da/conf").as_posix()
        for path in (packages / "lightning_da/conf").rglob("*.yaml")
    } == listed
    program("new", "mine", "--kind", "features", cwd=place)
    made = place / "mine"
    assert f'dependencies = ["lightning-da @ {wheel.as_uri()}"]' in (made / "pyproject.toml").read_text()
    assert "_src_path" not in yaml.safe_load((made / ".copier-answers.yml").read_text())
    call(python, "example.py", "data/example", cwd=made)
    words = ["--config", "method/source_only.yaml", "--config", "data/features.yaml", "--config", "conf/task.yaml"]
    program("fit", *words, "--trainer.max_steps", "5", cwd=made)
    program("test", *words, "--trainer.max_steps", "5", cwd=made)
    assert "source_only" in program("compare", cwd=made)
    assert (made / "mlruns" / "mlflow.db").is_file()
    program("fit", "--config", "data/digits.yaml", *words[:2], "--trainer.max_steps", "2", cwd=place)
    assert (place / "mlruns" / "mlflow.db").is_file()
    assert not (packages / "mlruns").exists()
    assert not (packages / "lightning_da" / "mlruns").exists()
