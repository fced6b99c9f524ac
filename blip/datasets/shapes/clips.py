"""Short clips: a thing that moves over the ground, as a video file."""

import io
from collections.abc import Sequence
from pathlib import Path
from random import Random

from PIL import Image

from blip.datasets.frames import sample_frames
from blip.datasets.shapes.scenes import PLACES, Scene, render_scene
from blip.storage import scratch

PATHS = (
    ("left", "middle", "right"),
    ("right", "middle", "left"),
    ("top", "middle", "bottom"),
    ("bottom", "middle", "top"),
)
"""Places that a thing passes."""
SHOWN = 4
"""Frames at each place."""


def render_clip(scene: Scene, rng: Random, size: int) -> list[Image.Image]:
    """Returns the frames of a clip of the scene's first thing, on its way over three places."""
    thing = scene["objects"][0]
    frames = []
    for place in rng.choice(PATHS):
        assert place in PLACES
        moved = Scene(ground=scene["ground"], objects=[{**thing, "place": place}])
        frames += [render_scene(moved, rng, size) for _ in range(SHOWN)]
    return [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]


def write_video(frames: Sequence[Image.Image], path: Path) -> None:
    """Writes frames to a video file without loss."""
    import av  # local import: it comes with an extra

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def clip_frames(scene: Scene, rng: Random, size: int, count: int) -> list[bytes]:
    """Returns `count` frames of a clip as PNG, sampled from its video file as those of any video."""
    with scratch("clip") as folder:
        write_video(render_clip(scene, rng, size), folder / "clip.mkv")
        return sample_frames(folder / "clip.mkv", count)
