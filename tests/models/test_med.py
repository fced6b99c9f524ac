"""MED's three modes, and the parameters that they share."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from blip.batch import Tokens
from blip.models.bert import bidirectional_mask, causal_mask
from blip.models.med import MED, MEDConfig, Sharing
from blip.models.vision import VisionConfig

PAPERS_COUNTS = {
    "all": 224_075_071,
    "all_but_self_attention": 252_441_919,
    "all_but_cross_attention": 252_441_919,
    "none": 361_333_567,
}
"""Parameters of ViT-B and BERT-base with the temperature (BLIP, Table 3 has them in millions)."""


@pytest.mark.parametrize("share", get_args(Sharing))
def test_base_has_as_many_parameters_as_in_the_paper(share: Sharing):
    with torch.device("meta"):
        model = MED(MEDConfig(share=share))
    temperature = 1
    assert sum(p.numel() for p in model.parameters()) + temperature == PAPERS_COUNTS[share]


def test_large_has_a_larger_image_encoder():
    with torch.device("meta"):
        model = MED(MEDConfig(vision=VisionConfig(width=1024, depth=24, heads=16)))
    assert sum(p.numel() for p in model.visual_encoder.parameters()) == 303_301_632


def storages(module: torch.nn.Module, but: str = "") -> set[int]:
    return {p.data_ptr() for name, p in module.named_parameters() if not (but and but in name)}


@pytest.mark.parametrize(
    ("share", "apart"),
    [("all", None), ("all_but_self_attention", "self_attention"), ("all_but_cross_attention", "cross_attention")],
)
def test_sharing_is_by_storage(small: MEDConfig, share: Sharing, apart: str | None):
    model = MED(small.model_copy(update={"share": share}))
    encoder, decoder = dict(model.text_encoder.named_parameters()), dict(model.text_decoder.named_parameters())
    for name, parameter in encoder.items():
        own = apart is not None and apart in name
        assert (parameter is not decoder[name]) == own, name
    assert model.lm_head.decoder.weight is model.text_decoder.embeddings.word.weight


def test_sharing_nothing_shares_nothing(small: MEDConfig):
    model = MED(small.model_copy(update={"share": "none"}))
    assert not storages(model.text_encoder) & storages(model.text_decoder)


def test_a_captioner_has_no_encoder_and_a_filter_no_decoder(small: MEDConfig):
    captioner, text_filter = MED(small, encoder=False), MED(small, decoder=False)
    assert not {n.split(".")[0] for n, _ in captioner.named_parameters()} & {
        "text_encoder",
        "vision_proj",
        "text_proj",
        "itm_head",
    }
    assert not {n.split(".")[0] for n, _ in text_filter.named_parameters()} & {"text_decoder", "lm_head"}


def test_text_mode_reads_the_ids_as_they_are_and_no_image(med: MED, text: Tokens):
    hidden = med.encode_text(text)
    torch.testing.assert_close(hidden, med.text_encoder(text.ids, bidirectional_mask(text.mask)))
    assert text.ids[:, 0].tolist() == [1, 1]


def test_matching_puts_enc_first_and_sees_both_ways(med: MED, text: Tokens, images: Tensor):
    cross = med.text_encoder.cross_keys_values(med.encode_image(images))
    given = text.ids.clone()
    logits = med.match(text, cross)
    with_enc = text.ids.clone()
    with_enc[:, 0] = 18
    hidden = med.text_encoder(with_enc, bidirectional_mask(text.mask), cross)
    torch.testing.assert_close(logits, med.itm_head(hidden[:, 0]))
    assert text.ids.equal(given), "the caller's ids stay as they are"


def test_matching_can_leave_cls_first(small: MEDConfig, text: Tokens, images: Tensor):
    med = MED(small.model_copy(update={"enc_token": False})).eval()
    cross = med.text_encoder.cross_keys_values(med.encode_image(images))
    hidden = med.text_encoder(text.ids, bidirectional_mask(text.mask), cross)
    torch.testing.assert_close(med.match(text, cross), med.itm_head(hidden[:, 0]))


def test_writing_puts_dec_first_and_sees_only_what_came(med: MED, text: Tokens, images: Tensor):
    cross = med.text_decoder.cross_keys_values(med.encode_image(images))
    given = text.ids.clone()
    logits = med.decode(text, cross)
    with_dec = text.ids.clone()
    with_dec[:, 0] = 17
    torch.testing.assert_close(logits, med.lm_head(med.text_decoder(with_dec, causal_mask(text.mask), cross)))
    assert text.ids.equal(given), "the caller's ids stay as they are"


def test_a_text_is_matched_with_its_own_image(med: MED, text: Tokens, images: Tensor):
    tokens = med.encode_image(images)
    both = med.match(text, med.text_encoder.cross_keys_values(tokens))
    swapped = med.match(text, med.text_encoder.cross_keys_values(tokens.flip(0)))
    assert not torch.allclose(both, swapped)


def test_features_are_unit_vectors(med: MED, text: Tokens, images: Tensor):
    for feature in (med.image_feature(med.encode_image(images)), med.text_feature(med.encode_text(text))):
        assert feature.shape == (2, 8)
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(2))
