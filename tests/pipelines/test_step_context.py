"""What a component makes of a verb's result: a page, a record in the store, and the lineage of both."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import dsl

from blip.config import ConfigError
from blip.launch.resources import Resources
from blip.results import Alarm, FetchResult, GateResult, TrainResult
from blip.runs.outputs import FOLDER, StepOutput
from blip.storage import StoreError, open_store
from components.context import at_work, write_page
from components.plan import plan

TRAINED = TrainResult(steps=3, losses={"itc": 4.25, "lm": float("nan")}, curves={"itc": [(0, 5.0)]})


def page(tmp_path: Path) -> dsl.HTML:
    return dsl.HTML(name="page", uri=str(tmp_path / "artifacts" / "page"))


def finished(tmp_path: Path, made: dsl.HTML, result: TrainResult | GateResult = TRAINED, **inputs: str) -> StepOutput:
    """Runs a step that writes one file, and returns the record of its output."""
    with at_work("pretrain", "shapes", ["pretrain.epochs=2"], str(tmp_path / "store")) as step:
        for role, uri in inputs.items():
            step.input(role, uri)
        (step.out / "model").mkdir()
        (step.out / "model" / "weights").write_bytes(b"tensors")
        uri = step.finish(result, lambda found: f"<p>{found.seconds:.3f} s</p>", made)
    return StepOutput.load(uri)


def test_seconds_are_those_since_the_process_began():
    code = "import time; time.sleep(0.2); from components.context import process_seconds; print(process_seconds())"
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 0.2 < float(said) < time.monotonic() - began + 0.05


def test_a_page_has_the_name_of_its_step_as_file_and_in_the_interface(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_NAME", "pretrain-again")
    made = page(tmp_path)
    finished(tmp_path, made)
    assert Path(made.path).name == "pretrain-again.html"
    assert made.uri == str(tmp_path / "artifacts" / "page" / "pretrain-again.html"), "below the path that KFP gave"
    assert made.metadata == {"display_name": "pretrain-again"}
    assert Path(made.path).read_text(encoding="utf-8").startswith("<p>")


def test_an_item_of_a_loop_stands_before_the_name_of_the_step_in_mlflow_and_on_its_page(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_NAME", "fine-tune")
    made = page(tmp_path)
    with at_work("vqa", "shapes", [], str(tmp_path / "store"), "vqa@first") as step:
        assert step.name == os.environ["MLFLOW_RUN_NAME"] == "vqa@first fine-tune"
        step.finish(TRAINED, lambda _: "<p>", made)
    assert os.environ["MLFLOW_RUN_NAME"] == "fine-tune"
    assert made.metadata["display_name"] == "vqa@first fine-tune"
    assert made.uri.endswith("/page/vqa-first-fine-tune.html")


def test_alarms_stand_in_the_metadata_of_the_page(tmp_path):
    made = page(tmp_path)
    finished(tmp_path, made, TRAINED.model_copy(update={"alarms": (Alarm(name="captions_alike", step=40),)}))
    assert made.metadata["alarms"] == ["captions alike at step 40"]


def test_an_output_holds_files_result_and_inputs(tmp_path):
    first = finished(tmp_path, page(tmp_path))
    second = finished(tmp_path, page(tmp_path), init=first.uri)
    with second.folder() as folder:
        assert (folder / "model" / "weights").read_bytes() == b"tensors"
    found = second.input("init").result_of(TrainResult)
    assert found.seconds > 0
    assert repr(found) == repr(TRAINED.model_copy(update={"seconds": found.seconds})), "not a number stays one"
    with pytest.raises(ConfigError, match="was made without data; it has init"):
        second.input("data")
    with pytest.raises(ConfigError, match="is not the output of register"):
        first.result_of(GateResult)


def test_an_output_in_a_bucket_is_fetched_and_its_copy_goes_with_the_step(s3, tmp_path):
    with at_work("pretrain", "shapes", [], f"{s3}/blip") as step:
        (step.out / "weights").write_bytes(b"tensors")
        uri = step.finish(TRAINED, lambda _: "<p>", page(tmp_path))
    assert uri.startswith(f"{s3}/blip/made/pretrain/")
    with at_work("captioner", "shapes", [], f"{s3}/blip") as step:
        folder = step.input("init", uri)
        assert (folder / "weights").read_bytes() == b"tensors"
    assert not folder.exists()
    open_store(uri).put(f"files/{FOLDER}/weights", b"others")
    with (
        at_work("filter", "shapes", [], f"{s3}/blip") as step,
        pytest.raises(StoreError, match="does not match its SHA-256"),
    ):
        step.input("init", uri)


def test_the_plan_says_what_pods_ask_for_and_leaves_the_rest_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    store = str(tmp_path / "store")
    given = {"pipeline": "bootstrap", "name": "blip", "source": "shapes", "preset": "shapes", "store": store}
    changes = ["placement.memory=128Gi", "pretrain.epochs=2"]
    made = plan.python_func(**given, overrides=changes, placement="a100", max_gpu_hours=3.0)
    settings, requests = made[:13], made[13:]
    assert [len(one) for one in settings] == [1, 2, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1], "a key each, and what is set"
    gpu = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    pool = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert requests == ("1", "nvidia.com/gpu", "8", "128Gi", pool, gpu)
    watched = plan.python_func(**given, overrides=["placement.nodes=2"], placement="a100x8", max_gpu_hours=3.0)
    assert watched[13:] == ("0", "nvidia.com/gpu", "4", "16Gi", {}, []), "the jobs hold the GPUs"
    assert Resources.load(store).placement.nodes == 2
    keys = [one[-1] for one in settings if one]
    bound = plan.python_func(**given, overrides=["pretrain.epochs=2"], placement="cpu", max_gpu_hours=9.0)
    assert keys == [one[-1] for one in bound[:13] if one], "no key knows of placement or hours"


def test_the_same_step_again_makes_another_output(tmp_path):
    first, second = (finished(tmp_path, page(tmp_path)) for _ in range(2))
    assert first.uri != second.uri, "or a cache would not see that what was made again may differ"
    assert Path(first.uri).parent == Path(second.uri).parent == tmp_path / "store" / "made" / "pretrain"


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_step_that_fetches_the_same_again_makes_the_same_output(place, tmp_path, s3):
    store = s3 if place == "bucket" else str(tmp_path / "store")

    def fetched(digest: str) -> str:
        with at_work("fetch-model", "shapes", [], store) as step:
            (step.out / "weights").write_bytes(digest.encode())
            found = FetchResult(source="models:/blip@champion", task="pretraining", digest=digest, seconds=time.time())
            return step.finish(found, lambda _: "", page(tmp_path), same=True)

    first = fetched("a")
    assert fetched("a") == first
    assert fetched("b") != first
    with StepOutput.load(first).folder() as folder:
        assert (folder / "weights").read_bytes() == b"a"


def test_a_deleted_output_is_named_with_the_way_out(tmp_path):
    gone = str(tmp_path / "store" / "made" / "pretrain" / "0123")
    with pytest.raises(ConfigError, match=r"0123 is no output of a step, or was deleted: .*--again STEP"):
        finished(tmp_path, page(tmp_path), init=gone)


def test_steps_of_a_run_find_its_resources_and_others_have_none(tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    Resources.of("a100", ["gpus=4"], max_gpu_hours=12.5).save(store)
    with at_work("pretrain", "shapes", [], store) as step:
        assert step.run.overrides == ("max_gpu_hours=12.5",)
        assert step.resources.placement.gpus == 4
    monkeypatch.setenv("BLIP_GROUP", "run-8")
    with at_work("pretrain", "shapes", [], store) as step:
        assert step.run.overrides == ()
        assert not step.resources.placement.in_jobs


def test_a_page_without_a_step_has_a_name(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_NAME", raising=False)
    made = page(tmp_path)
    write_page("<p>", made)
    assert Path(made.path).name == "page.html"
