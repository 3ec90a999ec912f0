"""What tests of copies do and look at."""

import hashlib
from pathlib import Path

from pipeline.mirroring.files import look
from pipeline.mirroring.push import Mirror, Pushed
from tests.pipeline.store_server import Faulty


def push(run: Path, url: str) -> Pushed:
    with Mirror(run, url) as mirror:
        return mirror.push()


def contents(run: Path) -> dict[str, tuple[str, int]]:
    """What a copy is to have: every file but those of this machine alone."""
    return {path: (hashlib.sha256((run / path).read_bytes()).hexdigest(), (run / path).stat().st_mode & 0o777) for path in look(run)}


def told(s3: Faulty, method: str) -> list[str]:
    return [path for asked, path in s3.asked if asked == method]


def put(url: str, name: str, content: bytes) -> None:
    import boto3

    client = boto3.client("s3")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)
    client.close()


def get(url: str, name: str) -> bytes:
    import boto3

    client = boto3.client("s3")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    content: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read()
    client.close()
    return content


def replace(path: Path, content: bytes) -> None:
    path.with_name(".new").write_bytes(content)
    path.with_name(".new").replace(path)
