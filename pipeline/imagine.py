"""Faces that the network imagines: for sub-centers of identities, and for samples. Nothing of the crawl is drawn, only what the weights hold.

A round with several sub-centers shows what shares a name: where two of them give two faces, two people do, or noise gathered.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from arcface_core.inversion import invert
from pipeline.config import Config
from pipeline.duck import every, fetch
from pipeline.embedders import load_embedder
from pipeline.errors import BadInput
from pipeline.layout import RoundLayout
from pipeline.models import pick_device
from pipeline.receipts import Progress, fingerprint, mark_of, write_json

VERSION = 1
"""Goes up when the same inputs give other faces."""
LEAST_SHARE, LEAST_VOTES = 0.1, 3
"""Of an identity's samples, for a sub-center to be drawn."""
_BATCH = 64
_LEAST_BATCH = 16
"""The BatchNorm term wants a batch of many people; a smaller one is filled up with other identities, whose faces are thrown away."""


@dataclass(frozen=True)
class Imagined:
    """A face: its PNG, of what it is, and the angle of its embedding to that in degrees, by the model that imagined it."""

    png: bytes
    about: str
    angle_deg: float


Face = tuple[bytes, float]
"""A PNG, and the angle of its embedding to what was wanted, in degrees."""


@dataclass
class Memory:
    """Batches of faces by the fingerprint of all that they depend on: `known` from before, `used` in this call, drawn anew or not."""

    known: Mapping[str, list[Face]] = field(default_factory=dict)
    used: dict[str, list[Face]] = field(default_factory=dict)


def remembered(file: Path) -> dict[str, list[Face]]:
    """What `remember` wrote; nothing where the file is missing or damaged, so that faces are drawn anew."""
    try:
        told = json.loads(file.read_text("utf-8"))
        return {key: [(base64.b64decode(png, validate=True), float(angle)) for png, angle in faces] for key, faces in told.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def remember(memory: Memory, file: Path) -> None:
    """Write the batches that were used: about 30 kB a face."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {key: [(base64.b64encode(png).decode(), angle) for png, angle in faces] for key, faces in memory.used.items()})


@dataclass(frozen=True)
class _Target:
    name: str
    about: str
    direction_D: Tensor


def imagine(
    raw: Path,
    rounds: Sequence[RoundLayout],
    identities: Sequence[str],
    config: Config,
    *,
    progress: Progress | None = None,
    memory: Memory | None = None,
) -> dict[str, list[Imagined]]:
    """identity -> the faces of its sub-centers in the first round, where more than one has a tenth of its samples (and three of them), and of
    its dominant sub-center in the last.

    Of `memory` those batches are taken whose model, directions, steps and seed are the same.
    Identities without a center are left out; all are where the embedder has no gradients to follow, as an ONNX file has none.
    """
    found = dict[str, list[Imagined]]()
    if config.audit.inversion_steps == 0:
        return found
    strong = _strong_subcenters(rounds[0], identities)
    drawn = {one.name for one in strong} if len(rounds) == 1 else set()
    wanted = [(rounds[0], strong), (rounds[-1], [one for one in _dominant(raw, rounds[-1], identities) if one.name not in drawn])]
    total = sum(_work(len(targets), config.audit.inversion_steps) for _, targets in wanted)
    done = 0
    for round_, targets in wanted:
        if not targets:
            continue
        told = None if progress is None else partial(_tell_of, progress, done, total)
        faces = _faces(round_, [one.direction_D for one in targets], config, config.audit.inversion_steps, told, memory)
        if faces is None:
            return {}
        for target, (png, angle) in zip(targets, faces, strict=True):
            found.setdefault(target.name, []).append(Imagined(png, target.about, angle))
        done += _work(len(targets), config.audit.inversion_steps)
    return found


def imagine_samples(
    round_: RoundLayout, sample_ids: Sequence[str], config: Config, *, steps: int, progress: Progress | None = None
) -> dict[str, Imagined]:
    """sample_id -> the face that the network of this round sees in the sample: its embedding, inverted (the paper's open set).

    Raises BadInput: for a sample that the round has not embedded, and for a model without gradients.
    """
    with duckdb.connect() as db:
        table = fetch(
            db,
            "SELECT sample_id, embedding FROM read_parquet($files) WHERE sample_id IN (SELECT unnest($wanted::VARCHAR[]))",
            {"files": every(round_.embeddings, "raw-*.parquet"), "wanted": list(sample_ids)},
        )
    known = {row["sample_id"]: torch.tensor(row["embedding"]) for row in table.to_pylist()}
    missing = [one for one in sample_ids if one not in known]
    if missing:
        raise BadInput(
            f"{round_.root} has no embedding of {missing[0][:80]!r}. Give sample_ids of usable samples, as the manifest has them."
        )
    told = None if progress is None else partial(_tell_of, progress, 0, _work(len(sample_ids), steps))
    faces = _faces(round_, [known[one] for one in sample_ids], config, steps, told)
    if faces is None:
        raise BadInput(
            f"The embedder of {round_.root} is an ONNX file, which has no gradients to follow: only torch weights imagine faces."
        )
    return {one: Imagined(png, "the sample's embedding", angle) for one, (png, angle) in zip(sample_ids, faces, strict=True)}


def _tell(told: Callable[[int], None], before: int, step: int, _: float) -> None:
    told(before + step)


def _tell_of(progress: Progress, before: int, total: int, step: int) -> None:
    progress(before + step, total)


def _work(targets: int, steps: int) -> int:
    return steps * -(-targets // _BATCH)


def _faces(
    round_: RoundLayout,
    directions: Sequence[Tensor],
    config: Config,
    steps: int,
    told: Callable[[int], None] | None,
    memory: Memory | None = None,
) -> list[Face] | None:
    """A face for each direction; None when the round's embedder has no gradients."""
    memory = memory or Memory()
    device = pick_device(config.device)
    embedder = None
    with safe_open(round_.train / "head.safetensors", framework="pt") as file:
        others = file.get_slice("centers")
        count = others.get_shape()[0]
        filler = [others[row : row + 1][0, 0] for row in range(0, count, max(1, count // _LEAST_BATCH))]
    faces: list[Face] = []
    for first in range(0, len(directions), _BATCH):
        some = list(directions[first : first + _BATCH])
        wanted_BD = torch.stack(some + filler[: max(0, _LEAST_BATCH - len(some))]).float().contiguous()
        directions_of = hashlib.sha256(wanted_BD.numpy().tobytes()).hexdigest()
        settings = {"steps": steps, "seed": config.seed, "shape": list(wanted_BD.shape), "faces": len(some)}
        key = fingerprint("imagine", VERSION, settings, model=mark_of(round_.train), directions=directions_of)
        if (known := memory.known.get(key)) is not None and len(known) == len(some):
            memory.used[key] = known
            faces += known
            if told is not None:
                told((first // _BATCH + 1) * steps)
            continue
        embedder = embedder or load_embedder(round_.train, device)
        if embedder.module is None:
            return None
        result = invert(
            embedder.module,
            wanted_BD.to(device),
            input_px=embedder.input_px,
            steps=steps,
            seed=config.seed,
            device=device,
            on_step=None if told is None else partial(_tell, told, first // _BATCH * steps),
        )
        memory.used[key] = [(_png(image), float(angle)) for image, angle in zip(result.images, result.angle_deg, strict=True)][: len(some)]
        faces += memory.used[key]
    return faces


def why_none(round_: RoundLayout, config: Config) -> str | None:
    """Why no inversion is drawn in such a run, for people; None where they are."""
    if config.audit.inversion_steps == 0:
        return "audit.inversion_steps is 0."
    if (round_.train / "model.onnx").exists():
        return "the model that was given is an ONNX file, and has no gradients to follow."
    return None


def _strong_subcenters(round_: RoundLayout, identities: Sequence[str]) -> list[_Target]:
    """The sub-centers, in order of their votes, of those identities that have two or more strong ones."""
    with duckdb.connect() as db:
        rows = fetch(
            db,
            """WITH voted AS (SELECT identity, nearest_subcenter AS subcenter, count(*) AS votes FROM read_parquet($noise)
                              WHERE nearest_subcenter >= 0 AND identity IN (SELECT unnest($wanted::VARCHAR[])) GROUP BY ALL),
                    strong AS (SELECT *, votes / sum(votes) OVER (PARTITION BY identity) AS share FROM voted
                               QUALIFY share >= $share AND votes >= $votes)
               FROM strong QUALIFY count(*) OVER (PARTITION BY identity) > 1 ORDER BY identity, votes DESC, subcenter""",
            {
                "noise": every(round_.noise, "raw-*.parquet"),
                "wanted": list(identities),
                "share": LEAST_SHARE,
                "votes": LEAST_VOTES,
            },
        ).to_pylist()
    classes = pq.read_table(round_.train / "classes.parquet", columns=["identity"])["identity"].to_pylist()
    wanted = {row["identity"] for row in rows}
    place = {name: row for row, name in enumerate(classes) if name in wanted}
    with safe_open(round_.train / "head.safetensors", framework="pt") as file:
        centers = file.get_slice("centers")
        return [
            _Target(
                row["identity"],
                f"sub-center {row['subcenter']}, nearest to {row['share']:.0%} of the samples (round {round_.number})",
                centers[place[row["identity"]] : place[row["identity"]] + 1][0, row["subcenter"]],
            )
            for row in rows
            if row["identity"] in place
        ]


def _dominant(raw: Path, round_: RoundLayout, identities: Sequence[str]) -> list[_Target]:
    """The dominant sub-centers of those identities that have one."""
    names = pq.read_table(raw / "identities.parquet", columns=["identity"], filters=[("samples", ">", 0)])["identity"].to_pylist()
    wanted = set(identities)
    place = {name: row for row, name in enumerate(names) if name in wanted}
    with safe_open(round_.noise / "centers.safetensors", framework="pt") as file:
        centers = file.get_slice("dominant")
        found = [(name, centers[place[name] : place[name] + 1][0]) for name in identities if name in place]
    about = f"the dominant sub-center (round {round_.number})"
    return [_Target(name, about, direction_D) for name, direction_D in found if bool(direction_D.norm() > 0)]


def _png(image_CHW: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).resize((112, 112), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()
