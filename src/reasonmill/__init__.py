"""reasonmill turns a base language model into a reasoning model, by DeepSeek-R1's recipe."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:  # which would take it for a module that has any attribute

    def __getattr__(name: str) -> str:
        """`__version__`, which few ask for: to look for it takes longer than the start of a process of graders."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("reasonmill")
        except PackageNotFoundError:  # a source tree on the path, not installed
            return "0+source"
