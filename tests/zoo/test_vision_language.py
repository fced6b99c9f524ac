"""Image-to-text models of transformers as captioners."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_blip2 import t5, their_generator
from tiny_models import picture
from tiny_others import SIDE, florence, git, llava, paligemma, qwen, spread
from transformers import Blip2QFormerConfig, Blip2VisionConfig, BlipImageProcessor

from blip.config import ConfigError
from blip.data.images import decode
from blip.models.generation import Beam, Decoding, Nucleus
from blip.shards.sample import BadSample
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


@pytest.mark.parametrize(("make", "usual"), [(florence, "<CAPTION>"), (paligemma, "caption en")])
def test_models_that_want_a_prompt_have_a_usual_one(make, usual: str, tmp_path: Path):
    folder = make(tmp_path)
    found = {}
    for prompt in (None, usual, "a red circle"):
        cfg = VisionLanguageConfig(batch=2, prompt=prompt)
        captioner = VisionLanguageCaptioner(folder, Beam(beams=1, min_length=2, max_length=8), cfg=cfg)
        found[prompt] = captions(captioner, pictures()[:3], KEYS[:3])
    assert found[None] == found[usual] != found["a red circle"]
    assert len({written.log_probability for written in found[None].values()}) == 3
    with pytest.raises(ConfigError, match=r"writes nothing for its first images \(\w+: .*\); see captioner\.prompt"):
        captions(VisionLanguageCaptioner(folder, NUCLEUS, cfg=VisionLanguageConfig(prompt="<image> <image>")), *one())


def one() -> tuple[list[Image.Image], list[str]]:
    return pictures()[:1], KEYS[:1]


def blip2_t5(folder: Path) -> Path:
    """A BLIP-2 with T5 as its older releases lie on the hub: its processor does not know the number of queries."""
    t5(folder / "language")
    vision = Blip2VisionConfig(**VISION, image_size=16, patch_size=8)
    qformer = Blip2QFormerConfig(**VISION, vocab_size=8, encoder_hidden_size=16)
    model = their_generator(folder, folder / "language", vision, qformer, queries=3)
    spread(model, 13).save_pretrained(folder)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_blip2_with_t5_sees_the_image_with_and_without_a_prompt(prompt: str | None, tmp_path: Path):
    cfg = VisionLanguageConfig(batch=3, prompt=prompt)
    captioner = VisionLanguageCaptioner(blip2_t5(tmp_path), Beam(beams=1, max_length=6), cfg=cfg)
    found = captions(captioner, pictures()[:3], KEYS[:3])
    assert len({written.log_probability for written in found.values()}) > 1


def test_a_failure_after_the_first_batch_is_no_mistake_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    captioner = VisionLanguageCaptioner(git(tmp_path), NUCLEUS)
    captions(captioner, *one())

    def fail(**_) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(captioner.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        captions(captioner, *one())


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
    with pytest.raises(BadSample, match="more than 100 times as long as wide"):
        captioner.view.make(Image.new("RGB", (4, 401)))
    assert captions(captioner, pictures()[:1], ["a"])["a"].log_probability < 0


def test_what_does_not_suit_a_model_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has no chat template; set captioner\.chat=off"):
        VisionLanguageCaptioner(git(tmp_path / "git"), NUCLEUS, cfg=VisionLanguageConfig(chat="on"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match="AutoModelForImageTextToText of transformers does not read it"):
        VisionLanguageCaptioner(tmp_path / "broken", NUCLEUS)
