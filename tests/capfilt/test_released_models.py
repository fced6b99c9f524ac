"""CapFilt of tars by models that others wrote, before which what cannot work is said at once."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import TEXTS, both, captioner, model_folder, picture, text_filter
from tiny_others import clip, florence

from blip.config import ConfigError
from blip.runs import capfilt as runs_capfilt
from blip.runs.capfilt import capfilt
from blip.runs.context import RunContext
from blip.runs.select import select
from blip.shards.manifest import Manifest

SETTINGS = ("workers=1", "stream.batch=4", "captioner.batch=4", "stream.decoding.max_length=8")


def downloaded(folder: Path) -> Path:
    """Writes a folder as img2dataset does: tars with records of what was downloaded beside them."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as file:
        for i in range(4):
            for ending, data in (("jpg", picture(i, (32, 32), format="JPEG")), ("txt", TEXTS[i].encode())):
                member = tarfile.TarInfo(f"{i:09d}.{ending}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    (folder / "00000_stats.json").write_text(json.dumps({"count": 4, "successes": 4}))
    pq.write_table(pa.table({"url": ["http://a/0.jpg"], "status": ["success"]}), folder / "00000.parquet")
    return folder


def test_what_img2dataset_wrote_is_cleaned_by_models_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_TRACKING", "off")
    data = downloaded(tmp_path / "web")
    context = RunContext(preset="shapes", overrides=SETTINGS, store=str(tmp_path / "store"))
    models = {"captioner": florence(tmp_path / "florence"), "filter": clip(tmp_path / "clip")}
    result = capfilt(context, data=data, **models, out=tmp_path / "scored")
    assert (result.images, result.shards, result.dead) == (4, 1, {})
    kept = select(RunContext(), data=tmp_path / "scored", out=tmp_path / "kept", threshold="50%", by="similarity")
    assert kept.counts["images"] == 4
    assert 4 <= kept.counts["web.kept"] + kept.counts["synthetic.kept"] < 8
    assert 0 < Manifest.load(tmp_path / "kept" / "bootstrapped.json").samples <= 4


@pytest.mark.parametrize(
    ("captioner_of", "filter_of", "message"),
    [
        ("filter", "filter", "captioner .*/filter: the captioner must be trained for captioning or pretraining"),
        ("captioner", "captioner", "filter .*/captioner: the filter must be trained for retrieval or pretraining"),
        ("clip", "filter", "captioner .*/clip: this model writes no texts; name it as filter"),
        ("captioner", "florence", "filter .*/florence: this model writes texts but scores none; name it as captioner"),
    ],
)
def test_a_model_in_the_wrong_role_is_refused_before_tars_are_read(
    captioner_of: str, filter_of: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs_capfilt, "discover", lambda *_: pytest.fail("tars were read"))
    model_folder(captioner(), tmp_path / "captioner")
    model_folder(text_filter(), tmp_path / "filter")
    for make in (clip, florence):
        make(tmp_path / make.__name__)
    with pytest.raises(ConfigError, match=message):
        capfilt(
            RunContext(preset="shapes", store=str(tmp_path / "store")),
            data=downloaded(tmp_path / "web"),
            captioner=tmp_path / captioner_of,
            filter=tmp_path / filter_of,
            out=tmp_path / "scored",
        )


def test_pairs_that_are_not_in_tars_are_refused_with_the_command_that_takes_them(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(picture(0, format="JPEG"))
    model = model_folder(both(), tmp_path / "model")
    for data, words in (
        (f"{tmp_path}/photos", rf"`blip ingest {tmp_path}/photos --out FOLDER`"),
        (f"{tmp_path}/photos/*.jpg", rf"`blip ingest {tmp_path}/photos/\*\.jpg --out FOLDER`"),
        (f"file://{tmp_path}/photos", rf"`blip ingest file://{tmp_path}/photos --out FOLDER`"),
        (f"{tmp_path}/nowhere", "nowhere: no such file or folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            capfilt(RunContext(preset="shapes"), data=data, captioner=model, filter=model, out=tmp_path / "scored")
