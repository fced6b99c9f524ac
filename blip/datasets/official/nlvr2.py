"""NLVR2: statements about pairs of photographs (arXiv 1811.00491)."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from blip.batch import hash_id
from blip.datasets.official.files import AnnotationFiles, ImageFolder, Official, extension_of, key_of, text_of
from blip.shards.sample import BadSample, Sample

LABELS = {"True": 1, "False": 0, "true": 1, "false": 0, True: 1, False: 0}
FILES = {
    "train": ("train.json", "nlvr_train.json"),
    "dev": ("dev.json", "nlvr_dev.json"),
    "test": ("test1.json", "nlvr_test.json"),
}
"""The public test set, test-P, is called `test1` by its publishers."""
FOLDERS = {"train": "train", "dev": "dev", "test": "test1"}


class NLVR2(Official):
    SPLITS: ClassVar = ("train", "dev", "test")
    SOURCE: ClassVar = "https://github.com/lil-lab/nlvr/tree/master/nlvr2/data"
    IMAGES: ClassVar = "https://lil.nlp.cornell.edu/nlvr/ (on request)"
    type: Literal["nlvr2"] = "nlvr2"

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        """Yields statements; those about one pair follow each other, and share its bytes."""
        name = files.find(*FILES[split])
        records = []
        for record in files.json_lines(name):
            with files.record(name):
                records.append(self.statement(record, split))
        pair, images = None, None
        for names, key, sentence, label in sorted(records, key=lambda record: record[0]):
            if pair != names:
                pair = names
                found = [pictures.get(*one) for one in names]
                images = [data for data in found if data is not None]
            if images is not None and len(images) == 2:
                meta = {"label": label, "identifier": key}
                yield Sample(key_of(key), list(images), [sentence], meta, extension_of(names[0][0]))

    def statement(
        self, record: dict[str, Any], split: str
    ) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], str, str, int]:
        """Returns the possible names of both images, the identifier, the sentence and the label of a record."""
        if record["label"] not in LABELS:
            raise BadSample("label is neither True nor False")
        label, sentence = LABELS[record["label"]], text_of(record["sentence"])
        if "images" in record:  # the form in which BLIP publishes it
            first, second = record["images"]
            key = f"{split}-{key_of(first.rpartition('/')[2].rpartition('-')[0])}-{hash_of(sentence)}"
            return ((first,), (second,)), record.get("identifier", key), sentence, label
        identifier = record["identifier"]
        stem = identifier.rpartition("-")[0]
        folder = FOLDERS[split] + (f"/{record['directory']}" if split == "train" else "")
        left, right = (
            (f"images/{folder}/{stem}-img{i}.png", f"{folder}/{stem}-img{i}.png", f"{stem}-img{i}.png") for i in (0, 1)
        )
        return (left, right), identifier, sentence, label


def hash_of(text: str) -> str:
    """Returns eight digits that tell the statements about one pair apart."""
    return f"{hash_id(text) % 10**8:08d}"
