"""Text generation: nucleus sampling and beam search with a key-value cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from blip.config import Config, ConfigError
from blip.models.bert import KeysValues, KVCache

DecodeStep = Callable[[Tensor, list[KeysValues], KVCache], Tensor]
"""Maps ids `(B, L)`, cross-attention keys and values, and a cache to the next token's logits `(B, V)`."""


class Nucleus(Config):
    """Nucleus sampling, whose diverse captions train better models than beam search's (BLIP, section 4.2)."""

    type: Literal["nucleus"] = "nucleus"
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities sum to at least this."""
    top_k: int = Field(default=50, ge=0)
    """Sample from at most this many of the likeliest tokens; 0 for no limit."""
    repetition_penalty: float = Field(default=1.1, ge=1)
    """Divides the positive logits of tokens that are already in the text, and multiplies negative ones."""
    min_length: int = Field(default=5, ge=0)
    """Minimum length in tokens, with the prompt and without [SEP]."""
    max_length: int = Field(default=20, ge=2)
    """Maximum length in tokens, with the prompt."""

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        check_lengths(self.min_length, self.max_length)
        return self


class Beam(Config):
    """Beam search for the likeliest text."""

    type: Literal["beam"] = "beam"
    beams: int = Field(default=3, ge=1, le=1000)
    """Texts of an image that are extended side by side."""
    length_penalty: float = Field(default=1.0, ge=-100, le=100)
    """Power of a text's length, with the prompt, by which its log-probability is divided for ranking."""
    repetition_penalty: float = Field(default=1.0, ge=1)
    """Multiplies the log-probabilities of tokens that are already in the text."""
    min_length: int = Field(default=5, ge=0)
    """Minimum length in tokens, with the prompt and without [SEP]."""
    max_length: int = Field(default=20, ge=2)
    """Maximum length in tokens, with the prompt."""

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        check_lengths(self.min_length, self.max_length)
        return self


def check_lengths(least: int, most: int) -> None:
    """Raises ValueError if the minimum length exceeds the maximum."""
    if least > most:
        raise ValueError(f"min_length is {least}, but max_length is {most}: lower min_length or raise max_length")


def check_room(cfg: "Decoding", prompt: int, positions: int) -> None:
    """Raises ConfigError if the prompt's tokens fill `max_length`, or `max_length` exceeds the model's positions."""
    if cfg.max_length <= prompt:
        raise ConfigError(
            f"decoding.max_length is {cfg.max_length}, but the prompt takes {prompt} tokens of it: "
            f"raise it above {prompt}, or shorten the prompt"
        )
    if cfg.max_length > positions:
        raise ConfigError(
            f"decoding.max_length is {cfg.max_length}, but the model has {positions} positions: lower it to {positions}"
        )


Decoding = Annotated[Nucleus | Beam, Field(discriminator="type")]


@dataclass
class Texts:
    """Generated texts."""

    ids: list[list[int]]
    """Token ids of each text, without the prompt and [SEP]."""
    log_probability: Tensor
    """Log-probability `(B,)` of each text under the model, without the penalties of the decoding."""


def repeat_cross(cross: list[KeysValues], times: int) -> list[KeysValues]:
    """Repeats each image's keys and values, `(B, ...)` to contiguous `(B times, ...)`: each token reads all of them."""
    return [(keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)) for keys, values in cross]


def penalise_repetition(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Penalises the tokens `ids` `(B, L)` in `scores` `(B, V)`: multiplies negative scores, divides positive ones."""
    if penalty == 1:
        return scores
    seen = scores.gather(1, ids)
    return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def suppress(scores: Tensor, token: int) -> Tensor:
    """Returns a copy of scores `(B, V)` with -inf for one token."""
    return scores.index_fill(1, torch.tensor([token], device=scores.device), -math.inf)


def top_p_filter(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Returns the top-p set of the top k: tokens `(B, K)`, likeliest first, and probabilities, 0 outside the set."""
    vocabulary = logits.shape[1]
    sorted_logits, tokens = logits.topk(min(top_k or vocabulary, vocabulary), dim=1)
    probabilities = sorted_logits.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return tokens, probabilities / probabilities.sum(1, keepdim=True)


def draw(logits: Tensor, cfg: Nucleus, uniforms: Tensor) -> Tensor:
    """Draws a token of the top-p set for each row of logits `(B, V)` by a uniform number `(B,)`; returns `(B, 1)`."""
    tokens, probabilities = top_p_filter(logits, cfg.top_k, cfg.top_p)
    index = (probabilities.cumsum(1) <= uniforms[:, None]).sum(1, keepdim=True)
    # The sum may round to just under 1, so the index must be clamped to the set; a row of NaN has an empty set.
    last = (probabilities > 0).sum(1, keepdim=True) - 1
    return tokens.gather(1, index.clamp(max=last).clamp(min=0))


@torch.no_grad()
def sample(
    step: DecodeStep,
    prompt: Tensor,
    cross: list[KeysValues],
    cfg: Nucleus,
    uniforms: Tensor,
    sep: int,
    cache: KVCache | None = None,
) -> Texts:
    """Samples one text for each row of the prompt `(B, P)`.

    `uniforms` `(B, max_length - P)`, uniform in [0, 1), select one token each by inverse transform sampling, so that a
    text depends on its own random numbers and not on its batch. The log-probability is under the model's full
    distribution, before repetition penalty and truncation. `cache` is what `step` takes, if it needs one of its own.
    Raises ValueError if the logits are not finite.
    """
    ids = prompt
    new = prompt
    cache = cache or KVCache(cfg.max_length)
    cross = repeat_cross(cross, 1)
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    total = torch.zeros(len(prompt), device=prompt.device)
    for i in range(cfg.max_length - prompt.shape[1]):
        logits = step(new, cross, cache).float()
        allowed = penalise_repetition(logits, ids, cfg.repetition_penalty)
        if ids.shape[1] < cfg.min_length:
            allowed = suppress(allowed, sep)
        new = draw(allowed, cfg, uniforms[:, i]).masked_fill(done[:, None], sep)
        log_probability = logits.log_softmax(1).gather(1, new)[:, 0]
        total += log_probability.masked_fill(done, 0.0)
        done = done | (new[:, 0] == sep)
        ids = torch.cat([ids, new], 1)
        if done.all():
            break
    finite = total.isfinite()  # checked once at the end: a single bad logit makes the sum NaN or infinite for good
    if not finite.all():
        raise diverged(int((~finite).sum()), len(prompt))
    return Texts(until_sep(ids, prompt.shape[1], sep), total)


def diverged(texts: int, batch: int) -> ValueError:
    """Returns the error for texts whose logits are not finite."""
    return ValueError(
        f"generation: the model gave logits that are not finite (NaN or infinite) for {texts} of {batch} texts; "
        "has it diverged, or is its precision too low? Look at its weights, or run it in float32"
    )


def until_sep(ids: Tensor, start: int, sep: int) -> list[list[int]]:
    """Returns each row of ids `(B, L)` from `start` to the first [SEP], exclusive."""
    rows = ids[:, start:].tolist()
    return [row[: row.index(sep)] if sep in row else row for row in rows]


@dataclass
class Hypothesis:
    """A finished text of beam search."""

    ids: list[int]
    """Tokens with the prompt, without [SEP]."""
    log_probability: float
    """Log-probability under the model."""
    score: float
    """Log-probability with repetition and length penalty, by which texts are ranked."""


@torch.no_grad()
def beam_search(
    step: DecodeStep,
    prompt: Tensor,
    cross: list[KeysValues],
    cfg: Beam,
    sep: int,
    cache: KVCache | None = None,
    *,
    as_transformers: bool = False,
) -> Texts:
    """Returns the best text for each row of the prompt `(B, P)`.

    Each step ranks 2 x beams candidates for an image. Those that end with [SEP] are finished if they rank among the
    first `beams`; the best `beams` of the others become the new beams. An image is done when none of its beams can beat
    the worst of `beams` finished texts. Repetition and length penalty affect the ranking alone: the returned
    log-probability is without them. `cache` is what `step` takes, if it needs one of its own.

    `as_transformers` ranks as current versions of transformers do: a text's length is that of its generated tokens with
    [SEP], and an image is done by the score of its open beams alone. Raises ValueError if the logits are not finite.
    """
    batch, beams, device = len(prompt), cfg.beams, prompt.device
    ids = prompt.repeat_interleave(beams, 0)
    new = ids
    cache = cache or KVCache(cfg.max_length)
    cross = repeat_cross(cross, beams)
    start = prompt.shape[1] if as_transformers else 0
    scores = torch.full((batch, beams), -1e9, device=device)
    scores[:, 0] = 0.0  # all beams start equal, so the first step extends only one of them
    totals = torch.zeros(batch, beams, device=device)
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    searching = [True] * batch
    while ids.shape[1] < cfg.max_length and any(searching):
        logits = step(new, cross, cache)
        unpenalised = logits.float().log_softmax(1)
        log_p = penalise_repetition(unpenalised, ids, cfg.repetition_penalty)
        if ids.shape[1] < cfg.min_length:
            log_p = suppress(log_p, sep)
        vocabulary = log_p.shape[1]
        candidates = (scores.view(-1, 1) + log_p).view(batch, -1)
        ranked, flat = candidates.topk(2 * beams, dim=1)
        beam_of = flat // vocabulary
        candidate_totals = totals.gather(1, beam_of) + unpenalised.view(batch, -1).gather(1, flat)
        candidate_scores = ranked.tolist()
        nan_images = sum(math.isnan(image_scores[0]) for image_scores in candidate_scores)  # topk ranks NaN first
        if nan_images:
            raise diverged(nan_images, batch)
        rows, tokens, sums = beam_of.tolist(), (flat % vocabulary).tolist(), candidate_totals.tolist()
        texts = ids.tolist()
        normaliser = (ids.shape[1] - start + as_transformers) ** cfg.length_penalty
        chosen: list[tuple[int, int, float, float]] = []
        for image, image_scores in enumerate(candidate_scores):
            open_candidates = []
            for rank, score in enumerate(image_scores):
                row = image * beams + rows[image][rank]
                token, total = tokens[image][rank], sums[image][rank]
                if token != sep:
                    open_candidates.append((row, token, score, total))
                elif rank < beams and searching[image]:
                    keep_best(finished[image], Hypothesis(texts[row], total, score / normaliser), beams)
            chosen += open_candidates[:beams]
            possible = open_candidates[0][2] if as_transformers else image_scores[0]
            if len(finished[image]) == beams and finished[image][-1].score >= possible / normaliser:
                searching[image] = False
        chosen_rows, chosen_tokens, chosen_scores, chosen_totals = zip(*chosen, strict=True)
        order = torch.tensor(chosen_rows, device=device)
        new = torch.tensor(chosen_tokens, device=device)[:, None]
        scores = torch.tensor(chosen_scores, device=device).view(batch, beams)
        totals = torch.tensor(chosen_totals, device=device).view(batch, beams)
        ids = torch.cat([ids[order], new], 1)
        cache.reorder(order)
    texts, normaliser = ids.tolist(), (ids.shape[1] - start) ** cfg.length_penalty
    for image in range(batch):
        if searching[image]:
            for beam, (score, total) in enumerate(zip(scores[image].tolist(), totals[image].tolist(), strict=True)):
                hypothesis = Hypothesis(texts[image * beams + beam], total, score / normaliser)
                keep_best(finished[image], hypothesis, beams)
    best = [hypotheses[0] for hypotheses in finished]
    ids_without_prompt = [hypothesis.ids[prompt.shape[1] :] for hypothesis in best]
    return Texts(ids_without_prompt, torch.tensor([hypothesis.log_probability for hypothesis in best]))


def keep_best(finished: list[Hypothesis], hypothesis: Hypothesis, beams: int) -> None:
    """Adds a finished text to those of its image, best first, and drops all but the best `beams`."""
    finished.append(hypothesis)
    finished.sort(key=lambda other: -other.score)
    del finished[beams:]
