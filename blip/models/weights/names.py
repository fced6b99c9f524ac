"""Maps our parameter names to those of the reference, transformers, BERT and timm."""

import re
from collections.abc import Callable

Spelling = Callable[[str], tuple[str, ...]]
"""Maps our name to the names under which a file stores the tensor; two if the file stores it twice."""

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
    "query_feed_forward.up": "intermediate_query.dense",
    "query_feed_forward.down": "output_query.dense",
    "query_feed_forward.norm": "output_query.LayerNorm",
}
"""Modules of the text transformer: our names, and BERT's, which the reference and transformers share."""

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
"""Modules of the image encoder: timm's names, shared by us and the reference, and those of transformers."""


def own(name: str) -> tuple[str, ...]:
    """Returns the name in our files."""
    return (name,)


def official(name: str) -> tuple[str, ...]:
    """Returns the name in the reference's files; the LM head's bias has two."""
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
    """Returns the name in transformers, which differs from the reference's in the image encoder only."""
    part, _, rest = name.partition(".")
    if part == "visual_encoder":
        return tuple(f"vision_model.{found}" for found in vision_names(rest))
    return official(name)


def lavis(name: str) -> tuple[str, ...]:
    """Returns the names in LAVIS's files of BLIP-2; the LM head's bias has two, the projection one a language model."""
    part, _, rest = name.partition(".")
    match part:
        case "qformer" if rest == "query_tokens":
            return ("query_tokens",)
        case "qformer":
            return (f"Qformer.bert.{text_name(rest)}",)
        case "lm_head":
            return tuple(f"Qformer.{head}" for head in lm_head_names(rest))
        case "projection":
            return (f"opt_proj.{rest}", f"t5_proj.{rest}")
        case "visual_encoder":
            return (f"visual_encoder.{rest.removeprefix('network.')}",)
        case _:
            return (name,)


def huggingface_blip2(name: str) -> tuple[str, ...]:
    """Returns the name in the BLIP-2 of transformers, which has no LM head of the Q-Former."""
    part, _, rest = name.partition(".")
    match part:
        case "qformer" if rest == "query_tokens":
            return ("query_tokens",)
        case "qformer" if rest.startswith("embeddings.norm."):
            return (f"qformer.layernorm.{rest.removeprefix('embeddings.norm.')}",)
        case "qformer" if rest.startswith("embeddings."):
            return (text_name(rest),)
        case "qformer":
            return (f"qformer.{text_name(rest).replace('attention.self.', 'attention.attention.')}",)
        case "ln_vision":
            return (f"vision_model.post_layernorm.{rest}",)
        case "projection":
            return (f"language_projection.{rest}",)
        case "vision_proj" | "text_proj":
            return (f"{part}ection.{rest}",)
        case "visual_encoder":
            return tuple(f"vision_model.{found}" for found in vision_names(rest.removeprefix("network.")))
        case "lm_head":
            return ()
        case _:
            return (name,)


def bert(name: str) -> tuple[str, ...]:
    """Returns the name in a BERT with LM head, for parameters of text transformers and LM head; else none.

    A Q-Former's feed-forwards for queries begin as those for texts do.
    """
    part, _, rest = name.partition(".")
    match part:
        case "text_encoder" | "text_decoder":
            return (f"bert.{text_name(rest)}",)
        case "qformer" if rest != "query_tokens":
            return (f"bert.{text_name(rest.replace('.query_feed_forward.', '.feed_forward.'))}",)
        case "lm_head":
            return lm_head_names(rest)
        case _:
            return ()


def timm(name: str) -> tuple[str, ...]:
    """Returns the name in a timm vision transformer, for parameters of the image encoder; else none."""
    part, _, rest = name.partition(".")
    return (rest,) if part == "visual_encoder" else ()


def one_image(name: str) -> str:
    """Maps a parameter of either cross-attention of a two-image model to that of a one-image model."""
    return re.sub(r"\.cross_attention\.(first|second)\.", ".cross_attention.", name)


def text_name(rest: str) -> str:
    """Maps `layers.0.self_attention.query.weight` to `encoder.layer.0.attention.self.query.weight`."""
    layer, inner, kind = split_name(rest, "layers")
    return f"encoder.layer.{layer}.{TEXT[inner]}.{kind}" if layer else f"{TEXT[inner]}.{kind}"


def lm_head_names(rest: str) -> tuple[str, ...]:
    """Maps `dense.weight` to `cls.predictions.transform.dense.weight`."""
    part, _, kind = rest.rpartition(".")
    name = f"cls.predictions.{LM_HEAD[part]}.{kind}"
    return (name, "cls.predictions.bias") if rest == "decoder.bias" else (name,)


def vision_names(rest: str) -> tuple[str, ...]:
    """Maps `blocks.0.attn.proj.weight` to `encoder.layers.0.self_attn.projection.weight`.

    A parameter of another image encoder than timm's ViT has no name.
    """
    if rest in VISION:
        return (VISION[rest],)
    found = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", rest)
    if found is None or found[2] not in VISION:
        return ()
    name = f"{VISION[found[2]]}.{found[3]}"
    return (f"encoder.layers.{found[1]}.{name}" if found[1] else name,)


def split_name(rest: str, stack: str) -> tuple[str, str, str]:
    """Splits a name into layer index (empty outside of the stack), module in the layer, and weight or bias."""
    found = re.fullmatch(rf"(?:{stack}\.(\d+)\.)?(.+)\.(weight|bias)", rest)
    assert found, f"{rest} is no weight or bias"
    return found[1] or "", found[2], found[3]
