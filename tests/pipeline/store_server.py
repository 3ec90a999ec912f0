"""An S3 server on loopback, as the tests of crawls, exports and copies of runs in stores share it."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

SECRET = "wJalrXUtnFEMI-a-secret-K7MDENG"


def leads_to(address: str) -> dict[str, str]:
    """The environment in which clients ask the server at this address, and nobody else."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }


@contextlib.contextmanager
def s3_server(bucket: str, **environment: str) -> Iterator[tuple[str, Any]]:
    """(its address, moto's server) with an empty bucket, and the environment that leads to it. Skips by name without moto, boto3 or s3fs."""
    boto = pytest.importorskip("boto3")
    server_of = pytest.importorskip("moto.server").ThreadedMotoServer
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (leads_to(address) | environment).items():
            patch.setenv(name, value)
        pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # or those of another module's server would be used
        client = boto.client("s3")
        client.create_bucket(Bucket=bucket)
        client.close()
        yield address, server
    server.stop()


Fault = Callable[[str, str], int | None]
"""(method, path with query) -> status to answer with, or None"""


class Faulty:
    """A WSGI application before the server's own: `fault` decides which request is answered by an error."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.fault: Fault = lambda _method, _path: None
        self.asked: list[tuple[str, str]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.asked.append((method, path))
        status = self.fault(method, path)
        if status is None:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        code = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}[status]
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
        start_response(f"{status} planted", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body if method != "HEAD" else b""]


@contextlib.contextmanager
def faulty_server(bucket: str) -> Iterator[Faulty]:
    """A server with an empty bucket, which answers as its `fault` says."""
    with s3_server(bucket, AWS_MAX_ATTEMPTS="1") as (_, server):  # botocore's own attempts would hide ours
        server._server.app = faulty = Faulty(server._server.app)
        yield faulty
