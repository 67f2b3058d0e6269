import re
import sys
from pathlib import Path

import pytest

from lightning_da.main import main
from lightning_da.paths import PROJECT

MODULE = PROJECT / "lightning_da" / "data" / "template.py"
CONFIG = PROJECT / "conf" / "data" / "template.yaml"


@pytest.mark.slow
def test_a_new_task_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy both files, change what is marked, fit: as the README says."""
    source = MODULE.read_text().replace("class Template", "class MyTask").replace("morning", "monday")
    (tmp_path / "my_task.py").write_text(source)
    config = CONFIG.read_text().replace("lightning_da.data.template.Template", "my_task.MyTask")
    (tmp_path / "my_task.yaml").write_text(config.replace("morning", "monday"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    methods = PROJECT / "conf" / "method"
    table = main(
        [
            *("sweep", "--config", "my_task.yaml", "--methods", "source_only", "dann", "target_only"),
            *("--trainer.logger.init_args.experiment_name", "my task", "--trainer.enable_progress_bar", "false"),
        ]
    ).set_index("method")
    assert (methods / "dann.yaml").exists()
    assert table.loc["source_only", "pair"] == "monday -> evening"
    assert table.loc["target_only", "target acc"] > table.loc["source_only", "target acc"]


def test_the_template_is_short_and_its_places_are_marked() -> None:
    assert len(MODULE.read_text().splitlines()) <= 45
    assert len(re.findall("EDIT", MODULE.read_text())) >= 4
    assert len(re.findall("EDIT", CONFIG.read_text())) >= 4
