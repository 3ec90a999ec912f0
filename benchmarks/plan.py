"""How long, how large and where it breaks first: a plan for crawls of 1, 50 and 260 million images, from the rates of two runs that were made.

`python benchmarks/plan.py RUN LARGER_RUN [--cores 32 --nodes 8 --gpus 8 --train-rate 1000 --embed-rate 2500]`

Both runs are finished, of crawls of different size under the same settings, on one machine that was otherwise idle. A rate is what the larger did
more, by the seconds it took longer: what a stage costs once (starts, fits) is in neither. Rates of a GPU are not measured by runs without one:
give yours, or what is said is for processors alone. docs/scaling.md has the cost model in words.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLANS = (("1 M", 1_000_000, 20_000), ("50 M", 50_000_000, 1_000_000), ("260 M", 260_000_000, 4_000_000))
"""(name, images, identities)"""
_PER_NODE = ("ingest", "embed", "isolate", "export")
"""Stages whose parts go to all cores of all nodes; the others run on the node of the flow. Where there is a GPU, embed and isolate run on one."""


STAGES = {"ingest": 1.0, "train": 2.0, "embed": 2.0, "isolate": 2.0, "manifest": 1.0, "export": 0.5}
"""How often a run of two rounds handles an image in each, with half of them kept; training once an epoch."""


@dataclass(frozen=True)
class Rates:
    """Images a second: of one core where parts fan out, else of the process. `train` counts images seen, an epoch each."""

    per_s: dict[str, float]
    bytes_per_image: dict[str, float]


def measured(small: Path, large: Path, given: dict[str, float]) -> Rates:
    """The rates and sizes between two finished runs; of a stage whose rate is given, that one. Raises SystemExit when a stage tells nothing."""
    few, many = _work(small), _work(large)
    per_s: dict[str, float] = {}
    for kind, (amount, seconds) in many.items():
        amount_before, seconds_before = few.get(kind, (0.0, 0.0))
        if amount > amount_before and seconds > seconds_before:
            per_s[kind] = (amount - amount_before) / (seconds - seconds_before)
    per_s |= given
    missing = STAGES.keys() - per_s.keys()
    if missing:
        raise SystemExit(
            f"No rates of {', '.join(sorted(missing))} between {small} and {large}: the larger run has to come second, to have trained, and to be so much "
            "larger that it takes longer. Isolate's fits take seconds whatever the crawl; its rate can be given (--isolate-rate)."
        )
    items = many["ingest"][0]
    folders = {"raw": large / "raw", "embeddings": large / "rounds" / "1" / "embeddings", "noise": large / "rounds" / "1" / "noise"}
    folders |= {"manifest": large / "manifest", "clean": large / "clean"}
    return Rates({kind: per_s[kind] for kind in STAGES}, {name: _size(folder) / items for name, folder in folders.items()})


def _work(run: Path) -> dict[str, tuple[float, float]]:
    """Of the first of each kind of stage: (images, seconds on one worker)."""
    record = json.loads((run / "run.json").read_text("utf-8"))
    workers = record["config"]["workers"] or record["cores"]
    found: dict[str, tuple[float, float]] = {}
    for stage in record["stages"]:
        kind = stage["stage"].split()[-1]
        if kind in STAGES and kind not in found:
            amount = _amount(stage["counts"], kind, record["config"]["train"]["batch_size"])
            found[kind] = amount, stage["seconds"] * (workers if kind in _PER_NODE else 1)
    return found


def _amount(counts: dict[str, Any], kind: str, batch: int) -> float:
    if kind == "train":
        return float(counts["steps"] * batch)
    if kind == "isolate":
        return float(sum(counts[verdict] for verdict in ("keep", "drop", "relabel", "review")))
    return float(counts.get("items") or counts.get("samples") or 0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def head_bytes(identities: int, subcenters: int, dim: int) -> int:
    """Weights and momentum in float32; the gradient is of the rows in the batch where the head is sampled."""
    return 2 * 4 * identities * subcenters * dim


def hours(rates: Rates, images: int, given: argparse.Namespace) -> dict[str, float]:
    """Hours of each stage of a run of two rounds."""
    cores, gpus = given.nodes * given.cores, given.gpus
    per_s = dict(rates.per_s)
    per_s |= {stage: rates.per_s[stage] * cores for stage in _PER_NODE}
    if gpus:
        per_s |= {"train": given.train_rate * gpus, "embed": given.embed_rate, "isolate": rates.per_s["isolate"]}
    times = STAGES | {"train": STAGES["train"] * given.epochs}
    return {stage: times[stage] * images / per_s[stage] / 3600 for stage in STAGES}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path)
    options.add_argument("larger", type=Path)
    options.add_argument("--nodes", type=int, default=1, help="machines of the Dask or Ray cluster")
    options.add_argument("--cores", type=int, default=32, help="of each")
    options.add_argument("--gpus", type=int, default=0, help="that train")
    options.add_argument("--train-rate", type=float, default=1000.0, help="images a second of one GPU in training")
    options.add_argument("--embed-rate", type=float, default=2500.0, help="images a second of the one GPU that embeds")
    options.add_argument("--isolate-rate", type=float, help="images a second of one core, or of the one GPU, in place of the measured")
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--dim", type=int, default=512)
    options.add_argument("--subcenters", type=int, default=3)
    given = options.parse_args()
    told = {"isolate": given.isolate_rate} if given.isolate_rate else {}
    rates = measured(given.run, given.larger, told)
    print("| stage | images/s | of |\n|---|---|---|")
    for stage, rate in rates.per_s.items():
        print(f"| {stage} | {rate:,.0f} | {'one core' if stage in _PER_NODE else 'the process'}{', given' if stage in told else ''} |")
    print("\n| on disk | bytes an image, measured |\n|---|---|")
    for name, size in rates.bytes_per_image.items():
        print(f"| {name} | {size:,.0f} |")
    machine = f"{given.nodes} x {given.cores} cores" + (f", {given.gpus} GPUs" if given.gpus else ", no GPU")
    print(f"\nTwo rounds of {given.epochs} epochs on {machine}; half of the images kept\n")
    print(f"| | {' | '.join(name for name, _, _ in PLANS)} |\n|---|{'---|' * len(PLANS)}")
    plans = [hours(rates, images, given) for _, images, _ in PLANS]
    for stage in plans[0]:
        print(f"| {stage}, hours | {' | '.join(f'{plan[stage]:,.1f}' for plan in plans)} |")
    print(f"| all, hours | {' | '.join(f'{sum(plan.values()):,.1f}' for plan in plans)} |")
    slowest = [max(plan, key=plan.__getitem__) for plan in plans]
    print(f"| most of it | {' | '.join(slowest)} |")
    a_image = sum(size * (2 if name in ("embeddings", "noise") else 1) for name, size in rates.bytes_per_image.items())
    print(f"| run folder, TB | {' | '.join(f'{images * a_image / 1e12:,.2f}' for _, images, _ in PLANS)} |")
    heads = [head_bytes(identities, given.subcenters, given.dim) / 2**30 for _, _, identities in PLANS]
    print(f"| head, K = {given.subcenters}, GiB over all GPUs | {' | '.join(f'{size:,.1f}' for size in heads)} |")
    buckets = [images * given.dim * 4 / 1e9 for _, images, _ in PLANS]
    print(f"| isolate's copy of the embeddings, GB of disk | {' | '.join(f'{size:,.0f}' for size in buckets)} |")


if __name__ == "__main__":
    main()
