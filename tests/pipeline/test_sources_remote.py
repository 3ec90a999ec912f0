"""Crawls by http: real servers on loopback. Where an address may lead is decided before anything is sent."""

import datetime
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import places, web
from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.sources import recognise
from pipeline.web import Limits, Refused, TooLarge
from tests.pipeline.crawl_forms import FORMS, items_of, people, picture, status_of, tar_bytes, webdataset

LIMITS = Limits(timeout_s=5, max_bytes=10**8, allow_private=True, retry_wait_s=0.01)
OPEN = IngestConfig(samples_per_shard=5, allow_private_addresses=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; `server.answers` maps a path to bytes, or to a function of the handler."""

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))  # type: ignore[attr-defined]
        answer: Any = self.server.answers.get(self.path)  # type: ignore[attr-defined]
        if callable(answer):
            answer(self)
        elif answer is None:
            self.send_error(404)
        else:
            self.whole(answer)

    do_HEAD = do_GET

    def whole(self, content: bytes, *, claimed: int | None = None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if claimed is None else claimed))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


Answers = dict[str, bytes | Callable[[Handler], None]]


@contextmanager
def serving(answers: Answers, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """(address, requests so far)"""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = answers, []  # type: ignore[attr-defined]
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drain(file: BinaryIO) -> None:
    while file.read(10_000):
        pass


def test_tars_and_tables_by_url(tmp_path: Path) -> None:
    crawl = webdataset(tmp_path / "crawl", people())
    table = FORMS["table of bytes"][1](tmp_path / "t", people())
    answers: Answers = {f"/c/{path.name}": path.read_bytes() for path in crawl.iterdir()}
    answers |= {"/t/crawl.parquet?sig=secret": table.read_bytes()}
    with serving(answers) as (url, _):
        assert items_of(f"{url}/c/{{00000..00003}}.tar", tmp_path / "a", OPEN) == items_of(crawl, tmp_path / "b", OPEN)
        one = items_of(f"{url}/c/00002.tar", tmp_path / "c", OPEN)
        assert {item.identity for item in one} == {"2"} and one[0].source_uri == "00002.tar/20000.jpg"
        assert items_of(f"{url}/t/crawl.parquet?sig=secret", tmp_path / "d", OPEN) == items_of(table, tmp_path / "e", OPEN)
        with pytest.raises(BadCrawl, match=r"There is no|404"):
            items_of(f"{url}/c/{{00000..00009}}.tar", tmp_path / "f", OPEN)
        with pytest.raises(BadCrawl, match="the server answers 404"):
            recognise(f"{url}/nothing.tar?sig=secret", OPEN)
        with pytest.raises(BadCrawl) as caught:
            recognise(f"{url}/nothing.tar?sig=secret", OPEN)
        assert "secret" not in str(caught.value)
        with pytest.raises(BadCrawl, match="no public address"):
            recognise(f"{url}/c/00002.tar", IngestConfig())


def test_a_table_of_urls_has_a_row_for_each(tmp_path: Path) -> None:
    answers: Answers = {
        "/a.jpg": picture(1),
        "/big.jpg": b"x" * 70_000,
        "/to-control": lambda it: it.whole(b"", status=302, Location="/a\t.jpg"),
        "/to-file": lambda it: it.whole(b"", status=302, Location="file:///etc/passwd"),
    }
    answers["/moved.jpg"] = lambda it: it.whole(b"", status=301, Location="/a.jpg")
    answers["/round"] = lambda it: it.whole(b"", status=302, Location="/round")
    answers["/cut.jpg"] = lambda it: it.whole(picture(1)[:500], claimed=2000)
    wanted = {
        "/a.jpg": "ok",
        "/moved.jpg": "ok",
        "/gone.jpg": "unreadable",
        "/to-file": "unreadable",
        "/round": "unreadable",
        "/to-control": "unreadable",
    }
    wanted |= {"/big.jpg": "too_large", "/cut.jpg": "unreadable"}
    with serving(answers) as (url, _):
        pq.write_table(pa.Table.from_pylist([{"identity": "A", "url": url + path} for path in wanted]), tmp_path / "t.parquet")
        config = IngestConfig(allow_private_addresses=True, max_item_bytes=60_000)
        items = items_of(tmp_path / "t.parquet", tmp_path / "plan", config)
        assert dict(zip(wanted, status_of(items).values(), strict=True)) == wanted
        assert items[1].content == picture(1) and items[1].source_url == f"{url}/moved.jpg"
        closed = items_of(tmp_path / "t.parquet", tmp_path / "plan", IngestConfig())
        assert {item.problem for item in closed} == {
            ("unreadable", "127.0.0.1 is no public address; ingest.allow_private_addresses=true reads it all the same")
        }


def test_urls_of_a_table_are_asked_as_they_stand_or_not_at_all(tmp_path: Path) -> None:
    control = ("unreadable", "control characters in the URL")
    with serving({"/a.jpg": picture(1), "/nowhere": lambda it: it.whole(b"", status=302)}) as (url, asked):
        wanted = {
            f" {url}/a.jpg\r\n": None,
            f"{url}/a\r\n.jpg": control,
            f"{url}/\ta.jpg": control,
            f"{url}/\x7fa.jpg": control,
            f"{url}/nowhere": ("unreadable", "the server answers 302 Found and does not say where to"),
        }
        pq.write_table(pa.Table.from_pylist([{"identity": "A", "url": cell} for cell in wanted]), tmp_path / "t.parquet")
        items = items_of(tmp_path / "t.parquet", tmp_path / "plan", OPEN)
        assert dict(zip(wanted, [item.problem for item in items], strict=True)) == wanted
        assert items[0].content == picture(1) and items[0].source_url == f"{url}/a.jpg"
        assert sorted(path for _, path, _ in asked) == ["/a.jpg", "/nowhere"]


def test_a_stream_that_ends_early_is_gone_on_with(tmp_path: Path) -> None:
    content = tar_bytes([(f"{n}.{kind}", text) for n in range(40) for kind, text in (("jpg", picture(n)), ("cls", b"A"))])
    served: list[int] = []

    def in_parts(it: Handler) -> None:
        start = int((it.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        served.append(start)
        part = content[start : start + 30_000]
        headers = {"ETag": '"1"', "Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        it.whole(part, claimed=len(content) - start, status=206 if start else 200, **headers)

    def without_ranges(it: Handler) -> None:
        served.append(0)
        it.whole(content[: 30_000 * len(served)], claimed=len(content), ETag='"1"')

    def changed(it: Handler) -> None:
        served.append(0)
        it.whole(content[:30_000], claimed=len(content), ETag=f'"{len(served)}"')

    def hopeless(it: Handler) -> None:
        served.append(0)
        it.whole(content[:30_000], claimed=len(content))

    for answer in (in_parts, without_ranges):
        served.clear()
        with serving({"/a.tar": answer}) as (url, _), web.open_stream(f"{url}/a.tar", LIMITS) as file:
            assert file.read() == content and len(served) > 3
    for answer, message in ((changed, "the file changed while it was read"), (hopeless, "more attempts did not get further")):
        served.clear()
        with serving({"/a.tar": answer}) as (url, _), web.open_stream(f"{url}/a.tar", LIMITS) as file:
            with pytest.raises(OSError, match=message):
                drain(file)
            assert len(served) <= 5


def test_a_tar_that_stops_coming_gives_what_came_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.time, "sleep", lambda _: None)
    content = tar_bytes([(f"{n}.{kind}", text) for n in range(10) for kind, text in (("jpg", picture(n)), ("cls", b"A"))])
    with serving({"/a.tar": lambda it: it.whole(content[:30_000], claimed=len(content))}) as (url, _):
        found = status_of(items_of(f"{url}/a.tar", tmp_path / "plan", OPEN))
    assert found["a.tar#damage"] == "unreadable" and 3 < sum(status == "ok" for status in found.values()) < 10


def test_downloads_have_caps_of_size_and_time() -> None:
    def endless(it: Handler) -> None:
        it.send_response(200)
        it.end_headers()
        try:
            while True:
                it.wfile.write(b"x" * 10_000)
        except OSError:
            pass

    def trickle(it: Handler) -> None:
        it.send_response(200)
        it.send_header("Content-Length", "1000")
        it.end_headers()
        try:
            for _ in range(60):
                it.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    def silent(it: Handler) -> None:
        time.sleep(3)

    few = Limits(timeout_s=0.5, max_bytes=100_000, allow_private=True, retry_wait_s=0.01)
    with serving({"/endless": endless, "/trickle": trickle, "/silent": silent, "/huge": lambda it: it.whole(b"", claimed=10**9)}) as (
        url,
        _,
    ):
        for path in ("endless", "huge"):
            with pytest.raises(TooLarge):
                web.fetch(f"{url}/{path}", few)
            with pytest.raises(TooLarge), web.open_stream(f"{url}/{path}", few) as file:
                drain(file)
        for path in ("trickle", "silent"):
            started = time.monotonic()
            with pytest.raises(OSError, match=r"not whole after|not read"):
                web.fetch(f"{url}/{path}", few)
            assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "address",
    [
        *["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255"],
        *["::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"],
        *["192.0.0.1", "198.18.0.1", "240.0.0.1"],
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(Refused, match="no public address"):
        web.check_address(address, Limits(1, 1, allow_private=False))
    web.check_address(address, LIMITS)


def test_public_addresses_are_not_refused() -> None:
    for address in ("1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        web.check_address(address, Limits(1, 1, allow_private=False))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "file scheme"),
        ("ftp://example.org/a", "ftp scheme"),
        ("//example.org/a", "no scheme"),
        ("http://user:secret@example.org/", "a user or password"),
        ("http:///a", "no host"),
        ("http://example.org:99999/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://example.org/a\r\nX: b", "control characters"),
    ],
)
def test_urls_that_are_none_are_refused(url: str, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        web.check_url(url)
    assert "secret" not in str(caught.value)


def test_odd_letters_of_a_url_cannot_write_a_second_request() -> None:
    scheme, host, port, target = web.check_url("HTTP://Example.org/a b\x85X: é?q=1 2%20")
    assert (scheme, host, port) == ("http", "example.org", 80)
    assert target.isascii() and not set(target) & set(" \r\n")


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is looked at, and loopback a moment later."""
    lookups: list[str] = []
    with serving({"/a.jpg": b"inner secret"}) as (url, asked):
        port = int(url.rpartition(":")[2])

        def rebinding(host: str, *_: object, **__: object) -> list[Any]:
            lookups.append(host)
            address = "127.0.0.1" if len(lookups) > 1 else "192.0.2.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        connected: list[Any] = []

        def connect(self: socket.socket, address: Any) -> None:
            connected.append(address[0])
            raise OSError("no route")

        monkeypatch.setattr(web.socket, "getaddrinfo", rebinding)
        monkeypatch.setattr(web, "check_address", lambda address, limits: None)
        monkeypatch.setattr(web.socket.socket, "connect", connect)
        with pytest.raises(OSError, match="no route"):
            web._connection("http", "rebind.example", port, LIMITS)
        assert connected == ["192.0.2.1"] and len(lookups) == 1 and asked == []


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("1.1.1.1", "127.0.0.1")]
    monkeypatch.setattr(web.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Refused, match=r"127\.0\.0\.1 is no public address"):
        web.fetch("http://mixed.example/a", Limits(1, 1, allow_private=False))


def test_redirects_are_checked_like_any_url() -> None:
    with serving({"/a": lambda it: it.whole(b"", status=302, Location="http://localhost:1/b")}) as (url, _):
        seen: list[str] = []
        check = web.check_address

        def only_first(address: str, limits: Limits) -> None:
            seen.append(address)
            check(address, LIMITS if len(seen) == 1 else Limits(1, 1, allow_private=False))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(web, "check_address", only_first)
            with pytest.raises(Refused, match="no public address"):
                web.fetch(f"{url}/a", LIMITS)
        assert len(seen) > 1


def test_https_is_held_to_its_certificate_though_the_address_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), today, today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "both.pem").write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    downgrade: Answers = {"/a.jpg": b"well", "/down": lambda it: it.whole(b"", status=302, Location="http://localhost/a.jpg")}
    with serving(downgrade, context) as (url, _):
        port = url.rpartition(":")[2]
        with pytest.raises(OSError, match="certificate verify failed"):
            web.fetch(f"https://localhost:{port}/a.jpg", LIMITS)
        trusting = ssl.create_default_context(cafile=tmp_path / "both.pem")
        monkeypatch.setattr(web.ssl, "create_default_context", lambda: trusting)
        assert web.fetch(f"https://localhost:{port}/a.jpg", LIMITS) == b"well"
        with pytest.raises(OSError, match="certificate verify failed"):
            web.fetch(f"https://127.0.0.1:{port}/a.jpg", LIMITS)
        with pytest.raises(Refused, match="from https to http"):
            web.fetch(f"https://localhost:{port}/down", LIMITS)


def test_records_hold_no_signature() -> None:
    assert places.recorded("https://a.example/x.tar?X-Amz-Signature=abc") == "https://a.example/x.tar"
    assert places.name_of("https://a.example/x.tar?X-Amz-Signature=a/b") == "x.tar"
