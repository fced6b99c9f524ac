"""Settings of others' models, apart from their code, since that imports transformers."""

from typing import Literal

from pydantic import Field, field_validator

from blip.config import Config

DType = Literal["auto", "float32", "bfloat16", "float16"]


class VisionLanguageConfig(Config):
    """How a captioner of transformers is asked. BLIP's own models read none of it."""

    prompt: str | None = None
    """What the model is asked. None asks models with a chat template for one short sentence, Florence-2 for its task
    `<CAPTION>`, PaliGemma and InstructBLIP as their papers do, and others nothing."""
    chat: Literal["auto", "on", "off"] = "auto"
    """Whether the prompt goes through the chat template of the model's processor; `auto` is on where there is one. If
    it is off, the prompt is passed as it is, with the model's own image token."""
    system: str = ""
    """The system message of the chat; empty for none."""
    batch: int = Field(default=8, ge=1, le=100_000)
    """Images per forward pass."""
    dtype: DType = "auto"
    """Type of weights and arithmetic; `auto` is the one that the model's configuration names."""
    longest: int = Field(default=1024, ge=16, le=65536)
    """Pixels; an image with a longer side is scaled down to it before the model's own processor sees it, which bounds
    the memory of images that wait."""


class DualEncoderConfig(Config):
    """How a filter of transformers or open_clip is used. BLIP's own models read none of it."""

    template: str = "{}"
    """What the model reads of a text, which takes the place of `{}`."""
    dtype: DType = "auto"
    """Type of weights and arithmetic; `auto` is the one that the model's configuration names, or float32."""

    @field_validator("template")
    @classmethod
    def has_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError(f"template is {value!r}, must hold {{}} once, where the text goes")
        return value
