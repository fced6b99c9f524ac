"""The identity and the folder of a job of any type."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest

from blip.config import ConfigError
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import MissingKeyError, open_store
from blip.workers.job import Job, WorkConfig, type_of
from blip.workers.model import ModelSource


class CountConfig(WorkConfig):
    OPERATION: ClassVar[frozenset[str]] = WorkConfig.OPERATION | {"threads"}

    threads: int = 2
    what: str = "words"


class CountJob(Job[CountConfig]):
    type: Literal["count"] = "count"


class NewCountJob(CountJob):
    FORMAT: ClassVar[int] = 2


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_shards([Sample("a", [b"image"], ["text"])], tmp_path / "web", "web", per_shard=1)


def job(
    manifest: Manifest, digest: str = "d", kind: type[CountJob] = CountJob, revision: str = "r", **config
) -> CountJob:
    models = {"counter": ModelSource(digest=digest, at="somewhere")}
    return kind(config=CountConfig(**config), input=manifest, models=models, revision=revision)


def test_the_identity_is_what_the_output_depends_on(manifest: Manifest):
    identity = job(manifest).identity
    assert job(manifest, what="letters").identity != identity
    assert job(manifest, digest="e").identity != identity
    assert job(manifest, kind=NewCountJob).identity != identity
    assert job(manifest.model_copy(update={"meta": {"a": 1}})).identity != identity


def test_how_the_work_is_done_and_the_revision_change_nothing(manifest: Manifest):
    changed = job(manifest, revision="mended", threads=7, workers=3, report=9, lease={"seconds": 5}, max_gpu_hours=2)
    assert changed.identity == job(manifest).identity
    assert changed.account == f"count-{changed.identity}"


def test_a_job_comes_back_from_its_folder(manifest: Manifest, tmp_path: Path):
    given = job(manifest, revision="abc", what="letters")
    home = given.home(open_store(tmp_path / "store"))
    assert home.uri == str(tmp_path / "store" / "count" / given.identity)
    given.save(home)
    assert CountJob.load(home.uri) == given
    assert type_of(home.uri) == "count"
    with pytest.raises(MissingKeyError):
        CountJob.load(str(tmp_path))
    home.put("job.json", b'{"type": "count", "captioner": 1}')
    with pytest.raises(ConfigError, match=f"job {home.uri}: "):
        CountJob.load(home.uri)
