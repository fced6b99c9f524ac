"""The backup of MLflow's database."""

from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location

from rendered import K8S


def test_a_backup_is_kept_and_the_oldest_go(tmp_path):
    spec = spec_from_file_location("backup", K8S / "base/mlflow/backup.py")
    assert spec is not None
    assert spec.loader is not None
    backup = module_from_spec(spec)
    spec.loader.exec_module(backup)
    dump, began = tmp_path / "mlflow.dump", datetime(2025, 1, 1, 2, 17, tzinfo=UTC)
    for day in range(20):
        dump.write_text(str(day))
        kept = backup.keep(dump, str(tmp_path / "store"), began + timedelta(days=day))
    assert (len(kept), kept[0], kept[-1]) == (14, "2025-01-07T021700Z.dump", "2025-01-20T021700Z.dump")
    assert (tmp_path / "store" / kept[-1]).read_text() == "19"
    assert sorted(p.name for p in (tmp_path / "store").iterdir() if p.suffix == ".dump") == kept
