"""An S3 server on loopback, as the tests of crawls and of exports in stores share it."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest

SECRET = "wJalrXUtnFEMI-a-secret-K7MDENG"


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
    common = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (common | environment).items():
            patch.setenv(name, value)
        pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # or those of another module's server would be used
        client = boto.client("s3")
        client.create_bucket(Bucket=bucket)
        client.close()
        yield address, server
    server.stop()
