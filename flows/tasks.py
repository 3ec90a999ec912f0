"""The stages as Prefect tasks: one line a stage. Receipts are the memory of what is done, so Prefect caches and stores nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from flows.progress import finished, key, say, shown, tolerated
from flows.screen import plain
from pipeline import adopt as adopt_stage
from pipeline import audit as audit_stage
from pipeline import centers as centers_stage
from pipeline import embed as embed_stage
from pipeline import evaluate as evaluate_stage
from pipeline import export as export_stage
from pipeline import ingest as ingest_stage
from pipeline import isolate as isolate_stage
from pipeline import protect as protect_stage
from pipeline import retrain as retrain_stage
from pipeline import train as train_stage
from pipeline.config import Config
from pipeline.decisions import read_standing
from pipeline.layout import RoundLayout, RunLayout
from pipeline.learned import require_learned
from pipeline.minds import minds_of_run
from pipeline.places import Location
from pipeline.receipts import Receipt

_stage = task(cache_policy=NO_CACHE, persist_result=False)
_gpu_stage = task(cache_policy=NO_CACHE, persist_result=False, tags=["gpu"])
"""Works on a GPU where there is one: `prefect concurrency-limit create gpu 1` lets one of them at a time, over all runs."""


def _run(name: str, stage: Callable[..., Receipt], *inputs: Any, **options: Any) -> Receipt:
    with shown(name) as progress:
        receipt = stage(*inputs, progress=progress, **options)
    finished(name, receipt)
    if FlowRunContext.get() is not None:
        with tolerated("of what a stage came to"):
            counts = [{"what": what.replace("_", " "), "value": value} for what, value in receipt.counts.items()]
            create_table_artifact(key=key(name), table=counts, description=f"{name}: {receipt.seconds:.1f} s")
    return receipt


@_stage
def ingest(crawl: Location, run: RunLayout, config: Config) -> Receipt:
    receipt = _run("ingest", ingest_stage.ingest, crawl, run.raw, config)
    for mind in minds_of_run(run, config):
        say("mind", f"[yellow]Mind:[/yellow] {plain(mind)}", mind=mind)
    return receipt


@_stage
def adopt(run: RunLayout, config: Config) -> Receipt:
    return _run("embedder", adopt_stage.adopt, run.embedder, config)


@_gpu_stage
def train(run: RunLayout, of: RoundLayout, config: Config, kept_by: Path | None, keep: bool) -> Receipt:
    decided = read_standing(run.root) if kept_by else None
    before = run.round(of.number - 1).train if kept_by else None
    more = {"noise": kept_by, "decisions": decided, "before": before, "keep": keep}
    return _run(f"round {of.number} train", train_stage.train, run.raw, of.train, config, **more)


@_stage
def retrain(run: RunLayout, config: Config, problem: str | None) -> Receipt:
    receipt = _run("retrain", retrain_stage.judge_training, run, config, problem)
    say("retrain", str(receipt.counts["why"]), **receipt.counts)
    return receipt


@_gpu_stage
def embed(run: RunLayout, of: RoundLayout, config: Config) -> Receipt:
    return _run(f"round {of.number} embed", embed_stage.embed, run.raw, of.train, of.embeddings, config)


@_gpu_stage
def embed_by_given(run: RunLayout, of: RoundLayout, config: Config) -> Receipt:
    return _run(f"round {of.number} embed", embed_stage.embed, run.raw, run.embedder, of.embeddings, config)


@_stage
def embed_again(earlier: RoundLayout, of: RoundLayout) -> Receipt:
    return _run(f"round {of.number} embed", embed_stage.embed_again, earlier.embeddings, of.embeddings)


@_stage
def centers(run: RunLayout, of: RoundLayout, config: Config, kept_by: Path | None) -> Receipt:
    found = run.raw, run.embedder, of.embeddings, of.train, config
    decided = read_standing(run.root) if kept_by else None
    return _run(f"round {of.number} centers", centers_stage.find_centers, *found, noise=kept_by, decisions=decided)


@_gpu_stage
def isolate(run: RunLayout, of: RoundLayout, config: Config, kept_by: Path | None) -> Receipt:
    receipt = _run(
        f"round {of.number} isolate", isolate_stage.isolate, run.raw, of.train, of.embeddings, of.noise, config, previous=kept_by
    )
    require_learned(of.noise)
    return receipt


@_gpu_stage
def protect(run: RunLayout, last: RoundLayout, config: Config) -> Receipt:
    return _run("protect", protect_stage.protect, run.raw, last.train, last.embeddings, last.noise, run.protected, config)


@_stage
def manifest(run: RunLayout, last: RoundLayout, config: Config) -> Receipt:
    decided = read_standing(run.root)
    protected = run.protected if config.protect.sets and config.protect.exclude else None
    found = run.raw, last.noise, last.number, run.manifest, config
    return _run("manifest", export_stage.write_manifest, *found, decisions=decided, protected=protected)


@_stage
def export(run: RunLayout, config: Config) -> Receipt:
    return _run("export", export_stage.export_clean, run.raw, run.manifest, run.clean, config)


@_gpu_stage
def evaluate(run: RunLayout, rounds: list[RoundLayout], config: Config) -> Receipt:
    return _run("evaluate", evaluate_stage.evaluate, run.raw, rounds, run.evaluation, config)


@_gpu_stage
def audit(run: RunLayout, config: Config, title: str) -> Receipt:
    return _run("audit", audit_stage.audit, run, run.audit, config, title=title)
