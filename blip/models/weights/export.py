"""Exports models: files of the reference's format, and folders of transformers."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    PreTrainedModel,
)

from blip.models.bert import TextTransformer
from blip.models.med import MED, MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.files import WeightsError
from blip.models.weights.names import Spelling, huggingface, official

VISION_EPS = 1e-6
"""Epsilon of the image encoder's LayerNorms, in timm and the reference; the default of transformers differs."""


def renamed_tensors(model: nn.Module, spelling: Spelling) -> dict[str, Tensor]:
    """Returns the model's parameters by their names in a spelling; a tied parameter has all of its names."""
    return {
        key: parameter.detach()
        for name, parameter in model.named_parameters(remove_duplicate=False)
        for key in spelling(name)
    }


def official_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a file of the reference, including the position ids, which its loader requires."""
    texts = {"text_encoder": "text_encoder", "text_decoder": "text_decoder.bert"}
    numbers = {
        f"{prefix}.embeddings.position_ids": torch.arange(part.embeddings.position.num_embeddings)[None]
        for name, prefix in texts.items()
        if isinstance(part := getattr(model, name, None), TextTransformer)
    }
    return renamed_tensors(model, official) | numbers


def huggingface_classes(model: nn.Module) -> list[type[PreTrainedModel]]:
    """Returns the transformers classes for a model, several if its parts belong to several classes.

    A pre-trained model needs two: captioning and retrieval. Raises WeightsError if no class fits the model.
    """
    match model:
        case MED():
            parts = {"text_decoder": BlipForConditionalGeneration, "text_encoder": BlipForImageTextRetrieval}
            return [kind for part, kind in parts.items() if hasattr(model, part)]
        case VQAModel() if model.cfg.text.width == model.cfg.vision.width:
            return [BlipForQuestionAnswering]
        case VQAModel():
            raise WeightsError(
                f"BlipForQuestionAnswering needs equal widths, but vision.width is {model.cfg.vision.width} and "
                f"text.width {model.cfg.text.width}; write the official format"
            )
        case _:
            raise WeightsError(f"transformers has no class for {type(model).__name__}; write the official format")


def write_huggingface(model: MED | VQAModel | NLVRModel, kind: type[PreTrainedModel], folder: Path) -> None:
    """Writes configuration and weights of a model as one of its `huggingface_classes`."""
    theirs = kind(huggingface_config(model.cfg))
    tensors = renamed_tensors(model, huggingface)
    theirs.load_state_dict({name: tensors[name] for name in theirs.state_dict()})
    theirs.save_pretrained(folder)


def huggingface_config(cfg: MEDConfig) -> BlipConfig:
    """Converts a model's configuration to that of transformers, whose defaults differ from BLIP's."""
    text = {
        "vocab_size": cfg.text.vocab_size,
        "hidden_size": cfg.text.width,
        "encoder_hidden_size": cfg.vision.width,
        "intermediate_size": cfg.text.feed_forward,
        "num_hidden_layers": cfg.text.depth,
        "num_attention_heads": cfg.text.heads,
        "max_position_embeddings": cfg.text.positions,
        "layer_norm_eps": cfg.text.eps,
        "hidden_dropout_prob": cfg.text.dropout,
        "attention_probs_dropout_prob": cfg.text.dropout,
        "initializer_range": cfg.text.init_std,
        "bos_token_id": cfg.tokens.dec,
        "eos_token_id": cfg.tokens.sep,
        "sep_token_id": cfg.tokens.sep,
        "pad_token_id": cfg.tokens.pad,
        "label_smoothing": 0.1,
    }
    vision = {
        "hidden_size": cfg.vision.width,
        "intermediate_size": 4 * cfg.vision.width,
        "num_hidden_layers": cfg.vision.depth,
        "num_attention_heads": cfg.vision.heads,
        "image_size": cfg.vision.size,
        "patch_size": cfg.vision.patch,
        "layer_norm_eps": VISION_EPS,
        "initializer_range": cfg.vision.init_std,
    }
    return BlipConfig(
        text_config=text,
        vision_config=vision,
        image_text_hidden_size=cfg.embed,
        label_smoothing=0.1,
        initializer_range=cfg.text.init_std,
    )
