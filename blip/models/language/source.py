"""Loads frozen language models, and checks them before anything runs."""

import inspect
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from blip.config import ConfigError
from blip.models.frozen import check_frozen_digest, frozen_digest, weights_type
from blip.models.language.config import LanguageModelConfig
from blip.models.language.decoder_only import DecoderOnly
from blip.models.language.encoder_decoder import EncoderDecoder
from blip.models.language.language_model import LanguageModel
from blip.models.weights.content import TRANSFORMERS_MODEL
from blip.models.weights.files import first_line
from blip.models.weights.source import fetched

PACKED_ON_CPU = "support_avx512bf16_for_cpu"
"""The attribute of bitsandbytes' 4-bit maps that allows them to pack their weights."""


def load_language_model(cfg: LanguageModelConfig) -> LanguageModel:
    """Loads a language model with its weights. Raises WeightsError if they are not those of `cfg.digest`.

    Raises ConfigError if the source is no language model that takes embeddings, or does not fit the configuration.
    """
    with fetched(cfg.source, TRANSFORMERS_MODEL) as folder:
        check_frozen_digest(frozen_digest(folder), cfg.digest, "model.language_model", cfg.source)
        check_source(folder, cfg)
        return build(folder, cfg, weights=True)


def with_digest(cfg: LanguageModelConfig) -> LanguageModelConfig:
    """Returns the configuration with the digest of the source's weights. Raises as `load_language_model`."""
    with fetched(cfg.source, TRANSFORMERS_MODEL) as folder:
        check_source(folder, cfg)
        found = frozen_digest(folder)
    check_frozen_digest(found, cfg.digest, "model.language_model", cfg.source)
    return cfg.model_copy(update={"digest": found})


def check_source(folder: Path, cfg: LanguageModelConfig) -> None:
    """Raises ConfigError if a model in a folder cannot be used as the configuration says; loads no weights."""
    if cfg.quantization != "none" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.language_model.quantization is {cfg.quantization}, which takes the package bitsandbytes: install "
            "blip-bootstrap[quantized], or set model.language_model.quantization=none"
        )
    with torch.device("meta"):
        network = build(folder, cfg, weights=False).network
    takes = inspect.signature(network.forward).parameters
    if "inputs_embeds" not in takes:
        raise ConfigError(
            f"model.language_model.source {cfg.source}: {type(network).__name__} takes no inputs_embeds, so that "
            "queries cannot be given to it; name a model that does, such as OPT or T5"
        )
    found = network.get_input_embeddings().embedding_dim
    if found != cfg.width:
        raise ConfigError(
            f"model.language_model.width is {cfg.width}, but the word embeddings of {cfg.source} are {found} wide: set "
            f"model.language_model.width={found}, or name another language model"
        )


def build(folder: Path, cfg: LanguageModelConfig, *, weights: bool) -> LanguageModel:
    """Returns the language model in a folder, with its weights or at random, and its tokenizer.

    Raises ConfigError if there is none.
    """
    # local import: transformers comes with an extra
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder)
        auto = cast(Any, AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = read_weights(auto, folder, cfg) if weights else auto.from_config(config)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise ConfigError(
            f"model.language_model.source {cfg.source}: cannot be loaded ({first_line(error)}); name a causal or "
            "encoder-decoder language model of transformers, with its tokenizer"
        ) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # of a folder without one transformers makes an empty one
        raise ConfigError(
            f"model.language_model.source {cfg.source}: has no tokenizer; copy its files there, such as "
            "tokenizer.json, spiece.model or vocab.json"
        )
    return (EncoderDecoder if config.is_encoder_decoder else DecoderOnly)(network, tokenizer, cfg)


def read_weights(auto: Any, folder: Path, cfg: LanguageModelConfig) -> Any:
    """Returns the language model with the weights in a folder. Raises ConfigError if some would be random."""
    network, found = auto.from_pretrained(folder, output_loading_info=True, **weights_options(cfg))
    for part in network.modules():
        # on CPUs with AVX512-BF16 generating would pack weights for good, for a kernel that has no gradient
        if hasattr(part, PACKED_ON_CPU):
            setattr(part, PACKED_ON_CPU, False)
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"model.language_model.source {cfg.source}: has no weights for {missing[0]} and {len(missing) - 1} more "
            f"parts of {type(network).__name__}, which would be random; name a language model that was trained as one"
        )
    return network


def weights_options(cfg: LanguageModelConfig) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` by which weights have the type of the configuration."""
    options: dict[str, Any] = {"dtype": weights_type(cfg.precision)}
    if cfg.quantization != "none":
        # local import: transformers comes with an extra
        from transformers import BitsAndBytesConfig

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # each product warns that it casts its input
        eight = cfg.quantization == "8bit"
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=eight,
            load_in_4bit=not eight,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return options
