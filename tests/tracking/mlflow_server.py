"""An MLflow server for tests: `python mlflow_server.py FOLDER PORT`.

Files in FOLDER inject faults: `away` holds the status of every answer, `password` the credentials it requires; while
`hung` exists, no request but that for its health is answered.
"""

import base64
import logging
import os
import sys
import time
from pathlib import Path


def main(folder: Path, port: int) -> None:
    store = f"sqlite:///{folder}/mlflow.db"
    settings = {
        "FILE_STORE": store,
        "REGISTRY_STORE": store,
        "ARTIFACT_ROOT": "mlflow-artifacts:/",
        "SERVE_ARTIFACTS": "true",
    }
    settings |= {"ARTIFACT_DESTINATION": str(folder / "artifacts")}
    os.environ.update({f"_MLFLOW_SERVER_{name}": value for name, value in settings.items()})
    from mlflow.server import app
    from werkzeug.serving import make_server

    def faulty(environ, start_response):
        away, password = folder / "away", folder / "password"
        while (folder / "hung").exists() and environ["PATH_INFO"] != "/health":
            time.sleep(0.05)
        if away.exists():
            start_response(f"{away.read_text(encoding='utf-8')} Fault", [("Content-Type", "text/html")])
            return [b"<html>\n<body>upstream is not there</body>\n</html>"]
        wanted = f"Basic {base64.b64encode(password.read_bytes()).decode()}" if password.exists() else None
        if wanted and environ.get("HTTP_AUTHORIZATION") != wanted:
            start_response("401 Unauthorized", [])
            return [b"who are you?"]
        return app(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", port, faulty, threaded=True)
    (folder / "port").write_text(str(server.server_port), encoding="utf-8")
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
