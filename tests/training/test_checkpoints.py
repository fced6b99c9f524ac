"""Checkpoints in a folder and in a bucket: which one is read, and what a failure leaves."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from small_disk import small_disk
from toy import ToyTask, batches

from blip.config import ConfigError
from blip.storage import FolderStore, StoreError, open_store, scratch
from blip.training.checkpoint import CheckpointConfig, Checkpoints
from blip.training.engine import Engine, EngineConfig
from blip.training.loop import fit
from blip.training.optimizer import OptimizerConfig, ScheduleConfig


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    engine = Engine(ToyTask(), EngineConfig(), OptimizerConfig(), ScheduleConfig(), steps=1, steps_per_epoch=4)
    fit(engine, batches(0, 1))
    return engine


def save_at(checkpoints: Checkpoints, engine: Engine, *steps: int) -> None:
    """Publishes the engine's state as that of several steps."""
    made = engine.step
    for step in steps:
        engine.step = step
        checkpoints.save(engine)
    checkpoints.wait()
    engine.step = made


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "folder" else f"{request.getfixturevalue('s3')}/run"


def make(uri: str | Path, **identity) -> Checkpoints:
    return Checkpoints(open_store(uri), CheckpointConfig(keep=2), identity)


def test_the_newest_comes_back_whole(uri: str, engine: Engine):
    assert make(uri).newest() is None
    save_at(make(uri, seed=1), engine, 1, 2)
    found = make(uri, seed=1).newest()
    assert found is not None
    assert found.step == 2
    expected = engine.state()
    assert found.state.keys() == expected.keys()
    assert all(torch.equal(expected[name], found.state[name]) for name in expected)


def test_a_torn_upload_is_never_picked_up(uri: str, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    save_at(make(uri), engine, 1)
    store = open_store(uri)
    store.put("step-00000002/0badbeef/model.safetensors", b"the machine went before the rest came")
    found = make(uri).newest()
    assert found is not None
    assert found.step == 1
    save_at(make(uri), engine, 3)
    assert [key for key in store.list() if "0badbeef" in key], "another process group may still be at it"
    monkeypatch.setattr("blip.training.checkpoint.OLD_SECONDS", -1.0)
    save_at(make(uri), engine, 4)
    assert not [key for key in store.list() if "0badbeef" in key], "what it left is removed once it is old"


@pytest.mark.parametrize(
    "damage", ["altered", "truncated", "missing", "unreadable", "not text", "renamed", "another step", "a part less"]
)
def test_a_damaged_checkpoint_is_passed_over(uri: str, engine: Engine, damage: str, caplog: pytest.LogCaptureFixture):
    save_at(make(uri), engine, 1, 2)
    store = open_store(uri)
    part = next(key for key in store.list("step-00000002/") if key.endswith("optimizer.safetensors"))
    data = store.get(part)
    match damage:
        case "altered":
            store.put(part, data[:-1] + bytes([data[-1] ^ 1]))
        case "truncated":
            store.put(part, data[: len(data) // 2])
        case "missing":
            store.delete(part)
        case "unreadable":
            store.put("step-00000002.json", b"{")
        case "not text":
            store.put("step-00000002.json", b"\xff\xfe")
        case "renamed":  # it says 1
            store.put("step-00000002.json", store.get("step-00000001.json"))
        case "another step":
            store.put("step-00000002.json", store.get("step-00000002.json").replace(b'"step": 2', b'"step": 9'))
        case "a part less":
            told = json.loads(store.get("step-00000002.json"))
            del told["parts"]["optimizer.safetensors"]
            store.put("step-00000002.json", json.dumps(told).encode())
    found = make(uri).newest()
    assert found is not None
    assert found.step == 1
    [line] = [record.getMessage() for record in caplog.records if "skipped checkpoint" in record.getMessage()]
    assert "step-00000002.json" in line
    assert "\n" not in line


def test_the_last_n_are_kept(uri: str, engine: Engine):
    save_at(make(uri), engine, 1, 2, 3, 4)
    keys = open_store(uri).list()
    assert [key for key in keys if key.endswith(".json")] == ["step-00000003.json", "step-00000004.json"]
    assert len(keys) == 2 + 2 * 2


class SlowStore(FolderStore):
    """A store that waits for a sign before it writes, and may then fail."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.go, self.fails = threading.Event(), False

    def put_file(self, key: str, path: str | Path, advance: Callable[[int], object] | None = None) -> None:
        assert self.go.wait(20)
        if self.fails:
            raise StoreError("the disk is full")
        super().put_file(key, path, advance)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path):
    store = SlowStore(tmp_path)
    torch.manual_seed(0)
    engine = Engine(ToyTask(), EngineConfig(), OptimizerConfig(lr=1e-2), ScheduleConfig(), steps=6, steps_per_epoch=4)
    checkpoints = Checkpoints(store, CheckpointConfig(), {})
    saved = {}

    def save_and_go_on(_) -> None:
        if engine.step == 2:
            checkpoints.save(engine)
            saved.update(engine.state())
        if engine.step == 5:
            assert store.list("step-") == [], "the loop did not wait for the store"
            store.go.set()

    fit(engine, batches(0, 1), [save_and_go_on], checkpoints)
    [older] = [key for key in store.list() if key.startswith("step-00000002/") and key.endswith("model.safetensors")]
    written = load(store.get(older))
    assert all(torch.equal(saved[name], tensor) for name, tensor in written.items()), (
        "the copy is of the step, not of what came after"
    )
    assert not torch.equal(engine.state()["model/student.norm.bias"], written["model/student.norm.bias"])


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path: Path, engine: Engine):
    store = SlowStore(tmp_path)
    store.fails = True
    store.go.set()
    checkpoints = Checkpoints(store, CheckpointConfig(), {})
    checkpoints.save(engine)
    with pytest.raises(StoreError, match="the disk is full"):
        checkpoints.wait()
    assert checkpoints.newest() is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, engine: Engine):
    save_at(make(tmp_path, seed=1, batch=64), engine, 1)
    with pytest.raises(ConfigError, match="was made with batch = 64, this run has 32"):
        make(tmp_path, seed=1, batch=32).newest()


def test_a_checkpoint_of_another_model_is_refused(engine: Engine):
    task = ToyTask()
    task.extra = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"missing \['extra.bias', 'extra.weight'\]"):
        Engine(
            task,
            EngineConfig(),
            OptimizerConfig(),
            ScheduleConfig(),
            steps=1,
            steps_per_epoch=1,
            state=engine.state(),
            step=1,
        )


def test_the_revision_that_saved_is_told_and_is_no_part_of_the_run(tmp_path: Path, engine: Engine):
    save_at(Checkpoints(open_store(tmp_path), CheckpointConfig(), {"seed": 1}, revision="old"), engine, 1)
    found = Checkpoints(open_store(tmp_path), CheckpointConfig(), {"seed": 1}, revision="new").newest()
    assert found is not None
    assert found.revision == "old"


def test_a_torn_newer_checkpoint_does_not_cost_the_good_one(tmp_path: Path, engine: Engine):
    store = open_store(tmp_path)
    one = Checkpoints(store, CheckpointConfig(keep=1), {})
    save_at(one, engine, 2000)
    store.put("step-00002000.json", b"{")
    save_at(one, engine, 500)
    found = one.newest()
    assert found is not None
    assert found.step == 500


class PausedStore(FolderStore):
    """A store in which another process acts after a checkpoint's parts are written and before it is published."""

    meanwhile = staticmethod(lambda: None)

    def put(self, key: str, data: bytes) -> None:
        self.meanwhile()
        super().put(key, data)


def test_two_of_one_run_leave_each_others_parts_alone(tmp_path: Path, engine: Engine):
    slow, fast = (Checkpoints(PausedStore(tmp_path), CheckpointConfig(keep=1), {}) for _ in range(2))
    slow.store.meanwhile = lambda: save_at(fast, engine, 12)
    save_at(slow, engine, 8)
    found = fast.newest()
    assert found is not None
    assert found.step == 12, "the slower one does not remove what is newer"
    slow.store.meanwhile = lambda: save_at(fast, engine, 20)
    save_at(slow, engine, 16)
    parts = set(slow.store.list("step-00000016/"))
    assert {part.key for part in slow.read("step-00000016.json").parts.values()} <= parts, (
        "nor the faster one what is about to be published"
    )


def test_what_killed_writers_left_goes_once_it_is_old(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for place, name in (
        (tmp_path / "run/step-00000001/ab", f".{'0' * 32}.tmp"),
        (tmp_path / "tmp/blip-scratch-checkpoint-x", "model"),
    ):
        place.mkdir(parents=True)
        (place / name).write_bytes(b"half")
    left = [tmp_path / f"run/step-00000001/ab/.{'0' * 32}.tmp", tmp_path / "tmp/blip-scratch-checkpoint-x"]
    save_at(make(tmp_path / "run"), engine, 1)
    assert all(path.exists() for path in left), "it may be another's that is at work"
    for path in left:
        os.utime(path, (0, 0))
    save_at(make(tmp_path / "run"), engine, 2)
    assert not any(path.exists() for path in left)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_scratch_folder_is_not_swept_while_its_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch("long") as folder:
        os.utime(folder, (0, 0))
        with scratch("other"):
            assert folder.is_dir()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    with small_disk(4096):
        yield


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_named_in_one_line(tmp_path: Path, engine: Engine):
    checkpoints = make(tmp_path / "run")
    checkpoints.save(engine)
    with pytest.raises(
        StoreError, match=r"blip-scratch-checkpoint.* cannot be written to \(.* MB are free there\): .*TMPDIR"
    ) as error:
        checkpoints.wait()
    assert "\n" not in str(error.value)


def test_a_tmpdir_that_is_not_there_is_named(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    checkpoints = make(tmp_path / "run")
    checkpoints.save(engine)
    with pytest.raises(StoreError, match="gone cannot be written to"):
        checkpoints.wait()
