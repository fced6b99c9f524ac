"""Tags that identify a run: its command, its revision, and digests of names."""

import hashlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from blip.redaction import redact
from blip.tracking.run import truncate


def source_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags of MLflow's column *Source*: the command and the code's revision."""
    found = {"mlflow.source.name": truncate(redact(command())), "mlflow.source.type": "LOCAL"}
    if revision := tags.get("revision"):
        found["mlflow.source.git.commit"] = truncate(revision)
    return found


def command() -> str:
    """Returns the command that started this process, as one types it."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if "--function_to_execute" in arguments:  # a step of a pipeline; its other arguments are a page of JSON
        return f"component {arguments[arguments.index('--function_to_execute') + 1]}"
    if path.name == "cli.py" and path.parent.name == "blip":
        return shlex.join(["blip", *arguments])
    return shlex.join([path.name, *arguments])


def short_digest(text: str) -> str:
    """Returns 32 hexadecimal digits for a text, since MLflow's filters cannot quote every text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
