"""One node of a training over several: downloads the inputs, runs the processes, uploads the outputs.

`python -m blip.launch.node STORE [torchrun's options] -m MODULE ARGS`; the processes read their inputs from
`/scratch/in` and write their outputs to `/scratch/out`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from blip.launch import local
from blip.launch.handover import download_folders, upload_folders
from blip.storage import open_store

SCRATCH = Path("/scratch")


def run_node(args: Sequence[str], root: Path = SCRATCH) -> None:
    """Exits with the exit code of the processes; after success the first node uploads its outputs."""
    store, out = open_store(args[0]), root / "out"
    download_folders(store.join("in"), lambda name: root / "in" / name)
    out.mkdir(parents=True, exist_ok=True)
    local.torchrun(args[1:])
    if os.environ.get("PET_NODE_RANK", "0") == "0":
        upload_folders({path.name: path for path in out.iterdir()}, store.join("out"))


if __name__ == "__main__":
    run_node(sys.argv[1:])
