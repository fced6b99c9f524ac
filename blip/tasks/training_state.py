"""Saves and loads the ITC training state (temperature, teacher, queue), in our format and the reference's."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blip.models.med import MED
from blip.models.weights.files import read_tensors, write_tensors
from blip.models.weights.load import NOTHING, Allowed, LoadReport, fill
from blip.models.weights.names import official, own
from blip.models.weights.source import fetched
from blip.tasks.alignment import Alignment, AlignmentConfig


def save_training_state(alignment: Alignment, path: Path) -> None:
    """Writes the training state to a side file."""
    write_tensors(alignment.state_dict(), path)


def load_training_state(alignment: Alignment, source: str, allowed: Allowed = NOTHING) -> LoadReport:
    """Loads the training state from a source of weights: a side file, or a training file of the reference.

    Raises WeightsError that lists mismatches that are not `allowed`, such as a queue of another length.
    """
    with fetched(source) as path:
        tensors = read_tensors(path)
    return fill(alignment, from_official(alignment, tensors) if "temp" in tensors else tensors, own, source, allowed)


def read_side_file(path: Path, student: MED) -> Alignment:
    """Returns the training state in a side file, with a queue of the stored length.

    Raises WeightsError if it does not fit the student.
    """
    length = len(read_tensors(path)["queue.ids"])
    alignment = Alignment(AlignmentConfig(queue=length), student)
    load_training_state(alignment, str(path))
    return alignment


def from_official(alignment: Alignment, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the reference's training state to our names.

    A queue of the reference is always full; in pre-training, it has no image ids.
    """
    length = tensors["image_queue"].shape[1]
    state = {
        "temperature": tensors["temp"].reshape(1),
        "queue.image": tensors["image_queue"].T,
        "queue.text": tensors["text_queue"].T,
        "queue.ids": tensors["idx_queue"][0] if "idx_queue" in tensors else torch.full((length,), -100),
        "queue.pointer": tensors["ptr_queue" if "ptr_queue" in tensors else "queue_ptr"],
        "queue.filled": torch.tensor([length]),
    }
    names = {name: official_teacher_name(name) for name, _ in alignment.teacher.named_parameters(prefix="teacher")}
    return state | {name: tensors[key] for name, key in names.items() if key in tensors}


def to_official(alignment: Alignment, student: MED, *, image_ids: bool) -> dict[str, Tensor]:
    """Converts the training state to the reference's names, with image ids for retrieval, without for pre-training.

    The reference's teacher has cross-attention that is never run; the student's takes its place. Empty queue slots are
    filled with random unit vectors, the reference's initial values.
    """
    queue = alignment.queue
    written = queue.contents()[3]
    image, text = (
        torch.where(written[:, None], f, F.normalize(torch.randn_like(f), dim=-1)) for f in (queue.image, queue.text)
    )
    state = {"temp": alignment.temperature.detach()[0], "image_queue": image.T, "text_queue": text.T}
    state |= {"idx_queue": queue.ids[None], "ptr_queue": queue.pointer} if image_ids else {"queue_ptr": queue.pointer}
    state |= {
        official_teacher_name(name): parameter
        for name, parameter in alignment.teacher.named_parameters(prefix="teacher")
    }
    unused = {
        f"teacher.text_encoder.{name}": p
        for name, p in student.text_encoder.named_parameters()
        if ".cross_attention." in name
    }
    return state | {official_teacher_name(name): parameter for name, parameter in unused.items()}


def official_teacher_name(name: str) -> str:
    """Maps `teacher.vision_proj.weight` to `vision_proj_m.weight`."""
    part, _, rest = official(name.removeprefix("teacher."))[0].partition(".")
    return f"{part}_m.{rest}"
