"""Credentials and signatures in addresses: refused or kept to themselves, by every command that takes an address."""

from pathlib import Path

import pytest

from pipeline import addresses, places, web
from pipeline.errors import BadConfig
from tests.flows.test_screen import said
from tests.pipeline.fake_run import Planted, write_run

ADDRESSES = [
    "s3://AK:SECRET@b/x",
    "s3://AK:SEC/RET@b/x",
    "gs://SECRET@b/x",
    "https://user:SECRET@127.0.0.1/x.tar",
    "https://SECRET@127.0.0.1/{0..3}.tar?sig=SECRET",
    "HTTPS://user:SEC?RET@127.0.0.1/x.tar",
    "sftp://user:SECRET@host/x",
    "simplecache::s3://AK:SECRET@b/x",
]


@pytest.fixture(autouse=True)
def _nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a server was asked")

    monkeypatch.setattr(web, "_connection", never)
    monkeypatch.setattr(places, "backend", never)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("command", ["inspect", "run", "plan", "verify", "export"])
def test_credentials_are_refused_before_anything_is_asked(
    command: str, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = {"inspect": ["inspect", address], "run": ["run", address, str(run)], "verify": ["verify", address]}
    words["plan"] = [*words["run"], "--dry-run"]
    if command == "export":
        words["export"] = ["export", str(write_run(run, [Planted(identity="Ann")])), "--to", "parquet", "--out", address]
        (run / "run.json").write_text('{"crawl": "/c", "finished": true, "config": {}}', "utf-8")
    told = said(capsys, *words[command], code=2)
    assert "Credentials do not belong into a URL" in told
    assert not any(part in told for part in ("SEC", "RET@", "AK", "user"))


def test_a_signature_is_shown_by_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "verify", "https://127.0.0.1/x.tar?sig=SECRET", code=1)
    assert "https://127.0.0.1/x.tar is read by http, which cannot list a folder" in told and "SECRET" not in told


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://a.example/x.tar?X-Amz-Signature=a/b@c#d", "https://a.example/x.tar"),
        ("https://u:p@a.example:443/x.tar", "https://a.example:443/x.tar"),
        ("https://u:p/q@a.example/x.tar", "https://a.example/x.tar"),
        ("https://[::1]:80/a@b", "https://[::1]:80/a@b"),
        ("s3://bucket/part-?.tar", "s3://bucket/part-?.tar"),
        ("s3://bucket/a?versionId=x&sig=y", "s3://bucket/a"),
        ("abfs://container@account.example/x", "abfs://container@account.example/x"),
        ("hdfs://host:8020/a@b", "hdfs://host:8020/a@b"),
        ("/a@b/c?d=e", "/a@b/c?d=e"),
        ("file:///a:b/c@d", "file:///a:b/c@d"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert addresses.shown(address) == shown
    if not addresses.holds_credentials(address):
        assert addresses.located(address)
        return
    with pytest.raises(BadConfig, match="Credentials do not belong"):
        addresses.located(address)
