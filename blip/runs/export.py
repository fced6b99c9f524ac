"""Export: a model folder as the reference or as transformers has models."""

import json
import shutil
from pathlib import Path
from typing import Literal

from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from blip.data.transforms import MEAN, STD
from blip.models.med import MED, MEDConfig
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.models.weights.export import huggingface_classes, official_tensors, write_huggingface
from blip.models.weights.files import write_tensors
from blip.models.weights.source import SIDE_FILE
from blip.runs.model_card import model_card
from blip.tasks.model_folder import TOKENIZER, load_task, read_model_config
from blip.tasks.pretraining import Pretraining
from blip.tasks.retrieval import Retrieval
from blip.tasks.task import Task
from blip.tasks.training_state import read_side_file, to_official

Format = Literal["official", "hf"]
Exportable = MED | VQAModel | NLVRModel


def export(model: str | Path, out: str | Path, format: Format) -> list[Path]:
    """Writes a model folder in another format, and gives the folders that were written.

    A pre-trained model becomes two folders of transformers, one that writes and one that matches. What only training needs goes into
    the reference's file, and beside transformers' as a side file. Raises WeightsError if the format has no place for the model.
    """
    task = load_task(model)
    assert isinstance(task.model, Exportable)
    match format:
        case "official":
            return [write_official(task, task.model, Path(model), Path(out))]
        case "hf":
            return write_transformers(task.model, Path(model), Path(out))


def write_official(task: Task, model: Exportable, source: Path, out: Path) -> Path:
    """`model.pth` with the configuration of its text transformer and its vocabulary."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = official_tensors(model)
    if isinstance(task, Pretraining | Retrieval) and (source / SIDE_FILE).is_file():
        alignment = read_side_file(source / SIDE_FILE, task.model)
        tensors |= to_official(alignment, task.model, image_ids=isinstance(task, Retrieval))
    write_tensors(tensors, out / "model.pth")
    (out / "med_config.json").write_text(json.dumps(med_config(model.cfg), indent=2) + "\n")
    shutil.copytree(source / TOKENIZER, out, dirs_exist_ok=True)
    return out


def med_config(cfg: MEDConfig) -> dict[str, object]:
    """The text transformer as the reference's `med_config.json` describes it."""
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
    """A folder for each class of transformers that the model's parts make up, with what `BlipProcessor` reads, and a model card.

    Where a text looks at an image (ITM, questions) it begins with [ENC], which transformers' classes leave to their caller: the tokenizer
    of such a folder has it in [CLS]'s place.
    """
    classes = huggingface_classes(model)
    folders = [out] if len(classes) == 1 else [out / kind.__name__ for kind in classes]
    size = model.cfg.vision.size
    images = BlipImageProcessor(size={"height": size, "width": size}, image_mean=list(MEAN), image_std=list(STD))
    for folder, kind in zip(folders, classes, strict=True):
        write_huggingface(model, kind, folder)
        looks = kind is not BlipForConditionalGeneration and model.cfg.enc_token
        first = {"cls_token": "[ENC]", "extra_special_tokens": ["[CLS]"]} if looks else {}
        tokenizer = BertTokenizer.from_pretrained(
            source / TOKENIZER, model_max_length=model.cfg.text.positions, **first
        )
        BlipProcessor(images, tokenizer).save_pretrained(folder)
        images.save_pretrained(folder)  # versions before 5 look for it apart from the processor
        begins = ("[ENC]", model.cfg.tokens.enc) if looks else ("[CLS]", model.cfg.tokens.cls)
        text = model_card(kind.__name__, read_model_config(source).task, *begins, model.cfg.tokens.cls)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if (source / SIDE_FILE).is_file():
            shutil.copy(source / SIDE_FILE, folder)
    return folders
