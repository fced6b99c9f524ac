"""The records of a run that wait to be written to MLflow."""

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from blip.redaction import redact
from blip.tracking.retries import LOCAL_FAULTS, is_transient_status
from blip.tracking.run import DataInput
from blip.tracking.server import TrackingError, mlflow_client

MAX_BATCH = 100
"""Number of parameters or tags that MLflow accepts in one request."""
MAX_DATASET_DIGEST = 36
"""Characters of a dataset's digest that MLflow accepts."""
BATCHED = {"metrics", "params", "tags"}
"""The kinds of records that one request can hold together."""

Entry = tuple[str, tuple[Any, ...]]
"""The kind of a record and its values."""


class Outbox:
    """A queue of records, written in order and in batches; other threads may append while one thread flushes."""

    def __init__(self, uri: str):
        self.uri = uri
        self.pending: deque[Entry] = deque()
        self.known_params: dict[str, str] = {}
        """Parameters that the run has."""
        self.refused: TrackingError | None = None
        """The first refusal by MLflow."""

    def put(self, entries: Iterable[Entry]) -> None:
        self.pending.extend(entries)

    def flush(self, run_id: str) -> None:
        """Writes the pending records; a record that MLflow refuses is dropped and noted in `refused`.

        Raises MLflow's exception if it is unavailable; the records that were not written stay pending.
        """
        from mlflow import MlflowException

        while self.pending:
            batch = self.take()
            try:
                self.send(run_id, batch)
            except MlflowException as error:
                if is_transient_status(error.get_http_status_code()):
                    self.pending.extendleft(reversed(batch))
                    raise
                if len(batch) > 1:
                    self.send_one_by_one(run_id, batch)
                else:
                    self.refuse(batch[0], error)
            except LOCAL_FAULTS as error:
                self.refuse(batch[0], error)
            except BaseException:
                self.pending.extendleft(reversed(batch))
                raise

    def take(self) -> list[Entry]:
        """Removes and returns the records of the next request."""
        batch = [self.pending.popleft()]
        while self.pending and len(batch) < MAX_BATCH and {batch[0][0], self.pending[0][0]} <= BATCHED:
            batch.append(self.pending.popleft())
        return batch

    def send_one_by_one(self, run_id: str, batch: list[Entry]) -> None:
        """Writes a batch of which MLflow refused a part."""
        rest, self.pending = self.pending, deque()
        try:
            for entry in batch:
                self.pending.append(entry)
                self.flush(run_id)
        finally:
            self.pending.extend(rest)

    def refuse(self, entry: Entry, error: Exception) -> None:
        kind, values = entry
        if not self.refused:
            self.refused = TrackingError(f"MLflow at {self.uri} refuses a record ({kind} {values[0]!r}): {error}")

    def send(self, run_id: str, batch: list[Entry]) -> None:
        mlflow = mlflow_client(self.uri)
        kind, values = batch[0]
        match kind:
            case "inputs":
                mlflow.log_inputs(run_id, [dataset_input(DataInput(*values))])
            case "artifact":
                mlflow.log_artifact(run_id, values[0], values[1] or None)
            case "artifacts":
                mlflow.log_artifacts(run_id, values[0], values[1] or None)
            case _:
                self.send_values(run_id, batch)

    def send_values(self, run_id: str, batch: list[Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*values) for kind, values in batch if kind == "metrics"]
        tags = [RunTag(*values) for kind, values in batch if kind == "tags"]
        params = []
        for name, value in (values for kind, values in batch if kind == "params"):
            if self.known_params.setdefault(name, value) == value:
                params.append(Param(name, value))
            else:  # MLflow's parameters are write-once, but a resumed run may have another value
                tags.append(RunTag(f"changed.{name}", value))
        mlflow_client(self.uri).log_batch(run_id, metrics, params, tags)


def dataset_input(data: DataInput) -> Any:
    """Returns a dataset as an entity of MLflow."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    kind = "s3" if data.source.startswith("s3://") else "local"
    source = json.dumps({"uri": redact(data.source)})
    profile = json.dumps({"samples": data.samples, "sha256": data.digest})
    dataset = Dataset(data.name, data.digest[:MAX_DATASET_DIGEST], kind, source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])
