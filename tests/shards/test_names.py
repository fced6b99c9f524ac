"""Grouping of members into samples by their names."""

from collections import Counter

import pytest

from blip.shards.names import group_members
from blip.shards.tar import Member


def samples(*names: str, keys: str = "auto") -> tuple[dict[str, list[str]], dict[str, int]]:
    """Returns extensions by key, and the counts of reasons."""
    rejected: Counter[str] = Counter()
    found = group_members([Member(name, 512 * i, 1) for i, name in enumerate(names)], keys, rejected)  # pyright: ignore[reportArgumentType]
    return {key: sorted(extensions) for key, extensions in found.items()}, dict(rejected)


def each(*forms: str, count: int = 24) -> list[str]:
    return [form.replace("N", str(i)) for i in range(count) for form in forms]


@pytest.mark.parametrize(
    ("forms", "key"),
    [
        (("N.jpg", "N.txt"), "N"),
        (("photo.v2.N.jpg", "photo.v2.N.txt"), "photo.v2.N"),
        (("photo.v2.N.jpg", "photo.v2.N.json"), "photo.v2.N"),
        (("photo.v2.N.jpg",), "photo.v2.N"),
        (("N.05.png", "N.05.txt"), "N.05"),
        (("cat.N.jpg", "cat.N.txt"), "cat.N"),
        (("cat.N.jpg",), "cat.N"),
        (("some.folder/N.JPG", "some.folder/N.txt"), "some.folder/N"),
        (("2024.11.25 N.jpeg", "2024.11.25 N.caption"), "2024.11.25 N"),
    ],
)
def test_every_image_is_a_sample_with_its_text(forms: tuple[str, ...], key: str):
    found, rejected = samples(*each(*forms))
    assert list(found) == [key.replace("N", str(i)) for i in range(24)]
    assert {len(extensions) for extensions in found.values()} == {len(forms)}
    assert not rejected


def test_members_of_a_sample_need_not_stand_together():
    names = each("cat.N.jpg") + each("cat.N.txt") + each("cat.N.json")
    assert samples(*names)[0] == {f"cat.{i}": ["jpg", "json", "txt"] for i in range(24)}


def test_extensions_of_webdataset_stay_with_their_sample():
    found, rejected = samples(*each("N.jpg", "N.seg.png", "N.txt", "N.capfilt.json", count=2))
    assert found == {str(i): ["capfilt.json", "jpg", "seg.png", "txt"] for i in range(2)}
    assert rejected == {"further image of a sample": 2}
    assert samples(*each("N.0.png", "N.1.png", "N.json", count=2))[0] == {
        str(i): ["0.png", "1.png", "json"] for i in range(2)
    }
    assert list(samples(*each("a.N.jpg", "a.N.txt", "a.N.capfilt.json", count=2))[0]) == ["a.0", "a.1"]


def test_forms_may_be_mixed_and_a_rule_may_be_forced():
    names = ["1.jpg", "1.txt", "1.mask.png", "cat.jpg", "cat.2.jpg", "cat.txt", "a.v1.jpg", "a.v1.txt", "a.v2.jpg"]
    assert list(samples(*names)[0]) == ["1", "cat", "cat.2", "a.v1", "a.v2"]
    assert list(samples("k.0.jpg", "k.1.jpg", keys="first")[0]) == ["k"]
    assert list(samples("1.jpg", "1.mask.png", keys="last")[0]) == ["1", "1.mask"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1.txt", "no image"),
        ("README", "member without key and extension"),
        ("a.", "member without key and extension"),
        ("._1.jpg", "hidden member"),
        ("a/.DS_Store", "hidden member"),
        (f"a.{'5' * 5000}.jpg", "member's name is too long"),
        ("x/" * 3000 + "a.jpg", "member's name is too long"),
        ("good.__key__", "member with a reserved name"),
        ("good.jpg", "key twice in a shard"),
    ],
)
def test_what_is_no_sample_is_counted(name: str, reason: str):
    found, rejected = samples("good.jpg", name)
    assert list(found) == ["good"]
    assert rejected == {reason: 1}


def test_names_in_other_encodings_are_kept():
    found, rejected = samples("caf\udce9.jpg", "caf\udce9.txt", "nul\0.jpg")
    assert found == {"caf\\xe9": ["jpg", "txt"], "nul\\x00": ["jpg"]}
    assert not rejected
