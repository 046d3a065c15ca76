"""Options of the test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-long", action="store_true", help="run the long forms of the tests in tests/chaos")
    parser.addoption("--chaos-jobs", type=int, default=1, help="processes that the long forms use at a time")
