"""Redis over TLS, with certificates on both sides."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.errors import StreamError, StreamUnavailableError
from ucs_pipeline.publishing.ordered.publisher import Publisher
from ucs_pipeline.publishing.run import publish
from ucs_pipeline.reading.verify import verify
from ucs_pipeline.stream.stream import OrderedStream
from ucs_pipeline_tests.servers.ports import HeldPort
from ucs_pipeline_tests.servers.redis_cluster import RedisCluster, WatchedRedis
from ucs_pipeline_tests.servers.redis_server import RedisServer
from ucs_pipeline_tests.support.connections import connect_redis
from ucs_pipeline_tests.support.tables import expected, numbers, source_of

ROWS = 15_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, certificates of a server and a client that it signed, and those of another CA."""
    directory = tmp_path_factory.mktemp("certificates")
    for owner, names in (("own", {"server": "127.0.0.1", "client": "publisher"}), ("other", {"stranger": "stranger"})):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / f"{owner}.pem"))
        for name, host in names.items():
            issued = authority.issue_cert(host)
            issued.private_key_pem.write_to_path(str(directory / f"{name}.key"))
            issued.cert_chain_pems[0].write_to_path(str(directory / f"{name}.crt"))
    return directory


@pytest.fixture(scope="module")
def tls(files: Path) -> dict[str, str | int]:
    """A server's options for its certificates; it also requires those of its clients."""
    names = {"tls-cert-file": "server.crt", "tls-key-file": "server.key", "tls-ca-cert-file": "own.pem"}
    return {option: str(files / name) for option, name in names.items()}


@pytest.fixture(scope="module")
def port(tls: dict[str, str | int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with HeldPort() as port, RedisServer(tmp_path_factory.mktemp("tls"), {**tls, "tls-port": port.number}):
        yield port.number


def _options(files: Path, ca: str | None = "own.pem", client: str | None = "client", key: str | None = None) -> str:
    options = {"ssl_ca_certs": str(files / ca)} if ca else {}
    if client:
        options |= {"ssl_certfile": str(files / f"{client}.crt"), "ssl_keyfile": str(files / f"{key or client}.key")}
    return urlencode(options)


def _publish() -> None:
    feed = numbers(ROWS).feed(ROWS - 1)
    stream = OrderedStream("feed", connect_redis("feed"))
    assert [report.published for report in publish(feed, source_of(feed), stream, feed.ordinals, lambda _: {})]
    assert stream.entries(EntryId(0, 0), EntryId(2**63, 0)) == expected(ROWS)
    assert verify(feed, source_of(feed), stream).agrees


def test_a_feed_is_published_and_compared_with_client_certificates(
    files: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", f"rediss://127.0.0.1:{port}/0?{_options(files)}")
    _publish()


def test_a_cluster_and_sentinels_speak_tls_too(
    files: Path, tls: dict[str, str | int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("cluster", "watched"):
        (tmp_path / kind).mkdir()
        with (
            RedisCluster(tmp_path / kind, "feed", tls) if kind == "cluster" else WatchedRedis(tmp_path / kind, tls)
        ) as servers:
            monkeypatch.setenv("UCS_REDIS_URL", f"{servers.url}?{_options(files)}")
            _publish()


@pytest.mark.parametrize(
    ("host", "options", "sentence"),
    [
        ("127.0.0.1", {"ca": "other.pem"}, r"certificate of Redis is not trusted \(.*the CA in ssl_ca_certs"),
        ("127.0.0.1", {"ca": None}, r"certificate of Redis is not trusted \(.*the CA in ssl_ca_certs"),
        ("localhost", {}, r"certificate of Redis is not trusted \(Hostname mismatch.*Expected one for the host's name"),
        ("127.0.0.1", {"key": "server"}, r"a certificate cannot be used \(KEY_VALUES_MISMATCH\)\. Check ssl_certfile"),
        ("127.0.0.1", {"ca": "server.key"}, "a certificate cannot be used .*ssl_ca_certs"),
        (
            "127.0.0.1",
            {"ca": "nothing.pem"},
            r"ssl_ca_certs in UCS_REDIS_URL names .*nothing\.pem, which is no file that can be read",
        ),
    ],
)
def test_a_certificate_that_does_not_do_is_named(
    files: Path, port: int, monkeypatch: pytest.MonkeyPatch, host: str, options: dict[str, str], sentence: str
) -> None:
    monkeypatch.setenv("UCS_REDIS_URL", f"rediss://:pa55@{host}:{port}/0?{_options(files, **options)}")
    for action in (
        lambda: OrderedStream("feed", connect_redis("feed")).state(),
        lambda: Publisher(OrderedStream("feed", connect_redis("feed"))),
    ):
        with pytest.raises(StreamError, match=sentence) as caught:
            action()
        assert not isinstance(caught.value, StreamUnavailableError)
        assert "pa55" not in str(caught.value)


@pytest.mark.parametrize("client", [None, "stranger"])
def test_a_missing_or_strange_client_certificate_is_named(
    files: Path, port: int, monkeypatch: pytest.MonkeyPatch, client: str | None
) -> None:
    # Redis reports this after the handshake. The report may be lost when it closes the connection.
    monkeypatch.setenv("UCS_REDIS_URL", f"rediss://127.0.0.1:{port}/0?{_options(files, client=client)}")
    for action in (
        lambda: OrderedStream("feed", connect_redis("feed")).state(),
        lambda: Publisher(OrderedStream("feed", connect_redis("feed"))),
    ):
        with pytest.raises(StreamError, match=r"expects? a client certificate.*ssl_certfile"):
            action()


def test_a_port_that_speaks_tls_and_a_url_that_does_not_are_named_and_the_reverse(
    port: int, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucs_pipeline.redis.connection._TIMEOUT_SECONDS", 1)
    for url, sentence in (
        (
            f"redis://:pa55@127.0.0.1:{port}/0",
            r"the port in UCS_REDIS_URL answers with TLS\. Begin the URL with rediss://",
        ),
        (
            f"rediss://:pa55@127.0.0.1:{redis_server.port}/0",
            r"the port in UCS_REDIS_URL answers without TLS\. Begin the URL with redis://",
        ),
    ):
        monkeypatch.setenv("UCS_REDIS_URL", url)
        stream = OrderedStream("feed", connect_redis("feed"))
        for action in (stream.state, lambda stream=stream: Publisher(stream)):
            with pytest.raises(StreamError, match=sentence) as caught:
                action()
            assert not isinstance(caught.value, StreamUnavailableError)
