"""Models measured on evaluation sets: features, scores, metrics; and the tables and pictures that they leave."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import normalize, rowwise_cosine
from arcface_core.protocols.identification import search_gallery
from arcface_core.protocols.streaming import all_pairs_histogram, pair_ranks, search_distractors, suggested_floor
from arcface_core.protocols.templates import group_means, image_weights, mode_name, pair_cosines, pooled_templates
from pipeline import shards, tables
from pipeline.curves import roc_svg, scores_svg
from pipeline.embedders import Embedder
from pipeline.errors import BadInput
from pipeline.features import embed_faces
from pipeline.metrics import (
    IJB_FARS,
    SCORE_BINS,
    Measured,
    differences,
    measure_distractors,
    measure_galleries,
    measure_histogram,
    measure_pairs,
    measure_templates,
)
from pipeline.protocols import DistractorSet, EvaluationSet, IdentitySet, PairSet, TemplateSet, known_set, open_set
from pipeline.protocols.faces import Faces, check_template
from pipeline.receipts import Progress, atomic

_BLOCK = 16_384
_FEW_PAIRS = 10_000_000
_SAMPLE = 4096
_ALL_PAIRS_FARS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the published protocols leave open."""

    keep_norm: bool = True
    """IJB: an image counts by the norm of its feature (N1), as in insightface's `eval_ijbc.py`."""
    detector_scores: bool = True
    """IJB: ... and by its detector's score (D1)."""
    any_alignment: bool = False
    """Measure crops whose eyes lie elsewhere than the ArcFace template has them."""


@dataclass(frozen=True)
class Model:
    """A model under the name that tables and pages give it."""

    name: str
    embedder: Embedder


def open_sets(wanted: dict[str, Path], choices: Choices) -> dict[str, EvaluationSet]:
    """Every set, read and checked before anything is embedded. Raises BadInput or BadConfig for the first that cannot be used."""
    found = {}
    for name, path in wanted.items():
        found[name] = one = open_set(name, path)
        known = known_set(name)
        if known is not None and known.is_frontal and not choices.any_alignment and isinstance(one, PairSet):
            check_template(one.faces, str(path))
    return found


def measure_set(
    name: str, found: EvaluationSet, embedder: Embedder, choices: Choices, cache: Path | None, *, progress: Progress | None = None
) -> list[Measured]:
    """What one model reaches on one set: one Measured, or several for 1:N and refined lists. Features stay in `cache`, when it is given.

    Raises BadInput: a picture that cannot be used, or a set of which a figure cannot be computed, as one of fewer pairs than folds.
    """

    def features(faces: Faces) -> NDArray[np.float32]:
        return embed_faces(faces, embedder, cache, progress=progress)

    try:
        if isinstance(found, PairSet):
            return [_pairs(name, found, features)]
        if isinstance(found, TemplateSet):
            return _templates(name, found, features, choices)
        if isinstance(found, IdentitySet):
            return [_all_pairs(name, found, features)]
        return _distractors(name, found, features)
    except ValueError as error:  # of the arithmetic: too few pairs, no probe with a mate ...
        raise BadInput(f"{name} cannot be measured: {error}.") from error


def evaluate_models(
    models: Sequence[Model], sets: dict[str, EvaluationSet], out: Path, choices: Choices, *, progress: Progress | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(metrics, differences) of every model on every set, also written into `out`: the tables, a picture of each curve, and `features/`.

    Each model after the first is compared with the first.
    """
    found: dict[str, list[Measured]] = {model.name: [] for model in models}
    for name, one in sets.items():
        for model in models:
            found[model.name] += measure_set(name, one, model.embedder, choices, out / "features", progress=progress)
    compared = [
        {"first": models[0].name, "second": model.name, **row}
        for model in models[1:]
        for first, second in zip(found[models[0].name], found[model.name], strict=True)
        for row in differences(first, second)
    ]
    rows = write(found, compared, out)
    draw(found, out)
    return rows, compared


def write(found: dict[str, list[Measured]], compared: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Write metrics, differences, roc and scores as Parquet into `out`. Returns the rows of metrics."""
    out.mkdir(parents=True, exist_ok=True)
    metrics, curves, scores = [], [], []
    for backbone, datasets in found.items():
        for one in datasets:
            common = {"backbone": backbone, "dataset": one.dataset}
            for row in one.rows:
                counts = {"genuine": row.get("genuine", 0), "impostor": row.get("impostor", 0), "protocol": one.protocol}
                metrics.append(common | row | counts | {"pairs": counts["genuine"] + counts["impostor"]})
            curves += [common | {"far": far, "tar": tar} for far, tar in one.curve]
            if one.counts is not None:
                edges = (np.arange(SCORE_BINS) * 2 - SCORE_BINS) / SCORE_BINS
                columns = zip(edges.tolist(), *(counts.tolist() for counts in one.counts), strict=True)
                scores += [common | {"cosine": edge, "genuine": own, "impostor": other} for edge, own, other in columns]
    for name, rows, schema in (
        ("metrics", metrics, tables.METRICS),
        ("differences", compared, tables.DIFFERENCES),
        ("roc", curves, tables.ROC),
        ("scores", scores, tables.SCORES),
    ):
        with atomic(out / f"{name}.parquet") as temporary:
            pq.write_table(shards.table_of(rows, schema), temporary)
    return metrics


def draw(found: dict[str, list[Measured]], out: Path) -> None:
    """Write `roc-DATASET.svg` and `scores-MODEL-DATASET.svg` into `out`."""
    by_dataset: dict[str, dict[str, Measured]] = {}
    for backbone, datasets in found.items():
        for one in datasets:
            by_dataset.setdefault(one.dataset, {})[backbone] = one
    for dataset, models in by_dataset.items():
        curves = {backbone: one.curve for backbone, one in models.items() if one.curve}
        pictures = {f"roc-{dataset}": roc_svg(curves, dataset)} if curves else {}
        pictures |= {f"scores-{backbone}-{dataset}": scores_svg(*one.counts, dataset) for backbone, one in models.items() if one.counts}
        for name, text in pictures.items():
            with atomic(out / f"{_file_name(name)}.svg") as temporary:
                temporary.write_text(text, "utf-8")


def _pairs(name: str, found: PairSet, features: Callable[[Faces], NDArray[np.float32]]) -> Measured:
    feature_ND = torch.from_numpy(features(found.faces))
    unit_UD = (
        normalize(feature_ND) if found.units == len(feature_ND) else group_means(feature_ND, torch.from_numpy(found.unit_N), found.units)
    )
    scores = rowwise_cosine(unit_UD[torch.from_numpy(found.left_M)], unit_UD[torch.from_numpy(found.right_M)])
    return measure_pairs(name, scores, torch.from_numpy(found.genuine_M), folds=found.folds, protocol=found.protocol)


def _templates(name: str, found: TemplateSet, features: Callable[[Faces], NDArray[np.float32]], choices: Choices) -> list[Measured]:
    feature_ND = torch.from_numpy(features(found.faces))
    detector = torch.from_numpy(found.detector_N) if choices.detector_scores else None
    weights = image_weights(feature_ND, keep_norm=choices.keep_norm, detector_N=detector)
    templates = pooled_templates(feature_ND, torch.from_numpy(found.template_N), torch.from_numpy(found.media_N), weights)
    protocol = f"{found.protocol} {mode_name(keep_norm=choices.keep_norm, detector_scores=choices.detector_scores, mirrored=True)}"
    scores = pair_cosines(templates, torch.from_numpy(found.left_M), torch.from_numpy(found.right_M))
    measured = [measure_templates(name, scores, torch.from_numpy(found.genuine_M), protocol=protocol)]
    if found.probes is None:
        return measured

    def vectors(template_T: NDArray[np.int64]) -> Tensor:
        return templates.vectors_TD[torch.searchsorted(templates.ids_T, torch.from_numpy(template_T))]

    probes, subjects = vectors(found.probes.template_T), torch.from_numpy(found.probes.subject_T)
    searches = {
        gallery: search_gallery(probes, subjects, vectors(one.template_T), torch.from_numpy(one.subject_T))
        for gallery, one in found.galleries.items()
    }
    return measured + measure_galleries(f"{name} 1:N", searches, protocol=protocol)


def _all_pairs(name: str, found: IdentitySet, features: Callable[[Faces], NDArray[np.float32]]) -> Measured:
    unit = normalize(torch.from_numpy(features(found.faces)))
    identity = torch.from_numpy(found.identity_N)
    floor = suggested_floor(unit, identity, far=max(_ALL_PAIRS_FARS), sample=_SAMPLE)
    return measure_histogram(name, all_pairs_histogram(unit, identity, floor=floor), _ALL_PAIRS_FARS, protocol=found.protocol)


def _distractors(name: str, found: DistractorSet, features: Callable[[Faces], NDArray[np.float32]]) -> list[Measured]:
    probes = torch.from_numpy(features(found.probes))
    distractors = features(found.distractors)
    measured = [_searched(name, found, probes, distractors, np.zeros(len(probes), bool), np.zeros(len(distractors), bool))]
    if found.noisy_P.any() or found.noisy_M.any():
        measured.append(_searched(f"{name} refined", found, probes, distractors, found.noisy_P, found.noisy_M))
    return measured


def _searched(
    name: str,
    found: DistractorSet,
    probes: Tensor,
    distractors: NDArray[np.float32],
    no_probe: NDArray[np.bool_],
    no_distractor: NDArray[np.bool_],
) -> Measured:
    kept, identity = probes[torch.from_numpy(~no_probe)], torch.from_numpy(found.identity_P[~no_probe])

    def blocks() -> Iterator[Tensor]:
        for start in range(0, len(distractors), _BLOCK):
            yield torch.from_numpy(distractors[start : start + _BLOCK][~no_distractor[start : start + _BLOCK]])

    ranks = (1, 10)
    one = search_distractors(kept, identity, blocks(), ranks=max(ranks), floor=_floor(kept, distractors))
    return measure_distractors(name, one, pair_ranks(kept, identity, one.nearest_PK), ranks=ranks, protocol=found.protocol)


def _floor(probes: Tensor, distractors: NDArray[np.float32]) -> float:
    """A cosine that about one in a hundred impostor pairs exceeds: thresholds of 1e-6 lie far above it. Of few pairs, none (-1)."""
    if len(probes) * len(distractors) < _FEW_PAIRS:
        return -1.0
    rng = np.random.default_rng(_SEED)
    own = torch.from_numpy(rng.permutation(len(probes))[:_SAMPLE])
    others = torch.from_numpy(distractors[np.sort(rng.permutation(len(distractors))[:_SAMPLE])])
    cos = (normalize(probes[own]) @ normalize(others).mT).reshape(-1)
    return float(cos.topk(len(cos) // 100).values[-1])


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)[:150]


__all__ = ["IJB_FARS", "Choices", "Model", "draw", "evaluate_models", "measure_set", "open_sets", "write"]
