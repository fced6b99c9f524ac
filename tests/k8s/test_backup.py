"""The backups of the databases, and the retention of what steps leave in the store."""

import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
from rendered import K8S, OVERLAYS, needs_kubectl, of

from blip.runs.config import RunConfig
from blip.runs.outputs import HOME
from blip.runs.stages import config_classes
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
    stay = ["kfpx/a", "learnt/blip/1.json", "other/kfp/a", "web/kfp.tar"]
    for key in (*stay, "kfp/run/model", "kfp/run/metrics", "handover/job/index.json", "first/kfp/a", "first/b/kfp/a"):
        open_store(store).put(key, b"x")

    def deleted(stores: str, rules: str) -> dict[str, int]:
        found = retention.delete_old(store, stores, rules)
        return {uri.removeprefix(open_store(store).uri): count for uri, count in found.items()}

    assert deleted(".", "kfp=1 handover=1") == {"/kfp": 0, "/handover": 0}
    ages = kind.ages

    def ten_days_older(self, prefix: str) -> dict[str, float]:
        return {key: age + 10 * 86400 for key, age in ages(self, prefix).items()}

    monkeypatch.setattr(kind, "ages", ten_days_older)
    assert deleted(". first", "kfp=11") == {"/kfp": 0, "/first/kfp": 0}
    assert deleted(". first", "kfp=9 /handover/=9") == {
        "/kfp": 2,
        "/handover": 1,
        "/first/kfp": 1,
        "/first/handover": 0,
    }
    assert deleted("first/b nowhere", "kfp=9") == {"/first/b/kfp": 1, "/nowhere/kfp": 0}
    assert deleted("other", "k*=9") == {"/other/k*": 1}
    assert open_store(store).list() == [key for key in stay if not key.startswith("other/")]


@pytest.mark.parametrize("rule", ["kfp", "kfp=", "kfp=0", "kfp=-1", "kfp=soon", "=3", "/=3", "*=3", "/*=3", "k*p=3"])
def test_a_rule_that_is_none_deletes_nothing(rule, tmp_path):
    open_store(tmp_path).put("kfp/a", b"x")
    with pytest.raises(SystemExit, match="is no rule: write FOLDER=DAYS"):
        script("base/retention/retention.py").delete_old(str(tmp_path), ".", f"kfp=1 {rule}")
    assert open_store(tmp_path).list() == ["kfp/a"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rules_of_each_overlay_rule_what_grows_and_not_what_is_kept_for_good(overlay):
    settings = of(overlay, "ConfigMap")["blip"]["data"]
    rules = script("base/retention/retention.py").days_by_folder(settings["kept-days"])
    trainings = {stage for stage, cls in config_classes().items() if cls is RunConfig}
    grows = {"kfp", HOME, "handover", "models", *trainings}
    assert {name for name in grows if not any(fnmatchcase(name, rule) for rule in rules)} == set()
    for kept in ("learnt", "new", "retraining", "mlflow", "backups", "weights", "gold", "web", "test", "coco"):
        assert not any(fnmatchcase(kept, rule) for rule in rules), kept
    (container,) = of(overlay, "CronJob")["blip-retention"]["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    names = {variable["name"]: variable["valueFrom"]["configMapKeyRef"] for variable in container["env"][:3]}
    assert container["command"][2:] == [f"$({name})" for name in names]
    assert [key["key"] for key in names.values()] == ["store", "kept-in", "kept-days"]


@needs_kubectl
def test_the_stores_of_the_pages_runs_have_retention():
    stores = set(re.findall(r"store=s3://blip/(\w+)", (K8S / "README.md").read_text()))
    assert stores
    assert stores <= set(of("gke", "ConfigMap")["blip"]["data"]["kept-in"].split())
