"""What the program prints, for people on terminals, for programs, and for shells that complete words."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?[39][0-7][;m]")
INGEST = [
    "ingest",
    "shapes",
    "--preset=shapes",
    *(f"--set=data.world.{split}={count}" for split, count in {"gold": 6, "web": 8, "test": 4}.items()),
]


def surroundings(**changes: str) -> dict[str, str]:
    """Returns this process's environment without its own wishes for colour."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_COLOR")} | changes


def blip(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the program without a terminal."""
    line = [sys.executable, "-m", "blip.cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=surroundings(**environment))


def on_terminal(*words: object, **environment: str) -> str:
    """Returns what the program shows on a terminal."""
    line = [sys.executable, "-m", "blip.cli", *map(str, words)]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, line, surroundings(TERM="xterm-256color", COLUMNS="100", **environment))
    shown = bytearray()
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the end of a pseudo-terminal
            break
        shown += part
        if not part:
            break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown.decode()
    return shown.decode()


def test_json_is_one_value_and_logs_are_elsewhere(tmp_path: Path):
    done = blip(*INGEST, "--json", "--out", tmp_path / "data", "--store", tmp_path / "store")
    assert json.loads(done.stdout)["splits"]["web"]["samples"] == 8
    assert "ingested" in done.stderr


def test_without_json_a_result_is_text_for_people_and_quiet_leaves_it_alone(tmp_path: Path):
    done = blip("--quiet", *INGEST, "--out", tmp_path / "data", "--store", tmp_path / "store")
    assert "  web:\n    samples: 8\n    shards: 1\n" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "words", [("ingest", "shapes", "--out", "new"), ("--json", "nothing"), ("train",), ("--nothing",)]
)
def test_a_mistake_is_a_line_for_people_and_a_value_for_programs(words: tuple[str, ...]):
    done = blip(*words, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == told["exit_code"] == 42
    assert done.stderr == f"blip: {told['error']}\n"


def test_a_number_that_is_none_is_null_in_json():
    code = "from blip.cli.output import print_json; print_json({'a': [float('nan'), 1.5]})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"a": [None, 1.5]}


def test_colours_are_for_terminals_whose_owner_wants_them(tmp_path: Path):
    words = [*INGEST, "--out", tmp_path / "data", "--store", tmp_path / "store"]
    for seen in (("--help",), words):
        assert COLOUR.search(on_terminal(*seen)), seen
        assert not COLOUR.search(on_terminal(*seen, NO_COLOR="1")), seen
        done = blip(*seen)
        assert "\x1b" not in done.stdout + done.stderr, seen


BASH = """
eval "$(_BLIP_COMPLETE=source_bash {blip})"
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_blip_completion {blip}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("blip writ", "write-tars"),
        ("blip ingest shapes --pres", "--preset"),
        ("blip ingest shapes --preset shap", "shapes"),
        ("blip train blip2_st", "blip2_stage1"),
        ("blip caption --js", "--json"),
    ],
)
def test_bash_completes_verbs_options_presets_and_stages(tmp_path: Path, words: str, expected: str):
    program = tmp_path / "blip"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m blip.cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = BASH.format(blip=program, words=words)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.parametrize(("shell", "asked"), [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})])
def test_other_shells_complete_as_well(shell: str, asked: dict[str, str]):
    script = blip(_BLIP_COMPLETE=f"source_{shell}").stdout
    assert f"_BLIP_COMPLETE=complete_{shell}" in script
    words = "blip ingest shapes --preset shap"
    assert "shapes" in blip(_BLIP_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_ARGS=words, **asked).stdout


def test_help_and_import_are_quick():
    """Counts the time of the processor, since other tests may run beside this one."""
    for limit, line in ((0.5, ["-m", "blip.cli", "--help"]), (0.3, ["-W", "error", "-c", "import blip"])):
        spent = []
        for _ in range(3):
            before = os.times()
            subprocess.run([sys.executable, *line], check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
        assert min(spent) < limit, (line, spent)
