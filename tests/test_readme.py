"""The texts of README and docs are run as they stand: commands, code, links and figures."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from lightning_da.cli import TransferCLI
from lightning_da.commands import COMMANDS
from lightning_da.grids.space import read_space
from lightning_da.main import main
from lightning_da.paths import PROJECT, with_found_configs
from lightning_da.signatures import check_options
from lightning_da.store import client
from lightning_da.testing import check_method
from tests.pages import (
    DOCS,
    ELSEWHERE,
    PAGES,
    SERVED,
    blocks,
    command_lines,
    named_file,
    runs_elsewhere,
    shorter,
    small_project,
    write_data,
)

EXTEND = DOCS / "extend.md"
OWN = ("my_task.yaml", "bnm.yaml")
"""Files of the reader."""
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))


@pages
def test_the_commands_name_files_and_options_that_exist(page: Path) -> None:
    for line in command_lines(page):
        program, *words = shlex.split(line)
        if program != "lightning-da":
            assert runs_elsewhere(line) or page == SERVED or program in ("cp", "python"), f"{line}: no test runs it"
            continue
        command, *words = words
        assert command in COMMANDS
        given = [word for word in words if word not in OWN]
        own = [place for place, word in enumerate(given) if word == "--config" and given[place + 1 : place + 2] == []]
        check_options(with_found_configs([w for i, w in enumerate(given) if i not in own]), all_known=False)
        if command == "fit" and not {"--ckpt_path", "--model.init_from"} & set(words):
            TransferCLI("fit", words)


def test_what_is_run_elsewhere_is_on_a_page() -> None:
    lines = [line for page in PAGES for line in command_lines(page)]
    for start, where in ELSEWHERE.items():
        assert any(line.startswith(start) for line in lines), start
        assert (PROJECT / where).exists(), where


@pages
def test_every_block_is_run_or_no_code(page: Path) -> None:
    """Named files are in the folder in which the commands of the page are run; other code is a script."""
    for block in blocks(page):
        assert block.language in ("sh", "python", "yaml", "text", ""), block.language
        if block.language == "yaml":
            assert block.file is not None, block.text
        if block.language in ("text", ""):
            assert not re.search(r"^(lightning-da|make|python|pip|import|from) ", block.text, re.MULTILINE), block.text


# ---------------------------------------------------------------- links and figures


def anchors(page: Path) -> set[str]:
    without_code = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slugify(title, "-") for title in re.findall(r"^#+ +(.+)", without_code, re.MULTILINE)}


@pages
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"
        assert not page.is_relative_to(DOCS) or target.is_relative_to(DOCS), f"{page}: {link} is not in the site"


MADE = r"[Mm]ade by `(?:python )?([\w/.]+\.py)"


@pages
def test_every_figure_names_the_script_that_made_it(page: Path) -> None:
    """Below it, or in a line that speaks of the pictures of this page."""
    text = page.read_text()
    of_all = "\n".join(re.findall(r"^.*pictures.*\bthis page\b.*$", text, re.MULTILINE))
    for figure, below in re.findall(r"!\[[^\]]*\]\(([^)]+)\)((?:.*\n){0,4})", text):
        found = re.search(MADE, below) or re.search(MADE, of_all)
        assert found, f"{page}: no script is named below {figure}"
        script = PROJECT / found[1]
        assert Path(figure).stem in script.read_text(), f"{script} does not make {figure}"


# ---------------------------------------------------------------- the code


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    names = ("bnm.py", "bnm.yaml", "small.py", "means.py")
    for name in names:
        (tmp_path / name).write_text(named_file(EXTEND, name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in names:
        sys.modules.pop(name.partition(".")[0], None)


def test_the_extensions_run_together(extensions: Path) -> None:
    assert len((named_file(EXTEND, "bnm.py") + named_file(EXTEND, "bnm.yaml")).splitlines()) < 40
    table = main(
        [
            *("sweep", "--methods", "source_only", "bnm.yaml", "--config", "data/digits.yaml", "--jobs", "1"),
            *("--model.backbone", "small.Small", "--trainer.max_steps", "2", "--data.num_typeset", "200"),
            *("--trainer.accelerator", "cpu", "--trainer.logger.experiment_name", "readme"),
            f"--config={Path(__file__).parent / 'short.yaml'}",
        ]
    )
    assert table["method"].tolist() == ["source_only", "bnm"]
    (run,) = client().search_runs(
        [client().get_experiment_by_name("readme").experiment_id],  # type: ignore[union-attr]
        "run_name = 'bnm-typeset-handwritten-s0'",
    )
    curve = main(["curve", "--ckpt_path", run.info.run_id, "--measures", "mmd", "means.distance", "--samples", "40"])
    assert set(curve["measure"]) == {"mmd", "distance"}
    assert list(curve["layer"].unique()) == ["conv", "pool", "bottleneck", "head"]
    assert "distance between the means" in (extensions / "curve" / "curve.html").read_text()


@pytest.mark.usefixtures("extensions")
def test_the_method_passes_the_checks() -> None:
    from bnm import BNM  # type: ignore[import-not-found]

    check_method(BNM)


def test_the_space_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(named_file(DOCS / "search.md", "space.yaml"))
    assert len(read_space(tmp_path / "space.yaml")) == 3


SCRIPTS = [
    (page, block.text)
    for page in PAGES
    for block in blocks(page)
    if (block.language, block.file) == ("python", None) and page != SERVED
]


@pytest.mark.parametrize(("page", "code"), SCRIPTS, ids=lambda value: value.stem if isinstance(value, Path) else "")
def test_the_scripts_run(page: Path, code: str) -> None:
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15
    exec(compile(code, page.name, "exec"), {"__name__": "script"})


# ---------------------------------------------------------------- the commands

DIGITS = "lightning-da sweep --config data/digits.yaml --methods"
BEFORE = {
    "curves": [f"{DIGITS} source_only dan"],
    "choosing": [f"{DIGITS} source_only dann"],
    "resume": [f"{DIGITS} dann"],
    "reading": [f"{DIGITS} source_only dann"],
    "margin_ensemble": [f"{DIGITS} dan dann"],
    "extend": ["cp lightning_da/data/template.py my_task.py"],
}
"""What a reader of a page has done before."""
WITH_COMMANDS = [page for page in PAGES if page != SERVED and not all(map(runs_elsewhere, command_lines(page)))]
RUN = """
import json, shlex, subprocess, sys
from lightning_da.main import main
for line in json.load(sys.stdin):
    print("$", line, flush=True)
    program, *words = shlex.split(line)
    if program == "lightning-da":
        main(words)
    else:
        subprocess.run([sys.executable if program == "python" else program, *words], check=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_commands_run(page: Path, tmp_path: Path) -> None:
    """One after the other as a reader types them, in a copy of the project with short trainings and small data."""
    folder = tmp_path / "project"
    folder.mkdir()
    small_project(folder)
    write_data(folder, page)
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
    own = [line for line in command_lines(page) if not runs_elsewhere(line)]
    if "WEIGHTS.pth" in " ".join(own):
        import timm
        import torch

        torch.save(timm.create_model("test_efficientnet", pad_type="same").state_dict(), folder / "WEIGHTS.pth")
    lines = [*BEFORE.get(page.stem, ()), *map(shorter, own)]
    said = call([sys.executable, "-c", RUN], folder, json.dumps(lines))
    assert said.count("\n$ ") + said.startswith("$ ") >= len(lines)


@pytest.mark.slow
def test_the_page_of_served_models_runs_in_a_shell(tmp_path: Path) -> None:
    """All its blocks, one after the other; the server is in the background, and nothing is installed."""
    small_project(tmp_path)
    write_data(tmp_path, SERVED)
    (tmp_path / "FOLDER" / "rose" / "0.png").rename(tmp_path / "digit.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    digits = "--config method/dann.yaml --config data/digits.yaml"
    script = [f"lightning-da fit {digits}", f"lightning-da test {digits}"]
    for block in blocks(SERVED):
        text = re.sub(r"^\.venv/bin/pip .*\n", "", block.text.replace("5001", str(port)), flags=re.MULTILINE)
        if block.language == "sh":
            wait = f"curl --silent --retry 300 --retry-delay 1 --retry-connrefused http://127.0.0.1:{port}/health"
            script.append(re.sub(r"^(mlflow models serve .*)", rf"\1 &\n{wait}", text, flags=re.MULTILINE))
        elif block.language == "python":
            script.append(f"python - <<'END'\n{text}END")
    said = call(["bash", "-e", "-c", "trap 'kill $(jobs -p)' EXIT\n" + "\n".join(script)], tmp_path)
    answer, _ = json.JSONDecoder().raw_decode(said, said.index('{"predictions"'))
    assert answer["predictions"][0].keys() == {"class", "probability", "probabilities"}
    assert {path.name for path in tmp_path.glob("dann-*")} == {
        f"dann-typeset-handwritten-s0.{end}" for end in ("pt2", "onnx")
    }


def call(words: list[str], folder: Path, given: str = "") -> str:
    """What a program prints, with the copy of the project and the commands of this environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        words, input=given, text=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env=environment | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": path},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:]
    return found.stdout
