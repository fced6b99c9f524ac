"""A pipeline of three steps that count their runs, for tests of the local runner."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output


@dsl.component(base_image="python-three-steps:1", install_kfp_package=False)
def make(word: str, runs: str, made: Output[Dataset]):
    import pathlib
    import tempfile

    (pathlib.Path(runs) / "make").open("a").write("x")
    tempfile.mkdtemp()
    pathlib.Path(made.path).write_text(word, encoding="utf-8")


@dsl.component(base_image="python-three-steps:1", install_kfp_package=False)
def work(runs: str, trouble: str, made: Input[Dataset], worked: Output[Dataset]):
    import os
    import pathlib
    import subprocess
    import time

    folder = pathlib.Path(runs)
    (folder / "work").open("a").write("x")
    text = pathlib.Path(made.path).read_text(encoding="utf-8")
    match (folder / "trouble").read_text(encoding="utf-8") if (folder / "trouble").exists() else trouble:
        case "raise":
            raise ValueError(f"the word {text} is too long;\nuse a shorter one")
        case "mistake":
            from blip.config import ConfigError

            raise ConfigError("epochs must be more than 0")
        case "kill":
            os.kill(os.getpid(), 9)
        case "exit":
            raise SystemExit(42)
        case "hang":
            child = subprocess.Popen(["sleep", "100"])
            (folder / "pids").write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
            time.sleep(100)
        case "save" | "stubborn" as mood:
            import signal

            def told(*_):
                if mood == "stubborn":
                    (folder / "refused").touch()
                    return
                time.sleep(0.5)
                (folder / "saved").write_text("all of it", encoding="utf-8")
                raise SystemExit(143)

            signal.signal(signal.SIGTERM, told)
            (folder / "pids").write_text(str(os.getpid()), encoding="utf-8")
            for _ in range(1000):
                time.sleep(0.1)
        case "find":
            import components

            (folder / "found").write_text(components.__path__[0], encoding="utf-8")
    from blip.progress import progress

    with progress(20, "working") as bar:
        for _ in range(20):
            time.sleep(0.02 if trouble == "slow" else 0)
            bar.advance(1, {"itc": 1.0})
    pathlib.Path(worked.path).write_text(text * 2, encoding="utf-8")


@dsl.component(base_image="python-three-steps:1", install_kfp_package=False)
def report(runs: str, worked: Input[Dataset], page: Output[HTML], metrics: Output[Metrics]):
    import pathlib

    (pathlib.Path(runs) / "report").open("a").write("x")
    for path in (page.path, metrics.path):
        pathlib.Path(path).write_text(pathlib.Path(worked.path).read_text(encoding="utf-8"))


@dsl.pipeline(name="three-steps")
def three_steps(runs: str, word: str = "a", trouble: str = ""):
    """Does little, in three steps.

    1. prepare: write a word
    2. double: write it twice
    3. report: show it
    """
    made = make(word=word, runs=runs).set_display_name("prepare").set_retry(3, "60s")
    worked = work(runs=runs, trouble=trouble, made=made.outputs["made"]).set_display_name("double").set_retry(3, "60s")
    report(runs=runs, worked=worked.outputs["worked"]).set_display_name("report").set_retry(3, "60s")
