"""A record in the store that was cut or altered is named in one line, whoever reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blip.budget import spent
from blip.capfilt.job import CapFiltJob
from blip.config import ConfigError
from blip.runs.look import read_journal
from blip.runs.outputs import StepOutput
from blip.runs.worker import work
from blip.storage import FolderStore, StoreError, open_store
from blip.workers.job import type_of
from blip.workers.progress import read_reports
from blip.workers.queue import LeaseConfig, ShardQueue, shard_records

READERS: dict[str, Callable[[FolderStore], object]] = {
    "commit/a.json": lambda store: shard_records(store, ["a"]),
    "dead/a.json": lambda store: shard_records(store, ["a"]),
    "lease/a.json": lambda store: ShardQueue(store, ["a"], "w", LeaseConfig()).claim(),
    "job.json": lambda store: CapFiltJob.load(store.uri),
    "worker/w.json": read_reports,
    "pretrain/a.json": spent,
    "output.json": lambda store: StepOutput.load(store.uri),
}


@pytest.mark.parametrize("content", [b"", b'{"shard": "a', b"\xff\xfe", b"[]", b"[" * 100_000])
@pytest.mark.parametrize("key", READERS)
def test_a_broken_record_is_named(tmp_path: Path, key: str, content: bytes):
    store = open_store(str(tmp_path))
    store.put(key, content)
    with pytest.raises(StoreError, match=rf"^{tmp_path}/{key} is no record: it was cut or altered; delete it") as error:
        READERS[key](store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"{}", b'{"type": "other"}', b'{"type": 3}'])
def test_a_job_of_another_kind_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "job.json").write_bytes(content)
    with pytest.raises(ConfigError, match="this version works on capfilt, evaluation"):
        work(str(tmp_path))
    assert type_of(str(tmp_path)) in ("", "other")


@pytest.mark.parametrize("content", [b"", b"[[1]]", b'[["", "x", ""]]', b"3"])
def test_a_look_goes_on_before_a_broken_block_of_its_journal(tmp_path: Path, content: bytes):
    journal = open_store(str(tmp_path))
    journal.put("verdicts-000000.json", b'[["", "ff", ""], ["no text", "0", ""]]')
    journal.put("verdicts-000001.json", content)
    journal.put("verdicts-000002.json", b'[["", "1", ""]]')
    journal.put("complete.json", b"{}")
    found = read_journal(journal)
    assert [verdict.reason for verdict in found.verdicts] == ["", "no text"]
    assert not found.complete
