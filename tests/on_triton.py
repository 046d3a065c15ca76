"""Where Triton's kernels run: on the GPU, or where there is none in Triton's interpreter. To be imported before triton.

Tests that import this are skipped without triton.
"""

import os
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

if DEVICE == "cpu":
    from triton.runtime import interpreter

    _patch = interpreter._patch_lang_tensor

    def _patched(tensor: Any, scope: Any) -> None:
        """Since 2.4 numpy makes no int of an array of one number, which the interpreter needs for its loops."""
        _patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patched
