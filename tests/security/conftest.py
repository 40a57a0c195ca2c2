from __future__ import annotations

from pathlib import Path

import pytest

from runtime.security.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "test", 3650)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """Another collaboration's, of the same name."""
    return Authority.create(tmp_path / "other", "test", 3650)
