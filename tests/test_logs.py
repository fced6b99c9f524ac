import subprocess
import sys
import warnings

import pytest

LOUD = """
import logging, warnings
from blip.logs import log, quiet
quiet()
warnings.warn("loud")
logging.getLogger("transformers").warning("loud")
deepspeed = logging.getLogger("DeepSpeed")
deepspeed.setLevel(logging.WARNING)
deepspeed.warning("loud")
deepspeed.error("broken")
log.info("our word")
"""


@pytest.mark.parametrize(("level", "heard"), [("", False), ("debug", True)])
def test_only_our_words_and_errors_are_heard_unless_debugging(level, heard):
    out = subprocess.run(
        [sys.executable, "-c", LOUD], env={"BLIP_LOG": level}, capture_output=True, text=True, check=True
    ).stderr
    assert "our word" in out
    assert "broken" in out
    assert ("loud" in out) == heard
    assert warnings.filters, "quiet() was called in another process, not here"
