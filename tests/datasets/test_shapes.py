import io
import json
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from blip.datasets import shapes
from blip.datasets.shapes.scenes import COLOURS, GROUNDS, SHAPE_NAMES, change_attribute
from blip.datasets.shapes.sentences import parse_claims

CFG = shapes.ShapesConfig(gold=40, web=200, test=40, two_objects=0.3)
CIRCLE = shapes.Thing(shape="circle", colour="red", size="small", place="left")
STAR = shapes.Thing(shape="star", colour="blue", size="large", place="right")
ONE = shapes.Scene(ground="grey", objects=[CIRCLE])
TWO = shapes.Scene(ground="pink", objects=[CIRCLE, STAR])


@pytest.mark.parametrize(
    ("scene", "text", "true"),
    [
        (ONE, "a small red circle on the left on a grey ground", True),
        (ONE, "On grey there is a tiny red circle at the left side.", True),
        (ONE, "a grey picture with a red circle", True),
        (ONE, "a circle", True),
        (ONE, "a big red circle on the left on a grey ground", False),
        (ONE, "a small blue circle on the left on a grey ground", False),
        (ONE, "a small red ring on the left on a grey ground", False),
        (ONE, "a small red circle on the right on a grey ground", False),
        (ONE, "a small red circle on the left on a pink ground", False),
        (ONE, "a red circle and a blue star", False),
        (ONE, "a red circle and a red circle", False),
        (TWO, "a red circle left of a blue star", True),
        (TWO, "a huge blue star to the right of a small red circle on pink", True),
        (TWO, "on the right a blue star and on the left a circle", True),
        (TWO, "there is a large blue star on the right", True),
        (TWO, "a blue star left of a red circle", False),
        (TWO, "a red circle above a blue star", False),
        (TWO, "a red star on the left", False),
        (TWO, "a blue star and a blue star", False),
        (ONE, "", False),
        (ONE, "a grey picture", False),
        (ONE, "buy a red circle now", False),
        (ONE, "IMG_1234.JPG", False),
        (ONE, "red circle left grey", False),
        (ONE, "a small red red circle on the left", False),
        (ONE, "a small red circle on the left on the left", False),
        (ONE, "a red circle on the left on grey on a grey ground", False),
    ],
)
def test_texts_are_judged_by_all_they_claim(scene, text, true):
    assert shapes.is_true(scene, text) is true


def test_sentences_are_read_as_they_are_meant():
    claims = parse_claims("there is a little black star at the top of a brown picture")
    assert claims == (({"size": "small", "colour": "black", "shape": "star", "place": "top"},), "brown")
    above, below = {"colour": "white", "shape": "ring", "place": "top"}, {"shape": "star", "place": "bottom"}
    assert parse_claims("a star under a white ring") == ((below, above), None)


def test_every_caption_is_true_and_most_tell_everything():
    rng = Random(0)
    scenes = [shapes.random_scene(rng, two_objects=0.5) for _ in range(300)]
    captions = [shapes.write_caption(scene, rng) for scene in scenes]
    assert all(map(shapes.is_true, scenes, captions))
    claims = [
        claims
        for scene, text in zip(scenes, captions, strict=True)
        if len(scene["objects"]) == 1 and (claims := parse_claims(text))
    ]
    assert sum(len(c.things[0]) == 4 and c.ground is not None for c in claims) > 0.6 * len(claims)


def test_a_changed_scene_differs_in_one_attribute():
    rng = Random(0)
    changed = Counter()
    for _ in range(200):
        other = change_attribute(ONE, rng)
        before, after = ({"ground": s["ground"], **s["objects"][0]} for s in (ONE, other))
        (attribute,) = (k for k in before if before[k] != after[k])
        changed[attribute] += 1
    assert set(changed) == {"ground", "shape", "colour", "size", "place"}
    assert ONE["objects"] == [CIRCLE]


def test_pictures_show_their_scenes():
    rng = Random(0)
    for shape in SHAPE_NAMES:
        areas = []
        for size in ("small", "large"):
            thing = shapes.Thing(shape=shape, colour="black", size=size, place="bottom")
            pixels = decode(shapes.render_scene(shapes.Scene(ground="pink", objects=[thing]), rng, 32))
            assert pixels.shape == (32, 32, 3)
            assert np.abs(pixels[0, 0] - GROUNDS["pink"]).max() <= 4
            rows, columns = np.nonzero(np.abs(pixels - COLOURS["black"]).max(2) < 40)
            assert rows.mean() == pytest.approx(23.5, abs=3)
            assert columns.mean() == pytest.approx(15.5, abs=2)
            areas.append(len(rows))
        assert areas[1] > 1.8 * areas[0]


def test_names_of_colours_are_far_apart():
    colours = np.array([*COLOURS.values(), *GROUNDS.values()])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e3 * np.eye(len(colours))
    assert distances.min() > 60


def test_two_objects_stand_side_by_side_and_differ():
    for i in range(100):
        scene = shapes.random_scene(Random(i), two_objects=1.0)
        a, b = scene["objects"]
        assert (a["place"], b["place"]) in (("left", "right"), ("top", "bottom"))
        assert (a["shape"], a["colour"]) != (b["shape"], b["colour"])


@pytest.mark.parametrize("split", [shapes.gold_samples, shapes.test_samples])
def test_clean_splits_have_five_true_captions_that_differ(split):
    samples = list(split(CFG))
    assert len(samples) == 40
    for sample in samples:
        assert len(set(sample.texts)) == 5
        assert all(shapes.is_true(sample.meta["truth"], text) for text in sample.texts)


def test_exactly_half_of_the_web_is_wrong_in_three_ways():
    samples = list(shapes.web_samples(CFG))
    assert Counter(s.meta["truth"]["noise"] for s in samples) == {
        None: 100,
        "other image": 40,
        "changed attribute": 40,
        "advert": 20,
    }
    for sample in samples:
        truth = sample.meta["truth"]
        assert truth["true"] is (truth["noise"] is None)
        assert len(sample.texts) == 1
        assert shapes.is_true(truth, sample.texts[0]) is truth["true"]


@pytest.mark.parametrize(("noise", "wrong"), [(0.0, 0), (0.25, 50), (0.33, 66), (1.0, 200)])
def test_the_share_of_wrong_texts_is_as_asked(noise, wrong):
    samples = shapes.web_samples(CFG.model_copy(update={"noise": noise}))
    assert sum(not s.meta["truth"]["true"] for s in samples) == wrong


def test_a_sample_depends_on_seed_split_and_number_alone():
    few = list(shapes.web_samples(CFG.model_copy(update={"web": 5, "gold": 0})))
    many = list(shapes.web_samples(CFG))
    assert few == many[:5]
    assert list(shapes.web_samples(CFG.model_copy(update={"seed": 1, "web": 5}))) != few


def test_splits_share_no_key_and_no_picture():
    samples = [s for split in (shapes.gold_samples, shapes.web_samples, shapes.test_samples) for s in split(CFG)]
    assert len({s.key for s in samples}) == len({s.images[0] for s in samples}) == len(samples) == 280


def test_meta_is_plain_json():
    truth = next(shapes.web_samples(CFG)).meta
    assert json.loads(json.dumps(truth)) == truth


def test_shares_outside_zero_and_one_are_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        shapes.ShapesConfig(noise=1.5)


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)
