"""A walk through the MLflow UI in headless Chromium, as a newcomer takes it; its pictures are in the documentation.

    python benchmarks/walk.py --out docs [--steps 600] [--store FOLDER]

Runs the command of `make demo`, starts that of `make ui` on a free port, opens the address that both
print, and looks for what docs/reading.md says: the experiment, the columns and their values, four runs compared, the
charts over depth, the pictures of a run, a registered model, and the page of `lightning-da report`. Data sets are
looked for if the store has them. Ends with an error if something is not there. Needs the package playwright of the
extra `dev`, and Chromium on the PATH (Debian: `apt-get install chromium`).
"""

import argparse
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
EXPERIMENT = "lightning_da"
PATIENCE = 60_000
"""Milliseconds for which an element of a page is waited for."""
METHODS = ("source_only", "dan", "deep_coral", "dann", "adda", "target_only")
COMPARED = ("source_only", "dan", "dann", "target_only")
COLUMNS = ("method", "seed", "pair", "test/target/acc", "test/target/class_acc", "gap_closed", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the demo (default: %(default)s)")
    parser.add_argument(
        "--store", type=Path, help="folder of the runs, which are kept there (default: a temporary one)"
    )
    given = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("no Chromium on the PATH; on Debian: apt-get install chromium")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() if given.store is None else nullcontext(given.store.resolve()) as folder:
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        said = output(*command("demo"), "--trainer.max_steps", str(given.steps))
        (sweep,) = (run for run in MlflowClient().search_runs(["1"]) if "grid" in run.data.tags)
        program = (sys.executable, "-m", "lightning_da")
        output(*program, "register", str(sweep.info.run_id), "--alias", "champion")
        report = Path(folder) / "report.html"
        output(*program, "report", EXPERIMENT, "--out", str(report))
        with ui(folder) as addresses, sync_playwright() as playwright:
            after_port = addresses[EXPERIMENT].partition("/#")[2]
            assert f"/#{after_port}" in said, "sweep and ui print different addresses"
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            page.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            ((server, number),) = re.findall(r"^(.*)/#/experiments/(\d+)/", addresses[EXPERIMENT])
            list_experiments(page, server)
            list_runs(page, addresses[EXPERIMENT], given.out)
            look_at_charts(page, addresses[EXPERIMENT], given.out)
            look_at_run(page, f"{server}/#/experiments/{number}", given.out)
            look_at_models(page, server, given.out)
            read_report(page, report, given.out)
            browser.close()


def command(target: str) -> list[str]:
    """What `make` runs for a target, with this Python."""
    make = ("make", "--dry-run", "--no-print-directory", "--old-file", ".venv/installed")
    return shlex.split(output(*make, f"PY={shlex.quote(sys.executable)}", target))


def output(*words: str) -> str:
    """What a command prints, in the folder of the project."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=PROJECT).stdout


@contextmanager
def ui(folder: str) -> Iterator[dict[str, str]]:
    """The addresses of the experiments that `make ui` prints, while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    log = Path(folder) / "ui.log"
    with log.open("w") as place:
        words = [*command("ui"), "--port", str(port)]
        server = subprocess.Popen(words, stdout=place, stderr=place, cwd=PROJECT, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"the UI ended:\n{log.read_text()}") from None
                time.sleep(1)
        yield dict(re.findall(r"^  (\S+): (http\S+)$", log.read_text(), re.MULTILINE))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def list_experiments(page: Page, server: str) -> None:
    page.goto(f"{server}/#/experiments")
    page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').click()
    page.get_by_role("radio", name="Model training").or_(page.get_by_text("Model training")).first.click()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=EXPERIMENT, exact=True))
    expect(row).to_contain_text("Each run is one training")


def list_runs(page: Page, address: str, out: Path) -> None:
    """The columns of the view have values, the best run comes first; four runs are compared."""
    page.goto(address)
    for column in COLUMNS:
        expect(page.get_by_test_id(f"sort-header-{column}")).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("-typeset-handwritten-s"))).to_have_count(len(METHODS))
    accuracies = [float(text) for text in cells(page, "metrics.`test/target/acc`") if text != "-"]
    assert len(accuracies) == len(METHODS), accuracies
    assert accuracies == sorted(accuracies, reverse=True), accuracies
    assert set(cells(page, "params.`method`")) == {*METHODS, "sweep"}
    assert set(cells(page, "tags.`pair`")) == {"typeset -> handwritten"}
    assert "chosen" in cells(page, "tags.`verdict`")
    assert "1" in cells(page, "metrics.`gap_closed`")
    page.locator('[data-component-id="mlflow.experiment.metadata_editor.expand_button"]').click()
    expect(page.get_by_text("Compare a method with")).to_be_visible()
    take(page, out / "runs.png")
    for method in COMPARED:
        name = f"{method}-typeset-handwritten-s0"
        run = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        run.locator(".ag-selection-checkbox input").check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Comparing 4 Runs")).to_be_visible()
    for method in COMPARED:
        expect(page.get_by_text(f"{method}-typeset-handwritten-s0").first).to_be_attached()


def look_at_charts(page: Page, address: str, out: Path) -> None:
    page.goto(f"{address}&compareRunsMode=CHART")
    for metric in ("test/target/acc", "gap_closed"):
        expect(page.get_by_text(metric, exact=True).first).to_be_visible()
    page.mouse.move(1000, 600)
    depth = page.get_by_text("depth/a_distance", exact=True).first
    for _ in range(20):  # a section is drawn when it comes into sight
        if depth.is_visible():
            break
        page.mouse.wheel(0, 300)
        page.wait_for_timeout(1000)
    depth.evaluate("title => title.scrollIntoView()")
    page.mouse.wheel(0, -150)  # from below the search field
    expect(page.get_by_text("depth/mmd", exact=True).first).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer .trace").first).to_be_attached()
    take(page, out / "charts.png")


def look_at_run(page: Page, experiment: str, out: Path) -> None:
    """A run has its data sets, pictures and curves."""
    number = experiment.rpartition("/")[2]
    run_id = next(run.info.run_id for run in MlflowClient().search_runs([number], "params.method = 'dann'"))
    page.goto(f"{experiment}/runs/{run_id}?workflowType=machine_learning")
    expect(page.get_by_role("heading", name=re.compile("dann-typeset-handwritten"))).to_be_visible()
    inputs = MlflowClient().get_run(run_id).inputs
    for used in inputs.dataset_inputs if inputs else ():
        expect(page.get_by_text(used.dataset.name).first).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("confusion.png", exact=True).click()
    loaded(page.locator('img[alt="confusion.png"]'))
    page.get_by_text("curve", exact=True).click()
    page.get_by_text("curve.html", exact=True).click()
    curve = page.frame_locator("iframe").locator("svg")
    expect(curve).to_be_visible()
    expect(curve.locator("use > title").first).to_have_text(re.compile("untrained, conv1: "))
    page.get_by_text(re.compile("^Path: file:")).evaluate("path => path.remove()")  # of the temporary store
    take(page, out / "run.png")


def look_at_models(page: Page, server: str, out: Path) -> None:
    """Registered models with their aliases."""
    models = MlflowClient().search_registered_models()
    assert models, "no model is registered"
    for model in models:
        page.goto(f"{server}/#/models/{model.name}?workflowType=machine_learning")
        expect(page.get_by_role("heading", name=model.name)).to_be_visible()
        for alias in model.aliases:
            expect(page.get_by_text(alias).first).to_be_visible()
        take(page, out / "model.png")


def read_report(page: Page, report: Path, out: Path) -> None:
    """Opens the page of `report` on a screen, a phone and paper, without a network."""
    page.context.set_offline(True)
    page.set_viewport_size({"width": 1100, "height": 1000})
    page.goto(report.as_uri())
    expect(page.get_by_role("row").filter(has_text="dann")).not_to_have_count(0)
    for place in ("Over the depth of the network", "Over training", "Settings that differ"):
        expect(page.get_by_role("heading", name=place)).to_be_attached()
    for picture in page.locator("img").all():
        loaded(picture)
    page.evaluate("scrollTo(0, 0)")
    take(page, out / "report.png")
    page.set_viewport_size({"width": 390, "height": 844})
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, f"the report is {width} pixels wide on a phone"
    assert page.pdf(format="A4").startswith(b"%PDF")


def cells(page: Page, column: str) -> list[str]:
    """The texts of a column of the table of runs."""
    return page.locator(f'[role=gridcell][col-id="{column}"]').all_inner_texts()


def loaded(picture: Locator) -> None:
    """Waits until an image is there."""
    picture.scroll_into_view_if_needed()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 100


def take(page: Page, path: Path) -> None:
    """Writes what is seen, in 256 colours, so that the file is small."""
    page.wait_for_timeout(1500)  # animations
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
