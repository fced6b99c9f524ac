"""The settings of a frozen language model."""

from typing import Annotated, Literal

from pydantic import Field

from blip.config import Config
from blip.models.weights.content import TRANSFORMERS_MODEL


class LanguageModelConfig(Config):
    source: Annotated[str, TRANSFORMERS_MODEL] = "facebook/opt-2.7b"
    """A causal or encoder-decoder language model of transformers: a local folder, a store's URI, or a name on the
    hub."""
    digest: str | None = None
    """Digest of the model's weights, configuration and tokenizer; set when a run starts, and checked on load."""
    width: int = Field(default=2560, ge=1, le=1_000_000)
    """Width of its word embeddings."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the frozen weights. `auto` is bf16 on GPUs and fp32 on CPUs."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Store the weights of linear maps in 8 or 4 bits (bitsandbytes). On CPUs this saves memory, not time."""
    end: str = "\n"
    """The word that ends a text of a causal model; an encoder-decoder model has its own."""
