"""Checkpoints of a run: written atomically, verified before use, independent of the number of processes."""

import json
import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip.config import Config, ConfigError
from blip.digest import file_digest, value_digest
from blip.distributed import all_gather_objects, barrier, is_main, local_rank, rank
from blip.storage import MissingKeyError, Store, scratch, writing
from blip.storage.store import OLD_SECONDS
from blip.training.engine import Engine

log = logging.getLogger(__name__)

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
MANIFEST = re.compile(r"step-\d{8,}\.json")


class CheckpointConfig(Config):
    every: int = Field(default=1000, ge=1)
    """Optimizer steps between two checkpoints."""
    minutes: float = Field(default=10.0, gt=0)
    """Maximum time between two checkpoints, in minutes; a preempted pod has no time to save another."""
    keep: int = Field(default=3, ge=1)
    """Number of newest checkpoints to keep."""


class Part(Config):
    key: str
    sha256: str
    bytes: int


class CheckpointManifest(Config):
    """The object `step-N.json`, which names the parts of a checkpoint; a checkpoint without it is incomplete."""

    step: int
    identity: dict[str, Any]
    """Values that must be equal for a run to resume from the checkpoint: seed, data, global batch."""
    parts: dict[str, Part]
    revision: str = ""
    """Code revision that saved the checkpoint; informative only, not part of the identity."""
    digest: str = ""
    """Digest of all fields above."""

    @property
    def own_digest(self) -> str:
        return value_digest(self.model_dump(exclude={"digest"}))

    def with_digest(self) -> Self:
        """Returns a copy with its digest set."""
        return self.model_copy(update={"digest": self.own_digest})


@dataclass
class Checkpoint:
    """A loaded checkpoint: its step, and its tensors in the form that `Engine` takes."""

    step: int
    state: dict[str, Tensor]
    revision: str = ""
    """Code revision that saved the checkpoint."""


class Checkpoints:
    """The checkpoints of one run in a store.

    Two process groups may write checkpoints of the same run; neither removes objects that the other needs.
    """

    def __init__(self, store: Store, cfg: CheckpointConfig, identity: Mapping[str, Any], revision: str = ""):
        self.store, self.cfg, self.identity, self.revision = (
            store,
            cfg,
            json.loads(json.dumps(dict(identity))),
            revision,
        )
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.saved = -1

    def save(self, engine: Engine, if_finite: bool = False) -> None:
        """Copies the state synchronously and publishes it in the background; collective.

        A step is saved once. At most one save is in flight: a second call waits for the first and raises its error.
        With `if_finite`, a state with non-finite values is not saved.
        """
        if self.saved == engine.step:
            return
        self.saved = engine.step
        state = engine.state(keep=is_main())
        self.wait()
        if is_main() and not (if_finite and not all(tensor.isfinite().all() for tensor in state.values())):
            self.pending = self.thread.submit(self.publish, engine.step, state)

    def wait(self) -> None:
        """Waits until the save in flight is published. Raises its error if it failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def publish(self, step: int, state: dict[str, Tensor]) -> None:
        """Writes the parts, then the manifest that completes the checkpoint, then removes old checkpoints."""
        files: dict[str, dict[str, Tensor]] = {MODEL: {}, OPTIMIZER: {}}
        for name, tensor in state.items():
            files[MODEL if name.startswith("model/") else OPTIMIZER][name] = tensor
        parts = {}
        with scratch("checkpoint") as folder:
            for name, tensors in files.items():
                path = folder / name
                with writing(path, "free some space, or let TMPDIR name another place"):
                    save_file(tensors, path)
                # a unique key per attempt, so that no object is ever overwritten
                key = f"step-{step:08d}/{uuid.uuid4().hex[:8]}/{name}"
                self.store.put_file(key, path)
                parts[name] = Part(key=key, sha256=file_digest(path), bytes=path.stat().st_size)
        published = CheckpointManifest(
            step=step, identity=self.identity, parts=parts, revision=self.revision
        ).with_digest()
        self.store.put(manifest_key(step), published.model_dump_json(indent=1).encode())
        self.prune(step)

    def prune(self, step: int) -> None:
        """Removes all but the newest `keep` checkpoints up to `step`.

        Checkpoints above `step` stay: they are incomplete or belong to another process group. Parts without a manifest
        are removed only after OLD_SECONDS, since another process group may not have published their manifest yet.
        """
        ages = self.store.ages("step-")
        published = manifests(ages)
        done = [key for key in published if step_of(key) <= step]
        old = done[: -self.cfg.keep]
        for key in old:  # the manifest first, so that no manifest names a missing part
            named = self.parts_of(key)
            self.store.delete(key)
            for part in named:
                self.store.delete(part)
        named = {part for key in published if key not in old for part in self.parts_of(key)}
        for key, age in ages.items():
            if "/" in key and key not in named and age > OLD_SECONDS:
                self.store.delete(key)
        self.store.sweep()

    def parts_of(self, key: str) -> list[str]:
        """Returns the keys of a manifest's parts; an empty list if the manifest cannot be read."""
        try:
            return [part.key for part in self.read(key).parts.values()]
        except (MissingKeyError, BrokenCheckpointError):
            return []

    def newest(self) -> Checkpoint | None:
        """Returns the newest valid checkpoint, or None if there is none; collective.

        Skips incomplete and corrupt checkpoints with a warning. Raises ConfigError if the checkpoint belongs to another
        run, and StoreError if the store cannot be reached, rather than training from scratch.
        """
        with scratch("resume") as own:
            published = all_gather_objects(self.find_newest(own) if is_main() else None)[0]
            if published is None:
                return None
            self.check_identity(published)
            if local_rank() == 0 and not is_main():
                self.fetch(published, own)
            # one copy per machine; the gather is also a barrier before the read
            folder = all_gather_objects(str(own))[rank() - local_rank()]
            state = {}
            for name, part in published.parts.items():
                state |= load_file(self.store.path(part.key) or Path(folder, name))
            barrier()
        return Checkpoint(published.step, state, published.revision)

    def find_newest(self, folder: Path) -> CheckpointManifest | None:
        """Returns the manifest of the newest valid checkpoint and fetches its parts to the folder."""
        for key in reversed(manifests(self.store.list("step-"))):
            try:
                published = self.read(key)
                self.fetch(published, folder)
                return published
            except (MissingKeyError, BrokenCheckpointError) as e:
                log.warning("skipped checkpoint %s/%s: %s", self.store.uri, key, e)
        return None

    def read(self, key: str) -> CheckpointManifest:
        """Reads and verifies a manifest. Raises BrokenCheckpointError, with a one-line message, if it is invalid."""
        try:
            published = CheckpointManifest.model_validate_json(self.store.get(key))
        except ValidationError as e:
            error = e.errors()[0]
            where = ".".join(map(str, error["loc"]))
            raise BrokenCheckpointError(f"{where}: {error['msg']}" if where else error["msg"]) from None
        if published.digest != published.own_digest:
            raise BrokenCheckpointError("its content does not match its digest")
        if manifest_key(published.step) != key:
            raise BrokenCheckpointError(f"its content is of step {published.step}")
        if published.parts.keys() != {MODEL, OPTIMIZER}:
            raise BrokenCheckpointError(f"it names the parts {sorted(published.parts)}, not {MODEL} and {OPTIMIZER}")
        return published

    def fetch(self, published: CheckpointManifest, folder: Path) -> None:
        """Fetches the parts to the folder, unless the store has them as local files.

        Raises BrokenCheckpointError if a digest differs, MissingKeyError if a part is missing.
        """
        for name, part in published.parts.items():
            path = self.store.path(part.key)
            if path is None:
                path = folder / name
                with writing(path, "free some space, or let TMPDIR name another place"):
                    self.store.fetch(part.key, path)
            elif not path.is_file():
                raise MissingKeyError(f"{path} does not exist")
            if file_digest(path) != part.sha256:
                raise BrokenCheckpointError(f"{self.store.uri}/{part.key} does not match its SHA-256 {part.sha256}")

    def check_identity(self, published: CheckpointManifest) -> None:
        for name in sorted(self.identity.keys() | published.identity.keys()):
            old, new = published.identity.get(name), self.identity.get(name)
            if old != new:
                raise ConfigError(
                    f"the checkpoint of step {published.step} in {self.store.uri} was made with {name} = {old!r}, "
                    f"this run has {new!r}: "
                    "it would be another run; restore the old value, or choose another folder"
                )


class BrokenCheckpointError(ValueError):
    """A manifest or part of a checkpoint whose content is not what was saved."""


def manifests(keys: Iterable[str]) -> list[str]:
    """Returns the manifest keys among `keys`, oldest first."""
    return sorted((key for key in keys if MANIFEST.fullmatch(key)), key=step_of)


def manifest_key(step: int) -> str:
    return f"step-{step:08d}.json"


def step_of(key: str) -> int:
    """Returns the step in the name of a manifest."""
    return int(key.removeprefix("step-").removesuffix(".json"))
