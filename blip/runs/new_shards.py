"""Find new shards: web tars that no finished run of a model was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip.config import ConfigError
from blip.launch.claim import claim
from blip.logs import log
from blip.runs.context import RunContext
from blip.runs.data_config import IngestConfig, Tars
from blip.runs.ingest import scan_cache
from blip.shards.manifest import Manifest
from blip.storage import Store, open_store

LISTED_SHARDS = 20
"""The number of shards that the page lists."""


@dataclass(frozen=True)
class NewShards:
    """Web shards that no finished run was trained on."""

    manifest: str
    """The URI of their manifest; empty if there are none."""
    shards: int
    text: str
    """What was found, in one sentence."""
    listed: tuple[str, ...] = ()
    """The first of them with their sizes."""


def find_new_shards(context: RunContext, name: str) -> NewShards:
    """Finds web tars that no finished run of the model `name` was trained on, and writes their manifest to the store.

    The manifest's parents are the newest manifests of those runs. Tars are identified by digest: a moved or renamed tar
    is not new, a replaced one is. Only tars whose stamp in the store's listing has changed are read.
    On a cluster one run of a model retrains at a time: while another one does, as one whose schedule was replaced may,
    nothing counts as new. Raises ConfigError if the configuration names no tars.
    """
    data = context.settings(IngestConfig, "ingest").data
    if not isinstance(data, Tars):
        raise ConfigError(
            f"ingest (preset {context.preset}): data.type={data.type} never has new shards; "
            "set ingest.data.type=tars, and ingest.data.gold, ingest.data.web and ingest.data.test to where "
            "the tars lie"
        )
    if other := claim(open_store(context.store), f"retraining/{name}.json"):
        text = f"run {other} is retraining {name}: nothing to do, the next run looks again"
        log.info(text)
        return NewShards("", 0, text)
    former = trained_manifests(name, context.store)
    known = {shard.sha256 for manifest in former for shard in manifest.shards}
    found = data.manifest("web", scan_cache(context.store), known)
    new = found.model_copy(
        update={"parents": tuple(dict.fromkeys([*found.parents, *newest(former)])), "revision": context.revision}
    )
    web = data.web if isinstance(data.web, str) else ", ".join(data.web)
    where = f"new shards in {web}" + (
        f" since manifest {', '.join(digest[:8] for digest in newest(former))}" if former else ""
    )
    if not new.shards:
        made = NewShards("", 0, f"no {where}: nothing to do")
    else:
        uri = f"{open_store(context.store).join('new', name).uri}/{new.digest}.json"
        new.save(uri)
        made = NewShards(uri, len(new.shards), f"{where}: {len(new.shards)}", listed(new))
    log.info(made.text)
    return made


def listed(manifest: Manifest) -> tuple[str, ...]:
    """Returns the names and sizes of the first shards of a manifest."""
    lines = [f"{shard.name} ({shard.samples:,} samples)" for shard in manifest.shards[:LISTED_SHARDS]]
    more = [f"and {len(manifest.shards) - LISTED_SHARDS} more"] if len(manifest.shards) > LISTED_SHARDS else []
    return (*lines, *more)


def mark_trained(name: str, store: str, data: str | Path) -> None:
    """Records that a run of the model `name`, trained on the web pairs of a data folder, has finished."""
    web = Manifest.load(Path(data, "web.json"))
    web.save(f"{trained_store(name, store).uri}/{web.digest}.json")


def trained_manifests(name: str, store: str) -> list[Manifest]:
    """Returns the web manifests that finished runs of a model were trained on."""
    home = trained_store(name, store)
    return [Manifest.load(f"{home.uri}/{key}") for key in home.list()]


def newest(former: Sequence[Manifest]) -> list[str]:
    """Returns the digests of the manifests that are no other's parent."""
    older = {parent for manifest in former for parent in manifest.parents}
    return sorted({manifest.digest for manifest in former} - older)


def trained_store(name: str, store: str) -> Store:
    """Returns the folder of the manifests that finished runs of a model were trained on."""
    return open_store(store).join("learnt", name)
