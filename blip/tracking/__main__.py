"""`python -m blip.tracking FILE...`: sends records that a step could not hand over while MLflow was away."""

import logging
import sys
from pathlib import Path

from blip.tracking.run import send
from blip.tracking.server import TrackingError


def main(paths: list[str]) -> None:
    """Sends each file and deletes it; what cannot be sent is one line and exit code 1."""
    logging.basicConfig(format="%(message)s")
    try:
        for path in paths:
            send(Path(path))
    except (OSError, ValueError, TrackingError) as e:
        raise SystemExit(f"blip: {e}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
