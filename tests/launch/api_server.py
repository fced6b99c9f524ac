"""An API server on the loopback that stores objects and advances jobs as a test scripts it."""

import json
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ApiServer(ThreadingHTTPServer):
    """Objects by path; each read of a job advances it through `play`, whose last conditions stay."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, dict] = {}
        self.pods: list[dict] = []
        self.logs: dict[str, str] = {}
        self.kinds = {
            "/apis/batch/v1/namespaces/work/jobs",
            "/apis/trainer.kubeflow.org/v1alpha1/namespaces/work/trainjobs",
        }
        self.play: deque[list[dict]] = deque()
        self.faults: deque[int] = deque()
        self.requests: list[tuple[str, str]] = []

    def saw(self, method: str) -> int:
        return sum(m == method for m, path in self.requests if "/trainjobs" in path or "/jobs" in path)


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def log_message(self, format: str, *args) -> None:
        pass

    def answer(self, status: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self) -> None:
        api, (path, _, query) = self.server, self.path.partition("?")
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api.requests.append((self.command, path))
        if api.faults and (fault := api.faults.popleft()):
            self.answer(fault, {})
        elif path == "/version/":
            known = dict.fromkeys(
                ("buildDate", "compiler", "gitCommit", "gitTreeState", "gitVersion", "goVersion", "platform"), "x"
            )
            self.answer(200, {**known, "major": "1", "minor": "20+"})
        elif path.endswith("/log"):
            self.answer(200, api.logs[path.split("/")[-2]])
        elif path.endswith("/pods"):
            self.answer(200, {"items": api.pods if "jobset-name" in query or "job-name" in query else []})
        elif self.command == "GET" and path in api.kinds:
            self.answer(200, {"items": [job for name, job in api.objects.items() if name.startswith(f"{path}/")]})
        elif self.command == "POST":
            job = json.loads(data)
            key = f"{path}/{job['metadata']['name']}"
            self.answer(409 if key in api.objects else 201, api.objects.setdefault(key, job))
        elif path not in api.objects:
            self.answer(404, {})
        elif self.command == "DELETE":
            self.answer(200, api.objects.pop(path))
        elif self.command == "PATCH":
            api.objects[path]["metadata"].update(json.loads(data)["metadata"])
            self.answer(200, api.objects[path])
        else:
            job = api.objects[path]
            if api.play and "/workflows/" not in path:
                job.setdefault("status", {})["conditions"] = api.play.popleft()
            self.answer(200, job)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_request  # noqa: N815
