"""A manifest describes a data set independent of its location."""

from pathlib import Path

import pytest

from blip.config import ConfigError
from blip.shards.manifest import Manifest, Shard
from blip.storage import MissingKeyError

SHARDS = tuple(Shard(name=f"web-{i}.tar", sha256=f"{i:064x}", bytes=100 * i, samples=10 * i) for i in range(1, 4))


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_manifest_comes_back(where: str, tmp_path: Path, request: pytest.FixtureRequest):
    uri = f"{tmp_path if where == 'folder' else request.getfixturevalue('s3')}/deep/web.json"
    manifest = Manifest(
        name="web",
        root="data",
        shards=SHARDS,
        parents=("a" * 64,),
        counts={"no image": 3},
        meta={"é": [1, {"a": None}]},
    )
    manifest.save(uri)
    assert Manifest.load(uri) == manifest
    assert manifest.samples == 60


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path):
    Manifest(name="web", root="data", counts={"a": 1, "b": 2}).save(tmp_path / "one.json")
    Manifest(name="web", root="data", counts={"b": 2, "a": 1}).save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_the_digest_speaks_of_content_alone():
    manifest = Manifest(name="web", root="here", shards=SHARDS)
    assert manifest.digest == manifest.model_copy(update={"root": "s3://there"}).digest
    assert manifest.digest == manifest.model_copy(update={"revision": "newer"}).digest
    assert manifest.digest != manifest.model_copy(update={"shards": SHARDS[:2]}).digest
    assert manifest.digest != manifest.model_copy(update={"counts": {"no image": 1}}).digest


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("not json", "is not JSON"),
        ("[]", "must be a mapping"),
        ('{"name": "web"}', "root"),
        ('{"name": "web", "root": "x", "shard": []}', "unknown key shard; did you mean shards"),
        (
            '{"name": "web", "root": "x", "shards": [{"name": "a", "sha256": "abc", "bytes": 1, "samples": 1}]}',
            r"shards\.0\.sha256",
        ),
    ],
)
def test_a_wrong_manifest_is_explained(tmp_path: Path, content: str, rule: str):
    (tmp_path / "web.json").write_text(content)
    with pytest.raises(ConfigError, match=rule):
        Manifest.load(tmp_path / "web.json")


def test_a_missing_manifest_is_named(tmp_path: Path):
    with pytest.raises(MissingKeyError, match=r"web\.json does not exist"):
        Manifest.load(tmp_path / "web.json")
