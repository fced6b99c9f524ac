"""Export: converts a model folder to the format of the reference or of transformers."""

import json
import shutil
from pathlib import Path
from typing import Literal

from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    PreTrainedModel,
)

from blip.data.transforms import MEAN, STD
from blip.models.med import MED, MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.content import SIDE_FILE
from blip.models.weights.export import huggingface_classes, official_tensors, write_huggingface
from blip.models.weights.files import WeightsError, write_tensors
from blip.runs.model_card import model_card
from blip.storage import output_folder, write_file
from blip.tasks.blip2_exchange import export_transformers, lavis_tensors
from blip.tasks.blip2_stage1 import Blip2Stage1
from blip.tasks.blip2_stage2 import Blip2Stage2
from blip.tasks.model_folder import TOKENIZER, load_task, read_model_config
from blip.tasks.pretraining import Pretraining
from blip.tasks.retrieval import Retrieval
from blip.tasks.task import Task
from blip.tasks.training_state import read_side_file, to_official
from blip.zoo.source import naming, our_model

Format = Literal["official", "hf"]
Exportable = MED | VQAModel | NLVRModel


def export(model: str | Path, out: str | Path, format: Format) -> list[Path]:
    """Writes a model folder in another format, and returns the folders written.

    For transformers a pre-trained model becomes two folders, a captioner and a matcher. Tensors that only training
    needs go into the reference's file, or into a side file next to transformers' files.
    Raises WeightsError if the format does not support the model, StoreError if `out` cannot be written.
    """
    source, model = model, our_model(model, "export")
    with naming(source, model):
        task = load_task(model)
    if isinstance(task, Blip2Stage1 | Blip2Stage2):
        return [write_blip2(task, Path(out), format)]
    if not isinstance(task.model, Exportable):
        raise WeightsError(
            f"model {source} was trained for {task.cfg.type}, of which there is no {format} form: export a model of "
            "pretraining, captioning, retrieval, vqa or nlvr"
        )
    match format:
        case "official":
            return [write_official(task, task.model, Path(model), Path(out))]
        case "hf":
            return write_transformers(task.model, Path(model), Path(out))


def write_blip2(task: Blip2Stage1 | Blip2Stage2, out: Path, format: Format) -> Path:
    """Writes a BLIP-2 as `model.pth` of LAVIS, which leaves the frozen models out, or as a class of transformers."""
    with output_folder(out) as folder:
        match format:
            case "official":
                write_tensors(lavis_tensors(task), folder / "model.pth")
            case "hf":
                export_transformers(task.model, folder)
    return out


def write_official(task: Task, model: Exportable, source: Path, out: Path) -> Path:
    """Writes `model.pth`, the configuration of the text transformer, and the vocabulary."""
    tensors = official_tensors(model)
    if isinstance(task, Pretraining | Retrieval) and (source / SIDE_FILE).is_file():
        alignment = read_side_file(source / SIDE_FILE, task.model)
        tensors |= to_official(alignment, task.model, image_ids=isinstance(task, Retrieval))
    with output_folder(out) as folder:
        write_tensors(tensors, folder / "model.pth")
        write_file(folder / "med_config.json", json.dumps(med_config(model.cfg), indent=2) + "\n")
        shutil.copytree(source / TOKENIZER, folder, dirs_exist_ok=True)
    return out


def med_config(cfg: MEDConfig) -> dict[str, object]:
    """Returns the text transformer's configuration as in the reference's `med_config.json`."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": cfg.text.dropout,
        "hidden_act": "gelu",
        "hidden_dropout_prob": cfg.text.dropout,
        "hidden_size": cfg.text.width,
        "initializer_range": cfg.text.init_std,
        "intermediate_size": cfg.text.feed_forward,
        "layer_norm_eps": cfg.text.eps,
        "max_position_embeddings": cfg.text.positions,
        "model_type": "bert",
        "num_attention_heads": cfg.text.heads,
        "num_hidden_layers": cfg.text.depth,
        "pad_token_id": cfg.tokens.pad,
        "type_vocab_size": 2,
        "vocab_size": cfg.text.vocab_size,
        "encoder_width": cfg.vision.width,
        "add_cross_attention": True,
    }


def write_transformers(model: Exportable, source: Path, out: Path) -> list[Path]:
    """Writes one folder per transformers class of the model, with the files of `BlipProcessor` and a model card.

    Texts that attend to an image (ITM, questions) begin with [ENC], which transformers' classes leave to the caller:
    the tokenizer of such a folder has [ENC] in place of [CLS].
    """
    classes = huggingface_classes(model)
    names = [""] if len(classes) == 1 else [kind.__name__ for kind in classes]
    size = model.cfg.vision.size
    images = BlipImageProcessor(size={"height": size, "width": size}, image_mean=list(MEAN), image_std=list(STD))
    with output_folder(out) as folder:
        for name, kind in zip(names, classes, strict=True):
            write_class(model, kind, source, folder / name, images)
    return [out / name for name in names]


def write_class(
    model: Exportable, kind: type[PreTrainedModel], source: Path, folder: Path, images: BlipImageProcessor
) -> None:
    """Writes the folder of one transformers class; `source` is the model folder, for its words and settings."""
    write_huggingface(model, kind, folder)
    looks = kind is not BlipForConditionalGeneration and model.cfg.enc_token
    first = {"cls_token": "[ENC]", "extra_special_tokens": ["[CLS]"]} if looks else {}
    tokenizer = BertTokenizer.from_pretrained(source / TOKENIZER, model_max_length=model.cfg.text.positions, **first)
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    images.save_pretrained(folder)  # transformers before 5 reads it separately
    begins = ("[ENC]", model.cfg.tokens.enc) if looks else ("[CLS]", model.cfg.tokens.cls)
    text = model_card(kind.__name__, read_model_config(source).task, *begins, model.cfg.tokens.cls)
    write_file(folder / "README.md", text)
    if (source / SIDE_FILE).is_file():
        shutil.copy(source / SIDE_FILE, folder)
