"""The stages of BLIP-2 by `blip train`: what they save, killed, resized and resumed; and the memory that they take."""

import gc
import json
import multiprocessing
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shapes_data import shapes_data
from tiny_blip2 import WIDTH, WORDS, blip2_config, clip, opt, shuffle, t5
from torch import Tensor
from train_blip2 import main, run
from transformers import OPTConfig, OPTForCausalLM

from blip.batch import Example
from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer
from blip.models.language.config import LanguageModelConfig
from blip.models.weights.files import WeightsError
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config
from blip.tasks.model_folder import load_task
from blip.training.engine import Engine, EngineConfig
from blip.training.optimizer import OptimizerConfig, ScheduleConfig

WORLD = ("data.world.gold=48", "data.world.web=16", "data.world.test=8", "per_shard=32")
STEPS, FAILED, SAVED = 5, 3, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("blip2")
    shapes_data(root, WORLD)
    return {
        "data": str(root / "data"),
        "clip": clip(root / "clip"),
        "opt": opt(root / "opt"),
        "t5": t5(root / "t5"),
        "root": str(root),
    }


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


def settings(folders: dict[str, str], *more: str) -> tuple[str, ...]:
    return (
        f"steps={STEPS}",
        "sources=[gold]",
        f"model.vision={{source: {folders['clip']}, size: 32, width: {WIDTH}}}",
        "model.text={width: 16, depth: 2, heads: 2, feed_forward: 32, positions: 48}",
        "model.queries=4",
        "transform.size=32",
        "loader={batch: 16, micro_batch: 8, streams: 4}",
        "schedule={warmup_steps: 2}",
        "optimizer.lr=1e-3",
        "checkpoint.every=2",
        *more,
    )


def stage1(folders: dict[str, str]) -> tuple[str, ...]:
    # negatives of one micro-batch, so that they are the same on any number of processes
    return settings(folders, "init.text=null", "task.alignment.negatives=rank")


def stage2(folders: dict[str, str], kind: str, bits: str = "none") -> tuple[str, ...]:
    return settings(folders, f"model.language_model={{source: {folders[kind]}, width: {WORDS}, quantization: {bits}}}")


def train(folders: dict[str, str], stage: str, overrides: tuple[str, ...], name: str, **options: Any) -> Any:
    return run(stage, overrides, folders["data"], f"{folders['root']}/{name}", **options)


def weights(folders: dict[str, str], name: str) -> dict[str, Tensor]:
    return load_file(f"{folders['root']}/{name}/model/model.safetensors")


def checkpoints(folders: dict[str, str], name: str) -> dict[int, dict[str, Tensor]]:
    """Returns the tensors of each checkpoint of a run by step."""
    found = {}
    for path in Path(folders["root"], name, "store").glob("blip2_*/*/step-*.json"):
        parts = json.loads(path.read_text())["parts"].values()
        found[int(path.stem.removeprefix("step-"))] = {
            key: tensor for part in parts for key, tensor in load_file(path.parent / part["key"]).items()
        }
    return found


@pytest.fixture(scope="module")
def first(folders: dict[str, str]) -> Any:
    """The result of an undisturbed first stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        return train(folders, "blip2_stage1", stage1(folders), "first")


def test_a_first_stage_that_fails_goes_on_tensor_for_tensor(folders: dict[str, str], first: Any):
    assert train(folders, "blip2_stage1", stage1(folders), "failed", until=FAILED) is None
    assert set(checkpoints(folders, "failed")) == {SAVED}
    elsewhere = {**folders, "clip": f"{folders['root']}/moved"}  # weights are known by their digest, not their place
    shutil.copytree(folders["clip"], elsewhere["clip"])
    again = train(folders, "blip2_stage1", stage1(elsewhere), "failed")
    assert again.losses == first.losses
    expected, found = weights(folders, "first"), weights(folders, "failed")
    assert found.keys() == expected.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    last, resumed = checkpoints(folders, "first")[STEPS], checkpoints(folders, "failed")[STEPS]
    assert [name for name in last if not last[name].equal(resumed[name])] == []
    assert "model/alignment.temperature" in last


def test_a_first_stage_goes_on_over_another_number_of_processes(folders: dict[str, str], first: Any):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "stage": "blip2_stage1",
        "overrides": stage1(folders),
        "data": folders["data"],
        "folder": f"{folders['root']}/resized",
        "until": FAILED,
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_blip2", "blip.training.zero"])
    log = f"{folders['root']}/log"
    group = [context.Process(target=main, args=(rank, 2, port, log, options)) for rank in range(2)]
    for process in group:
        process.start()
    for process in group:
        process.join(300)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in group] == [0, 0], Path(log).read_text()
    assert set(checkpoints(folders, "resized")) == {SAVED}
    again = train(folders, "blip2_stage1", stage1(folders), "resized")
    assert again.losses == pytest.approx(first.losses, rel=1e-3)
    found = weights(folders, "resized")
    for name, tensor in weights(folders, "first").items():
        # attention does not feel the bias of its keys: that gradient is rounding noise, which Adam makes steps of
        if not name.endswith("key.bias"):
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("opt", "none"),
        ("t5", "none"),
        pytest.param("opt", "4bit", marks=pytest.mark.slow),
        pytest.param("t5", "8bit", marks=pytest.mark.slow),
    ],
)
def test_a_second_stage_that_fails_goes_on_tensor_for_tensor(folders: dict[str, str], first: Any, kind: str, bits: str):
    assert first.steps == STEPS
    options, names = (
        {"init": f"{folders['root']}/first/model"},
        [f"{kind}-{bits}-{end}" for end in ("failed", "straight")],
    )
    train(folders, "blip2_stage2", stage2(folders, kind, bits), names[0], until=FAILED, **options)
    found, expected = (train(folders, "blip2_stage2", stage2(folders, kind, bits), name, **options) for name in names)
    assert found.losses == expected.losses
    assert {name.split(".")[0] for name in weights(folders, names[0])} == {"ln_vision", "qformer", "projection"}
    mine, theirs = (weights(folders, name) for name in names)
    assert [name for name in theirs if not theirs[name].equal(mine[name])] == []
    from_first = weights(folders, "first")["qformer.layers.0.cross_attention.value.weight"]
    assert (theirs["qformer.layers.0.cross_attention.value.weight"] - from_first).abs().max() < 0.02, "it starts there"


def test_frozen_weights_are_in_no_checkpoint_and_checked_on_load(folders: dict[str, str], first: Any, tmp_path: Path):
    init = f"{folders['root']}/first/model"
    mine = {**folders, "opt": opt(tmp_path / "opt")}
    train(mine, "blip2_stage2", stage2(mine, "opt"), "kept", init=init)
    parts = {name.split(".")[0] for name in weights(folders, "kept")}
    assert parts == {"ln_vision", "qformer", "projection"}
    saved = checkpoints(folders, "kept")[STEPS]
    assert {name.split("/")[1].split(".")[1] for name in saved} == parts
    folder = Path(folders["root"], "kept", "model")
    model = json.loads((folder / "config.json").read_text())["model"]
    assert len(model["vision"]["digest"]) == len(model["language_model"]["digest"]) == 64
    task = load_task(folder)
    assert isinstance(task, Blip2Stage2)
    opt(tmp_path / "opt", seed=1)
    with pytest.raises(WeightsError, match=r"model.language_model.source .* holds other weights than the model was"):
        load_task(folder)
    assert first.steps == STEPS


def test_a_frozen_model_that_does_not_fit_ends_a_run_before_it_begins(folders: dict[str, str]):
    overrides = (*stage1(folders), "model.vision.width=24")
    with pytest.raises(ConfigError, match=r"model.vision.width is 24, but the tokens of .* are 16 wide"):
        train(folders, "blip2_stage1", overrides, "unfit")
    assert not Path(folders["root"], "unfit").exists()


def tensor_bytes() -> int:
    """Returns the size of all tensors of this process."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, torch.nn.Parameter):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_only_what_is_trained_has_gradients_and_optimizer_state(folders: dict[str, str], tmp_path: Path):
    opt(tmp_path / "opt")
    large = OPTConfig(
        vocab_size=2000,
        hidden_size=256,
        ffn_dim=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    shuffle(OPTForCausalLM(large)).save_pretrained(tmp_path / "opt")
    language = LanguageModelConfig(source=str(tmp_path / "opt"), width=256, precision="fp32")
    sizes = blip2_config(folders["clip"]).model_copy(update={"language_model": language})
    cfg = Blip2Stage2Config()
    task = cfg.build_task(cfg.model_from(sizes), Tokenizer.from_folder(Path(folders["data"], "tokenizer")))
    assert isinstance(task, Blip2Stage2)
    frozen = sum(p.nbytes for p in task.model.language_model.parameters())
    trained = sum(p.nbytes for p in task.parameters())
    assert frozen > 100 * trained
    before = tensor_bytes()
    assert before >= frozen
    engine = Engine(task, EngineConfig(zero=0), OptimizerConfig(lr=1e-3), ScheduleConfig(), steps=9, steps_per_epoch=9)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    for _ in range(2):
        batch = task.collate([Example(str(i), images[i], ["", "a red circle"]) for i in range(2)])
        engine.train([batch])
    assert {id(p) for p in engine.deepspeed.optimizer.state} == {id(p) for p in task.parameters()}
    assert all(p.grad is None for p in task.model.language_model.parameters())
    # a gradient and two moments for each trained weight, and a little for the batch and the engine
    assert tensor_bytes() - before < 4 * trained + 200_000
    assert 4 * trained + 200_000 < frozen / 10, "the bound would tell if frozen weights had gradients"
    state = engine.state()
    assert sum(tensor.nbytes for tensor in state.values()) < 4 * trained


def test_an_image_encoder_is_trained_on_from_the_first_stage_saved_and_resumed(folders: dict[str, str], first: Any):
    assert first.steps == STEPS
    init = f"{folders['root']}/first/model"
    overrides = settings(folders, "epochs=null", "task.alignment.negatives=rank", "model.vision.trained=true")
    done = train(folders, "blip2_retrieval", overrides, "tuned", init=init)
    assert train(folders, "blip2_retrieval", overrides, "tuned again", init=init, until=FAILED) is None
    again = train(folders, "blip2_retrieval", overrides, "tuned again", init=init)
    assert again.losses == done.losses
    expected, found = weights(folders, "tuned"), weights(folders, "tuned again")
    assert any(name.startswith("visual_encoder.") for name in expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
