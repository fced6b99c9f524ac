"""`python -m pipelines`: the pipelines as files, on this machine, and on a cluster of Kubeflow Pipelines."""

import contextlib
import importlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer
from kfp import compiler
from kfp.dsl.graph_component import GraphComponent
from kfp_server_api import ApiException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import cron, lint, local, parameters
from pipelines.cluster import Cluster, ClusterError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

NAMES = ("bootstrap", "retrain")
Name = Annotated[str, typer.Argument(metavar="PIPELINE", help=f"One of: {', '.join(NAMES)}.")]
Names = Annotated[
    list[str], typer.Argument(metavar="PIPELINE...", help=f"Some of: {', '.join(NAMES)}; by default all.")
]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="A parameter, or STAGE.KEY of a configuration.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Run every step, whatever was done before.")]
Again = Annotated[
    list[str], typer.Option("--again", metavar="STEP", help="Run this step again, and what takes its outputs.")
]
Schedule = Annotated[str, typer.Argument(help="The schedule's name.")]


MISTAKE = 42
"""Exit code where the same command cannot succeed, as the library's command line has it."""


def screen(stream: IO[str] | None = None) -> Console:
    """Standard output, or another stream, as it is now, whatever kfp is made to write elsewhere later."""
    return Console(file=stream or sys.stdout, soft_wrap=True, highlight=False)


def find(name: str) -> GraphComponent:
    """The pipeline that the module of that name defines."""
    if name not in NAMES:
        raise parameters.ParameterError(f"there is no pipeline {name}; choices: {', '.join(NAMES)}")
    return getattr(importlib.import_module(f"pipelines.{name}"), name)


@app.command("compile")
def compile_(names: Names = [*NAMES], out: Path = Path("build")) -> None:  # noqa: B006
    """Write the YAML that Kubeflow Pipelines takes, once the lint finds nothing in it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = out / f"{name}.yaml"
        compiler.Compiler().compile(find(name), str(path))
        if faults := lint.faults(path.read_text()):
            path.unlink()
            raise SystemExit("\n".join(faults))
        screen().print(path)


@app.command()
def run(
    name: Name = "bootstrap",
    settings: Settings = [],  # noqa: B006
    root: Path = Path("runs"),
    no_cache: NoCache = False,
    again: Again = [],  # noqa: B006
) -> None:
    """Run the pipeline on this machine; what ran before with the same inputs comes from the cache."""
    pipeline, console = find(name), screen()
    repeated = to_repeat(pipeline, no_cache, again)
    here = {"store": str(root.resolve() / "store")} if "store" in (pipeline.component_spec.inputs or {}) else {}
    arguments = {**here, **parameters.values(pipeline, settings)}
    try:
        outputs = local.run(pipeline, arguments, root.resolve(), console, repeated)
    except local.StepError as error:
        way_on = (
            "correct the setting; what was done stays done"
            if error.is_mistake
            else "the same command goes on from there"
        )
        console.print(f"[red]✗[/] {escape(str(error))}\n[dim]{way_on}[/]")
        raise SystemExit(MISTAKE if error.is_mistake else 1) from None
    except KeyboardInterrupt as error:
        console.print("[red]✗[/] stopped; nothing is left running\n[dim]the same command goes on from there[/]")
        raise SystemExit(128 + getattr(error, "number", signal.SIGINT)) from None
    if "report" not in outputs:
        # a condition left it out, and the last step says why
        *_, last = outputs.values()
        console.print(escape(local.artifacts(last)["card"].read_text()))
        return
    latest = publish(outputs["report"], root)
    show(latest)
    for step, made in outputs.items():
        for alarm in local.alarms(made):
            console.print(f"[yellow]! {step}: {escape(alarm)}[/]")
    console.print(f"report  {latest / 'report.html'}\nMLflow  make mlflow")


def to_repeat(pipeline: GraphComponent, no_cache: bool, again: list[str]) -> list[str]:
    """The steps that run whatever was done before. Raises ParameterError for one that the pipeline does not have."""
    names = [step.name for step in parameters.steps(pipeline)]
    for unknown in (name for name in again if name not in names):
        raise parameters.ParameterError(f"--again {unknown}: there is no such step; choices: {', '.join(names)}")
    return names if no_cache else again


def show(latest: Path) -> None:
    """Prints the table of before and after; the library that knows it stays out of this process."""
    subprocess.run([sys.executable, "-m", "blip.cli", "summary", latest / "summary.json"], check=True)


def publish(report: local.Outputs, root: Path) -> Path:
    """Puts the report where people look for it, `latest` among the runs."""
    found = local.artifacts(report)
    folder = found["page"].parent.parent
    shutil.copy2(found["page"], folder / "report.html")
    shutil.copy2(found["summary"], folder / "summary.json")
    latest, new = root / "latest", root / ".latest"
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    new.replace(latest)
    return latest


@app.command()
def submit(
    name: Name = "bootstrap",
    settings: Settings = [],  # noqa: B006
    wait: Annotated[float, typer.Option(help="Hours to wait for.")] = 0,
    no_cache: NoCache = False,
    again: Again = [],  # noqa: B006
) -> None:
    """Run the pipeline on the cluster at KFP_HOST, as its newest version; with --no-cache or --again as it is here, unpublished."""
    pipeline = find(name)
    repeated = to_repeat(pipeline, no_cache, again)
    arguments = parameters.values(pipeline, settings)
    with cluster() as kubeflow:
        run = kubeflow.submit(pipeline, arguments, repeated)
        screen().print(f"run {run}\n{kubeflow.host}/#/runs/details/{run}")
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
    pipeline, when = find(name), cron.check(when)
    arguments = parameters.values(pipeline, settings)
    with cluster() as kubeflow:
        kubeflow.schedule(pipeline, title or name, when, arguments)
    screen().print(f"{title or name} runs at {when} (UTC, unless the controller says otherwise)")


@app.command("list")
def list_() -> None:
    """Show the schedules."""
    table = Table("schedule", "cron", "state", "since", box=None)
    with cluster() as kubeflow:
        for one in kubeflow.schedules():
            table.add_row(
                one.display_name,
                one.trigger.cron_schedule.cron,
                str(one.status or one.mode),
                f"{one.created_at:%Y-%m-%d}",
            )
    screen().print(table)


@app.command()
def pause(title: Schedule) -> None:
    """Stop a schedule until it is resumed."""
    with cluster() as kubeflow:
        kubeflow.pause(title)


@app.command()
def resume(title: Schedule) -> None:
    """Let a paused schedule run again; times that went by are not made up for."""
    with cluster() as kubeflow:
        kubeflow.resume(title)


@app.command()
def delete(title: Schedule) -> None:
    """Delete a schedule; its runs stay."""
    with cluster() as kubeflow:
        kubeflow.delete(title)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Kubeflow Pipelines; what it refuses becomes a ClusterError."""
    try:
        yield Cluster()
    except ApiException as error:
        try:
            said = json.loads(error.body or "")["message"]
        except (ValueError, KeyError):
            said = error.body
        raise ClusterError(f"Kubeflow Pipelines answered {error.status} {error.reason}: {said}") from None


class Stopped(KeyboardInterrupt):
    """A signal that asks to end, treated as Ctrl-C is."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def interrupt(number: int, _: object) -> None:
    raise Stopped(number)


def main() -> None:
    """The command line: a mistake is one line and exit code 42, a cluster's refusal has 1; a signal ends the running step first."""
    from blip.logs import use_utf8

    use_utf8()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        app()
    except (parameters.ParameterError, cron.CronError) as error:
        screen(sys.stderr).print(escape(str(error)))
        raise SystemExit(MISTAKE) from None
    except (ClusterError, local.RootError) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
