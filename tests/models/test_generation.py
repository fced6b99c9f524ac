"""Decoding against plain loops without a cache."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blip.models.bert import KeysValues, KVCache
from blip.models.generation import Beam, Nucleus, Texts, beam_search, penalise_repetition, sample, top_p_filter
from blip.models.med import MED

SEP = 2
Read = Callable[[list[int]], Tensor]
"""Maps the tokens so far to the next token's logits `(V,)`."""


@pytest.fixture
def med(med: MED) -> MED:
    """A model for which some of its texts end early."""
    torch.nn.init.constant_(med.lm_head.decoder.bias.data[SEP : SEP + 1], 2.0)
    return med


@pytest.fixture
def cross(med: MED, images: Tensor) -> list[KeysValues]:
    return med.text_decoder.cross_keys_values(med.encode_image(images))


@pytest.fixture
def prompt() -> Tensor:
    return torch.tensor([[17, 5], [17, 5]])


def reader(med: MED, cross: list[KeysValues], row: int) -> Read:
    own = [(k[row : row + 1], v[row : row + 1]) for k, v in cross]
    return lambda text: med.decode_step(torch.tensor([text]), own, KVCache(len(text)))[0].detach()


def penalised(scores: Tensor, text: list[int], penalty: float) -> Tensor:
    scores = scores.clone()
    for word in set(text):
        scores[word] = scores[word] * penalty if scores[word] < 0 else scores[word] / penalty
    return scores


def sample_slowly(read: Read, prompt: list[int], cfg: Nucleus, uniforms: list[float]) -> tuple[list[int], float]:
    text, total = list(prompt), 0.0
    for uniform in uniforms[: cfg.max_length - len(prompt)]:
        logits = read(text)
        scores = penalised(logits, text, cfg.repetition_penalty)
        if len(text) < cfg.min_length:
            scores[SEP] = -math.inf
        order = scores.argsort(descending=True)[: cfg.top_k or None].tolist()
        kept, mass = [], 0.0
        probabilities = scores[order].softmax(0).tolist()
        for word, probability in zip(order, probabilities, strict=True):
            if mass >= cfg.top_p:
                break
            kept.append((word, probability))
            mass += probability
        below, word = 0.0, SEP
        for candidate, probability in kept:
            word = candidate
            below += probability / mass
            if uniform < below:
                break
        total += float(logits.log_softmax(0)[word])
        if word == SEP:
            return text[len(prompt) :], total
        text.append(word)
    return text[len(prompt) :], total


def beam_slowly(read: Read, prompt: list[int], cfg: Beam) -> tuple[list[int], float]:
    """Beam search by its definition: of 2 x beams continuations those that end within the first `beams` are
    finished.
    """
    beams, finished = [(0.0, list(prompt))], []

    def score(total: float, length: int) -> float:
        return total / length**cfg.length_penalty

    length = len(prompt)
    while length < cfg.max_length:
        candidates = []
        for total, text in beams:
            log_p = penalised(read(text).log_softmax(0), text, cfg.repetition_penalty)
            if length < cfg.min_length:
                log_p[SEP] = -math.inf
            candidates += [(total + float(log_p[word]), text, word) for word in range(len(log_p))]
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * cfg.beams]
        finished += [(score(t, length), text, t) for t, text, word in candidates[: cfg.beams] if word == SEP]
        finished = sorted(finished, key=lambda f: -f[0])[: cfg.beams]
        if len(finished) == cfg.beams and finished[-1][0] >= score(candidates[0][0], length):
            break
        beams = [(t, [*text, word]) for t, text, word in candidates if word != SEP][: cfg.beams]
        length += 1
    else:
        finished += [(score(t, length), text, t) for t, text in beams]
    _, text, total = max(finished, key=lambda f: f[0])
    return text[len(prompt) :], total


@pytest.mark.parametrize(
    "cfg",
    [
        Nucleus(min_length=3, max_length=10),
        Nucleus(top_k=0, top_p=1.0, repetition_penalty=1.0, min_length=0, max_length=8),
        Nucleus(top_k=4, top_p=0.5, min_length=6, max_length=12),
    ],
)
def test_nucleus_sampling_equals_a_slow_plain_loop(med: MED, cross: list[KeysValues], prompt: Tensor, cfg: Nucleus):
    for seed in range(4):
        uniforms = torch.rand(2, cfg.max_length, generator=torch.Generator().manual_seed(seed))
        texts = sample(med.decode_step, prompt, cross, cfg, uniforms, SEP)
        for row in range(2):
            ids, log_probability = sample_slowly(
                reader(med, cross, row), prompt[row].tolist(), cfg, uniforms[row].tolist()
            )
            assert texts.ids[row] == ids
            assert texts.log_probability[row].item() == pytest.approx(log_probability, abs=1e-4)


@pytest.mark.parametrize(
    "cfg",
    [
        Beam(beams=1, min_length=0, max_length=9),
        Beam(beams=3, min_length=4, max_length=10),
        Beam(beams=3, min_length=0, max_length=12, length_penalty=-1.0),
        Beam(beams=4, min_length=3, max_length=8, repetition_penalty=1.3),
    ],
)
def test_beam_search_equals_a_slow_plain_loop(med: MED, cross: list[KeysValues], prompt: Tensor, cfg: Beam):
    texts = beam_search(med.decode_step, prompt, cross, cfg, SEP)
    for row in range(2):
        ids, log_probability = beam_slowly(reader(med, cross, row), prompt[row].tolist(), cfg)
        assert texts.ids[row] == ids
        if cfg.repetition_penalty == 1:
            assert texts.log_probability[row].item() == pytest.approx(log_probability, abs=1e-4)


@pytest.mark.parametrize("penalty", [1.0, 1.02, 1.3])
def test_the_log_probability_of_beam_search_has_no_penalty_in_it(med: MED, cross: list[KeysValues], penalty: float):
    torch.nn.init.constant_(med.lm_head.decoder.bias.data[17:20], 4.0)  # words that come again
    prompt = torch.tensor([[17, 5], [17, 5]])
    cfg = Beam(min_length=0, max_length=9, repetition_penalty=penalty)
    texts = beam_search(med.decode_step, prompt, cross, cfg, SEP)
    for row, ids in enumerate(texts.ids):
        read, text, total = reader(med, cross, row), prompt[row].tolist(), 0.0
        ended = [SEP] if len(text) + len(ids) < cfg.max_length else []
        for word in ids + ended:
            total += float(read(text).log_softmax(0)[word])
            text.append(word)
        assert len(set(text)) < len(text)
        assert texts.log_probability[row].item() == pytest.approx(total, abs=1e-4)


def test_one_beam_is_greedy(med: MED, cross: list[KeysValues], prompt: Tensor):
    texts = beam_search(med.decode_step, prompt, cross, Beam(beams=1, min_length=0, max_length=9), SEP)
    for row in range(2):
        read, text = reader(med, cross, row), prompt[row].tolist()
        while len(text) < 9 and text[-1] != SEP:
            text.append(int(read(text).argmax()))
        assert texts.ids[row] == [t for t in text[2:] if t != SEP]


def test_a_text_depends_on_its_own_draws_alone(med: MED, cross: list[KeysValues], prompt: Tensor):
    cfg, uniforms = Nucleus(max_length=10), torch.rand(2, 10, generator=torch.Generator().manual_seed(0))
    together = sample(med.decode_step, prompt, cross, cfg, uniforms, SEP)
    second = [(k[1:], v[1:]) for k, v in cross]
    alone = sample(med.decode_step, prompt[1:], second, cfg, uniforms[1:], SEP)
    assert alone.ids[0] == together.ids[1]


@pytest.mark.parametrize("cfg", [Beam(min_length=7, max_length=9), Nucleus(min_length=7, max_length=9)])
def test_lengths_count_the_prompt_and_the_prompt_is_cut_by_tokens(
    med: MED, cross: list[KeysValues], prompt: Tensor, cfg: Beam | Nucleus
):
    torch.nn.init.constant_(med.lm_head.decoder.bias.data[SEP : SEP + 1], 20.0)  # it wants to end at once
    match cfg:
        case Beam():
            texts = beam_search(med.decode_step, prompt, cross, cfg, SEP)
        case Nucleus():
            texts = sample(med.decode_step, prompt, cross, cfg, torch.rand(2, 9), SEP)
    assert [len(ids) for ids in texts.ids] == [5, 5]
    assert all(SEP not in ids and 17 not in ids for ids in texts.ids)


@pytest.mark.parametrize("cfg", [Beam(min_length=3, max_length=9), Nucleus(min_length=3, max_length=9)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 3])
def test_logits_that_are_not_finite_are_an_error_that_says_so(
    med: MED, cross: list[KeysValues], prompt: Tensor, cfg: Beam | Nucleus, value: float, at: int
):
    torch.nn.init.constant_(med.lm_head.decoder.bias.data[SEP : SEP + 1], -20.0)  # no text ends before
    calls = 0

    def step(ids: Tensor, cross: list[KeysValues], cache: KVCache) -> Tensor:
        nonlocal calls
        logits = med.decode_step(ids, cross, cache)
        if calls == at:
            logits[-1, 7] = value  # the last beam, or the last text
        calls += 1
        return logits

    def write() -> Texts:
        match cfg:
            case Beam():
                return beam_search(step, prompt, cross, cfg, SEP)
            case Nucleus():
                return sample(step, prompt, cross, cfg, torch.rand(2, 9), SEP)

    with pytest.raises(ValueError, match=r"logits that are not finite .* 1 of 2 texts"):
        write()


def test_the_nucleus_is_the_fewest_words_that_reach_p():
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.1, 0.3]]))
    words, probabilities = top_p_filter(logits, top_k=0, top_p=0.7)
    assert words[0, :2].tolist() == [1, 3]
    assert probabilities[0].tolist() == pytest.approx([0.625, 0.375, 0.0, 0.0])
    words, probabilities = top_p_filter(logits, top_k=1, top_p=0.99)
    assert (words.tolist(), probabilities.tolist()) == ([[1]], [[1.0]])


def test_a_repeated_word_is_penalised_once_whatever_its_sign():
    scores = penalise_repetition(torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[0, 1, 1, 0]]), 2.0)
    assert scores.tolist() == [[1.0, -4.0, 1.0]]
