"""A model in place of training: centers by clustering, the same verdicts from them, a second round on what was kept, a model that sees nothing."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from arcface_core.backbones import build_backbone
from pipeline import buckets, tables
from pipeline.adopt import adopt
from pipeline.centers import find_centers, is_given
from pipeline.config import Config, load
from pipeline.embed import embed_again
from pipeline.embedders import load_embedder
from pipeline.errors import BadConfig, HeadNotLearned
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.learned import require_learned
from pipeline.models import save_tensors
from pipeline.run_folder import remove_what_is_not_of
from pipeline.train import read_classes
from tests.pipeline.embedder_models import DIM as ONNX_DIM
from tests.pipeline.embedder_models import Net, write
from tests.pipeline.planted_embeddings import DIM, Sample, crawl, planted, sealed


def config(*changed: str) -> Config:
    return load(overrides=["evaluate.holdout=0.3", "device=cpu", "workers=1", *changed])


def model(root: Path) -> Path:
    def adopted(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"not opened here")
        (folder / "model.json").write_text(json.dumps({"file": "model.onnx"}))

    return sealed(root / "embedder", adopted)


def rows_of(noise: Path) -> list[dict[str, Any]]:
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(noise.glob("raw-*.parquet"))]).to_pylist()
    return sorted(rows, key=lambda row: str(row["source_uri"]))


def mean_direction(vectors: list[Tensor]) -> Tensor:
    total = torch.stack(vectors).sum(0)
    return total / total.norm()


def test_two_rounds_by_clustered_centers_find_what_was_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = crawl()
    raw, embeddings = planted(tmp_path, samples)
    settings = config()
    counts = find_centers(raw, model(tmp_path), embeddings, tmp_path / "1", settings).counts
    assert counts == {"identities": 30, "samples": len(samples), "subcenters": 3} and is_given(tmp_path / "1")
    assert (tmp_path / "1" / "model.onnx").read_bytes() == b"not opened here" and not list((tmp_path / "1").glob(".b*"))
    isolate(raw, tmp_path / "1", embeddings, tmp_path / "noise1", settings)
    wrong = [identity != true for identity, true, _ in samples]
    rows = rows_of(tmp_path / "noise1")
    assert sum((row["verdict"] == "keep") == is_wrong for row, is_wrong in zip(rows, wrong, strict=True)) <= 0.02 * len(samples)
    assert json.loads((tmp_path / "noise1" / "judge.json").read_text())["held_out_noise_rate"] is None, "nobody is held out of no training"

    embed_again(embeddings, tmp_path / "embeddings2")
    assert all((tmp_path / "embeddings2" / path.name).samefile(path) for path in embeddings.glob("raw-*"))
    find_centers(raw, model(tmp_path), tmp_path / "embeddings2", tmp_path / "2", settings, noise=tmp_path / "noise1")
    names, centers_CKD = read_classes(tmp_path / "2")
    kept = {name: [v for row, (own, _, v) in zip(rows, samples, strict=True) if own == name and row["verdict"] == "keep"] for name in names}
    assert len(names) == 30 and torch.allclose(centers_CKD[:, 0], torch.stack([mean_direction(kept[name]) for name in names]), atol=1e-5)
    isolate(raw, tmp_path / "2", tmp_path / "embeddings2", tmp_path / "noise2", settings, previous=tmp_path / "noise1")
    again = rows_of(tmp_path / "noise2")
    clean = [(before["angle_deg"], after["angle_deg"]) for before, after, bad in zip(rows, again, wrong, strict=True) if not bad]
    assert sum(after for _, after in clean) < sum(before for before, _ in clean), "noise no longer pulls at the centers"

    monkeypatch.setattr(buckets, "BYTES_PER_BUCKET", 1 << 13)
    receipt = find_centers(raw, model(tmp_path), embeddings, tmp_path / "in_parts", settings)
    assert not receipt.reused and torch.allclose(read_classes(tmp_path / "in_parts")[1], read_classes(tmp_path / "1")[1], atol=1e-5)


def test_people_win_over_verdicts_and_who_lost_all_is_judged_all_the_same(tmp_path: Path) -> None:
    samples: list[Sample] = [
        (name, name, torch.randn(DIM, generator=torch.Generator().manual_seed(at))) for at, name in enumerate("AAABBBCC")
    ]
    raw, embeddings = planted(tmp_path, samples)
    keys = {
        uri: key
        for uri, key in zip(
            *(pq.read_table(embeddings / "raw-000000.parquet")[c].to_pylist() for c in ("source_uri", "sample_id")), strict=True
        )
    }
    said = ["keep", "drop", "relabel", "keep", "keep", "drop", "drop", "review"]

    def judged(folder: Path) -> None:
        found = [
            dict.fromkeys(tables.NOISE.names)
            | {"sample_id": keys[f"{at:05d}"], "identity": samples[at][0], "source_uri": f"{at:05d}", "verdict": one, "reason": ""}
            for at, one in enumerate(said)
        ]
        pq.write_table(pa.Table.from_pylist(found, schema=tables.NOISE), folder / "raw-000000.parquet")

    decided = pa.Table.from_pylist(
        [
            dict.fromkeys(tables.DECISIONS.names)
            | {"sample_id": keys[f"{at:05d}"], "verdict": one, "clean_identity": name, "decided_by": "me"}
            for at, one, name in ((1, "relabel", "B"), (3, "drop", None), (5, "keep", None))
        ],
        schema=pa.schema([field.with_nullable(True) for field in tables.DECISIONS]),
    )
    noise = sealed(tmp_path / "judged", judged)
    find_centers(raw, model(tmp_path), embeddings, tmp_path / "2", config(), noise=noise, decisions=decided)
    names, centers_CKD = read_classes(tmp_path / "2")
    assert names == ["A", "B"] and pq.read_table(tmp_path / "2" / "classes.parquet")["samples"].to_pylist() == [1, 3]
    unit = [v / v.norm() for _, _, v in samples]
    wanted = [mean_direction([unit[0]]), mean_direction([unit[1], unit[4], unit[5]])]
    assert torch.allclose(centers_CKD[:, 0], torch.stack(wanted), atol=1e-5)
    isolate(raw, tmp_path / "2", embeddings, tmp_path / "noise", config("isolate.judge_anyway=true"), previous=noise)
    assert all(row["angle_deg"] is not None for row in rows_of(tmp_path / "noise") if row["identity"] == "C")


def only_of(chosen: str, stem: str, _: list[str], names: list[str]) -> list[str | None]:
    return [*names] if stem == chosen else [None for _ in names]


def test_a_shard_of_which_nothing_counts(tmp_path: Path) -> None:
    raw, embeddings = planted(tmp_path, crawl(people=3, clean=4, noise=0), per_shard=4)
    stem = sorted(embeddings.glob("raw-*"))[1].stem
    names = pa.chunked_array([["P00", "P01", "P02"]])
    found = buckets.split(raw, embeddings, names, tmp_path / "b", claims=partial(only_of, stem))
    assert found.count == 1 and found.read(0).row_N.tolist() == [4, 5, 6, 7]


def test_a_model_that_tells_nobody_apart_judges_nobody(tmp_path: Path) -> None:
    samples: list[Sample] = [
        (f"P{at // 12:02d}", "?", torch.nn.functional.normalize(torch.randn(DIM, generator=torch.Generator().manual_seed(at)), dim=0))
        for at in range(240)
    ]
    raw, embeddings = planted(tmp_path, samples)
    find_centers(raw, model(tmp_path), embeddings, tmp_path / "train", config())
    receipt = isolate(raw, tmp_path / "train", embeddings, tmp_path / "noise", config())
    assert receipt.counts["head_learned"] is False and {row["verdict"] for row in rows_of(tmp_path / "noise")} == {"review"}
    with pytest.raises(HeadNotLearned, match=r"do not tell identities apart.*another --embedder.*judge_anyway"):
        require_learned(tmp_path / "noise")


@pytest.mark.parametrize("form", ["onnx", "safetensors", "training"])
def test_an_adopted_model_needs_nothing_from_outside(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    net = build_backbone("tiny", embedding_dim=ONNX_DIM, input_px=32)
    source = tmp_path / "given" / f"some model.{form}"
    source.parent.mkdir()
    told = ["embedder.channels=bgr", "embedder.mean=[120.0, 110.0, 100.0]"]
    if form == "onnx":
        write(source, Net())
    elif form == "safetensors":
        save_tensors(source, net.state_dict())
    else:
        source = source.parent
        save_tensors(source / "backbone.safetensors", net.state_dict())
        (source / "model.json").write_text(json.dumps({"backbone": "tiny", "embedding_dim": ONNX_DIM, "input_px": 32}))
        told = []
    settings = config(f"embedder.model={json.dumps(str(source))}", *told)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    wanted = load_embedder(source, torch.device("cpu"), settings.embedder)
    receipt = adopt(tmp_path / "embedder", settings)
    assert receipt.counts["sha256"] == wanted.sha256 and receipt.counts["dim"] == ONNX_DIM
    for path in (tmp_path / "given").iterdir():
        path.rename(path.with_name("gone"))
    found = load_embedder(tmp_path / "embedder", torch.device("cpu"))
    assert torch.equal(found.embed(images), wanted.embed(images)) and found.sha256 == wanted.sha256


def test_a_model_and_weights_to_train_from_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="Give either --embedder or --init"):
        adopt(tmp_path / "embedder", config("embedder.model=a.onnx", "train.init=b.pt"))


def test_rounds_and_a_model_that_the_settings_do_not_have_are_removed(tmp_path: Path) -> None:
    run = RunLayout(tmp_path)
    for folder in (run.embedder, run.round(1).noise, run.round(2).noise):
        folder.mkdir(parents=True)
    remove_what_is_not_of(run, config("rounds=1", "embedder.model=a.onnx"))
    assert run.embedder.exists() and run.round(1).noise.exists() and not run.round(2).root.exists()
    remove_what_is_not_of(run, config("rounds=1"))
    assert not run.embedder.exists()
