"""Questions about images: VQAv2 with Visual Genome (BLIP, section 5.3), OK-VQA, and A-OKVQA."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

from blip.datasets.official.files import (
    AnnotationFiles,
    ImageFolder,
    Official,
    compact_answers,
    extension_of,
    key_of,
    text_of,
)
from blip.shards.sample import BadSample, Sample

COCO_IMAGES = "https://cocodataset.org/#download"
VISUAL_GENOME_WEIGHT = 0.2
"""Loss weight of an answer of Visual Genome, which has one annotator a question."""


@dataclass
class AnnotatedQuestion:
    id: Any
    text: str
    names: tuple[str, ...]
    """Possible names of the image."""
    meta: dict[str, Any] = field(default_factory=dict)


def with_images(questions: Iterable[AnnotatedQuestion], pictures: ImageFolder) -> Iterator[Sample]:
    """Yields a sample a question; questions about one image follow each other, and share its bytes."""
    ordered = sorted(questions, key=lambda question: question.names)
    for names, group in groupby(ordered, key=lambda question: question.names):
        data = pictures.get(*names)
        for question in group if data is not None else ():
            assert data is not None
            meta = {"question_id": question.id, **question.meta}
            yield Sample(key_of(question.id), [data], [question.text], meta, extension_of(names[0]))


def coco_2014(folder: str, image_id: int) -> tuple[str, ...]:
    """Returns the names of an image of COCO 2014, or of the test images of 2015."""
    name = f"COCO_{folder}_{image_id:012d}.jpg"
    return f"{folder}/{name}", name


class OpenEnded(Official):
    """The form of VQAv2: one file of questions, one of annotations with ten answers a question."""

    QUESTIONS: ClassVar[dict[str, str]]
    ANSWERS: ClassVar[dict[str, str]]
    FOLDERS: ClassVar[dict[str, str]]
    """COCO's folder of each split."""

    def official(self, files: AnnotationFiles, split: str) -> Iterator[AnnotatedQuestion]:
        name = files.find(self.QUESTIONS[split])
        answers: dict[Any, dict[str, Any]] = {}
        if split in self.ANSWERS:
            answer_file = files.find(self.ANSWERS[split])
            with files.form(answer_file):
                annotations = files.json(answer_file, compact_answers)["annotations"]
            for annotation in annotations:
                with files.record(answer_file):
                    answers[annotation["question_id"]] = annotation
        with files.form(name):
            questions = files.json(name)["questions"]
        for question in questions:
            with files.record(name):
                number, image = question["question_id"], int(question["image_id"])
                meta: dict[str, Any] = {"image_id": image}
                if split in self.ANSWERS:
                    if number not in answers:
                        raise BadSample("question without an annotation: the files are of different releases")
                    found = answers[number]
                    meta["answers"] = stripped(found["answers"])
                    meta |= {key: found[key] for key in ("answer_type", "question_type") if key in found}
                names = coco_2014(self.FOLDERS[split], image)
                yield AnnotatedQuestion(number, text_of(question["question"]), names, meta)

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        yield from with_images(self.official(files, split), pictures)


class VQAv2(OpenEnded):
    """VQAv2, and Visual Genome's questions as the split `vg`; also in the form in which BLIP publishes both."""

    SPLITS: ClassVar = ("train", "val", "vg", "test-dev", "test")
    TRAINING: ClassVar = ("train", "val", "vg")
    SOURCE: ClassVar = (
        "https://visualqa.org/download.html, and for vg https://homes.cs.washington.edu/~ranjay/visualgenome/api.html"
    )
    IMAGES: ClassVar = f"{COCO_IMAGES} (2014, test 2015), and for vg the page of Visual Genome"
    QUESTIONS: ClassVar = {
        split: f"v2_OpenEnded_mscoco_{folder}_questions.json"
        for split, folder in {
            "train": "train2014",
            "val": "val2014",
            "test-dev": "test-dev2015",
            "test": "test2015",
        }.items()
    }
    ANSWERS: ClassVar = {split: f"v2_mscoco_{split}2014_annotations.json" for split in ("train", "val")}
    FOLDERS: ClassVar = {"train": "train2014", "val": "val2014", "test-dev": "test2015", "test": "test2015"}
    type: Literal["vqav2"] = "vqav2"

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        if split == "vg":
            name = files.find("question_answers.json", "vg_qa.json")
            questions = visual_genome if name == "question_answers.json" else published_by_blip
        else:
            name = files.find(self.QUESTIONS[split], f"vqa_{split}.json")
            questions = None if name == self.QUESTIONS[split] else published_by_blip
        yield from with_images(self.official(files, split) if questions is None else questions(files, name), pictures)


class OKVQA(OpenEnded):
    SPLITS: ClassVar = ("train", "val")
    SOURCE: ClassVar = "https://okvqa.allenai.org/download.html"
    IMAGES: ClassVar = f"{COCO_IMAGES} (2014)"
    QUESTIONS: ClassVar = {split: f"OpenEnded_mscoco_{split}2014_questions.json" for split in ("train", "val")}
    ANSWERS: ClassVar = {split: f"mscoco_{split}2014_annotations.json" for split in ("train", "val")}
    FOLDERS: ClassVar = {"train": "train2014", "val": "val2014"}
    type: Literal["okvqa"] = "okvqa"


class AOKVQA(Official):
    """A-OKVQA: four choices and ten direct answers a question; the test split has no answers."""

    SPLITS: ClassVar = ("train", "val", "test")
    SOURCE: ClassVar = "https://allenai.org/project/a-okvqa/home"
    IMAGES: ClassVar = f"{COCO_IMAGES} (2017)"
    type: Literal["aokvqa"] = "aokvqa"

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        yield from with_images(self.questions(files, split), pictures)

    def questions(self, files: AnnotationFiles, split: str) -> Iterator[AnnotatedQuestion]:
        name = files.find(f"aokvqa_v1p0_{split}.json")
        for record in files.json(name):
            with files.record(name):
                number = int(record["image_id"])
                meta: dict[str, Any] = {"image_id": number, "choices": record["choices"]}
                correct = record.get("correct_choice_idx")
                if correct is not None:
                    record["choices"][correct]
                    meta["correct_choice"] = correct
                if record.get("direct_answers"):
                    meta["answers"] = stripped(record["direct_answers"])
                    meta["difficult"] = bool(record.get("difficult_direct_answer"))
                bare = f"{number:012d}.jpg"
                names = (f"{split}2017/{bare}", bare)
                yield AnnotatedQuestion(record["question_id"], text_of(record["question"]), names, meta)


def stripped(answers: list[str]) -> list[str]:
    """Returns answers without space around and line ends within them, as the server reads them; empty ones stay out."""
    found = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers if isinstance(answer, str)]
    return [answer for answer in found if answer]


def visual_genome(files: AnnotationFiles, name: str) -> Iterator[AnnotatedQuestion]:
    """Yields Visual Genome's questions; its images lie in two folders, and the file does not say in which."""
    with files.form(name):
        images = [(image["id"], image["qas"]) for image in files.json(name)]
    for image_id, qas in images:
        for qa in qas:
            with files.record(name):
                bare = f"{qa.get('image_id', image_id)}.jpg"
                names = (f"VG_100K/{bare}", f"VG_100K_2/{bare}", bare)
                meta = {
                    "image_id": image_id,
                    "answers": stripped([qa["answer"].rstrip(".")]),
                    "weight": VISUAL_GENOME_WEIGHT,
                }
                if not meta["answers"]:
                    raise BadSample("no answers")
                yield AnnotatedQuestion(f"vg-{qa['qa_id']}", text_of(qa["question"]), names, meta)


def published_by_blip(files: AnnotationFiles, name: str) -> Iterator[AnnotatedQuestion]:
    """Yields questions in the form in which BLIP publishes VQAv2 and Visual Genome: a list of answers, or one text."""
    for record in files.json(name):
        with files.record(name):
            path, said = record["image"], record.get("answer")
            ours = record.get("dataset") == "vg"
            meta: dict[str, Any] = {"weight": VISUAL_GENOME_WEIGHT} if ours else {}
            if said is not None:
                meta["answers"] = stripped([said] if isinstance(said, str) else said)
            names = (path, path.rpartition("/")[2])
            number = f"vg-{record['question_id']}" if ours else record["question_id"]
            yield AnnotatedQuestion(number, text_of(record["question"]), names, meta)
