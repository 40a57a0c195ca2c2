"""One Ray with two actors for all tests here, started when the first needs it."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import ray

from runtime.channels.ray import RayCluster
from runtime.channels.ray.starting import introduce
from tests.demo.conftest import step  # noqa: F401
from tests.ray.offers import offered
from tests.remote.conftest import alice, bob  # noqa: F401
from tests.remote.test_federated import epoch  # noqa: F401


@pytest.fixture(scope="session")
def actors() -> Generator[RayCluster]:
    """The cluster, with whatever the tests before left in it."""
    with RayCluster(
        workers=["bob", "alice"], resources={"CPU": 0.1}, placement="PACK", data=offered
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(actors: RayCluster) -> RayCluster:
    """The cluster as it was at first: its actors begin anew."""
    everyone = {worker.id: worker.actor for worker in actors}
    for spec, worker in zip(actors._specs, actors, strict=True):
        assert not ray.get(worker.actor.start.remote(spec)).failed
        worker._installed.clear()
    introduce(everyone, to=everyone)
    return actors
