"""Purify a crawl: ingest, rounds of train + embed + isolate (or, by a model that is given, of embed + centers + isolate), manifest, export, evaluate, audit.

Run by path (`python flows/purify.py CRAWL RUN`), by `purify run`, or as the Prefect entrypoint `flows/purify.py:purify`.
"""

import sys
import time
from pathlib import Path
from typing import Any

from prefect import Flow, flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed

from flows import tasks  # first: it sets Prefect's environment
from flows.progress import say, told_in, tolerated
from flows.workers import RunnerName, fanned
from pipeline.config import Config, validate
from pipeline.errors import HeadNotLearned, PurifyError
from pipeline.inputs import check_inputs
from pipeline.layout import RoundLayout, RunLayout
from pipeline.mirroring.pull import begin as begin_mirror
from pipeline.mirroring.push import kept
from pipeline.places import Location, name_of
from pipeline.receipts import Receipt
from pipeline.receipts import read as read_receipt
from pipeline.retrain import changed
from pipeline.run_folder import claimed, read_finished, remove_what_is_not_of, title_of, write_record, write_record_again


def told_at_end(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """How a run ended that Prefect started: its log would not say. A command says it itself."""
    if flow_run.deployment_id is not None:
        say("end", f"{state.name}: {state.message}" if state.message else str(state.name), state=state.name, message=state.message)


@flow(name="purify", persist_result=False, on_completion=[told_at_end], on_failure=[told_at_end], on_crashed=[told_at_end])
def purify(
    crawl: str | Path,
    run: Path,
    config: Config = Config(),
    task_runner: RunnerName = "processes",
    address: str | None = None,
    mirror: str | None = None,
) -> dict[str, Any] | State[dict[str, Any]]:
    """The record of the run, as it stands in RUN/run.json. A run that was killed goes on where it stopped.

    Beyond a limit of `config.limits` the flow run is completed in the state `Warned`, which an automation can wait for (docs/operations.md).

    Args:
        crawl: a path or a URL, in one of the forms of docs/crawls.md.
        run: the run folder; not there, empty, or of the same crawl.
        config: settings; what is left out has its default.
        task_runner: who does the parts of ingest, embed, isolate, export, audit: processes or threads of this machine, a Dask or Ray cluster. Changes no result.
        address: of a Dask or Ray cluster that exists, as tcp://scheduler:8786 or ray://head:10001; without, one is started on this machine.
        mirror: URL of a store where a copy of the run folder is kept, as s3://bucket/prefix; a machine without the run folder goes on from there.
    """
    layout = RunLayout(run)
    started = time.perf_counter()
    if mirror is not None:
        begin_mirror(run, mirror)
    check_inputs(crawl, layout, config)
    workers = fanned(task_runner, address, config.workers)
    with claimed(crawl, layout), kept(run, mirror, say), told_in(run), workers:
        receipts = _stages(crawl, layout, config)
        record = write_record(crawl, layout, config, receipts, time.perf_counter() - started)
    with tolerated("of the outcome"):
        create_table_artifact(key="purify-summary", table=summary(record), description=f"Verdicts on {name_of(crawl)}")
        create_markdown_artifact(key="purify-outcome", markdown=_outcome(record, layout), description="What to look at")
        create_link_artifact(key="purify-audit", link=layout.audit_page.resolve().as_uri(), link_text="Audit page")
    return _marked(record)


def _marked(record: dict[str, Any]) -> dict[str, Any] | State[dict[str, Any]]:
    if record["warnings"]:
        return Completed(name="Warned", message="; ".join(record["warnings"]), data=record)
    return record


def _outcome(record: dict[str, Any], run: RunLayout) -> str:
    warnings = "".join(f"- **{warning}**\n" for warning in record["warnings"]) or "Within all limits.\n"
    rows = "".join(
        f"| {stage['stage']} | {'earlier' if stage['reused'] else stage['seconds']} | {stage['per_second'] or ''} |\n"
        for stage in record["stages"]
    )
    return f"{warnings}\nRun `{record['run_id']}` in `{run.root}`.\n\n| stage | seconds | per second |\n|---|---|---|\n{rows}"


@flow(name="export", persist_result=False)
def export(run: Path) -> dict[str, Any] | State[dict[str, Any]]:
    """The record of the run after a new manifest, clean shards and audit page from the rounds, decisions and settings that stand. Nothing is trained.

    Beyond a limit of the run's settings the flow run is completed in the state `Warned`, as `purify`.

    Args:
        run: the folder of a finished run.
    """
    layout = RunLayout(run)
    started = time.perf_counter()
    record = read_finished(layout)
    config = validate(record["config"])
    last = layout.round(config.rounds)
    with claimed(record["crawl"], layout), kept(run, None, say), told_in(run, "purify export"):
        found = [
            ("manifest", tasks.manifest(layout, last, config)),
            ("export", tasks.export(layout, config)),
            ("audit", tasks.audit(layout, config, title_of(layout))),
        ]
        record = write_record_again(record, layout, config, found, time.perf_counter() - started)
    return _marked(record)


def _stages(crawl: Location, run: RunLayout, config: Config) -> list[tuple[str, Receipt]]:
    is_given = config.embedder.model is not None
    done = [("embedder", tasks.adopt(run, config))] if is_given else []
    done.append(("ingest", tasks.ingest(crawl, run, config)))
    try:
        done += _by_need(run, config) if config.mode == "auto" and not is_given else _rounds(run, config, keep=config.mode == "judge")
    except HeadNotLearned as error:
        if run.manifest.exists():
            raise  # what is published stays
        tasks.manifest(run, _last_judged(run, config), config)
        raise HeadNotLearned(f"{error} Every item of the crawl has its row: purify report {run.root} summary") from error
    rounds = [run.round(number) for number in range(1, config.rounds + 1)]
    remove_what_is_not_of(run, config)
    if config.protect.sets:
        done.append(("protect", tasks.protect(run, rounds[-1], config)))
    done.append(("manifest", tasks.manifest(run, rounds[-1], config)))
    done.append(("export", tasks.export(run, config)))
    done.append(("evaluate", tasks.evaluate(run, rounds[-1:] if is_given else rounds, config)))
    done.append(("audit", tasks.audit(run, config, title_of(run))))
    _assert_accounted(dict(done))
    return done


def _last_judged(run: RunLayout, config: Config) -> RoundLayout:
    return [one for one in map(run.round, range(1, config.rounds + 1)) if read_receipt(one.noise)][-1]


def _rounds(run: RunLayout, config: Config, *, keep: bool) -> list[tuple[str, Receipt]]:
    """`keep`: a training that stands is used as it is. By a model that is given nothing is trained, and there is nothing to keep."""
    done: list[tuple[str, Receipt]] = []
    kept_by: Path | None = None
    for number in range(1, config.rounds + 1):
        this = run.round(number)
        done += _by_training(run, this, config, kept_by, keep) if config.embedder.model is None else _by_given(run, this, config, kept_by)
        done.append((f"round {number} isolate", tasks.isolate(run, this, config, kept_by)))
        kept_by = this.noise
    return done


def _by_need(run: RunLayout, config: Config) -> list[tuple[str, Receipt]]:
    """Mode `auto`: judged by the trainings that stand; and by new ones when that shows a need, or cannot be done."""
    judged: list[tuple[str, Receipt]] = []
    problem = "; ".join(changed(run, config))
    if not problem:
        try:
            judged = _rounds(run, config, keep=True)
        except HeadNotLearned as error:
            problem = str(error)
    decided = tasks.retrain(run, config, problem or None)
    if not decided.counts["trained_anew"]:
        return [*judged, ("retrain", decided)]
    earlier = [(f"judge: {name}", receipt) for name, receipt in judged]
    return [*earlier, ("retrain", decided), *_rounds(run, config, keep=False)]


def _by_training(run: RunLayout, this: RoundLayout, config: Config, kept_by: Path | None, keep: bool) -> list[tuple[str, Receipt]]:
    return [
        (f"round {this.number} train", tasks.train(run, this, config, kept_by, keep)),
        (f"round {this.number} embed", tasks.embed(run, this, config)),
    ]


def _by_given(run: RunLayout, this: RoundLayout, config: Config, kept_by: Path | None) -> list[tuple[str, Receipt]]:
    """The model is the same in every round, and so are the embeddings; the centers follow what was kept."""
    first = run.round(1)
    embedded = tasks.embed_by_given(run, this, config) if this == first else tasks.embed_again(first, this)
    return [(f"round {this.number} embed", embedded), (f"round {this.number} centers", tasks.centers(run, this, config, kept_by))]


def _assert_accounted(receipts: dict[str, Receipt]) -> None:
    """Every crawl item has one row in the manifest, and every exported row one sample in `clean/`."""
    items, rows = receipts["ingest"].counts["items"], receipts["manifest"].counts["items"]
    exported, samples = receipts["manifest"].counts["exported"], receipts["export"].counts["samples"]
    if items != rows or exported != samples:
        raise PurifyError(
            f"Accounting: {items} items in, {rows} rows; {exported} rows exported, {samples} samples. This is our defect: report it."
        )


def summary(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows (what, how many) for people: items, verdicts, clean samples, estimated noise, evaluation."""
    counts = {stage["stage"]: stage["counts"] for stage in record["stages"]}
    last = [counts[name] for name in counts if name.endswith("isolate")][-1]
    verdicts = {f"verdict {name}": counts["manifest"][name] for name in ("keep", "drop", "relabel", "review")}
    items, gone = counts["ingest"]["items"], counts["ingest"].get("gone")
    told = f"{items}, of which {gone} {'is' if gone == 1 else 'are'} no longer in the crawl" if gone else items
    rows = {"items" if gone else "items in the crawl": told, "usable samples": counts["ingest"].get("ok", 0)} | verdicts
    rows |= {"clean samples": counts["export"]["samples"], "clean identities": counts["export"]["identities"]}
    if found := counts.get("protect"):
        rows |= {"identities also in a protected set": found["identities"], "images also in a protected set": found["images"]}
        if not record["config"]["protect"]["exclude"]:
            rows |= {"left out as protected": "nothing, without --exclude-protected"}
        elif "protected" in counts["manifest"]:  # not so in runs of before this was counted
            rows |= {"left out as protected": counts["manifest"]["protected"]}
    if "gone" in counts["manifest"]:
        rows |= {"left out as no longer in the crawl": counts["manifest"]["gone"]}
    rows |= {"estimated noise rate": last["noise_rate"]} | {_in_words(name): value for name, value in counts["evaluate"].items()}
    return [{"what": name, "value": value} for name, value in rows.items()]


def _in_words(measure: str) -> str:
    """A measure of the evaluation, with what its labels are where they are the crawl's own."""
    if "held-out-kept" in measure:
        return f"{measure} (of what was kept)"
    return f"{measure} (as crawled, with its noise)" if "held-out" in measure else measure


if __name__ == "__main__":
    from flows.cli import main

    main(["run", *sys.argv[1:]])
