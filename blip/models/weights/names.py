"""What our parameters are called elsewhere: in the reference's files, in transformers, and in BERT's own."""

import re
from collections.abc import Callable

Spelling = Callable[[str], tuple[str, ...]]
"""Our name to the names under which a file stores that tensor; two where a file stores it twice."""

TEXT = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "cross_attention.first.query": "crossattention.self0.query",
    "cross_attention.first.key": "crossattention.self0.key",
    "cross_attention.first.value": "crossattention.self0.value",
    "cross_attention.first.output": "crossattention.output.dense0",
    "cross_attention.second.query": "crossattention.self1.query",
    "cross_attention.second.key": "crossattention.self1.key",
    "cross_attention.second.value": "crossattention.self1.value",
    "cross_attention.second.output": "crossattention.output.dense1",
    "cross_attention.merge": "crossattention.output.merge_layer",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
"""Parts of the text transformer: ours, and BERT's, which both the reference and transformers use."""

LM_HEAD = {"dense": "transform.dense", "norm": "transform.LayerNorm", "decoder": "decoder"}

VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Parts of the image encoder: timm's names, which are the reference's and ours, and transformers'."""


def own(name: str) -> tuple[str, ...]:
    """The name in a file of ours."""
    return (name,)


def official(name: str) -> tuple[str, ...]:
    """The name in a file of the reference; the bias of the words is there twice."""
    part, _, rest = name.partition(".")
    match part:
        case "text_encoder":
            return (f"text_encoder.{text_name(rest)}",)
        case "text_decoder":
            return (f"text_decoder.bert.{text_name(rest)}",)
        case "lm_head":
            return tuple(f"text_decoder.{head}" for head in lm_head_names(rest))
        case _:
            return (name,)


def huggingface(name: str) -> tuple[str, ...]:
    """The name in a folder of transformers, which differs from the reference's for the image encoder alone."""
    part, _, rest = name.partition(".")
    return (f"vision_model.{vision_name(rest)}",) if part == "visual_encoder" else official(name)


def bert(name: str) -> tuple[str, ...]:
    """The name in a file of BERT with its language modeling head, of a parameter of text encoder, decoder or LM
    head.
    """
    part, _, rest = name.partition(".")
    match part:
        case "text_encoder" | "text_decoder":
            return (f"bert.{text_name(rest)}",)
        case "lm_head":
            return lm_head_names(rest)
        case _:
            return ()


def timm(name: str) -> tuple[str, ...]:
    """The name in a file of a timm vision transformer, of a parameter of the image encoder."""
    part, _, rest = name.partition(".")
    return (rest,) if part == "visual_encoder" else ()


def one_image(name: str) -> str:
    """For either of two cross-attentions, one an image, the name of the single one of a model that sees one image."""
    return re.sub(r"\.cross_attention\.(first|second)\.", ".cross_attention.", name)


def text_name(rest: str) -> str:
    """`layers.0.self_attention.query.weight` to `encoder.layer.0.attention.self.query.weight`."""
    layer, inner, kind = split_name(rest, "layers")
    return f"encoder.layer.{layer}.{TEXT[inner]}.{kind}" if layer else f"{TEXT[inner]}.{kind}"


def lm_head_names(rest: str) -> tuple[str, ...]:
    """`dense.weight` to `cls.predictions.transform.dense.weight`."""
    part, _, kind = rest.rpartition(".")
    name = f"cls.predictions.{LM_HEAD[part]}.{kind}"
    return (name, "cls.predictions.bias") if rest == "decoder.bias" else (name,)


def vision_name(rest: str) -> str:
    """`blocks.0.attn.proj.weight` to `encoder.layers.0.self_attn.projection.weight`."""
    if rest in VISION:
        return VISION[rest]
    block, inner, kind = split_name(rest, "blocks")
    return f"encoder.layers.{block}.{VISION[inner]}.{kind}" if block else f"{VISION[inner]}.{kind}"


def split_name(rest: str, stack: str) -> tuple[str, str, str]:
    """The number of the layer (empty outside of the stack), the part within, and weight or bias."""
    found = re.fullmatch(rf"(?:{stack}\.(\d+)\.)?(.+)\.(weight|bias)", rest)
    assert found, f"{rest} is no weight or bias"
    return found[1] or "", found[2], found[3]
