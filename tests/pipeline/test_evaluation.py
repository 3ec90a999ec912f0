import hashlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import tables
from pipeline.errors import BadInput
from pipeline.evaluation import Choices, Model, evaluate_models, measure_set, open_sets
from pipeline.features import embed_faces
from pipeline.metrics import differences, gap_recovered, measure_pairs
from pipeline.protocols import EvaluationSet, PairSet
from tests.pipeline.evaluation_sets import blind, colours, write_ijb, write_lfw, write_megaface, write_ytf


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvaluationSet]:
    root = tmp_path_factory.mktemp("sets")
    write_lfw(root / "lfw")
    places = {
        "mine": root / "lfw",
        "videos": write_ytf(root / "ytf"),
        "toy": write_ijb(root / "ijb"),
        "mega": write_megaface(root / "megaface"),
        "all-pairs": root / "lfw",
    }
    return open_sets(places, Choices())


def test_two_models_on_every_kind_of_set(opened: dict[str, EvaluationSet], tmp_path: Path) -> None:
    metrics, compared = evaluate_models([Model("blind", blind()), Model("colours", colours())], opened, tmp_path, Choices())
    found = {(row["backbone"], row["dataset"], row["metric"]): row for row in metrics}
    for dataset in ("mine", "videos"):
        seeing, unseeing = (found[model, dataset, "auroc"]["value"] for model in ("colours", "blind"))
        assert seeing > unseeing + 0.2, dataset
    assert found["colours", "mine", "accuracy"]["value"] == 0.75 and found["colours", "mine", "accuracy"]["genuine"] == 30
    assert found["colours", "mine", "tar@far=0.1"]["low"] <= found["colours", "mine", "tar@far=0.1"]["value"]
    assert found["colours", "mine", "tar@far=0.0001"]["value"] is None, "thirty impostor pairs cannot say"
    assert found["colours", "toy", "tar@far=0.1"]["protocol"] == "templates/1 N1D1F2"
    assert found["colours", "toy 1:N mean", "rank-1"]["value"] > found["blind", "toy 1:N mean", "rank-1"]["value"]
    assert found["colours", "toy 1:N G1", "rank-1"]["genuine"] == 4 and found["colours", "toy 1:N mean", "tpir@fpir=0.1"]["impostor"] == 4
    assert found["colours", "mega refined", "rank-1"]["value"] > found["colours", "mega", "rank-1"]["value"], "the noise stood in the way"
    assert (
        found["colours", "mega", "rank-1"]["genuine"] == 3 * 4 * 3 and found["colours", "mega refined", "rank-1"]["genuine"] == 2 * 12 + 6
    )
    assert (
        found["colours", "all-pairs", "tar@far=0.0001"]["genuine"] == 12 * 6
        and found["colours", "all-pairs", "tar@far=0.0001"]["impostor"] == 66 * 16
    )
    change = {(row["dataset"], row["metric"]): row for row in compared}
    assert change["mine", "accuracy"]["difference"] > 0 and change["mine", "accuracy"]["low"] > 0
    assert {row["first"] for row in compared} == {"blind"} and {row["second"] for row in compared} == {"colours"}

    for name, schema in (("metrics", tables.METRICS), ("differences", tables.DIFFERENCES), ("roc", tables.ROC), ("scores", tables.SCORES)):
        tables.check(tmp_path / f"{name}.parquet", schema)
    scores = pq.read_table(tmp_path / "scores.parquet", filters=[("backbone", "=", "colours"), ("dataset", "=", "mine")]).to_pydict()
    assert sum(scores["genuine"]) == sum(scores["impostor"]) == 30 and scores["cosine"][:2] == [-1.0, -0.99]
    roc = pq.read_table(tmp_path / "roc.parquet", filters=[("backbone", "=", "colours"), ("dataset", "=", "mine")]).to_pydict()
    assert roc["far"] == sorted(roc["far"]) and roc["far"][-1] == roc["tar"][-1] == 1
    pictures = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert "roc-mine.svg" in pictures and "scores-colours-toy.svg" in pictures
    for path in tmp_path.glob("*.svg"):
        assert len(ElementTree.fromstring(path.read_text("utf-8"))) > 5


def test_a_second_evaluation_embeds_nothing_and_a_killed_one_goes_on(opened: dict[str, EvaluationSet], tmp_path: Path) -> None:
    found = opened["mine"]
    assert isinstance(found, PairSet)
    whole = embed_faces(found.faces, colours(), tmp_path)
    [file] = tmp_path.glob("*.npy")
    assert np.array_equal(whole, embed_faces(found.faces, colours(), None))
    broken = type(found.faces)(found.faces.names, lambda number: b"", found.faces.mark)
    assert np.array_equal(embed_faces(broken, colours(), tmp_path), whole), "no picture is read again"
    partial = np.array(whole)
    partial[30:] = 0
    file.unlink()
    np.save(file.with_suffix(".partial.npy"), partial)
    assert np.array_equal(embed_faces(found.faces, colours(), tmp_path), whole)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_model_without_finite_features_is_told(opened: dict[str, EvaluationSet]) -> None:
    found, model = opened["mine"], colours()
    assert isinstance(found, PairSet)
    broken = type(model)(**{**vars(model), "embed": lambda images: model.embed(images) * torch.nan})
    with pytest.raises(BadInput, match=r"colours makes no finite feature of Person_00/Person_00_000\d\.jpg"):
        embed_faces(found.faces, broken, None)


def test_too_few_pairs_are_told_in_words(opened: dict[str, EvaluationSet]) -> None:
    found = opened["mine"]
    assert isinstance(found, PairSet)
    few = replace(found, left_M=found.left_M[:4], right_M=found.right_M[:4], genuine_M=found.genuine_M[:4])
    with pytest.raises(BadInput, match=r"mine cannot be measured: folds must be in 2\.\.4, the number of pairs, got 10"):
        measure_set("mine", few, colours(), Choices(), None)


def test_modes_of_templates_are_told_and_differ(opened: dict[str, EvaluationSet]) -> None:
    kept = measure_set("toy", opened["toy"], colours(), Choices(), None)[0]
    other = measure_set("toy", opened["toy"], colours(), Choices(keep_norm=False, detector_scores=False), None)[0]
    assert (kept.protocol, other.protocol) == ("templates/1 N1D1F2", "templates/1 N0D0F2")
    assert kept.scores_N is not None and other.scores_N is not None and not torch.equal(kept.scores_N, other.scores_N)


def test_permuting_pairs_inside_folds_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    genuine = torch.from_numpy(np.tile(np.repeat([True, False], 10), 10))
    scores = torch.from_numpy(np.clip(genuine.numpy() * 0.4 + 0.3 * rng.standard_normal(200), -1, 1))
    order = torch.cat([fold[torch.from_numpy(rng.permutation(20))] for fold in torch.arange(200).view(10, 20)])
    one, other = (measure_pairs("x", s, g, folds=10, protocol="p") for s, g in ((scores, genuine), (scores[order], genuine[order])))
    assert [{**row} for row in one.rows] == [{**row} for row in other.rows] and one.curve == other.curve
    assert all(row["difference"] == 0 for row in differences(one, other))


def test_share_of_the_gap() -> None:
    assert gap_recovered(0.8, 0.9, 0.95) == pytest.approx(2 / 3)
    assert gap_recovered(0.8, 0.9, 0.8) is None


def test_the_same_pictures_have_the_same_mark(tmp_path: Path) -> None:
    first, second = (open_sets({"mine": write_lfw(tmp_path / name, people=3, each=3, pairs=1)}, Choices())["mine"] for name in ("a", "b"))
    assert isinstance(first, PairSet) and isinstance(second, PairSet)
    assert first.faces.mark != second.faces.mark, "times differ"
    assert len(first.faces.mark) == len(hashlib.sha256().hexdigest())
