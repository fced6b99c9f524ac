"""`blip train` killed, stopped, resized, out of budget, and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shapes_data import shapes_data

from blip.budget import BudgetError, ledger
from blip.config import ConfigError, load_config
from blip.data.tokenizer import Tokenizer
from blip.datasets.shapes.splits import ShapesConfig, gold_samples
from blip.models.weights.files import read_tensors, write_tensors
from blip.runs.config import RunConfig
from blip.runs.context import RunContext
from blip.runs.epochs import count_steps
from blip.runs.identity import identify
from blip.runs.train import train, views
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.training.engine import EngineConfig, precision

INTERRUPTED = Path(__file__).with_name("interrupted_training.py")
WORLD = ("data.world.gold=64", "data.world.web=64", "data.world.test=8", "per_shard=32")
# micro-batches of one size, so that the same run goes on over another number of processes
RUN = (
    "epochs=3",
    "checkpoint.every=2",
    "loader.batch=16",
    "loader.micro_batch=8",
    "task.alignment.queue=24",
    "loader.streams=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    return shapes_data(root, WORLD)


class Training:
    """Pre-trains on the tiny world, into a folder."""

    def __init__(self, data: Path, folder: Path):
        self.data, self.folder = data, folder

    def start(
        self, processes: int, *overrides: str, program: tuple[str, ...] = ("-m", "blip.cli")
    ) -> subprocess.Popen[str]:
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
        command = [
            sys.executable,
            *program,
            "train",
            "pretrain",
            *places,
            "--processes",
            str(processes),
            *words,
        ]
        environment = {**os.environ, "BLIP_TRACKING": "off", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
        )

    def finish(self, processes: int, *overrides: str) -> dict[str, torch.Tensor]:
        run = self.start(processes, *overrides)
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
        return self.made()

    def made(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "model.safetensors") | load_file(
            self.folder / "model" / "training_state.safetensors"
        )

    def curve(self, name: str) -> list[int]:
        """Returns the steps of a loss's curve."""
        return [step for step, _ in json.loads((self.folder / "figures.json").read_text())["curves"][name]]

    def losses(self) -> dict[str, float]:
        """Returns the losses of the last step."""
        return json.loads((self.folder / "figures.json").read_text())["losses"]

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("store/pretrain/*/step-*.json"))

    def interrupt(self, number: signal.Signals, processes: int, *overrides: str) -> int:
        """Waits for a checkpoint, sends a signal, and returns the exit code."""
        run = self.start(processes, *overrides)
        while not self.steps():
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.02)
        if number == signal.SIGKILL:
            os.killpg(run.pid, number)
            for child in (
                int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_of(path, str(self.folder))
            ):
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
    """An undisturbed run of one process."""
    training = Training(data, tmp_path_factory.mktemp("straight"))
    training.finish(1)
    return training


@pytest.fixture(scope="module")
def straight(undisturbed: Training) -> dict[str, torch.Tensor]:
    """Returns its weights, momentum weights and queue."""
    return undisturbed.made()


def test_a_run_that_is_stopped_politely_saves_and_goes_on_tensor_for_tensor(data: Path, straight, tmp_path: Path):
    training = Training(data, tmp_path)
    workers = ("loader.workers=1", "checkpoint.every=1")
    assert training.interrupt(signal.SIGTERM, 1, *workers) == 128 + signal.SIGTERM
    assert 0 < training.steps()[-1] < 24
    found = training.finish(1)  # how it reads and saves may change in between
    assert found.keys() == straight.keys()
    assert [name for name in found if not torch.equal(found[name], straight[name])] == []


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        pytest.param("after", 14, id="in-a-step"),  # the step that the signal meets is finished first
        pytest.param("waiting", 13, id="while-it-waits-for-data"),
    ],
)
def test_ctrl_c_saves_as_sigterm_does_and_no_point_of_a_curve_is_lost(
    data: Path, straight, tmp_path: Path, moment: str, saved: int
):
    training = Training(data, tmp_path)
    run = training.start(1, "checkpoint.every=10", program=(str(INTERRUPTED), moment, "13"))
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 130, said
    assert training.steps() == [10, saved], "it stops between two saves, which is what may lose points"
    found = training.finish(1, "checkpoint.every=10")
    assert training.curve("lm") == list(range(1, 25))
    assert [name for name in found if not torch.equal(found[name], straight[name])] == []


def test_a_run_that_is_killed_goes_on_over_another_number_of_processes(
    data: Path, undisturbed: Training, tmp_path: Path
):
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
    pictures = [sample.images[0] for sample in islice(gold_samples(ShapesConfig(gold=3)), 3)]
    samples = (Sample(f"{i}", [data], ["a text"]) for i, data in enumerate([b"not an image", *pictures]))
    manifest = write_shards(samples, tmp_path / "data", "gold", per_shard=4)
    assert [tuple(view.shape) for view in views(manifest, 32)] == [(3, 32, 32)] * 3


def test_a_run_that_has_spent_what_it_may_does_not_begin(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    store = str(tmp_path / "store")
    ledger(store, "captioner").put("pretrain/1.json", json.dumps({"gpu_hours": 2.0}).encode())
    context = RunContext(preset="shapes", overrides=("max_gpu_hours=1",), store=store)
    with pytest.raises(BudgetError, match=r"max_gpu_hours is 1 and the run has spent 2\.00"):
        train(context, "captioner", data=data, out=tmp_path / "model")
    assert not (tmp_path / "model").exists()


FEW = ("epochs=1", "loader.batch=16", "loader.streams=4")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


def identity(data: Path, *overrides: str, init: Path | None = None) -> dict:
    cfg = load_config(RunConfig, "captioner", "shapes", overrides)
    tokenizer = Tokenizer.from_folder(data / "tokenizer")
    return identify(cfg, [Manifest.load(data / f"{source}.json") for source in cfg.sources], tokenizer, init)


def test_a_run_is_known_by_what_goes_in_and_not_by_how_it_works(data: Path):
    plain = identity(data)
    for same in (
        "loader.workers=2",
        "checkpoint.every=5",
        "engine.zero=1",
        "engine.timeout=5",
        "max_gpu_hours=1",
        "engine.precision=fp32",
    ):
        assert identity(data, same) == plain
    fast = precision(EngineConfig(precision="fast"))
    assert identity(data, "engine.precision=fast") == identity(data, f"engine.precision={fast}")
    for other in (
        "engine.precision=bf16",
        "seed=1",
        "optimizer.lr=1e-4",
        "loader.batch=32",
        "epochs=1",
        "sources=[gold,web]",
    ):
        assert identity(data, other) != plain


def test_weights_to_start_from_count_by_their_tensors(data: Path, tmp_path: Path):
    def folder(name: str, value: float) -> Path:
        (tmp_path / name).mkdir()
        write_tensors({"word.weight": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
        return tmp_path / name

    first = identity(data, init=folder("first", 1.0))
    assert identity(data, init=folder("elsewhere", 1.0)) == first
    assert identity(data, init=folder("other", 2.0)) != first
    assert identity(data) != first
    path = tmp_path / "weights.pth"
    write_tensors({"a": torch.zeros(2)}, path)
    before = identity(data, f"init.checkpoint={path}")
    write_tensors({"a": torch.ones(2)}, path)
    assert identity(data, f"init.checkpoint={path}") != before, "another file at the same place"


@pytest.mark.usefixtures("quiet")
def test_a_run_goes_on_after_a_fix_of_the_code(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "blip")
    for revision in ("first", "fixed"):
        context = RunContext(preset="shapes", overrides=FEW, store=str(tmp_path / "store"), revision=revision)
        train(context, "captioner", data=data, out=tmp_path / revision)
    assert len(list((tmp_path / "store" / "captioner").iterdir())) == 1
    assert "resumes from step 4 of 4, saved by revision first" in caplog.text
    first, fixed = (read_tensors(tmp_path / revision) for revision in ("first", "fixed"))
    assert [name for name in first if not torch.equal(first[name], fixed[name])] == []


@pytest.mark.usefixtures("quiet")
def test_a_lead_comes_before_the_epochs_and_takes_its_sources_alone(data: Path, tmp_path: Path):
    run = ("lead={sources: [gold], epochs: 1.5}", "epochs=0.5", "loader.batch=16", "task.alignment.queue=8")
    context = RunContext(preset="shapes", overrides=run, store=str(tmp_path / "store"))
    assert train(context, "pretrain", data=data, out=tmp_path / "model").steps == 6 + 4
    only_gold = tmp_path / "only-gold"
    shutil.copytree(data, only_gold)
    (only_gold / "web.json").write_bytes((data / "gold.json").read_bytes())  # as large, or alpha rises otherwise
    led = ("steps=6", "epochs=null", "loader.batch=8", "lead={sources: [gold], epochs: 1}")
    tensors = []
    for place in (data, only_gold):
        context = RunContext(preset="shapes", overrides=led, store=str(tmp_path / "store"))
        train(context, "pretrain", data=place, out=tmp_path / f"model-{place.name}")
        tensors.append(load_file(tmp_path / f"model-{place.name}" / "model.safetensors"))
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


@pytest.mark.usefixtures("quiet")
def test_a_training_on_a_selection_may_take_as_many_steps_as_one_on_all(data: Path, tmp_path: Path):
    kept = tmp_path / "kept"
    shutil.copytree(data, kept)
    web = Manifest.load(data / "web.json")
    chosen = {"shards": web.shards[:1], "counts": {"images": web.samples}, "meta": {"selection": {}}}
    web.model_copy(update=chosen).save(kept / "web.json")
    run = ("lead={sources: [gold], epochs: 0.5}", "repeats={gold: 2}", "epochs=0.5", "loader.batch=32")

    def steps(place: Path, epoch_of: str) -> int:
        settings = (*run, f"epoch_of={epoch_of}", "task.alignment.queue=8")
        context = RunContext(preset="shapes", overrides=settings, store=str(tmp_path / "store"))
        return train(context, "pretrain", data=place, out=tmp_path / "model").steps

    # of 64 gold twice, and 64 or 32 web; 5 // 2 and 6 // 2
    assert (steps(kept, "kept"), steps(kept, "all")) == (1 + 2, 1 + 3)
    assert steps(data, "all") == steps(kept, "all")


@pytest.mark.usefixtures("quiet")
def test_a_training_in_bf16_on_a_cpu_goes_on_tensor_for_tensor(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "blip")
    run = ("steps=4", "epochs=null", "loader.batch=8", "task.alignment.queue=8", "engine.precision=bf16")
    context = RunContext(preset="shapes", overrides=(*run, "checkpoint.every=2"), store=str(tmp_path / "store"))
    made = []
    for name in ("straight", "resumed"):
        train(context, "pretrain", data=data, out=tmp_path / name)
        made.append(load_file(tmp_path / name / "model.safetensors"))
        (checkpoint,) = (tmp_path / "store").glob("pretrain/*/step-*4.json")
        checkpoint.unlink()
    assert caplog.text.count("resumes from step 2 of 4") == 1
    straight, resumed = made
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


@pytest.mark.usefixtures("quiet")
def test_zero_3_saves_the_same_model(data: Path, tmp_path: Path):
    made = {}
    for zero in (1, 3):
        # matrices that ZeRO-3 spreads: those of less than 1e5 elements it leaves whole
        overrides = (*FEW, f"engine.zero={zero}", "model.text.feed_forward=2048")
        context = RunContext(preset="shapes", overrides=overrides, store=str(tmp_path / f"store-{zero}"))
        train(context, "captioner", data=data, out=tmp_path / f"model-{zero}")
        made[zero] = read_tensors(tmp_path / f"model-{zero}")
    assert made[3].keys() == made[1].keys()
    assert any(tensor.numel() > 1e5 for tensor in made[3].values())
    for name, tensor in made[1].items():
        torch.testing.assert_close(made[3][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("quiet")
def test_a_place_that_cannot_hold_the_model_is_refused_before_the_training(data: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(ConfigError, match=f"--out {out} cannot be written to"):
            train(
                RunContext(preset="shapes", overrides=FEW, store=str(tmp_path / "store")),
                "captioner",
                data=data,
                out=out,
            )
    assert not (tmp_path / "store" / "captioner").exists()


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(
        ConfigError, match=r"epochs is 0\.01 and an epoch of this data has 8 steps, so the run has none: raise epochs"
    ):
        count_steps(0.01, 8)
    assert count_steps(0.1, 8) == 1


def stored(folder: Path, samples: list[Sample]) -> Path:
    """Writes a data folder with the samples as `gold`, and a tokenizer of their texts."""
    write_shards(iter(samples), str(folder / "shards"), "gold", per_shard=16).save(folder / "data" / "gold.json")
    Tokenizer.train([text for sample in samples for text in sample.texts], 100).save(folder / "data" / "tokenizer")
    return folder / "data"


@pytest.mark.usefixtures("quiet")
def test_questions_are_learnt_and_those_without_answers_are_counted(tmp_path: Path):
    pictures = [sample.images[0] for sample in islice(gold_samples(ShapesConfig(gold=16)), 16)]
    answers = [["yes", "yes", "no"], ["red"], [], None, "red", [1], [""]]
    samples = [
        Sample(f"{i:02}", [picture], ["what colour is it?"], {"answers": answers[i] if i < len(answers) else ["blue"]})
        for i, picture in enumerate(pictures)
    ]
    data = stored(tmp_path, samples)
    overrides = ("task={type: vqa}", "epochs=4", "loader.batch=8", "model.text.positions=40")
    context = RunContext(preset="shapes", overrides=overrides, store=str(tmp_path / "store"))
    found = train(context, "captioner", data=data, out=tmp_path / "model")
    assert found.losses["vqa"] > 0
    assert found.rejected == {"no answers": 3, "answer is not a text": 2}


@pytest.mark.usefixtures("quiet")
def test_statements_about_two_images_are_learnt_and_what_is_none_is_counted(tmp_path: Path):
    pictures = [sample.images[0] for sample in islice(gold_samples(ShapesConfig(gold=32)), 32)]
    samples = [Sample(f"{i:02}", pictures[i : i + 2], ["both show a circle"], {"label": i % 3 == 0}) for i in range(16)]
    samples[3].images, samples[5].meta = pictures[:1], {"label": "True"}
    data = stored(tmp_path, samples)
    overrides = ("task={type: nlvr}", "epochs=4", "loader.batch=8", "model.text.positions=64")
    context = RunContext(preset="shapes", overrides=overrides, store=str(tmp_path / "store"))
    found = train(context, "captioner", data=data, out=tmp_path / "model")
    assert found.losses["nlvr"] > 0
    assert found.rejected == {"not two images": 1, "label is neither true nor false": 1}
