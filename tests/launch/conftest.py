from collections.abc import Iterator
from threading import Thread

import pytest
import yaml
from api_server import ApiServer

from blip.launch import kubernetes
from blip.launch.kubernetes import Cluster


@pytest.fixture
def api(tmp_path, monkeypatch) -> Iterator[ApiServer]:
    server = ApiServer()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "work"}}
    clusters = [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]
    known = {"current-context": "c", "contexts": [context], "clusters": clusters, "users": [{"name": "u", "user": {}}]}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(known))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(kubernetes, "INTERVAL", 0.01)
    monkeypatch.setattr(kubernetes, "LOG_TIMEOUT", 0.5)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cluster(api: ApiServer) -> Cluster:
    assert api.server_port
    return Cluster()
