"""The files by which MLflow serves a model folder: signature, input example, environment and `MLmodel`."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

LOADER = "blip.serving"
OUTPUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "captioning": (("caption", "string"),),
    "vqa": (("answer", "string"),),
    "retrieval": (("probability", "double"), ("similarity", "double")),
    "pretraining": (),
}
"""The columns of the results by the task that a model was trained for; a pre-trained one has them all."""
TEXTS = {"vqa": "what colour is the circle?", "retrieval": "a red circle", "pretraining": "a red circle"}
REQUIREMENTS = ("blip-bootstrap", "torch", "timm", "tokenizers", "safetensors", "pillow", "numpy", "pydantic", "mlflow")
SIDE = 32


def write_pyfunc(folder: Path, task: str) -> bool:
    """Writes the files beside a model folder's own; returns whether MLflow can serve a model of this task."""
    if task not in OUTPUTS:
        return False
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec

    inputs: list[ColSpec | TensorSpec] = [ColSpec(AnyType(), "image")]
    if task in TEXTS:
        inputs.append(ColSpec(DataType.string, "text", required=task != "pretraining"))
    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType[kind], name) for name, kind in OUTPUTS[task]]
    model = Model(signature=ModelSignature(Schema(inputs), Schema(outputs) if outputs else None))
    pyfunc.add_to_model(model, loader_module=LOADER, python_env="python_env.yaml")
    row = example_row(task)
    split = {"columns": list(row), "data": [list(row.values())]}
    (folder / "input_example.json").write_text(json.dumps(split), encoding="utf-8")
    (folder / "serving_input_example.json").write_text(json.dumps({"dataframe_split": split}), encoding="utf-8")
    model.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "type": "dataframe",
        "pandas_orient": "split",
        "serving_input_path": "serving_input_example.json",
    }
    lines = [f"{name}=={version(name)}\n" for name in REQUIREMENTS]
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "python_env.yaml").write_text(
        'python: ">=3.11"\ndependencies:\n- -r requirements.txt\n', encoding="utf-8"
    )
    model.save(str(folder / "MLmodel"))
    return True


@contextmanager
def bad_requests() -> Iterator[None]:
    """Turns a ValueError into MLflow's error of a wrong request: status 400, its message, and no traceback."""
    from mlflow import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    try:
        yield
    except ValueError as error:
        raise MlflowException(str(error), error_code=BAD_REQUEST) from None


def example_row(task: str) -> dict[str, str]:
    """Returns one row of input: a grey image in base64, and a text where the model reads one."""
    image = {"image": base64.b64encode(grey_png()).decode()}
    return image | ({"text": TEXTS[task]} if task in TEXTS else {})


def grey_png() -> bytes:
    """Returns a grey image as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + b"\x80" * SIDE for _ in range(SIDE)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def card(facts: Mapping[str, str], scores: Mapping[str, float]) -> str:
    """Returns the card of a registered model: facts by heading, and a table of its scores."""
    sections = [f"## {heading}\n\n{text}\n" for heading, text in facts.items()]
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in sorted(scores.items()))
    return "# Model card\n\n" + "\n".join(sections) + f"\n## Scores\n\n| score | value |\n|---|---:|\n{rows}"
