"""The site of the documentation is built without a warning, and needs no network."""

import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning import LightningModule
from PIL import Image
from pre_commit.clientlib import load_config

from lightning_da import classical, methods
from lightning_da.paths import PROJECT
from tests.pages import DOCS
from tests.test_digits import write_mnist

SETTINGS = {
    "dan_paper": "dan",
    "dan_sk": "dan",
    "dann_paper": "dann",
    "speech_gender": "speech_ffn",
    "speech_speaker": "speech_ffn",
    "vgg16": "fine_tune",
    "gradual_unfreezing": "fine_tune",
}
"""The files of `conf/method` that are settings of another method, and the page that names them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = ["build", "--strict", "--site-dir", str(folder)]  # with --quiet, --strict counts no warning
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], cwd=PROJECT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    return folder


def page_of(site: Path, page: Path) -> str:
    return (site / page.relative_to(DOCS).with_suffix(".html")).read_text()


def test_every_page_is_in_the_site_and_reads_nothing_from_the_network(site: Path) -> None:
    assert len(list(DOCS.rglob("*.md"))) > 20
    for page in DOCS.rglob("*.md"):
        text = page_of(site, page)
        read = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?([^\"' >]+)", text)
        assert read
        assert not [address for address in read if "//" in address], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()[\"' ]*(https?:)?//", style.read_text()), style


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    seen = 0
    for page in DOCS.rglob("*.md"):
        text, source = page_of(site, page), re.sub(r"`[^`]*`", "", page.read_text())
        assert "arithmatex" not in text, page
        number = source.count("$$") // 2
        assert text.count('<div class="formula"><math') == number, page
        seen += number
    assert seen > 8


def test_the_reference_has_arguments_shapes_and_papers(site: Path) -> None:
    text = html.unescape((site / "reference" / "losses.html").read_text())
    assert 'href="https://arxiv.org/abs/1607.01719"' in text
    assert "Activations, shape (n_s, d), floating point." in text
    assert "||C_s - C_t||_F^2 / (4 d^2)" in text
    text = re.sub(r"<[^>]+>", "", html.unescape((site / "reference" / "classical.html").read_text()))
    assert re.search(r"TCA\(\s*\*,\s*dim=20,\s*lam=1.0,", text)
    for name in methods.__all__:
        here = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
        assert name in ("Classifier",) or re.search(rf'id="lightning_da\.methods\.\w+\.{name}"', here), name


def test_each_method_has_its_page_and_each_page_a_method() -> None:
    pages = {page.stem: page.read_text() for page in (DOCS / "methods").glob("*.md") if page.stem != "index"}
    files = {path.stem: path.read_text() for path in (PROJECT / "conf" / "method").glob("*.yaml")}
    for name, page in SETTINGS.items():
        assert name in pages[page], f"{page}.md does not name {name}"
    public = [vars(module)[name] for module in (methods, classical) for name in module.__all__]
    bases = {methods.AdaptationModule, methods.Classical, methods.Classifier, methods.TransferModule}
    bases |= {classical.Adapter, classical.Projection, classical.SourceOnly, classical.Weighted}
    kinds = [kind for kind in public if issubclass(kind, LightningModule | classical.Adapter) and kind not in bases]
    expected = {name: f"method/{name}.yaml" for name in files.keys() - SETTINGS.keys()}
    expected |= {
        re.sub("(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): f"{kind.__module__}.{kind.__name__}"
        for kind in kinds
        if not any(re.search(rf"lightning_da\.\w+\.{kind.__name__}\b", text) for text in files.values())
    }
    assert pages.keys() == expected.keys()
    for name, named in expected.items():
        assert named in pages[name], f"{name}.md does not name {named}"
    assert "TrAdaBoostR2" in pages["tradaboost"]


def test_the_pages_of_methods_have_the_same_parts() -> None:
    titles = ["Objective", "What to tune first", "Figures", "How failure looks"]
    for page in set((DOCS / "methods").glob("*.md")) - {DOCS / "methods" / "index.md"}:
        assert re.findall(r"^## (.+)", page.read_text(), re.MULTILINE) == titles, page
        idea = page.read_text().split("\n\n")[1]
        assert len(re.findall(r"[.?!](?:\s|$)", idea)) <= 3, f"{page}: the idea has three sentences at most"


# ---------------------------------------------------------------- the files for those who carry it on


def test_the_checks_before_a_commit_are_those_of_make_test() -> None:
    hooks = [hook for repo in load_config(str(PROJECT / ".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    makefile = (PROJECT / "Makefile").read_text()
    for hook in hooks:
        assert hook["language"] in ("system", "unsupported")  # nothing is downloaded
        assert hook["entry"].replace(".venv/bin/python", "$(PY)") in makefile, hook["id"]


def test_the_citation_has_what_its_schema_requires() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == "MIT"
    assert all(author.keys() == {"name"} for author in citation["authors"])
    assert citation["authors"][0]["name"] in (PROJECT / "LICENSE").read_text()


def test_the_changelog_keeps_its_form() -> None:
    text = (PROJECT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.+)", text, re.MULTILINE)[0] == "[Unreleased]"
    assert all(
        re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version)
        for version in re.findall(r"^## (.+)", text, re.MULTILINE)
    )
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert re.search(r"\[(\d.*)\] - (.+)", text).groups() == (citation["version"], str(citation["date-released"]))  # type: ignore[union-attr]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)", text, re.MULTILINE)) <= kinds


def test_the_templates_of_issues_can_be_read() -> None:
    forms = list((PROJECT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for form in forms:
        found = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= found.keys()
        assert all(part["type"] in ("markdown", "textarea", "input", "dropdown") for part in found["body"])


@pytest.mark.slow
def test_the_figures_are_drawn(tmp_path: Path) -> None:
    """By short trainings; MNIST is written small, in the folder in which it is looked for."""
    write_mnist(tmp_path / "data", 400)
    draw = runpy.run_path(str(DOCS / "figures.py"))
    short = ["--out", str(tmp_path), "--trainer.max_steps", "4"]
    draw["run"](["embedding", "curve", *short, "--data.num_typeset", "300"])
    draw["run"](["before_after", *short])
    draw["run"](["layer_transfer", *short, "--seeds", "0"])
    draw["run"](["attention", *short])
    for name in draw["FIGURES"]:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 50  # not empty
