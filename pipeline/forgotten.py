"""Who was asked to be forgotten: a log of keyed hashes in `RUN/forgotten/`, and the filter that ingest makes of it.

The log holds no name, no picture and no SHA-256: a plain hash of a name is found by trying names. Its hashes are HMAC-SHA-256 with a random
key of the run, `RUN/forgotten/key`. Whoever has log and key can still ask "was it this name?", which is what ingest does with every item of a
crawl; whoever has the log alone can not. Without the key the filter does not work, so a run whose key is gone is refused.
"""

import getpass
import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.receipts import atomic
from pipeline.sources.base import Item, printable

STATUS = "forgotten"
NAME = "(forgotten)"
"""The identity of every forgotten item: one for all, so that nothing says which of them were one person."""
DETAIL = "forgotten on request"
_KEY_BYTES = 32
_LEAST_LETTERS = 3
_MOST_WORDS = 1_000_000
_SCRIPTS_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_SCRIPTS_WITHOUT_SPACES}]|[^\\W_{_SCRIPTS_WITHOUT_SPACES}]+")


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten, as keyed hashes. Empty when nothing was."""

    key: bytes = b""
    marks: frozenset[str] = frozenset()
    longest: int = 0
    """Words of the longest forgotten name."""
    _first: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    """Words asked about before, and whether a forgotten name begins with them."""

    def mark(self, kind: str, value: str) -> str:
        """64 hex digits: the keyed hash of a value of a kind (identity, words, first, content, sample, uri)."""
        return hmac.digest(self.key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256").hex()

    def has(self, kind: str, value: str | None) -> bool:
        """True when this value of this kind was forgotten. An identity is compared in Unicode's form NFC."""
        if value is None or not self.marks:
            return False
        return self.mark(kind, plain(value) if kind == "identity" else value) in self.marks

    def mentions(self, text: str | None, own: str = "") -> bool:
        """True when a forgotten name stands in the text, whatever its case, accents' form, and what parts its words.

        The words of `own`, the identity of the row that the text belongs to, do not count: who is called John Smith keeps the name when John
        is forgotten.
        """
        if not text or not self.longest:
            return False
        words = _without(words_of(unquote(text)), words_of(own))
        for start, first in enumerate(words):
            if first is None or not self._begins(first):
                continue
            for end in range(start + 1, min(start + self.longest, len(words)) + 1):
                part = words[start:end]
                if None in part:
                    break
                if self.mark("words", " ".join(str(word) for word in part)) in self.marks:
                    return True
        return False

    def _begins(self, word: str) -> bool:
        known = self._first.get(word)
        if known is None:
            if len(self._first) >= _MOST_WORDS:
                self._first.clear()
            known = self._first[word] = self.mark("first", word) in self.marks
        return known

    def uri(self, source_uri: str) -> str:
        """What stands for a source_uri that must not be told; the same one for the same one, so that tables still join."""
        return f"forgotten/{self.mark('uri', source_uri)[:32]}"

    def told_uri(self, source_uri: str, own: str = "") -> str:
        """`source_uri`, or what stands for it when it holds a forgotten name."""
        return self.uri(source_uri) if self.mentions(source_uri, own) else source_uri

    def row(self, source_uri: str) -> dict[str, Any]:
        """All that is left of a forgotten item, as a row of the items table."""
        return {"identity": NAME, "source_uri": self.uri(source_uri), "status": STATUS, "status_detail": DETAIL, "is_gone": False}

    def instead(self, item: Item) -> list[tuple[dict[str, Any], bytes | None]]:
        """The finding of a forgotten item of a crawl, which is to be taken instead of looking at it; nothing for any other item."""
        if not self.marks:
            return []
        content = hashlib.sha256(item.content).hexdigest() if item.content else None
        return [(self.row(item.source_uri), None)] if self.is_forgotten(item.identity, content) else []

    def is_forgotten(self, identity: str, content_sha256: str | None) -> bool:
        """True when the item of this identity and these bytes is to have no pixels and no name."""
        return self.has("identity", identity) or self.has("content", content_sha256)

    def scrub(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of an item that is not forgotten, without texts in which a forgotten name stands."""
        if not self.longest:
            return row
        own = row["identity"]
        told = {name: None if self.mentions(row.get(name), own) else row[name] for name in tables.FREE_TEXTS if name in row}
        return row | told | {"source_uri": self.told_uri(row["source_uri"], own)}


@dataclass(frozen=True)
class Wish:
    """What one call of `forget` adds to the log: values by kind, in plain text, and how many items each took."""

    identities: Mapping[str, int] = field(default_factory=dict)
    contents: Mapping[str, int] = field(default_factory=dict)
    samples: frozenset[str] = frozenset()


def plain(name: str) -> str:
    """An identity's name as tables hold it: Unicode form NFC, bytes that are no text written out."""
    return unicodedata.normalize("NFC", printable(name))


def words_of(text: str) -> list[str]:
    """The words of a text, without case, accents' form and what parts them; in scripts without spaces every sign is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def phrases_of(name: str) -> list[tuple[str, int]]:
    """(words, their number) by which a name is found in other texts: as they are, and joined. None of a name of fewer than three letters."""
    words = words_of(name)
    letters = sum(3 if re.match(f"[{_SCRIPTS_WITHOUT_SPACES}]", sign) else sign.isalpha() for word in words for sign in word)
    if letters < _LEAST_LETTERS or (len(words) == 1 and len(words[0]) == 1):
        return []
    found = [(" ".join(words), len(words))]
    return [*found, ("".join(words), 1)] if len(words) > 1 else found


def _without(words: list[str], own: list[str]) -> list[str | None]:
    """`words` with every occurrence of the sequence `own` replaced by one None."""
    if not own:
        return list(words)
    left: list[str | None] = []
    place = 0
    while place < len(words):
        is_own = words[place : place + len(own)] == own
        left.append(None if is_own else words[place])
        place += len(own) if is_own else 1
    return left


def read(run: Path) -> Forgotten:
    """What the log of a run holds; empty where there is none (with the key, where that is there). Raises BadInput when there is a log and its key is gone."""
    folder = RunLayout(run).forgotten
    files = sorted(folder.glob("*.parquet"))
    if not files and not (folder / "key").exists():
        return Forgotten()
    try:
        key = (folder / "key").read_bytes()
    except OSError as error:
        raise BadInput(
            f"{folder} has a log of what was forgotten, and its key is gone ({error.strerror}), so nobody can be recognised by it. "
            "Put the file `key` back from a copy of this run. To start without the log, and with the forgotten people, remove the folder."
        ) from error
    for file in files:
        tables.check(file, tables.FORGOTTEN)
    return added(Forgotten(key), [row for file in files for row in pq.read_table(file, columns=["hash", "words"]).to_pylist()])


def rows_of(wish: Wish, forgotten: Forgotten) -> list[dict[str, Any]]:
    """The rows of the log (kind, hash, items, words) for a wish, without those that stand there already."""
    found: list[tuple[str, str, int | None, int | None]] = []
    for name, items in wish.identities.items():
        found.append(("identity", plain(name), items, None))
        found += [("words", phrase, None, number) for phrase, number in phrases_of(name)]
        found += [("first", phrase.partition(" ")[0], None, None) for phrase, _ in phrases_of(name)]
    found += [("content", content, items, None) for content, items in wish.contents.items()]
    found += [("sample", sample, None, None) for sample in wish.samples]
    rows = {forgotten.mark(kind, value): {"kind": kind, "items": items, "words": number} for kind, value, items, number in found}
    # In the order of the hashes, which says nothing about who belongs to whom.
    return [{"hash": mark, **rows[mark]} for mark in sorted(rows) if mark not in forgotten.marks]


def added(forgotten: Forgotten, rows: Iterable[Mapping[str, Any]]) -> Forgotten:
    """`forgotten` with more rows of a log."""
    rows = list(rows)
    longest = max([forgotten.longest, *(row["words"] or 0 for row in rows)])
    return Forgotten(forgotten.key, forgotten.marks | {row["hash"] for row in rows}, longest)


def new_key() -> bytes:
    """A key for a run's first log."""
    return secrets.token_bytes(_KEY_BYTES)


def keep_key(run: Path, forgotten: Forgotten) -> None:
    """Write the key of a run's first log, readable by its owner only."""
    path = RunLayout(run).forgotten / "key"
    if path.exists():
        return
    with atomic(path) as temporary, temporary.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(forgotten.key)
        file.flush()
        os.fsync(file.fileno())


def append(run: Path, rows: list[dict[str, Any]], *, by: str | None) -> None:
    """Add a file of rows to the log, with when, and who: the name of the account by default."""
    now = datetime.now(UTC)
    act = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
    who = {"act": act, "forgotten_at": now, "forgotten_by": by or _account()}
    with atomic(RunLayout(run).forgotten / f"{act}.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist([who | row for row in rows], schema=tables.FORGOTTEN), temporary, compression="zstd")


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        return f"uid {os.getuid()}"
