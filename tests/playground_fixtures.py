"""The playground's tasks and pages, made once for all the tests that ask for them."""

import pytest

from tests.playground_tasks import make_clients, make_tasks


@pytest.fixture(scope="session")
def tasks(sentencepiece_proto):
    return make_tasks(sentencepiece_proto)


@pytest.fixture(scope="session")
def clients(tasks):
    return make_clients(tasks)
