"""The templates, read once."""

from __future__ import annotations

import pytest

from tests.infra.bicep_check import Files
from tests.infra.test_bicep import INFRA, NOT_CHECKED


@pytest.fixture(scope="session")
def files() -> Files:
    files = Files(INFRA, NOT_CHECKED)
    files.load()
    return files
