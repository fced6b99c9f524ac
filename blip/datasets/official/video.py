"""Videos with captions or questions: MSRVTT, MSRVTT-QA and MSVD-QA, as uniformly sampled frames (BLIP, section 5.6)."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from blip.config import ConfigError
from blip.datasets.frames import sample_frames
from blip.datasets.official.files import AnnotationFiles, ImageFolder, Official, key_of, text_of
from blip.shards.sample import BadSample, Sample
from blip.storage import scratch

EXTENSIONS = ("mp4", "avi", "webm", "mkv")
VIDEOS_OF_MSRVTT = "https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip"


class Videos(Official):
    TRAINING: ClassVar = ()
    frames: int = Field(default=8, ge=1, le=1000)
    """Frames of a video, at equal distances; they are stored as PNG."""

    def with_frames(self, texts: Iterable["VideoText"], pictures: ImageFolder) -> Iterator[Sample]:
        """Yields a sample a text; texts of one video share its frames. A video that cannot be decoded is counted."""
        for video, group in groupby(sorted(texts, key=lambda text: text[0]), key=lambda text: text[0]):
            folders = ("", "videos/", "videos/all/", "TestVideo/", "YouTubeClips/")
            name = pictures.find(*(f"{folder}{video}.{extension}" for extension in EXTENSIONS for folder in folders))
            if name is None:
                continue
            try:
                frames = self.decode(pictures, name)
            except BadSample as error:
                pictures.rejected[str(error)] += 1
                continue
            for _, key, text, meta in group:
                yield Sample(key_of(key), frames, [text], {"video_id": video, **meta})

    def decode(self, pictures: ImageFolder, name: str) -> list[bytes]:
        with ExitStack() as stack:
            path: Path | None = pictures.store.path(name)
            if path is None:
                path = stack.enter_context(scratch("video")) / name.rpartition("/")[2]
                pictures.store.fetch(name, path)
            return sample_frames(path, self.frames)


VideoText = tuple[str, Any, str, dict[str, Any]]
"""The name of a video without its extension, a key, a caption or question, and metadata."""


class MSRVTT(Videos):
    """Text-to-video retrieval on the 1,000 test clips of 1k-A: one caption each."""

    SPLITS: ClassVar = ("test",)
    SOURCE: ClassVar = (
        "https://github.com/gabeur/mmt (MSRVTT_JSFUSION_test.csv), "
        "or https://storage.googleapis.com/sfr-vision-language-research/datasets/msrvtt_test.jsonl"
    )
    IMAGES: ClassVar = VIDEOS_OF_MSRVTT
    type: Literal["msrvtt"] = "msrvtt"

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:  # noqa: ARG002
        name = files.find("MSRVTT_JSFUSION_test.csv", "msrvtt_test.jsonl")
        if name.endswith(".csv"):
            rows, fields = list(csv.DictReader(io.StringIO(files.text(name)))), ("video_id", "sentence")
        else:
            rows, fields = files.json_lines(name), ("clip_name", "caption")
        texts = []
        for row in rows:
            with files.record(name):
                video, text = (text_of(row[field]) for field in fields)
                texts.append((video, video, text, {}))
        yield from self.with_frames(texts, pictures)


class VideoQuestions(Videos):
    """Questions about videos with one answer each, as `{train,val,test}_qa.json`."""

    SPLITS: ClassVar = ("train", "val", "test")
    TRAINING: ClassVar = ("train",)
    frames: int = Field(default=16, ge=1, le=1000)
    """Frames of a video, at equal distances; they are stored as PNG."""

    def samples(self, split: str, files: AnnotationFiles, pictures: ImageFolder) -> Iterator[Sample]:
        name = files.find(f"{split}_qa.json")
        found = []
        for record in files.json_lines(name):
            with files.record(name):
                meta = {"question_id": record["id"], "answers": [text_of(record["answer"])]}
                found.append((int(record["video_id"]), record["id"], text_of(record["question"]), meta))
        names = self.video_names(files, {number for number, *_ in found})
        texts = [(names[number], key, question, meta) for number, key, question, meta in found]
        yield from self.with_frames(texts, pictures)

    def video_names(self, files: AnnotationFiles, numbers: Iterable[int]) -> dict[int, str]:  # noqa: ARG002
        """Returns the names of the videos' files, without extensions, by number."""
        return {number: f"video{number}" for number in numbers}


class MSRVTTQA(VideoQuestions):
    SOURCE: ClassVar = "https://github.com/xudejing/video-question-answering (MSRVTT-QA)"
    IMAGES: ClassVar = VIDEOS_OF_MSRVTT
    type: Literal["msrvtt_qa"] = "msrvtt_qa"


class MSVDQA(VideoQuestions):
    """MSVD-QA; `youtube_mapping.txt` says which clip a number is: a line is `CLIP vidNUMBER`."""

    SOURCE: ClassVar = "https://github.com/xudejing/video-question-answering (MSVD-QA)"
    IMAGES: ClassVar = "https://www.cs.utexas.edu/users/ml/clamp/videoDescription/YouTubeClips.tar"
    type: Literal["msvd_qa"] = "msvd_qa"

    def video_names(self, files: AnnotationFiles, numbers: Iterable[int]) -> dict[int, str]:
        if not files.store.exists("youtube_mapping.txt"):
            return super().video_names(files, numbers)
        found = clips(files.text("youtube_mapping.txt").splitlines())
        if missing := [number for number in numbers if number not in found]:
            raise ConfigError(
                f"{files.store.uri}/youtube_mapping.txt has no clip of video {missing[0]}: copy it again from "
                f"{self.SOURCE}"
            )
        return found


def clips(lines: Sequence[str]) -> dict[int, str]:
    """Returns the clips by number of a mapping's lines."""
    pairs = [line.split() for line in lines if line.strip()]
    return {int(number.removeprefix("vid")): clip for clip, number in pairs}
