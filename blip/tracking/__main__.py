"""`python -m blip.tracking FILE...`: sends the records that a run saved because MLflow was unavailable."""

import logging
import sys
from pathlib import Path

from blip.tracking.resend import send_unsent
from blip.tracking.server import TrackingError


def main(paths: list[str]) -> None:
    """Sends each file and deletes it. Exits with one line and code 1 at the first failure."""
    logging.basicConfig(format="%(message)s")
    try:
        for path in paths:
            send_unsent(Path(path))
    except (OSError, ValueError, TrackingError) as error:
        raise SystemExit(f"blip: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
