"""Files by http and https, from addresses that were looked at first.

A URL in a crawl is hostile: it may name a machine behind our firewall (SSRF). So only http and https are spoken; the host is resolved once,
every address of it has to be a public one, and the connection goes to the very address that was checked, so that a name which resolves
otherwise a moment later changes nothing; each redirect is a new URL, checked again. Proxies are not used: they would resolve for themselves.
"""

import contextlib
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self, cast
from urllib.parse import quote, urljoin, urlsplit

from pipeline.config import IngestConfig

_REDIRECTS = 5
_ATTEMPTS = 4
_CHUNK = 1 << 18
_HEADERS = {"User-Agent": "arcface-purify", "Accept-Encoding": "identity", "Connection": "close"}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH = "/%:=&?~#+!$,;'@()*[]"


class Refused(OSError):  # noqa: N818 - a finding, which becomes a row
    """A URL that is not read: its scheme, its address, where it leads, or its answer."""


class TooLarge(OSError):  # noqa: N818 - a finding, which becomes a row
    """More bytes than allowed."""

    def __init__(self, size: int, allowed: int) -> None:
        super().__init__(f"{size} bytes, {allowed} allowed")


@dataclass(frozen=True)
class Limits:
    """What a download may take."""

    timeout_s: float
    """For a picture as a whole; for a stream until it begins, and between any two pieces of it."""
    max_bytes: int
    allow_private: bool
    """Also loopback, private, link-local and reserved addresses."""
    retry_wait_s: float = 0.5
    """Before the second attempt; doubled before each further one."""

    @classmethod
    def of(cls, config: IngestConfig, *, max_bytes: int | None = None) -> Self:
        """The limits that the settings name; `max_bytes` for one file instead of `url_max_bytes`."""
        return cls(config.url_timeout_s, config.url_max_bytes if max_bytes is None else max_bytes, config.allow_private_addresses)


def facts(url: str, limits: Limits) -> tuple[int, str]:
    """(bytes, mark) of a file: the mark is its ETag or time of change, "" when the server gives neither; 0 bytes when it does not say."""
    for method in ("HEAD", "GET"):  # a signed URL is signed for GET alone
        with _asked(method, url, limits) as answer:
            if answer.status < 400:
                size = answer.getheader("Content-Length") or ""
                mark = answer.getheader("ETag") or answer.getheader("Last-Modified") or ""
                return int(size) if size.isdecimal() else 0, mark
            problem = f"the server answers {answer.status} {answer.reason}"
    raise Refused(problem)


def fetch(url: str, limits: Limits) -> bytes:
    """All bytes of a small file, within `timeout_s`. Raises Refused, TooLarge, or another OSError that says why."""
    until = time.monotonic() + limits.timeout_s
    for attempt in range(_ATTEMPTS):
        try:
            return _fetch(url, limits, until)
        except (Refused, TooLarge):
            raise
        except OSError as error:
            wait = limits.retry_wait_s * 2**attempt
            if attempt == _ATTEMPTS - 1 or time.monotonic() + wait > until:
                raise OSError(f"not read: {error or type(error).__name__}") from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def open_stream(url: str, limits: Limits) -> BinaryIO:
    """A file as it comes. Where it ends early it is asked for again from there, some times; then reading raises OSError."""
    return cast(BinaryIO, io.BufferedReader(_Stream(url, limits), _CHUNK))


def check_url(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query) of a URL.

    Raises Refused: unless it is http or https, with a host, and without a password and control characters.
    """
    _require_no_control(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused("no URL: its host or port is none") from error
    if parts.scheme.lower() not in {"http", "https"}:
        raise Refused(f"{parts.scheme or 'no'} scheme; only http and https are read")
    if parts.username is not None or parts.password is not None:
        raise Refused("a user or password in the URL")
    if not parts.hostname or any(ord(letter) < 33 for letter in parts.hostname):
        raise Refused("no host in the URL")
    target = quote(parts.path or "/", safe=_PATH) + (f"?{quote(parts.query, safe=_PATH)}" if parts.query else "")
    return parts.scheme.lower(), parts.hostname, port or (443 if parts.scheme.lower() == "https" else 80), target


def _require_no_control(url: str) -> None:
    """Raise Refused for what `urlsplit` and `urljoin` would leave out, so that another URL would be asked."""
    if _CONTROL.search(url):
        raise Refused("control characters in the URL")


def check_address(address: str, limits: Limits) -> None:
    """Raise Refused for an address that is not public, unless those are allowed."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None)
        found = inner or found
    if not limits.allow_private and (not found.is_global or found.is_multicast):
        raise Refused(f"{found} is no public address; ingest.allow_private_addresses=true reads it all the same")


def _fetch(url: str, limits: Limits, until: float) -> bytes:
    with _asked("GET", url, limits, until=until) as answer:
        _require_ok(answer)
        if answer.length is not None and answer.length > limits.max_bytes:
            raise TooLarge(answer.length, limits.max_bytes)
        wanted, content = answer.length, bytearray()
        while piece := answer.read1(_CHUNK):
            content += piece
            if len(content) > limits.max_bytes:
                raise TooLarge(len(content), limits.max_bytes)
        if wanted is not None and len(content) < wanted:
            raise OSError(f"ends after {len(content)} of {wanted} bytes")
        if time.monotonic() > until:
            raise Refused(f"not whole after {limits.timeout_s:g} s")
        return bytes(content)


def _require_ok(answer: http.client.HTTPResponse) -> None:
    if answer.status == 429 or answer.status >= 500:
        raise OSError(f"the server answers {answer.status} {answer.reason}")
    if answer.status not in {200, 206}:
        raise Refused(f"the server answers {answer.status} {answer.reason}")


class _Stream(io.RawIOBase):
    """The raw end of `open_stream`."""

    def __init__(self, url: str, limits: Limits) -> None:
        self._url, self._limits = url, limits
        self._position = 0
        self._wanted: int | None = None
        self._etag: str | None = None
        self._kept = contextlib.ExitStack()
        self._failures = 0
        self._answer = self._connect()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._kept.close()
        super().close()

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while True:
            try:
                piece = self._answer.read1(len(buffer))
                if not piece and self._wanted is not None and self._position < self._wanted:
                    raise OSError(f"ends after {self._position} of {self._wanted} bytes")
            except (OSError, http.client.HTTPException) as error:
                self._again(error)
                continue
            self._position += len(piece)
            if self._position > self._limits.max_bytes:
                raise TooLarge(self._position, self._limits.max_bytes)
            if piece:
                self._failures = 0
            buffer[: len(piece)] = piece
            return len(piece)

    def _again(self, error: Exception) -> None:
        """Connect once more and go on at the position reached; raise OSError when that failed too often."""
        while True:
            self._failures += 1
            if isinstance(error, (Refused, TooLarge)):
                raise error
            if self._failures >= _ATTEMPTS:
                raise OSError(f"{error or type(error).__name__}, and {_ATTEMPTS - 1} more attempts did not get further") from error
            time.sleep(self._limits.retry_wait_s * 2 ** (self._failures - 1))
            try:
                self._answer = self._connect()
            except (OSError, http.client.HTTPException) as worse:
                error = worse
            else:
                return

    def _connect(self) -> http.client.HTTPResponse:
        self._kept.close()
        headers = {}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        answer = self._kept.enter_context(_asked("GET", self._url, self._limits, headers=headers))
        _require_ok(answer)
        etag = answer.getheader("ETag")
        if self._position == 0:
            self._wanted = answer.length
            self._etag = etag if etag and not etag.startswith("W/") else None
            if answer.length is not None and answer.length > self._limits.max_bytes:
                raise TooLarge(answer.length, self._limits.max_bytes)
        elif answer.status == 200:  # the whole file again
            if self._etag is not None and etag != self._etag:
                raise Refused("the file changed while it was read")
            self._skip(answer, self._position)
        elif not (answer.getheader("Content-Range") or "").startswith(f"bytes {self._position}-"):
            raise Refused("the server gives another range than asked for")
        return answer

    @staticmethod
    def _skip(answer: http.client.HTTPResponse, count: int) -> None:
        while count:
            piece = answer.read1(min(count, _CHUNK))
            if not piece:
                raise OSError("ends before the place that was reached")
            count -= len(piece)


@contextlib.contextmanager
def _asked(
    method: str, url: str, limits: Limits, *, headers: dict[str, str] | None = None, until: float | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request, redirects followed. With `until` the connection is cut at that time, whatever it does."""
    for _ in range(_REDIRECTS + 1):
        scheme, host, port, target = check_url(url)
        connection = _connection(scheme, host, port, limits)
        with contextlib.closing(connection), _cut_at(connection, until, limits):
            try:
                connection.request(method, target, headers={**_HEADERS, **(headers or {})})
                with contextlib.closing(connection.getresponse()) as answer:
                    if answer.status not in {301, 302, 303, 307, 308}:
                        yield answer
                        return
                    location = answer.getheader("Location") or ""
            except http.client.HTTPException as error:
                raise OSError(f"no sound answer: {type(error).__name__}") from error
        if not location:
            raise Refused(f"the server answers {answer.status} {answer.reason} and does not say where to")
        _require_no_control(location)
        onward = urljoin(url, location)
        if scheme == "https" and onward.lower().startswith("http:"):
            raise Refused("a redirect from https to http")
        url = onward
    raise Refused(f"more than {_REDIRECTS} redirects")


@contextlib.contextmanager
def _cut_at(connection: http.client.HTTPConnection, until: float | None, limits: Limits) -> Iterator[None]:
    """Shut the connection down at `until`. Without it there is the socket's own time-out alone, which is of silence."""
    if until is None:
        yield
        return
    passed, plain = threading.Event(), connection.sock  # which http.client lets go of early

    def cut() -> None:
        passed.set()
        with contextlib.suppress(OSError):
            plain.shutdown(socket.SHUT_RDWR)

    watch = threading.Timer(max(0.0, until - time.monotonic()), cut)
    watch.daemon = True
    watch.start()
    try:
        yield
    except OSError as error:
        if passed.is_set():
            raise Refused(f"not whole after {limits.timeout_s:g} s") from error
        raise
    finally:
        watch.cancel()


def _connection(scheme: str, host: str, port: int, limits: Limits) -> http.client.HTTPConnection:
    """A connection to an address of the host, each of which was checked."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as unknown:
        raise OSError(f"{host} cannot be resolved: {unknown}") from unknown
    for *_, address in found:
        check_address(str(address[0]), limits)
    problem = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(limits.timeout_s)
            plain.connect(address)
            # http.client would resolve the name once more: it is given the socket instead.
            connection = http.client.HTTPConnection(host, port, timeout=limits.timeout_s)
            connection.default_port = 443 if scheme == "https" else 80
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
            return connection
        except OSError as failed:
            plain.close()
            problem = failed
    raise problem
