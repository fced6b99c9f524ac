"""A worker of a pool in the tests: `python -m pool_worker JOB --name NAME --attached`; `POOL_WORKER` sets its fate."""

import os
import signal
import sys
from pathlib import Path

from worker_processes import make_worker

from blip.shards.manifest import Manifest
from blip.storage import open_store

if __name__ == "__main__":
    job, name, fate = sys.argv[1], sys.argv[3], os.environ.get("POOL_WORKER", "")
    match fate:
        case "fails":
            raise ValueError("no such model")
        case "is refused":
            sys.exit(42)
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
    make_worker(open_store(job), Manifest.load(Path(job, "manifest.json")), name).run()
