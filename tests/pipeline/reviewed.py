"""A run to review, and its server in a thread of the test."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline import tables
from pipeline.layout import RunLayout
from pipeline.reviewing.server import open_review
from tests.pipeline.fake_run import Planted, write_run

IMG = "\"'><img src=x onerror=\"document.title='run'\">"
OVERRIDE = "abc\u202ecba"
ANN, BOB = "Ann O'Brien", "Bob"
PLANTED = [
    *(Planted(identity=ANN, angle_deg=30.0 + number) for number in range(6)),
    *(Planted(identity=ANN, angle_deg=angle) for angle in (73.0, 74.5, 76.0)),
    Planted(identity=ANN, angle_deg=88.0, verdict="relabel", reason="angle", other_identity=BOB, other_angle_deg=35.0),
    *(Planted(identity=BOB, angle_deg=31.0 + number) for number in range(4)),
    *(Planted(identity=IMG, angle_deg=40.0 + number) for number in range(3)),
    Planted(identity=IMG, angle_deg=79.0, verdict="drop", reason="angle", other_identity=OVERRIDE, other_angle_deg=60.0),
    *(Planted(identity=OVERRIDE, angle_deg=50.0 + number) for number in range(12)),
    Planted(identity=OVERRIDE, status="truncated"),
]
MERGE = {"kind": "merge", "identity": ANN, "other_identity": BOB, "samples": 9, "other_samples": 4, "share_near": 0.9, "other_share_near": 1.0,
         "center_angle_deg": 21.0}  # fmt: skip


def reviewable(root: Path, *, merge: bool = True) -> Path:
    """A run of PLANTED, which proposes to merge Bob into Ann."""
    run = write_run(root, PLANTED)
    rows = [MERGE] if merge else []
    pq.write_table(
        tables.PROPOSALS.empty_table().from_pylist(rows, schema=tables.PROPOSALS), RunLayout(run).round(2).noise / "proposals.parquet"
    )
    return run


@contextlib.contextmanager
def served(run: Path, **options: Any) -> Iterator[str]:
    """The address of the review page, while the server runs."""
    review = open_review(run, title=f"{IMG} of {run.name}", **options)
    thread = threading.Thread(target=review.serve, daemon=True)
    thread.start()
    for _ in range(200):
        with contextlib.suppress(OSError):
            request(review.address)
            break
        time.sleep(0.02)
    try:
        yield review.address
    finally:
        review.stop()
        thread.join(20)
        assert not thread.is_alive()


def request(address: str, body: Any = None, *, method: str | None = None, **headers: str | None) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request as the page makes it; a header given as None is left out."""
    origin = "/".join(address.split("/")[:3])
    own = {} if body is None else {"Content-Type": "application/json", "X-Purify": "review", "Origin": origin}
    given = {name: value for name, value in {**own, **{name.replace("_", "-"): value for name, value in headers.items()}}.items() if value}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    wanted = urllib.request.Request(address, data, given, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(wanted, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()
