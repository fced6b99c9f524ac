"""A pipeline with the real steps `find-new-shards` and `ingest`; without new shards it ends after the first."""

from kfp import dsl
from kfp.dsl import HTML, Metrics, Output

from components.find_new_shards import find_new_shards
from components.ingest import ingest


@dsl.component(base_image="python-new-words:1", install_kfp_package=False)
def report(store: str, trouble: str, data: str, page: Output[HTML], metrics: Output[Metrics]):
    import pathlib

    from blip.runs.new_shards import mark_trained
    from blip.runs.outputs import StepOutput

    if pathlib.Path(trouble).exists():
        raise ValueError("no paper")
    with StepOutput.load(data).folder() as folder:
        mark_trained("blip", store, folder)
        for path in (page.path, metrics.path):
            pathlib.Path(path).write_text((folder / "web.json").read_text(encoding="utf-8"), encoding="utf-8")


@dsl.pipeline(name="learn")
def learn(source: str, overrides: list[str], store: str, trouble: str):
    made = ingest(source=source, preset="shapes", settings=overrides, store=store).set_display_name("read")
    report(store=store, trouble=trouble, data=made.outputs["Output"]).set_display_name("report").set_retry(3, "60s")


@dsl.pipeline(name="new-words")
def new_words(store: str, overrides: list[str], trouble: str):
    """Learns new words.

    1. find-new-shards: find new ones
    2. read: read them
    3. report: show them
    """
    found = find_new_shards(name="blip", preset="shapes", overrides=overrides, store=store)
    found.set_display_name("find-new-shards").set_retry(3, "60s").set_caching_options(False)
    with dsl.If(found.outputs["Output"] > 0, name="new words"):
        learn(source=found.outputs["manifest"], overrides=overrides, store=store, trouble=trouble)
