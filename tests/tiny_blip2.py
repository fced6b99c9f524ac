"""Frozen models small enough to run in milliseconds, as folders of timm and transformers, and a BLIP-2 around them."""

from functools import cache
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from tiny_models import SIZE, TEXTS, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers import Blip2Config as TheirConfig

from blip.models.bert import TextConfig
from blip.models.blip2 import Blip2Config
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.language.config import LanguageModelConfig
from blip.models.med import SpecialTokens

WIDTH, WORDS = 16, 24
"""Widths of images and of language models."""


def shuffle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter, biases too, a random value."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def clip(folder: Path, seed: int = 0, layers: int = 3) -> str:
    cfg = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    shuffle(CLIPVisionModel(cfg), seed).save_pretrained(folder)
    return str(folder)


def siglip(folder: Path) -> str:
    cfg = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    shuffle(SiglipVisionModel(cfg)).save_pretrained(folder)
    return str(folder)


def timm_model(folder: Path, name: str = "vit_tiny_patch16_224", **sizes) -> str:
    defaults = {"img_size": SIZE, "patch_size": 8, "embed_dim": WIDTH, "depth": 3, "num_heads": 2}
    sizes = sizes or defaults
    model = shuffle(timm.create_model(name, num_classes=3, **sizes))
    save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
    return str(folder)


@cache
def words() -> PreTrainedTokenizerFast:
    """Words apart by spaces; `</s>` begins a text, as of OPT."""
    used = {word for text in TEXTS for word in text.split()} | {"photo", "of"}
    return speaker(["<pad>", "</s>", "<unk>", "\n", *sorted(used)], "</s> $A")


def speaker(known: list[str], template: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    special = [("</s>", known.index("</s>"))]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="</s>", eos_token="</s>"
    )


def opt(folder: Path, seed: int = 0, positions: int = 64, spare: int = 0) -> str:
    """A causal model; `spare` are its embeddings without a word."""
    vocabulary = words()
    cfg = OPTConfig(
        vocab_size=len(vocabulary) + spare,
        hidden_size=WORDS,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        word_embed_proj_dim=WORDS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    shuffle(OPTForCausalLM(cfg), seed).save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return str(folder)


def t5(folder: Path, seed: int = 0, spare: int = 0) -> str:
    """An encoder-decoder model; `spare` are its embeddings without a word."""
    vocabulary = speaker(words().convert_ids_to_tokens(range(len(words()))), "$A </s>")
    cfg = T5Config(
        vocab_size=len(vocabulary) + spare,
        d_model=WORDS,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    shuffle(T5ForConditionalGeneration(cfg), seed).save_pretrained(folder)
    vocabulary.save_pretrained(folder)
    return str(folder)


def their_generator(
    folder: Path, language: Path, vision: Blip2VisionConfig, qformer: Blip2QFormerConfig, queries: int, seed: int = 0
) -> nn.Module:
    """A BLIP-2 of transformers around a language model, with its tokenizer beside; its image token is a new one."""
    text = AutoConfig.from_pretrained(language)
    number = len(words())
    text.vocab_size = number + 1
    config = TheirConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=queries,
        image_token_index=number,
    )
    model = shuffle(Blip2ForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((language / file).read_bytes())
    return model


def blip2_config(vision: str, language: str | None = None, width: int = WIDTH) -> Blip2Config:
    own = tokenizer()
    return Blip2Config(
        vision=ImageEncoderConfig(source=vision, size=SIZE, width=width),
        text=TextConfig(
            vocab_size=own.vocab_size - 1,
            width=16,
            depth=2,
            heads=2,
            feed_forward=32,
            positions=32,
            dropout=0.0,
            init_std=0.25,
        ),
        queries=4,
        embed=8,
        tokens=SpecialTokens(pad=own.pad, cls=own.cls, sep=own.sep, dec=own.dec, enc=own.enc),
        language_model=LanguageModelConfig(source=language, width=WORDS) if language else None,
    )
