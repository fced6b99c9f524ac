"""A worker that meets a wrong configuration."""

import sys

from blip.config import EXIT_CONFIG

sys.exit(EXIT_CONFIG)
