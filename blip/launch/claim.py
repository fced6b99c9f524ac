"""A claim of a cluster's workflow to what two must not do at once; it ends with the workflow."""

import json
import os
from typing import TYPE_CHECKING

from blip.launch.job import KubernetesObject
from blip.storage import Store
from blip.storage.records import parse_record

if TYPE_CHECKING:
    from blip.launch.kubernetes import Cluster


def claim(store: Store, key: str) -> str:
    """Claims `key` for the workflow that this process is a step of; returns the name of the workflow that holds it.

    Returns an empty string if the claim is this workflow's, now or since an earlier attempt of the step, and outside a
    workflow, where nothing is claimed. Raises StoreError.
    """
    if not os.environ.get("KFP_POD_NAME"):
        return ""
    from blip.launch.kubernetes import Cluster

    cluster = Cluster()
    owner = cluster.owner()
    return claim_for(owner, store, key, cluster) if owner else ""


def claim_for(owner: KubernetesObject, store: Store, key: str, cluster: "Cluster") -> str:
    """Claims `key` for a workflow. The claim of one that has ended, or is no more, is taken over; of several that
    claim at once, one wins.
    """
    mine = json.dumps(owner).encode()
    while not store.put_new(key, mine):
        found = store.get_tagged(key)
        if found is None:
            continue
        holder, tag = parse_record(found[0], f"{store.uri}/{key}"), found[1]
        if holder["uid"] == owner["uid"]:
            return ""
        if cluster.is_running(holder):
            return holder["name"]
        if store.put_if(key, mine, tag):
            return ""
    return ""
