"""What is wanted of a source of weights, and the settings of a configuration that name one."""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from pydantic import BaseModel

from blip.models.weights.files import INDEX, WEIGHTS, WeightsError, parts_of

SIDE_FILE = "training_state.safetensors"
"""Training state stored beside the model's weights: temperature, teacher, queue."""

MADE_HERE = "frozen:"
"""Begins the source of a model that `blip make-frozen` makes before it is needed: `frozen:vision`."""


class NotHereError(WeightsError):
    """A place that does not hold what is wanted; another one may."""


@dataclass(frozen=True)
class Content:
    """The files that are wanted of a folder of weights. A setting that names a source has one in its annotation."""

    what: str
    """The noun of messages."""
    weights: bool = True
    """Whether weights are wanted, in one file or in several with an index."""
    required: tuple[str, ...] = ()
    """Names of files of which at least one must exist; all that exist are wanted."""
    optional: tuple[str, ...] = ()
    """Names of files that are wanted if they exist."""
    owner: str = ""
    """The owner on the hub of names that name none."""

    def hub_name(self, source: str) -> str:
        """Returns a source as a full name on the hub."""
        return f"{self.owner}/{source}" if self.owner and "/" not in source else source

    def choose(self, names: Set[str], read: Callable[[str], bytes], where: str) -> list[str]:
        """Returns the wanted names among the files of a place; `read` returns the content of one.

        Raises NotHereError if what is wanted is not there, or not all of it.
        """
        found = [name for name in self.required if name in names]
        if self.required and not found:
            raise NotHereError(f"{where} holds no {' or '.join(self.required)}")
        if self.weights:
            found += choose_weights(names, read, where)
        return found + [name for name in self.optional if name in names and name not in found]


def choose_weights(names: Set[str], read: Callable[[str], bytes], where: str) -> list[str]:
    """Returns the file of weights, or an index and the files that it names. Raises NotHereError."""
    first = next((name for name in WEIGHTS if name in names), None)
    if first is None:
        raise NotHereError(f"{where} holds no weights, looked for {', '.join(WEIGHTS)}")
    if not first.endswith(INDEX):
        return [first]
    parts = parts_of(read(first), f"{where}/{first}")
    missing = [part for part in parts if part not in names]
    if missing:
        raise NotHereError(f"{where} lacks {missing[0]}, which its {first} names")
    return [first, *parts]


MODEL = Content("weights", optional=(SIDE_FILE,))
"""A whole model, or a part of one, in any format that `read_tensors` reads."""
IMAGE_ENCODER = Content("weights", owner="timm")
"""A vision transformer of timm."""
TOKENIZER = Content(
    "tokenizer", weights=False, required=("tokenizer.json", "vocab.txt"), optional=("tokenizer_config.json",)
)
"""A WordPiece tokenizer."""
TRANSFORMERS_MODEL = Content(
    "model",
    required=("config.json",),
    optional=(
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "vocab.txt",
        "tokenizer.model",
    ),
)
"""A folder that `from_pretrained` of transformers reads: configuration, weights, and the tokenizer if there is one."""

VISION_MODEL = Content("image encoder", required=("config.json",), optional=("preprocessor_config.json",), owner="timm")
"""A whole vision model of timm or transformers."""


def named_sources(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, Content]]:
    """Yields the settings with a Content in their annotation that have a value: dotted name, value, and content.

    Looks into the configurations in fields, in their tuples and lists, and in their dictionaries.
    """
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        contents = [content for content in field.metadata if isinstance(content, Content)]
        if isinstance(value, str) and value:
            yield from ((f"{prefix}{name}", value, content) for content in contents)
        for key, part in parts(name, value):
            yield from named_sources(part, f"{prefix}{key}.")


def parts(name: str, value: object) -> list[tuple[str, BaseModel]]:
    """Returns the configurations in a field's value by their dotted names."""
    match value:
        case BaseModel():
            return [(name, value)]
        case list() | tuple():
            return [(f"{name}.{number}", part) for number, part in enumerate(value) if isinstance(part, BaseModel)]
        case dict():
            return [(f"{name}.{key}", part) for key, part in value.items() if isinstance(part, BaseModel)]
        case _:
            return []
