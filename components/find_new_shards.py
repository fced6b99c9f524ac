"""Find new shards: web tars that no finished run of a model was trained on."""

from kfp.dsl import Markdown, Output, OutputPath

from components.image import step


@step
def find_new_shards(
    name: str,
    preset: str,
    overrides: list[str],
    store: str,
    manifest: OutputPath(str),  # pyright: ignore[reportInvalidTypeForm]
    card: Output[Markdown],
) -> int:
    """Returns the number of new shards; the URI of their manifest is the source of the next bootstrap."""
    from blip.runs.new_shards import find_new_shards
    from blip.runs.stages import load_stages
    from components.context import stage_context

    load_stages(preset, overrides)
    new = find_new_shards(stage_context("ingest", preset, overrides, store), name)
    for path, text in ((manifest, new.manifest), (card.path, new.text)):
        with open(path, "w") as file:
            file.write(text)
    return new.shards
