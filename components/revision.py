"""The revision of the code that steps run, which they record beside what they make."""

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ("blip", "components", "Dockerfile", "constraints.txt", "pyproject.toml")
"""What decides how a step computes: a change elsewhere needs no new image."""


def git(*arguments: str) -> str:
    """What git answers for the checkout this file lies in; nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def digest() -> str:
    """Twelve hexadecimal digits of the SHA-256 of the sources' names and contents."""
    found = hashlib.sha256()
    for path in sorted(path for source in SOURCES for path in [ROOT / source, *(ROOT / source).rglob("*")]):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:12]


def revision() -> str:
    """What `BLIP_REVISION` says, as in an image or a step of this machine, else the checkout's revision.

    Steps record it beside what they make. It is no input of theirs, so that a fix does not make finished steps run again.
    """
    return os.environ.get("BLIP_REVISION") or of_checkout()


@cache
def of_checkout() -> str:
    """The last commit that touched the sources, marked by their digest while they differ from it; asked of git once."""
    commit = git("log", "-1", "--format=%h", "--", *SOURCES)
    if not commit:
        return f"source.{digest()}"
    return f"{commit}-dirty.{digest()}" if git("status", "--porcelain", "--", *SOURCES) else commit
