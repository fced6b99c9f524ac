"""Import: writes a checkpoint of BLIP, from wherever it lies, as a model folder of ours."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from blip.config import ConfigError
from blip.zoo.convert import describe
from blip.zoo.recognise import recognise
from blip.zoo.source import model_folder


def import_model(source: str, out: str | Path, tokenizer: str = "", overrides: Sequence[str] = ()) -> str:
    """Writes the model of a source to the folder `out`, and returns one line on it.

    Raises ConfigError if it is no BLIP, if its files leave a setting unknown, or if `out` holds something else.
    """
    folder, target = model_folder(source, tokenizer, overrides, ours=True), Path(out)
    if recognise(folder) != "ours":
        raise ConfigError(
            f"model {source}: is no BLIP, so it stays as it is; name it where it is used, as in --captioner {source}"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out {target}: exists already; name a folder that is empty or new")
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return f"{target}: {describe(target)}"
