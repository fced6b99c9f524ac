"""CLIP, SigLIP and their like as filters."""

from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from tiny_models import TEXTS, picture
from tiny_others import SIDE, clip, git, openai_clip, siglip
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from blip.config import ConfigError, validate
from blip.data.images import decode
from blip.shards.sample import BadSample
from blip.zoo.config import DualEncoderConfig
from blip.zoo.contract import ImageBatch, Scored
from blip.zoo.dual_encoder import DualEncoder, OpenClipDualEncoder, TransformersDualEncoder


def pictures() -> list[Image.Image]:
    return [decode(picture(i, (SIDE + 8 * i, SIDE))) for i in range(4)]


def scores(judge: DualEncoder, images: list[Image.Image], texts: list[list[str]], batch: int = 4) -> list[list[Scored]]:
    return judge.score(ImageBatch([{judge.view.name: judge.view.make(image)} for image in images], batch), texts)


def theirs(kind, folder: Path) -> tuple[torch.Tensor, float]:
    """Logits `(4, 4)` of images and the first texts, as a user of transformers computes them, and their scale."""
    model = kind.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures(), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS[:4], padding="max_length", max_length=12, return_tensors="pt")
    with torch.inference_mode():
        return model(**tokens, **pixels).logits_per_image, model.logit_scale.exp().item()


def test_clip_scores_by_similarity(tmp_path: Path):
    judge = TransformersDualEncoder(clip(tmp_path))
    logits, scale = theirs(CLIPModel, tmp_path)
    found = scores(judge, pictures(), [TEXTS[:4]] * 4)
    assert judge.gives == ("similarity",)
    assert [[s.similarity for s in of_image] for of_image in found] == [
        pytest.approx(row, abs=1e-5) for row in (logits / scale).tolist()
    ]
    assert found[0][0].match is None


def test_siglip_scores_by_its_probability_too(tmp_path: Path):
    judge = TransformersDualEncoder(siglip(tmp_path))
    logits, _ = theirs(SiglipModel, tmp_path)
    found = scores(judge, pictures(), [TEXTS[:4]] * 4)
    assert judge.gives == ("match", "similarity")
    assert [[s.match for s in of_image] for of_image in found] == [
        pytest.approx(row, abs=1e-5) for row in logits.sigmoid().tolist()
    ]


def test_open_clip_scores_as_it_does_itself(tmp_path: Path):
    folder = openai_clip(tmp_path / "model")
    judge = OpenClipDualEncoder(folder)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(image) for image in pictures()]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS[:4]), normalize=True)
    found = scores(judge, pictures(), [TEXTS[:4]] * 4)
    assert [[s.similarity for s in of_image] for of_image in found] == [
        pytest.approx(row, abs=1e-5) for row in (images @ texts.T).tolist()
    ]


@pytest.mark.parametrize(("kind", "make"), [(TransformersDualEncoder, clip), (OpenClipDualEncoder, openai_clip)])
def test_a_score_belongs_to_its_image_and_text(kind, make, tmp_path: Path):
    judge = kind(make(tmp_path / "model"))
    texts = [TEXTS[:1], TEXTS[:3], [], TEXTS[3:4]]
    whole = scores(judge, pictures(), texts)
    assert [len(found) for found in whole] == [1, 3, 0, 1]
    alone = scores(judge, pictures()[1:2], [texts[1]], batch=4)
    assert [s.similarity for s in whole[1]] == pytest.approx([s.similarity for s in alone[0]], abs=1e-6)


def test_the_template_goes_around_the_text(tmp_path: Path):
    folder = clip(tmp_path)
    judge = TransformersDualEncoder(folder, DualEncoderConfig(template="a large {}"))
    found = scores(judge, pictures()[:1], [["red circle"]], batch=1)
    assert found == scores(TransformersDualEncoder(folder), pictures()[:1], [["a large red circle"]], batch=1)
    with pytest.raises(ConfigError, match=r"template is 'a photo', must hold \{\} once"):
        validate(DualEncoderConfig, {"template": "a photo"}, "filter")


@pytest.mark.parametrize(("kind", "make"), [(TransformersDualEncoder, clip), (OpenClipDualEncoder, openai_clip)])
def test_a_strip_that_would_fill_the_memory_is_no_image_for_it(kind, make, tmp_path: Path):
    judge = kind(make(tmp_path / "model"))
    with pytest.raises(BadSample, match="more than 100 times as long as wide"):
        judge.view.make(Image.new("RGB", (60_000, 1)))


@pytest.mark.parametrize(
    ("pattern", "what"), [("token*", "its tokenizer"), ("*processor*", "the settings of its images")]
)
def test_files_that_are_missing_are_named(pattern: str, what: str, tmp_path: Path):
    for file in clip(tmp_path).glob(pattern):
        file.unlink()
    with pytest.raises(ConfigError, match=f"lacks {what}, none of .*json.* is there; copy it from where"):
        TransformersDualEncoder(tmp_path)


def test_a_model_that_embeds_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not embed images and texts, as CLIP and SigLIP do"):
        TransformersDualEncoder(git(tmp_path))
