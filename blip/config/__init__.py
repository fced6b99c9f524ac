"""Typed configuration: a recipe per stage, changed by a preset and by `--set a.b=value`; one line per mistake."""

from blip.config.errors import EXIT_CONFIG, ConfigError, one_line
from blip.config.presets import load_config, merged, presets, read_config, set_value, stages, training_stages
from blip.config.schema import Config, validate
from blip.config.yaml_text import parse_value

__all__ = [
    "EXIT_CONFIG",
    "Config",
    "ConfigError",
    "load_config",
    "merged",
    "one_line",
    "parse_value",
    "presets",
    "read_config",
    "set_value",
    "stages",
    "training_stages",
    "validate",
]
