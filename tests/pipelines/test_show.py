import json
import subprocess
import sys
import time

from kfp import dsl

from components.show import show


def test_seconds_are_those_since_the_process_began():
    code = "import time; time.sleep(0.2); from components.show import seconds; print(seconds())"
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 0.2 < float(said) < time.monotonic() - began + 0.05


def test_figures_become_a_table_a_file_and_a_card_with_the_way_to_mlflow(tmp_path):
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    card = dsl.Markdown(uri=str(tmp_path / "card"))
    figures = {
        "losses": {"itc": 4.25},
        "steps": 3,
        "registered": True,
        "curves": {"itc": [[0, 5.0]]},
        "mlflow": "http://mlflow/run",
    }
    show(figures, metrics, card)
    seconds = metrics.metadata.pop("seconds")
    assert metrics.metadata == {"losses.itc": 4.25, "steps": 3, "registered": True}
    assert json.loads((tmp_path / "metrics").read_text()) == {**figures, "seconds": seconds}
    said = (tmp_path / "card").read_text()
    assert "| losses.itc | 4.25 |" in said
    assert "[The run in MLflow](http://mlflow/run)" in said


def test_what_is_no_result_and_no_number_stays_out_of_the_table_and_reasons_stand_above_it(tmp_path):
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    card = dsl.Markdown(uri=str(tmp_path / "card"))
    figures = {
        "losses": {"itc": float("nan"), "lm": float("inf"), "itm": 0.5},
        "params": {"epochs": 4},
        "gate": "not registered: captioning.cider is nan, which is no score",
        "alarms": [{"name": "captions_alike", "step": 40}],
    }
    show(figures, metrics, card)
    assert metrics.metadata.keys() == {"losses.itm", "seconds"}
    said = (tmp_path / "card").read_text()
    assert said.startswith(
        "not registered: captioning.cider is nan, which is no score\n\n**Alarm:** captions_alike at step 40\n\n| figure |"
    )
