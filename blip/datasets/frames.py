"""Frames of a video, uniformly sampled."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blip.shards.sample import BadSample

if TYPE_CHECKING:
    from av import VideoFrame


def positions(total: int, count: int) -> list[int]:
    """Returns the positions of `count` frames of `total`: multiples of floor(total / count), as the reference takes
    them; of a shorter video some frames are taken more than once.
    """
    step = total // count
    return [j * step for j in range(count)] if step else [j * total // count for j in range(count)]


def sample_frames(path: Path, count: int) -> list[bytes]:
    """Returns `count` frames of a video as PNG, at equal distances. Raises BadSample if it cannot be decoded."""
    from av.error import FFmpegError  # local import: it comes with an extra

    try:
        total = count_packets(path)
        frames = take(path, positions(total, count)) if total else None
        if frames is None:  # the container announces more frames than can be decoded
            total = sum(1 for _ in decoded(path))
            frames = take(path, positions(total, count)) if total else None
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        raise BadSample("video cannot be decoded") from error
    if frames is None:
        raise BadSample("video has no frames")
    return frames


def count_packets(path: Path) -> int:
    """Returns the number of a video's packets, which is that of its frames, without decoding any."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            return 0
        return sum(1 for packet in container.demux(video=0) if packet.size)


def decoded(path: Path) -> "Iterator[VideoFrame]":
    """Yields the frames of a video in order of presentation."""
    import av

    with av.open(str(path)) as container:
        if container.streams.video:
            container.streams.video[0].thread_type = "AUTO"
            yield from container.decode(video=0)


def take(path: Path, wanted: list[int]) -> list[bytes] | None:
    """Returns the frames at some positions as PNG; None if the video has fewer."""
    found: dict[int, bytes] = {}
    for number, frame in enumerate(decoded(path)):
        if number in wanted:
            file = io.BytesIO()
            frame.to_image().save(file, "PNG", compress_level=1)
            found[number] = file.getvalue()
        if number >= wanted[-1]:
            return [found[number] for number in wanted]
    return None
