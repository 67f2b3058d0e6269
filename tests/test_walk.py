"""What a newcomer meets in the MLflow UI after a demo, in Chromium. Slow: some minutes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lightning_da.paths import PROJECT


@pytest.mark.slow
def test_a_walk_through_the_ui(tmp_path: Path) -> None:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no playwright: pip install '.[dev]'")
    if shutil.which("chromium") is None and shutil.which("google-chrome") is None:
        pytest.skip("no Chromium on the PATH; on Debian: apt-get install chromium")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, str(PROJECT / "benchmarks" / "walk.py"), "--out", str(tmp_path), "--steps", "40"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("runs.png", "charts.png", "run.png", "model.png", "report.png"):
        picture = Image.open(tmp_path / name)
        assert len(picture.convert("RGB").getcolors(2**24) or ()) > 20, name
        assert (tmp_path / name).stat().st_size < 200_000, name
        assert (PROJECT / "docs" / name).exists(), name
