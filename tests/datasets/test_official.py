"""Readers take the official annotation files as they are published; small files of the same form stand for them."""

import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from tiny_models import picture

from blip.config import ConfigError
from blip.datasets.frames import positions, sample_frames
from blip.datasets.official import (
    AOKVQA,
    COCO,
    MSRVTT,
    MSRVTTQA,
    MSVDQA,
    NLVR2,
    OKVQA,
    Flickr30k,
    NoCaps,
    Official,
    VisDial,
    VQAv2,
)
from blip.results import IngestResult
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import BadSample, Sample


def put(folder: Path, files: dict[str, Any], images: tuple[str, ...] = ()) -> dict[str, str]:
    """Writes annotation files and images, and returns their settings."""
    for name, content in files.items():
        path = folder / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    for number, name in enumerate(images):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return {"annotations": str(folder / "annotations"), "images": str(folder / "images")}


def read(data: Official, split: str) -> list[Sample]:
    return list(data.read(split, Counter()))


def karpathy(*images: tuple[str, str, list[str]], **more: Any) -> dict[str, Any]:
    return {
        "images": [
            {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in texts], **more}
            for name, split, texts in images
        ]
    }


def test_coco_in_karpathys_own_file(tmp_path: Path):
    first, second = "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"
    content = {
        "images": [
            {
                "filepath": "val2014",
                "filename": first,
                "cocoid": 42,
                "split": "restval",
                "sentences": [{"raw": "A dog."}],
            },
            {
                "filepath": "val2014",
                "filename": second,
                "cocoid": 7,
                "split": "test",
                "sentences": [{"raw": "A cat."}, {"raw": "Cat"}],
            },
        ]
    }
    places = put(tmp_path, {"dataset_coco.json": content}, (f"val2014/{first}", f"val2014/{second}"))
    data = COCO(**places)
    (train,), (test,), val = read(data, "train"), read(data, "test"), read(data, "val")
    assert val == []
    assert (train.texts, train.meta, train.images) == (["A dog."], {"image_id": 42}, [picture(0)])
    assert (test.key, test.texts, test.image_ext) == ("COCO_val2014_000000000007", ["A cat.", "Cat"], "jpg")


def test_captions_by_split_one_a_record_or_all_of_an_image(tmp_path: Path):
    train = [
        {"image": "flickr30k-images/10.jpg", "caption": "a", "image_id": 10},
        {"image": "flickr30k-images/11.jpg", "caption": "b", "image_id": 11},
        {"image": "flickr30k-images/10.jpg", "caption": "c", "image_id": 10},
    ]
    test = [{"image": "flickr30k-images/10.jpg", "caption": ["d", "e"]}]
    files = {"flickr30k_train.json": train, "flickr30k_test.json": test}
    data = Flickr30k(**put(tmp_path, files, ("10.jpg", "11.jpg")), splits=("train", "test"))
    assert [(s.key, s.texts) for s in read(data, "train")] == [("10", ["a", "c"]), ("11", ["b"])]
    assert [(s.texts, s.meta) for s in read(data, "test")] == [(["d", "e"], {"image_id": 10})]


def test_flickr_in_karpathys_own_file(tmp_path: Path):
    files = {"dataset_flickr30k.json": karpathy(("1000092795.jpg", "test", ["Two men.", "Men"]))}
    data = Flickr30k(**put(tmp_path, files, ("flickr30k_images/1000092795.jpg",)))
    assert [(s.texts, s.meta["image_id"]) for s in read(data, "test")] == [(["Two men.", "Men"], 1000092795)]


def test_nocaps_with_domains_and_a_test_split_without_captions(tmp_path: Path):
    val = {
        "images": [
            {"id": 0, "file_name": "0013ea20.jpg", "domain": "in-domain", "open_images_id": "0013ea20"},
            {"id": 1, "file_name": "00bad.jpg", "domain": "out-domain", "open_images_id": "00bad"},
        ],
        "annotations": [
            {"id": 0, "image_id": 0, "caption": "A baby."},
            {"id": 1, "image_id": 1, "caption": "A hat."},
            {"id": 2, "image_id": 0, "caption": "A child."},
        ],
    }
    test = {"images": [{"id": 5, "file_name": "x.jpg"}]}
    files = {"nocaps_val_4500_captions.json": val, "nocaps_test_image_info.json": test}
    data = NoCaps(**put(tmp_path, files, ("val/0013ea20.jpg", "val/00bad.jpg", "test/x.jpg")))
    assert [(s.texts, s.meta) for s in read(data, "val")] == [
        (["A baby.", "A child."], {"image_id": 0, "domain": "in-domain"}),
        (["A hat."], {"image_id": 1, "domain": "out-domain"}),
    ]
    assert [(s.texts, s.meta) for s in read(data, "test")] == [([], {"image_id": 5})]


def questions(*rows: tuple[int, int, str]) -> dict[str, Any]:
    return {"questions": [{"question_id": number, "image_id": image, "question": text} for number, image, text in rows]}


def annotations(*rows: tuple[int, list[str]]) -> dict[str, Any]:
    return {
        "annotations": [
            {
                "question_id": number,
                "answer_type": "other",
                "question_type": "what",
                "multiple_choice_answer": answers[0],
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers)
                ],
            }
            for number, answers in rows
        ]
    }


def test_vqav2_questions_of_one_image_share_it(tmp_path: Path):
    files = {
        "v2_OpenEnded_mscoco_val2014_questions.json": questions((10, 1, "What?"), (20, 2, "Who?"), (11, 1, "Where?")),
        "v2_mscoco_val2014_annotations.json": annotations(
            (20, ["man"] * 10), (10, ["a", " b\n", *["a"] * 8]), (11, ["here"] * 10)
        ),
        "v2_OpenEnded_mscoco_test2015_questions.json": questions((30, 3, "How?")),
    }
    images = [f"val2014/COCO_val2014_{i:012d}.jpg" for i in (1, 2)] + ["test2015/COCO_test2015_000000000003.jpg"]
    places = put(tmp_path, files, tuple(images))
    found = read(VQAv2(**places), "val")
    assert [(s.key, s.texts) for s in found] == [("10", ["What?"]), ("11", ["Where?"]), ("20", ["Who?"])]
    assert found[0].meta == {
        "question_id": 10,
        "image_id": 1,
        "answers": ["a", "b", *["a"] * 8],
        "answer_type": "other",
        "question_type": "what",
    }
    assert found[0].images == found[1].images == [picture(0)]
    (test,) = read(VQAv2(**places), "test")
    assert test.meta == {"question_id": 30, "image_id": 3}


def test_visual_genome_and_the_files_that_blip_publishes(tmp_path: Path):
    genome = [
        {"id": 7, "qas": [{"qa_id": 70, "image_id": 7, "question": "What is it?", "answer": "A clock."}]},
        {"id": 8, "qas": [{"qa_id": 80, "image_id": 8, "question": "Who?", "answer": "."}]},
    ]
    official = put(tmp_path / "official", {"question_answers.json": genome}, ("VG_100K_2/7.jpg", "VG_100K/8.jpg"))
    (found,) = read(VQAv2(**official), "vg")
    assert (found.key, found.texts) == ("vg-70", ["What is it?"])
    assert (found.meta["answers"], found.meta["weight"]) == (["A clock"], 0.2)
    published = {
        "vqa_train.json": [
            {
                "dataset": "vqa",
                "image": "train2014/1.jpg",
                "question": "Q?",
                "question_id": 5,
                "answer": ["x"] * 9 + ["y"],
            }
        ],
        "vg_qa.json": [
            {"dataset": "vg", "image": "VG_100K/2.jpg", "question": "R?", "question_id": 6, "answer": "tree"}
        ],
    }
    places = put(tmp_path / "published", published, ("train2014/1.jpg", "VG_100K/2.jpg"))
    (train,), (vg,) = read(VQAv2(**places), "train"), read(VQAv2(**places), "vg")
    assert train.meta == {"question_id": 5, "answers": ["x"] * 9 + ["y"]}
    assert vg.meta == {"question_id": "vg-6", "answers": ["tree"], "weight": 0.2}


def test_ok_vqa_and_a_okvqa(tmp_path: Path):
    files = {
        "OpenEnded_mscoco_val2014_questions.json": questions((1, 9, "Why?")),
        "mscoco_val2014_annotations.json": annotations((1, ["wind"] * 10)),
        "aokvqa_v1p0_val.json": [
            {
                "split": "val",
                "image_id": 9,
                "question_id": "2a",
                "question": "Which?",
                "choices": ["w", "x", "y", "z"],
                "correct_choice_idx": 2,
                "direct_answers": ["y"] * 10,
                "difficult_direct_answer": False,
                "rationales": ["r"],
            }
        ],
        "aokvqa_v1p0_test.json": [
            {"image_id": 9, "question_id": "2b", "question": "Which?", "choices": ["w", "x", "y", "z"]}
        ],
    }
    images = ("val2014/COCO_val2014_000000000009.jpg", "val2017/000000000009.jpg", "test2017/000000000009.jpg")
    places = put(tmp_path, files, images)
    (found,) = read(OKVQA(**places), "val")
    assert found.meta["answers"] == ["wind"] * 10
    (found,) = read(AOKVQA(**places), "val")
    assert found.meta == {
        "question_id": "2a",
        "image_id": 9,
        "choices": ["w", "x", "y", "z"],
        "correct_choice": 2,
        "answers": ["y"] * 10,
        "difficult": False,
    }
    (found,) = read(AOKVQA(**places), "test")
    assert "answers" not in found.meta
    assert "correct_choice" not in found.meta


def test_nlvr2_as_published_and_as_blip_publishes_it(tmp_path: Path):
    lines = [
        {
            "sentence": "Two dogs.",
            "identifier": "train-4-0-0",
            "label": "True",
            "directory": 37,
            "left_url": "",
            "right_url": "",
        },
        {"sentence": "No dog.", "identifier": "train-4-0-1", "label": "False", "directory": 37},
    ]
    dev = [{"sentence": "A cat.", "identifier": "dev-1-0-0", "label": "False"}]
    files = {"train.json": "\n".join(map(json.dumps, lines)) + "\n", "dev.json": json.dumps(dev[0])}
    images = [f"images/train/37/train-4-0-img{i}.png" for i in (0, 1)] + [f"dev/dev-1-0-img{i}.png" for i in (0, 1)]
    data = NLVR2(**put(tmp_path / "official", files, tuple(images)))
    train = read(data, "train")
    assert [(s.key, s.texts, s.meta["label"]) for s in train] == [
        ("train-4-0-0", ["Two dogs."], 1),
        ("train-4-0-1", ["No dog."], 0),
    ]
    assert train[0].images == train[1].images == [picture(0), picture(1)]
    assert read(data, "dev")[0].meta == {"label": 0, "identifier": "dev-1-0-0"}
    published = {
        "nlvr_test.json": [
            {"images": ["test1/a-0-img0.png", "test1/a-0-img1.png"], "sentence": text, "label": label}
            for text, label in (("One.", "True"), ("Two.", "False"))
        ]
    }
    places = put(tmp_path / "published", published, ("test1/a-0-img0.png", "test1/a-0-img1.png"))
    test = read(NLVR2(**places), "test")
    assert sorted(s.meta["label"] for s in test) == [0, 1]
    assert len({s.key for s in test}) == 2
    published["nlvr_test.json"][0]["label"] = "maybe"
    put(tmp_path / "published", published)
    counts = Counter[str]()
    assert len(list(NLVR2(**places).read("test", counts))) == 1
    assert counts == {"label is neither True nor False": 1}


def visdial(number: int, **last: Any) -> dict[str, Any]:
    dialog = {
        "image_id": number,
        "caption": "a man with a hat",
        "dialog": [
            {"question": 0, "answer": 1, "answer_options": [2, 1, 0], "gt_index": 1},
            {"question": 1, **last},
        ],
    }
    return {"version": "1.0", "data": {"questions": ["is he old", "is it day"], "answers": ["no", "yes", "maybe"],
                                       "dialogs": [dialog]}}  # fmt: skip


def test_visdial_with_dense_annotations_and_an_open_last_round_in_test(tmp_path: Path):
    files = {
        "visdial_1.0_val.json": visdial(42, answer=0, answer_options=[0, 1, 2], gt_index=0),
        "visdial_1.0_val_dense_annotations.json": [{"image_id": 42, "round_id": 2, "gt_relevance": [1.0, 0.0, 0.5]}],
        "visdial_1.0_train.json": visdial(43, answer=0, answer_options=[0, 1, 2], gt_index=0),
        "visdial_1.0_test.json": visdial(44, answer_options=[2, 1, 0]),
    }
    images = (
        "VisualDialog_val2018/VisualDialog_val2018_000000000042.jpg",
        "val2014/COCO_val2014_000000000043.jpg",
        "VisualDialog_test2018_000000000044.jpg",
    )
    data = VisDial(**put(tmp_path, files, images))
    (val,), (train,), (test,) = (read(data, split) for split in ("val", "train", "test"))
    assert val.texts == ["a man with a hat"]
    assert val.meta["image_id"] == 42
    assert val.meta["rounds"] == [
        {"question": "is he old", "answer": "yes", "options": ["maybe", "yes", "no"], "correct": 1},
        {
            "question": "is it day",
            "answer": "no",
            "options": ["no", "yes", "maybe"],
            "correct": 0,
            "relevance": [1.0, 0.0, 0.5],
        },
    ]
    assert "relevance" not in train.meta["rounds"][1]
    assert test.meta["rounds"][1] == {"question": "is it day", "options": ["maybe", "yes", "no"]}


def write_clip(path: Path, frames: int, codec: str = "mpeg4") -> None:
    """A video whose frame number i is grey of brightness 8 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), (8 * i,) * 3))))
        container.mux(stream.encode())


def brightness(frame: bytes) -> int:
    image = Image.open(BytesIO(frame))
    return round(sum(image.convert("L").tobytes()) / 1024 / 8)


@pytest.mark.parametrize(("total", "taken"), [(30, [0, 7, 14, 21]), (4, [0, 1, 2, 3]), (3, [0, 0, 1, 2])])
def test_frames_lie_at_multiples_of_a_whole_distance(tmp_path: Path, total: int, taken: list[int]):
    assert positions(total, 4) == taken
    write_clip(tmp_path / "clip.mp4", total)
    assert [brightness(frame) for frame in sample_frames(tmp_path / "clip.mp4", 4)] == taken


def test_videos_that_cannot_be_decoded_are_counted(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(BadSample, match="video cannot be decoded"):
        sample_frames(tmp_path / "text.mp4", 4)
    write_clip(tmp_path / "images" / "video1.mp4", 10)
    whole = (tmp_path / "images" / "video1.mp4").read_bytes()
    (tmp_path / "images" / "video2.mp4").write_bytes(whole[: len(whole) // 3])
    rows = "key,vid_key,video_id,sentence\nret0,msr1,video1,a man\nret1,msr2,video2,a woman\n"
    data = MSRVTT(**put(tmp_path, {"MSRVTT_JSFUSION_test.csv": rows}), frames=4)
    counts = Counter[str]()
    (found,) = data.read("test", counts)
    assert (found.key, found.texts, len(found.images)) == ("video1", ["a man"], 4)
    assert counts == {"video has no frames": 1}


def test_videos_with_questions(tmp_path: Path):
    write_clip(tmp_path / "images" / "video7010.mp4", 16)
    write_clip(tmp_path / "images" / "-4wsuPCjDBc_5_15.avi", 16)
    asked = [
        {"answer": "couch", "id": 1, "question": "what?", "video_id": 7010, "category_id": 14},
        {"answer": "man", "id": 2, "question": "who?", "video_id": 7010, "category_id": 14},
    ]
    data = MSRVTTQA(**put(tmp_path, {"test_qa.json": asked}), splits=("test",))
    found = read(data, "test")
    assert [(s.key, s.texts, s.meta["answers"], len(s.images)) for s in found] == [
        ("1", ["what?"], ["couch"], 16),
        ("2", ["who?"], ["man"], 16),
    ]
    assert [brightness(frame) for frame in found[0].images] == list(range(16))
    other = [{"answer": "run", "id": 3, "question": "what?", "video_id": 1451}]
    files = {"test_qa.json": other, "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid1451\n"}
    (found,) = read(MSVDQA(**put(tmp_path, files), frames=8), "test")
    assert (found.meta["video_id"], len(found.images)) == ("-4wsuPCjDBc_5_15", 8)


def test_what_is_missing_is_said_with_where_it_was_looked_for_and_where_to_get_it(tmp_path: Path):
    with pytest.raises(ValueError, match=r"vqav2: set data.annotations=... and data.images=.* https://visualqa.org"):
        VQAv2()
    with pytest.raises(ValueError, match="coco has no split 'dev'; choices: train, val, test"):
        COCO(annotations="a", images="b", splits=("dev",))
    places = put(tmp_path, {"dataset_coco.json": karpathy(("1.jpg", "test", ["a"]), ("2.jpg", "test", ["b"]))})
    with pytest.raises(
        ConfigError, match=r"looked for .*/v2_OpenEnded_mscoco_val2014_questions.json, .*/vqa_val.json; get them from"
    ):
        read(VQAv2(**places), "val")
    put(tmp_path, {}, ("1.jpg",))
    with pytest.raises(ConfigError, match=r"images/2.jpg or .*; get them from https://cocodataset.org"):
        read(COCO(**places), "test")
    counts = Counter[str]()
    assert len(list(COCO(**places, lost=0.5).read("test", counts))) == 1
    assert counts == {"image is missing": 1}
    with pytest.raises(ConfigError, match=r"1 of 2 images are missing, more than data.lost=0.4 allows"):
        list(COCO(**places, lost=0.4).read("test", Counter()))
    put(tmp_path, {"dataset_coco.json": {"images": [{"filename": "1.jpg"}]}})
    with pytest.raises(ConfigError, match=r"dataset_coco.json is not of the published form: a record has no 'split'"):
        read(COCO(**places), "test")
    put(tmp_path, {"dataset_coco.json": "{"})
    with pytest.raises(ConfigError, match=r"dataset_coco.json is not JSON"):
        read(COCO(**places), "test")


V2_QUESTIONS, V2_ANSWERS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
UNPUBLISHED = "record is not of the published form"


def odd_visdial() -> dict[str, Any]:
    content = visdial(42, answer=0, answer_options=[0, 1, 2], gt_index=0)
    (good,) = content["data"]["dialogs"]
    far = {"image_id": 43, "caption": "a cat", "dialog": [{"question": 0, "answer": 99}]}
    content["data"]["dialogs"] = [good, far, {**good, "image_id": 44, "caption": None}]
    return content


@pytest.mark.parametrize(
    ("data", "split", "files", "images", "kept", "counts"),
    [
        (
            VQAv2,
            "val",
            {
                V2_QUESTIONS: {
                    "questions": [
                        {"question_id": 1, "image_id": 1, "question": "是什么 café 🙂"},
                        {"question_id": 2, "image_id": 1, "question": None},
                        {"question_id": 3, "image_id": None, "question": "what?"},
                        {"question_id": 4, "image_id": 1, "question": "no annotation?"},
                        {"question_id": 1, "image_id": 1, "question": "again?"},
                        {"image_id": 1, "question": "no number?"},
                    ]
                },
                V2_ANSWERS: {
                    "annotations": [
                        {
                            "question_id": 1,
                            "answers": [{"answer": "猫", "answer_id": 1}, {"answer": None, "answer_id": 2}],
                        },
                        *({"question_id": number, "answers": []} for number in (2, 3)),
                    ]
                },
            },
            ("val2014/COCO_val2014_000000000001.jpg",),
            ["1"],
            {
                "text is missing": 1,
                UNPUBLISHED: 2,
                "question without an annotation: the files are of different releases": 1,
                "identifier occurs twice": 1,
            },
        ),
        (
            VQAv2,
            "vg",
            {
                "question_answers.json": [
                    {
                        "id": 7,
                        "qas": [
                            {"qa_id": 70, "image_id": 7, "question": "What?", "answer": "A clock."},
                            {"qa_id": 71, "image_id": 7, "question": "What?", "answer": None},
                            {"qa_id": 72, "image_id": 7, "question": "What?", "answer": " ."},
                        ],
                    }
                ]
            },
            ("VG_100K/7.jpg",),
            ["vg-70"],
            {UNPUBLISHED: 1, "no answers": 1},
        ),
        (
            AOKVQA,
            "test",
            {
                "aokvqa_v1p0_test.json": [
                    {"image_id": 9, "question_id": "a", "question": "Which?", "choices": ["x", "y"]},
                    {"image_id": 9, "question_id": "b", "question": "Q?", "choices": ["x"], "correct_choice_idx": 4},
                    {"image_id": 9, "question_id": "c", "question": "Q?"},
                ]
            },
            ("test2017/000000000009.jpg",),
            ["a"],
            {UNPUBLISHED: 2},
        ),
        (
            NLVR2,
            "dev",
            {
                "dev.json": "\n".join(
                    json.dumps({"sentence": sentence, "identifier": f"dev-1-0-{i}", "label": label})
                    for i, (sentence, label) in enumerate((("A cat.", "False"), (None, "True"), ("A cat.", None)))
                )
            },
            ("dev/dev-1-0-img0.png", "dev/dev-1-0-img1.png"),
            ["dev-1-0-0"],
            {"text is missing": 1, "label is neither True nor False": 1},
        ),
        (
            VisDial,
            "val",
            {
                "visdial_1.0_val.json": odd_visdial(),
                "visdial_1.0_val_dense_annotations.json": [{"image_id": 42, "round_id": 1, "gt_relevance": None}],
            },
            ("VisualDialog_val2018_000000000042.jpg",),
            ["000000000042"],
            {UNPUBLISHED: 2, "text is missing": 1},
        ),
        (
            COCO,
            "test",
            {
                "dataset_coco.json": {
                    "images": [
                        {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "A dog."}, {"raw": " "}]},
                        {"filename": "2.jpg", "split": "test", "sentences": []},
                        {"filename": "3.jpg", "split": "test", "sentences": [{"tokens": ["a"]}]},
                        {"filename": None, "split": "test", "sentences": [{"raw": "A dog."}]},
                    ]
                }
            },
            ("1.jpg",),
            ["1"],
            {"text is missing": 1, UNPUBLISHED: 2},
        ),
        (
            NoCaps,
            "val",
            {
                "nocaps_val_4500_captions.json": {
                    "images": [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": None}],
                    "annotations": [{"image_id": 0, "caption": "A."}, {"image_id": 0, "caption": None}],
                }
            },
            ("val/a.jpg",),
            ["00000-a"],
            {"text is missing": 2},
        ),
    ],
)
def test_an_odd_record_is_left_out_and_counted(
    tmp_path: Path,
    data: type[Official],
    split: str,
    files: dict[str, Any],
    images: tuple[str, ...],
    kept: list[str],
    counts: dict[str, int],
):
    found = Counter[str]()
    assert [s.key for s in data(**put(tmp_path, files, images)).read(split, found)] == kept
    assert found == counts


def test_videos_with_odd_texts_are_counted(tmp_path: Path):
    write_clip(tmp_path / "images" / "video1.mp4", 4)
    asked = [
        {"answer": "couch", "id": 1, "question": "what?", "video_id": 1},
        {"answer": None, "id": 2, "question": "who?", "video_id": 1},
        {"answer": "man", "id": 3, "question": "who?", "video_id": None},
    ]
    counts = Counter[str]()
    data = MSRVTTQA(**put(tmp_path, {"test_qa.json": asked}), splits=("test",), frames=2)
    assert [s.key for s in data.read("test", counts)] == ["1"]
    assert counts == {"text is missing": 1, UNPUBLISHED: 1}


@pytest.mark.parametrize("name", ["../1.jpg", "a//1.jpg", ".hidden.jpg"])
def test_a_name_that_no_image_can_have_is_a_missing_image(tmp_path: Path, name: str):
    places = put(tmp_path, {"dataset_coco.json": karpathy((name, "test", ["a"]))})
    counts = Counter[str]()
    assert list(COCO(**places, lost=1).read("test", counts)) == []
    assert counts == {"image is missing": 1}


def test_a_file_of_which_no_record_can_be_used_is_an_error_that_says_why(tmp_path: Path):
    places = put(tmp_path, {V2_QUESTIONS: questions((1, 1, "What?")), V2_ANSWERS: annotations((2, ["a"]))})
    with pytest.raises(
        ConfigError, match=r"val2014_questions.json is not of the .* the files are of different release"
    ):
        read(VQAv2(**places), "val")


def test_ingestion_stores_a_shared_image_once_and_reads_what_was_written(tmp_path: Path, s3: str):
    lines = [
        {"sentence": f"Statement {i}.", "identifier": f"dev-4-0-{i}", "label": str(bool(i % 2))} for i in range(6)
    ] + [{"sentence": "Other.", "identifier": "dev-5-0-0", "label": "True"}]
    images = tuple(f"dev/dev-{pair}-0-img{i}.png" for pair in (4, 5) for i in (0, 1))
    places = put(tmp_path, {"dev.json": "\n".join(map(json.dumps, lines))}, images)
    overrides = [f"data.{name}={place}" for name, place in places.items()] + ["data.splits=[dev]", "per_shard=5"]
    for store in (str(tmp_path / "store"), f"{s3}/store"):
        context = RunContext(preset="shapes", overrides=tuple(overrides), store=store)
        result: IngestResult = ingest(context, "nlvr2", out=tmp_path / "data")
        assert result.splits["dev"].samples == 7
        assert result.splits["dev"].shards == 2
        manifest = Manifest.load(tmp_path / "data" / "dev.json")
        found = list(samples(manifest))
        assert [(s.texts, s.meta["label"]) for s in found] == [
            ([line["sentence"]], int(line["label"] == "True")) for line in lines
        ]
        assert [s.images for s in found] == [[picture(0), picture(1)]] * 6 + [[picture(2), picture(3)]]
        tar = manifest.store.get(manifest.shards[0].name)
        assert tar.count(picture(0)) == 1


def test_an_unknown_kind_of_data_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"did you mean nocaps\?"):
        ingest(RunContext(preset="shapes", store=str(tmp_path)), "nocap", out=tmp_path)
