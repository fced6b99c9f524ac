"""Captions and scores of a sample do not depend on the rest of its batch."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_models import both, captioner, samples, text_filter, tokenizer

from blip.capfilt.pairs import CarriedConfig, Pair, make_pair
from blip.capfilt.quality import QualityConfig
from blip.capfilt.stream import Chunk, StreamConfig, chunks, with_scores, with_synthetic
from blip.config import ConfigError, validate
from blip.data.transforms import eval_transform
from blip.models.generation import Beam, Nucleus
from blip.tasks.captioning import Captioning, CaptioningConfig
from blip.tasks.retrieval import Retrieval
from blip.zoo.contract import ImageBatch, View
from blip.zoo.draws import sample_uniforms
from blip.zoo.image_model import Precision
from blip.zoo.ours import OurCaptioner, OurFilter

NUCLEUS = Nucleus(min_length=4, max_length=10)
VIEW = View("16 pixels", eval_transform(16))


def pairs(count: int = 7, start: int = 0) -> list[Pair]:
    return [make_pair(s, [VIEW], QualityConfig(min_side=1), CarriedConfig(), ()) for s in samples(count, start)]


def stream(source: list[Pair], **cfg) -> Iterator[Chunk]:
    return chunks(source, StreamConfig(**{"batch": 4, "decoding": NUCLEUS, **cfg}), Counter())


def writer(decoding: Nucleus | Beam = NUCLEUS, seed: int = 42, **_) -> OurCaptioner:
    return OurCaptioner(captioner(), decoding, seed)


def run(source: list[Pair], **cfg) -> dict[str, list[tuple]]:
    """Texts and scores by sample."""
    written = with_synthetic(stream(source, **cfg), writer(**cfg))
    done = [pair for chunk in with_scores(written, {"filter": OurFilter(text_filter())}) for pair in chunk.pairs]
    return {
        pair.key: [
            (t.source, t.text, t.log_probability, t.scores.get("match"), t.scores.get("similarity")) for t in pair.texts
        ]
        for pair in done
    }


def test_draws_belong_to_key_seed_and_caption():
    draws = sample_uniforms(["a", "b", "a"], 1, 0, 5)
    assert draws.shape == (3, 5)
    assert draws.dtype == torch.float32
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[1], sample_uniforms(["b"], 1, 0, 9)[0, :5])
    assert not torch.equal(draws[0], sample_uniforms(["a"], 2, 0, 5)[0])
    assert not torch.equal(draws[0], sample_uniforms(["a"], 1, 1, 5)[0])


def test_draws_are_uniform():
    draws = sample_uniforms([str(i) for i in range(2000)], 0, 0, 10).numpy()
    assert 0 <= draws.min() < draws.max() < 1
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / draws.size - 0.1).max() < 0.01


@pytest.mark.parametrize("decoding", [NUCLEUS, Beam(min_length=4, max_length=10)])
def test_texts_and_scores_do_not_depend_on_the_batch_or_the_order(decoding: Nucleus | Beam):
    whole = run(pairs(), decoding=decoding)
    assert whole == run(pairs(), batch=3, decoding=decoding)
    assert whole == run(pairs()[::-1], batch=16, decoding=decoding)
    assert len({text for texts in whole.values() for _, text, *_ in texts[1:]}) > 1


def test_captions_differ_by_number_and_seed():
    first, second = run(pairs(), captions=2), run(pairs(), captions=2, seed=7)
    assert all(len(texts) == 3 for texts in first.values())
    assert all(texts[1][1] != texts[2][1] for texts in first.values())
    assert all(first[key][1][1] != second[key][1][1] for key in first)
    assert {key: texts[:2] for key, texts in first.items()} == run(pairs())


def test_the_filter_scores_every_text_as_it_would_alone():
    chunk = next(
        with_scores(with_synthetic(stream(pairs(4), captions=2), writer()), {"filter": OurFilter(text_filter())})
    )
    for pair in chunk.pairs:
        for text in pair.texts:
            match, similarity = text_filter().match(pair.views[VIEW.name][None], [text.text])
            assert text.scores["match"] == pytest.approx(match.item(), abs=2e-5)
            assert text.scores["similarity"] == pytest.approx(similarity.item(), abs=2e-5)


def test_the_log_probability_is_the_captioner_s():
    pair = next(with_synthetic(stream(pairs(1)), writer())).pairs[0]
    task = captioner()
    written = task.generate(
        pair.views[VIEW.name][None], NUCLEUS, sample_uniforms([pair.key], 42, 0, NUCLEUS.max_length)
    )
    assert tokenizer().decode(written.ids) == [pair.texts[1].text]
    assert pair.texts[1].log_probability == pytest.approx(written.log_probability.item(), abs=1e-3)


def test_one_model_for_both_sees_an_image_once():
    task = both()
    seen = []
    task.model.visual_encoder.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
    alone = Captioning(CaptioningConfig(prompt="", text=task.cfg.text), task.model, task.tokenizer)
    judge = Retrieval(text_filter().cfg, task.model, task.tokenizer)
    written = with_synthetic(stream(pairs(8)), OurCaptioner(alone, NUCLEUS))
    done = list(with_scores(written, {"filter": OurFilter(judge)}))
    assert seen == [4, 4]
    assert all("match" in text.scores for chunk in done for pair in chunk.pairs for text in pair.texts)


def test_half_precision_says_nearly_the_same():
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    whole, half = (
        next(with_scores(stream(pairs(4)), {"filter": OurFilter(text_filter(), precision)})).pairs
        for precision in precisions
    )
    for one, other in zip(whole, half, strict=True):
        first, second = one.texts[0].scores, other.texts[0].scores
        assert first["match"] != second["match"]
        assert first["match"] == pytest.approx(second["match"], abs=0.02)
        assert first["similarity"] == pytest.approx(second["similarity"], abs=0.05)


def test_a_pair_without_a_sound_image_passes_through_untouched():
    source = pairs(3)
    source[1].views = {}
    texts = run(source)
    assert [len(found) for found in texts.values()] == [2, 1, 2]
    assert texts["0001"][0][3] is None
    assert texts["0002"] == run(pairs())["0002"]


def test_beam_search_has_one_caption():
    with pytest.raises(ConfigError, match="captions is 2, but beam search has one best text"):
        validate(StreamConfig, {"captions": 2, "decoding": {"type": "beam"}}, "stream")


def test_a_decoy_is_the_text_of_another_image_of_the_batch():
    judge = OurFilter(text_filter())
    done = [pair for chunk in with_scores(stream(pairs(7), decoys=True), {"clip": judge}) for pair in chunk.pairs]
    for here, there in [(0, 2), (1, 3), (2, 0), (3, 1), (4, 5), (5, 6), (6, 4)]:
        text, other = done[here].texts[0], done[there]
        match, similarity = judge.score(ImageBatch([other.views], 4), [[text.text]])[0][0]
        assert text.scores["decoy.clip.match"] == pytest.approx(match, abs=2e-5)
        assert text.scores["decoy.clip.similarity"] == pytest.approx(similarity, abs=2e-5)
    plain = [pair for chunk in with_scores(stream(pairs(7)), {"clip": judge}) for pair in chunk.pairs]
    for pair, without in zip(done, plain, strict=True):
        (text,) = pair.texts
        assert {name: text.scores[name] for name in without.texts[0].scores} == without.texts[0].scores
        assert "decoy.clip.match" not in without.texts[0].scores


def test_only_a_web_text_that_is_wrong_for_the_other_image_is_a_decoy():
    source = pairs(4)
    for pair, text in zip(source, ["A dog", "a cat ", "a dog", "a cat on a mat"], strict=True):
        pair.texts[0].text = text
    written = with_synthetic(stream(source, decoys=True), writer())
    done = [pair for chunk in with_scores(written, {"filter": OurFilter(text_filter())}) for pair in chunk.pairs]
    found = [[(text.source, "decoy.match" in text.scores) for text in pair.texts] for pair in done]
    assert found == [[("web", known), ("synthetic", False)] for known in (False, True, False, True)]
    (alone,) = (
        pair
        for chunk in with_scores(stream(pairs(1), decoys=True), {"filter": OurFilter(text_filter())})
        for pair in chunk.pairs
    )
    assert list(alone.texts[0].scores) == ["match", "similarity"]


def test_a_broken_model_is_noticed():
    task = text_filter()
    torch.nn.init.constant_(task.model.itm_head.bias, torch.nan)
    with pytest.raises(ValueError, match="sample '0000': a model gave nan"):
        next(with_scores(stream(pairs(1)), {"filter": OurFilter(task)}))
