"""The texts of the README and of docs are run as they stand."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_da.commands import COMMANDS
from lightning_da.main import main
from lightning_da.paths import PROJECT, with_found_configs
from lightning_da.signatures import check_options
from lightning_da.store import client
from lightning_da.testing import check_method

README = (PROJECT / "README.md").read_text()
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")), PROJECT / "benchmarks" / "README.md"]
OWN = ("my_task.yaml", "mcc.yaml")
"""Files of the reader."""


def command_lines(text: str) -> Iterator[list[str]]:
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "lightning-da":
                yield words[1:]


def named_file(name: str) -> str:
    """The block behind the words that name a file."""
    found = re.search(rf"`{re.escape(name)}`[^\n]*:\n\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found.group(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_commands_name_files_and_options_that_exist(page: Path) -> None:
    for command, *words in command_lines(page.read_text()):
        assert command in COMMANDS
        given = [word for word in words if word not in OWN]
        own = [place for place, word in enumerate(given) if word == "--config" and given[place + 1 : place + 2] == []]
        check_options(with_found_configs([w for i, w in enumerate(given) if i not in own]), all_known=False)


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    names = ("mcc.py", "mcc.yaml", "small.py", "means.py")
    for name in names:
        (tmp_path / name).write_text(named_file(name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in names:
        sys.modules.pop(name.partition(".")[0], None)


def test_the_extensions_run_together(extensions: Path) -> None:
    assert len((named_file("mcc.py") + named_file("mcc.yaml")).splitlines()) < 40
    table = main(
        [
            *("sweep", "--methods", "source_only", "mcc.yaml", "--config", "data/digits.yaml", "--jobs", "1"),
            *("--model.backbone", "small.Small", "--trainer.max_steps", "2", "--data.num_typeset", "200"),
            *("--trainer.accelerator", "cpu", "--trainer.logger.experiment_name", "readme"),
            f"--config={Path(__file__).parent / 'short.yaml'}",
        ]
    )
    assert table["method"].tolist() == ["source_only", "mcc"]
    (run,) = client().search_runs(
        [client().get_experiment_by_name("readme").experiment_id],  # type: ignore[union-attr]
        "run_name = 'mcc-typeset-handwritten-s0'",
    )
    curve = main(["curve", "--ckpt_path", run.info.run_id, "--measures", "mmd", "means.distance", "--samples", "40"])
    assert set(curve["measure"]) == {"mmd", "distance"}
    assert list(curve["layer"].unique()) == ["conv", "pool", "bottleneck", "head"]
    assert "distance between the means" in (extensions / "curve" / "curve.html").read_text()


@pytest.mark.usefixtures("extensions")
def test_the_method_passes_the_checks() -> None:
    from mcc import MCC  # type: ignore[import-not-found]

    check_method(MCC)


def test_the_script_runs() -> None:
    (code,) = re.findall(r"\*\*From Python\*\*.*?```python\n(.*?)```", README, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
