"""Reads batches of 3 MB with two workers; with `fill`, keeps /dev/shm full from the fourth batch on."""

import os
import sys
from contextlib import suppress

import numpy as np
import torch

from blip.batch import Batch, Example
from blip.config import ConfigError
from blip.data.loader import Loader, LoaderConfig
from blip.shards.manifest import Manifest
from blip.shards.sample import Sample
from blip.storage import StoreError


def prepare(sample: Sample, _: np.random.Generator) -> Example:
    return Example(sample.key, torch.zeros(3, 500, 500, dtype=torch.uint8), ["a text"])


def fill_up(path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        while True:
            os.write(file, bytes(1 << 12))
    os.close(file)


def main(manifest: str, fill: str) -> None:
    loader = Loader([Manifest.load(manifest)], prepare, Batch.of, LoaderConfig(batch=4, workers=2))
    try:
        for step, _ in enumerate(loader):
            if fill and step >= 3:
                fill_up("/dev/shm/filler")
            if step == 100:
                break
    except (ConfigError, StoreError) as e:
        sys.exit(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
