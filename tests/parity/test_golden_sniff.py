"""Task and sizes of the reference's files are read off their tensors."""

from pathlib import Path

import pytest
from golden_files import Golden

from blip.models.weights.files import read_tensors
from blip.zoo.sniff import SniffedCheckpoint


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("pretrain", "pretraining"),
        ("captioner", "captioning"),
        ("retrieval", "retrieval"),
        ("vqa", "vqa"),
        ("nlvr", "nlvr"),
    ],
)
def test_the_reference_s_files_tell_task_and_sizes(golden: Golden, name: str, task: str):
    text = golden.json("med_config_nlvr.json" if name == "nlvr" else "med_config.json")
    checkpoint = SniffedCheckpoint(read_tensors(Path(golden.weights(name))), golden.folder)
    found = checkpoint.sizes(text)
    expected = golden.med("med_config_nlvr.json" if name == "nlvr" else "med_config.json")
    assert checkpoint.task == task
    for part in ("vision", "text"):
        known = {key: value for key, value in found[part].items() if value is not None and key != "heads"}
        assert {key: getattr(getattr(expected, part), key) for key in known} == known, part
    assert found["text"]["heads"] == text["num_attention_heads"]
