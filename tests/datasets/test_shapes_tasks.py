"""The world of shapes as data sets of downstream tasks: what its samples say is true of what they show."""

from collections import Counter

import pytest

from blip.datasets.shapes import ShapesConfig, answer, is_true, task_samples
from blip.datasets.shapes.dialogs import CANDIDATES
from blip.datasets.shapes.pairs import FORMS, PHRASES
from blip.datasets.shapes.tasks import CLIP_FRAMES, MOVING
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

WORLD = ShapesConfig(gold=300, test=40)


def thing(scene: dict) -> dict:
    return scene["objects"][0]


def test_statements_about_pairs_are_true_as_labelled_and_half_of_them_are():
    found = list(task_samples("nlvr", "train", WORLD))
    assert 0.4 < sum(s.meta["label"] for s in found) / len(found) < 0.6
    forms = Counter()
    for sample in found:
        (text,) = sample.texts
        (form,) = (form for form in FORMS if text.startswith(PHRASES[form].partition(" {")[0]))
        forms[form] += 1
        word = text.removesuffix(" thing").rpartition(" ")[2]
        sides = [word in thing(sample.meta["truth"][side]).values() for side in ("left", "right")]
        true = {"both": all(sides), "left": sides[0], "right": sides[1], "one": sum(sides) == 1}[form]
        assert sample.meta["label"] == int(true), text
        assert len(sample.images) == 2
    assert min(forms.values()) > 50


def test_both_labels_occur_with_every_form():
    found = Counter(
        (s.texts[0].split(" ")[1 if s.texts[0].startswith("the") else 0], s.meta["label"])
        for s in task_samples("nlvr", "train", WORLD)
    )
    assert len(found) == 8
    assert min(found.values()) > 15


def test_dialogs_ask_about_one_thing_and_every_answer_is_true():
    for sample in task_samples("dialog", "test", WORLD):
        truth, rounds = sample.meta["truth"], sample.meta["rounds"]
        assert len(truth["objects"]) == 2
        assert is_true(truth, sample.texts[0])
        first = answer(truth, rounds[0]["question"])
        size = {word: size for size in ("small", "large") for word in (size, "little", "tiny", "big", "huge")}
        assert all(" it?" in one["question"] for one in rounds[1:])
        values = {one["answer"] for one in rounds}
        assert first in values or size.get(rounds[0]["answer"])
        for one in rounds:
            assert sorted(one["options"]) == sorted(CANDIDATES)
            assert one["options"][one["correct"]] == one["answer"]
            assert one["relevance"][one["correct"]] == 1
            assert sum(value > 0 for value in one["relevance"]) in (1, 3)
        asked = {word for word in values if word not in ("small", "little", "tiny", "large", "big", "huge")}
        assert any(asked <= set(item.values()) for item in truth["objects"])


def test_clips_are_read_from_a_video_and_described_by_what_does_not_move():
    (sample, *_) = task_samples("video_retrieval", "test", WORLD)
    assert len(sample.images) == CLIP_FRAMES
    assert len(set(sample.images)) == CLIP_FRAMES
    assert is_true(sample.meta["truth"], sample.texts[0])
    for sample in list(task_samples("video_qa", "test", WORLD))[:20]:
        assert answer(sample.meta["truth"], sample.texts[0]) == sample.meta["answers"][0]
        assert not MOVING & set(sample.texts[0].removesuffix("?").split())


@pytest.mark.parametrize("task", ["vqa", "nlvr", "video_qa"])
def test_a_task_is_ingested_with_both_splits(task: str, tmp_path):
    overrides = (f"data.task={task}", "data.world.gold=12", "data.world.test=5", "per_shard=20")
    context = RunContext(preset="shapes", overrides=overrides, store=str(tmp_path / "store"))
    result = ingest(context, "shapes_task", out=tmp_path / "data")
    assert set(result.splits) == {"train", "test"}
    train, test = (list(samples(Manifest.load(tmp_path / "data" / f"{split}.json"))) for split in ("train", "test"))
    assert (len(train), len(test)) == {"vqa": (48, 20), "nlvr": (48, 60), "video_qa": (12, 5)}[task]
    assert not {s.images[0] for s in train} & {s.images[0] for s in test}
