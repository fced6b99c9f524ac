"""`python -m pipelines`: compile the pipelines, run them on this machine, or on Kubeflow Pipelines."""

import contextlib
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from kfp import compiler
from kfp.dsl.graph_component import GraphComponent
from kfp_server_api import ApiException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip.launch.kubeflow import KubeflowError
from components.settings import mistakes
from pipelines import cron, lint, local, parameters, step_outputs
from pipelines.cluster import KubeflowPipelines
from pipelines.outcome import print_summary, print_tasks, publish
from pipelines.run_lock import RootError
from pipelines.step_runner import StepError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

DOWNSTREAM = "downstream"
PIPELINES = ("bootstrap", "retrain", "blip2", "blip2_capfilt", DOWNSTREAM)
Name = Annotated[str, typer.Argument(metavar="PIPELINE", help=f"One of: {', '.join(PIPELINES)}.")]
Names = Annotated[
    list[str], typer.Argument(metavar="PIPELINE...", help=f"Some of: {', '.join(PIPELINES)}; by default all.")
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="A parameter, or STAGE.KEY of a configuration.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Run every step, whatever was done before.")]
Again = Annotated[
    list[str], typer.Option("--again", metavar="STEP", help="Run this step again, and what takes its outputs.")
]
Schedule = Annotated[str, typer.Argument(help="The schedule's name.")]


EXIT_MISTAKE = 42
"""Exit code if the same command cannot succeed, as of `blip`."""


def screen(stream: IO[str] | None = None) -> Console:
    """Returns a console on the current standard output, or another stream; later redirections do not affect it."""
    return Console(file=stream or sys.stdout, soft_wrap=True, highlight=False)


def find_pipeline(name: str) -> GraphComponent:
    """Returns the pipeline of that name. Raises ParameterError if there is none."""
    if name not in PIPELINES:
        raise parameters.ParameterError(f"there is no pipeline {name}; choices: {', '.join(PIPELINES)}")
    return getattr(importlib.import_module(f"pipelines.{name}"), name)


Own = Annotated[
    list[str],
    typer.Option("--data", metavar="PLACE", help="Own data, in one or several places; their size chooses a preset."),
]


@app.command("compile")
def compile_(names: Names = [*PIPELINES], out: Path = Path("build")) -> None:  # noqa: B006
    """Write the YAML for Kubeflow Pipelines; it is linted first."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = out / f"{name}.yaml"
        compiler.Compiler().compile(find_pipeline(name), str(path))
        if faults := lint.faults(path.read_text(encoding="utf-8")):
            path.unlink()
            raise SystemExit("\n".join(faults))
        screen().print(path)


@app.command()
def run(
    name: Name = "bootstrap",
    settings: Settings = [],  # noqa: B006
    data: Own = [],  # noqa: B006
    root: Path = Path("runs"),
    no_cache: NoCache = False,
    again: Again = [],  # noqa: B006
) -> None:
    """Run the pipeline on this machine; steps that ran with the same inputs come from the cache."""
    pipeline, console = find_pipeline(name), screen()
    repeated = steps_to_repeat(pipeline, no_cache, again)
    arguments = parameters.values(pipeline, with_data(pipeline, settings, data, time=True))
    if "store" in (pipeline.component_spec.inputs or {}):
        arguments.setdefault("store", str(root.resolve() / "store"))
    parameters.require(pipeline, arguments)
    try:
        outputs = local.run_locally(pipeline, arguments, root.resolve(), console, repeated)
    except StepError as error:
        way_on = (
            "correct the setting; what was done stays done"
            if error.is_mistake
            else "the same command goes on from there"
        )
        console.print(f"[red]✗[/] {escape(str(error))}\n[dim]{way_on}[/]")
        raise SystemExit(EXIT_MISTAKE if error.is_mistake else 1) from None
    except KeyboardInterrupt as error:
        console.print("[red]✗[/] stopped; nothing is left running\n[dim]the same command goes on from there[/]")
        raise SystemExit(128 + getattr(error, "number", signal.SIGINT)) from None
    if "report" not in outputs:
        # a condition excluded the report; the last step says why
        *_, last = outputs.values()
        console.print(escape(last["text"]))
        return
    if name == DOWNSTREAM:
        latest = publish(outputs["report"], root, f"latest-{DOWNSTREAM}")
        print_tasks(latest, console)
    else:
        model = outputs.get("pretrain-again", {}).get("Output", "")
        latest = publish(outputs["report"], root, model=model)
        print_summary(latest)
    for step, made in outputs.items():
        for alarm in step_outputs.alarms(made):
            console.print(f"[yellow]! {step}: {escape(alarm)}[/]")
    console.print(f"report  {latest / 'report.html'}\nMLflow  make mlflow")


def with_data(pipeline: GraphComponent, settings: list[str], data: list[str], time: bool = False) -> list[str]:
    """Returns the settings with the source that own data are, and the preset chosen for them, both of which it prints.

    With `time` it also prints how long the bootstrap's trainings will take on this machine, by a measured step.
    Raises ParameterError if the pipeline takes no source, the settings name another, or the data are not understood.
    """
    if not data:
        return settings
    given = {name: value for name, _, value in (setting.partition("=") for setting in settings)}
    if "source" not in (pipeline.component_spec.inputs or {}):
        raise parameters.ParameterError(f"DATA: the pipeline {pipeline.name} takes no data of one's own; leave it out")
    if "source" in given:
        raise parameters.ParameterError(f"DATA names the data, and so does source={given['source']}: leave one out")
    own = [setting.removeprefix("ingest.") for setting in settings if setting.startswith("ingest.data.")]
    # in a process of its own: the pipelines do not know the library
    command = [sys.executable, "-m", "blip.runs.choice", given.get("preset", ""), *own, "--", *data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["DATA cannot be read"]
        raise parameters.ParameterError(lines[-1])
    choice = json.loads(done.stdout)
    screen().print("\n".join(["data", *map(escape, choice["said"])]))
    if time and pipeline.name == "bootstrap":
        command = [sys.executable, "-m", "blip.runs.estimate", str(choice["images"]), choice["preset"], *settings]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, stderr=subprocess.DEVNULL)
        if told.returncode == 0:  # else the plan names the mistake
            screen().print(escape(told.stdout.rstrip()), soft_wrap=True)
    return [f"source={choice['source']}", f"preset={choice['preset']}", *settings]


def steps_to_repeat(pipeline: GraphComponent, no_cache: bool, again: list[str]) -> list[str]:
    """Returns the steps that run in any case. Raises ParameterError for a step that the pipeline does not have."""
    names = [step.name for step in parameters.steps(pipeline)]
    for name in again:
        if name not in names:
            raise parameters.ParameterError(f"--again {name}: there is no such step; choices: {', '.join(names)}")
    return names if no_cache else again


@app.command()
def submit(
    name: Name = "bootstrap",
    settings: Settings = [],  # noqa: B006
    data: Own = [],  # noqa: B006
    wait: Annotated[float, typer.Option(help="Hours to wait for.")] = 0,
    no_cache: NoCache = False,
    again: Again = [],  # noqa: B006
) -> None:
    """Run the pipeline on the cluster at KFP_HOST; it is published first unless --no-cache or --again is given."""
    pipeline = find_pipeline(name)
    repeated = steps_to_repeat(pipeline, no_cache, again)
    arguments = parameters.values(pipeline, with_data(pipeline, settings, data))
    with cluster() as kubeflow:
        run = kubeflow.submit(pipeline, arguments, repeated)
        screen().print(f"run {run}\n{kubeflow.page(run)}")
        if wait and (state := kubeflow.wait(run, wait * 3600)) != "SUCCEEDED":
            raise SystemExit(f"the run ended as {state}")


@app.command()
def schedule(
    when: Annotated[str, typer.Argument(metavar="CRON", help="Six fields, seconds first: '0 0 3 * * 0'.")],
    name: Name = "retrain",
    settings: Settings = [],  # noqa: B006
    title: Annotated[str, typer.Option("--name", help="The schedule's name; the pipeline's by default.")] = "",
) -> None:
    """Run the pipeline's newest version on a schedule, in place of the schedule of the same name."""
    pipeline, when = find_pipeline(name), cron.check_cron(when)
    arguments = parameters.values(pipeline, settings)
    parameters.require(pipeline, arguments)
    if wrong := mistakes(name, {**parameters.defaults(pipeline), **arguments}):
        raise parameters.ParameterError(wrong)
    with cluster() as kubeflow:
        kubeflow.schedule(pipeline, title or name, when, arguments)
    screen().print(f"{title or name} runs at {when} (UTC, unless the controller says otherwise)")


@app.command("list")
def list_() -> None:
    """Show the schedules."""
    table = Table("schedule", "times", "state", "since", box=None)
    with cluster() as kubeflow:
        for entry in kubeflow.schedules():
            state = str(entry.status or entry.mode)
            table.add_row(entry.display_name, times(entry.trigger), state, f"{entry.created_at:%Y-%m-%d}")
    screen().print(table)


def times(trigger: Any) -> str:
    """When a schedule runs: by cron, or at intervals as the interface's form can make it."""
    if trigger and trigger.cron_schedule:
        return trigger.cron_schedule.cron
    if trigger and trigger.periodic_schedule:
        return f"every {trigger.periodic_schedule.interval_second} s"
    return "never"


@app.command()
def pause(title: Schedule) -> None:
    """Stop a schedule until it is resumed."""
    with cluster() as kubeflow:
        kubeflow.pause(title)


@app.command()
def resume(title: Schedule) -> None:
    """Resume a paused schedule; missed times are not made up for."""
    with cluster() as kubeflow:
        kubeflow.resume(title)


@app.command()
def delete(title: Schedule) -> None:
    """Delete a schedule; its runs stay, and one that is active goes on."""
    with cluster() as kubeflow:
        kubeflow.delete(title)


@contextlib.contextmanager
def cluster() -> Iterator[KubeflowPipelines]:
    """Yields the client of Kubeflow Pipelines, whose API errors become KubeflowError."""
    try:
        yield KubeflowPipelines(PIPELINES)
    except ApiException as error:
        try:
            message = json.loads(error.body or "")["message"]
        except (ValueError, KeyError):
            message = error.body
        raise KubeflowError(f"Kubeflow Pipelines answered {error.status} {error.reason}: {message}") from None


class SignalInterrupt(KeyboardInterrupt):
    """A termination signal, handled as Ctrl-C."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def interrupt(number: int, _: object) -> None:
    raise SignalInterrupt(number)


def main() -> None:
    """Runs the command line. A mistake is one line and exit code 42, a refusal of the cluster one line and code 1.

    A signal ends the running step first.
    """
    from blip.logs import use_utf8

    use_utf8()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        app()
    except (parameters.ParameterError, cron.CronError) as error:
        screen(sys.stderr).print(escape(str(error)))
        raise SystemExit(EXIT_MISTAKE) from None
    except (KubeflowError, RootError) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
