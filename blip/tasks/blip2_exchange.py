"""Reads and writes BLIP-2 in the formats of transformers and LAVIS."""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from blip.config import ConfigError
from blip.data.tokenizer import Tokenizer
from blip.models.blip2 import Blip2, Blip2Config, QFormerModel
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.language.config import LanguageModelConfig
from blip.models.med import SpecialTokens
from blip.models.weights.load import Allowed, load_weights
from blip.models.weights.names import lavis
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config
from blip.tasks.model_folder import save_model

FROZEN, VISION, LANGUAGE = "frozen", "vision", "language"
"""Folders of an imported model's frozen parts, in the model folder."""
IMAGE_TOKEN = "<image>"
"""The word that stands for the queries in the texts of transformers' BLIP-2."""


def import_transformers(folder: str | Path, out: str | Path, tokenizer: Tokenizer) -> Blip2Stage1 | Blip2Stage2:
    """Writes a folder of transformers' BLIP-2 as a model folder of ours, and returns its task.

    Blip2ForConditionalGeneration becomes a model of the second stage, Blip2ForImageTextRetrieval one of the first, of
    which the LM head is not trained. The frozen parts are written below the model folder. `tokenizer` is the
    Q-Former's, BERT's. Raises ConfigError if the folder holds another class, or the tokenizer does not fit.
    """
    # local import: transformers comes with an extra
    from transformers import AutoTokenizer, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval
    from transformers import Blip2Config as TheirConfig

    from blip.models.weights.transformers_blip2 import text_config

    source, frozen = Path(folder), Path(out).resolve() / FROZEN
    config: Any = TheirConfig.from_pretrained(source)
    classes: dict[str, Any] = {
        kind.__name__: kind for kind in (Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval)
    }
    [kind, *_] = config.architectures or ["no class"]
    if kind not in classes:
        raise ConfigError(f"{source}: its config.json names {kind}; BLIP-2 can be read from {' and '.join(classes)}")
    theirs = classes[kind].from_pretrained(source, dtype="auto")
    theirs.vision_model.save_pretrained(frozen / VISION)
    if (source / "preprocessor_config.json").is_file():
        shutil.copy(source / "preprocessor_config.json", frozen / VISION)
    text = text_config(config.qformer_config)
    if config.qformer_config.use_qformer_text_input and text.vocab_size != tokenizer.vocab_size - 1:
        raise ConfigError(
            f"{source}: its Q-Former has {text.vocab_size} words, the tokenizer with [DEC] {tokenizer.vocab_size - 1}: "
            "name the tokenizer of this model"
        )
    own = SpecialTokens(pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep, dec=tokenizer.dec, enc=tokenizer.enc)
    vision = config.vision_config
    settings: dict[str, Any] = {
        "vision": ImageEncoderConfig(
            source=str(frozen / VISION),
            size=vision.image_size,
            width=vision.hidden_size,
            layer=-1,
            norm_eps=vision.layer_norm_eps,
        ),
        "text": text,
        "queries": config.num_query_tokens,
        "cross_every": config.qformer_config.cross_attention_frequency,
        "embed": config.image_text_hidden_size,
        "tokens": own,
    }
    if kind == Blip2ForConditionalGeneration.__name__:
        theirs.language_model.save_pretrained(frozen / LANGUAGE)
        words = AutoTokenizer.from_pretrained(source)
        words.save_pretrained(frozen / LANGUAGE)
        [*newline] = words("\n", add_special_tokens=False)["input_ids"]
        settings["language_model"] = LanguageModelConfig(
            source=str(frozen / LANGUAGE),
            width=theirs.get_input_embeddings().embedding_dim,
            end="\n" if len(newline) == 1 and newline[0] != words.unk_token_id else words.eos_token,
        )
        cfg: Blip2Stage1Config | Blip2Stage2Config = Blip2Stage2Config()
    else:
        cfg = Blip2Stage1Config()
    del theirs
    sizes = Blip2Config(**settings).with_digests()
    model = cfg.model_from(sizes)
    allowed = Allowed(unused=("vision_model.*", "language_model.*"), missing=("lm_head.dense.*", "lm_head.norm.*"))
    allowed |= Allowed(missing=("lm_head.decoder.bias",))
    load_weights(model, str(source), allowed)
    task = cfg.build_task(model, tokenizer).eval()
    assert isinstance(task, Blip2Stage1 | Blip2Stage2)
    save_model(task, out)
    return task


def export_transformers(model: Blip2 | QFormerModel, out: str | Path) -> Path:
    """Writes a model as one of transformers' classes of BLIP-2, with its language tokenizer and image statistics.

    Raises WeightsError if transformers' image encoder of BLIP-2 cannot have the weights of the model's.
    """
    # local import: transformers comes with an extra
    from transformers import BlipImageProcessor

    from blip.models.weights.transformers_blip2 import encoder_of, to_transformers

    encoder, size = encoder_of(model), model.cfg.vision.size
    mean, std = encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()
    BlipImageProcessor(size={"height": size, "width": size}, image_mean=mean, image_std=std).save_pretrained(out)
    if isinstance(model, QFormerModel):
        to_transformers(model).save_pretrained(out)
        return Path(out)
    words = model.language_model.tokenizer
    words.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    number = words.convert_tokens_to_ids(IMAGE_TOKEN)
    theirs: Any = to_transformers(model, number)
    if number >= theirs.get_input_embeddings().num_embeddings:
        theirs.resize_token_embeddings(number + 1)
    theirs.save_pretrained(out)
    words.save_pretrained(out)
    return Path(out)


def lavis_tensors(task: Blip2Stage1 | Blip2Stage2) -> dict[str, Tensor]:
    """Returns the tensors of a file of LAVIS: what is trained, without the frozen models."""
    from blip.models.weights.export import renamed_tensors  # local import: it needs transformers, too

    tensors = renamed_tensors(task.model, lavis)
    if isinstance(task, Blip2Stage1):
        return tensors | {"temp": task.alignment.temperature.detach()[0]}
    unused = "opt_proj." if task.model.language_model.encoder_decoder else "t5_proj."
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
