"""`report`: what the page says, and that it is small, whole and harmless."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.entities import Run

from lightning_da.commands.report import _lines
from lightning_da.main import main
from lightning_da.store import client
from lightning_da.tracking import Tracker, find_experiment
from tests import recorded

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&'\"$x^{$"


class Page(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    """The name of an experiment without runs."""
    Tracker(tmp_path.name)
    return tmp_path.name


def test_the_page_has_the_table_the_verdict_the_curves_and_the_settings(experiment: str, capsys: Any) -> None:
    for seed in (0, 1):
        recorded.run(experiment, "source_only", seed, acc=0.4 + 0.1 * seed, params={"lr": "0.1"}, wrong=range(100))
        recorded.run(experiment, "dann", seed, acc=0.8, params={"lr": "0.2"}, wrong=range(10), pictures=300)
        recorded.run(experiment, "target_only", seed, acc=1.0, params={"lr": "0.1", "train_on": "target"})
    recorded.run(experiment, "target_only", 1, acc=1.0, params={"lr": "0.1", "train_on": "target"})
    client().create_run(find_experiment(experiment).experiment_id)
    main(["report", experiment])
    page = Page(Path("report.html"))
    for words in (
        "Runs in the tables: 6; 1 earlier with the same settings and seed; 1 without test results",
        "one -> two",
        "0.450 ± 0.071",
        "lr=0.2",
    ):
        assert words in page.text, words
    assert "chosen without target labels: dann (best by the scores neighbours, class_ami, mmd, bnm; clea" in page.text
    assert "The same in all: seed" not in page.text
    assert page.tags.count("svg") == 3  # one measure over depth, two metrics over time
    assert page.tags.count("img") == 2  # the pictures of one of the two seeds
    # the mark of a curve has the mean over seeds
    assert "source_only, conv: 0.45" in page.text
    assert "target_only, head: 0.25" in page.text
    assert "dann, step 18: " in page.text
    # the table is that of `compare`
    capsys.readouterr()
    main(["compare", "--experiment", experiment])
    for number in re.findall(r"\d\.\d+ ± \d\.\d+", capsys.readouterr().out):
        assert number in page.text


def test_names_are_text_and_nothing_is_loaded_or_run(experiment: str) -> None:
    run_id = recorded.run(experiment, EVIL, pair=(EVIL, "two"), params={"root": EVIL}, pictures=50)
    recorded.run(experiment, "source_only", pair=(EVIL, "two"), params={"root": "here"})
    client().set_tag(run_id, "warnings", EVIL)
    main(["report", experiment, "--out", "page.html"])
    page = Page(Path("page.html"))
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    for key, value in page.attributes:
        if key in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith(("data:image/webp;base64,", "#")), value
    assert "url(http" not in Path("page.html").read_text()
    for place in (f"{EVIL} -> two", f"root={EVIL}", f": {EVIL}", f"{EVIL}, conv: 0.5"):
        assert place in page.text, place


def test_figures_for_which_there_is_no_room_are_counted(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for lr in ("1", "2", "3"):
        recorded.run(experiment, "dan", params={"lr": lr}, pictures=200)
    main(["report", experiment])
    whole = Page(Path("report.html"))
    assert whole.tags.count("h4") == 3
    assert "left out" not in whole.text
    most = Path("report.html").stat().st_size - 30_000
    monkeypatch.setattr("lightning_da.commands.report.LARGEST", most)
    main(["report", experiment])
    assert Path("report.html").stat().st_size <= most + 200  # the sentence about what is left out
    part = Page(Path("report.html"))
    (left_out,) = re.findall(r"(\d+) figures are left out", part.text)
    assert part.tags.count("h4") + int(left_out) == 3
    assert part.tags.count("svg") == whole.tags.count("svg")


def test_a_legend_has_room_for_long_names() -> None:
    """It shows the two ends; the marks have the whole name."""
    names = [f"{'a' * 100}{number}" for number in range(8)]
    curves = pd.DataFrame(
        [(name, step, float(step)) for name in names for step in (1, 2)], columns=["name", "x", "value"]
    )
    axes = _lines(curves, names, "accuracy").axes[0]
    legend = axes.get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(set(shown)) == 8
    assert all(len(text) <= 40 and text[-1] == name[-1] for text, name in zip(shown, names, strict=True))
    assert [line.get_label() for line in axes.lines] == names


@pytest.mark.slow
def test_sixty_runs_fit_into_three_megabytes(experiment: str) -> None:
    for number in range(30):
        for seed in (0, 1):
            more = {"lr": str(number), "root": "x" * 200}
            recorded.run(experiment, "dan", seed, acc=number / 30 + seed / 100, params=more, pictures=900)
    main(["report", experiment])
    assert Path("report.html").stat().st_size < 3_000_000
    page = Page(Path("report.html"))
    (left_out,) = re.findall(r"(\d+) figures are left out", page.text)
    assert page.tags.count("h4") + int(left_out) == 30
    assert page.tags.count("h4") > 2
    assert "lr=29" in page.text
    assert "The 8 rows with the best results on the target" in page.text
    assert "dan (lr=29), conv" in page.text
    assert "dan (lr=21), conv" not in page.text


def test_each_pair_has_a_chapter_and_its_own_verdict(experiment: str) -> None:
    for target, wrong in (("two", range(5)), ("three", range(100, 200))):
        for seed in (0, 1):
            recorded.run(experiment, "source_only", seed, pair=("one", target), wrong=range(60))
            recorded.run(experiment, "dann", seed, pair=("one", target), wrong=wrong)
    main(["report", experiment])
    text = Page(Path("report.html")).text
    two, three = text.index("one -> two"), text.index("one -> three")
    verdicts = sorted((two, three))
    first, second = text[verdicts[0] : verdicts[1]], text[verdicts[1] :]
    of_two, of_three = (first, second) if two < three else (second, first)
    assert "chosen without target labels: dann" in of_two
    assert "chosen without target labels: source_only" in of_three


def test_what_cannot_be_reported_is_an_error(experiment: str) -> None:
    with pytest.raises(SystemExit, match="no experiment 'nowhere' in sqlite"):
        main(["report", "nowhere"])
    with pytest.raises(SystemExit, match="has no tested runs"):
        main(["report", experiment])
    recorded.run(experiment, "dann")
    Path("table.html").write_text("<table>")
    refused = {
        ".": "is a folder",
        "nowhere/report.html": "there is no folder",
        "report.csv": "does not end with .html or .htm",
        "table.html": "'table.html' is there already and holds something else",
    }
    for place, reason in refused.items():
        with pytest.raises(SystemExit, match=f"out: .*{re.escape(reason)}"):
            main(["report", experiment, "--out", place])
    Path("table.html").unlink()
    assert not list(Path().glob("*.html"))


def test_pictures_are_those_of_the_run_with_the_median_accuracy() -> None:
    from lightning_da.commands.report import _median_run

    class Data:
        def __init__(self, acc: float) -> None:
            self.data = type("Metrics", (), {"metrics": {"test/target/acc": acc}})

    found: dict[str, Run] = {"a": Data(0.9), "b": Data(0.5), "c": Data(0.7)}  # type: ignore[dict-item]
    assert _median_run(["a", "b", "c"], found) == "c"
    assert _median_run(["a", "b"], found) == "b"


def test_compare_says_that_the_data_of_a_pair_have_changed(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of other methods, seeds and pairs alone say nothing: they may have other splits."""
    for method, seed, pair, data in (
        ("source_only", 0, ("one", "two"), "old"),
        ("source_only", 1, ("one", "two"), "other split"),
        ("dann", 0, ("one", "two"), "few labels"),
        ("dann", 0, ("two", "one"), "back"),
    ):
        client().set_tag(recorded.run(experiment, method, seed, pair=pair), "data", data)
    main(["compare", "--experiment", experiment])
    assert "content of the data" not in capsys.readouterr().out
    client().set_tag(recorded.run(experiment, "source_only"), "data", "new")
    main(["compare", "--experiment", experiment])
    assert "warning: one -> two: the content of the data has changed" in capsys.readouterr().out
