from collections import Counter
from itertools import islice
from random import Random

import pytest

from blip.datasets import shapes

CIRCLE = shapes.Thing(shape="circle", colour="red", size="small", place="left")
STAR = shapes.Thing(shape="star", colour="blue", size="small", place="right")
CROSS = shapes.Thing(shape="cross", colour="red", size="large", place="top")
ONE = shapes.Scene(ground="grey", objects=[CROSS])
TWO = shapes.Scene(ground="pink", objects=[CIRCLE, STAR])
CFG = shapes.ShapesConfig(gold=30, test=20, two_objects=0.3)


@pytest.mark.parametrize(
    ("scene", "question", "answer"),
    [
        (ONE, "what colour is the cross?", "red"),
        (ONE, "What colour is the thing?", "red"),
        (ONE, "what is the colour of the big cross at the top", "red"),
        (ONE, "what shape is the huge thing?", "cross"),
        (ONE, "how big is the cross?", "large"),
        (ONE, "is the red cross small or large?", "large"),
        (ONE, "in which part of the picture is the red thing?", "top"),
        (ONE, "what is the colour of the background?", "grey"),
        (ONE, "how many things are there?", "1"),
        (ONE, "how many crosses are there?", "1"),
        (ONE, "how many small things are there?", "0"),
        (ONE, "is the ground grey?", "yes"),
        (ONE, "is the background pink?", "no"),
        (ONE, "is there a red cross in the upper part?", "yes"),
        (ONE, "is there a red star?", "no"),
        (ONE, "is the red thing a cross?", "yes"),
        (ONE, "is the cross at the bottom?", "no"),
        (TWO, "how many things are there?", "2"),
        (TWO, "how many tiny things are there?", "2"),
        (TWO, "how many red things are there?", "1"),
        (TWO, "where is the star?", "right"),
        (TWO, "what shape is the thing on the left?", "circle"),
        (TWO, "is the circle to the left of the star?", "yes"),
        (TWO, "is the red thing right of the blue star?", "no"),
        (TWO, "is the circle above the star?", "no"),
        (TWO, "is the thing on the left on the left?", "yes"),
        (TWO, "is the little red circle big?", "no"),
        # asked about a thing that is not there, or there twice; and outside of the grammar
        (TWO, "what colour is the cross?", None),
        (TWO, "what colour is the small thing?", None),
        (ONE, "is the circle red?", None),
        (ONE, "why is the cross red?", None),
        (ONE, "a red cross", None),
        (ONE, "", None),
    ],
)
def test_questions_are_answered_by_the_scene(scene, question, answer):
    assert shapes.answer(scene, question) == answer


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_every_kind_has_true_answers_that_are_not_all_alike(kind):
    rng = Random(kind)
    asked = [shapes.ask(shapes.random_scene(rng, 0.5), rng, kind) for _ in range(500)]
    assert {question.kind for question in asked} == {kind}
    answers = Counter(question.answer for question in asked)
    assert set(answers) == set(shapes.ANSWERS[kind])
    assert max(answers.values()) < 0.62 * len(asked)
    assert len({question.text for question in asked}) > (1 if kind == "ground" else 15)


def test_a_question_never_says_what_it_asks_for():
    rng = Random(0)
    for _ in range(300):
        scene = shapes.random_scene(rng, 0.5)
        for kind in ("colour", "shape", "size", "place"):
            question = shapes.ask(scene, rng, kind)
            asked = question.text.replace("small or large", "").replace("in which part", "").split()
            assert question.answer not in asked, question


def test_several_questions_differ_and_depend_on_the_seed_alone():
    for questions in (shapes.ask_several(TWO, Random(5), 12), shapes.ask_several(ONE, Random(5), 12)):
        assert len({question.text for question in questions}) == 12
        assert len({question.kind for question in questions[:7]}) == 7
    assert shapes.ask_several(ONE, Random(5), 12) == shapes.ask_several(ONE, Random(5), 12)


def test_question_samples_are_about_the_images_of_the_split():
    gold, asked = list(shapes.gold_samples(CFG)), list(shapes.question_samples(CFG, "gold", per_image=3))
    assert len(asked) == 3 * len(gold)
    for sample in asked:
        image = gold[sample.meta["image"]]
        assert sample.images == image.images
        assert sample.meta["truth"] == image.meta["truth"]
        assert sample.meta["answers"] == [shapes.answer(sample.meta["truth"], sample.texts[0])] * 10
    assert list(shapes.question_samples(CFG, "gold", per_image=3)) == asked
    longer = CFG.model_copy(update={"test": 40})
    again = shapes.question_samples(longer, "test")
    assert list(shapes.question_samples(CFG, "test")) == list(islice(again, 80))


def test_the_test_split_has_questions_where_they_are_asked_for():
    plain = list(shapes.test_samples(CFG))
    asked = list(shapes.test_samples(CFG.model_copy(update={"questions": 5})))
    for sample, same in zip(asked, plain, strict=True):
        questions = sample.meta.pop("questions")
        assert sample == same
        assert len({question["question"] for question in questions}) == 5
        for question in questions:
            truth = shapes.answer(sample.meta["truth"], question["question"])
            assert question["answers"] == [truth] * 10
            assert truth in shapes.ANSWERS[question["kind"]]
