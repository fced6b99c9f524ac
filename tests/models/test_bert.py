"""The text transformer: attention masks, KV cache and checkpointing."""

import pytest
import torch

from blip.models.bert import Attention, KVCache, TextConfig, TextTransformer, bidirectional_mask, causal_mask

CONFIG = TextConfig(vocab_size=19, width=16, depth=3, heads=2, feed_forward=32, positions=12, init_std=0.3)
IDS = torch.tensor([[1, 5, 6, 7, 8, 2], [1, 9, 10, 2, 0, 0]])
MASK = IDS != 0


@pytest.fixture
def transformer() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(CONFIG, 24).eval()


def test_masks_are_these_matrices():
    mask = torch.tensor([[True, True, True, False]])
    assert bidirectional_mask(mask).int().tolist() == [[[[1, 1, 1, 0]]]]
    assert causal_mask(mask).int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]]]


def test_attention_is_the_softmax_of_scaled_products_with_the_residual_normalised():
    torch.manual_seed(0)
    attention = Attention(CONFIG, 24).eval()
    x, source = torch.randn(1, 3, 16), torch.randn(1, 5, 24)
    q, k, v = (
        m.unflatten(-1, (2, 8)).transpose(1, 2)
        for m in (attention.query(x), attention.key(source), attention.value(source))
    )
    context = ((q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = attention.norm(x + attention.output(context))
    torch.testing.assert_close(attention(x, attention.keys_values(source)), expected)


def test_padding_changes_no_real_token(transformer: TextTransformer):
    alone = transformer(IDS[1:, :4], bidirectional_mask(MASK[1:, :4]))
    padded = transformer(IDS, bidirectional_mask(MASK))
    torch.testing.assert_close(padded[1:, :4], alone)


def test_a_causal_reader_does_not_see_what_comes(transformer: TextTransformer):
    later = IDS.clone()
    later[0, 4] = 3
    before, after = (transformer(ids, causal_mask(MASK)) for ids in (IDS, later))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[0, 4:], after[0, 4:])


def test_without_an_image_cross_attention_is_skipped(transformer: TextTransformer):
    read_alone = transformer(IDS, bidirectional_mask(MASK))
    for layer in transformer.layers:
        del layer.cross_attention
    assert transformer(IDS, bidirectional_mask(MASK)).equal(read_alone)


def test_reading_on_from_the_past_equals_reading_at_once(transformer: TextTransformer):
    cross = transformer.cross_keys_values(torch.randn(2, 5, 24))
    ids = IDS[:1].expand(2, -1)
    at_once = transformer(ids, causal_mask(torch.ones_like(ids, dtype=torch.bool)), cross)
    cache = KVCache(capacity=8)
    parts = [transformer(ids[:, :3], causal_mask(torch.ones(2, 3, dtype=torch.bool)), cross, cache=cache)]
    parts += [transformer(ids[:, i : i + 1], None, cross, cache=cache) for i in range(3, 6)]
    torch.testing.assert_close(torch.cat(parts, 1), at_once)


def test_a_row_goes_on_from_another_ones_past(transformer: TextTransformer):
    mask, cache = causal_mask(torch.ones(2, 3, dtype=torch.bool)), KVCache(capacity=4)
    transformer(IDS[:, :3], mask, cache=cache)
    cache.reorder(torch.tensor([1, 0]))
    found = transformer(IDS[:, 3:4], None, cache=cache)
    crossed = torch.cat([IDS[:, :3].flip(0), IDS[:, 3:4]], 1)
    expected = transformer(crossed, causal_mask(torch.ones(2, 4, dtype=torch.bool)))[:, 3:]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("last", [1, 3])
def test_checkpointing_recomputes_the_same_gradients(last: int):
    gradients = []
    for checkpoint_last in (0, last):
        torch.manual_seed(0)
        cfg = CONFIG.model_copy(update={"checkpoint_last": checkpoint_last, "dropout": 0.1})
        transformer = TextTransformer(cfg, 24).train()
        image = torch.randn(2, 5, 24, requires_grad=True)
        passes = []
        for layer in transformer.layers:
            layer.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(1)
        transformer(IDS, bidirectional_mask(MASK), transformer.cross_keys_values(image)).square().sum().backward()
        assert len(passes) == CONFIG.depth + checkpoint_last
        gradients.append([p.grad for p in transformer.parameters()] + [image.grad])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert plain.equal(recomputed)


def test_the_word_that_pads_is_not_learnt_wherever_it_stands():
    transformer = TextTransformer(CONFIG, 24, pad=3)
    assert not transformer.embeddings.word.weight[3].any()
    ids = torch.tensor([[1, 0, 4, 3]])
    transformer(ids, bidirectional_mask(torch.ones_like(ids, dtype=torch.bool))).square().sum().backward()
    gradient = transformer.embeddings.word.weight.grad
    assert gradient is not None
    assert gradient.any(1).nonzero()[:, 0].tolist() == [0, 1, 4]


def test_the_padding_row_is_zero_and_weights_have_their_deviation(transformer: TextTransformer):
    assert not transformer.embeddings.word.weight[0].any()
    assert transformer.get_parameter("layers.0.feed_forward.up.weight").std().item() == pytest.approx(0.3, rel=0.1)
    assert not transformer.get_parameter("layers.2.self_attention.query.bias").any()
