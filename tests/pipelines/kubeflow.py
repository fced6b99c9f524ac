"""An in-memory server of the part of Kubeflow Pipelines' REST API for publishing, running and scheduling.

Its answers are those of a real server of version 2.17.0 (answers.json), with the names, ids and times of the test.
"""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import yaml

Item = dict[str, Any]
ANSWERS: dict[str, Item] = json.loads((Path(__file__).parent / "answers.json").read_text(encoding="utf-8"))


class Kubeflow(ThreadingHTTPServer):
    """The server's objects, and its requests: method, path, and the Authorization header."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ids = count(1)
        self.pipelines: list[Item] = []
        self.versions: list[Item] = []
        self.experiments: list[Item] = []
        self.runs: list[Item] = []
        self.recurring: list[Item] = []
        self.uploaded: list[list[Item]] = []
        self.orphaned: list[str] = []
        self.calls: list[str] = []
        self.config_maps: dict[str, Item] = {}
        self.authorizations: set[str] = set()
        self.token = ""

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def new(self, kind: str, **values: Any) -> Item:
        number = next(self.ids)
        named = {"name": values["display_name"]} if "name" in ANSWERS[kind] else {}
        return {
            **ANSWERS[kind],
            **named,
            f"{kind}_id": f"{kind}-{number}",
            "created_at": f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z",
            **values,
        }

    def newest(self, pipeline: str) -> Item:
        return [version for version in self.versions if version["pipeline_id"] == pipeline][-1]


class Handler(BaseHTTPRequestHandler):
    server: Kubeflow
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # clients with a kubeconfig come through the API server of Kubernetes
        self.server.calls.append(f"{self.command} {url.path}")
        path = re.sub(r"^(/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy)?/+apis/v2beta1", "", url.path)
        if path != "/healthz":
            self.server.authorizations.add(self.headers.get("Authorization", ""))
            if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
                return self.answer({"message": "who are you?"}, 401)
        for method, pattern, route in self.ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                reply = route(self, body, query, *found.groups())
                return self.answer(reply, 404 if reply is ANSWERS["not_found"] else 200)
        self.answer({"message": f"no route {self.command} {path}"}, 404)

    do_GET = do_POST = do_DELETE = handle_one  # noqa: N815

    def answer(self, value: Item, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def matching(self, items: list[Item], query: dict[str, str]) -> list[Item]:
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            items = [item for item in items if item[predicate["key"]] == predicate["stringValue"]]
        return items

    def page(self, name: str, items: list[Item], query: dict[str, str]) -> Item:
        first = int(query.get("page_token") or 0)
        end = first + int(query.get("page_size") or 20)
        token = {"next_page_token": str(end)} if end < len(items) else {}
        return {name: items[first:end], "total_size": len(items), **token} if items else ANSWERS["nothing_found"]

    def make_pipeline(self, body: bytes, _: Any) -> Item:
        self.server.pipelines.append(self.server.new("pipeline", **json.loads(body)))
        return self.server.pipelines[-1]

    def upload_version(self, body: bytes, query: dict[str, str]) -> Item:
        boundary = body.partition(b"\r\n")[0]
        self.server.uploaded.append(list(yaml.safe_load_all(body.split(boundary)[1].partition(b"\r\n\r\n")[2])))
        version = self.server.new("pipeline_version", display_name=query["name"], pipeline_id=query["pipelineid"])
        self.server.versions.append(version)
        return version

    def make_experiment(self, body: bytes, _: Any) -> Item:
        self.server.experiments.append(self.server.new("experiment", **json.loads(body)))
        return self.server.experiments[-1]

    def make_run(self, body: bytes, _: Any) -> Item:
        self.server.runs.append(self.server.new("run", **json.loads(body), state="SUCCEEDED"))
        return self.server.runs[-1]

    def make_recurring(self, body: bytes, _: Any) -> Item:
        self.server.recurring.append(self.server.new("recurring_run", **json.loads(body), status="ENABLED"))
        return self.server.recurring[-1]

    def switch(self, _: Any, __: Any, identity: str, verb: str) -> Item:
        (found,) = [one for one in self.server.recurring if one["recurring_run_id"] == identity]
        found["status"] = f"{verb.upper()}D"
        return {}

    def delete(self, _: Any, query: dict[str, str], identity: str) -> Item:
        if query.get("propagation_policy") == "ORPHAN":
            self.server.orphaned.append(identity)
        else:
            # a run is owned by its schedule, and Kubernetes deletes what is owned
            self.server.runs = [run for run in self.server.runs if run.get("recurring_run_id") != identity]
        self.server.recurring = [one for one in self.server.recurring if one["recurring_run_id"] != identity]
        return {}

    def list_versions(self, _: Any, query: dict[str, str], pipeline: str) -> Item:
        found = [version for version in self.server.versions if version["pipeline_id"] == pipeline][::-1]
        return self.page("pipeline_versions", found, query)

    def find_run(self, _: Any, __: Any, identity: str) -> Item:
        return next((run for run in self.server.runs if run["run_id"] == identity), ANSWERS["not_found"])

    ROUTES: ClassVar = [
        ("GET", "/healthz", lambda *_: ANSWERS["health"]),
        (
            "GET",
            "/pipelines",
            lambda self, _, query: self.page("pipelines", self.matching(self.server.pipelines, query), query),
        ),
        ("GET", "/pipelines/([^/]+)/versions", list_versions),
        ("POST", "/pipelines", make_pipeline),
        ("POST", "/pipelines/upload_version", upload_version),
        (
            "GET",
            "/experiments",
            lambda self, _, query: self.page("experiments", self.matching(self.server.experiments, query), query),
        ),
        ("POST", "/experiments", make_experiment),
        ("POST", "/runs", make_run),
        ("GET", "/runs/([^/]+)", find_run),
        (
            "GET",
            "/recurringruns",
            lambda self, _, query: self.page("recurringRuns", self.matching(self.server.recurring, query), query),
        ),
        ("GET", "/api/v1/namespaces/kubeflow/configmaps/(.+)", lambda self, _, __, name: self.server.config_maps[name]),
        ("POST", "/recurringruns", make_recurring),
        ("POST", "/recurringruns/([^/]+):(enable|disable)", switch),
        ("DELETE", "/recurringruns/([^/]+)", delete),
    ]
