"""Planted noise among real faces: what a small backbone trained from scratch makes of it. For a ready embedder see isolation_quality.py.

Wants aligned 112 x 112 crops of Labeled Faces in the Wild in a tar of `Name/Name_0001.jpg`, which is not shipped. People with ten pictures or more
are the identities; half of the pictures under each name are wrong: 60 % are moved there from other identities, 40 % are strangers, people with
one picture. Run: python benchmarks/real_faces.py FACES.tar [--seeds 1]
"""

import argparse
import os
import statistics
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from arcface_core.protocols.verification import auroc
from pipeline.config import load
from pipeline.duck import every, fetch, literal
from pipeline.embed import embed
from pipeline.errors import HeadNotLearned
from pipeline.ingest import ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.learned import require_learned
from pipeline.train import train

NOISE, AT_LEAST = 0.5, 10


def plant(names: list[str], seed: int) -> list[tuple[str, str, bool]]:
    """(picture, claimed identity, is noise): the identities keep half of their own pictures, and get as many wrong ones."""
    rng = np.random.default_rng(seed)
    of: dict[str, list[str]] = defaultdict(list)
    for name in names:
        of[name.split("/")[0]].append(name)
    identities = sorted(person for person, pictures in of.items() if len(pictures) >= AT_LEAST)
    strangers = [pictures[0] for person, pictures in sorted(of.items()) if len(pictures) == 1]
    rng.shuffle(strangers)
    planted, loose = [], []
    for person in identities:
        pictures = list(rng.permutation(of[person]))
        half = round(len(pictures) * NOISE)
        planted += [(str(picture), person, False) for picture in pictures[half:]]
        loose += [(str(picture), person) for picture in pictures[:half]]
    slots = [person for _, person in loose]
    rng.shuffle(loose)
    for number, person in enumerate(slots):
        picture, owner = loose[number]
        if owner == person or rng.random() >= 0.6:
            if strangers:
                planted.append((strangers.pop(), person, True))
        else:
            planted.append((picture, person, True))
    return planted


def trained_from_scratch(faces: Path, planted: list[tuple[str, str, bool]], seed: int) -> dict[str, Any]:
    wanted: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for picture, person, wrong in planted:
        wanted[picture].append((person, wrong))
    with tempfile.TemporaryDirectory() as name:
        root, truth = Path(name), []
        with tarfile.open(faces) as tar:
            for member in tar:
                for person, wrong in wanted.get(member.name, []):
                    content = tar.extractfile(member)
                    assert content is not None
                    place = root / "crawl" / person / member.name.replace("/", "__")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content.read())
                    truth.append({"item": str(place.relative_to(root / "crawl")), "is_noise": wrong})
        pq.write_table(pa.Table.from_pylist(truth), root / "truth.parquet")
        config = load(preset="cpu", overrides=[f"seed={seed}", "evaluate.holdout=0"])
        run = RunLayout(root / "run")
        one = run.round(1)
        ingest(root / "crawl", run.raw, config)
        receipt = train(run.raw, one.train, config)
        embed(run.raw, one.train, one.embeddings, config)
        isolate(run.raw, one.train, one.embeddings, one.noise, config)
        try:
            require_learned(one.noise)
            noticed = False
        except HeadNotLearned:
            noticed = True
        with duckdb.connect() as db:
            joined = "FROM read_parquet($found) f JOIN read_parquet($truth) t ON t.item = f.source_uri WHERE NOT isnan(f.angle_deg)"
            given = {"found": every(one.noise, "raw-*.parquet"), "truth": literal(root / "truth.parquet")}
            rows = fetch(db, f"SELECT f.angle_deg, t.is_noise {joined}", given)
        area = float(auroc(torch.from_numpy(rows["angle_deg"].to_numpy().copy()), torch.tensor(rows["is_noise"].to_pylist())))
        return {"AUROC of the angle": area, "last loss": receipt.counts["last_loss"], "noticed as not learned": float(noticed)}


def table(title: str, found: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n| | mean | seeds |\n|---|---|---|")
    for name in found[0]:
        values = [one[name] for one in found]
        print(f"| {name} | {statistics.mean(values):.3f} | {', '.join(f'{value:.3f}' for value in values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    with tarfile.open(given.faces) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
    plans = [plant(names, seed) for seed in range(given.seeds)]
    print(
        f"{len({person for _, person, _ in plans[0]})} identities, {len(plans[0])} pictures; {os.cpu_count()} cores; torch {torch.__version__}"
    )
    found = [trained_from_scratch(given.faces, plan, seed) for seed, plan in enumerate(plans)]
    table("Small backbone from scratch, preset cpu, round 1, K = 3", found)


if __name__ == "__main__":
    main()
