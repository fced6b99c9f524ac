"""What every verb is told of the run that it belongs to."""

from typing import TypeVar

from blip.config import Config, load_config

C = TypeVar("C", bound=Config)


class RunContext(Config):
    preset: str = ""
    """Whose settings: a packaged preset, or the path of a YAML file that changes one."""
    overrides: tuple[str, ...] = ()
    """Changes of the verb's own settings, as `key.subkey=value`."""
    store: str = "runs/store"
    """Where shards, checkpoints and scores lie: a folder, or `s3://bucket/prefix`."""
    revision: str = ""
    """The code's, for the records; no identity depends on it."""

    def settings(self, cls: type[C], stage: str) -> C:
        """The configuration of a stage. Raises ConfigError."""
        return load_config(cls, stage, self.preset, self.overrides)
