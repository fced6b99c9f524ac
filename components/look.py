"""Look: which web shards there are that no finished run has learnt from."""

from kfp.dsl import Markdown, Output, OutputPath

from components.image import step


@step
def look(
    name: str,
    preset: str,
    overrides: list[str],
    store: str,
    manifest: OutputPath(str),  # pyright: ignore[reportInvalidTypeForm]
    card: Output[Markdown],
) -> int:
    """Counts the new shards; their manifest's URI is what a bootstrap takes as its source."""
    from blip.runs.new_shards import look
    from blip.runs.stages import check, of
    from components.revision import revision

    check(preset, overrides)
    new = look(name, preset, of("ingest", overrides), store, revision())
    for path, text in ((manifest, new.manifest), (card.path, new.text)):
        with open(path, "w") as file:
            file.write(text)
    return new.shards
