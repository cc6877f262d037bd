"""MLflow: a run per training, in a local folder or on the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mmbench.runs.trackers.base import Sink, Tracked

EXPERIMENT = "mmbench"
_TAG = "mmbench.run"
_LONGEST = 500  # characters of a parameter's value that every server takes


class MLflow(Sink):
    """Parameters, metrics by epoch, and the final ones; trials have their run's name as a tag."""

    library = "mlflow"

    def __init__(self, run: Tracked, place: str) -> None:
        # A server that is away costs a training seconds, not minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=place or None)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        where = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        same = self._client.search_runs([where], f"tags.`{_TAG}` = '{run.name}'", max_results=1)
        if same:
            self._id = same[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {_TAG: run.name, f"{_TAG}.group": run.group}
        self._id = self._client.create_run(where, tags=tags, run_name=run.name).info.run_id
        for name, value in run.parameters.items():
            self._client.log_param(self._id, name, str(value)[:_LONGEST])

    @classmethod
    def where(cls, place: str) -> str:
        """See `Sink.where`."""
        uri = place or os.environ.get("MLFLOW_TRACKING_URI", "")
        return f"mlflow, experiment {EXPERIMENT}, {uri or 'in its default store'}"

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """See `Sink.log`."""
        for name, value in values.items():  # no @ in the name of a metric
            self._client.log_metric(self._id, name.replace("@", "_at_"), value, step=epoch)

    final = log

    def close(self) -> None:
        """See `Sink.close`."""
        self._client.set_terminated(self._id)
