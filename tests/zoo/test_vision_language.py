"""Image-to-text models of transformers as captioners."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import picture
from tiny_others import SIDE, git, llava, qwen

from blip.config import ConfigError
from blip.data.images import decode
from blip.models.generation import Beam, Decoding, Nucleus
from blip.zoo.config import VisionLanguageConfig
from blip.zoo.contract import ImageBatch, Written
from blip.zoo.vision_language import VisionLanguageCaptioner

NUCLEUS = Nucleus(min_length=2, max_length=8)
KEYS = ["a", "b", "c", "d", "e"]


def pictures(*shapes: tuple[int, int]) -> list[Image.Image]:
    return [decode(picture(i, shape)) for i, shape in enumerate(shapes or [(SIDE, SIDE)] * len(KEYS))]


def captions(
    captioner: VisionLanguageCaptioner, images: list[Image.Image], keys: list[str], number: int = 0
) -> dict[str, Written]:
    rows = [{captioner.view.name: captioner.view.make(image)} for image in images]
    written = captioner.write(ImageBatch(rows, len(rows)), keys, number)
    # the last digits depend on the shape of the batch; CapFilt rounds as well
    rounded = [Written(one.text, round(one.log_probability, 3)) for one in written]
    return dict(zip(keys, rounded, strict=True))


@pytest.mark.parametrize("decoding", [NUCLEUS, Beam(min_length=2, max_length=8), Beam(beams=1, max_length=8)])
@pytest.mark.parametrize("make", [git, llava])
def test_texts_depend_on_their_sample_alone(make, decoding: Decoding, tmp_path: Path):
    captioner = VisionLanguageCaptioner(make(tmp_path), decoding, cfg=VisionLanguageConfig(batch=2))
    images = pictures()
    found = captions(captioner, images, KEYS)
    assert found == captions(captioner, images[::-1], KEYS[::-1])
    assert found["c"] == captions(captioner, images[2:3], ["c"])["c"]
    assert len({written.text for written in found.values()}) > 2
    assert captioner.determinism == "sample"


def test_draws_come_from_key_number_and_seed(tmp_path: Path):
    folder = git(tmp_path)
    captioner = VisionLanguageCaptioner(folder, NUCLEUS, cfg=VisionLanguageConfig(batch=4))
    same = pictures((SIDE, SIDE)) * 4
    first = captions(captioner, same, ["a", "b", "c", "d"])
    assert len({written.text for written in first.values()}) > 1
    assert first != captions(captioner, same, ["a", "b", "c", "d"], number=1)
    other = VisionLanguageCaptioner(folder, NUCLEUS, seed=7, cfg=VisionLanguageConfig(batch=4))
    assert first != captions(other, same, ["a", "b", "c", "d"])


@pytest.mark.parametrize("decoding", [NUCLEUS, Beam(min_length=2, max_length=8)])
def test_the_log_probability_is_the_model_s(decoding: Decoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    captioner = VisionLanguageCaptioner(git(tmp_path), decoding, cfg=VisionLanguageConfig(batch=1))
    image = pictures()[1]
    seen = []
    decode_ids = captioner.tokenizer.batch_decode
    monkeypatch.setattr(
        captioner.tokenizer, "batch_decode", lambda ids, **options: seen.append(ids) or decode_ids(ids, **options)
    )
    written = captions(captioner, [image], ["a"])["a"]
    tokens, end = seen[0][0].tolist(), captioner.tokenizer.eos_token_id
    tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    pixels = captioner.processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        ids = torch.tensor([[captioner.tokenizer.bos_token_id, *tokens]])
        logits = captioner.model(input_ids=ids, pixel_values=pixels).logits[:, -ids.shape[1] : -1]
    expected = logits.float().log_softmax(2).gather(2, ids[:, 1:, None]).sum()
    assert written.log_probability == pytest.approx(expected.item(), abs=1e-3)


def test_the_prompt_reaches_the_model_by_the_chat_template_or_as_it_is(tmp_path: Path):
    folder = llava(tmp_path)
    found = {}
    for name, cfg in {
        "default": {},
        "chat": {"prompt": "a red circle"},
        "raw": {"prompt": "<image> a red circle says", "chat": "off"},
    }.items():
        captioner = VisionLanguageCaptioner(folder, Beam(max_length=8), cfg=VisionLanguageConfig(batch=1, **cfg))
        found[name] = captions(captioner, pictures()[:1], ["a"])["a"]
    assert found["chat"] == found["raw"] != found["default"]


def test_padding_that_the_batch_decides_is_recorded(tmp_path: Path):
    captioner = VisionLanguageCaptioner(qwen(tmp_path), NUCLEUS, cfg=VisionLanguageConfig(batch=2))
    captions(captioner, pictures((32, 32), (32, 32)), ["a", "b"])
    assert captioner.determinism == "sample"
    captions(captioner, pictures((32, 32), (64, 32)), ["a", "b"])
    assert captioner.determinism == "shard"


def test_dtype_is_the_weights_and_large_images_are_scaled_down(tmp_path: Path):
    cfg = VisionLanguageConfig(dtype="bfloat16", longest=48)
    captioner = VisionLanguageCaptioner(git(tmp_path), NUCLEUS, cfg=cfg)
    assert captioner.model.dtype == torch.bfloat16
    assert captioner.view.make(Image.new("RGB", (480, 240))).size == (48, 24)
    assert captions(captioner, pictures()[:1], ["a"])["a"].log_probability < 0


def test_what_does_not_suit_a_model_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has no chat template; set captioner\.chat=off"):
        VisionLanguageCaptioner(git(tmp_path / "git"), NUCLEUS, cfg=VisionLanguageConfig(chat="on"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match="AutoModelForImageTextToText of transformers does not read it"):
        VisionLanguageCaptioner(tmp_path / "broken", NUCLEUS)
