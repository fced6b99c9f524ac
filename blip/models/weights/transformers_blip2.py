"""BLIP-2 as transformers has it: its models, with our weights."""

from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import (
    Blip2Config as TheirConfig,
)
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModel,
    OPTConfig,
    PreTrainedModel,
)

from blip.models.bert import TextConfig
from blip.models.blip2 import Blip2, QFormerModel, QueriedImages
from blip.models.frozen import Frozen
from blip.models.image_encoder import ImageEncoder
from blip.models.weights.export import renamed_tensors
from blip.models.weights.files import WeightsError
from blip.models.weights.names import huggingface_blip2


def to_transformers(model: Blip2 | QFormerModel, image_token: int | None = None) -> PreTrainedModel:
    """Returns a model of the second stage as Blip2ForConditionalGeneration, of the first as Blip2ForImageTextRetrieval.

    `image_token` is the id that stands for the queries among a language model's tokens. Raises WeightsError if
    transformers' image encoder of BLIP-2 cannot have the weights of the model's.
    """
    encoder = encoder_of(model)
    about, encoder_tensors = vision_model(encoder)
    qformer = Blip2QFormerConfig(**qformer_values(model), encoder_hidden_size=model.cfg.vision.width)
    values: dict[str, Any] = {"vision_config": about, "qformer_config": qformer, "num_query_tokens": model.cfg.queries}
    language: dict[str, Tensor] = {}
    if isinstance(model, Blip2):
        network = model.language_model.network
        config = TheirConfig(**values, text_config=network.config, image_token_index=image_token)
        theirs: PreTrainedModel = Blip2ForConditionalGeneration(config)
        language = {f"language_model.{name}": tensor for name, tensor in network.state_dict().items()}
    else:
        text = OPTConfig(num_hidden_layers=0)  # not used, but part of every configuration
        config = TheirConfig(**values, text_config=text, image_text_hidden_size=model.cfg.embed)
        theirs = Blip2ForImageTextRetrieval(config)
    tensors = {key: t for key, t in renamed_tensors(model, huggingface_blip2).items() if "visual_encoder" not in key}
    tensors |= {f"vision_model.{name}": tensor for name, tensor in encoder_tensors.items()} | language
    theirs.load_state_dict({name: tensors[name] for name in theirs.state_dict()})
    return theirs.eval()


def qformer_values(model: QueriedImages) -> dict[str, Any]:
    """Returns the Q-Former's sizes by transformers' names."""
    text = model.cfg.text
    return {
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "intermediate_size": text.feed_forward,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "max_position_embeddings": text.positions,
        "layer_norm_eps": text.eps,
        "initializer_range": text.init_std,
        "pad_token_id": model.cfg.tokens.pad,
        "cross_attention_frequency": model.cfg.cross_every,
        "use_qformer_text_input": isinstance(model, QFormerModel),
    }


def text_config(qformer: Any) -> TextConfig:
    """Returns the Q-Former's sizes from transformers' configuration."""
    return TextConfig(
        vocab_size=qformer.vocab_size,
        width=qformer.hidden_size,
        depth=qformer.num_hidden_layers,
        heads=qformer.num_attention_heads,
        feed_forward=qformer.intermediate_size,
        positions=qformer.max_position_embeddings,
        dropout=qformer.hidden_dropout_prob,
        eps=qformer.layer_norm_eps,
        init_std=qformer.initializer_range,
    )


def encoder_of(model: QueriedImages) -> ImageEncoder:
    """Returns the image encoder of a model, frozen or not."""
    encoder = model.visual_encoder
    found = encoder.network if isinstance(encoder, Frozen) else encoder
    assert isinstance(found, ImageEncoder)
    return found


def vision_model(encoder: ImageEncoder) -> tuple[Blip2VisionConfig, dict[str, Tensor]]:
    """Returns the configuration and the tensors of an image encoder as transformers' BLIP-2 has it.

    Raises WeightsError if that has no place for parts of the encoder.
    """
    network = encoder.network
    match network:
        case Blip2VisionModel():
            config = Blip2VisionConfig(**{**network.config.to_dict(), "num_hidden_layers": len(network.encoder.layers)})
            tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("post_layernorm.")}
            return config, tensors
        case Eva() | VisionTransformer() if isinstance(network.norm_pre, nn.Identity) and network.cls_token is not None:
            return timm_vision_model(network)
        case _:
            raise WeightsError(
                f"transformers' BLIP-2 has a plain vision transformer with [CLS]; {type(network).__name__} is none: "
                "write the official format, which leaves the frozen image encoder out"
            )


def timm_vision_model(network: Eva | VisionTransformer) -> tuple[Blip2VisionConfig, dict[str, Tensor]]:
    """As `vision_model`, of a vision transformer of timm."""
    tensors, blocks = {}, list(network.blocks)
    state = network.state_dict()
    first: Any = blocks[0]
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part in ("norm", "fc_norm", "head") or name.endswith((".q_bias", ".k_bias", ".v_bias")):
            continue
        key = huggingface_blip2(f"visual_encoder.network.{name}")[0].removeprefix("vision_model.")
        tensors[key] = tensor
        if rest.endswith("attn.qkv.weight") and f"{name.removesuffix('qkv.weight')}q_bias" in state:
            stem = name.removesuffix("qkv.weight")
            q, v = state[f"{stem}q_bias"], state[f"{stem}v_bias"]
            tensors[key.removesuffix("weight") + "bias"] = torch.cat([q, torch.zeros_like(q), v])
    patch: Any = network.patch_embed
    config = Blip2VisionConfig(
        hidden_size=network.embed_dim,
        intermediate_size=first.mlp.fc1.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=first.attn.num_heads,
        image_size=patch.img_size[0],
        patch_size=patch.patch_size[0],
        layer_norm_eps=first.norm1.eps,
        hidden_act="quick_gelu" if type(first.mlp.act).__name__ == "QuickGELU" else "gelu",
    )
    return config, tensors
