"""Shares: how one set of images becomes several splits, so that images that look alike stay together."""

import hashlib
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from blip.capfilt.duplicates import near_groups
from blip.config import ConfigError
from blip.shards.manifest import Manifest

DEFAULT_SPLIT = "0.9/0.1"
BY_POSITION = {2: ("train", "test"), 3: ("gold", "web", "test")}
"""The names of shares without one, by their number."""
NAMES = ("train", "gold", "web", "val", "test")
"""The names of shares; `train` is gold and web at once."""
NEAR_BITS = 4
"""Images look alike if their perceptual hashes differ in at most this many of 64 bits, as for CapFilt's hygiene."""
TOLERANCE = 1e-6


def parse_split(text: str) -> dict[str, float]:
    """Returns the shares by name of `0.9/0.1` (train, test), `0.2/0.7/0.1` (gold, web, test) or `gold=0.2/...`.

    Shares are in 1 or in percent. Raises ConfigError.
    """
    wrong = f"split {text!r}: "
    parts = [part.strip() for part in text.split("/")]
    named = [re.fullmatch(r"(?:(\w+)=)?(\d*\.?\d+)%?", part) for part in parts]
    if not all(named):
        raise ConfigError(f"{wrong}write shares as 0.9/0.1, or with names as gold=0.2/web=0.7/test=0.1")
    found = [(part[1], float(part[2])) for part in named if part]
    names = [name for name, _ in found if name]
    if not names and len(found) in BY_POSITION:
        names = [*BY_POSITION[len(found)]]
    if len(names) != len(found) or not set(names) <= set(NAMES) or len(set(names)) != len(names):
        raise ConfigError(f"{wrong}give two shares (train/test), three (gold/web/test), or names of {', '.join(NAMES)}")
    shares = dict(zip(names, (share for _, share in found), strict=True))
    total = sum(shares.values())
    if min(shares.values()) <= 0 or min(abs(total - 1), abs(total - 100)) > TOLERANCE * 100:
        raise ConfigError(f"{wrong}the shares make {total:g}; they must each be above 0 and make 1 together")
    if "test" not in shares or not {"train", "gold", "web"} & shares.keys():
        raise ConfigError(f"{wrong}there must be a share for test, and one for train, gold or web")
    if "train" in shares and {"gold", "web"} & shares.keys():
        raise ConfigError(f"{wrong}train is gold and web at once; name it, or these")
    return {name: share / total for name, share in shares.items()}


def assign(hashes: NDArray[np.uint64], shares: Mapping[str, float]) -> NDArray[np.int8]:
    """Returns for each image `(N,)` the position of its share.

    Whatever the order of the images, groups that look alike are ordered by a digest of their smallest hash, and cut
    where the shares say; each share gets at least one group. More images move only the groups at the cuts. Raises
    ConfigError if there are fewer groups than shares.
    """
    groups, members, sizes = np.unique(near_groups(hashes, NEAR_BITS), return_inverse=True, return_counts=True)
    if len(groups) < len(shares):
        raise ConfigError(
            f"{len(hashes)} images cannot be split in {len(shares)}: {len(groups)} of them look different; name more "
            "images, or data of several splits"
        )
    digests = [hashlib.blake2b(int(group).to_bytes(8, "big"), digest_size=8).digest() for group in groups]
    order = np.array(sorted(range(len(groups)), key=digests.__getitem__))
    middles = (np.cumsum(sizes[order]) - sizes[order] / 2) / len(hashes)
    cuts = np.searchsorted(middles, np.cumsum([*shares.values()])[:-1])
    fewest = np.arange(1, len(shares))
    cuts = np.minimum(np.maximum.accumulate(np.maximum(cuts, fewest)), len(groups) - len(shares) + fewest)
    share_of_group = np.empty(len(groups), dtype=np.int8)
    share_of_group[order] = np.searchsorted(cuts, np.arange(len(groups)), side="right")
    return share_of_group[members]


def data_splits(parts: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Returns the splits gold, web and test (and val) of what was split: what there is of gold and web is both."""
    training = [parts[name] for name in ("train", "gold", "web") if name in parts]
    gold, web = training[0].model_copy(update={"name": "gold"}), training[-1].model_copy(update={"name": "web"})
    if len(training) == 1:  # what was left out is counted once
        gold = gold.model_copy(update={"counts": {}})
    return {"gold": gold, "web": web, **{name: parts[name] for name in ("test", "val") if name in parts}}
