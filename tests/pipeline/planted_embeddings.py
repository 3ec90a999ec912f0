"""A round made of planted embeddings: what isolate, and the centers of a given model, are tested on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pipeline import tables
from pipeline.receipts import run_stage
from pipeline.shards import write_twin

DIM = 64
Sample = tuple[str, str, Tensor]  # identity, what it truly is, vector


def directions(seed: int, count: int) -> Tensor:
    return normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def crawl(people: int = 30, clean: int = 12, noise: int = 6, seed: int = 0, spread: float = 0.08) -> list[Sample]:
    """A third of noise: flips and strangers by turns. What a sample truly is: an identity, or `stranger`."""
    faces, rng = directions(seed, people), np.random.default_rng(seed)
    apart = torch.randn(people * clean, DIM, generator=torch.Generator().manual_seed(seed + 1)) * spread
    pictures = normalize(faces.repeat_interleave(clean, 0) + apart, dim=1)
    strangers = directions(seed + 2, people * noise)
    samples: list[Sample] = [(f"P{row // clean:02d}", f"P{row // clean:02d}", pictures[row]) for row in range(people * clean)]
    for row in range(people * noise):
        own = row // noise
        other = int((own + 1 + rng.integers(people - 1)) % people)
        if row % 2:
            samples.append((f"P{own:02d}", "stranger", strangers[row]))
        else:
            flip = normalize(faces[other] + 0.08 * torch.randn(DIM, generator=torch.Generator().manual_seed(1000 + row)), dim=0)
            samples.append((f"P{own:02d}", f"P{other:02d}", flip))
    return samples


def sealed(folder: Path, work: Any) -> Path:
    """`folder`, filled by `work`, with a receipt."""
    run_stage(folder, stage=folder.name, mark="0" * 64, work=lambda partial: work(partial) or {})
    return folder


def planted(root: Path, samples: list[Sample], *, per_shard: int = 100) -> tuple[Path, Path]:
    """(raw, embeddings): the samples in some order, `source_uri` their number in five digits."""
    names = names_of(samples)
    order = np.random.default_rng(0).permutation(len(samples))

    def parts() -> Iterator[tuple[str, NDArray[np.int64]]]:
        for first in range(0, len(samples), per_shard):
            yield f"raw-{first // per_shard:06d}", order[first : first + per_shard]

    def raw(folder: Path) -> None:
        counts = [sum(identity == name for identity, _, _ in samples) for name in names]
        rows = [{"identity": name, "items": count, "samples": count} for name, count in zip(names, counts, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.IDENTITIES), folder / "identities.parquet")
        for stem, chosen in parts():
            found = []
            for at in chosen:
                same = [i for i, s in enumerate(samples) if torch.equal(s[2], samples[at][2])]
                base = dict.fromkeys(tables.ITEMS.names)
                duplicate = f"set{min(same)}" if len(same) > 1 else None
                found.append(
                    base
                    | {"identity": samples[at][0], "source_uri": f"{at:05d}", "shard": stem, "status": "ok", "duplicate_set": duplicate}
                )
            write_twin(folder / f"{stem}.parquet", pa.Table.from_pylist(found, schema=tables.ITEMS), {"tar_sha256": "no tar"})

    def embeddings(folder: Path) -> None:
        for stem, chosen in parts():
            vectors = torch.stack([samples[at][2] for at in chosen])
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), DIM)
            keys = [f"{at * 2654435761 % 2**32:032x}"[::-1] for at in chosen]
            columns = [pa.array(keys), pa.array([samples[at][0] for at in chosen]), pa.array([f"{at:05d}" for at in chosen])]
            columns += [pa.array(np.ones(len(chosen), np.float32)), flat]
            pq.write_table(pa.Table.from_arrays(columns, schema=tables.embeddings(DIM)), folder / f"{stem}.parquet")

    return sealed(root / "raw", raw), sealed(root / "embeddings", embeddings)


def names_of(samples: list[Sample]) -> list[str]:
    """The identities, in their order."""
    return sorted({identity for identity, _, _ in samples})
