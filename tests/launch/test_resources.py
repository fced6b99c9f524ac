"""A placement by its name, and what the steps of a run find of it in the store."""

import pytest

from blip.config import ConfigError
from blip.launch.resources import Resources, placements

OURS = """
a100: {gpus: 2, cpu: 24, memory: 170Gi, pool: {cloud: a2}}
a100-spot:
  gpus: 2
  pool: {cloud: a2, spot: "true"}
  tolerations: [{key: spot, operator: Exists}]
"""


def test_the_packaged_placements_are_sound_and_one_needs_no_gpu():
    found = {name: Resources.of(name).placement for name in placements()}
    assert {"cpu", "a100", "h100"} <= found.keys()
    assert (found["cpu"].gpus, found["cpu"].pool, found["cpu"].tolerations) == (0, {}, ())
    for name, placed in found.items():
        assert (placed.gpus > 0) == bool(placed.pool) == bool(placed.tolerations) == (name != "cpu")
        assert not placed.in_jobs


def test_a_cluster_adds_its_own_and_replaces_packaged_ones(monkeypatch):
    monkeypatch.setenv("BLIP_PLACEMENTS", OURS)
    assert Resources.of("a100").placement.pool == {"cloud": "a2"}
    assert Resources.of("a100-spot").placement.tolerations == ({"key": "spot", "operator": "Exists"},)
    assert Resources.of("h100").placement.gpus == 1


def test_settings_change_what_a_name_stands_for(monkeypatch):
    monkeypatch.setenv("BLIP_QUEUE", "a100")
    found = Resources.of("a100", ["gpus=8", "memory=900Gi", "nodes=2", "pool={zone: b}"]).placement
    assert (found.gpus, found.memory, found.nodes, found.pool, found.queue) == (8, "900Gi", 2, {"zone": "b"}, "a100")
    assert Resources.of("a100", ['queue=""']).placement.queue == ""


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("a10", [], "placement 'a10' is not known; choices: a100, a100x8, cpu, h100, h100x8; .*ConfigMap `blip`"),
        ("a100", ["workres=2"], "placement a100: unknown key workres; did you mean workers"),
        ("a100", ["memory=16GB"], "placement a100: memory: .*16GB"),
        ("a100", ["nodes=0"], "placement a100: nodes: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_placement_is_one_line(name, changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        Resources.of(name, changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ours", "said"),
    [("a100: [", "BLIP_PLACEMENTS is not YAML"), ("a100: 3", "BLIP_PLACEMENTS: placement a100 must be a mapping")],
)
def test_a_wrong_list_of_the_cluster_is_one_line(monkeypatch, ours, said):
    monkeypatch.setenv("BLIP_PLACEMENTS", ours)
    with pytest.raises(ConfigError, match=said):
        Resources.of("cpu")


@pytest.mark.parametrize("hours", [-1.0, float("nan"), float("inf")])
def test_gpu_hours_that_bound_nothing_are_refused(hours):
    with pytest.raises(ConfigError, match="resources: max_gpu_hours"):
        Resources.of("cpu", [], hours)


def test_what_is_saved_is_what_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("BLIP_GROUP", "run-7")
    made = Resources.of("a100x8", ["nodes=2", "tolerations=[{operator: Exists}]"], 600.0)
    made.save(str(tmp_path))
    assert Resources.load(str(tmp_path)) == made
