"""VQA: answers are weighted, a planted answer is ranked first, and each setting has its effect."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blip.batch import Batch, Example
from blip.config import ConfigError, validate
from blip.data.transforms import normalise
from blip.models.bert import KVCache
from blip.shards.sample import BadSample, Sample
from blip.tasks.annotations import read_answers
from blip.tasks.vqa import VQA, VQAConfig, VQAPrediction

QUESTIONS = ["What color is it?", "Is it red? "]


def batch_of(task: VQA, said: list[list[str]], **meta) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(said), 3, 16, 16), generator=generator, dtype=torch.uint8)
    return task.collate(
        [Example(str(i), images[i], [QUESTIONS[i]], {"answers": s, **meta}) for i, s in enumerate(said)]
    )


def teach(task: VQA, answer: str) -> None:
    """Makes the model give one answer to all questions."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    batch = batch_of(task, [[answer], [answer]])
    for _ in range(60):
        optimizer.zero_grad()
        task(batch)["vqa"].backward()
        optimizer.step()


def test_answers_weigh_as_many_people_gave_them(make):
    task = make(VQAConfig())
    batch = batch_of(task, [["red", "red", "blue", "red"], ["yes"]])
    assert batch.extra["owner"].tolist() == [0, 0, 1]
    assert batch.extra["weights"].tolist() == pytest.approx([0.75, 0.25, 1.0])
    assert batch.text is not None
    assert batch_of(task, [["red"]], weight=0.2).extra["weights"].tolist() == pytest.approx([0.2])


def test_the_loss_is_the_weighted_sum_over_answers_a_question(make):
    task = make(VQAConfig())
    both = task(batch_of(task, [["red", "blue"], ["yes"]]))["vqa"].item()
    red, blue = (task(batch_of(task, [[answer], ["yes"]]))["vqa"].item() for answer in ("red", "blue"))
    assert both == pytest.approx((red + blue) / 2, rel=1e-5)


def test_a_planted_answer_is_ranked_first_and_written(make):
    task = make(VQAConfig(rank_candidates=2))
    teach(task, "blue square")
    task.eval()
    batch = batch_of(task, [["red"], ["no"]])
    choices = task.encode_answers(["yes", "red circle", "blue square", "blue ring", "no"])
    assert task.rank(batch.images, batch.text, choices).tolist() == [2, 2]
    assert task.generate(batch.images, batch.text) == ["blue square", "blue square"]


def test_more_candidates_than_answers_are_no_mistake(make):
    task = make(VQAConfig(rank_candidates=99)).eval()
    batch = batch_of(task, [["red"], ["no"]])
    best = task.rank(batch.images, batch.text, task.encode_answers(["yes", "no", "a red circle"]))
    everything = [
        task.answer_losses(
            task.encode_answers([answer] * 2),
            task.model.encode_question(normalise(batch.images), batch.text),
            batch.text.mask,
            0.0,
        )
        for answer in ("yes", "no", "a red circle")
    ]
    assert best.tolist() == torch.stack(everything).argmin(0).tolist()


def test_smoothing_favours_short_answers_by_the_switch_alone(make):
    plain = make(VQAConfig())
    smoothed = VQA(VQAConfig(rank_smoothing=0.1), plain.model, plain.tokenizer).eval()
    teach(plain, "the yellow cross")
    batch = batch_of(plain.eval(), [["yes"], ["yes"]])
    choices = plain.encode_answers(["yes", "the yellow cross"])
    ranked = set()
    for _ in range(40):  # the short answer becomes likelier little by little
        plain.model.lm_head.decoder.bias.data[choices.ids[0, 1]] += 0.5
        ranked.add(tuple(int(task.rank(batch.images, batch.text, choices)[0]) for task in (plain, smoothed)))
    assert ranked == {(1, 1), (1, 0), (0, 0)}


def test_padding_of_a_question_is_not_looked_at_unless_asked_for(make):
    padded = [["red"], ["no"]]
    task = make(VQAConfig()).eval()
    batch = batch_of(task, padded)
    short = batch.text[1:]
    cut = short.mask.sum()
    alone = task.model.encode_question(
        normalise(batch.images)[1:], type(short)(short.ids[:, :cut], short.mask[:, :cut])
    )
    together = task.model.encode_question(normalise(batch.images), batch.text)
    prompt = torch.full((1, 1), task.model.cfg.tokens.dec)
    of_alone = task.model.decode_step(prompt, alone, KVCache(1), torch.ones(1, int(cut), dtype=torch.bool))
    second = [(k[1:], v[1:]) for k, v in together]
    masked = task.model.decode_step(prompt, second, KVCache(1), short.mask)
    full = task.model.decode_step(prompt, second, KVCache(1), torch.ones_like(short.mask))
    torch.testing.assert_close(masked, of_alone)
    assert not torch.allclose(full, of_alone)


def test_predictions_are_scored_against_what_people_said(make, tmp_path: Path):
    (tmp_path / "answers.json").write_text(json.dumps(["blue square", "no"]))
    task = make(VQAConfig(inference="rank", answer_list=tmp_path / "answers.json"))
    teach(task, "blue square")
    predictions = task.eval().predict(batch_of(task, [["blue square"] * 10, ["no"] * 10]))
    assert [p.answer for p in predictions] == ["blue square", "blue square"]
    assert dict(task.score(predictions)) == {"accuracy": pytest.approx(50.0)}


def test_ranking_needs_a_list():
    with pytest.raises(ConfigError, match="needs answer_list"):
        validate(VQAConfig, {"inference": "rank"}, "test")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"{}", b"[]", b"[1]", b"null"])
def test_a_list_of_answers_that_is_none_is_one_line(tmp_path: Path, content: bytes | None):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"answer_list .*answers\.json") as error:
        read_answers(path)
    assert "\n" not in str(error.value)


def whole(task: VQA, **meta) -> Example:
    return task.whole(
        Sample("k", [b""], ["What color is it?"], meta), lambda _: torch.zeros(3, 16, 16, dtype=torch.uint8)
    )


def test_questions_without_published_answers_are_answered_and_not_scored(make):
    task = make(VQAConfig()).eval()
    (found,) = task.predict(task.collate([whole(task, question_id=7)]))
    assert dict(task.score([found])) == {}
    assert list(task.not_scored([found])) == ["accuracy"]
    assert task.submission([found]) == {"vqa_results.json": [{"question_id": 7, "answer": found.answer}]}


def test_a_planted_choice_is_chosen_among_a_questions_own(make):
    task = make(VQAConfig())
    teach(task, "blue square")
    task.eval()
    choices = ["yes", "no", "blue square", "red"]
    batch = task.collate(
        [
            whole(task, question_id="2a", choices=choices, correct_choice=2, answers=["blue square"] * 2 + ["no"]),
            whole(task, question_id="2b", choices=choices[::-1], correct_choice=0, answers=["no"], difficult=True),
        ]
    )
    found = task.predict(batch)
    assert [p.choice for p in found] == ["blue square"] * 2
    scores = dict(task.score(found))
    assert scores == {"direct_answer": pytest.approx(200 / 3), "multiple_choice": pytest.approx(50)}
    assert task.not_scored(found) == {}
    unknown = [replace(p, said=[], correct=None) for p in found]
    assert list(task.not_scored(unknown)) == ["direct_answer", "multiple_choice"]
    answers = {number: {"multiple_choice": "blue square", "direct_answer": found[0].answer} for number in ("2a", "2b")}
    assert task.submission(found) == {"aokvqa_predictions.json": answers}


def test_accuracy_is_told_by_the_kind_of_the_answer(make):
    rows = [("yes", "yes/no", 10), ("no", "yes/no", 0), ("2", "number", 1), ("cat", "other", 3)]
    found = [
        VQAPrediction(str(i), answer, [answer] * agree + ["else"] * (10 - agree), i, kind)
        for i, (answer, kind, agree) in enumerate(rows)
    ]
    assert dict(make(VQAConfig()).score(found)) == {
        "accuracy": pytest.approx((100 + 0 + 30 + 90) / 4),
        "accuracy_yes_no": pytest.approx(50),
        "accuracy_number": pytest.approx(30),
        "accuracy_other": pytest.approx(90),
    }


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"answers": [""]}, "answer is not a text"),
        ({"answers": ["a"], "weight": "x"}, "weight is not a number"),
        ({"answers": ["a"], "weight": 10**400}, "weight is not a number"),
        ({"choices": ["a", 3]}, "choice is not a text"),
        ({"choices": ["a", "b"], "correct_choice": 2}, "correct choice is none"),
    ],
)
def test_bad_questions_are_refused(make, meta: dict, reason: str):
    with pytest.raises(BadSample, match=reason):
        whole(make(VQAConfig()), **meta)
