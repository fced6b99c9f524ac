"""Look: which web shards there are that no finished run has learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip.config import ConfigError, load
from blip.data.manifest import Manifest
from blip.logs import log
from blip.runs.ingest import IngestConfig, Tars, memory
from blip.storage import Store, open_store

MOST = 20
"""Shards that are named one by one."""


@dataclass(frozen=True)
class New:
    """What is new, for whoever trains on it and for people."""

    manifest: str
    """The URI of the manifest of the new shards; empty without any."""
    shards: int
    text: str


def look(name: str, preset: str, overrides: Sequence[str], store: str, revision: str) -> New:
    """Finds the web tars that no finished run of the model `name` has learnt from, and writes their manifest to the store.

    Its parents are the manifests that the last runs learnt from. A tar is known by its digest, so one that was moved or renamed is not new,
    and one that was replaced is; only those that the store's listing says are not as they were before are read.
    Raises ConfigError where the configuration names no tars.
    """
    data = load(IngestConfig, "ingest", preset, overrides).data
    if not isinstance(data, Tars):
        raise ConfigError(
            f"ingest (preset {preset}): data.type={data.type} never has new shards; "
            "set ingest.data.type=tars, and ingest.data.gold, ingest.data.web and ingest.data.test to where the tars lie"
        )
    former = learnt(name, store)
    known = {shard.sha256 for manifest in former for shard in manifest.shards}
    found = data.manifest("web", memory(store), known)
    new = found.model_copy(update={"parents": tuple(dict.fromkeys([*found.parents, *newest(former)])), "revision": revision})
    web = data.web if isinstance(data.web, str) else ", ".join(data.web)
    where = f"new shards in {web}" + (f" since manifest {', '.join(digest[:8] for digest in newest(former))}" if former else "")
    if not new.shards:
        made = New("", 0, f"no {where}: nothing to do")
    else:
        uri = f"{open_store(store).join('new', name).uri}/{new.digest}.json"
        new.save(uri)
        made = New(uri, len(new.shards), f"{where}: {len(new.shards)}\n\n{listed(new)}")
    log.info(made.text)
    return made


def listed(manifest: Manifest) -> str:
    """The first shards of a manifest, as a list in Markdown."""
    lines = [f"{shard.name} ({shard.samples:,} samples)" for shard in manifest.shards[:MOST]]
    more = [f"and {len(manifest.shards) - MOST} more"] if len(manifest.shards) > MOST else []
    return "".join(f"- {line}\n" for line in lines + more)


def remember(name: str, store: str, data: str) -> None:
    """Notes that a run of the model `name` has finished, which learnt from the web pairs of a data folder."""
    web = Manifest.load(Path(data, "web.json"))
    web.save(f"{records(name, store).uri}/{web.digest}.json")


def learnt(name: str, store: str) -> list[Manifest]:
    """The web manifests that finished runs of a model have learnt from."""
    home = records(name, store)
    return [Manifest.load(f"{home.uri}/{key}") for key in home.list()]


def newest(former: Sequence[Manifest]) -> list[str]:
    """The digests of the manifests that no other was made after."""
    older = {parent for manifest in former for parent in manifest.parents}
    return sorted({manifest.digest for manifest in former} - older)


def records(name: str, store: str) -> Store:
    return open_store(store).join("learnt", name)
