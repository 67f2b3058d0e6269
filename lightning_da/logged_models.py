"""The models of runs in the MLflow store: one for each fit."""

import re
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run

DATA_CONTEXT = "mlflow.data.context"
"""MLflow's tag of a data set of a run, for example `target/test`."""
LINKED = ("train/", "val/", "test/", "score/")
"""Prefixes of the metrics of a run that are shown with its model."""
METRICS_AT_ONCE = 1000
"""MLflow takes no more in one call."""
VERSIONS = "mlflow.modelVersions"
"""MLflow's tag of a model that is registered."""


def models_of(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The models of a run, the latest first."""
    wanted = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], wanted)
    return sorted(found, key=lambda model: model.creation_timestamp, reverse=True)


def send_model(client: MlflowClient, run_id: str, folder: str, step: int, kind: str, tags: Mapping[str, str]) -> None:
    """Logs the model of a run, which replaces an earlier one; an earlier one that is registered stays.

    Sent again after a fault, it leaves one model, which is whole.

    Args:
        client: A client of the store.
        run_id: The run.
        folder: The folder of the model, as MLflow saves one.
        step: The training step of its weights.
        kind: MLflow's type of model, for example `classifier`.
        tags: Tags of the model.
    """
    run = client.get_run(run_id)
    earlier = models_of(client, run)
    name = re.sub(r"[/:.%\"']", "_", str(run.info.run_name))
    wanted = ("method", "source", "target", "backbone", "seed")
    params = {key: run.data.params[key] for key in wanted if key in run.data.params}
    made = client.create_logged_model(run.info.experiment_id, name, run_id, dict(tags), params, kind)
    client.log_model_artifacts(made.model_id, folder)
    client.finalize_logged_model(made.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
    for model in earlier:
        if VERSIONS not in model.tags:
            client.delete_logged_model(model.model_id)
    link_metrics(client, run_id)


def link_metrics(client: MlflowClient, run_id: str) -> None:
    """Shows the latest metrics of a run with its model, those of a domain with the data set of that domain."""
    run = client.get_run(run_id)
    models = models_of(client, run)
    if not models:
        return
    sets = {
        context: found.dataset
        for found in (run.inputs.dataset_inputs if run.inputs is not None else ())
        for tag in found.tags
        if tag.key == DATA_CONTEXT
        for context in tag.value.split(", ")
    }
    links: list[Metric] = []
    for metric in run.data.to_proto().metrics:  # with time and step, so that the run gets no second point
        if metric.key.startswith(LINKED):
            part, domain = (*metric.key.split("/"), "")[:2]
            data: Any = sets.get(f"{domain}/{part}")
            dataset = {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
            point = (metric.key, metric.value, metric.timestamp, metric.step)
            links.append(Metric(*point, model_id=models[0].model_id, **dataset))
    for start in range(0, len(links), METRICS_AT_ONCE):
        client.log_batch(run_id, links[start : start + METRICS_AT_ONCE], synchronous=True)
