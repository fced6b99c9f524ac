"""Selection against values worked out by hand."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from blip.capfilt.cutoffs import Wrong, count_precise, with_values
from blip.capfilt.duplicates import near_duplicates
from blip.capfilt.rules import (
    ALL_FAULTS,
    OF_CAPTIONER,
    REASONS,
    Best,
    Combined,
    Limit,
    Matched,
    SelectionConfig,
    SumLimit,
    Thresholds,
    Weighted,
)
from blip.capfilt.selection import Selection, select_texts
from blip.capfilt.table import SCORES_SCHEMA, from_parquet, schema_of, to_parquet
from blip.config import ConfigError, validate


def row(image: str, source: str, match: float | None = None, number: int = 0, **cells) -> dict:
    given = {
        "key": image,
        "source": source,
        "number": number,
        "text": f"{source} of {image}",
        "match": match,
        "similarity": match,
    }
    # hashes of different images are far apart: the bits of different powers of 3
    other = {
        "faults": "",
        "sha256": image,
        "phash": pow(3, 20 + ord(image[0]), 1 << 64),
        "width": 32,
        "height": 32,
        "origin": "",
    }
    return {**given, "log_probability": None, **other, "licence": "", "url": "", **cells}


def chosen(rows: list[dict], scored: bool = True, **cfg) -> Selection:
    tables = [pa.Table.from_pylist(rows, schema=schema_of(["clip.similarity", "decoy.match", "decoy.similarity"]))]
    return select_texts(tables, with_values(SelectionConfig(**cfg), lambda _: tables), scored)


def reasons(selection: Selection) -> list[str]:
    return [REASONS[i] for i in selection.reasons]


def test_texts_are_kept_from_the_threshold_of_their_source_on():
    rows = [row("a", "web", 0.5), row("a", "synthetic", 0.7), row("b", "web", 0.49999), row("b", "synthetic", 0.69999)]
    found = chosen(rows, rule=Matched(web=0.5, synthetic=0.7))
    assert reasons(found) == ["", "", "unmatched", "unmatched"]
    assert found.counts["web"] == found.counts["synthetic"] == found.counts["images"] == 2
    assert found.counts["web.kept"] == found.counts["synthetic.kept"] == found.counts["images.kept"] == 1
    assert found.counts["web.dropped.unmatched"] == 1


def test_thresholds_by_collection():
    rows = [row("a", "web", 0.6, origin="cc3m"), row("b", "web", 0.6, origin="laion"), row("c", "web", 0.6)]
    assert reasons(chosen(rows, rule=Matched(origins={"laion": Thresholds(web=0.8)}))) == ["", "unmatched", ""]


def test_scores_of_several_filters_combine():
    rows = [
        row("a", "web", 0.9, **{"clip.similarity": 0.3}),
        row("b", "web", 0.9, **{"clip.similarity": 0.1}),
        row("c", "web", 0.2, **{"clip.similarity": 0.3}),
        row("d", "web", 0.2, **{"clip.similarity": 0.1}),
        row("e", "web", 0.9),
        row("a", "synthetic", 0.4, **{"clip.similarity": -0.5}),
    ]
    limits = {
        "web": (Limit(least=0.5), Limit(score="clip.similarity", least=0.25)),
        "synthetic": (Limit(score="match", least=0.4),),
    }
    dropped = reasons(chosen(rows, rule=Combined(**limits)))
    assert dropped == ["", "unmatched", "unmatched", "unmatched", "unscored", ""]
    assert reasons(chosen(rows, rule=Combined(need="any", **limits))) == ["", "", "", "unmatched", "", ""]


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.3, 3), (0.35, 3), (1.0, 10)])
def test_a_share_keeps_the_best_texts_of_its_source(share: float, kept: int):
    rows = [row(chr(97 + i), "web", i / 10) for i in range(10)]
    rows += [row("x", "web", 0.95, faults="empty"), row("y", "synthetic", 1.0), row("z", "synthetic", 0.0)]
    found = chosen(rows, rule=Combined(web=(Limit(share=share),), synthetic=(Limit(least=0.5),)))
    assert reasons(found)[:10] == ["unmatched"] * (10 - kept) + [""] * kept
    assert reasons(found)[10:] == ["empty", "", "unmatched"]


def test_a_weighted_sum_of_several_filters_decides():
    rows = [
        row("a", "web", 0.5, **{"clip.similarity": 0.25}),  # 0.5 + 2 x 0.25 = 1.0
        row("b", "web", 0.9, **{"clip.similarity": 0.0}),  # 0.9
        row("c", "web", 0.0, **{"clip.similarity": 0.5}),  # 1.0
        row("d", "web", 0.9),
        row("e", "web", 1.0, **{"clip.similarity": 1.0}, faults="empty"),
        row("a", "synthetic", 0.4, **{"clip.similarity": 0.1}),  # 0.6
        row("b", "synthetic", 0.4, **{"clip.similarity": 0.0}),  # 0.4
    ]
    weights = {"match": 1.0, "clip.similarity": 2.0}
    by_value = Weighted(weights=weights, web=SumLimit(least=1.0), synthetic=SumLimit(least=0.5))
    expected = ["", "unmatched", "", "unscored", "empty", "", "unmatched"]
    assert reasons(chosen(rows, rule=by_value)) == expected
    # of three web texts that are sound and have both scores the best two, which tie; of two others the best
    by_share = Weighted(weights=weights, web=SumLimit(share=0.67), synthetic=SumLimit(share=0.5))
    assert reasons(chosen(rows, rule=by_share)) == expected
    one_less = Weighted(weights=weights, web=SumLimit(share=0.34), synthetic=SumLimit(share=0.0))
    assert reasons(chosen(rows, rule=one_less)) == ["", "unmatched", "", "unscored", "empty", "unmatched", "unmatched"]
    alone = Weighted(weights={"match": 1.0}, web=SumLimit(least=0.5), synthetic=SumLimit(least=0.4))
    assert reasons(chosen(rows, rule=alone)) == reasons(chosen(rows, rule=Matched(web=0.5, synthetic=0.4)))


@pytest.mark.parametrize("limit", [{}, {"least": 0.5, "share": 0.5}])
def test_a_limit_of_a_weighted_sum_is_a_value_or_a_share(limit: dict):
    with pytest.raises(ConfigError, match="limit of the weighted sum: set one of least and share"):
        validate(SelectionConfig, {"rule": {"type": "weighted", "weights": {"match": 1}, "web": limit}}, "select")
    with pytest.raises(ConfigError, match="at least 1 item"):
        validate(SelectionConfig, {"rule": {"type": "weighted", "weights": {}}}, "select")


def test_synthetic_texts_are_kept_by_what_their_captioner_gives_them():
    rows = []
    for i in range(11):
        sure = None if i == 10 else -1.0 - i
        rows += [row(str(i), "web", 0.9), row(str(i), "synthetic", 0.9 if i else 0.1, log_probability=sure)]
    limits = (Limit(score="match", least=0.5), Limit(score="log_probability", share=0.3))
    found = reasons(chosen(rows, rule=Combined(synthetic=limits)))
    assert found[::2] == [""] * 11
    assert found[1::2] == ["unmatched", "", "", *["unmatched"] * 7, "unscored"]
    with pytest.raises(ConfigError, match="web: a limit has log_probability, which only synthetic texts have"):
        validate(SelectionConfig, {"rule": {"type": "combined", "web": [{"score": OF_CAPTIONER, "share": 0.5}]}}, "")


def test_a_share_is_of_all_shards_together():
    tables = [
        pa.Table.from_pylist([row("a", "web", 0.9), row("b", "web", 0.8)], schema=SCORES_SCHEMA),
        pa.Table.from_pylist([row("c", "web", 0.1), row("d", "web", 0.2)], schema=SCORES_SCHEMA),
    ]
    cfg = SelectionConfig(rule=Combined(web=(Limit(share=0.5),)))
    settled = with_values(cfg, lambda columns: [table.select(columns) for table in tables])
    assert isinstance(settled.rule, Combined)
    assert settled.rule.web == (Limit(score="match", least=float(np.float32(0.8))),)
    assert reasons(select_texts(tables, settled, True)) == ["", "", "unmatched", "unmatched"]


@pytest.mark.parametrize(("precision", "wrong"), [(0.9, 0.5), (0.95, 0.5), (0.8, 0.3), (0.9, 0.8)])
def test_a_precision_keeps_as_many_texts_as_leave_that_share_of_true_ones(precision: float, wrong: float):
    draws = np.random.default_rng(0)
    true = draws.random(4000) >= wrong
    scores = np.where(true, draws.normal(2.0, 1.0, 4000), draws.normal(0.0, 1.0, 4000))
    decoys = draws.normal(0.0, 1.0, 4000)
    rows = [
        row(str(i), "web", **{"similarity": score, "decoy.similarity": decoy})
        for i, (score, decoy) in enumerate(zip(scores, decoys, strict=True))
    ]
    rule = Combined(web=(Limit(score="similarity", precision=precision),))
    kept = chosen(rows, rule=rule).kept
    assert true[kept].mean() == pytest.approx(precision, abs=0.025)
    best = np.argsort(-scores)
    reachable = np.flatnonzero(np.cumsum(true[best]) / np.arange(1, 4001) >= precision)[-1] + 1
    assert kept.sum() == pytest.approx(reachable, rel=0.15)


@pytest.mark.parametrize("lead", [0.1, 0.3])
@pytest.mark.parametrize("precision", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("curve", [np.tanh, np.exp])
def test_a_precision_is_not_promised_too_high_where_training_has_seen_the_wrong_texts(lead, precision, curve):
    draws = np.random.default_rng(1)
    true = draws.random(10_000) >= 0.5
    scores = curve(np.where(true, draws.normal(2.5, 1.0, 10_000), draws.normal(lead, 1.0, 10_000)))
    decoys = np.sort(curve(draws.normal(0.0, 1.0, 10_000)))
    kept = count_precise(np.sort(scores), decoys, precision)
    best = true[np.argsort(-scores)]
    assert best[:kept].mean() >= precision - 0.005
    reachable = np.flatnonzero(np.cumsum(best) / np.arange(1, 10_001) >= precision)[-1] + 1
    assert kept >= 0.75 * reachable
    wrong = Wrong.among(np.sort(scores), decoys)
    assert wrong.share == pytest.approx(0.5, abs=0.06)
    assert wrong.lead == pytest.approx(lead, abs=0.12)


def test_a_precision_that_no_score_reaches_keeps_nothing():
    rule = Combined(web=(Limit(precision=0.9),))
    for decoys in ({}, {"decoy.match": 0.5}):
        rows = [row(str(i), "web", i / 100, **decoys) for i in range(40)]
        assert not chosen(rows, rule=rule).kept.any()


def test_decoys_of_texts_that_are_dropped_do_not_count():
    rows = [row(str(i), "web", 0.9 if i < 60 else 0.1, **{"decoy.match": 0.1}) for i in range(80)]
    rows += [row(f"{i} small", "web", 0.0, faults="small", **{"decoy.match": 1.0}) for i in range(80)]
    rule = Combined(web=(Limit(precision=0.9),))
    assert chosen(rows, rule=rule).kept.sum() == 60


def test_a_precision_is_of_web_texts_with_decoys():
    rule = {"type": "combined", "synthetic": [{"precision": 0.9}]}
    with pytest.raises(ConfigError, match="estimated for web texts alone"):
        validate(SelectionConfig, {"rule": rule}, "select")


@pytest.mark.parametrize("limit", [{"least": 0.5, "share": 0.5}, {"share": 0.5, "precision": 0.9}, {}])
def test_a_limit_has_a_value_a_share_or_a_precision(limit: dict[str, float]):
    with pytest.raises(ConfigError, match="limit of match: set one of least, share and precision"):
        validate(SelectionConfig, {"rule": {"type": "combined", "web": [limit]}}, "select")


def test_the_best_of_an_image_are_kept_wherever_they_come_from():
    rows = [
        row("a", "web", 0.1),
        row("a", "synthetic", 0.3),
        row("a", "synthetic", 0.2, 1),
        row("b", "web", 0.05),
        row("b", "synthetic", 0.9),
    ]
    assert reasons(chosen(rows, rule=Best(keep=2))) == ["outranked", "", "", "", ""]
    assert reasons(chosen(rows, rule=Best(keep=1))) == ["outranked", "", "outranked", "outranked", ""]


def test_a_faulty_text_takes_no_place_among_the_best():
    rows = [row("a", "web", 0.9, faults="long"), row("a", "synthetic", 0.3), row("a", "synthetic", 0.2, 1)]
    assert reasons(chosen(rows, rule=Best(keep=1))) == ["long", "", "outranked"]


def test_without_a_filter_all_that_is_sound_is_kept():
    rows = [row("a", "web"), row("a", "synthetic"), row("b", "web", faults="empty"), row("b", "synthetic")]
    assert reasons(chosen(rows, scored=False)) == ["", "", "empty", ""]
    assert reasons(chosen(rows)) == ["unscored", "unscored", "empty", "unscored"]


def test_faults_drop_or_are_only_counted():
    rows = [
        row("a", "web", 0.9, faults="small not_rgb"),
        row("a", "synthetic", 0.9, faults="small not_rgb"),
        row("b", "web", 0.9),
    ]
    assert reasons(chosen(rows)) == ["small", "small", ""]
    kept = chosen(rows, drop=())
    assert reasons(kept) == ["", "", ""]
    assert kept.counts["found.small"] == kept.counts["found.not_rgb"] == 1  # an image, not a text
    assert reasons(chosen([row("a", "web", 0.9, faults="undecodable")], drop=())) == ["undecodable"]


def test_of_duplicates_the_first_with_a_text_to_keep_stays():
    rows = [
        row("a", "web", 0.1),
        row("b", "web", 0.9, sha256="a"),
        row("c", "web", 0.9, sha256="a"),
        row("d", "web", 0.9),
    ]
    found = chosen(rows)
    assert reasons(found) == ["unmatched", "", "duplicate", ""]
    assert found.counts["found.duplicate"] == 2
    assert reasons(chosen(rows, drop=())) == ["unmatched", "", "", ""]


def test_near_duplicates():
    rows = [
        row("a", "web", 0.9, phash=0b11111),
        row("b", "web", 0.9, phash=0b11000),
        row("c", "web", 0.9, phash=1 << 63),
    ]
    assert reasons(chosen(rows, drop=("near_duplicate",), near=3)) == ["", "near_duplicate", ""]
    assert reasons(chosen(rows, drop=("near_duplicate",), near=2)) == ["", "", ""]
    assert chosen(rows, drop=("near_duplicate",), near=3).counts["found.near_duplicate"] == 1


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_near_duplicates_are_those_that_a_plain_search_finds(bits: int):
    hashes = np.random.default_rng(0).integers(0, 1 << 9, 400).astype(np.uint64)
    kept, found = [], []
    for value in hashes.tolist():
        found.append(any((value ^ other).bit_count() <= bits for other in kept))
        kept += [] if found[-1] else [value]
    assert near_duplicates(hashes, bits).tolist() == found


def test_repeated_web_texts():
    rows = [
        row(image, "web", 0.9, text=text)
        for image, text in zip("abcd", ("Buy now", " buy NOW ", "buy now", "a cat"), strict=True)
    ]
    rows += [row("e", "web", 0.9), row("e", "synthetic", 0.9, text="buy now")]
    found = chosen(rows, drop=("repeated",), repeats=2)
    assert reasons(found) == ["repeated", "repeated", "repeated", "", "", ""]
    assert chosen(rows, drop=("repeated",), repeats=3).counts["web.kept"] == 5


def test_nothing_is_selected_from_nothing():
    assert chosen([]).counts == {
        "web": 0,
        "web.kept": 0,
        "synthetic": 0,
        "synthetic.kept": 0,
        "images": 0,
        "images.kept": 0,
    }


def test_a_table_comes_back_from_its_file_and_gives_the_same_bytes():
    table = pa.Table.from_pylist([row("a", "web", 0.25), row("a", "synthetic", None)], schema=SCORES_SCHEMA)
    data = to_parquet([table.slice(0, 1), table.slice(1)])
    assert from_parquet(data).equals(table)
    assert to_parquet([table]) == data


def test_an_unknown_fault_is_refused_by_name():
    with pytest.raises(ConfigError, match="smal"):
        validate(SelectionConfig, {"drop": ["smal"]}, "selection")


def many(images: int, seed: int = 0) -> pa.Table:
    """Random rows, two an image, among them copies, near copies, faults and texts that repeat."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, images, dtype=np.uint64)
    centres[rng.random(images) < 0.05] = centres[0]  # all alike
    hashes = centres[rng.integers(0, images, images) // 3]
    for _ in range(3):
        hashes ^= np.uint64(1) << rng.integers(0, 64, images).astype(np.uint64)
    digests = rng.integers(0, images * 9 // 10, images)
    twice = np.repeat(np.arange(images), 2)
    texts = np.where(rng.random(2 * images) < 0.1, "Buy now ", "text ")
    numbers = np.where(texts == "text ", rng.integers(0, 2 * images, 2 * images), 0)
    columns = {name: pa.nulls(2 * images, pa.string()).fill_null("") for name in ("shard", "members", "licence", "url")}
    columns |= {
        "key": pa.array(twice.astype(str)),
        "source": pa.array(["web", "synthetic"] * images),
        "number": pa.array(np.zeros(2 * images, np.int16)),
        "text": pa.array([f"{text}{number}" for text, number in zip(texts, numbers, strict=True)]),
        "match": pa.array(rng.random(2 * images, np.float32)),
        "similarity": pa.array(rng.random(2 * images, np.float32)),
        "log_probability": pa.array(rng.random(2 * images, np.float32)),
        "faults": pa.array(rng.choice(["", "", "", "small", "not_rgb long", "small animated"], images)[twice]),
        "sha256": pa.array(digests.astype(str)[twice]),
        "phash": pa.array(hashes[twice]),
        "width": pa.array(rng.choice([0, 32, 64], images).astype(np.int32)[twice]),
        "height": pa.array(np.full(2 * images, 32, np.int32)),
        "origin": pa.array(rng.choice(["cc3m", "laion"], images)[twice]),
    }
    return pa.table({name: columns[name] for name in SCORES_SCHEMA.names}, schema=SCORES_SCHEMA)


def plainly_selected(rows: list[dict], cfg: SelectionConfig) -> list[str]:
    """The reason of each row, found image by image; near duplicates by comparison with all images that stay."""
    said = []
    for row in rows:
        faults = row["faults"].split()
        dropped = [fault for fault in ALL_FAULTS if fault in faults and cfg.drops(fault)]
        other = cfg.rule.origins.get(row["origin"], cfg.rule)
        low = np.float32(row["match"]) < np.float32(getattr(other, row["source"]))
        said.append(dropped[0] if dropped else "unmatched" if low else "")
    pairs = [(rows[i], i) for i in range(0, len(rows), 2) if rows[i]["width"]]
    pairs.sort(
        key=lambda pair: said[pair[1]] != "" and said[pair[1] + 1] != ""
    )  # images with a text to keep first, else in their order
    seen, copies, close = set(), set(), set()
    stay, staying = np.empty(len(pairs), np.uint64), 0
    for image, i in pairs:
        if image["sha256"] in seen:
            copies.add(i)
        elif (np.bitwise_count(stay[:staying] ^ np.uint64(image["phash"])) <= cfg.near).any():
            close.add(i)
        else:
            stay[staying] = image["phash"]
            staying += 1
        seen.add(image["sha256"])
    often = Counter(row["text"].strip().lower() for row in rows if row["source"] == "web")
    for i, row in enumerate(rows):
        image = i - i % 2
        repeated = row["source"] == "web" and often[row["text"].strip().lower()] > cfg.repeats
        for fault, is_so in (
            ("duplicate", image in copies),
            ("near_duplicate", image in close),
            ("repeated", repeated),
        ):
            if is_so and cfg.drops(fault) and not said[i]:
                said[i] = fault
    return said


def test_a_hundred_thousand_rows_are_selected_as_by_a_plain_search():
    table = many(50_000)
    cfg = SelectionConfig(
        rule=Matched(web=0.3, synthetic=0.4, origins={"laion": Thresholds(web=0.6)}),
        drop=("small", "long", "duplicate", "near_duplicate", "repeated"),
        repeats=50,
    )
    expected = plainly_selected(table.to_pylist(), cfg)
    parts = [table.slice(begin, 14_002) for begin in range(0, len(table), 14_002)]
    found = select_texts(parts, cfg, scored=True)
    assert reasons(found) == expected
    assert {"", "small", "long", "unmatched", "duplicate", "near_duplicate", "repeated"} == set(expected)
    dropped = Counter(
        reason for reason, source in zip(expected, table["source"].to_pylist(), strict=True) if source == "web"
    )
    assert {name: dropped[name] for name in dropped if name} == {
        name.removeprefix("web.dropped."): count
        for name, count in found.counts.items()
        if name.startswith("web.dropped.")
    }


@pytest.mark.parametrize("flips", [0, 2, 4])
def test_many_alike_are_settled_part_by_part(flips: int, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(flips)
    hashes = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    hashes[2000:] = hashes[0]
    for _ in range(flips):
        hashes[2000:] ^= np.uint64(1) << rng.integers(0, 64, 2000).astype(np.uint64)
    stay, found = [], []
    for value in hashes:
        found.append(bool(stay) and bool((np.bitwise_count(np.array(stay) ^ value) <= 4).any()))
        stay += [] if found[-1] else [value]
    assert near_duplicates(hashes, 4).tolist() == found
    monkeypatch.setattr("blip.capfilt.duplicates.SMALL", 16)
    monkeypatch.setattr("blip.capfilt.duplicates.CANDIDATES", 2)
    monkeypatch.setattr("blip.capfilt.duplicates.CLOSE", 50)
    monkeypatch.setattr("blip.capfilt.duplicates.PAIRS_AT_ONCE", 100)
    assert near_duplicates(hashes, 4).tolist() == found


def test_near_duplicates_are_not_searched_for_where_they_are_kept(monkeypatch: pytest.MonkeyPatch):
    def searched(*_) -> None:
        raise AssertionError("near duplicates were searched for")

    monkeypatch.setattr("blip.capfilt.selection.near_duplicates", searched)
    assert "found.near_duplicate" not in chosen([row("a", "web", 0.9), row("b", "web", 0.9)]).counts
    with pytest.raises(AssertionError, match="were searched for"):
        chosen([row("a", "web", 0.9)], drop=("near_duplicate",))
