"""Who finds planted noise, on the same embeddings: our judge and eight others, by kind and rate of noise.

Two sources of embeddings, in any number:
  --embeddings FACES.npz    `embeddings` (unit rows) and `names` (`Name/Name_0001.jpg`), made by a ready embedder. People with ten pictures or
                            more are the identities, noise is planted here: flips, strangers (people with one picture), half and half,
                            confusable flips (to the nearest identity), and one wrong person who is 30 % of every fifth identity
  --run RUN --truth TABLE   the rounds of a finished run on a synthetic crawl
Others: the paper's rule at 75 degrees and at its best angle in hindsight, pytorch-metric-learning's get_outliers, cleanlab's label issues and
outlier score, SelfClean's intra / extra distance ranking (Groeger et al. 2023, re-implemented), distance to a robust centroid, and mean distance
to the five nearest of the identity. "Pairs merged": ours, when somebody merges the pairs of names that it proposes as one person's.
Those that only rank are given their best cut in hindsight, which nobody has in practice (marked *).
Run: python benchmarks/isolation_quality.py --embeddings FACES.npz [--seeds 3] [--rates 0 0.1 0.3 0.5 0.6] [--kinds flips ...]     (wants the extra `bench`)
"""

import argparse
import json
import statistics
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from arcface_core.noise.centers import angle_to, cluster_centers, dominant, dominant_centers, nearest_subcenter, vote
from pipeline import tables
from pipeline.config import load
from pipeline.embed import read_embeddings
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.models import save_tensors
from pipeline.receipts import run_stage
from pipeline.shards import write_twin
from pipeline.train import read_classes

AT_LEAST = 10
KINDS = ("flips", "strangers", "half and half", "confusable flips", "one wrong person")
Case = dict[str, Any]


def plant(embeddings: Tensor, names: list[str], kind: str, rate: float, seed: int) -> Case:
    """Vectors, claimed class, truth. Flips leave their own identity, so that no picture stands twice."""
    rng = np.random.default_rng([seed, KINDS.index(kind), int(rate * 100)])
    of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        of[name.split("/")[0]].append(row)
    people = sorted(person for person, rows in of.items() if len(rows) >= AT_LEAST)
    strangers = [rows[0] for _, rows in sorted(of.items()) if len(rows) == 1]
    rng.shuffle(strangers)
    means = normalize(torch.stack([embeddings[of[person]].mean(dim=0) for person in people]), dim=1)
    nearest = (means @ means.T).fill_diagonal_(-1).argmax(dim=1).tolist()
    row_N, class_N, true_N = [], [], []
    loose: list[tuple[int, int]] = []
    for number, person in enumerate(people):
        rows = [int(row) for row in rng.permutation(of[person])]
        away = min(int(rng.binomial(len(rows), rate)), len(rows) - 3)
        row_N += rows[away:]
        class_N += [number] * (len(rows) - away)
        true_N += [number] * (len(rows) - away)
        loose += [(row, number) for row in rows[:away]]
    order = rng.permutation(len(loose))
    for place, (_, slot) in enumerate(loose):
        row, owner = loose[order[place]]
        stranger = kind == "strangers" or (kind in ("half and half", "one wrong person") and rng.random() < 0.5)
        if stranger and strangers:
            row, owner, target = strangers.pop(), -1, slot
        elif kind == "confusable flips" and rng.random() < 0.5:
            target = nearest[owner]
        else:
            target = slot if slot != owner else (owner + 1) % len(people)
        row_N.append(row)
        class_N.append(target)
        true_N.append(owner)
    if kind == "one wrong person":
        large = sorted((rows for rows in of.values() if 6 <= len(rows) < AT_LEAST), key=len, reverse=True)
        for number in range(0, len(people), 5):
            guests = large.pop(0)[: max(2, round(0.3 * class_N.count(number)))]
            row_N += guests
            class_N += [number] * len(guests)
            true_N += [-1] * len(guests)
    vectors, classes = embeddings[row_N], torch.tensor(class_N)
    centers = torch.stack([cluster_centers(vectors[classes == number], 3) for number in range(len(people))])
    return {
        "vectors": vectors,
        "class": classes,
        "wrong": torch.tensor(class_N) != torch.tensor(true_N),
        "true": true_N,
        "centers": centers,
    }


def rounds_of(run: Path, truth: Path) -> Iterator[tuple[str, Case]]:
    """The embeddings, heads and verdicts of a finished run."""
    known = {row["item"]: row for row in pq.read_table(truth).to_pylist()}
    layout = RunLayout(run)
    for number in (1, 2):
        one = layout.round(number)
        parts = [read_embeddings(path) for path in sorted(one.embeddings.glob("raw-*.parquet"))]
        uris = [uri for part in parts for uri in part[0]]
        people = sorted({identity for part in parts for identity in part[1]})
        place = {person: at for at, person in enumerate(people)}
        classes = torch.tensor([place[identity] for part in parts for identity in part[1]])
        vectors = torch.from_numpy(np.concatenate([part[3] for part in parts]))
        trained, learned = read_classes(one.train)
        centers = torch.stack([cluster_centers(vectors[classes == at], learned.shape[1]) for at in range(len(people))])
        centers[[place[name] for name in trained]] = learned
        noise = pa.concat_tables([pq.read_table(path) for path in sorted(one.noise.glob("raw-*.parquet"))])
        row_of = {uri: row for row, uri in enumerate(noise["source_uri"].to_pylist())}
        judged = noise.take([row_of[uri] for uri in uris])
        true = [place.get(known[uri]["true_identity"], -1) for uri in uris]
        wrong = torch.tensor([known[uri]["is_noise"] for uri in uris])
        yield f"round {number}", {"vectors": vectors, "class": classes, "wrong": wrong, "true": true, "centers": centers, "judged": judged,
                                  "people": people, "noise": one.noise}  # fmt: skip


def judged_by_us(case: Case, root: Path) -> Case:
    """The case with the noise table of the stage itself, run on a folder made of these embeddings."""
    names = [f"{number:05d}" for number in range(len(case["centers"]))]
    identities = [names[number] for number in case["class"].tolist()]
    counts = torch.bincount(case["class"]).tolist()
    keys = [f"{row * 0x9E3779B97F4A7C15 % 2**128:032x}" for row in range(len(identities))]
    uris = [f"{row:07d}" for row in range(len(identities))]

    def sealed(folder: Path, write: Callable[[Path], None]) -> Path:
        run_stage(folder, stage="made", mark="0" * 64, work=lambda out: write(out) or {})  # type: ignore[func-returns-value]
        return folder

    def raw(out: Path) -> None:
        rows = [{"identity": name, "items": count, "samples": count} for name, count in zip(names, counts, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.IDENTITIES), out / "identities.parquet")
        items = [{name: None for name in tables.ITEMS.names} | {"sample_id": k, "identity": i, "source_uri": u, "shard": "raw-000000", "status": "ok"}
                 for k, i, u in zip(keys, identities, uris, strict=True)]  # fmt: skip
        write_twin(out / "raw-000000.parquet", pa.Table.from_pylist(items, schema=tables.ITEMS), {"tar_sha256": "no tar"})

    def train(out: Path) -> None:
        rows = [{"class_index": at, "identity": name, "samples": counts[at]} for at, name in enumerate(names)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.CLASSES), out / "classes.parquet")
        save_tensors(out / "head.safetensors", {"centers": case["centers"]})

    def embeddings(out: Path) -> None:
        vectors = case["vectors"].float()
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), vectors.shape[1])
        quality = pa.array(np.ones(len(keys), np.float32))
        columns = [pa.array(keys), pa.array(identities), pa.array(uris), quality, flat]
        pq.write_table(pa.Table.from_arrays(columns, schema=tables.embeddings(vectors.shape[1])), out / "raw-000000.parquet")

    config = load(overrides=["evaluate.holdout=0"])
    folders = sealed(root / "raw", raw), sealed(root / "train", train), sealed(root / "embeddings", embeddings)
    isolate(*folders, root / "noise", config)
    return case | {"judged": pq.read_table(root / "noise" / "raw-000000.parquet"), "people": names, "noise": root / "noise"}


def f1(removed: Tensor, wrong: Tensor) -> float:
    both = int((removed & wrong).sum())
    return 2 * both / max(1, int(removed.sum()) + int(wrong.sum()))


def best_f1(score: Tensor, wrong: Tensor) -> float:
    """The F1 of the best cut, known only with the truth."""
    found = wrong[score.argsort(descending=True)].cumsum(dim=0).double()
    return float((2 * found / (torch.arange(1, len(wrong) + 1) + wrong.sum())).max()) if wrong.any() else 1.0


def others(case: Case) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """(score, higher = worse; removed) of every other method; None where it has none."""
    vectors, classes, centers = normalize(case["vectors"].float(), dim=1), case["class"], case["centers"]
    count = len(centers)
    nearest, _ = nearest_subcenter(vectors, classes, centers)
    own = dominant_centers(centers, dominant(vote(nearest, classes, count, centers.shape[1])))
    angle = angle_to(vectors, classes, own).nan_to_num(180.0)
    robust = torch.zeros(count, vectors.shape[1])
    neighbour, selfclean = torch.zeros(len(vectors)), torch.zeros(len(vectors))
    for number in range(count):
        rows = (classes == number).nonzero()[:, 0]
        inside = vectors[rows]
        center = inside.median(dim=0).values
        for _ in range(5):  # trimmed to the nearer half
            kept = inside[(inside @ center).argsort(descending=True)[: max(2, len(rows) // 2)]]
            center = normalize(kept.mean(dim=0), dim=0)
        robust[number] = center
        close = (inside @ inside.T).fill_diagonal_(-2)
        neighbour[rows] = -close.topk(min(5, len(rows) - 1)).values.mean(dim=1)
        far = vectors @ inside.T
        far[classes == number] = -2
        intra, extra = 1 - close.max(dim=1).values, 1 - far.max(dim=0).values
        selfclean[rows] = intra**2 / (intra**2 + extra**2).clamp_min(1e-12)
    center_score = -(vectors * robust[classes]).sum(dim=1)
    found: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "paper, 75 degrees": (angle, angle > 75),
        "paper, best angle*": (angle, None),
        "robust centroid*": (center_score, None),
        "kNN in the identity*": (neighbour, None),
        "SelfClean ranking*": (selfclean, None),
    }
    found["PML get_outliers, 75"] = (None, pml(case))
    return found | cleanlab(vectors, classes, count)


def pml(case: Case) -> Tensor:
    from pytorch_metric_learning.losses import SubCenterArcFaceLoss

    centers = case["centers"]
    loss = SubCenterArcFaceLoss(num_classes=len(centers), embedding_size=centers.shape[2], sub_centers=centers.shape[1])
    loss.W.data = centers.reshape(-1, centers.shape[2]).T.contiguous()
    outliers, _ = loss.get_outliers(case["vectors"].float(), case["class"], threshold=75)
    removed = torch.zeros(len(case["class"]), dtype=torch.bool)
    removed[outliers] = True
    return removed


def cleanlab(vectors: Tensor, classes: Tensor, count: int) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    from cleanlab.filter import find_label_issues
    from cleanlab.outlier import OutOfDistribution
    from cleanlab.rank import get_label_quality_scores

    fold = torch.randint(5, (len(classes),), generator=torch.Generator().manual_seed(0))
    probability = torch.zeros(len(classes), count)
    for number in range(5):
        inside = fold != number
        sums = torch.zeros(count, vectors.shape[1]).index_add_(0, classes[inside], vectors[inside])
        probability[~inside] = torch.softmax(16 * vectors[~inside] @ normalize(sums, dim=1).T, dim=1)
    labels, probabilities = classes.numpy(), probability.double().numpy()
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities)
    outlier = OutOfDistribution().fit_score(features=vectors.numpy(), verbose=False)
    return {
        "cleanlab label issues": (-torch.from_numpy(quality), torch.from_numpy(issues)),
        "cleanlab outliers*": (-torch.from_numpy(outlier), None),
    }


def measured(case: Case) -> dict[str, dict[str, float]]:
    """Figures of every method on one case."""
    wrong, judged = case["wrong"], case["judged"]
    noise = torch.from_numpy(judged["noise_probability"].to_numpy().copy()).nan_to_num(1.0)
    removed = torch.tensor([reason != "near_duplicate" and verdict != "keep" for verdict, reason in zip(judged["verdict"].to_pylist(),
                           judged["reason"].to_pylist(), strict=True)])  # fmt: skip
    methods: dict[str, tuple[Tensor | None, Tensor | None]] = {"ours": (noise, removed), "ours, best cut*": (noise, None)}
    rows = {}
    for name, (score, out) in (methods | others(case)).items():
        row = {}
        if score is not None and wrong.any():
            row = {"AUROC": roc_auc_score(wrong, score), "AP": average_precision_score(wrong, score)}
        row["F1"] = f1(out, wrong) if out is not None else best_f1(score if score is not None else noise, wrong)
        if out is not None:
            row |= {"purity": float((~wrong[~out]).float().mean()), "clean kept": float((~out[~wrong]).float().mean())}
        rows[name] = row
    smaller = smaller_names(case)
    if smaller:
        merged = removed | torch.isin(case["class"], torch.tensor(smaller))
        rows["ours, pairs merged"] = {
            "F1": f1(merged, wrong),
            "purity": float((~wrong[~merged]).float().mean()),
            "clean kept": float((~merged[~wrong]).float().mean()),
            "pairs": len(smaller),
        }
    facts = json.loads((case["noise"] / "judge.json").read_text("utf-8"))
    rows["ours"]["rate error"] = facts["noise_rate"] - float(wrong.float().mean())
    proposed = [place for place, verdict in enumerate(judged["verdict"].to_pylist()) if verdict == "relabel"]
    at = {person: number for number, person in enumerate(case["people"])}
    right = [at[judged["other_identity"][place].as_py()] == case["true"][place] for place in proposed]
    flips = sum(bool(bad) and owner >= 0 for bad, owner in zip(wrong.tolist(), case["true"], strict=True))
    if proposed:
        rows["ours"] |= {"relabel precision": sum(right) / len(right), "relabel recall": sum(right) / max(1, flips)}
    if not wrong.any():
        rows = {
            name: {"clean dropped": float(out.float().mean())} for name, (_, out) in (methods | others(case)).items() if out is not None
        }
    return rows


def smaller_names(case: Case) -> list[int]:
    """Of each two names that are proposed as one person's, the one with fewer pictures: what it kept goes to the other when somebody says M in `purify review`."""
    sizes = torch.bincount(case["class"]).tolist()
    at = {person: number for number, person in enumerate(case["people"])}
    pairs = [row for row in pq.read_table(case["noise"] / "proposals.parquet").to_pylist() if row["kind"] != "split"]
    return sorted({min(at[row["identity"]], at[row["other_identity"]], key=sizes.__getitem__) for row in pairs})


def reliability(cases: list[Case]) -> None:
    """Of the samples that were given a noise probability in each tenth, the share that is noise."""
    noise = torch.cat([torch.from_numpy(case["judged"]["noise_probability"].to_numpy().copy()) for case in cases])
    wrong = torch.cat([case["wrong"] for case in cases])[~noise.isnan()]
    noise = noise[~noise.isnan()]
    print("\n| noise probability | samples | mean probability | share that is noise |\n|---|---|---|---|")
    for tenth in range(10):
        inside = (noise >= tenth / 10) & ((noise < (tenth + 1) / 10) | (tenth == 9))
        if inside.any():
            mean, share = float(noise[inside].mean()), float(wrong[inside].float().mean())
            print(f"| {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} | {int(inside.sum())} | {mean:.3f} | {share:.3f} |")


def show(title: str, found: list[dict[str, dict[str, float]]]) -> None:
    columns = list(dict.fromkeys(name for rows in found for row in rows.values() for name in row))
    print(f"\n{title}\n\n| method | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for method in dict.fromkeys(name for rows in found for name in rows):
        values = [[rows[method][name] for rows in found if name in rows.get(method, {})] for name in columns]
        print(f"| {method} | {' | '.join(f'{statistics.mean(v):.3f}' if v else '' for v in values)} |", flush=True)


def double_names(embeddings: Tensor, names: list[str], seed: int) -> tuple[float, float]:
    """Precision and recall of merge proposals when every fourth identity of twenty pictures or more stands under two names; 30 % noise."""
    rng = np.random.default_rng(seed)
    case = plant(embeddings, names, "half and half", 0.3, seed)
    sizes = torch.bincount(case["class"])
    chosen = [int(number) for number in (sizes >= 20).nonzero()[:, 0]][::2]
    classes, count, doubles = case["class"].clone(), len(case["centers"]), set()
    for extra, number in enumerate(chosen):
        rows = (case["class"] == number).nonzero()[:, 0].numpy()
        classes[rng.permutation(rows)[: len(rows) // 2]] = count + extra
        doubles.add((number, count + extra))
    centers = torch.stack([cluster_centers(case["vectors"][classes == number], 3) for number in range(count + len(chosen))])
    with tempfile.TemporaryDirectory() as root:
        judged = judged_by_us(case | {"class": classes, "centers": centers}, Path(root))
        rows = pq.read_table(judged["noise"] / "proposals.parquet").to_pylist()
    merges = {tuple(sorted((int(row["identity"]), int(row["other_identity"])))) for row in rows if row["kind"] == "merge"}
    return (len(merges & doubles) / len(merges) if merges else 1.0), len(merges & doubles) / len(doubles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reliability", action="store_true", help="print how reliable the probabilities are, and nothing else")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rates", type=float, nargs="*", default=[0.0, 0.1, 0.3, 0.5, 0.6])
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.run:
        for name, case in rounds_of(given.run, given.truth):
            if given.reliability:
                print(f"\n{given.run}, {name}")
                reliability([case])
                continue
            show(f"{given.run}, {name}, {len(case['class'])} samples, {float(case['wrong'].float().mean()):.0%} noise", [measured(case)])
    if given.embeddings:
        with np.load(given.embeddings, allow_pickle=False) as held:
            names = [str(name) for name in held["names"]]
            embeddings = normalize(torch.from_numpy(held["embeddings"].astype(np.float32)), dim=1)
        if given.reliability:
            for rate in given.rates:
                cases = []
                for seed in range(given.seeds):
                    with tempfile.TemporaryDirectory() as root:
                        cases.append(judged_by_us(plant(embeddings, names, "half and half", rate, seed), Path(root)))
                print(f"\nhalf and half, {rate:.0%}")
                reliability(cases)
            return
        if set(given.kinds) == set(KINDS):
            merges = [double_names(embeddings, names, seed) for seed in range(given.seeds)]
            precision, recall = (statistics.mean(numbers) for numbers in zip(*merges, strict=True))
            print(f"\nMerge proposals on planted double names: precision {precision:.3f}, recall {recall:.3f}")
        for rate in given.rates:
            for kind in given.kinds if rate else KINDS[:1]:
                found = []
                for seed in range(given.seeds):
                    with tempfile.TemporaryDirectory() as root:
                        found.append(measured(judged_by_us(plant(embeddings, names, kind, rate, seed), Path(root))))
                show(f"{given.embeddings.name}, {kind if rate else 'no noise'}, {rate:.0%}, {given.seeds} seeds", found)


if __name__ == "__main__":
    main()
