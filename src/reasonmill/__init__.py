"""reasonmill turns a base language model into a reasoning model, by DeepSeek-R1's recipe."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("reasonmill")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"
