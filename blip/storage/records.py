"""Small JSON records in a store: commits, leases, reports, ledgers."""

import json
from typing import Any

from blip.storage.store import StoreError


def parse_record(data: bytes, uri: str) -> dict[str, Any]:
    """Returns the JSON object that the bytes of a record hold. Raises StoreError if they hold none."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise StoreError(f"{uri} is no record: it was cut or altered; delete it, and run again")
    return values
