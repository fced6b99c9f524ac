"""Weights converted to and from transformers yield equal logits, at random tiny sizes."""

import json
import logging
import random
from pathlib import Path

import pytest
import torch
import transformers
from golden_files import assert_close
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    PreTrainedModel,
)

from blip.batch import Tokens
from blip.models.bert import TextConfig
from blip.models.generation import Beam, beam_search
from blip.models.med import MED, MEDConfig, SpecialTokens, replace_first
from blip.models.vision import VisionConfig
from blip.models.vqa import VQAModel
from blip.models.weights.export import huggingface_classes, huggingface_config, write_huggingface
from blip.models.weights.files import WeightsError
from blip.models.weights.load import load_weights


@pytest.fixture(params=range(3))
def sizes(request: pytest.FixtureRequest) -> MEDConfig:
    """Returns random sizes; image and text have one width, as transformers' question answering requires."""
    draw = random.Random(request.param)
    heads, patch = draw.choice([1, 2, 4]), draw.choice([4, 8])
    width, vocabulary = heads * draw.choice([8, 12]), draw.randint(20, 60)
    return MEDConfig(
        vision=VisionConfig(
            size=patch * draw.randint(1, 4),
            patch=patch,
            width=width,
            depth=draw.randint(1, 3),
            heads=heads,
            init_std=0.2,
        ),
        text=TextConfig(
            vocab_size=vocabulary,
            width=width,
            depth=draw.randint(1, 3),
            heads=heads,
            feed_forward=draw.randint(8, 40),
            positions=draw.randint(16, 30),
            init_std=0.2,
        ),
        embed=draw.randint(4, 16),
        tokens=SpecialTokens(pad=0, cls=2, sep=3, dec=vocabulary - 2, enc=vocabulary - 1),
    )


def inputs(cfg: MEDConfig) -> tuple[Tensor, Tokens]:
    """Three images, and texts of different lengths."""
    torch.manual_seed(0)
    ids = torch.randint(5, cfg.text.vocab_size - 2, (3, 9))
    ids[:, 0] = cfg.tokens.cls
    for row, end in enumerate((4, 8, 6)):
        ids[row, end], ids[row, end + 1 :] = cfg.tokens.sep, cfg.tokens.pad
    return torch.randn(3, 3, cfg.vision.size, cfg.vision.size), Tokens(ids, ids != cfg.tokens.pad)


def ours(kind: type[PreTrainedModel], cfg: MEDConfig) -> MED | VQAModel:
    if kind is BlipForQuestionAnswering:
        return VQAModel(cfg).eval()
    captioner = kind is BlipForConditionalGeneration
    return MED(cfg, encoder=not captioner, decoder=captioner).eval()


def both(
    kind: type[PreTrainedModel], cfg: MEDConfig, direction: str, folder: Path
) -> tuple[MED | VQAModel, PreTrainedModel]:
    """Returns our model and theirs with the same weights, converted through a folder."""
    torch.manual_seed(1)
    mine = ours(kind, cfg)
    if direction == "out":
        write_huggingface(mine, kind, folder)
        theirs, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
    else:
        theirs = kind(huggingface_config(cfg))
        for parameter in theirs.parameters():  # biases too: at zero they could be anywhere
            torch.nn.init.normal_(parameter, std=0.2)
        theirs.save_pretrained(folder)
        report = load_weights(mine, str(folder))
        assert not report.unused
        assert not report.missing
    return mine, theirs.eval()


@pytest.mark.parametrize("direction", ["out", "in"])
def test_captioners_agree(sizes: MEDConfig, direction: str, tmp_path: Path):
    mine, theirs = both(BlipForConditionalGeneration, sizes, direction, tmp_path)
    assert isinstance(mine, MED)
    images, text = inputs(sizes)
    cross = mine.text_decoder.cross_keys_values(mine.encode_image(images))
    out = theirs(
        pixel_values=images, input_ids=replace_first(text.ids, sizes.tokens.dec), attention_mask=text.mask.long()
    )
    assert_close(mine.decode(text, cross)[text.mask], out.logits[text.mask])
    prompt = replace_first(text.ids[:, :2], sizes.tokens.dec)
    written = theirs.generate(
        pixel_values=images, input_ids=torch.cat([prompt, prompt[:, :1]], 1), max_length=9, num_beams=1, do_sample=False
    )
    texts = beam_search(mine.decode_step, prompt, cross, Beam(beams=1, min_length=0, max_length=9), sizes.tokens.sep)
    ended = [[t for t in row if t not in (sizes.tokens.sep, sizes.tokens.pad)] for row in written[:, 2:].tolist()]
    assert [[t for t in row if t != sizes.tokens.pad] for row in texts.ids] == ended


@pytest.mark.parametrize("direction", ["out", "in"])
def test_filters_agree(sizes: MEDConfig, direction: str, tmp_path: Path):
    mine, theirs = both(BlipForImageTextRetrieval, sizes, direction, tmp_path)
    assert isinstance(mine, MED)
    images, text = inputs(sizes)
    tokens = mine.encode_image(images)
    with_enc = replace_first(text.ids, sizes.tokens.enc)  # transformers forgets [ENC]
    matched = theirs(pixel_values=images, input_ids=with_enc, attention_mask=text.mask.long(), use_itm_head=True)
    assert_close(mine.match(text, mine.text_encoder.cross_keys_values(tokens)), matched.itm_score)
    aligned = theirs(pixel_values=images, input_ids=text.ids, attention_mask=text.mask.long(), use_itm_head=False)
    assert_close(mine.image_feature(tokens) @ mine.text_feature(mine.encode_text(text)).T, aligned.itm_score)


@pytest.mark.parametrize("direction", ["out", "in"])
def test_question_answerers_agree(sizes: MEDConfig, direction: str, tmp_path: Path):
    mine, theirs = both(BlipForQuestionAnswering, sizes, direction, tmp_path)
    assert isinstance(mine, VQAModel)
    images, question = inputs(sizes)
    answers = Tokens(question.ids.flip(0), question.mask.flip(0))
    states = theirs.text_encoder(
        replace_first(question.ids, sizes.tokens.enc),
        attention_mask=question.mask.long(),
        encoder_hidden_states=theirs.vision_model(images).last_hidden_state,
    ).last_hidden_state
    logits = theirs.text_decoder(
        replace_first(answers.ids, sizes.tokens.dec),
        attention_mask=answers.mask.long(),
        encoder_hidden_states=states,
        encoder_attention_mask=question.mask.long(),
    ).logits
    everything = torch.ones_like(question.mask)  # transformers lets answers look at the question's padding
    assert_close(
        mine.decode(answers, mine.encode_question(images, question), everything)[answers.mask], logits[answers.mask]
    )


def test_the_written_configuration_is_blips_not_the_default(
    sizes: MEDConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_huggingface(MED(sizes, encoder=False), BlipForConditionalGeneration, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    text, vision = written["text_config"], written["vision_config"]
    assert written["architectures"] == ["BlipForConditionalGeneration"]
    assert (text["num_attention_heads"], vision["num_attention_heads"]) == (sizes.text.heads, sizes.vision.heads)
    assert (text["layer_norm_eps"], vision["layer_norm_eps"]) == (1e-12, 1e-6)
    assert (text["bos_token_id"], text["sep_token_id"], text["pad_token_id"]) == (
        sizes.tokens.dec,
        sizes.tokens.sep,
        sizes.tokens.pad,
    )
    assert (vision["image_size"], vision["patch_size"]) == (sizes.vision.size, sizes.vision.patch)
    assert (written["image_text_hidden_size"], text["label_smoothing"]) == (sizes.embed, 0.1)
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        BlipForConditionalGeneration.from_pretrained(tmp_path)
    transformers.logging.disable_propagation()
    assert not caplog.records


def test_another_class_of_transformers_that_lacks_a_part_is_refused(sizes: MEDConfig, tmp_path: Path):
    theirs = BlipForConditionalGeneration(huggingface_config(sizes))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not in the file: text_encoder\.embeddings\.word\.weight"):
        load_weights(MED(sizes, decoder=False), str(tmp_path))


def test_questions_of_another_width_than_images_have_no_class(sizes: MEDConfig):
    text = sizes.text.model_copy(update={"width": 2 * sizes.text.width})
    with pytest.raises(WeightsError, match=rf"{sizes.vision.width}.*{2 * sizes.text.width}.*official format"):
        huggingface_classes(VQAModel(sizes.model_copy(update={"text": text})))
    assert huggingface_classes(MED(sizes)) == [BlipForConditionalGeneration, BlipForImageTextRetrieval]
