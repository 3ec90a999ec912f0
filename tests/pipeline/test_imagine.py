"""Faces imagined for sub-centers and samples of a round, by a small backbone with weights of its own."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from arcface_core.angles import normalize
from arcface_core.backbones import build_backbone
from pipeline import tables
from pipeline.config import load
from pipeline.errors import BadInput
from pipeline.imagine import Imagined, Memory, imagine, imagine_samples, remember, remembered
from pipeline.layout import RunLayout
from pipeline.models import save_tensors
from pipeline.receipts import run_stage

NAMES = ("Ada", "Bob", "Cyd")
DIM = 16
CONFIG = load(overrides=["audit.inversion_steps=6", "device=cpu"])


def row(schema: pa.Schema, **known: object) -> dict[str, object]:
    wanted = {field.name: "x" if pa.types.is_string(field.type) else 0 for field in schema if not field.nullable}
    return dict.fromkeys(schema.names) | wanted | known


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """Ada has two strong sub-centers, Bob one, Cyd two of which one is too weak, and no center in the last round."""
    run = RunLayout(tmp_path_factory.mktemp("run"))
    votes = {"Ada": [7, 3, 0], "Bob": [0, 10, 0], "Cyd": [1, 0, 19]}

    def raw(folder: Path) -> None:
        rows = [{"identity": name, "items": 10, "samples": 10} for name in NAMES]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.IDENTITIES), folder / "identities.parquet")

    def train(folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = build_backbone("tiny", embedding_dim=DIM, input_px=32)
        save_tensors(folder / "backbone.safetensors", backbone.state_dict())
        (folder / "model.json").write_text(json.dumps({"backbone": "tiny", "embedding_dim": DIM, "input_px": 32}))
        centers = normalize(torch.randn(3, 3, DIM, generator=torch.Generator().manual_seed(1)))
        save_tensors(folder / "head.safetensors", {"centers": centers})
        rows = [{"class_index": at, "identity": name, "samples": 10} for at, name in enumerate(NAMES)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.CLASSES), folder / "classes.parquet")

    def noise(folder: Path) -> None:
        rows = [row(tables.NOISE, sample_id=f"{name}{k}{n}", identity=name, source_uri=f"{name}/{k}/{n}", nearest_subcenter=k)
                for name in NAMES for k, count in enumerate(votes[name]) for n in range(count)]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.NOISE), folder / "raw-000000.parquet")
        dominant = normalize(torch.randn(3, DIM, generator=torch.Generator().manual_seed(2)))
        dominant[2] = 0
        save_tensors(folder / "centers.safetensors", {"dominant": dominant})

    def embeddings(folder: Path) -> None:
        vectors = normalize(torch.randn(2, DIM, generator=torch.Generator().manual_seed(3))).tolist()
        rows = [
            row(tables.embeddings(DIM), sample_id=f"{at:032x}", identity="Ada", source_uri=f"{at}", embedding=vectors[at]) for at in (0, 1)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.embeddings(DIM)), folder / "raw-000000.parquet")

    sealed(run.raw, raw)
    for number in (1, 2):
        one = run.round(number)
        for folder, work in ((one.train, train), (one.noise, noise), (one.embeddings, embeddings)):
            sealed(folder, work)
    return run


def sealed(folder: Path, work: object) -> None:
    run_stage(folder, stage=folder.name, mark="0" * 64, work=lambda partial: work(partial) or {})  # type: ignore[operator]


def abouts(found: dict[str, list[Imagined]], name: str) -> list[str]:
    return [one.about for one in found.get(name, [])]


def is_picture(one: Imagined) -> bool:
    return Image.open(io.BytesIO(one.png)).size == (112, 112) and 0 <= one.angle_deg <= 180


def test_strong_subcenters_of_the_first_round_and_the_dominant_one_of_the_last(run: RunLayout) -> None:
    seen: list[tuple[int, int]] = []
    rounds = [run.round(1), run.round(2)]
    found = imagine(run.raw, rounds, NAMES, CONFIG, progress=lambda *told: seen.append(told))
    first, second = "sub-center 0, nearest to 70% of the samples (round 1)", "sub-center 1, nearest to 30% of the samples (round 1)"
    assert abouts(found, "Ada") == [first, second, "the dominant sub-center (round 2)"]
    assert abouts(found, "Bob") == ["the dominant sub-center (round 2)"] and "Cyd" not in found
    assert all(is_picture(one) for faces in found.values() for one in faces) and len({one.png for one in found["Ada"]}) == 3
    assert seen == [(step, 12) for step in range(1, 13)]
    assert imagine(run.raw, rounds, NAMES, CONFIG) == found, "the same seed, the same faces"


def test_one_round_draws_no_subcenter_twice(run: RunLayout) -> None:
    found = imagine(run.raw, [run.round(1)], NAMES, CONFIG)
    assert [about.split(",")[0] for about in abouts(found, "Ada")] == ["sub-center 0", "sub-center 1"]
    assert abouts(found, "Bob") == ["the dominant sub-center (round 1)"]


def test_a_face_has_company_so_that_the_batchnorm_term_sees_many_people(run: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import imagine as module

    sizes, real = [], module.invert

    def counted(backbone: torch.nn.Module, centers: torch.Tensor, **options: object) -> object:
        sizes.append(len(centers))
        return real(backbone, centers, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "invert", counted)
    monkeypatch.setattr(module, "_BATCH", 2)
    monkeypatch.setattr(module, "_LEAST_BATCH", 3)
    seen: list[tuple[int, int]] = []
    found = imagine_samples(run.round(2), [f"{1:032x}"], CONFIG, steps=2, progress=lambda *told: seen.append(told))
    assert sizes == [3] and seen == [(1, 2), (2, 2)] and len(found) == 1
    sizes.clear()
    imagine(run.raw, [run.round(1), run.round(2)], NAMES, CONFIG)
    assert sizes == [3, 3]


@pytest.mark.parametrize("ids", [["f" * 32], ["\x1b[31m" * 40]])
def test_an_unknown_sample_is_refused(run: RunLayout, ids: Sequence[str]) -> None:
    with pytest.raises(BadInput, match="has no embedding of"):
        imagine_samples(run.round(2), ids, CONFIG, steps=2)


def test_none_where_none_are_wanted(run: RunLayout) -> None:
    assert imagine(run.raw, [run.round(1)], NAMES, load(overrides=["audit.inversion_steps=0"])) == {}


def test_what_is_remembered_is_not_drawn_again_and_what_changed_is(run: RunLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import imagine as module

    drawn, real = [], module.invert

    def counted(*given: object, **options: object) -> object:
        drawn.append(options["seed"])
        return real(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "invert", counted)
    rounds, file, first = [run.round(1), run.round(2)], tmp_path / "inversions" / "made.json", Memory()
    found = imagine(run.raw, rounds, NAMES, CONFIG, memory=first)
    remember(first, file)
    assert len(drawn) == len(first.used) == 2
    again = Memory(remembered(file))
    assert imagine(run.raw, rounds, NAMES, CONFIG, memory=again) == found and len(drawn) == 2 and again.used == first.used
    fewer = Memory(remembered(file))
    imagine(run.raw, rounds, ["Ada"], CONFIG, memory=fewer)
    assert len(drawn) == 3 and len(fewer.used) == 2, "the sub-centers of the first round are as they were, those of the last are others"
    imagine(run.raw, rounds, NAMES, load(overrides=["audit.inversion_steps=6", "device=cpu", "seed=5"]), memory=Memory(remembered(file)))
    assert drawn[3:] == [5, 5]
    file.write_text('{"a": [["?", 1]]}', "utf-8")
    assert remembered(file) == {} == remembered(tmp_path / "none")
