"""Equal models are written as equal files, by any process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

WRITE = """
import sys
from pathlib import Path
import torch
sys.path[:0] = ["tests", "tests/runs"]
from test_export import TASKS, folder
from blip.runs.export import export

out = Path(sys.argv[1])
for kind in ("pretraining", "captioning"):
    source = folder(TASKS[kind], out / kind)
    torch.manual_seed(1)  # the reference's queue is filled with random vectors
    export(source, out / f"{kind}-official", "official")
    export(source, out / f"{kind}-hf", "hf")
"""


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Returns the SHA-256 of all files that two processes write of the same models."""
    found = []
    for seed in ("1", "2"):
        out = tmp_path_factory.mktemp("models")
        subprocess.run(
            [sys.executable, "-c", WRITE, str(out)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        files = sorted(path for path in out.rglob("*") if path.is_file())
        found.append({str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    return found


def test_every_file_of_a_model_and_of_its_exports_is_the_same(digests: list[dict[str, str]]):
    first, second = digests
    assert {Path(name).name for name in first} >= {
        "model.safetensors",
        "training_state.safetensors",
        "model.pth",
        "tokenizer.json",
    }
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()
