"""The container image of the steps, tagged with the revision of its sources."""

import os
from collections.abc import Callable
from typing import Any, cast

from kfp import dsl

from components.revision import revision


def image() -> str:
    """Returns the steps' image: `BLIP_IMAGE`, or the one of the revision."""
    return os.environ.get("BLIP_IMAGE") or f"blip-python:{revision()}"


def step(function: Callable[..., Any]) -> Callable[..., dsl.PipelineTask]:
    """Makes a function a KFP component; its source is part of the pipeline, the library it calls is in the image."""
    return cast(Callable[..., dsl.PipelineTask], dsl.component(function, base_image=image(), install_kfp_package=False))
