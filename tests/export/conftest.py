"""Exports in tests: without the tracer's records, which pytest would keep."""

import logging

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_trace_records() -> None:
    logging.getLogger("torch.__trace").propagate = False
