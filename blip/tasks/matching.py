"""The ITM loss over a batch's pairs and their hard negatives, shared by BLIP and BLIP-2 (BLIP, section 3.2)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from blip.batch import Tokens
from blip.distributed import all_gather, all_gather_with_grad, rank
from blip.models.bert import KeysValues
from blip.objectives.matching import hard_negatives, matching_loss
from blip.tasks.text import TextLengths

SameImage = Literal["masked", "positive", "negative"]
"""Role in ITC of other texts of the same image: ignored, positives or negatives; in ITM only `negative` draws them."""

Matcher = Callable[[Tokens, list[KeysValues]], Tensor]
"""Maps texts and the keys and values of their images to logits `(B, 2)`, column 1 for a match."""


def allowed_negatives(ids: Tensor, candidates: Tensor, same_image: SameImage, world: bool) -> Tensor:
    """Returns the mask `(B, N)` of candidates for hard negatives.

    Excludes the row itself and, unless `same_image` is `negative`, other texts of its image. With `world`, candidates
    are those of all processes, in the order of ranks.
    """
    if same_image == "negative":
        return ~own_columns(ids, candidates, world)
    return ids[:, None] != candidates[None, :]


def relations(same: Tensor, own: Tensor, empty: Tensor, same_image: SameImage) -> tuple[Tensor, Tensor]:
    """Returns two masks `(B, N)`: the positive keys of each row in ITC, and the keys excluded from the softmax.

    `same` is True for keys of the row's image, `own` for the row itself, `empty` for keys that hold nothing.
    """
    match same_image:
        case "masked":
            return own, empty | (same & ~own)
        case "positive":
            return (same | own) & ~empty, empty
        case "negative":
            return own, empty


def check_padding(negatives: Literal["rank", "world"], text: TextLengths) -> None:
    """Raises ValueError if processes would exchange texts of different lengths."""
    if negatives == "world" and text.pad == "longest":
        raise ValueError(
            "alignment.negatives is world, but text.pad is longest: texts that processes exchange need one length; "
            "set text.pad to max, or alignment.negatives to rank"
        )


def own_columns(ids: Tensor, candidates: Tensor, world: bool) -> Tensor:
    """Returns the mask `(B, N)` that is True where a candidate is the row itself."""
    first = rank() * len(ids) if world else 0
    return torch.arange(len(ids), device=ids.device)[:, None] + first == torch.arange(
        len(candidates), device=ids.device
    )


def itm_loss(
    match: Matcher,
    keys_values: Callable[[Tensor], list[KeysValues]],
    text: Tokens,
    image_tokens: Tensor,
    cross: list[KeysValues],
    i2t: Tensor,
    t2i: Tensor,
    ids: Tensor,
    *,
    same_image: SameImage,
    world: bool,
    floor: float,
    most_likely: bool,
) -> Tensor:
    """Returns the ITM loss, 0-dim, over the pairs of the batch and their hard negatives.

    The `3 B` pairs are, in order: matching pairs, each text with a negative image, each image with a negative text.
    `keys_values` maps image tokens to `cross`; `i2t` and `t2i`, `(B, B)` or with `world` `(B, world B)`, weight the
    candidates. Image tokens of other processes are gathered with their gradient.
    """
    own = torch.arange(len(ids), device=ids.device)
    all_ids, all_text = (all_gather(ids), Tokens(all_gather(text.ids), all_gather(text.mask))) if world else (ids, text)
    allowed = allowed_negatives(ids, all_ids, same_image, world)
    wrong_image, image_found = hard_negatives(t2i, allowed, floor, most_likely=most_likely)
    wrong_text, text_found = hard_negatives(i2t, allowed, floor, most_likely=most_likely)
    if world:
        wrong = keys_values(all_gather_with_grad(image_tokens)[wrong_image])
        cross = [
            (torch.cat([k, wrong_k, k]), torch.cat([v, wrong_v, v]))
            for (k, v), (wrong_k, wrong_v) in zip(cross, wrong, strict=True)
        ]
    else:
        rows = torch.cat([own, wrong_image, own])
        cross = [(k[rows], v[rows]) for k, v in cross]
    wrong_texts = all_text[wrong_text]
    texts = Tokens(
        torch.cat([text.ids, text.ids, wrong_texts.ids]), torch.cat([text.mask, text.mask, wrong_texts.mask])
    )
    labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    valid = torch.cat([torch.ones_like(image_found), image_found, text_found])
    return matching_loss(match(texts, cross), labels, valid)
