"""What the tests of a stream share."""

import pytest

from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.redis_server import RedisServer


@pytest.fixture
def stream(redis_server: RedisServer) -> OrderedStream:
    """A stream on the test process's Redis."""
    return OrderedStream("feed", redis_server.client())
