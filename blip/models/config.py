"""The settings of any model, told apart by `type`, which is `med` where it is not given."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from blip.models.blip2 import Blip2Config
from blip.models.med import MEDConfig


def model_type(values: Any) -> str:
    """Returns the type of a model's settings, plain values or a config."""
    return values.get("type", "med") if isinstance(values, dict) else getattr(values, "type", "med")


AnyModelConfig = Annotated[
    Annotated[MEDConfig, Tag("med")] | Annotated[Blip2Config, Tag("blip2")], Discriminator(model_type)
]
