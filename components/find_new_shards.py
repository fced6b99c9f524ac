"""Find new shards: web tars that no finished run of a model was trained on."""

from kfp.dsl import HTML, Output, OutputPath

from components.image import step


@step
def find_new_shards(
    name: str,
    preset: str,
    overrides: list[str],
    store: str,
    manifest: OutputPath(str),  # pyright: ignore[reportInvalidTypeForm]
    text: OutputPath(str),  # pyright: ignore[reportInvalidTypeForm]
    new_shards_page: Output[HTML],
) -> int:
    """Returns the number of new shards; the URI of their manifest is the source of the next bootstrap."""
    from blip.report.step_page import StepPage
    from blip.runs.new_shards import find_new_shards
    from blip.runs.stages import load_stages, without_placement
    from blip.storage import write_file
    from components.context import at_work, write_page

    settings = without_placement(overrides)
    load_stages(preset, settings)
    with at_work("ingest", preset, settings, store) as step:
        new = find_new_shards(step.run, name)
    write_page(StepPage("New shards", new.text, items=new.listed).html(), new_shards_page)
    for path, found in ((manifest, new.manifest), (text, new.text)):
        write_file(path, found)
    return new.shards
