"""`blip evaluate` of the downstream tasks: one process, two workers, and killed ones find the same."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_models import captioner, config, picture, tokenizer

from blip.datasets.shapes import ShapesConfig, task_samples
from blip.datasets.shapes.tasks import ShapesTaskName
from blip.evaluation.job import run_evaluation_worker
from blip.models.med import MEDConfig
from blip.results import EvaluationResult
from blip.runs.context import RunContext
from blip.runs.downstream import ingest_settings, ingest_task, judge
from blip.runs.evaluate import METRICS, evaluate
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import open_store
from blip.tasks.config import TaskConfig
from blip.tasks.dialog import DialogConfig
from blip.tasks.model_folder import save_model
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.task import Task
from blip.tasks.vqa import VQAConfig

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["blip.evaluation.job"])
RUN = (
    "evaluation.batch=2",
    "lease.seconds=2",
    "report=0.1",
    "dialog.tokens=64",
    "retrieval.rerank=3",
    "video_retrieval.rerank=3",
    "workers=1",
)
CASES: dict[ShapesTaskName, tuple[TaskConfig, tuple[str, ...]]] = {
    "vqa": (VQAConfig(), ("vqa",)),
    "nlvr": (NLVRConfig(), ("nlvr",)),
    "dialog": (DialogConfig(tokens=64), ("dialog",)),
    "video_qa": (VQAConfig(), ("vqa", "video_qa")),
    "video_retrieval": (RetrievalConfig(), ("video_retrieval",)),
}
"""For each data set the model, and the tasks that it is evaluated on there."""
SUBMISSIONS = {"vqa": "vqa_results.json", "nlvr": "nlvr2_predictions.csv", "dialog": "visdial_ranks.json"}


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


def sizes() -> MEDConfig:
    small = config()
    return small.model_copy(update={"text": small.text.model_copy(update={"positions": 64})})


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A data folder of five shards, and the folder of a random model."""
    cfg, tasks = CASES[request.param]
    torch.manual_seed(0)
    save_model(cfg.build_task(cfg.build_model(sizes()), tokenizer()), tmp_path / "model")
    world = ShapesConfig(test=9, size=16)
    samples = list(task_samples(request.param, "test", world))[:9]
    (tmp_path / "data").mkdir()
    write_shards(samples, tmp_path / "shards", "test", 2).save(tmp_path / "data" / "test.json")
    (tmp_path / "tasks").write_text(",".join(tasks))
    return tmp_path


def evaluated(folder: Path, out: str, workers=None) -> tuple[EvaluationResult, dict[str, bytes]]:
    """Returns the figures that do not differ from run to run, and the files that servers take."""
    tasks = f"tasks=[{(folder / 'tasks').read_text()}]"
    context = RunContext(preset="shapes", overrides=(*RUN, tasks), store=str(folder / f"store-{out}"))
    evaluate(context, data=folder / "data", model=folder / "model", out=folder / out, workers=workers)
    files = {path.name: path.read_bytes() for path in sorted((folder / out / "submission").glob("*"))}
    return EvaluationResult.load(folder / out / METRICS).model_copy(update={"seconds": 0.0}), files


def crew(kills: int, killed: list[str]):
    """Returns what starts two workers, kills the first `kills` that begin a shard, and replaces them."""

    @contextmanager
    def start(uri: str) -> Iterator[Callable[[], bool]]:
        numbers, store = count(), open_store(uri)
        processes = {}

        def begin() -> None:
            name = f"worker-{next(numbers)}"
            processes[name] = PROCESSES.Process(target=work, args=(uri, name))
            processes[name].start()

        def running() -> bool:
            leases = [key for key in store.list() if "/lease/" in key]
            busy = [name for name in processes if any(name.encode() in store.get(key) for key in leases)]
            if len(killed) < kills and busy:
                processes[busy[0]].kill()
                processes.pop(busy[0]).join()
                killed.append(busy[0])
                begin()
            assert all(process.exitcode in (None, 0) for process in processes.values())
            return any(process.exitcode is None for process in processes.values())

        begin(), begin()
        yield running

    return start


def work(uri: str, name: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    run_evaluation_worker(uri, name)


def test_one_process_two_workers_and_killed_ones_find_the_same(folder: Path):
    alone = evaluated(folder, "alone")
    killed: list[str] = []
    assert evaluated(folder, "two", crew(0, killed)) == alone
    assert evaluated(folder, "killed", crew(1, killed)) == alone
    assert len(killed) == 1
    result, files = alone
    tasks = (folder / "tasks").read_text().split(",")
    assert list(result.scores) == tasks
    assert set(result.baseline) == set(tasks)
    assert {SUBMISSIONS[task] for task in tasks if task in SUBMISSIONS} <= set(files)


def test_a_model_of_questions_is_judged_on_clips_too(tmp_path: Path):
    cfg = VQAConfig()
    save_model(cfg.build_task(cfg.build_model(sizes()), tokenizer()), tmp_path / "model")
    world = ["ingest.data.world.gold=1", "ingest.data.world.test=2", "ingest.data.world.size=16"]
    context = RunContext(preset="shapes", overrides=tuple(ingest_settings("vqa", world)), store=str(tmp_path / "store"))
    ingested = ingest_task(context, "vqa", out=tmp_path / "data")
    assert {name: split.samples for name, split in ingested.splits.items()} == {"train": 4, "test": 8, "clips": 2}
    context = context.model_copy(update={"overrides": RUN})
    found = judge(context, "vqa", data=tmp_path / "data", model=tmp_path / "model", out=tmp_path / "out")
    assert set(found.scores) == set(found.baseline) == {"vqa", "video_qa"}
    assert found.baseline["video_qa"].keys() == found.scores["video_qa"].keys()
    assert EvaluationResult.load(tmp_path / "out" / METRICS).scores == found.scores


def odd(tmp_path: Path, task: str, model: Task, samples: list[Sample], *overrides: str) -> EvaluationResult:
    """Evaluates a model on samples of one's own, in `tmp_path`."""
    save_model(model, tmp_path / "model")
    (tmp_path / "data").mkdir()
    write_shards(samples, tmp_path / "shards", "test", 5).save(tmp_path / "data" / "test.json")
    context = RunContext(
        preset="shapes", overrides=(*RUN, f"tasks=[{task}]", *overrides), store=str(tmp_path / "store")
    )
    return evaluate(context, data=tmp_path / "data", model=tmp_path / "model", out=tmp_path / "out")


def test_images_whose_captions_a_server_keeps_are_captioned_for_it(tmp_path: Path):
    images = [Sample(f"{i}", [picture(i)], [], {"image_id": i, "domain": "in-domain"}) for i in range(3)]
    result = odd(tmp_path, "captioning", captioner(), images)
    assert result.scores == {"captioning": {}}
    assert list(result.not_scored) == ["captioning.cider"]
    sent = json.loads((tmp_path / "out" / "submission" / "captions_results.json").read_bytes())
    assert [(one["image_id"], set(one)) for one in sent] == [(i, {"image_id", "caption"}) for i in range(3)]


def test_clips_may_differ_in_the_number_of_their_frames(tmp_path: Path):
    def clip(number: int, frames: int) -> Sample:
        images = [picture(10 * number + i) for i in range(frames)]
        return Sample(f"{number}", images, ["how big is it?"], {"question_id": number, "answers": ["small"]})

    clips = [clip(number, frames) for number, frames in enumerate((4, 2, 2, 3, 4))]
    torch.manual_seed(0)
    model = VQAConfig().build_task(VQAConfig().build_model(sizes()), tokenizer())
    odd(tmp_path, "video_qa", model, clips, "evaluation.batch=4")
    answers = json.loads((tmp_path / "out" / "submission" / "vqa_results.json").read_bytes())
    assert [one["question_id"] for one in answers] == [0, 1, 2, 3, 4]
