"""`blip train` as people run it: killed, stopped, resized, out of budget, and on."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip.budget import BudgetError, ledger
from blip.data.datasets.shapes.splits import ShapesConfig, gold
from blip.data.sample import Sample
from blip.data.shards import write_shards
from blip.runs.ingest import ingest
from blip.runs.train import train, views

WORLD = ("data.world.gold=64", "data.world.web=64", "data.world.test=8", "per_shard=32")
# micro-batches of one size, so that the same run goes on over another number of processes
RUN = ("epochs=3", "checkpoint.every=2", "loader.batch=16", "loader.micro_batch=8", "task.alignment.queue=24", "loader.streams=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        ingest("shapes", "shapes", WORLD, str(root / "store"), "r", str(root / "data"))
    return root / "data"


class Training:
    """Pre-training of the tiny world into a folder."""

    def __init__(self, data: Path, folder: Path):
        self.data, self.folder = data, folder

    def start(self, processes: int, *overrides: str) -> subprocess.Popen[str]:
        words = [word for override in (*RUN, *overrides) for word in ("--set", override)]
        places = [
            "--preset",
            "shapes",
            "--data",
            str(self.data),
            "--out",
            str(self.folder / "model"),
            "--store",
            str(self.folder / "store"),
        ]
        places += ["--figures", str(self.folder / "figures.json")]
        command = [sys.executable, "-m", "blip.cli", "train", "pretrain", *places, "--processes", str(processes), *words]
        environment = {**os.environ, "BLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)

    def finish(self, processes: int, *overrides: str) -> dict[str, torch.Tensor]:
        run = self.start(processes, *overrides)
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
        return self.made()

    def made(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "model.safetensors") | load_file(self.folder / "model" / "training_state.safetensors")

    def losses(self) -> dict[str, float]:
        """Those of the last step."""
        return json.loads((self.folder / "figures.json").read_text())["losses"]

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("store/pretrain/*/step-*.json"))

    def interrupt(self, number: signal.Signals, processes: int, *overrides: str) -> int:
        """Lets it come to a checkpoint, sends a signal, and gives the exit code."""
        run = self.start(processes, *overrides)
        while not self.steps():
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.02)
        if number == signal.SIGKILL:
            os.killpg(run.pid, number)
            for child in (int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_of(path, str(self.folder))):
                os.kill(child, number)
        else:
            os.killpg(run.pid, number)  # as a launcher does: its loader's workers would hear it, too
        run.communicate(timeout=120)
        return run.returncode


def is_of(cmdline: Path, folder: str) -> bool:
    try:
        return any(folder in word for word in cmdline.read_text().split("\0"))
    except OSError:
        return False


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run of one process that nobody disturbed."""
    training = Training(data, tmp_path_factory.mktemp("straight"))
    training.finish(1)
    return training


@pytest.fixture(scope="module")
def straight(undisturbed: Training) -> dict[str, torch.Tensor]:
    """Its weights, teacher and queue."""
    return undisturbed.made()


def test_a_run_that_is_stopped_politely_saves_and_goes_on_tensor_for_tensor(data: Path, straight, tmp_path: Path):
    training = Training(data, tmp_path)
    workers = ("loader.workers=1", "checkpoint.every=1")
    assert training.interrupt(signal.SIGTERM, 1, *workers) == 128 + signal.SIGTERM
    assert 0 < training.steps()[-1] < 24
    found = training.finish(1)  # how it reads and saves may change in between
    assert found.keys() == straight.keys()
    assert [name for name in found if not torch.equal(found[name], straight[name])] == []


def test_a_run_that_is_killed_goes_on_over_another_number_of_processes(data: Path, undisturbed: Training, tmp_path: Path):
    training = Training(data, tmp_path)
    assert training.interrupt(signal.SIGKILL, 2) == -signal.SIGKILL
    assert 0 < training.steps()[-1] < 24
    found, straight = training.finish(1), undisturbed.made()
    assert training.losses() == pytest.approx(undisturbed.losses(), rel=1e-3)
    assert found.keys() == straight.keys()
    for name, tensor in straight.items():
        # attention does not feel the bias of its keys: that gradient is rounding noise, which Adam makes steps of
        if not name.endswith(("key.bias", "qkv.bias")):
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_images_that_cannot_be_decoded_are_not_described(tmp_path: Path):
    pictures = [sample.images[0] for sample in islice(gold(ShapesConfig(gold=3)), 3)]
    samples = (Sample(f"{i}", [data], ["a text"]) for i, data in enumerate([b"not an image", *pictures]))
    manifest = write_shards(samples, tmp_path / "data", "gold", per_shard=4)
    assert [tuple(view.shape) for view in views(manifest, 32)] == [(3, 32, 32)] * 3


def test_a_run_that_has_spent_what_it_may_does_not_begin(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    store = str(tmp_path / "store")
    ledger(store, "captioner").put("pretrain/1.json", json.dumps({"gpu_hours": 2.0}).encode())
    with pytest.raises(BudgetError, match=r"max_gpu_hours is 1 and the run has spent 2\.00"):
        train("captioner", "shapes", ["max_gpu_hours=1"], store, "r", str(data), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()
