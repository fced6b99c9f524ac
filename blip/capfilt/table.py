"""The table of scores: one row per text, one Parquet file per shard.

The filter called `filter` has the columns `match` and `similarity`; another one, `clip`, has `clip.match` and
`clip.similarity`, of which only those exist that it computes. With decoys each has another column, `decoy.match`: the
score of the same text for another image, null for a synthetic text.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blip.capfilt.pairs import Pair
from blip.config import ConfigError

SCORES_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # the tar's name in its manifest
        ("key", pa.string()),
        ("members", pa.string()),  # JSON: (offset, size) in the tar by extension, of the images and the json
        ("source", pa.string()),  # web or synthetic
        ("number", pa.int16()),  # position of the text among those of its source
        ("text", pa.string()),
        ("match", pa.float32()),  # p(match) of ITM; null without a filter
        ("similarity", pa.float32()),  # cosine similarity of ITC
        ("log_probability", pa.float32()),  # of a synthetic text under the captioner
        ("faults", pa.string()),  # of image and text, separated by spaces
        ("sha256", pa.string()),  # of the encoded image
        ("phash", pa.uint64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("origin", pa.string()),
        ("licence", pa.string()),
        ("url", pa.string()),
    ]
)


FILTER = "filter"
"""The name of the filter whose columns have no prefix."""
DECOY = "decoy"
"""The prefix of the columns of decoys' scores."""


def column(name: str, score: str) -> str:
    """Returns the column of a filter's score."""
    return score if name == FILTER else f"{name}.{score}"


def decoy_column(column: str) -> str:
    """Returns the column with what the filter of a column gives the same texts for another image."""
    return f"{DECOY}.{column}"


def is_score(column: str) -> bool:
    """Returns whether a column has the scores of a filter."""
    return column.rpartition(".")[2] in ("match", "similarity") and not column.startswith(f"{DECOY}.")


def schema_of(columns: Iterable[str]) -> pa.Schema:
    """Returns the schema of a table with the scores of these columns."""
    more = [name for name in columns if name not in SCORES_SCHEMA.names]
    return pa.schema([*SCORES_SCHEMA, *((name, pa.float32()) for name in more)])


def table_of(pairs: Iterable[Pair], shard: str, schema: pa.Schema = SCORES_SCHEMA) -> pa.Table:
    """Returns the rows of a shard's pairs in order, with an image's web texts first."""
    return pa.Table.from_pylist([row for pair in pairs for row in rows_of(pair, shard)], schema=schema)


def rows_of(pair: Pair, shard: str) -> Iterator[dict[str, Any]]:
    """Yields one row for each text of a pair."""
    numbers = {"web": 0, "synthetic": 0}
    facts = pair.facts
    members = json.dumps(pair.members, separators=(",", ":"))
    for text in pair.texts:
        yield {
            "shard": shard,
            "key": pair.key,
            "members": members,
            "source": text.source,
            "number": numbers[text.source],
            "text": text.text,
            "log_probability": text.log_probability,
            "faults": " ".join([*facts.faults, *text.faults]),
            "sha256": facts.sha256,
            "phash": facts.phash,
            "width": facts.width,
            "height": facts.height,
            **{name: pair.carried[name] for name in ("origin", "licence", "url")},
            **text.scores,
        }
        numbers[text.source] += 1


def to_parquet(tables: Sequence[pa.Table], schema: pa.Schema = SCORES_SCHEMA) -> bytes:
    """Returns the concatenated tables as a Parquet file; equal rows give equal bytes."""
    file = BytesIO()
    pq.write_table(pa.concat_tables([schema.empty_table(), *tables]).combine_chunks(), file, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a table from the bytes of a Parquet file, optionally reduced to `columns`.

    Raises ConfigError if it has no such column.
    """
    file = pq.ParquetFile(BytesIO(data))
    missing = [name for name in columns or () if name not in file.schema_arrow.names]
    if missing:
        if missing[0].startswith(f"{DECOY}."):
            raise ConfigError(
                "rule: a precision needs the scores of decoys, and these scores have none: run capfilt with "
                "stream.decoys=true, or set least or share in place of precision"
            )
        scores = filter(is_score, file.schema_arrow.names)
        raise ConfigError(f"the table of scores has no column {missing[0]!r}; its scores are {', '.join(scores)}")
    return file.read(columns=columns)
