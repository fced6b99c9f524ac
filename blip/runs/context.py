"""Settings shared by all verbs of a run."""

from typing import TypeVar

from blip.config import Config, load_config

C = TypeVar("C", bound=Config)


class RunContext(Config):
    preset: str = ""
    """A packaged preset, or the path of a YAML file that extends one."""
    overrides: tuple[str, ...] = ()
    """Overrides of the verb's settings, as `key.subkey=value`."""
    store: str = "runs/store"
    """The store of shards, checkpoints and scores: a folder, or `s3://bucket/prefix`."""
    revision: str = ""
    """Code revision, recorded with results; not part of any cache key."""

    def settings(self, cls: type[C], stage: str) -> C:
        """Loads the configuration of a stage. Raises ConfigError."""
        return load_config(cls, stage, self.preset, self.overrides)
