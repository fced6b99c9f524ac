"""Checkpoints that any number of processes can go on from: published last, found newest first, verified before use."""

import hashlib
import json
import logging
import tempfile
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip.config import Config, ConfigError
from blip.distributed import barrier, gather_objects, is_main, local_rank, rank
from blip.storage import MissingKeyError, Store
from blip.training.engine import Engine

log = logging.getLogger(__name__)

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


class CheckpointConfig(Config):
    every: int = Field(default=1000, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=3, ge=1)
    """The newest checkpoints that stay."""


class Part(Config):
    key: str
    sha256: str
    bytes: int


class Published(Config):
    """What makes a checkpoint one: an object `step-N.json` that names its parts."""

    step: int
    identity: dict[str, Any]
    """What must be the same for the run to go on as if it had never stopped: seed, data, global batch."""
    parts: dict[str, Part]


@dataclass
class Checkpoint:
    """A state read back: of which step, and its tensors as `Engine` takes them."""

    step: int
    state: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one run in a store; one process group writes them."""

    def __init__(self, store: Store, cfg: CheckpointConfig, identity: Mapping[str, Any]):
        self.store, self.cfg, self.identity = store, cfg, json.loads(json.dumps(dict(identity)))
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.saved = -1

    def save(self, engine: Engine, if_finite: bool = False) -> None:
        """Copies the state, which training waits for, and publishes it in the background; collective. A step is saved once.

        One save is in flight: a second waits for the first, and raises what made that fail. A state that is not finite can be left out.
        """
        if self.saved == engine.step:
            return
        self.saved = engine.step
        state = engine.state(keep=is_main())
        self.wait()
        if is_main() and not (if_finite and not all(tensor.isfinite().all() for tensor in state.values())):
            self.pending = self.thread.submit(self.publish, engine.step, state)

    def wait(self) -> None:
        """Waits until what was saved is published. Raises what made it fail."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def publish(self, step: int, state: dict[str, Tensor]) -> None:
        """Writes the parts aside, then the object that makes them a checkpoint, then removes what is too old."""
        files: dict[str, dict[str, Tensor]] = {MODEL: {}, OPTIMIZER: {}}
        for name, tensor in state.items():
            files[MODEL if name.startswith("model/") else OPTIMIZER][name] = tensor
        parts = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, tensors in files.items():
                path = Path(folder, name)
                save_file(tensors, path)
                key = f"step-{step:08d}/{uuid.uuid4().hex[:8]}/{name}"  # an attempt of its own: nothing is ever overwritten
                self.store.put_file(key, path)
                parts[name] = Part(key=key, sha256=digest(path), bytes=path.stat().st_size)
        published = Published(step=step, identity=self.identity, parts=parts)
        self.store.put(f"step-{step:08d}.json", published.model_dump_json(indent=1).encode())
        self.prune()

    def prune(self) -> None:
        """Leaves the newest checkpoints and their parts alone; what an interrupted write left goes, too."""
        keys = self.store.list("step-")
        kept = {key.removesuffix(".json") for key in manifests(keys)[-self.cfg.keep :]}
        for key in manifests(keys) + [key for key in keys if "/" in key]:  # first the manifests, so that none names what is gone
            if key.partition("/")[0].removesuffix(".json") not in kept:
                self.store.delete(key)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; collective. Raises ConfigError where it belongs to another run.

        Torn and altered ones are passed over with a warning. A store that cannot be reached raises StoreError: to start from nothing
        then would be worse.
        """
        with tempfile.TemporaryDirectory() as own:
            published = gather_objects(self.choose(Path(own)) if is_main() else None)[0]
            if published is None:
                return None
            self.check(published)
            if local_rank() == 0 and not is_main():
                self.fetch(published, Path(own))
            folder = gather_objects(own)[rank() - local_rank()]  # one copy for a machine; and nobody reads before it is there
            state = {}
            for name, part in published.parts.items():
                state |= load_file(self.store.path(part.key) or Path(folder, name))
            barrier()
        return Checkpoint(published.step, state)

    def choose(self, folder: Path) -> Published | None:
        """The newest checkpoint that is whole, its parts in the folder."""
        for key in reversed(manifests(self.store.list("step-"))):
            try:
                published = Published.model_validate_json(self.store.get(key))
                self.fetch(published, folder)
                return published
            except (MissingKeyError, ValidationError, BrokenCheckpointError) as e:
                log.warning("checkpoint %s/%s is passed over: %s", self.store.uri, key, e)
        return None

    def fetch(self, published: Published, folder: Path) -> None:
        """Brings the parts to the folder, unless they are local files anyway. Raises BrokenCheckpointError where a digest is another."""
        for name, part in published.parts.items():
            path = self.store.path(part.key)
            if path is None:
                self.store.fetch(part.key, path := folder / name)
            elif not path.is_file():
                raise MissingKeyError(f"{path} does not exist")
            if digest(path) != part.sha256:
                raise BrokenCheckpointError(f"{self.store.uri}/{part.key} is not what was written: its SHA-256 is not {part.sha256}")

    def check(self, published: Published) -> None:
        for name in sorted(self.identity.keys() | published.identity.keys()):
            old, new = published.identity.get(name), self.identity.get(name)
            if old != new:
                raise ConfigError(
                    f"the checkpoint of step {published.step} in {self.store.uri} was made with {name} = {old!r}, this run has {new!r}: "
                    "it would not be the same run; go back to the old value, or choose another folder"
                )


class BrokenCheckpointError(ValueError):
    """A part of a checkpoint that is not what was written."""


def manifests(keys: list[str]) -> list[str]:
    """The keys that make checkpoints, oldest first."""
    return sorted(key for key in keys if key.endswith(".json") and "/" not in key)


def digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
