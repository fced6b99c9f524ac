"""The first stage of BLIP-2: losses, gradients and the queries' outputs are the reference's."""

import torch
from golden_files import Golden, assert_close, assert_close_after_a_step

from blip.batch import Batch
from blip.models.bert import TextConfig
from blip.models.blip2 import Blip2Config, QFormerModel
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.med import SpecialTokens
from blip.models.weights.load import load_weights
from blip.models.weights.names import lavis
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.query_alignment import QueryAlignmentConfig
from blip.tasks.text import TextLengths


def stage1(golden: Golden) -> Blip2Stage1:
    """The first stage with the reference's weights, every one of which is used."""
    meta = golden.json("qformer.json")
    bert, words = meta["config"], golden.tokenizer
    sizes = Blip2Config(
        vision=ImageEncoderConfig(width=bert["encoder_width"]),
        text=TextConfig(
            vocab_size=bert["vocab_size"],
            width=bert["hidden_size"],
            depth=bert["num_hidden_layers"],
            heads=bert["num_attention_heads"],
            feed_forward=bert["intermediate_size"],
            positions=bert["max_position_embeddings"],
            eps=bert.get("layer_norm_eps", 1e-12),
            dropout=0.0,
        ),
        queries=bert["query_length"],
        cross_every=bert["cross_attention_freq"],
        embed=meta["embed"],
        tokens=SpecialTokens(pad=words.pad, cls=meta["cls"], sep=words.sep, dec=meta["bos"], enc=words.enc),
    )
    cfg = Blip2Stage1Config(
        features=True,
        alignment=QueryAlignmentConfig(most_likely_negatives=True, same_image="negative"),
        text=TextLengths(words=50, tokens=meta["max_length"], pad="max"),
    )
    model = cfg.build_model(sizes)
    report = load_weights(model, golden.weights("qformer"), cfg.DIFFERENCES)
    assert not report.missing
    assert set(report.unused) <= {"temp", "Qformer.bert.embeddings.position_ids"}
    return cfg.build_task(model, words)


def batch(golden: Golden, task: Blip2Stage1) -> Batch:
    captions = golden.json("qformer.json")["captions"]
    text = golden.tokenizer.encode(captions, task.cfg.text.tokens, task.cfg.text.pad)
    keys = [str(i) for i in range(len(captions))]
    return Batch(keys, golden.io("qformer")["image_embeds"], text, torch.arange(len(keys)))


def by_lavis_name(model: QFormerModel) -> dict[str, torch.nn.Parameter]:
    return {key: p for name, p in model.named_parameters(remove_duplicate=False) for key in lavis(name)}


def test_losses_and_gradients_are_the_references(golden: Golden):
    io, task = golden.io("qformer"), stage1(golden)
    losses = task(batch(golden, task))
    for name in ("itc", "itm", "lm"):
        assert_close(losses[name], io[name], name)
    torch.stack(list(losses.values())).sum().backward()
    parameters = by_lavis_name(task.model) | {"temp": task.alignment.temperature}
    gradients = [key for key in io if key.startswith("grad.")]
    assert gradients
    for key in gradients:
        gradient = parameters[key.removeprefix("grad.")].grad
        assert gradient is not None
        assert_close_after_a_step(gradient, io[key], key)


def test_queries_find_what_the_references_find(golden: Golden):
    io, task = golden.io("qformer"), stage1(golden)
    cross = task.model.qformer.cross_keys_values(task.model.encode_image(io["image_embeds"]))
    assert_close(task.model.qformer.encode_image(cross)[0], io["query_output"])
