"""Questions answered by a frozen language model: prompts, several questions an image, losses, scores."""

import numpy as np
import pytest
import torch
from tiny_blip2 import blip2_config, clip, opt, t5
from tiny_models import picture, tokenizer

from blip.batch import Batch, Example
from blip.config import ConfigError
from blip.models.generation import Beam
from blip.objectives.language_modeling import IGNORED, spoken_targets
from blip.shards.sample import BadSample, Sample
from blip.tasks.blip2_vqa import Blip2VQA, Blip2VQAConfig, Blip2VQAPrediction
from blip.tasks.questions import questions_of

GREEDY = Beam(beams=1, min_length=1, max_length=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("frozen")
    return {"clip": clip(root / "clip"), "opt": opt(root / "opt", positions=128), "t5": t5(root / "t5")}


def vqa(folders: dict[str, str], kind: str = "opt", **settings) -> Blip2VQA:
    torch.manual_seed(0)
    cfg = Blip2VQAConfig(**{"decoding": GREEDY, **settings})
    return cfg.build_task(cfg.model_from(blip2_config(folders["clip"], folders[kind])), tokenizer()).train()


def soft_prompts(task: Blip2VQA, batch: Batch) -> torch.Tensor:
    asked = batch.extra["asked"]
    return task.soft_prompts(batch.images, asked.questions, asked.owner)


def image(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def asked(*questions: tuple[str, str]) -> dict:
    return {"questions": [{"question": q, "answers": [a] * 10, "kind": "colour"} for q, a in questions]}


def test_the_prompt_is_the_papers_for_each_kind_of_language_model(folders):
    assert vqa(folders, "opt").prompt == "Question: {} Answer:"
    assert vqa(folders, "t5").prompt == "Question: {} Short answer:"
    assert vqa(folders, "t5", prompt="a {} photo").prompt == "a {} photo"
    paper = Blip2VQAConfig().decoding
    assert isinstance(paper, Beam)
    assert (paper.beams, paper.min_length, paper.max_length, paper.length_penalty) == (5, 1, 10, -1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": "Question: Answer:"}, "must hold {} once"),
        ({"text": {"tokens": 5}}, "task.text.tokens is 5, but the prompt takes 4 of them"),
        (
            {"text": {"tokens": 124}},
            "task.text.tokens with task.decoding.max_length is 128 tokens, which after 4 queries",
        ),
        ({"text": {"tokens": 200}}, "task.text.tokens is 200 tokens, which after 4 queries are more than the 128"),
    ],
)
def test_a_prompt_that_does_not_fit_is_an_error(folders, settings, said):
    with pytest.raises((ConfigError, ValueError)) as error:
        vqa(folders, "opt", **settings)
    assert said in str(error.value)


@pytest.mark.parametrize("kind", ["opt", "t5"])
@pytest.mark.parametrize("ask_qformer", [False, True])
def test_several_questions_about_an_image_are_answered_as_each_alone(folders, kind, ask_qformer):
    task = vqa(folders, kind, ask_qformer=ask_qformer).eval()
    first = asked(("a red circle", "red"), ("blue", "small"), ("a small blue square", "of"))
    second = asked(("a photo", "large"))
    both = task.predict(task.collate([Example("a", image(0), [], first), Example("b", image(1), [], second)]))
    assert [len(p.answers) for p in both] == [3, 1]
    assert both[0].said == [["red"] * 10, ["small"] * 10, ["of"] * 10]
    for number, question in enumerate(first["questions"]):
        alone = task.predict(task.collate([Example("a", image(0), [], {"questions": [question]})]))
        assert alone[0].answers == [both[0].answers[number]]


def test_the_q_former_reads_the_question_if_it_is_asked(folders):
    batch_of = lambda task, text: task.collate([Example("a", image(0), [], asked((text, "red")))])  # noqa: E731
    for ask, same in ((False, True), (True, False)):
        task = vqa(folders, ask_qformer=ask).eval()
        one, other = (batch_of(task, text) for text in ("a red circle", "a small blue square"))
        equal = torch.equal(*(soft_prompts(task, batch) for batch in (one, other)))
        assert equal is same


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_the_loss_weighs_each_answer_by_its_share_of_annotators(folders, kind):
    task = vqa(folders, kind, prompt="{} of")
    meta = {"question": "a photo", "answers": ["red"] * 3 + ["large blue"]}
    batch = task.collate([Example("a", image(0), [], {"questions": [meta]})])
    language = task.model.language_model
    spoken = language.speak(["a photo of"] * 2, ["red", "large blue"], 96)
    soft = soft_prompts(task, batch)
    logits = language.logits(soft[[0, 0]], spoken).log_softmax(-1)
    targets = spoken_targets(spoken.said.ids, spoken.said.mask, spoken.skip)
    sums = [
        -sum(logits[row, i, token].item() for i, token in enumerate(targets[row].tolist()) if token != IGNORED)
        for row in (0, 1)
    ]
    assert task(batch)["vqa"].item() == pytest.approx(0.75 * sums[0] + 0.25 * sums[1], rel=1e-5)


def test_training_trains_the_q_former_and_not_the_frozen_models(folders):
    task = vqa(folders, ask_qformer=True)
    batch = task.collate([Example("a", image(0), [], asked(("a red circle", "red")))])
    task(batch)["vqa"].backward()
    moved = {name for name, p in task.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("qformer.layers.0.feed_forward" in name for name in moved), "the question's own feed-forward"
    assert any("projection" in name for name in moved)
    assert not any("language_model" in name or "visual_encoder" in name for name in moved)


def test_a_training_example_is_one_of_the_questions(folders):
    task = vqa(folders)
    sample = Sample("k", [picture(0)], ["a caption"], asked(("one", "red"), ("two", "blue")))
    drawn = {
        task.prepare(sample, lambda _: image(0), np.random.default_rng(seed)).meta["question"] for seed in range(20)
    }
    assert drawn == {"one", "two"}
    plain = Sample("k", [picture(0)], ["what is it?"], {"answers": ["a cat"], "weight": 0.2})
    example = task.prepare(plain, lambda _: image(0), np.random.default_rng(0))
    asked_of = task.collate([example]).extra["asked"]
    assert (asked_of.questions, asked_of.said, asked_of.weights) == (["what is it?"], [["a cat"]], [0.2])


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "no answers"),
        ({"answers": []}, "no answers"),
        ({"answers": ["red", " "]}, "an answer that is no text"),
        ({"questions": []}, "no question"),
        ({"questions": [{"answers": ["red"]}]}, "no question"),
        ({"questions": [{"question": "one", "answers": "red"}]}, "no answers"),
        ({"questions": [{"question": "one", "answers": ["red"], "weight": "x"}]}, "weight is not a number"),
    ],
)
def test_a_sample_without_a_question_and_answers_is_bad(meta, reason):
    with pytest.raises(BadSample, match=reason):
        questions_of(["what is it?"], meta)


def test_a_broken_question_is_a_bad_sample_in_evaluation_too(folders):
    task = vqa(folders).eval()
    question = {"question": "what colour is it?", "answers": ["red"]}
    for meta in ({"questions": [question, {"question": "how many?"}]}, {"answers": "red"}):
        with pytest.raises(BadSample):
            task.whole(Sample("a", [picture(0)], ["a red disc"], meta), lambda _: image(0))


def test_an_image_without_questions_is_no_question_in_evaluation(folders):
    task = vqa(folders).eval()
    [found] = task.predict(task.collate([Example("a", image(0), ["a caption"], {})]))
    assert found.answers == []
    assert dict(task.score([found])) == {}
    assert list(task.not_scored([found])) == ["accuracy"]


def test_scores_are_those_of_all_questions_and_of_each_kind_beside_guessing(folders):
    task = vqa(folders)
    predictions = [
        Blip2VQAPrediction("a", "a", ["?", "?"], ["red", "yes"], [["red"] * 10, ["no"] * 10], ["colour", "yes/no"]),
        Blip2VQAPrediction("b", "b", ["?", "?"], ["blue", "no"], [["red"] * 10, ["no"] * 10], ["colour", "yes/no"]),
        Blip2VQAPrediction("c", "c", ["?", "?"], ["blue", "no"], [["blue"] * 10, ["yes"] * 10], ["colour", "yes/no"]),
    ]
    scores = dict(task.score(predictions))
    assert scores == {
        "accuracy": pytest.approx(100 * 3 / 6),
        "chance": pytest.approx(100 * 4 / 6),
        "accuracy_colour": pytest.approx(100 * 2 / 3),
        "chance_colour": pytest.approx(100 * 2 / 3),
        "accuracy_yes_no": pytest.approx(100 / 3),
        "chance_yes_no": pytest.approx(100 * 2 / 3),
    }


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_follow_up_question_is_asked_after_the_ones_before_with_the_models_answers(folders, kind):
    task = vqa(folders, kind, prompt="{} of").eval()
    pictures = torch.stack([image(0), image(1)])
    [[first, second], [other]] = task.converse(pictures, [["a red circle", "blue"], ["small"]])
    assert task.dialogue(["a red circle", "blue"], [first]) == f"a red circle of {first} blue of"
    soft = task.model.soft_prompts(task.model.encode_image(pictures[:1]))
    alone = task.generate(soft, [f"a red circle of {first} blue of"], GREEDY)
    assert task.model.language_model.decode(alone.ids) == [second]
    assert task.converse(pictures[1:], [["small"]]) == [[other]]


def test_a_dialogue_that_the_model_cannot_read_is_an_error(folders):
    task = vqa(folders, text={"tokens": 12}).eval()
    with pytest.raises(ConfigError, match=r"a dialogue of \d questions takes \d+ tokens, task.text.tokens is 12"):
        task.converse(image(0)[None], [["a red circle"] * 6])
