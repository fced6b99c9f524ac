"""Writing text: nucleus sampling and beam search over cached keys and values."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from blip.config import Config, ConfigError
from blip.models.bert import KeysValues, KVCache

Step = Callable[[Tensor, list[KeysValues], KVCache], Tensor]
"""`(ids (B, L), cross, cache)` to the next token's logits `(B, V)`, as `MED.decode_step`."""


class Nucleus(Config):
    """Sampling from the likeliest words only (BLIP, section 4.2): diverse captions that teach more than safe ones."""

    type: Literal["nucleus"] = "nucleus"
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Draw from the fewest words whose probabilities reach this sum."""
    top_k: int = Field(default=50, ge=0)
    """And from at most so many words; 0 for no such bound."""
    repetition_penalty: float = Field(default=1.1, ge=1)
    """Divides the logit of a word that already stands in the text."""
    min_length: int = Field(default=5, ge=0)
    """Tokens before [SEP] may come, the prompt counted."""
    max_length: int = Field(default=20, ge=2)
    """Tokens at most, the prompt counted."""

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        check_lengths(self.min_length, self.max_length)
        return self


class Beam(Config):
    """Beam search: the likeliest text, of several that are grown side by side."""

    type: Literal["beam"] = "beam"
    beams: int = Field(default=3, ge=1, le=1000)
    length_penalty: float = Field(default=1.0, ge=-100, le=100)
    """A finished text's log-probability is divided by its length to this power, the prompt counted."""
    repetition_penalty: float = Field(default=1.0, ge=1)
    min_length: int = Field(default=5, ge=0)
    """Tokens before [SEP] may come, the prompt counted."""
    max_length: int = Field(default=20, ge=2)
    """Tokens at most, the prompt counted."""

    @model_validator(mode="after")
    def lengths_fit(self) -> Self:
        check_lengths(self.min_length, self.max_length)
        return self


def check_lengths(least: int, most: int) -> None:
    """Raises ValueError where a text may not end before it must."""
    if least > most:
        raise ValueError(f"min_length is {least}, but max_length is {most}: lower min_length or raise max_length")


def check_room(cfg: "Decoding", prompt: int, positions: int) -> None:
    """Raises ConfigError where texts that begin with so many tokens have no room for a word, or are longer than a model's positions."""
    if cfg.max_length <= prompt:
        raise ConfigError(
            f"decoding.max_length is {cfg.max_length}, but the prompt takes {prompt} tokens of it: "
            f"raise it above {prompt}, or shorten the prompt"
        )
    if cfg.max_length > positions:
        raise ConfigError(f"decoding.max_length is {cfg.max_length}, but the model has {positions} positions: lower it to {positions}")


Decoding = Annotated[Nucleus | Beam, Field(discriminator="type")]


@dataclass
class Texts:
    """Written token ids, one list a text, without prompt and end; and the text's log-probability `(B,)` under the model.

    No penalty of the decoding is in the log-probability.
    """

    ids: list[list[int]]
    log_probability: Tensor


def repeat_cross(cross: list[KeysValues], times: int) -> list[KeysValues]:
    """The same image for several texts: `(B, ...)` to `(B times, ...)`, each head in one piece, for every word reads it all."""
    return [(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in cross]


def penalise_repetition(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Makes the words of ids `(B, L)` less likely in scores `(B, V)`: negative ones times the penalty, positive ones divided by it."""
    if penalty == 1:
        return scores
    seen = scores.gather(1, ids)
    return scores.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def without(scores: Tensor, word: int) -> Tensor:
    """A copy of scores `(B, V)` in which a word cannot come."""
    return scores.index_fill(1, torch.tensor([word], device=scores.device), -math.inf)


def top_p_filter(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Sorted words `(B, K)` of the top-p set within the top k, and their probabilities, zero outside."""
    sorted_logits, words = logits.topk(min(top_k or logits.shape[1], logits.shape[1]), dim=1)
    probabilities = sorted_logits.softmax(1)
    before = probabilities.cumsum(1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return words, probabilities / probabilities.sum(1, keepdim=True)


@torch.no_grad()
def sample(step: Step, prompt: Tensor, cross: list[KeysValues], cfg: Nucleus, uniforms: Tensor, sep: int) -> Texts:
    """Writes one text for each row of the prompt `(B, P)`.

    `uniforms` `(B, max_length - P)` in [0, 1) are the draws, one a token, taken by inverse cumulative probability, so that a text
    depends on its own draws and never on its neighbours in the batch. The log-probability is that of the words under the whole
    distribution, before penalty and truncation. Raises ValueError where the model gives logits that are not finite.
    """
    ids, cache, feed = prompt, KVCache(cfg.max_length), prompt
    cross = repeat_cross(cross, 1)
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    total = torch.zeros(len(prompt), device=prompt.device)
    for i in range(cfg.max_length - prompt.shape[1]):
        logits = step(feed, cross, cache)
        logits = logits.float()
        allowed = penalise_repetition(logits, ids, cfg.repetition_penalty)
        if ids.shape[1] < cfg.min_length:
            allowed = without(allowed, sep)
        words, probabilities = top_p_filter(allowed, cfg.top_k, cfg.top_p)
        drawn = (probabilities.cumsum(1) <= uniforms[:, i, None]).sum(1, keepdim=True)
        # a sum that rounds to just under 1 must not reach past the last word of the set
        drawn = drawn.clamp(max=(probabilities > 0).sum(1, keepdim=True) - 1).clamp(min=0)  # of a row of NaN nothing is above 0
        word = words.gather(1, drawn).masked_fill(done[:, None], sep)
        total += logits.log_softmax(1).gather(1, word)[:, 0].masked_fill(done, 0.0)
        done = done | (word[:, 0] == sep)
        ids, feed = torch.cat([ids, word], 1), word
        if done.all():
            break
    finite = total.isfinite()  # a logit that is not spoils the sum for good: one look at the end is enough
    if not finite.all():
        raise diverged(int((~finite).sum()), len(prompt))
    return Texts(until_end(ids, prompt.shape[1], sep), total)


def diverged(texts: int, batch: int) -> ValueError:
    return ValueError(
        f"generation: the model gave logits that are not finite (NaN or infinite) for {texts} of {batch} texts; "
        "has it diverged, or is its precision too low? Look at its weights, or run it in float32"
    )


def until_end(ids: Tensor, start: int, sep: int) -> list[list[int]]:
    """Each row of ids `(B, L)` from `start` to the first [SEP], without it."""
    rows = ids[:, start:].tolist()
    return [row[: row.index(sep)] if sep in row else row for row in rows]


@dataclass
class Hypothesis:
    """A finished text of beam search: its tokens with the prompt, its log-probability under the model, and its score with all penalties."""

    ids: list[int]
    log_probability: float
    score: float


@torch.no_grad()
def beam_search(step: Step, prompt: Tensor, cross: list[KeysValues], cfg: Beam, sep: int) -> Texts:
    """Writes the best text for each row of the prompt `(B, P)`.

    Of the 2 x beams best continuations of each image those that end are finished if they rank within the first `beams`, the best `beams`
    of the others go on; an image is done when no open text can beat the worst of its `beams` finished ones. Repetition and length
    penalties decide which text is the best; the log-probability that comes back is without them.
    Raises ValueError where the model gives logits that are not finite.
    """
    batch, beams = len(prompt), cfg.beams
    ids = prompt.repeat_interleave(beams, 0)
    cross = repeat_cross(cross, beams)
    scores = torch.full((batch, beams), -1e9, device=prompt.device)
    scores[:, 0] = 0.0  # all beams start alike: only the first may speak
    totals = torch.zeros(batch, beams, device=prompt.device)
    finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
    open_images = [True] * batch
    cache, feed = KVCache(cfg.max_length), ids
    while ids.shape[1] < cfg.max_length and any(open_images):
        logits = step(feed, cross, cache)
        plain = logits.float().log_softmax(1)
        log_p = penalise_repetition(plain, ids, cfg.repetition_penalty)
        if ids.shape[1] < cfg.min_length:
            log_p = without(log_p, sep)
        vocabulary = log_p.shape[1]
        ranked, flat = (scores.view(-1, 1) + log_p).view(batch, -1).topk(2 * beams, dim=1)
        rows, words = (flat // vocabulary).tolist(), (flat % vocabulary).tolist()
        reached = (totals.gather(1, flat // vocabulary) + plain.view(batch, -1).gather(1, flat)).tolist()
        length = ids.shape[1]
        tokens = ids.tolist()
        chosen_scores, chosen_totals, chosen_rows, chosen_words = [], [], [], []
        best_scores = ranked.tolist()
        if spoilt := sum(math.isnan(row_scores[0]) for row_scores in best_scores):  # NaN ranks above all
            raise diverged(spoilt, batch)
        for b, row_scores in enumerate(best_scores):
            kept = 0
            for rank, (score, row, word) in enumerate(zip(row_scores, rows[b], words[b], strict=True)):
                if word == sep:
                    if rank < beams and open_images[b]:
                        ended = Hypothesis(tokens[b * beams + row], reached[b][rank], score / length**cfg.length_penalty)
                        keep_best(finished[b], ended, beams)
                    continue
                chosen_scores.append(score)
                chosen_totals.append(reached[b][rank])
                chosen_rows.append(b * beams + row)
                chosen_words.append(word)
                kept += 1
                if kept == beams:
                    break
            if len(finished[b]) == beams and finished[b][-1].score >= row_scores[0] / length**cfg.length_penalty:
                open_images[b] = False
        order = torch.tensor(chosen_rows, device=ids.device)
        scores = torch.tensor(chosen_scores, device=ids.device).view(batch, beams)
        totals = torch.tensor(chosen_totals, device=ids.device).view(batch, beams)
        feed = torch.tensor(chosen_words, device=ids.device)[:, None]
        ids = torch.cat([ids[order], feed], 1)
        cache.reorder(order)
    tokens, length = ids.tolist(), ids.shape[1]
    for b in range(batch):
        if open_images[b]:
            for row, (score, total) in enumerate(zip(scores[b].tolist(), totals[b].tolist(), strict=True)):
                keep_best(finished[b], Hypothesis(tokens[b * beams + row], total, score / length**cfg.length_penalty), beams)
    best = [texts[0] for texts in finished]
    return Texts([h.ids[prompt.shape[1] :] for h in best], torch.tensor([h.log_probability for h in best]))


def keep_best(finished: list[Hypothesis], text: Hypothesis, beams: int) -> None:
    """Puts a finished text among the best `beams` of its image, the best first."""
    finished.append(text)
    finished.sort(key=lambda h: -h.score)
    del finished[beams:]
