"""Who attends to whom in the Q-Former, as matrices, and what its passes share."""

import pytest
import torch
from torch import Tensor

from blip.batch import Tokens
from blip.models.bert import KVCache, TextConfig
from blip.models.qformer import Attending, QFormer, attention_mask

QUERIES, WORDS = 2, 3
MASKS: dict[Attending, list[str]] = {
    "unimodal": ["11000", "11000", "00111", "00111", "00111"],
    "bidirectional": ["11111", "11111", "11111", "11111", "11111"],
    "causal": ["11000", "11000", "11100", "11110", "11111"],
}
"""Rows attend to columns, over two queries and then three words (BLIP-2, figure 2)."""


def matrix(rows: list[str]) -> Tensor:
    return torch.tensor([[int(value) for value in row] for row in rows]).bool()


@pytest.fixture
def qformer() -> QFormer:
    torch.manual_seed(0)
    cfg = TextConfig(vocab_size=19, width=16, depth=3, heads=2, feed_forward=32, positions=12, init_std=0.3)
    return QFormer(cfg, QUERIES, cross_every=2, cross_width=24).eval()


@pytest.fixture
def text() -> Tokens:
    ids = torch.tensor([[1, 5, 6], [1, 9, 0]])
    return Tokens(ids, ids != 0)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attending", MASKS)
def test_the_mask_is_the_papers_matrix(attending: Attending, text: Tokens):
    whole, padded = attention_mask(attending, QUERIES, text.mask)[:, 0]
    assert whole.equal(matrix(MASKS[attending]))
    expected = matrix(MASKS[attending])
    expected[:, -1] = False  # the second text has two words
    assert padded.equal(expected)


@pytest.mark.parametrize("attending", MASKS)
def test_outputs_depend_on_what_the_mask_allows(attending: Attending, text: Tokens, image: Tensor):
    """The matrix is measured: an input that a row does not attend to has no gradient from its output."""
    cfg = TextConfig(vocab_size=19, width=16, depth=1, heads=2, feed_forward=32, positions=12, init_std=0.3)
    torch.manual_seed(0)
    qformer = QFormer(cfg, QUERIES, cross_every=2, cross_width=24).eval()
    whole = text[:1]
    x = torch.cat([qformer.embed_queries(1), qformer.embeddings(whole.ids)], 1).detach().requires_grad_()
    cross = qformer.cross_keys_values(image[:1])
    hidden = qformer.run(x, attention_mask(attending, QUERIES, whole.mask), cross, None)
    seen = []
    for row in range(QUERIES + WORDS):
        (gradient,) = torch.autograd.grad(hidden[0, row].sin().sum(), x, retain_graph=True)
        seen.append((gradient[0].abs().sum(-1) > 0).tolist())
    assert torch.tensor(seen).equal(matrix(MASKS[attending]))


def test_one_unimodal_pass_is_two_separate_passes(qformer: QFormer, text: Tokens, image: Tensor):
    cross = qformer.cross_keys_values(image)
    found, hidden, past = qformer.encode_both(text, cross, "unimodal")
    alone, past_alone = qformer.encode_image(cross)
    torch.testing.assert_close(found, alone)
    torch.testing.assert_close(hidden[text.mask], qformer.encode_text(text)[text.mask])
    for pair, other in zip(past, past_alone, strict=True):
        torch.testing.assert_close(pair, other)


def test_generation_over_stored_queries_is_the_causal_pass(qformer: QFormer, text: Tokens, image: Tensor):
    cross = qformer.cross_keys_values(image)
    _, expected, _ = qformer.encode_both(text, cross, "causal")
    _, past = qformer.encode_image(cross)
    torch.testing.assert_close(qformer.decode(text, past)[text.mask], expected[text.mask])
    cache = KVCache(WORDS)
    first = qformer.decode_step(text.ids[:1, :2], [(k[:1], v[:1]) for k, v in past], cache)
    last = qformer.decode_step(text.ids[:1, 2:], [(k[:1], v[:1]) for k, v in past], cache)
    torch.testing.assert_close(torch.cat([first, last], 1), expected[:1])


def test_only_every_second_layer_looks_at_the_image(qformer: QFormer, image: Tensor):
    assert [hasattr(layer, "cross_attention") for layer in qformer.layers] == [True, False, True]
    assert len(qformer.cross_keys_values(image)) == 2


def test_padding_changes_nothing(qformer: QFormer, text: Tokens, image: Tensor):
    cross = qformer.cross_keys_values(image)
    short = Tokens(text.ids[1:, :2], text.mask[1:, :2])
    own = [(k[1:], v[1:]) for k, v in cross]
    for attending in MASKS:
        found, hidden, _ = qformer.encode_both(text, cross, attending)
        found_short, hidden_short, _ = qformer.encode_both(short, own, attending)
        torch.testing.assert_close(found[1:], found_short)
        torch.testing.assert_close(hidden[1:, :2], hidden_short)


def test_queries_and_texts_have_feed_forwards_of_their_own(qformer: QFormer, text: Tokens, image: Tensor):
    cross = qformer.cross_keys_values(image)
    found, _ = qformer.encode_image(cross)
    hidden = qformer.encode_text(text)
    with torch.no_grad():
        for layer in qformer.layers:
            layer.feed_forward.down.weight += 1
    torch.testing.assert_close(qformer.encode_image(cross)[0], found)
    assert not torch.allclose(qformer.encode_text(text), hidden)


def test_recomputed_activations_change_no_gradient(text: Tokens, image: Tensor):
    gradients = []
    for last in (0, 3):
        torch.manual_seed(0)
        cfg = TextConfig(
            vocab_size=19, width=16, depth=3, heads=2, feed_forward=32, positions=12, dropout=0.0, checkpoint_last=last
        )
        qformer = QFormer(cfg, QUERIES, cross_every=2, cross_width=24).train()
        found, _, past = qformer.encode_both(text, qformer.cross_keys_values(image), "unimodal")
        (found.sin().sum() + qformer.decode(text, past).sin().sum()).backward()
        gradients.append([p.grad for p in qformer.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
