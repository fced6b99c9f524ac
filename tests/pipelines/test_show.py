import subprocess
import sys
import time

from kfp import dsl

from blip.results import Alarm, GateResult, TrainResult
from components.show import show


def test_seconds_are_those_since_the_process_began():
    code = "import time; time.sleep(0.2); from components.show import process_seconds; print(process_seconds())"
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 0.2 < float(said) < time.monotonic() - began + 0.05


def test_a_result_becomes_a_table_a_file_and_a_card_with_the_way_to_mlflow(tmp_path):
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    card = dsl.Markdown(uri=str(tmp_path / "card"))
    result = TrainResult(
        steps=3,
        losses={"itc": 4.25, "lm": float("nan")},
        curves={"itc": [(0, 5.0)]},
        alarms=(Alarm(name="captions_alike", step=40),),
        params={"epochs": 4},
        mlflow="http://mlflow/run",
    )
    show(result, metrics, card)
    seconds = metrics.metadata.pop("seconds")
    assert metrics.metadata == {"losses.itc": 4.25, "steps": 3, "alarms": 1, "rejected": 0}
    read = TrainResult.load(tmp_path / "metrics")
    assert repr(read) == repr(result.model_copy(update={"seconds": seconds})), "not a number is not equal to itself"
    said = (tmp_path / "card").read_text(encoding="utf-8")
    assert said.startswith("Alarm: captions alike at step 40\n\n| figure |")
    assert "| losses.itc | 4.25 |" in said
    assert "[The run in MLflow](http://mlflow/run)" in said


def test_the_reason_of_the_gate_stands_above_the_table(tmp_path):
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    card = dsl.Markdown(uri=str(tmp_path / "card"))
    reason = "not registered: captioning.cider is nan, which is no score"
    show(GateResult(registered=False, reason=reason), metrics, card)
    assert metrics.metadata.keys() == {"registered", "seconds"}
    assert (tmp_path / "card").read_text(encoding="utf-8").startswith(f"{reason}\n\n| figure |")
