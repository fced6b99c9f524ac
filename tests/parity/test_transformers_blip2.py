"""BLIP-2 in transformers and here: equal logits and equal texts in both directions, at random tiny sizes."""

import random
from pathlib import Path

import pytest
import torch
from golden_files import Golden, assert_close
from safetensors.torch import load_file
from test_golden_qformer import stage1
from tiny_blip2 import clip, opt, shuffle, t5, their_generator, timm_model
from tiny_models import TEXTS, tokenizer
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedModel,
)

from blip.batch import Tokens
from blip.models.bert import TextConfig
from blip.models.blip2 import Blip2Config as OurConfig
from blip.models.blip2 import QueriedImages, best_query
from blip.models.generation import Beam
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.language.config import LanguageModelConfig
from blip.models.med import SpecialTokens
from blip.models.weights.files import WeightsError, read_tensors, write_tensors
from blip.models.weights.load import load_weights
from blip.models.weights.transformers_blip2 import encoder_of
from blip.runs.export import export
from blip.tasks.blip2_exchange import IMAGE_TOKEN, export_transformers, import_transformers, lavis_tensors
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config
from blip.tasks.model_folder import load_task, save_model

IMAGES = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LANGUAGES = {"opt": opt, "t5": t5}


def sizes(seed: int, text: bool) -> tuple[Blip2VisionConfig, Blip2QFormerConfig]:
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 4])
    vision = Blip2VisionConfig(
        hidden_size=heads * 8,
        intermediate_size=draw.randint(8, 40),
        num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=heads,
        image_size=16,
        patch_size=draw.choice([4, 8]),
    )
    qformer = Blip2QFormerConfig(
        vocab_size=tokenizer().vocab_size - 1,
        hidden_size=heads * 12,
        num_hidden_layers=draw.randint(1, 4),
        num_attention_heads=heads,
        intermediate_size=draw.randint(8, 40),
        encoder_hidden_size=heads * 8,
        max_position_embeddings=draw.randint(16, 30),
        cross_attention_frequency=draw.randint(1, 3),
        use_qformer_text_input=text,
    )
    return vision, qformer


def drawn_generator(seed: int, kind: str, folder: Path) -> PreTrainedModel:
    vision, qformer = sizes(seed, text=False)
    LANGUAGES[kind](folder / "language")
    return their_generator(folder / "theirs", folder / "language", vision, qformer, seed + 2, seed)


def generated(
    theirs: PreTrainedModel, pixels: Tensor, ids: Tensor, mask: Tensor, end: int, **options
) -> list[list[int]]:
    """The new tokens of each text, up to its end."""
    written = theirs.generate(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        min_new_tokens=1,
        do_sample=False,
        eos_token_id=end,
        **options,
    )
    new = written[:, ids.shape[1] :] if not theirs.language_model.config.is_encoder_decoder else written[:, 1:]
    return [row[: row.index(end)] if end in row else row for row in new.tolist()]


def pixels_of(model: QueriedImages) -> Tensor:
    """The images, normalised as the image encoder's own statistics say."""
    encoder = encoder_of(model)
    return (IMAGES / 255 - encoder.mean) / encoder.std


def prompted(task: Blip2Stage2, prompts: list[str], image_token: int) -> tuple[Tensor, Tensor]:
    """Their input: a token for each query, then the prompt, padded on the left."""
    language = task.model.language_model
    rows = [[image_token] * task.model.cfg.queries + ids for ids in language.read(prompts, 100)]
    length = max(map(len, rows))
    ids = torch.tensor([[language.pad] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def agree(task: Blip2Stage2, theirs: PreTrainedModel, image_token: int) -> None:
    """Logits of given texts, and texts by greedy decoding and by beams, of two prompts of different lengths."""
    prompts = ["a photo of", "a", "a large"]
    language = task.model.language_model
    ids, mask = prompted(task, prompts, image_token)
    soft = task.model.soft_prompts(task.model.encode_image(IMAGES))
    spoken = language.speak([""] * 3 if not language.encoder_decoder else prompts, TEXTS[:3], 20)
    ours = language.logits(soft, spoken)
    if language.encoder_decoder:
        begin = torch.full_like(spoken.said.ids[:, :1], language.first)
        said = torch.cat([begin, spoken.said.ids[:, :-1]], 1)
        out = theirs(
            pixel_values=pixels_of(task.model), input_ids=ids, attention_mask=mask, decoder_input_ids=said
        ).logits
    else:
        queries = torch.full((3, soft.shape[1]), image_token)
        whole = torch.cat([queries, spoken.said.ids], 1)
        seen = torch.cat([torch.ones_like(queries), spoken.said.mask.long()], 1)
        out = theirs(pixel_values=pixels_of(task.model), input_ids=whole, attention_mask=seen).logits
        out = out[:, soft.shape[1] - 1 : -1]
    assert_close(ours[spoken.said.mask], out[spoken.said.mask])
    for beams, penalty in ((1, 1.0), (3, 1.0), (5, -1.0), (4, 2.0)):
        cfg = Beam(beams=beams, length_penalty=penalty, min_length=1, max_length=8)
        mine = language.generate(soft, prompts, cfg).ids
        options = {"num_beams": beams, **({"length_penalty": penalty} if beams > 1 else {})}
        assert mine == generated(theirs, pixels_of(task.model), ids, mask, language.end, **options), (beams, penalty)


@pytest.mark.parametrize("kind", LANGUAGES)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_generators_of_transformers_can_be_read(seed: int, kind: str, tmp_path: Path):
    theirs = drawn_generator(seed, kind, tmp_path)
    task = import_transformers(tmp_path / "theirs", tmp_path / "ours", tokenizer())
    assert isinstance(task, Blip2Stage2)
    agree(task, theirs, theirs.config.image_token_index)
    (tmp_path / "ours").rename(tmp_path / "moved")
    again = load_task(tmp_path / "moved")  # the frozen models go with the folder
    assert isinstance(again, Blip2Stage2)
    agree(again, theirs, theirs.config.image_token_index)


def our_generator(kind: str, folder: Path, encoder: str = "vit_tiny_patch16_224", **changes) -> Blip2Stage2:
    own = tokenizer()
    model = OurConfig(
        vision=ImageEncoderConfig(source=timm_model(folder / "vision", encoder), size=16, width=16, norm_eps=1e-6),
        text=TextConfig(
            vocab_size=own.vocab_size - 1, width=16, depth=3, heads=2, feed_forward=32, positions=32, init_std=0.25
        ),
        queries=4,
        tokens=SpecialTokens(pad=own.pad, cls=own.cls, sep=own.sep, dec=own.dec, enc=own.enc),
        language_model=LanguageModelConfig(source=LANGUAGES[kind](folder / "language", spare=1), width=24),
    ).model_copy(update=changes)
    torch.manual_seed(0)
    cfg = Blip2Stage2Config()
    task = cfg.build_task(cfg.model_from(model), own).eval()
    assert isinstance(task, Blip2Stage2)
    return task


@pytest.mark.parametrize("kind", LANGUAGES)
@torch.no_grad()
def test_our_generators_can_be_read_by_transformers(kind: str, tmp_path: Path):
    task = our_generator(kind, tmp_path)
    export_transformers(task.model, tmp_path / "out")
    theirs, info = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    number = task.model.language_model.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert theirs.config.image_token_index == number
    agree(task, theirs.eval(), number)


def matchers(seed: int, folder: Path) -> Blip2ForImageTextRetrieval:
    vision, qformer = sizes(seed, text=True)
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=OPTConfig(num_hidden_layers=0),
        num_query_tokens=seed + 2,
        image_text_hidden_size=8,
    )
    theirs = shuffle(Blip2ForImageTextRetrieval(config), seed)
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
def agree_on_pairs(task: Blip2Stage1, theirs: PreTrainedModel) -> None:
    text = tokenizer().encode(TEXTS[2:5], 12)
    model = task.model
    cross = model.qformer.cross_keys_values(model.encode_image(IMAGES))
    options = {"pixel_values": pixels_of(task.model), "input_ids": text.ids, "attention_mask": text.mask.long()}
    matched = theirs(**options, use_image_text_matching_head=True).logits_per_image
    assert_close(model.match(text, cross), matched)
    image = model.image_feature(model.qformer.encode_image(cross)[0])
    words = model.text_feature(model.qformer.encode_text(Tokens(text.ids, text.mask)))
    assert_close(best_query(image, words), theirs(**options).logits_per_image)


@pytest.mark.parametrize("seed", range(4))
def test_matchers_of_transformers_can_be_read(seed: int, tmp_path: Path):
    theirs = matchers(seed, tmp_path / "theirs")
    task = import_transformers(tmp_path / "theirs", tmp_path / "ours", tokenizer())
    assert isinstance(task, Blip2Stage1)
    agree_on_pairs(task, theirs)


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "eva_giant_patch14_clip_224"])
def test_our_matchers_can_be_read_by_transformers(encoder: str, tmp_path: Path):
    task = our_matcher(tmp_path, encoder)
    export_transformers(task.model, tmp_path / "out")
    theirs, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    agree_on_pairs(task, theirs.eval())
    again = import_transformers(tmp_path / "out", tmp_path / "ours", tokenizer())
    assert isinstance(again, Blip2Stage1)
    agree_on_pairs(again, theirs)


def our_matcher(folder: Path, encoder: str) -> Blip2Stage1:
    model = our_generator("opt", folder, encoder).model.cfg.model_copy(update={"language_model": None})
    torch.manual_seed(1)
    cfg = Blip2Stage1Config()
    task = cfg.build_task(cfg.model_from(model), tokenizer()).eval()
    assert isinstance(task, Blip2Stage1)
    return task


def test_an_encoder_that_their_class_has_no_place_for_is_refused(tmp_path: Path):
    vision = ImageEncoderConfig(source=clip(tmp_path / "clip"), size=16, width=16)
    task = our_generator("opt", tmp_path, vision=vision)
    with pytest.raises(WeightsError, match="CLIPVisionModel is none: write the official format"):
        export_transformers(task.model, tmp_path / "out")


def test_lavis_files_can_be_written_and_read(golden: Golden):
    task = stage1(golden)
    written, reference = lavis_tensors(task), load_file(golden.weights("qformer"))
    reference.pop("Qformer.bert.embeddings.position_ids")
    assert written.keys() == reference.keys()
    for name, tensor in reference.items():
        assert written[name].equal(tensor), name


@pytest.mark.parametrize(("kind", "name"), [("opt", "opt_proj.weight"), ("t5", "t5_proj.weight")])
@torch.no_grad()
def test_second_stages_of_lavis_can_be_written_and_read(kind: str, name: str, tmp_path: Path):
    task = our_generator(kind, tmp_path)
    tensors = lavis_tensors(task)
    assert name in tensors
    assert not any(key.startswith(("visual_encoder.", "opt_model.", "t5_model.")) for key in tensors)
    assert sum(key.endswith("_proj.weight") for key in tensors) == 1
    write_tensors(tensors, tmp_path / "lavis.pth")
    other = our_generator(kind, tmp_path)
    shuffle(other.model, 5)
    report = load_weights(other.model, str(tmp_path / "lavis.pth"), other.cfg.DIFFERENCES)
    assert not report.unused
    assert not report.missing
    for images in (IMAGES[:1], IMAGES):
        soft, expected = (t.model.soft_prompts(t.model.encode_image(images)) for t in (other, task))
        torch.testing.assert_close(soft, expected)


@torch.no_grad()
def test_a_model_folder_is_exported_as_its_model_is(tmp_path: Path):
    task = our_generator("opt", tmp_path)
    save_model(task, tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "lavis", "official") == [tmp_path / "lavis"]
    assert read_tensors(tmp_path / "lavis" / "model.pth").keys() == lavis_tensors(task).keys()
    assert export(tmp_path / "model", tmp_path / "hf", "hf") == [tmp_path / "hf"]
    theirs = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    agree(task, theirs, theirs.config.image_token_index)
