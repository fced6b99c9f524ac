"""Visual dialog: candidates are ranked by what was said before, the caption and the image."""

import math

import numpy as np
import pytest
import torch

from blip.batch import Batch
from blip.models.dialog import DialogModel
from blip.models.med import MED, MEDConfig
from blip.models.weights.load import load_weights
from blip.shards.sample import BadSample, Sample
from blip.tasks.dialog import Dialog, DialogConfig
from blip.tasks.model_folder import load_task, save_model

CONFIG = DialogConfig(caption={"tokens": 16, "pad": "longest"}, tokens=40, negatives=2)  # pyright: ignore
ROUNDS = [
    {"question": "what color is it", "answer": "red", "options": ["blue", "red", "green", "yes"], "correct": 1},
    {
        "question": "is it red",
        "answer": "yes",
        "options": ["no", "blue", "yes", "red"],
        "correct": 2,
        "relevance": [0.0, 0.0, 1.0, 0.5],
    },
]


def view(image: bytes) -> torch.Tensor:
    draw = torch.Generator().manual_seed(image[0])
    return torch.randint(0, 256, (3, 16, 16), generator=draw, dtype=torch.uint8)


def dialog(number: int = 0, rounds: list | None = None, caption: str = "a red circle") -> Sample:
    return Sample(f"d{number}", [bytes([number])], [caption], {"image_id": 40 + number, "rounds": rounds or ROUNDS})


def batch_of(task: Dialog, *samples: Sample) -> Batch:
    return task.collate([task.whole(sample, view) for sample in samples])


def test_it_learns_by_heart_which_answers_are_true(make):
    task = make(CONFIG)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(150):
        optimizer.zero_grad()
        task(task.collate([task.prepare(dialog(i), view, rng) for i in range(4)]))["itm"].backward()
        optimizer.step()
    found = task.eval().predict(batch_of(task, dialog(0), dialog(1)))
    scores = dict(task.score(found))
    assert (scores["r1"], scores["mrr"], scores["mean_rank"]) == (100, 100, 1)
    assert scores["ndcg"] > 60


def test_candidates_of_training_are_the_true_answer_and_wrong_ones(make):
    task = make(CONFIG)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        meta = task.prepare(dialog(), view, rng).meta
        right, *wrong = meta["candidates"]
        assert right == ROUNDS[meta["round"]]["answer"]
        assert len(wrong) == len(set(wrong)) == 2
        assert right not in wrong
        seen.add((meta["round"], *sorted(wrong)))
    assert len(seen) == 6


def test_the_oldest_rounds_are_left_out_where_there_is_no_room(make):
    task = make(CONFIG)
    turns = [{"question": "what color is it", "answer": "red"}] * 9 + [ROUNDS[1]]
    (text, *_) = texts = task.texts(turns, 9, ["no", "a blue square"])
    assert text.endswith("is it red [SEP] no")
    assert 1 < text.count("what color") < 9
    assert max(task.tokenizer.count(texts)) + 2 <= CONFIG.tokens
    longer = task.texts(turns, 9, ["no", "a blue square a blue square a blue square a blue square"])
    assert longer[0].count("what color") < text.count("what color")


@pytest.mark.parametrize("change", ["history", "caption", "image"])
def test_history_caption_and_image_count(make, change: str):
    task = make(CONFIG).eval()
    other = {
        "history": dialog(0, [{**ROUNDS[0], "answer": "blue"}, ROUNDS[1]]),
        "caption": dialog(0, caption="a blue square"),
        "image": dialog(1),
    }[change]
    (one,), (two,) = task.predict(batch_of(task, dialog())), task.predict(batch_of(task, other))
    assert one.scores[1] != pytest.approx(two.scores[1], abs=1e-6)


def test_a_dialog_is_scored_alike_beside_others_with_longer_captions(make):
    """The padding of a caption is not attended to."""
    task = make(CONFIG).eval()
    (alone,) = task.predict(batch_of(task, dialog()))
    (beside, _) = task.predict(batch_of(task, dialog(), dialog(1, caption="the yellow cross a blue square")))
    for scores, others in zip(alone.scores, beside.scores, strict=True):
        assert others == pytest.approx(scores, abs=1e-5)
    trained, _ = task.model.encode(torch.zeros(2, 3, 16, 16), batch_of(task, dialog(), dialog(1)).text)
    assert trained.shape[1] > 5


def test_ranks_for_the_server_are_of_all_candidates_from_one(make):
    task = make(CONFIG).eval()
    test = [ROUNDS[0] | {"options": []}, {"question": "is it red", "options": ["a", "b", "c"]}]
    found = task.predict(batch_of(task, dialog(rounds=test)))
    assert dict(task.score(found)) == {}
    assert list(task.not_scored(found)) == ["mrr", "ndcg"]
    ((name, (ranks,)),) = task.submission(found).items()
    assert name == "visdial_ranks.json"
    assert (ranks["image_id"], ranks["round_id"], sorted(ranks["ranks"])) == (40, 2, [1, 2, 3])
    best = max(range(3), key=found[0].scores[0].__getitem__)
    assert ranks["ranks"][best] == 1


@pytest.mark.parametrize(
    "rounds",
    ["none", [], [{"question": 3}], [{**ROUNDS[0], "correct": 9}], [{**ROUNDS[0], "options": [1]}],
     [{**ROUNDS[0], "relevance": [1.0]}], [{**ROUNDS[0], "answer": 3}],
     *([{**ROUNDS[0], "options": ["a", "b"], "correct": 0, "relevance": [0.5, odd]}]
       for odd in ("x", None, math.nan, -1.0, 10**400, [1.0]))],
)  # fmt: skip
def test_rounds_that_are_no_dialog_are_refused(make, rounds):
    with pytest.raises(BadSample, match="rounds that are no dialog"):
        make(CONFIG).whole(Sample("d", [b"0"], ["a"], {"rounds": rounds}), view)


def test_nothing_to_learn_from_is_refused(make):
    with pytest.raises(BadSample, match="no round with an answer"):
        make(CONFIG).prepare(dialog(rounds=[{"question": "q"}]), view, np.random.default_rng(0))


def test_it_starts_from_a_pretrained_model_with_fewer_positions_and_is_saved(sizes: MEDConfig, tokenizer, tmp_path):
    from safetensors.torch import save_model as save

    pretrained = MED(sizes)
    save(pretrained, str(tmp_path / "model.safetensors"))
    longer = sizes.model_copy(update={"text": sizes.text.model_copy(update={"positions": 64})})
    model = DialogModel(longer)
    before = model.text_encoder.embeddings.position.weight.detach().clone()
    load_weights(model, str(tmp_path / "model.safetensors"), DialogConfig.DIFFERENCES)
    after = model.text_encoder.embeddings.position.weight
    assert torch.equal(after[:40], pretrained.text_encoder.embeddings.position.weight)
    assert torch.equal(after[40:], before[40:])
    save_model(CONFIG.build_task(model, tokenizer), tmp_path / "folder")
    again = load_task(tmp_path / "folder")
    assert torch.equal(again.model.text_encoder.embeddings.position.weight, after)
