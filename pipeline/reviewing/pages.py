"""The audit pages as the review server gives them: the files of `RUN/audit/`, and pages of identities that were not drawn, drawn when asked for."""

import json
import re
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

import pyarrow as pa

from pipeline.layout import RunLayout
from pipeline.pages import people
from pipeline.receipts import read
from pipeline.reviewing.cases import state_of

_FILE = re.compile(
    r"(index|identity)\.html|data/(list|people)-(\d{5,9})\.js|sheets/(\d{5,9})/\d{6,9}\.jpg|inversions/[\w-]{1,40}\.png", re.ASCII
)
_NOTHING = b"default-src &#39;none&#39;;"
_KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".jpg": "image/jpeg", ".png": "image/png"}


class AuditPages:
    """Files by the names that pages use; no other name leads anywhere. Pages are drawn into a folder that `close` removes."""

    def __init__(self, run: Path) -> None:
        self._layout = RunLayout(run)
        self._drawn_here = Path(tempfile.gettempdir()) / f"purify-review-{secrets.token_hex(16)}"
        self._lock = threading.Lock()
        self._everyone: pa.Table | None = None
        self._state: tuple[int, ...] = ()

    def read(self, name: str) -> tuple[bytes, str] | None:
        """(content, media type); None when there is no such file and none can be drawn."""
        found = _FILE.fullmatch(name)
        if found is None:
            return None
        path = self._layout.audit / name
        if found[2] == "people":
            path = self._block(int(found[3]), path)
        elif found[4] and not path.is_file():
            path = self._drawn_here / name
        if not path.is_file():
            return None
        content = path.read_bytes()
        if path.suffix == ".html":  # says to the page that it is served: it may draw what was not drawn, and send answers
            content = content.replace(b"<body ", b'<body data-served="yes" ', 1).replace(
                _NOTHING, _NOTHING + b" connect-src &#39;self&#39;;", 1
            )
        return content, _KINDS[path.suffix]

    def close(self) -> None:
        """Remove what was drawn."""
        shutil.rmtree(self._drawn_here, ignore_errors=True)

    def _block(self, number: int, path: Path) -> Path:
        """The script of a block of identities, drawn when it does not stand whole in the run."""
        receipt = read(self._layout.audit)
        drawn = int(receipt.counts.get("drawn") or 0) if receipt else 0
        first = number * people.BLOCK
        with self._lock:
            if self._everyone is None or self._state != state_of(self._layout):
                self.close()  # what was drawn may show who was forgotten since
                self._state = state_of(self._layout)
                self._everyone = people.ranked(self._layout.root)
            names = self._everyone["identity"].slice(first, people.BLOCK).to_pylist()
            mine = self._drawn_here / "data" / path.name
            if first + len(names) <= drawn or not names or mine.is_file():
                return path if first + len(names) <= drawn else mine
            self._drawn_here.mkdir(mode=0o700, exist_ok=True)
            people.write_wave(people.Wave(self._layout.root, self._drawn_here, first, tuple(names), self._faces(), {}))
            return mine

    def _faces(self) -> int:
        record = json.loads(self._layout.run_json.read_text("utf-8")) if self._layout.run_json.exists() else {}
        return int(record.get("config", {}).get("audit", {}).get("faces", 16))
