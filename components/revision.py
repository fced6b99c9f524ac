"""The revision of the code that steps run, recorded with their outputs."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGE_SOURCES = ("blip", "components", "Dockerfile", "constraints.txt", "pyproject.toml")
"""The sources of the image; changes elsewhere need no new image."""


def git(*arguments: str) -> str:
    """Returns git's output for this checkout, or an empty string without git or a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def digest() -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of the sources' names and contents."""
    found = hashlib.sha256()
    for path in sorted(path for source in IMAGE_SOURCES for path in [ROOT / source, *(ROOT / source).rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def revision() -> str:
    """Returns `BLIP_REVISION`, as set in images and local steps, or the checkout's revision.

    Steps record it with their outputs. It is no input, so that a fix does not run finished steps again.
    """
    return os.environ.get("BLIP_REVISION") or of_checkout()


@cache
def of_checkout() -> str:
    """Returns the last commit of the sources, with their digest if they differ from it. Runs git once."""
    commit = git("log", "-1", "--format=%h", "--", *IMAGE_SOURCES)
    if not commit:
        return f"source.{digest()}"
    return f"{commit}-dirty.{digest()}" if git("status", "--porcelain", "--", *IMAGE_SOURCES) else commit
