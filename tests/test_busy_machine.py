"""Training stays fast on a machine with other work."""

import os
import subprocess
import sys

ASK = "import blip, os, subprocess, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"


def answer(**environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    return subprocess.run(
        [sys.executable, "-c", ASK], env={**given, **environment}, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_threads_do_not_spin_long_for_one_another_unless_told_to():
    assert answer() == "1000 False", "it is read when torch is imported, so it must come before"
    assert answer(GOMP_SPINCOUNT="7") == "7 False"
