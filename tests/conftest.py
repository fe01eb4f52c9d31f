"""Settings and fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

import poolkit

# No deadline: a test says nothing about time. No database: a run leaves no files behind.
hypothesis.settings.register_profile("poolkit", deadline=None, max_examples=60, database=None)
hypothesis.settings.load_profile("poolkit")


@pytest.fixture
def keep_settings() -> Iterator[None]:
    """Puts the instruction set and the thread count back after a test that changes them."""
    before = poolkit.info()
    yield
    poolkit.use_isa(before["isa"])
    poolkit.set_num_threads(before["threads"])
