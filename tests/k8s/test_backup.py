"""The backups of the databases, and the retention of what steps leave in the store."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
from rendered import K8S, OVERLAYS, needs_kubectl, of

from blip.storage import open_store


def script(path: str) -> ModuleType:
    """Loads a script that a pod runs from a ConfigMap."""
    spec = spec_from_file_location(path.rpartition("/")[2].removesuffix(".py"), K8S / path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("ending", [".dump", ".sql"])
def test_a_backup_is_kept_and_the_oldest_go(tmp_path, ending):
    backup = script("base/backup/backup.py")
    dump, began = tmp_path / f"database{ending}", datetime(2025, 1, 1, 2, 17, tzinfo=UTC)
    for day in range(20):
        dump.write_text(str(day))
        kept = backup.keep(dump, str(tmp_path / "store"), began + timedelta(days=day))
    assert (len(kept), kept[0], kept[-1]) == (14, f"2025-01-07T021700Z{ending}", f"2025-01-20T021700Z{ending}")
    assert (tmp_path / "store" / kept[-1]).read_text() == "19"
    assert sorted(p.name for p in (tmp_path / "store").iterdir() if p.suffix == ending) == kept
    dump.write_text("")
    with pytest.raises(SystemExit, match="is empty"):
        backup.keep(dump, str(tmp_path / "store"), began + timedelta(days=99))
    assert open_store(tmp_path / "store").list() == kept, "an empty dump takes the place of none"


MYSQL = """#!/bin/sh
echo "$0" | grep -q dump || { printf 'information_schema\\nmlpipeline\\nmysql\\nmetadb\\nmlpipeline_old\\n'; exit 0; }
for word in "$@"; do case $word in --result-file=*) echo "$@" > "$RESULT";; esac; done
"""
"""Stands in for the client of MySQL, which no package index has: lists databases, and writes down how it is to dump."""


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_database_of_kubeflow_pipelines_is_dumped_whole_and_nothing_else(overlay, tmp_path):
    pod = of(overlay, "CronJob")["kubeflow-pipelines-backup"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (dump,), (keep,) = pod["initContainers"], pod["containers"]
    for name in ("mysql", "mysqldump"):
        (tmp_path / name).write_text(MYSQL)
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RESULT": str(tmp_path / "asked")}
    subprocess.run(dump["command"], env=environment, check=True)
    words = (tmp_path / "asked").read_text().split()
    assert words[words.index("--databases") + 1 :] == ["mlpipeline", "metadb"]
    assert {"--user=root", "--single-transaction"} <= set(words)
    assert f"--result-file={keep['command'][2]}" in words
    assert keep["command"][3] == "$(STORE)/backups/kubeflow-pipelines"
    (tmp_path / "mysql").write_text("#!/bin/sh\nexit 1\n")
    assert subprocess.run(dump["command"], env=environment, check=False).returncode, "a server that is away is no dump"


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    return str(tmp_path / "store") if request.param == "folder" else f"{request.getfixturevalue('s3')}/blip"


def test_what_is_older_than_its_days_goes_and_nothing_else(store, monkeypatch):
    retention, kind = script("base/retention/retention.py"), type(open_store(store))
    for key in ("kfp/run/model", "kfp/run/metrics", "kfpx/a", "pretrain/1/step.json", "handover/job/index.json"):
        open_store(store).put(key, b"x")
    assert retention.delete_old(store, ["kfp=1", "handover=1"]) == {"kfp": 0, "handover": 0}
    ages = kind.ages
    monkeypatch.setattr(kind, "ages", lambda self: {key: age + 10 * 86400 for key, age in ages(self).items()})
    assert retention.delete_old(store, ["kfp=11"]) == {"kfp": 0}
    rules = ["kfp=9", "/handover/=9", "nowhere=1"]
    assert retention.delete_old(store, rules) == {"kfp": 2, "handover": 1, "nowhere": 0}
    assert open_store(store).list() == ["kfpx/a", "pretrain/1/step.json"]


@pytest.mark.parametrize("rule", ["kfp", "kfp=", "kfp=0", "kfp=-1", "kfp=soon", "=3", "/=3"])
def test_a_rule_that_is_none_deletes_nothing(rule, tmp_path):
    open_store(tmp_path).put("kfp/a", b"x")
    with pytest.raises(SystemExit, match="is no rule: write FOLDER=DAYS"):
        script("base/retention/retention.py").delete_old(str(tmp_path), ["kfp=1", rule])
    assert open_store(tmp_path).list() == ["kfp/a"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rules_of_each_overlay_are_rules(overlay):
    rules = of(overlay, "ConfigMap")["blip"]["data"]["kept-days"].split()
    assert script("base/retention/retention.py").parse(rules) == {"made": 90, "runs": 90, "kfp": 90, "handover": 7}
