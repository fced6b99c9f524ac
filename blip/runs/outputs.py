"""Outputs of a pipeline's steps in the store: files, the verb's result, and the outputs that they were made from."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field

from blip.config import Config, ConfigError, validate
from blip.digest import value_digest
from blip.launch.handover import download_folders, upload_folders
from blip.results import Result
from blip.storage import FolderStore, MissingKeyError, open_store, scratch
from blip.storage.records import parse_record

HOME = "made"
"""The folder of all outputs in the store."""
OUTPUT_RECORD = "output.json"
"""The file of an output that holds its record; it is written last."""
FOLDER = "output"
"""The name under which an output's files are uploaded."""

R = TypeVar("R", bound=Result)


class StepOutput(Config):
    """What a step made, known by its URI, which is another one for each execution of the step."""

    uri: str = ""
    inputs: dict[str, str] = Field(default_factory=dict)
    """URIs of the outputs that the step read, by role such as `data` or `init`."""
    result: dict[str, Any] = Field(default_factory=dict)
    """The dump of the verb's result."""

    @classmethod
    def publish(cls, store: str, stage: str, folder: Path, result: Result, inputs: Mapping[str, str]) -> Self:
        """Uploads the files of a folder to the store, if there are any, and last the record."""
        # unlike pydantic, json writes a number that is not finite as one
        record = json.dumps({"inputs": dict(inputs), "result": json.loads(result.model_dump_json())})
        home = open_store(store).join(HOME, stage, value_digest(record)[:16])
        upload_folders({FOLDER: folder}, home)
        home.put(OUTPUT_RECORD, record.encode())
        return cls.load(home.uri)

    @classmethod
    def load(cls, uri: str) -> Self:
        """Reads a record. Raises ConfigError if the store has no output of this URI."""
        try:
            values = parse_record(open_store(uri).get(OUTPUT_RECORD), f"{uri}/{OUTPUT_RECORD}")
        except MissingKeyError:
            raise ConfigError(
                f"{uri} is no output of a step, or was deleted: run the step that made it again (--again STEP)"
            ) from None
        return validate(cls, {**values, "uri": uri}, uri)

    def input(self, role: str) -> "StepOutput":
        """Returns the output that the step read in a role. Raises ConfigError."""
        if role not in self.inputs:
            raise ConfigError(f"{self.uri} was made without {role}; it has {', '.join(self.inputs) or 'no inputs'}")
        return StepOutput.load(self.inputs[role])

    def result_of(self, kind: type[R]) -> R:
        """Returns the result of the verb. Raises ConfigError if it is of another verb."""
        return validate(kind, self.result, f"{self.uri} is not the output of {kind.verb()}")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yields the files as a local folder: that of the store, or a temporary copy. Raises StoreError."""
        store = open_store(self.uri)
        if isinstance(store, FolderStore):
            yield store.path(f"files/{FOLDER}")
            return
        with scratch("input") as folder:
            download_folders(store, lambda _: folder)
            yield folder
