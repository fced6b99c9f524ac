"""The image that every step runs in, named by the revision of what it is made of."""

import os
from collections.abc import Callable
from typing import cast

from kfp import dsl

from components.revision import revision


def image() -> str:
    """The image that steps run in: what `BLIP_IMAGE` says, else that of the revision."""
    return os.environ.get("BLIP_IMAGE") or f"blip-python:{revision()}"


def step(function: Callable[..., int | None]) -> Callable[..., dsl.PipelineTask]:
    """Makes a function a step: its source travels with the pipeline, the library that it calls comes with the image."""
    return cast(Callable[..., dsl.PipelineTask], dsl.component(function, base_image=image(), install_kfp_package=False))
