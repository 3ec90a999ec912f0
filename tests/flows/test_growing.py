"""A crawl that grows: judged by the training that stands, without training; trained anew when it is asked for, or when it is time.

The flow's recipe is run with each Prefect task replaced by its function, which needs no server.
"""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from prefect import Task

from flows import tasks
from pipeline import embed as embed_module
from pipeline import gather, isolate
from pipeline.config import Config
from pipeline.embed import embed
from pipeline.embedders import load_embedder
from pipeline.errors import BadConfig
from pipeline.layout import RunLayout
from pipeline.plan import plan
from pipeline.receipts import mark_of
from pipeline.run_folder import claimed, write_record
from pipeline.train import is_held_out
from tests.flows.small_run import config as settings
from tests.flows.small_run import stages
from tests.pipeline.embedder_models import write

recipe = importlib.import_module("flows.purify")
FEWER = ("train.epochs=2", "audit.identities=1", "audit.inversions=0", "evaluate.folds=2", "evaluate.pairs=20")


def config(mode: str, *changed: str) -> Config:
    return settings(*FEWER, f"mode={mode}", *changed)


def counts(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage["counts"] for stage in record["stages"]}


def _fitted_once(fit: Callable[..., Any]) -> Callable[..., Any]:
    """`fit` with its first result for ever: the fits are most of the time, and the rule `angle` does not ask them."""
    found: list[Any] = []

    def once(*numbers: Any, **more: Any) -> Any:
        if not found:
            found.append(fit(*numbers, **more))
        return found[0]

    return once


def purify(crawl: Path, run: Path, config: Config) -> dict[str, Any]:
    """What the flow does."""
    layout = RunLayout(run)
    before = contents(run)
    planned = plan(crawl, layout, config)
    assert contents(run) == before, "a plan writes nothing"
    with claimed(crawl, layout):
        record = write_record(crawl, layout, config, recipe._stages(crawl, layout, config), 0.0)
    made = {name: not same for name, same in stages(record).items() if name != "retrain"}
    judged = {name.removeprefix("judge: "): is_made for name, is_made in made.items() if name.startswith("judge: ")}
    made = {name: is_made for name, is_made in made.items() if not name.startswith("judge: ")} | judged
    assert {name: is_made for name, is_made, _ in planned.steps} == {_output(name): is_made for name, is_made in made.items()}
    return record


def contents(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def _output(stage: str) -> str:
    words = {"ingest": "raw", "export": "clean", "evaluate": "evaluation", "embed": "embeddings", "isolate": "noise"}
    words |= {"centers": "train", "protect": "protected"}
    *of_round, name = stage.split()
    return "/".join([*(("rounds", of_round[1]) if of_round else ()), words.get(name, name)])


def test_a_crawl_that_grows(tiny_crawl: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in list(vars(tasks).items()):
        if isinstance(value, Task):
            monkeypatch.setattr(tasks, name, value.fn)
    for module, name in ((gather, "fit_calibration"), (isolate, "fit_calibration"), (isolate, "fit_fusion")):
        monkeypatch.setattr(module, name, _fitted_once(getattr(module, name)))
    embedded: list[str] = []
    embed_shard = embed_module.embed_shard

    def noted(part: Any) -> None:
        embedded.append(part.stem.name)
        embed_shard(part)

    monkeypatch.setattr(embed_module, "embed_shard", noted)
    crawl, run = tmp_path / "crawl", tmp_path / "run"
    layout = RunLayout(run)
    shutil.copytree(tiny_crawl[0], crawl)
    purify(crawl, run, config("judge"))
    trainings = [mark_of(layout.round(number).train) for number in (1, 2)]
    old = sorted(path.stem for path in layout.raw.glob("raw-*.parquet"))
    assert sorted(embedded) == sorted(old * 2), "without a training, judge trains"
    embedded.clear()

    new_name = next(name for n in range(99) if not is_held_out(name := f"Newly Found {n}", share=0.2, seed=0))
    pictures = pd.read_parquet(run / "manifest").query("status == 'ok'")["source_uri"]
    added = [f"{new_name}/{number}.jpg" for number in range(4)]
    (crawl / new_name).mkdir()
    for source, name in zip(pictures, added, strict=False):
        shutil.copyfile(crawl / source, crawl / name)

    with pytest.raises(BadConfig, match=r"train\.epochs was 2 and is 3\. --mode judge trains nothing"):
        purify(crawl, run, config("judge", "train.epochs=3"))
    told = plan(crawl, layout, config("judge"))
    why = {name: why for name, _, why in told.steps}
    assert why["raw"].endswith(f" listed; {len(added)} new")
    assert why["rounds/1/train"] == "stays as it is" and why["rounds/1/embeddings"] == "to do: made of raw, which is to do"
    assert told.changed_settings == [] and plan(crawl, layout, config("full", "isolate.rule=either")).changed_settings == [
        "mode was 'judge' and is 'full'",
        "isolate.rule was 'angle' and is 'either'",
    ]
    assert "known only when all is judged" in str(plan(crawl, layout, config("auto")).training)
    assert plan(crawl, layout, config("auto", "train.epochs=3")).training == "trained anew: train.epochs was 2 and is 3"
    record = purify(crawl, run, config("judge"))
    new = sorted({path.stem for path in layout.raw.glob("raw-*.parquet")} - set(old))
    assert [mark_of(layout.round(number).train) for number in (1, 2)] == trainings
    assert new and sorted(embedded) == sorted(new * 2), "new shards only, in each of two rounds"
    told = counts(record)
    for number in (1, 2):
        train = told[f"round {number} train"]
        assert (train["kept_training"], train["shards"], train["new_shards"]) == (True, len(old), len(new))
        assert told[f"round {number} embed"]["taken_over"] == len(old)
    assert record["config"]["mode"] == "judge"
    rows = pd.read_parquet(run / "manifest").set_index("source_uri")
    assert sorted(rows.index) == sorted(str(path.relative_to(crawl)) for path in crawl.rglob("*") if path.is_file())
    assert rows.loc[added, "angle_deg"].notna().all() and (rows.loc[added, "decided_by"] == "rule:angle").all()

    embed(layout.raw, layout.round(2).train, tmp_path / "fresh", config("full"))
    for path in (tmp_path / "fresh").glob("raw-*.parquet"):
        assert path.read_bytes() == (layout.round(2).embeddings / path.name).read_bytes()

    assert all(stages(purify(crawl, run, config("judge"))).values())
    record = purify(crawl, run, config("auto", "retrain.new_share=0.9", "retrain.new_identities=0.9"))
    assert all(same for name, same in stages(record).items() if name != "retrain")
    assert counts(record)["retrain"]["trained_anew"] is False
    assert plan(crawl, layout, config("full", "rounds=1")).removed == ["rounds/2"]
    assert not stages(purify(crawl, run, config("full", "rounds=1")))["round 1 train"]
    assert plan(crawl, layout, config("full", "rounds=1")).removed == []

    shutil.copyfile(crawl / pictures.iloc[-1], crawl / new_name / "later.jpg")
    record = purify(crawl, run, config("auto", "retrain.new_share=0.001", "rounds=1"))
    assert counts(record)["retrain"]["why"].startswith("trained anew: new samples 0.0")
    assert stages(record)["judge: round 1 train"] and not stages(record)["round 1 train"]
    assert json.loads((run / "run.json").read_text())["stages"] == record["stages"]
    assert all(stages(purify(crawl, run, config("full", "rounds=1"))).values()), "auto has trained what full would have"

    trained = load_embedder(run, torch.device("cpu")).module
    assert trained is not None
    given = write(tmp_path / "given.onnx", trained, shape=(1, 3, 32, 32))
    by_given = [f"embedder.model={given}", "evaluate.bins=[]", "rounds=2"]
    assert not any(stages(purify(crawl, tmp_path / "given", config("auto", *by_given))).values())
    (tmp_path / "lfw").mkdir()
    shutil.copyfile(crawl / pictures.iloc[0], tmp_path / "lfw" / "1.jpg")
    again = stages(purify(crawl, tmp_path / "given", config("auto", *by_given, f"protect.sets=['{tmp_path / 'lfw'}']")))
    assert [name for name, same in again.items() if not same] == ["protect", "audit"], "it is reported only"
    shutil.rmtree(tmp_path / "given" / "manifest")
    again = stages(purify(crawl, tmp_path / "given", config("auto", *by_given)))
    assert [name for name, same in again.items() if not same] == ["manifest", "audit"], "the same manifest makes the same clean shards"
