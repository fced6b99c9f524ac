"""One workflow at a time does what two must not do at once."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from blip.launch.claim import claim, claim_for
from blip.launch.kubernetes import Cluster
from blip.runs.context import RunContext
from blip.runs.new_shards import find_new_shards
from blip.shards.sample import Sample
from blip.shards.writing import write_shards
from blip.storage import open_store

WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/work/workflows"
KEY = "retraining/blip.json"


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    return open_store(tmp_path / "store" if request.param == "folder" else request.getfixturevalue("s3"))


def workflow(api, name: str, **state) -> dict:
    """A workflow on the server, as an owner reference."""
    api.objects[f"{WORKFLOWS}/{name}"] = {"metadata": {"uid": name}, "spec": {}, **state}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": name, "uid": name}


def test_a_claim_is_held_until_its_workflow_ends(api, cluster, store):
    first, second = workflow(api, "first"), workflow(api, "second")
    assert claim_for(first, store, KEY, cluster) == ""
    assert claim_for(second, store, KEY, cluster) == "first"
    assert claim_for(first, store, KEY, cluster) == "", "the next attempt of the step goes on"
    assert claim_for(second, store, "retraining/other.json", cluster) == ""
    api.objects[f"{WORKFLOWS}/first"]["status"] = {"phase": "Failed"}
    assert claim_for(second, store, KEY, cluster) == ""
    assert json.loads(store.get(KEY))["name"] == "second"
    del api.objects[f"{WORKFLOWS}/second"]
    assert claim_for(first, store, KEY, cluster) == "", "one that was deleted holds nothing"


def test_of_many_that_claim_at_once_one_wins(api, cluster, store):
    store.put(KEY, json.dumps(workflow(api, "ended", status={"phase": "Succeeded"})).encode())
    owners = [workflow(api, f"w-{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda owner: claim_for(owner, store, KEY, cluster), owners))
    (winner,) = (owner["name"] for owner, holder in zip(owners, held, strict=True) if not holder)
    assert {holder for holder in held if holder} == {winner}


def test_outside_a_workflow_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    assert claim(open_store(tmp_path), KEY) == ""
    assert open_store(tmp_path).list() == []


def test_a_retraining_whose_schedule_was_replaced_and_the_next_one_do_not_work_at_once(api, tmp_path, monkeypatch):
    for split in ("gold", "web", "test"):
        write_shards([Sample("0", [b"image"], ["a text"])], tmp_path / split, split)
    overrides = ("data.type=tars", *(f"data.{split}={tmp_path}/{split}/" for split in ("gold", "web", "test")))
    told = RunContext(preset="shapes", overrides=overrides, store=str(tmp_path / "store"))
    monkeypatch.setenv("KFP_POD_NAME", "step")
    old, new = workflow(api, "old"), workflow(api, "new")
    monkeypatch.setattr(Cluster, "owner", lambda _: old)
    assert find_new_shards(told, "blip").shards == 1
    monkeypatch.setattr(Cluster, "owner", lambda _: new)
    found = find_new_shards(told, "blip")
    assert (found.shards, found.manifest) == (0, "")
    assert found.text == "run old is retraining blip: nothing to do, the next run looks again"
    assert find_new_shards(told, "another").shards == 1, "another model is another matter"
    api.objects[f"{WORKFLOWS}/old"]["status"] = {"phase": "Succeeded"}
    assert find_new_shards(told, "blip").shards == 1
