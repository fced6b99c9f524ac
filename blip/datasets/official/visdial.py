"""VisDial v1.0: dialogs about images, with 100 candidate answers a round (arXiv 1611.08669)."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from blip.datasets.official.files import AnnotationFiles, ImageFolder, Official, text_of
from blip.shards.sample import Sample

DENSE = {"train": "visdial_1.0_train_dense_annotations.json", "val": "visdial_1.0_val_dense_annotations.json"}
RELEVANCE = ("gt_relevance", "relevance")
"""The field of relevances in the dense annotations of val, and of train."""


class VisDial(Official):
    SPLITS: ClassVar = ("train", "val", "test")
    SOURCE: ClassVar = "https://visualdialog.org/data"
    IMAGES: ClassVar = "https://visualdialog.org/data (train: COCO 2014, train and val)"
    type: Literal["visdial"] = "visdial"

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        """Yields one sample a dialog: the text is the image's caption, `rounds` of the metadata are as `rounds_of`."""
        name = files.find(f"visdial_1.0_{split}.json")
        dense = self.relevances(files, split)
        content = files.json(name)
        with files.form(name):
            data = content["data"]
            questions, answers, dialogs = data["questions"], data["answers"], data["dialogs"]
        for dialog in dialogs:
            with files.record(name):
                number = int(dialog["image_id"])
                rounds = rounds_of(dialog, questions, answers, {k: dense.get((number, k + 1)) for k in range(10)})
                caption = text_of(dialog["caption"])
                image = pictures.get(*names_of(split, number))
                if image is not None:
                    yield Sample(f"{number:012d}", [image], [caption], {"image_id": number, "rounds": rounds}, "jpg")

    def relevances(self, files: AnnotationFiles, split: str) -> dict[tuple[int, int], list[float]]:
        """Returns the relevances of the candidates by image and round, counted from 1; those of train may be absent."""
        if split not in DENSE or (split == "train" and not files.store.exists(DENSE[split])):
            return {}
        name = files.find(DENSE[split])
        found = {}
        for record in files.json(name):
            with files.record(name):
                (relevance,) = [record[key] for key in RELEVANCE if key in record]
                found[record["image_id"], record["round_id"]] = [float(value) for value in relevance]
        return found


def rounds_of(
    dialog: dict[str, Any], questions: list[str], answers: list[str], dense: dict[int, list[float] | None]
) -> list[dict[str, Any]]:
    """Returns the rounds: `question`, `options` if the round is judged, and where published `answer`, the position
    `correct` among the options, and their `relevance`.
    """
    found = []
    for number, turn in enumerate(dialog["dialog"]):
        one: dict[str, Any] = {"question": questions[turn["question"]]}
        if "answer" in turn:
            one["answer"] = answers[turn["answer"]]
        if "answer_options" in turn:
            one["options"] = [answers[option] for option in turn["answer_options"]]
        if "gt_index" in turn:
            one["correct"] = turn["gt_index"]
        relevance = dense.get(number)
        if relevance is not None:
            one["relevance"] = relevance
        found.append(one)
    return found


def names_of(split: str, number: int) -> tuple[str, ...]:
    """Returns the possible names of a dialog's image."""
    if split == "train":
        names = [f"COCO_{folder}_{number:012d}.jpg" for folder in ("train2014", "val2014")]
        return (*(f"{name[5:].partition('_')[0]}/{name}" for name in names), *names)
    name = f"VisualDialog_{split}2018_{number:012d}.jpg"
    return f"VisualDialog_{split}2018/{name}", name
