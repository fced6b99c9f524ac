"""Caption cleaning, the image transform and the scores equal the reference's."""

import pytest
import torch
from golden_files import Golden, assert_close
from PIL import Image

from blip.data.tokenizer import clean_caption, clean_question
from blip.data.transforms import eval_transform, normalise
from blip.metrics.retrieval import recalls
from blip.metrics.vqa import vqa_accuracy


def test_texts_are_cleaned_alike(golden: Golden):
    for case in golden.json("misc.json")["text_cleaning"]:
        assert clean_caption(case["text"], case["max_words"]) == case["caption"]
        assert clean_question(case["text"], case["max_words"]) == case["question"]


def test_the_image_transform_gives_the_same_pixels(golden: Golden):
    misc = golden.json("misc.json")
    with Image.open(golden.folder / misc["image"]) as image:
        ours = normalise(eval_transform(misc["image_size"])(image.convert("RGB")))
    assert_close(ours, golden.io("misc")["pixels"])


def test_recall_is_the_same(golden: Golden):
    misc, io = golden.json("misc.json"), golden.io("misc")
    owner = torch.tensor([misc["txt2img"][str(i)] for i in range(len(misc["txt2img"]))])
    assert {str(image): (owner == image).nonzero()[:, 0].tolist() for image in range(len(misc["img2txt"]))} == misc[
        "img2txt"
    ]
    scores, reference = recalls(io["scores_i2t"], io["scores_t2i"], owner), misc["retrieval"]
    for ours, theirs in (("tr", "txt_r"), ("ir", "img_r")):
        for k in (1, 5, 10):
            assert scores[f"{ours}{k}"] == pytest.approx(reference[f"{theirs}{k}"], abs=1e-9)
        assert sum(scores[f"{ours}{k}"] for k in (1, 5, 10)) / 3 == pytest.approx(reference[f"{theirs}_mean"], abs=1e-9)
    assert scores["mean"] == pytest.approx(reference["r_mean"], abs=1e-9)


def test_vqa_accuracy_is_the_same(golden: Golden):
    misc = golden.json("misc.json")
    accuracies = [vqa_accuracy(case["prediction"], case["answers"]) for case in misc["vqa"]]
    assert accuracies == pytest.approx([case["accuracy"] for case in misc["vqa"]], abs=0.005), (
        "the reference rounds to two digits"
    )
    assert sum(accuracies) / len(accuracies) == pytest.approx(misc["vqa_overall"], abs=0.005)
