"""Pages on which a person sees what was kept, what was removed and why, beside the face that the network imagines for an identity.

They are files that open from disk: `index.html` with the overview and the list of all identities, `identity.html` for one of them, and data and
sheets of faces in parts (`pipeline/pages/`), of which the browser reads what it shows. Nothing is asked of a network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, as_dict
from pipeline.fanout import fan_out
from pipeline.imagine import Imagined, Memory, imagine, remember, remembered, why_none
from pipeline.layout import RunLayout
from pipeline.pages import people
from pipeline.pages.overview import overview, pairs
from pipeline.pages.people import Inversion
from pipeline.pages.text import page
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage
from pipeline.report import open_run
from pipeline.run_folder import versions
from pipeline.shards import shard_stems
from pipeline.sums import prove_twins

VERSION = 8
_MADE = "inversions/made.json"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class AuditCounts:
    """What the pages show."""

    identities: int
    drawn: int
    """Of these, with a page of faces."""
    inversions: int


def audit(run: RunLayout, out: Path, config: Config, *, title: str, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: the pages of a run that has a manifest and an evaluation, with the faces that the first and the last round's backbones imagine."""
    rounds = [run.round(number) for number in range(1, config.rounds + 1)]
    inputs = {f"round{one.number}": mark_of(one.noise) for one in rounds}
    inputs |= {"manifest": mark_of(run.manifest), "evaluation": mark_of(run.evaluation)}
    settings = {name: value for name, value in as_dict(config).items() if name not in ("workers", "device", "mode", "retrain")}
    if config.embedder.model is not None:  # nothing is trained: of these only one does anything
        settings["train"] = {"subcenters": config.train.subcenters}
    mark = fingerprint("audit", VERSION, {"title": title, "settings": settings}, **inputs)

    def work(folder: Path) -> Counts:
        names = noisiest_by_rule(run.root, config.audit.inversions)
        with open_run(run.root) as db:
            two_names = [name for pair in pairs(db) for name in (pair["identity"], pair["other_identity"])]
        names += [name for name in dict.fromkeys(two_names) if name not in names] if config.audit.inversions else []
        memory = Memory(remembered(run.audit / _MADE) | remembered(folder / _MADE))
        imagined = imagine(run.raw, rounds, names, config, progress=progress, memory=memory)
        remember(memory, folder / _MADE)
        counts = write_audit(
            run.root,
            folder,
            title=title,
            identities=config.audit.identities,
            faces=config.audit.faces,
            inversions=imagined,
            why_no_inversion=why_none(rounds[-1], config),
            settings=settings,
            workers=config.workers,
            progress=progress,
        )
        return {"identities": counts.identities, "drawn": counts.drawn, "inversions": counts.inversions}

    return run_stage(out, stage="audit", mark=mark, work=work)


def noisiest(run: Path, identities: int) -> list[str]:
    """The first identities of the pages: most samples dropped or to relabel first, then most to review, most samples, and by name."""
    names: list[str] = people.ranked(run)["identity"].slice(0, identities).to_pylist()
    return names


def noisiest_by_rule(run: Path, identities: int) -> list[str]:
    """As `noisiest`, by what the rule said: decisions of people change nothing here, so the same faces are imagined after them."""
    names: list[str] = people.ranked_by_rule(run)["identity"].slice(0, identities).to_pylist()
    return names


def write_audit(
    run: Path,
    out: Path,
    *,
    title: str,
    identities: int,
    faces: int,
    inversions: Mapping[str, Sequence[Imagined]],
    why_no_inversion: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> AuditCounts:
    """Counts of what stands in `out` afterwards: index.html, identity.html, data/, sheets/ and inversions/.

    The first `identities` of `noisiest` have a page, with up to `faces` kept and `faces` removed samples spread evenly from the smallest angle
    to the largest, and their near duplicates and proposed relabels. `inversions`: identity -> the faces imagined for it.
    Of two names that may be one person the last of these faces stand side by side in the overview.
    `why_no_inversion`: said where none is drawn.
    `settings`: those of the run, to show.
    What stands in `out` from an attempt before is not made again.
    Raises BadInput without a manifest, BadShard for a crop that is not where its row says, and for rows that are not those that were written.
    """
    raw = RunLayout(run).raw
    prove_twins(raw, shard_stems(raw))
    with open_run(run) as db:
        facts = overview(db, run)
    everyone = people.ranked(run)
    names = everyone["identity"].slice(0, identities).to_pylist()
    out.mkdir(parents=True, exist_ok=True)
    imagined = {name: _write_inversions(inversions[name], number, out) for number, name in enumerate(names) if name in inversions}
    fan_out(people.write_wave, people.waves(run, out, names, faces, imagined), workers=workers, progress=progress)
    lists = people.write_list(everyone, out)
    for number, pair in enumerate(facts["pairs"]):
        for place, of in enumerate(("identity", "other_identity")):
            seen = inversions.get(pair[of], ())[-1:]
            pair[f"{of}_face"] = _write_face(seen[0], f"inversions/pair-{number:02d}-{place}.png", out) if seen else None
    shared = {"has_imagined": bool(imagined), "title": title, "lists": len(lists), "drawn": len(names), "people": everyone.num_rows}
    pages = {
        "identity.html": page(
            "person.html.jinja", style=("base.css",), script=("page.js", "ask.js", "names.js", "tiles.js", "person.js"), **shared
        ),
        "index.html": page(
            "overview.html.jinja",
            style=("base.css",),
            script=("page.js", "list.js"),
            why_no_inversion=why_no_inversion,
            settings=_told(settings or {}, as_dict(Config())),
            versions=versions(),
            **shared,
            **facts,
        ),
    }
    for name, text in pages.items():
        with atomic(out / name) as temporary:
            temporary.write_text(text, "utf-8")
    return AuditCounts(identities=everyone.num_rows, drawn=len(names), inversions=sum(map(len, imagined.values())))


def _told(settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """A row per setting: its path, value and default as text, and whether they differ."""
    rows = []
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, Mapping):
            rows += _told(value, default or {}, f"{prefix}{name}.")
        else:
            rows.append({"name": prefix + name, "value": json.dumps(value), "default": json.dumps(default), "is_changed": value != default})
    return rows


def _write_inversions(faces: Sequence[Imagined], number: int, out: Path) -> list[Inversion]:
    return [
        Inversion(_write_face(face, f"inversions/{number:06d}-{place}.png", out), face.about, face.angle_deg)
        for place, face in enumerate(faces)
    ]


def _write_face(face: Imagined, file: str, out: Path) -> str:
    if not face.png.startswith(_PNG):
        raise ValueError(f"An inversion is given as PNG bytes; got bytes that begin {face.png[:8]!r}.")
    (out / file).parent.mkdir(exist_ok=True)
    (out / file).write_bytes(face.png)
    return file
