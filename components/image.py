"""The image that every step runs in, named by the revision of what it is made of."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import cast

from kfp import dsl

ROOT = Path(__file__).parent.parent
SOURCES = ("blip", "components", "Dockerfile", "constraints.txt", "pyproject.toml")
"""What decides how a step computes: a change elsewhere neither needs a new image nor makes finished steps run again."""


def git(*arguments: str) -> str:
    """What git answers for the checkout this file lies in; nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def digest() -> str:
    """Twelve hexadecimal digits of the SHA-256 of the sources' names and contents."""
    found = hashlib.sha256()
    for path in sorted(path for source in SOURCES for path in [ROOT / source, *(ROOT / source).rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def revision() -> str:
    """The last commit that touched the sources, marked by their digest while they differ from it.

    Steps take it as an input, since no cache of Kubeflow Pipelines looks into the library that a step calls. `BLIP_REVISION` names it where
    the sources came without their history, as in an image.
    """
    commit = git("log", "-1", "--format=%h", "--", *SOURCES)
    if given := os.environ.get("BLIP_REVISION"):
        return given
    if not commit:
        return f"source.{digest()}"
    return f"{commit}-dirty.{digest()}" if git("status", "--porcelain", "--", *SOURCES) else commit


REVISION = revision()
IMAGE = os.environ.get("BLIP_IMAGE", f"blip-python:{REVISION}")


def step(function: Callable[..., int | None]) -> Callable[..., dsl.PipelineTask]:
    """Makes a function a step: its source travels with the pipeline, the library that it calls comes with the image."""
    return cast(Callable[..., dsl.PipelineTask], dsl.component(function, base_image=IMAGE, install_kfp_package=False))
