"""One node's part in a training over several: fetch what it works on, run its processes, hand over what they made.

`python -m blip.launch.node STORE [torchrun's options] -m MODULE ARGS`; the processes find their inputs in `/scratch/in` and leave what they
make in `/scratch/out`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from blip.launch import local
from blip.launch.handover import receive, send
from blip.storage import open_store

SCRATCH = Path("/scratch")


def main(args: Sequence[str], root: Path = SCRATCH) -> None:
    """Ends with the processes' exit code; what the first node's processes made is handed over when all succeeded."""
    store, out = open_store(args[0]), root / "out"
    receive(store.join("in"), lambda name: root / "in" / name)
    out.mkdir(parents=True, exist_ok=True)
    local.main(args[1:])
    if os.environ.get("PET_NODE_RANK", "0") == "0":
        send({path.name: path for path in out.iterdir()}, store.join("out"))


if __name__ == "__main__":
    main(sys.argv[1:])
