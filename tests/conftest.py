"""Options of the test suite."""

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-long", action="store_true", help="run the long forms of the tests in tests/chaos")
    parser.addoption(
        "--chaos-jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes that tests/chaos use at a time"
    )
