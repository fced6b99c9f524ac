"""Results of the verbs that fetch models."""

from blip.config import Config
from blip.results.result import Result


class FetchResult(Result):
    source: str
    """Where the model came from."""
    task: str
    """The task that it was trained for."""
    first: bool = False
    """Whether it is the first model of the bootstrap that made what the source names."""


class MirroredModel(Config):
    """A model of the hub in a mirror."""

    revision: str
    """The commit on the hub."""
    settings: tuple[str, ...]
    """The settings that name it."""
    files: dict[str, str]
    """SHA-256 by file."""


class FetchWeightsResult(Result):
    store: str
    """The mirror."""
    models: dict[str, MirroredModel]
    """By name on the hub."""
    fetched_bytes: int
    """Bytes that were not in the mirror before."""

    @classmethod
    def verb(cls) -> str:
        return "fetch-weights"
