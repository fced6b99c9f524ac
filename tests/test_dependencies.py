"""Using a model needs the base dependencies and no package of an extra."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny_models import both, model_folder, picture

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = set({hidden!r})

class Visible:
    \"\"\"Finds what the finders of Python find, but for what is hidden.\"\"\"

    finders = [*sys.meta_path]
    find_distributions = staticmethod(PathFinder.find_distributions)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec), None)

sys.meta_path[:] = [Visible()]
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_by(requirements: list[str]) -> set[str]:
    """Returns the distributions that these requirements install, with all that they need in turn."""
    found: set[str] = set()
    pending = [Requirement(line) for line in requirements]
    while pending:
        requirement = pending.pop()
        if canonical(requirement.name) in found:
            continue
        found.add(canonical(requirement.name))
        for line in requires(requirement.name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ["", *requirement.extras]
            ):
                pending.append(needed)
    return found


def modules_of_extras() -> list[str]:
    """Returns the top-level modules of this environment that no requirement of the base brings."""
    base = installed_by(PROJECT["dependencies"]) | {"blip-bootstrap"}
    return sorted(
        module for module, owners in packages_distributions().items() if not base.intersection(map(canonical, owners))
    )


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code where only the modules of the base can be imported."""
    script = HIDE.format(hidden=modules_of_extras()) + code
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


def test_the_extras_are_what_is_hidden():
    hidden = modules_of_extras()
    extras = {
        "kfp",
        "kubernetes",
        "mlflow",
        "deepspeed",
        "boto3",
        "webdataset",
        "pycocoevalcap",
        "pyarrow",
        "transformers",
    }
    assert extras <= {*hidden}
    assert not {"torch", "timm", "PIL", "pydantic", "typer", "blip"}.intersection(hidden)


def test_a_model_captions_and_matches_with_the_base_alone(tmp_path: Path):
    folder = model_folder(both(), tmp_path / "model")
    (tmp_path / "image.png").write_bytes(picture(0))
    code = """
import json
import blip
model = blip.load(sys.argv[1], device="cpu")
print(json.dumps(model.caption(sys.argv[2])))
print(model.match(sys.argv[2], "a red circle"))
"""
    found = run(code, folder, str(tmp_path / "image.png"))
    assert found.returncode == 0, found.stderr
    captions, matches = found.stdout.splitlines()
    assert isinstance(json.loads(captions)[0], str)
    assert matches.startswith("[Match(probability=0.")


def test_the_command_line_names_the_extra_that_a_verb_needs(tmp_path: Path):
    model = model_folder(both(), tmp_path / "model")
    code = "from blip.cli import app\nsys.argv = ['blip', *sys.argv[1:]]\napp()\n"
    assert run(code, "--help").returncode == 0
    found = run(code, "export", "--model", model, "--out", str(tmp_path / "out"), "--format", "hf")
    assert found.returncode == 42
    assert found.stderr.splitlines() == ["blip: export needs transformers: pip install 'blip-bootstrap[train]'"]


def test_a_bucket_without_its_client_is_one_line():
    code = """
from blip.storage import StoreError, open_store
try:
    open_store("s3://bucket/folder")
except StoreError as error:
    print(error)
"""
    assert run(code).stdout == "store 's3://bucket/folder' needs boto3: pip install 'blip-bootstrap[train]'\n"


def test_importing_the_package_imports_no_torch():
    code = "import sys, blip; assert 'load' in dir(blip); print(sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("extra", ["train", "cluster", "pipelines"])
def test_everything_that_an_extra_names_is_pinned(extra: str):
    pins = {
        canonical(line.partition("==")[0])
        for line in (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    }
    assert {canonical(name) for name in PROJECT["optional-dependencies"][extra]} <= pins
