"""A pipeline with a loop of two steps, for tests of the local runner."""

from kfp import dsl


@dsl.component(base_image="python-looped-steps:1", install_kfp_package=False)
def note(word: str, runs: str) -> str:
    import os
    import pathlib
    import time

    if word == "trouble":
        raise ValueError("this word is too long")
    if word == "slow":
        (pathlib.Path(runs) / "pids").write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(100)
    told = [word, os.environ["BLIP_GROUP"], os.environ["MLFLOW_TRACKING_URI"]]
    with (pathlib.Path(runs) / "notes").open("a") as file:
        file.write(" ".join(told) + "\n")
    return word * 2


@dsl.component(base_image="python-looped-steps:1", install_kfp_package=False)
def gather(words: list[str], runs: str) -> str:
    import pathlib

    (pathlib.Path(runs) / "gathered").write_text(" ".join(words), encoding="utf-8")
    return words[0]


@dsl.pipeline(name="looped-steps")
def looped_steps(runs: str, words: list[str]):
    """Notes words.

    1. note: note one of the words
    2. gather: put all of them together
    """
    with dsl.ParallelFor(words, parallelism=1) as word:
        noted = note(word=word, runs=runs).set_display_name("note")
    gather(words=dsl.Collected(noted.output), runs=runs).set_display_name("gather")
