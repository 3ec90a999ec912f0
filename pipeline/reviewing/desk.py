"""The desk at which reviewers sit: who is asked what next, and what becomes of an answer.

Answers go to `RUN/decisions/` through `pipeline.decisions`, one file per act, before they are confirmed: what was confirmed outlives a crash. Two
reviewers are not asked the same at the same time. What a reviewer skipped is remembered until the server ends.
"""

import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from pipeline import decisions
from pipeline.duck import every, fetch, literal
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.pages.text import reason_in_words
from pipeline.reviewing.cases import Case, asked_again, find_cases, state_of
from pipeline.reviewing.standing import Standing
from pipeline.run_folder import require_whole
from pipeline.shards import CropReader, shard_stems
from pipeline.sums import prove_twins
from pipeline.visible import visible

T = TypeVar("T")
FACES = 8
"""Faces of an identity that a reviewer sees."""
HOLD_SECONDS = 300.0
"""How long a case is kept for who was asked."""
_NAME_LONGEST = 80
_REMEMBERED, _TOLD = 20_000, 500


def require_reviewer(name: str) -> str:
    """`name`, trimmed. Raises BadInput for one that is empty, longer than 80 characters, or has signs that cannot be seen."""
    trimmed = name.strip()
    if not trimmed or len(trimmed) > _NAME_LONGEST or any(unicodedata.category(sign)[0] == "C" for sign in trimmed):
        raise BadInput(f"A reviewer's name has 1 to {_NAME_LONGEST} visible characters.")
    return trimmed


@dataclass
class _Place:
    """Where a crop is."""

    shard: str
    offset: int
    size: int


@dataclass
class Desk:
    """All state of a review. Every method may be called from any thread."""

    run: Path
    clock: Callable[[], float] = time.monotonic
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _decided: Standing = field(init=False)
    _cases: list[Case] = field(default_factory=list)
    _by_key: dict[str, Case] = field(default_factory=dict)
    _held: dict[str, tuple[str, float]] = field(default_factory=dict)
    _skipped: dict[str, set[str]] = field(default_factory=dict)
    _state: tuple[int, ...] = ()
    _places: OrderedDict[str, _Place] = field(default_factory=OrderedDict)
    _told: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    _faces_of: OrderedDict[str, list[dict[str, Any]]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        layout = RunLayout(self.run)
        prove_twins(layout.raw, shard_stems(layout.raw))
        self._decided = Standing(layout.decisions)

    @property
    def _standing(self) -> dict[str, dict[str, Any]]:
        return self._decided.rows

    def next(self, reviewer: str, most: int = 2) -> list[dict[str, Any]]:
        """The case the reviewer is to answer, and those that will follow. Asked again before an answer, it is the same one."""
        with self._lock:
            self._refresh()
            if not self._cases or all(self._is_answered(case) for case in self._cases):
                self._cases = find_cases(self.run, self._standing.keys())
                self._by_key |= {case.key: case for case in self._cases}
            now, skipped = self.clock(), self._skipped.setdefault(reviewer, set())
            self._held = {key: held for key, held in self._held.items() if held[1] > now}
            mine = [case for case in self._cases if self._held.get(case.key, ("",))[0] == reviewer]
            free = [case for case in self._cases if case.key not in self._held]
            some = [case for case in [*mine, *free] if case.key not in skipped and not self._is_answered(case)][:most]
            for case in some:
                self._held[case.key] = (reviewer, now + HOLD_SECONDS)
            return [self._described(case) for case in some]

    def progress(self, reviewer: str) -> dict[str, int]:
        """Standing decisions of the reviewer and of others, and cases that wait."""
        with self._lock:
            self._refresh()
            mine = sum(row["decided_by"] == reviewer for row in self._standing.values())
            waiting = sum(not self._is_answered(case) for case in self._cases)
            return {"mine": mine, "others": len(self._standing) - mine, "waiting": waiting}

    def skip(self, reviewer: str, key: str) -> None:
        """Ask this reviewer no more about a case, and let others be asked."""
        with self._lock:
            self._case(key)
            self._skipped.setdefault(reviewer, set()).add(key)
            self._held.pop(key, None)

    def answer(self, reviewer: str, key: str, verdict: str, *, identity: str | None = None, note: str = "") -> int:
        """How many decisions were recorded. `verdict`: keep, drop or relabel of a sample; merge or apart of two names. Raises BadInput.

        `identity`: another than the proposed one, for which `has_identity` is true."""
        with self._lock:
            case = self._case(key)
            self._refresh()
            if case.kind == "merge":
                rows = self._merge(case, verdict, note)
            elif verdict == "relabel":
                target = identity or case.other_identity
                if target is None:
                    raise BadInput("To relabel, name the identity it belongs to.")
                rows = [{"sample_id": case.sample_id, "verdict": "relabel", "clean_identity": target, "note": note}]
            else:
                rows = [{"sample_id": case.sample_id, "verdict": verdict, "note": note}]
            # who calls has asked `has_identity`
            count = decisions.decide(self.run, rows, by=reviewer, new_identities=True, standing=self._standing)
            self._held.pop(key, None)
            self._skipped.setdefault(reviewer, set()).discard(key)
            self._refresh()
            return count

    def decide(self, reviewer: str, sample: str, verdict: str, *, identity: str | None = None) -> int:
        """As `answer`, on any sample of the run; without `identity` relabel is to the one that is proposed for it. Raises BadInput."""
        with self._lock:
            rows = self._rows("sample_id = $sample", {"sample": sample})
            if not rows:
                raise BadInput("This run has no such sample.")
            case = asked_again(sample, rows[0]["identity"], rows[0]["other_identity"])
            self._by_key.setdefault(case.key, case)
            return self.answer(reviewer, case.key, verdict, identity=identity)

    def standing(self, samples: Sequence[str]) -> dict[str, dict[str, str | None]]:
        """What was decided of these samples: sample_id -> verdict, identity (of a relabel) and by whom, as shown."""
        with self._lock:
            self._refresh()
            said = {sample: self._standing[sample] for sample in samples if sample in self._standing}
        return {
            sample: {
                "verdict": row["verdict"],
                "identity": visible(row["clean_identity"]) if row["clean_identity"] else None,
                "by": visible(row["decided_by"]),
            }
            for sample, row in said.items()
        }

    def undo(self, reviewer: str) -> tuple[int, list[dict[str, Any]]]:
        """Take back the reviewer's last act that stands, also one of an earlier day: (decisions undone, the case, if it is one of the queue's)."""
        with self._lock:
            self._refresh()
            mine = [row for row in self._standing.values() if row["decided_by"] == reviewer]
            if not mine:
                raise BadInput("There is nothing of yours to undo.")
            act = max(row["decision_id"] for row in mine).rsplit("-", 1)[0]
            samples = sorted(row["sample_id"] for row in mine if row["decision_id"].rsplit("-", 1)[0] == act)
            count = decisions.undo(self.run, samples, by=reviewer)
            self._refresh()
            case = next(
                (one for one in self._cases if one.kind == "merge" and one.sample_id in samples and not self._is_answered(one)), None
            )
            if case is None and len(samples) == 1:
                (row,) = self._rows("sample_id = $sample", {"sample": samples[0]})
                case = asked_again(samples[0], row["identity"], row["other_identity"])
                case = self._by_key.setdefault(case.key, case)
                self._cases = [case, *(one for one in self._cases if one.key != case.key)]
            if case is None:
                return count, []
            self._held[case.key] = (reviewer, self.clock() + HOLD_SECONDS)
            self._skipped.setdefault(reviewer, set()).discard(case.key)
            return count, [self._described(case)]

    def names(self, like: str, most: int = 12) -> list[tuple[str, str]]:
        """(name, how it is shown) of the identities whose name contains the text, in any case: those that begin with it first."""
        return [(row["identity"], visible(row["identity"])) for row in self._identities(_NAMES_SQL, {"like": like, "most": most})]

    def has_identity(self, name: str) -> bool:
        """Whether the run has samples under exactly this name."""
        return bool(self._identities("SELECT 1 FROM read_parquet($identities) WHERE samples > 0 AND identity = $name", {"name": name}))

    def crop(self, sample: str) -> bytes | None:
        """The JPEG of a sample; None when the run has no crop of that sample_id."""
        with self._lock:
            self._refresh()
            if sample not in self._places:
                self._remember(self._rows("sample_id = $sample", {"sample": sample}))
            place = self._places.get(sample)
            if place is None:
                return None
            with CropReader(RunLayout(self.run).raw / f"{place.shard}.tar") as crops:
                return crops.read(place.offset, place.size)

    def _identities(self, sql: str, given: dict[str, Any]) -> list[dict[str, Any]]:
        with duckdb.connect() as db:
            rows: list[dict[str, Any]] = fetch(db, sql, given | {"identities": literal(RunLayout(self.run).identities)}).to_pylist()
        return rows

    def _case(self, key: str) -> Case:
        if key not in self._by_key:
            raise BadInput("That case is not in the queue any more. Reload the page.")
        return self._by_key[key]

    def _is_answered(self, case: Case) -> bool:
        said = self._standing.get(case.sample_id)
        return said is not None and (case.kind != "merge" or said["verdict"] == "relabel" or said["note"] == _apart(case))

    def _refresh(self) -> None:
        """Read the decisions again when somebody, here or elsewhere, has added a file, and forget what was read of a run that has changed."""
        layout = RunLayout(self.run)
        require_whole(layout)
        if (state := state_of(layout)) != self._state:
            self._state = state
            for remembered in (self._cases, self._places, self._told, self._faces_of):
                remembered.clear()
        self._decided.refresh()

    def _merge(self, case: Case, verdict: str, note: str) -> list[dict[str, Any]]:
        """Rows of a merge: everything that goes by the one name now goes by the other. Of `apart`: the faces that were seen stay."""
        if verdict not in ("merge", "apart") or case.other_identity is None:
            raise BadInput("Two names are merged, or kept apart.")
        if verdict == "apart":
            seen = [row["sample_id"] for row in self._surest(case.identity)]
            return [{"sample_id": sample, "verdict": "keep", "note": _apart(case)} for sample in seen]
        target = case.other_identity
        surest = self._surest(target)
        said = self._standing.get(surest[0]["sample_id"]) if surest else None
        if said and said["verdict"] == "relabel":  # the other name was merged into a third by then
            target = said["clean_identity"]
        moved = self._moved(case.identity)
        if not moved or target == case.identity:
            raise BadInput("Nothing goes by that name any more.")
        return [{"sample_id": sample, "verdict": "relabel", "clean_identity": target, "note": note} for sample in sorted(moved)]

    def _moved(self, identity: str) -> set[str]:
        """Every sample that goes by the name: kept under it by the rule or by a person, or relabelled to it."""
        rows = self._rows("(m.clean_identity = $name OR m.identity = $name)", {"name": identity})
        moved = {row["sample_id"] for row in rows if row["clean_identity"] == identity and row["sample_id"] not in self._standing}
        moved |= {
            row["sample_id"]
            for row in rows
            if self._standing.get(row["sample_id"], {}).get("verdict") == "keep" and row["identity"] == identity
        }
        return moved | {
            sample for sample, said in self._standing.items() if said["verdict"] == "relabel" and said["clean_identity"] == identity
        }

    def _described(self, case: Case) -> dict[str, Any]:
        """What a page is told of a case; of a merge also how many samples it would move, as things stand now."""
        told = self._told[case.key] if case.key in self._told else self._describe(case)
        return told | {"moves": len(self._moved(case.identity))} if case.kind == "merge" else told

    def _describe(self, case: Case) -> dict[str, Any]:
        rows = self._rows("sample_id = $sample", {"sample": case.sample_id})
        self._remember(rows)
        sample = rows[0]
        told: dict[str, Any] = {
            "key": case.key,
            "kind": case.kind,
            "why": case.why,
            "sample": case.sample_id,
            "identity": visible(case.identity),
            "verdict": sample["verdict"],
            "reason": reason_in_words(sample["reason"]),
            "angle": _tenths(sample["angle_deg"]),
            "noise": sample["noise_probability"],
            "own": self._faces(case.identity, case),
            "other": visible(case.other_identity) if case.other_identity else None,
            "other_angle": _tenths(sample["other_angle_deg"]) if case.kind != "merge" else None,
            "others": self._faces(case.other_identity, case) if case.other_identity else [],
        }
        _put(self._told, case.key, told, _TOLD)
        return told

    def _faces(self, identity: str, case: Case) -> list[str]:
        return [row["sample_id"] for row in self._surest(identity) if case.kind == "merge" or row["sample_id"] != case.sample_id][:FACES]

    def _surest(self, identity: str) -> list[dict[str, Any]]:
        """Rows of the samples nearest to the identity's center among those that the rule kept under its name."""
        if identity not in self._faces_of:
            rows = self._rows("m.identity = $name AND m.clean_identity = m.identity", {"name": identity})
            rows.sort(key=lambda row: (row["angle_deg"] if row["angle_deg"] is not None else 180.0, row["sample_id"]))
            _put(self._faces_of, identity, rows[: FACES + 1], _TOLD)
        self._remember(self._faces_of[identity])
        return self._faces_of[identity]

    def _rows(self, where: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        layout = RunLayout(self.run)
        files = {"manifest": every(layout.manifest, "part-*.parquet"), "raw": every(layout.raw, "raw-*.parquet")}
        with duckdb.connect() as db:
            rows: list[dict[str, Any]] = fetch(db, _ROWS_SQL.format(where=where), files | dict(given)).to_pylist()
        return rows

    def _remember(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            _put(self._places, row["sample_id"], _Place(row["shard"], row["crop_offset"], row["crop_size"]), _REMEMBERED)


def _put(memory: OrderedDict[str, T], key: str, value: T, most: int) -> None:
    """Remember `value`, and forget the oldest beyond `most`."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)


_ROWS_SQL = """
    WITH m AS (FROM read_parquet($manifest) m WHERE m.status = 'ok' AND {where})
    SELECT m.sample_id, m.identity, m.clean_identity, m.verdict, m.reason, m.other_identity, nullif(m.angle_deg, 'NaN') AS angle_deg,
        nullif(m.noise_probability, 'NaN') AS noise_probability, nullif(m.other_angle_deg, 'NaN') AS other_angle_deg, m.shard, r.crop_offset, r.crop_size
    FROM m JOIN read_parquet($raw) r ON r.identity = m.identity AND r.source_uri = m.source_uri
"""
_NAMES_SQL = """
    SELECT identity FROM read_parquet($identities) WHERE samples > 0 AND contains(lower(identity), lower($like))
    ORDER BY NOT starts_with(lower(identity), lower($like)), identity LIMIT $most
"""


def _apart(case: Case) -> str:
    return f"apart from {case.other_identity}"


def _tenths(angle_deg: float | None) -> float | None:
    return None if angle_deg is None else round(angle_deg, 1)
