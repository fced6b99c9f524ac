"""Caption and match: what a model says of images, without a data set, a store or a job."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from pydantic import Field

from blip.capfilt.stream import rounded
from blip.config import Config, ConfigError, merged, set_value, validate
from blip.models.generation import Decoding, Nucleus
from blip.progress import progress
from blip.results import LabelResult
from blip.runs.pictures import Picture, Sources, closing
from blip.runs.rows import Row, RowsFile, check_format
from blip.shards.sample import Rejected
from blip.workers.model import model_digest
from blip.zoo.config import DualEncoderConfig, VisionLanguageConfig
from blip.zoo.contract import Captioner, Filter, ImageBatch
from blip.zoo.image_model import Precision
from blip.zoo.load import load_captioner, load_filter
from blip.zoo.source import model_folder, naming

CAPTION_COLUMNS = ("image", "number", "caption", "log_probability", "match", "similarity", "error")
MATCH_COLUMNS = ("image", "number", "text", "match", "similarity", "error")
NO_TEXT = "no text beside it"
"""Why an image is not matched if no text was given."""


class LabelConfig(Config):
    """How images are captioned and matched."""

    batch: int = Field(default=32, ge=1, le=1_000_000)
    """Images per batch."""
    captions: int = Field(default=1, ge=1, le=1000)
    """Texts per image; more than one needs nucleus sampling."""
    decoding: Decoding = Nucleus()
    seed: int = Field(default=42, ge=0, lt=2**63)
    precision: Precision = "float32"
    """Of BLIP's models."""
    captioner: VisionLanguageConfig = VisionLanguageConfig()
    filter: DualEncoderConfig = DualEncoderConfig()


def label_config(overrides: Sequence[str]) -> LabelConfig:
    """Returns the settings with overrides. Raises ConfigError."""
    values: dict[str, object] = {}
    for override in overrides:
        set_value(values, override)
    return validate(LabelConfig, merged(LabelConfig().model_dump(mode="json"), values), "settings")


def caption(
    images: Sequence[str],
    *,
    model: str,
    out: str | Path,
    filter: str | None = None,
    overrides: Sequence[str] = (),
) -> LabelResult:
    """Writes captions of images with their log-probabilities, and with the scores of a filter if one is named.

    `images` are files, folders or tars. The kind of `out` follows its ending. An interrupted call goes on where it was.
    Raises ConfigError; StoreError if a source fails.
    """
    cfg = label_config(overrides)
    if cfg.captions > 1 and not isinstance(cfg.decoding, Nucleus):
        raise ConfigError(f"captions is {cfg.captions}, but beam search has one best text: use nucleus decoding")
    check_format(out)
    sources = Sources.find(images)
    writer_folder = model_folder(model)
    judge_folder = model_folder(filter) if filter else None
    with naming(model, writer_folder):
        writer = load_captioner(writer_folder, cfg.decoding, cfg.seed, cfg.precision, cfg.captioner)
    judge = None
    if filter and judge_folder:
        with naming(filter, judge_folder):
            judge = load_filter(judge_folder, cfg.precision, cfg.filter)
    folders = [writer_folder, *([judge_folder] if judge_folder else [])]

    def rows(part: list[Picture]) -> list[list[Row]]:
        found = ImageBatch([one.views for one in part], cfg.batch)
        names = [one.name for one in part]
        written = [writer.write(found, names, number) for number in range(cfg.captions)]
        texts = [[of_number[row].text for of_number in written] for row in range(len(part))]
        scored = judge.score(found, texts) if judge else [[None] * cfg.captions for _ in part]
        return [
            [
                {
                    "image": name,
                    "number": number,
                    "caption": of_number[row].text,
                    "log_probability": rounded(of_number[row].log_probability, 4, name),
                    **score_row(scored[row][number], name),
                }
                for number, of_number in enumerate(written)
            ]
            for row, name in enumerate(names)
        ]

    return label(sources, cfg, folders, [writer, *([judge] if judge else [])], rows, CAPTION_COLUMNS, out)


def match(
    images: Sequence[str],
    texts: Sequence[str],
    *,
    model: str,
    out: str | Path,
    overrides: Sequence[str] = (),
) -> LabelResult:
    """Writes p(match) and similarity of each image with each text, or with the texts that lie beside it.

    As `caption`.
    """
    cfg = label_config(overrides)
    if any(not text.strip() for text in texts):
        raise ConfigError("a text is empty; give words, or no text for those beside the images")
    check_format(out)
    sources = Sources.find(images)
    folder = model_folder(model)
    with naming(model, folder):
        judge = load_filter(folder, cfg.precision, cfg.filter)

    def rows(part: list[Picture]) -> list[list[Row]]:
        asked = [list(texts) or one.texts for one in part]
        scored = judge.score(ImageBatch([one.views for one in part], cfg.batch), asked)
        return [
            [
                {"image": one.name, "number": number, "text": text, **score_row(score, one.name)}
                for number, (text, score) in enumerate(zip(its_texts, scores, strict=True))
            ]
            or [{"image": one.name, "number": 0, "error": NO_TEXT}]
            for one, its_texts, scores in zip(part, asked, scored, strict=True)
        ]

    return label(sources, cfg, [folder], [judge], rows, MATCH_COLUMNS, out, list(texts))


def match_rows(image: str, texts: Sequence[str], model: str, overrides: Sequence[str] = ()) -> list[Row]:
    """Returns the rows that `match` writes, best first for one image."""
    with tempfile.TemporaryDirectory(prefix="blip-") as folder:
        table = Path(folder, "rows.jsonl")
        match([image], texts, model=model, out=table, overrides=overrides)
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    if len({row["image"] for row in rows}) == 1:
        rows.sort(key=lambda row: -row.get("match", row.get("similarity", 0.0)))
    return rows


def score_row(scored: object, name: str) -> Row:
    """Returns the columns of a filter's scores, without those that it does not compute."""
    pairs = {kind: getattr(scored, kind, None) for kind in ("match", "similarity")}
    return {kind: rounded(score, 5, name) for kind, score in pairs.items() if score is not None}


def label(
    sources: Sources,
    cfg: LabelConfig,
    folders: Sequence[Path],
    models: Sequence[Captioner | Filter],
    rows: Callable[[list[Picture]], list[list[Row]]],
    columns: Sequence[str],
    out: str | Path,
    texts: Sequence[str] = (),
) -> LabelResult:
    """Writes the rows of all images in picture_batches; an image that cannot be used has a row with the reason."""
    identity = [cfg.model_dump(mode="json"), [model_digest(f) for f in folders], sources.identity, list(texts)]
    file, began = RowsFile(Path(out), columns, identity), time.monotonic()
    threads = os.cpu_count() or 1
    views = [model.view for model in models]
    with ThreadPoolExecutor(threads) as pool, progress(len(sources), "images", done=file.done) as bar:
        found = sources.pictures(views, pool, 2 * cfg.batch, file.done)
        with closing(found) as pictures:
            for part in picture_batches(pictures, cfg.batch):
                file.append(rows_in_order(part, rows))
                bar.advance(len(part))
    result = count(file, time.monotonic() - began)
    file.finish()
    return result


def picture_batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    while part := list(islice(pictures, size)):
        yield part


def rows_in_order(part: list[Picture], rows: Callable[[list[Picture]], list[list[Row]]]) -> list[list[Row]]:
    """Returns the rows of the images of a batch, in which only sound ones are shown to the models."""
    sound = [one for one in part if not one.error]
    found = iter(rows(sound) if sound else [])
    return [[{"image": one.name, "number": 0, "error": one.error}] if one.error else next(found) for one in part]


def count(file: RowsFile, seconds: float) -> LabelResult:
    """Counts images and rows, and images without results by reason."""
    rejected = Rejected()
    images, total = set(), 0
    for row in file.rows():
        images.add(row["image"])
        if error := row.get("error"):
            rejected[error] += 1
        else:
            total += 1
    return LabelResult(images=len(images), rows=total, rejected=dict(rejected), file=str(file.path), seconds=seconds)
