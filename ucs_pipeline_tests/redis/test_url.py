"""Valid and invalid values of `UCS_REDIS_URL`."""

import pytest

from ucs_pipeline.errors import StreamError
from ucs_pipeline.redis.url import Nodes, parse_nodes
from ucs_pipeline_tests.support.connections import connect_each, connect_redis


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis://h:1/0", None),
        ("rediss://h:1/0?ssl_certfile=a", None),
        ("unix:///a.sock", None),
        ("redis+sentinel://h/prime", Nodes([("h", 26379)], "prime", False, {"db": 0}, {})),
        (
            "rediss+sentinel://u:p%40@a:1,b:2/prime/3?sentinel_username=s&sentinel_password=t%2Fu&ssl_ca_certs=/ca",
            Nodes(
                [("a", 1), ("b", 2)],
                "prime",
                True,
                {"db": 3, "username": "u", "password": "p@", "ssl_ca_certs": "/ca"},
                {"username": "s", "password": "t/u"},
            ),
        ),
        (
            "redis+cluster://:p@[::1]:7000,h?socket_timeout=5",
            Nodes([("::1", 7000), ("h", 6379)], None, False, {"db": 0, "password": "p", "socket_timeout": 5.0}, {}),
        ),
        ("rediss+cluster://h:7000/0", Nodes([("h", 7000)], None, True, {"db": 0}, {})),
    ],
)
def test_a_url_names_one_server_or_several_nodes(url: str, nodes: Nodes | None) -> None:
    assert parse_nodes(url) == nodes


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://u:pa55@h:26379",
        "redis+sentinel://u:pa55@h:26379/",
        "redis+sentinel://u:pa55@h:26379/prime/first",
        "redis+sentinel://u:pa55@h,,i/prime",
        "redis+sentinel://u:pa55@/prime",
        "redis+sentinel://u:pa55@h:99999999/prime",
        "redis+sentinel://u:pa55@h/prime?no_such_option=pa55",
        "redis+cluster://u:pa55@h:7000/1",
        "redis+cluster://u:pa55@h:7000?db=1",
        "redis+cluster://u:pa55@h:7000?sentinel_password=pa55",
        "redis+cluster://u:pa55@h:pa55",
        "rediss+cluster://u:pa55@h?ssl_cert_reqs=pa55",
        "redis+magic://u:pa55@h",
    ],
)
def test_a_bad_url_of_several_nodes_is_refused_without_quoting_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", url)
    with pytest.raises(StreamError, match=r"UCS_REDIS_URL is not a Redis URL\. Expected .*redis\+cluster://") as caught:
        connect_redis("feed")
    assert "pa55" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_streams_share_a_client_unless_they_are_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, clients in (("redis://h", 1), ("redis+sentinel://h/prime", 1), ("redis+cluster://h", 2)):
        monkeypatch.setenv("UCS_REDIS_URL", url)
        assert len(set(connect_each(["one", "other"]))) == clients
