"""What the MLflow page of an experiment shows: its description, columns and charts."""

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Experiment

from lightning_da.store import client, tracking_uri

PRIMARY_METRIC = "test/target/acc"
GAP_CLOSED = "gap_closed"
"""Metric of a run that was compared with its bounds."""
VERDICT, PAIR = "verdict", "pair"
"""Tags of a run: what the choice without target labels says of it, and its domains."""
VIEW = "lightning_da"
"""Key of the view in the address."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = {
    "attributes.`Run Name`": 245,
    "params.`method`": 100,
    "params.`seed`": 50,
    f"tags.`{PAIR}`": 150,
    f"metrics.`{PRIMARY_METRIC}`": 110,
    "metrics.`test/target/class_acc`": 145,
    f"metrics.`{GAP_CLOSED}`": 95,
    f"tags.`{VERDICT}`": 110,
    "metrics.`test/target/h_score`": 145,
    "metrics.`test/target/dice`": 125,
    "metrics.`test/target/rmse`": 125,
    "metrics.`test/target/r2`": 105,
}
"""The columns of the table, and their widths in pixels; the page leaves out metrics that no run has."""
CHARTS = {
    "Results on the test splits": ("BAR", (PRIMARY_METRIC, "test/target/class_acc", "test/source/acc", GAP_CLOSED)),
    "Over depth (step = layer)": (
        "LINE",
        ("depth/a_distance", "depth/mmd", "depth/coral", "depth/probe_target", "depth/probe_source"),
    ),
    "Over training": (
        "LINE",
        ("train/task_loss", "train/domain_loss", "val/source/acc", "val/target/acc", "score/neighbours"),
    ),
}
"""The sections of the chart view that come first: kind and metrics of their charts."""
SHOWN = 20
"""Runs in a chart: the best ones, in the order of the table."""
DESCRIPTION = """\
Each run is one training of one method with one seed. The best accuracy on the target's test split comes first.

| column | meaning |
|---|---|
| `test/target/acc` | accuracy on the target's test split: the figure to compare |
| `test/target/class_acc` | the same as a mean over the classes, which all count equally |
| `gap_closed` | 0 = as good as `source_only`, 1 = as good as `target_only`; written by `lightning-da sweep` |
| `verdict` | what a choice without target labels says, of all methods of the sweep |
| `test/target/h_score` | with classes that the source lacks: high if known and unknown samples are told apart |
| `test/target/dice` | if the labels are masks: Dice, the mean over the classes without the background |
| `test/target/rmse` | if the labels are numbers: the error; `test/target/r2` is the explained share of the variance |

Compare a method with `source_only` over two seeds or more: a method that is not better does not transfer. The icon with
the curve above the table opens the charts. A run has its confusion matrices, embeddings and curves under *Artifacts*.
One page to send to somebody: `lightning-da report EXPERIMENT`. Close the panel *Assistant*: it covers columns.
"""


def view_url(experiment: Experiment, port: int = 5000) -> str:
    """Address of the runs of an experiment, in the prepared view if the experiment has it.

    Args:
        experiment: The experiment.
        port: Port of the UI on this machine; of no effect if the store is a server, which has its own UI.
    """
    server = tracking_uri().rstrip("/") if tracking_uri().startswith("http") else f"http://127.0.0.1:{port}"
    view = f"?viewStateShareKey={VIEW}&workflowType=machine_learning" if VIEW_TAG in experiment.tags else ""
    return f"{server}/#/experiments/{experiment.experiment_id}/runs{view}"


def prepare_experiment(experiment: Experiment) -> None:
    """Gives an experiment its kind, primary metric, description and view; each is left as it is where there is one."""
    tags = {
        "mlflow.experimentKind": "custom_model_development",  # otherwise the page is that of language models
        "mlflow.experiment.primaryMetric.name": PRIMARY_METRIC,
        "mlflow.note.content": DESCRIPTION,
        VIEW_TAG: _saved_view("Results"),
    }
    for key, value in tags.items():
        if key not in experiment.tags:
            client().set_experiment_tag(experiment.experiment_id, key, value)


def _saved_view(name: str) -> str:
    """The view as an entry of the menu "Views" of MLflow, in the format that its page writes."""
    state = {
        "orderByKey": f"metrics.`{PRIMARY_METRIC}`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS)[1:],  # the name is always shown
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runsHiddenMode": f"FIRST_{SHOWN}_RUNS",
        "isAccordionReordered": True,
        **_charts(CHARTS),
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(1000 * time.time())
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": packed})


def _charts(wanted: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, list[dict[str, Any]]]:
    """Charts and sections of the chart view. The page adds the other metrics below them."""
    sections = [{"uuid": name, "name": name, "display": True, "isReordered": True, "columns": 2} for name in wanted]
    charts = [
        {"uuid": metric, "type": kind, "metricSectionId": name, "metricKey": metric, "displayName": metric}
        | {"runsCountToCompare": SHOWN, "deleted": False, "isGenerated": False}
        | {"xAxisKey": "step", "lineSmoothness": 0, "useGlobalLineSmoothing": False, "displayPoints": True}
        for name, (kind, metrics) in wanted.items()
        for metric in metrics
    ]
    return {"compareRunCharts": charts, "compareRunSections": sections}
