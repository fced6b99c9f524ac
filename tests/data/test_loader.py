"""Batches are the same on any number of processes and workers, and from any step on."""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from blip.config import ConfigError
from blip.data.loader import Loader, LoaderConfig, worker_failure
from blip.shards.cache import ShardCache
from blip.shards.manifest import Manifest
from blip.shards.reading import RangedShard
from blip.shards.sample import BadSample, Sample
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.storage import open_store

CFG = LoaderConfig(batch=16, streams=8, window=2)


def prepare(sample: Sample, rng: np.random.Generator) -> tuple[str, str, int]:
    if sample.images[0] == b"bad":
        raise BadSample("image cannot be decoded")
    return sample.key, sample.texts[int(rng.integers(len(sample.texts)))], int(rng.integers(1 << 30))


def write(root: str | Path, name: str, count: int = 237, per_shard: int = 12, bad: range = range(0)) -> Manifest:
    samples = (
        Sample(f"{name}/{i:05d}", [b"bad" if i in bad else b"image"], [f"{i} a", f"{i} b"]) for i in range(count)
    )
    return write_shards(samples, root, name, per_shard)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    root = tmp_path_factory.mktemp("data")
    return [write(root, "web", bad=range(30, 41)), write(root, "gold", count=50)]


def loader(
    manifests: list[Manifest], cfg: LoaderConfig = CFG, rank: int = 0, world: int = 1, start: int = 0, **options
) -> Loader[list]:
    found = Loader(manifests, prepare, list, cfg, rank, world, seed=3, **options)
    found.step = start
    return found


def take(source: Loader[list], steps: int) -> list[list]:
    batches = islice(source, steps * source.accumulation)
    return [[row for _ in range(source.accumulation) for row in next(batches)] for _ in range(steps)]


def test_batches_are_the_same_for_every_number_of_processes(manifests: list[Manifest]):
    whole = take(loader(manifests), 40)
    for world in (2, 4):
        ranks = [take(loader(manifests, rank=rank, world=world), 40) for rank in range(world)]
        assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


def test_micro_batches_of_one_size_are_the_same_for_every_number_of_processes(manifests: list[Manifest]):
    cfg = CFG.model_copy(update={"micro_batch": 4})
    alone = loader(manifests, cfg)
    assert alone.accumulation == 4
    micro = list(islice(alone, 40))
    pair = [loader(manifests, cfg, rank, 2) for rank in range(2)]
    assert [p.accumulation for p in pair] == [2, 2]
    halves = [list(islice(p, 20)) for p in pair]
    assert [batch for t in range(10) for half in halves for batch in half[2 * t : 2 * t + 2]] == micro


@pytest.mark.parametrize("start", [1, 7, 16, 17, 35])
def test_training_goes_on_from_any_step(manifests: list[Manifest], start: int):
    cfg = CFG.model_copy(update={"micro_batch": 8})
    straight = take(loader(manifests), 40)
    again = loader(manifests, cfg, start=start)
    assert again.step == start
    assert take(again, 40 - start) == straight[start:]
    assert again.step == 40


def test_a_step_counts_when_its_last_micro_batch_is_out(manifests: list[Manifest]):
    source = loader(manifests, CFG.model_copy(update={"micro_batch": 8}))
    assert [source.step for _ in islice(source, 5)] == [0, 1, 1, 2, 2]


def test_workers_change_nothing(manifests: list[Manifest]):
    torch.manual_seed(5)
    plain = loader(manifests)
    rows = take(plain, 10)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    for workers in (1, 2):
        source = loader(manifests, CFG.model_copy(update={"workers": workers}))
        assert take(source, 10) == rows
        assert source.rejected == plain.rejected
    assert torch.equal(torch.get_rng_state(), state)


def test_an_epoch_has_every_good_sample(manifests: list[Manifest]):
    source = loader(manifests)
    assert (source.steps_per_epoch, source.samples) == (17, 287)
    keys = [row[0] for batch in take(source, 17) for row in batch]
    assert len(keys) == 272
    assert len(set(keys)) >= 287 - 15 - 11
    assert {key.split("/")[0] for key in keys} == {"web", "gold"}


def test_randomness_is_the_samples_own(manifests: list[Manifest]):
    rows = {row[0]: row for batch in take(loader(manifests), 17) for row in batch}
    other_order = {
        row[0]: row for batch in take(loader(manifests[:1], CFG.model_copy(update={"streams": 2})), 14) for row in batch
    }
    common = rows.keys() & other_order.keys()
    assert len(common) > 180
    assert all(rows[key] == other_order[key] for key in common)
    second = {row[0]: row for batch in take(loader(manifests, start=17), 17) for row in batch}
    changed = [rows[key][2] != second[key][2] for key in rows.keys() & second.keys()]
    assert all(changed)
    assert {text.split()[1] for _, text, _ in rows.values()} == {"a", "b"}


def test_a_repeated_source_comes_more_often_with_other_draws(manifests: list[Manifest]):
    source = loader(manifests, repeats=[1, 4])
    assert (source.samples, source.steps_per_epoch) == (237 + 4 * 50, 27)
    rows = [row for batch in take(source, 27) for row in batch]
    of_gold = Counter(key for key, *_ in rows if key.startswith("gold"))
    assert len(of_gold) == 50
    assert 4 * 50 - 5 <= of_gold.total() <= 4 * 50
    assert max(Counter(key for key, *_ in rows if key.startswith("web/0001")).values()) == 1
    assert len(set(rows)) > len(rows) - 12  # bad samples alone are replaced by ones that come anyway
    once = {row for batch in take(loader(manifests), 17) for row in batch if row[0].startswith("gold")}
    assert len(once & set(rows)) >= 44


def test_a_repeated_source_keeps_what_holds_of_batches(manifests: list[Manifest]):
    straight = take(loader(manifests, repeats=[2, 3]), 50)
    assert take(loader(manifests, start=40, repeats=[2, 3]), 10) == straight[40:]
    ranks = [take(loader(manifests, rank=rank, world=2, repeats=[2, 3]), 50) for rank in range(2)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == straight
    source = loader(manifests, repeats=[2, 3])
    take(source, 64)
    assert source.rejected == {"image cannot be decoded": 11}


def keys_of(batches: list[list]) -> list[list[str]]:
    return [[row[0] for row in batch] for batch in batches]


LED = {"repeats": [1, 2], "lead": [1], "lead_epochs": 2.5}


def test_a_run_begins_with_its_lead(manifests: list[Manifest]):
    source = loader(manifests, **LED)
    assert (source.lead_steps, source.steps_per_epoch, source.samples) == (8, 21, 337)
    batches = take(source, 8 + 42)
    assert all(row[0].startswith("gold") for batch in batches[:8] for row in batch)
    assert len({row[0] for batch in batches[:3] for row in batch}) == 48
    without = take(loader(manifests, repeats=[1, 2]), 42)
    assert keys_of(batches[8:]) == keys_of(without)
    draws = [row[2] for batch in batches[:20] for row in batch if row[0] == "gold/00007"]
    assert len(set(draws)) == len(draws) >= 3


def test_a_lead_keeps_what_holds_of_batches(manifests: list[Manifest]):
    straight = take(loader(manifests, **LED), 40)
    for start in (3, 8, 20):
        assert take(loader(manifests, start=start, **LED), 40 - start) == straight[start:]
    ranks = [take(loader(manifests, rank=rank, world=2, **LED), 40) for rank in range(2)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == straight
    in_workers = take(loader(manifests, CFG.model_copy(update={"workers": 1}), **LED), 10)
    assert in_workers == straight[:10]


def test_bad_samples_are_replaced_and_counted_once(manifests: list[Manifest]):
    source = loader(manifests)
    batches = take(source, 34)
    assert {len(batch) for batch in batches} == {16}
    assert source.rejected == {"image cannot be decoded": 11}
    assert not {f"web/{i:05d}" for i in range(30, 41)} & {row[0] for batch in batches for row in batch}


def test_a_shard_without_a_good_sample_is_named(tmp_path: Path):
    manifest = write(tmp_path, "web", count=24, bad=range(12))
    with pytest.raises(
        ShardError, match=r"web-000000-\w+\.tar with sha256 \w+ has no sample that can be used: image cannot be decoded"
    ):
        take(loader([manifest]), 2)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_truncated_shard_is_named(tmp_path: Path, request: pytest.FixtureRequest, where: str, workers: int):
    root = str(tmp_path / "data") if where == "folder" else f"{request.getfixturevalue('s3')}/data"
    manifest = write(root, "web", count=24)
    shard = manifest.shards[1]
    store = open_store(root)
    store.put(shard.name, store.get(shard.name)[:-1])
    source = loader([manifest], CFG.model_copy(update={"cache": str(tmp_path / "cache"), "workers": workers}))
    with pytest.raises(ShardError, match=f"shard {root}/{shard.name} is cut short.*{shard.sha256}"):
        take(source, 2)


def test_workers_go_with_a_training_that_fails(tmp_path: Path):
    write(tmp_path / "data", "web", count=48).save(tmp_path / "web.json")
    lines = [
        "from test_loader import CFG, Manifest, loader",
        f"source = loader([Manifest.load({str(tmp_path / 'web.json')!r})], CFG.model_copy(update={{'workers': 2}}))",
        "held = iter(source)",
        "next(held)",
        "raise RuntimeError('as a step may')",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    failed = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert failed.returncode == 1, failed.stderr
    assert "as a step may" in failed.stderr


@pytest.mark.parametrize("change", [{}, {"ranged": True}, {"workers": 2}])
def test_a_bucket_gives_the_same_batches(tmp_path: Path, s3: str, change: dict):
    rows = take(loader([write(tmp_path / "data", "web", 60)]), 5)
    cache = tmp_path / "cache"
    source = loader([write(s3, "web", 60)], CFG.model_copy(update={"cache": str(cache), **change}))
    assert take(source, 5) == rows
    copies = sorted(p.name for p in cache.iterdir()) if cache.exists() else []
    assert copies == (
        [] if change.get("ranged") else sorted(f"{shard.sha256}.tar" for _, shard in source.reader.cache.shards)
    )


def test_a_bucket_is_read_through_failures(tmp_path: Path, s3: str, proxy):
    manifest = write(s3, "web", count=48)
    rows = take(loader([manifest], CFG.model_copy(update={"cache": str(tmp_path / "first")})), 3)
    proxy.fail("GET", "reset", "truncated", "refused", "slow")
    assert take(loader([manifest], CFG.model_copy(update={"cache": str(tmp_path / "second")})), 3) == rows
    assert not proxy.faults


def test_copies_used_longest_ago_go_first(tmp_path: Path, s3: str):
    manifest = write(s3, "web", count=48)
    size = manifest.shards[0].bytes
    cache = ShardCache([(manifest.store, shard) for shard in manifest.shards], tmp_path / "cache", limit=2 * size)
    for age, number in enumerate((0, 1)):
        os.utime(cache.copy(number), (age, age))
    cache.copy(0)
    open_before = cache[1]
    os.utime(cache.copy(1), (1, 1))
    cache.copy(2)
    left = {p.stem for p in (tmp_path / "cache").glob("*.tar")}
    assert left == {manifest.shards[0].sha256, manifest.shards[2].sha256}
    assert open_before[0].key == "web/00012"


def test_a_copy_is_fetched_once(tmp_path: Path, s3: str, proxy):
    manifest = write(s3, "web", count=24)
    proxy.requests.clear()
    for _ in range(2):
        cache = ShardCache([(manifest.store, shard) for shard in manifest.shards], tmp_path / "cache", limit=10**9)
        assert cache[0][0].key == "web/00000"
    wholes = [r for r in proxy.requests if r == "GET"]
    assert len(wholes) == 3  # the shard once, its index twice


@pytest.mark.parametrize(
    ("change", "world", "rule"),
    [
        ({}, 3, "batch is 16, not divisible by 3 processes"),
        ({"micro_batch": 3}, 2, "micro_batch is 3, but each of 2 processes has 8"),
        ({"batch": 1000}, 1, "batch is 1000, but the data has 287 samples"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(manifests: list[Manifest], change: dict, world: int, rule: str):
    with pytest.raises(ConfigError, match=rule):
        loader(manifests, CFG.model_copy(update=change), world=world)


def test_a_cache_too_small_is_refused(s3: str):
    with pytest.raises(ConfigError, match=r"loader.cache_gb is 1e-05, but 0.0 GB of shards are in use"):
        loader([write(s3, "web", 24)], CFG.model_copy(update={"cache_gb": 1e-5}))


def test_a_machine_with_a_small_disk_lowers_the_cache(s3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_CACHE_GB", "1e-5")
    with pytest.raises(ConfigError, match=r"loader.cache_gb is 100.0, BLIP_CACHE_GB 1e-5, but 0.0 GB of shards"):
        loader([write(s3, "web", 24)], CFG)
    monkeypatch.setenv("BLIP_CACHE_GB", "1000")
    assert CFG.cache_bytes == 100e9, "and never raises it"
    for wrong in ("much", "0", "-1", "nan"):
        monkeypatch.setenv("BLIP_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match=f"BLIP_CACHE_GB is '{wrong}': set it to a number of GB above 0"):
            loader([write(s3, "web", 24)], CFG)


PRIVATE = ["unshare", "--mount"]
"""Runs a process in a mount namespace of its own, where /dev/shm can be small."""


@pytest.mark.skipif(
    subprocess.run([*PRIVATE, "true"], check=False, capture_output=True).returncode != 0, reason="it takes root"
)
@pytest.mark.parametrize(
    ("size", "fill", "said"),
    [
        (
            "8m",
            "",
            r"ConfigError: .* /dev/shm, which has 8.4 MB free of 8.4 MB, but 6 batches .* take 18.0 MB: set loader",
        ),
        (
            "40m",
            "fill",
            r"StoreError: .*DataLoader worker.* \d.\d MB of 41.9 MB in /dev/shm were free.* set loader.workers=0",
        ),
        ("40m", "", ""),
    ],
)
def test_workers_that_find_no_room_in_shared_memory_end_the_training_in_one_line(
    tmp_path: Path, size: str, fill: str, said: str
):
    write(tmp_path / "data", "web", 400, 400).save(tmp_path / "web.json")
    script = Path(__file__).with_name("read_with_workers.py")
    read = f"{sys.executable} {script} {tmp_path / 'web.json'} '{fill}'"
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {read}"
    ended = subprocess.run([*PRIVATE, "sh", "-c", command], check=False, capture_output=True, text=True, timeout=120)
    lines = [line for line in ended.stderr.splitlines() if "Error" in line and "loader worker cannot" not in line]
    assert len(lines) == (said != ""), ended.stderr
    assert ended.returncode == (1 if said else 0)
    if said:
        assert re.search(said, lines[0])


def test_copies_lie_where_nobody_else_can_write_and_are_verified_once_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    manifest = write(f"{s3}/data", "web", count=24)
    rows = take(loader([manifest]), 1)
    (folder,) = tmp_path.glob("blip-shards-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    for copy in folder.glob("*.tar"):  # one text of each is another now; its size and its date are not
        copy.write_bytes(copy.read_bytes().replace(b' a"', b' z"'))
    assert take(loader([manifest]), 1) == rows
    for copy in folder.glob("*.tar"):
        copy.write_bytes(copy.read_bytes()[:100])
    assert take(loader([manifest]), 1) == rows
    folder.chmod(0o755)
    assert take(loader([manifest]), 1) == rows
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"is not a folder of this user.*loader\.cache"):
        loader([manifest])


def test_what_killed_fetches_left_is_swept_when_old(tmp_path: Path, s3: str):
    manifest = write(f"{s3}/data", "web", count=24)
    old, young = tmp_path / "1.tmp", tmp_path / "2.tmp"
    for path in (old, young):
        path.write_bytes(b"part")
    os.utime(old, (1, 1))
    take(loader([manifest], CFG.model_copy(update={"cache": str(tmp_path)})), 1)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_shard_is_read_one_by_one_only_by_its_own_index(tmp_path: Path):
    manifest = write(tmp_path, "web", count=24)
    store = open_store(tmp_path)
    first, second = manifest.shards
    for shard in manifest.shards:
        assert len(RangedShard(store, shard)) == 12
    name = first.name.removesuffix(".tar") + ".idx.jsonl"
    lines = store.get(name).splitlines(keepends=True)
    store.put(name, b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ShardError, match=rf"has no index beside it that is the manifest's \({name}"):
        RangedShard(store, first)
    assert len(RangedShard(store, second)) == 12


def test_numbers_that_cannot_be_are_refused_before_an_order_is_drawn_up(manifests: list[Manifest]):
    many = manifests[0].shards[0].model_copy(update={"samples": 10**9})
    with pytest.raises(ConfigError, match=r"cannot hold 1,000,000,000 samples in [\d,]+ bytes"):
        loader([manifests[0].model_copy(update={"shards": (many,)})])


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_worker_that_ends_while_it_sends_is_reported(error: Exception):
    assert worker_failure(error).startswith("a DataLoader worker ended")
    assert worker_failure(type(error)("Caught an error in DataLoader worker process 0.\nTraceback")) == ""
