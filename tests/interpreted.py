"""Triton's interpreter, which runs kernels on a CPU. To be imported before anything that imports triton."""

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"
interpreter = pytest.importorskip("triton.runtime.interpreter")

_patch = interpreter._patch_lang_tensor


def _patched(tensor, scope):  # type: ignore[no-untyped-def]
    """Since 2.4 numpy makes no int of an array of one number, as the interpreter asks for to run a loop."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched
