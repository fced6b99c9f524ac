"""CapFilt: captions web images and filters their texts; when it is called, of pairs in memory (BLIP, section 3.3)."""

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """Lets `blip.capfilt(pairs, captioner, filter)` be a call, though the package has the same name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from blip.capfilt.in_memory import capfilt  # imports torch

        return capfilt(*arguments, **options)


sys.modules[__name__].__class__ = CallableModule
