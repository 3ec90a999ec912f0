"""The isolate stage on embeddings with planted answers: verdicts, proposals, near duplicates, small identities, buckets, rounds."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from arcface_core.noise.centers import cluster_centers
from pipeline import buckets, tables
from pipeline.config import load
from pipeline.isolate import isolate
from pipeline.models import save_tensors
from tests.pipeline.planted_embeddings import DIM, Sample, crawl, directions, names_of, planted, sealed


def judge(
    root: Path, samples: list[Sample], *settings: str, per_shard: int = 100, previous: Path | None = None, head: torch.Tensor | None = None
) -> list[dict[str, Any]]:
    """The noise rows, in the order of the samples. `head`: centers [identities, K, DIM]; those of the samples by default."""
    names = names_of(samples)

    def train(folder: Path) -> None:
        centers = [cluster_centers(torch.stack([v for identity, _, v in samples if identity == name]), 3) for name in names]
        rows = [{"class_index": at, "identity": name, "samples": 1} for at, name in enumerate(names)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.CLASSES), folder / "classes.parquet")
        save_tensors(folder / "head.safetensors", {"centers": torch.stack(centers) if head is None else head})

    config = load(overrides=["evaluate.holdout=0", "device=cpu", "workers=1", *settings])
    raw, embeddings = planted(root, samples, per_shard=per_shard)
    isolate(raw, sealed(root / "train", train), embeddings, root / "noise", config, previous=previous)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((root / "noise").glob("raw-*.parquet"))]).to_pylist()
    assert not any(isinstance(value, float) and math.isnan(value) for row in rows for value in row.values()), "SQL takes it for infinite"
    return sorted(rows, key=lambda row: str(row["source_uri"]))


def warning_of(root: Path) -> str:
    return str(json.loads((root / "noise" / "judge.json").read_text())["warning"])


def proposals(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(root / "noise" / "proposals.parquet").to_pylist()
    return found


def test_planted_noise_is_found_and_flips_are_proposed_for_their_owners(tmp_path: Path) -> None:
    samples = crawl()
    rows = judge(tmp_path, samples)
    wrong = [identity != true for identity, true, _ in samples]
    kept = [row["verdict"] == "keep" for row in rows]
    assert sum(k == w for k, w in zip(kept, wrong, strict=True)) <= 0.02 * len(samples)
    relabelled = [(row["other_identity"], true) for row, (_, true, _) in zip(rows, samples, strict=True) if row["verdict"] == "relabel"]
    assert len(relabelled) > 60 and sum(other == true for other, true in relabelled) >= 0.95 * len(relabelled)
    facts = json.loads((tmp_path / "noise" / "judge.json").read_text())
    assert (
        facts["noise_rate"] == pytest.approx(1 / 3, abs=0.03) and facts["noise_rate_low"] <= facts["noise_rate"] <= facts["noise_rate_high"]
    )
    assert [row["kind"] for row in proposals(tmp_path)] == []
    assert sorted(path.name for path in (tmp_path / "noise").iterdir() if path.name.startswith(".")) == []


def test_neither_shards_nor_buckets_nor_a_kill_change_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = crawl()
    whole = judge(tmp_path / "a", samples, per_shard=10_000)
    parts = judge(tmp_path / "b", samples, per_shard=64)
    monkeypatch.setattr(buckets, "BYTES_PER_BUCKET", 1 << 14)
    several = judge(tmp_path / "c", samples, per_shard=64)
    for other in (parts, several):
        assert [row["verdict"] for row in other] == [row["verdict"] for row in whole]
        assert [row["consensus_angle_deg"] for row in other] == pytest.approx([row["consensus_angle_deg"] for row in whole], abs=0.05)


def test_two_names_of_one_person_are_a_proposal_and_cost_no_sample(tmp_path: Path) -> None:
    samples = [("Other" if identity == "P03" and at % 2 else identity, "Other" if true == "P03" and identity == "P03" and at % 2 else true, vector)
               for at, (identity, true, vector) in enumerate(crawl(clean=20))]  # fmt: skip
    rows = judge(tmp_path, samples)
    merges = [(row["identity"], row["other_identity"]) for row in proposals(tmp_path) if row["kind"] == "merge"]
    assert merges == [("Other", "P03")]
    own = [
        row["verdict"] for row, (identity, true, _) in zip(rows, samples, strict=True) if identity in ("Other", "P03") and true == identity
    ]
    assert own.count("keep") >= 0.9 * len(own), "a second name for the same person is no rival"


def test_look_alikes_who_exchange_pictures_stay_two_people(tmp_path: Path) -> None:
    """Each accepts the other's pictures, but far less well than its own: no second name, so that the rival convicts what was exchanged."""
    faces = directions(9, 30)
    faces[1::2] = normalize(0.6 * faces[::2] + faces[1::2], dim=1)
    apart = 0.12 * torch.randn(30, 8, DIM, generator=torch.Generator().manual_seed(10))
    samples = [(f"P{person ^ (at == 7):02d}", f"P{person:02d}", normalize(faces[person] + apart[person, at], dim=0))
               for person in range(30) for at in range(8)]  # fmt: skip
    rows = judge(tmp_path, samples)
    assert proposals(tmp_path) == []
    gone = {at for at, row in enumerate(rows) if row["verdict"] != "keep"}
    assert gone == {at for at, (identity, true, _) in enumerate(samples) if identity != true}


def test_two_people_under_one_name(tmp_path: Path) -> None:
    second = directions(77, 2)
    few = [
        ("P00", "guest", normalize(second[0] + 0.08 * v, dim=0)) for v in torch.randn(6, DIM, generator=torch.Generator().manual_seed(5))
    ]
    many = [
        ("P01", "guest", normalize(second[1] + 0.08 * v, dim=0)) for v in torch.randn(12, DIM, generator=torch.Generator().manual_seed(6))
    ]
    samples = crawl() + few + many
    rows = judge(tmp_path, samples)
    assert {row["identity"] for row in proposals(tmp_path) if row["kind"] == "split"} == {"P00", "P01"}
    of = {name: {(row["verdict"], row["reason"]) for row in rows if row["identity"] == name} for name in ("P00", "P01")}
    assert of["P01"] == {("review", "tie")}, "twelve against twelve: nobody guesses"
    assert ("keep", "accepted") in of["P00"] and ("review", "tie") not in of["P00"]


def test_who_stands_under_a_name_alone_keeps_it_against_a_crowd_that_has_another(tmp_path: Path) -> None:
    samples = crawl(clean=14)
    crowd = [normalize(directions(0, 30)[7] + 0.08 * v, dim=0) for v in torch.randn(20, DIM, generator=torch.Generator().manual_seed(8))]
    samples += [("P07", "P07", vector) for vector in crowd[:8]] + [("P02", "P07", vector) for vector in crowd[8:]]
    lonely = [at for at, (identity, true, _) in enumerate(samples) if identity == "P02" and true == "P02"][:8]
    samples = [s for at, s in enumerate(samples) if not (s[0] == "P02" and s[1] == "P02" and at not in lonely)]
    rows = judge(tmp_path, samples)
    kept = [true for row, (identity, true, _) in zip(rows, samples, strict=True) if identity == "P02" and row["verdict"] == "keep"]
    assert kept.count("P02") >= 7 and kept.count("P07") == 0, kept


def test_small_and_hopeless_identities(tmp_path: Path) -> None:
    faces, noise = directions(50, 3), directions(51, 40)
    near = [normalize(faces[0] + 0.05 * v, dim=0) for v in torch.randn(3, DIM, generator=torch.Generator().manual_seed(1))]
    samples = crawl()
    samples += [("one", "one", faces[1])]
    samples += [("two same", "two same", near[0]), ("two same", "two same", near[1])]
    samples += [("two others", "?", noise[0]), ("two others", "?", noise[1])]
    samples += [("three others", "?", noise[row]) for row in range(2, 5)]
    samples += [("all noise", "?", noise[row]) for row in range(5, 40)]
    said: dict[str, set[tuple[str, str]]] = {}
    for row in judge(tmp_path, samples):
        said.setdefault(row["identity"], set()).add((row["verdict"], row["reason"]))
    assert said["one"] == {("review", "too_few_samples")}
    assert said["two same"] == {("keep", "accepted")}
    assert said["two others"] == said["three others"] == {("review", "no_consensus")}
    assert not any(verdict == "keep" for verdict, _ in said["all noise"])


def test_a_photograph_is_kept_once_and_one_image_under_two_names_goes_to_its_owner(tmp_path: Path) -> None:
    samples = crawl()
    again = normalize(samples[0][2] + 0.005 * torch.randn(DIM, generator=torch.Generator().manual_seed(3)), dim=0)
    samples += [("P00", "P00", again), ("P05", "P00", samples[1][2])]
    rows = judge(tmp_path, samples)
    pair = sorted([(rows[0]["verdict"], rows[0]["reason"]), (rows[-2]["verdict"], rows[-2]["reason"])])
    assert pair == [("drop", "near_duplicate"), ("keep", "accepted")]
    copy, kept = (rows[0], rows[-2]) if rows[0]["verdict"] == "drop" else (rows[-2], rows[0])
    assert copy["near_duplicate_of"] == kept["sample_id"] and kept["near_duplicate_of"] is None
    assert rows[1]["verdict"] == "keep" and rows[-1]["verdict"] in ("drop", "relabel")
    both = judge(tmp_path / "all", samples, "isolate.drop_near_duplicates=false")
    assert both[0]["verdict"] == both[-2]["verdict"] == "keep"


def test_one_photograph_under_two_names_is_seen_without_equal_bytes_and_stays_where_it_belongs(tmp_path: Path) -> None:
    samples = crawl()
    generator = torch.Generator().manual_seed(5)
    copies = {10: "P05", 30: "P09", 31: "P09", 200: "P00"}  # sample -> the wrong name that a copy of it stands under
    for at, name in copies.items():
        again = normalize(samples[at][2] + 0.004 * torch.randn(DIM, generator=generator), dim=0)
        samples.append((name, samples[at][0], again))
    rows = judge(tmp_path, samples)
    found = {at: rows[len(rows) - len(copies) + number] for number, at in enumerate(copies)}
    for at, copy in found.items():
        assert copy["copy_of"] == rows[at]["sample_id"] and (copy["verdict"], copy["reason"]) == ("drop", "same_photo_elsewhere"), copy
        assert rows[at]["verdict"] == "keep" and rows[at]["copy_of"] is None
    assert sum(row["copy_of"] is not None for row in rows) == len(copies), "a look-alike is no copy"


def test_two_names_of_one_person_share_no_photograph_among_the_kept(tmp_path: Path) -> None:
    samples = crawl()
    generator = torch.Generator().manual_seed(6)
    person = [vector for identity, true, vector in samples if identity == true == "P00"]
    apart = torch.randn(8, DIM, generator=generator) * 0.08
    samples += [("P00 again", "P00", normalize(directions(0, 30)[0] + apart[row], dim=0)) for row in range(8)]
    samples += [("P00 again", "P00", normalize(vector + 0.004 * torch.randn(DIM, generator=generator), dim=0)) for vector in person[:4]]
    rows = judge(tmp_path, samples)
    for first, copy in zip(rows[:4], rows[-4:], strict=True):
        assert {first["copy_of"], copy["copy_of"]} == {first["sample_id"], copy["sample_id"]}
        assert sorted([first["reason"], copy["reason"]]) == ["accepted", "same_photo_elsewhere"]


def test_purity_and_retention_can_be_asked_for(tmp_path: Path) -> None:
    samples = crawl(spread=0.19, clean=20, noise=10)
    pure = judge(tmp_path / "pure", samples, "isolate.max_noise=0.005")
    most = judge(tmp_path / "most", samples, "isolate.min_retention=0.995")
    kept = [{row["source_uri"] for row in rows if row["verdict"] == "keep"} for rows in (pure, most)]
    assert kept[0] < kept[1]
    wrong = {f"{at:05d}" for at, (identity, true, _) in enumerate(samples) if identity != true}
    assert len(kept[0] & wrong) <= 0.03 * len(kept[0]) and len(kept[1] - wrong) >= 0.97 * (len(samples) - len(wrong))


def test_what_a_later_round_keeps_again_is_recovered(tmp_path: Path) -> None:
    samples = crawl()
    judge(tmp_path / "one", samples, "isolate.rule=angle", "isolate.max_angle_deg=25")
    later = judge(tmp_path / "two", samples, previous=tmp_path / "one" / "noise")
    before = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "one" / "noise").glob("raw-*.parquet")]).to_pylist()
    not_kept = {row["source_uri"] for row in before if row["verdict"] != "keep"}
    assert {row["source_uri"] for row in later if row["reason"] == "recovered"} == not_kept & {
        row["source_uri"] for row in later if row["verdict"] == "keep"
    }
    assert any(row["reason"] == "recovered" for row in later)


def test_collapsed_embeddings_judge_nobody(tmp_path: Path) -> None:
    common = directions(99, 1)[0]
    samples = [(identity, true, normalize(3 * common + vector, dim=0)) for identity, true, vector in crawl()]
    rows = judge(tmp_path, samples)
    assert {(row["verdict"], row["reason"]) for row in rows} == {("review", "head_not_learned")} and proposals(tmp_path) == []
    assert "collapsed" in json.loads((tmp_path / "noise" / "judge.json").read_text())["warning"]
    anyway = judge(tmp_path / "anyway", samples, "isolate.judge_anyway=true")
    assert sum(row["reason"] == "near_duplicate" for row in anyway) == 0, "close together is not the same photograph"


@pytest.mark.parametrize("each", [1, 6])
def test_identities_of_one_photograph_judge_nobody(tmp_path: Path, each: int) -> None:
    faces = directions(3, 20)
    samples = [(f"P{number:02d}", f"P{number:02d}", faces[number]) for number in range(20) for _ in range(each)]
    rows = judge(tmp_path, samples)
    assert {row["verdict"] for row in rows} == {"review"}
    warning = warning_of(tmp_path)
    assert "No identity has two samples that differ" in warning and "several pictures" in warning and "train longer" not in warning


def test_a_model_that_takes_different_pictures_for_one_is_not_taken_for_a_crawl_of_copies(tmp_path: Path) -> None:
    near = directions(3, 20).repeat_interleave(6, 0) + 0.003 * directions(4, 120)
    judge(tmp_path, [(f"P{at // 6:02d}", "", normalize(near[at], dim=0)) for at in range(120)])
    assert "The model takes all pictures of an identity for one photograph" in warning_of(tmp_path) and "train longer" in warning_of(
        tmp_path
    )


def test_collapsed_embeddings_are_told_where_none_agrees_with_the_head(tmp_path: Path) -> None:
    apart, common = directions(3, 240), directions(99, 1)
    own = normalize(apart.view(20, 12, DIM).mean(1), dim=1)
    samples = [(f"P{at // 12:02d}", "", vector) for at, vector in enumerate(normalize(3 * common + apart, dim=1))]
    rows = judge(tmp_path, samples, head=normalize(directions(7, 20) - 0.1 * common + 0.8 * own, dim=1)[:, None])
    assert all(row["consensus_angle_deg"] is None for row in rows), "the case of an untrained head"
    assert "The embeddings have collapsed: pictures of two identities lie" in warning_of(tmp_path)
