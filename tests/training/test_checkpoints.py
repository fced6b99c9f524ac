"""Checkpoints in a folder and in a bucket: which one is found, and what a failure leaves."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from toy import ToyTask, batches

from blip.config import ConfigError
from blip.storage import FolderStore, StoreError, open_store
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


def test_a_torn_upload_is_never_picked_up(uri: str, engine: Engine):
    save_at(make(uri), engine, 1)
    store = open_store(uri)
    store.put("step-00000002/0badbeef/model.safetensors", b"the machine went before the rest came")
    found = make(uri).newest()
    assert found is not None
    assert found.step == 1
    save_at(make(uri), engine, 3)
    assert not [key for key in store.list() if "0badbeef" in key], "what it left is removed with the next save"


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "unreadable"])
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
    found = make(uri).newest()
    assert found is not None
    assert found.step == 1
    assert "step-00000002.json is passed over" in caplog.text


def test_the_last_n_are_kept(uri: str, engine: Engine):
    save_at(make(uri), engine, 1, 2, 3, 4)
    keys = open_store(uri).list()
    assert [key for key in keys if key.endswith(".json")] == ["step-00000003.json", "step-00000004.json"]
    assert len(keys) == 2 + 2 * 2


class SlowStore(FolderStore):
    """Waits for a sign before it writes; may fail then."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.go, self.fails = threading.Event(), False

    def put_file(self, key: str, path: str | Path) -> None:
        assert self.go.wait(20)
        if self.fails:
            raise StoreError("the disk is full")
        super().put_file(key, path)


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
    assert all(torch.equal(saved[name], tensor) for name, tensor in written.items()), "the copy is of the step, not of what came after"
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
    with pytest.raises(ValueError, match=r"it lacks \['extra.bias', 'extra.weight'\]"):
        Engine(task, EngineConfig(), OptimizerConfig(), ScheduleConfig(), steps=1, steps_per_epoch=1, state=engine.state(), step=1)
