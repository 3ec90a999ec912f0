"""What `purify run` would do, and why, without doing it: every stage is asked for its mark, which it would have after those before it.

The stages decide by their own code (`receipts.planning`); only their order stands here, as in the recipe `flows/purify.py`, which a test compares.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.adopt import adopt
from pipeline.audit import audit
from pipeline.centers import find_centers
from pipeline.config import Config, as_dict
from pipeline.decisions import read_standing
from pipeline.embed import embed, embed_again
from pipeline.errors import HeadNotLearned
from pipeline.evaluate import evaluate
from pipeline.export import export_clean, write_manifest
from pipeline.ingest import plan_ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.learned import require_learned
from pipeline.places import Location
from pipeline.protect import protect
from pipeline.receipts import Plan, Step, planning
from pipeline.retrain import changed, judge_training
from pipeline.run_folder import not_of, read_record, title_of
from pipeline.train import train


@dataclass(frozen=True)
class Planned:
    """What a run would do."""

    steps: list[tuple[str, bool, str]]
    """(output, whether it would be made, why or why not), in order."""
    removed: list[str]
    """Folders that these settings do not have."""
    training: str | None
    """With mode `judge` or `auto`, what becomes of the training, as far as it is known before anything is judged."""
    changed_settings: list[str]
    """In words, against those of the last finished run; empty where none has finished."""


def plan(crawl: Location, run: RunLayout, config: Config) -> Planned:
    """What `purify run` would do now. Nothing is written into the run; the crawl is listed, as the run does first.

    Raises what the run would raise before it does any work, and HeadNotLearned where it would stop at verdicts that stand.
    """
    given = config.embedder.model is not None
    with planning() as found:
        if given:
            adopt(run.embedder, config)
        listed = plan_ingest(crawl, run.raw, config)
        training = None
        if config.mode == "auto" and not given:
            training = _by_need(run, config, found)
        else:
            _rounds(run, config, found, keep=config.mode == "judge")
            if config.mode == "judge" and not given:
                training = "a training that stands is used as it is; what has none is trained (--mode judge)"
        rounds = [run.round(number) for number in range(1, config.rounds + 1)]
        last = rounds[-1]
        if config.protect.sets:
            protect(run.raw, last.train, last.embeddings, last.noise, run.protected, config)
        protected = run.protected if config.protect.sets and config.protect.exclude else None
        decided = read_standing(run.root)
        write_manifest(run.raw, last.noise, last.number, run.manifest, config, decisions=decided, protected=protected)
        export_clean(run.raw, run.manifest, run.clean, config)
        evaluate(run.raw, [last] if given else rounds, run.evaluation, config)
        audit(run, run.audit, config, title=title_of(run))
    steps = [(str(out.relative_to(run.root)), step.state != "stands", _why(step, run)) for out, step in found.steps.items()]
    place = [name for name, _, _ in steps].index("raw")
    told = f"to do: {listed}" if found.steps[run.raw].state == "changed" else f"{steps[place][2]}: {listed}"
    steps[place] = ("raw", steps[place][1], told)
    removed = [str(folder.relative_to(run.root)) for folder in not_of(run, config)]
    return Planned(steps, removed, training, list(_changed_settings(run, config)))


def _why(step: Step, run: RunLayout) -> str:
    if step.state == "stands":
        return "stays as it is"
    if step.state == "begun":
        return "to do: was begun, and is gone on with"
    if step.state == "missing":
        return "to do: not there yet"
    if step.redone:
        return f"to do: made of {', '.join(str(path.relative_to(run.root)) for path in step.redone)}, which is to do"
    return "to do: what it is made of, its settings or the program have changed"


def _rounds(run: RunLayout, config: Config, found: Plan, *, keep: bool) -> None:
    kept_by: Path | None = None
    for number in range(1, config.rounds + 1):
        this, first = run.round(number), run.round(1)
        decided = read_standing(run.root) if kept_by else None
        if config.embedder.model is None:
            before = run.round(number - 1).train if kept_by else None
            trained = train(run.raw, this.train, config, noise=kept_by, decisions=decided, before=before, keep=keep)
            if trained.counts.get("kept_training"):
                found.steps[this.train] = Step(trained.fingerprint, "stands", ())
            embed(run.raw, this.train, this.embeddings, config)
        else:
            if this == first:
                embed(run.raw, run.embedder, this.embeddings, config)
            else:
                embed_again(first.embeddings, this.embeddings)
            find_centers(run.raw, run.embedder, this.embeddings, this.train, config, noise=kept_by, decisions=decided)
        if isolate(run.raw, this.train, this.embeddings, this.noise, config, previous=kept_by).reused:
            require_learned(this.noise)
        kept_by = this.noise


def _by_need(run: RunLayout, config: Config, found: Plan) -> str:
    problem = "; ".join(changed(run, config))
    if not problem:
        try:
            _rounds(run, config, found, keep=True)
        except HeadNotLearned as error:
            problem = str(error)
        else:
            if any(step.state != "stands" for step in found.steps.values()):
                return "whether it still serves is known only when all is judged; if not, all rounds are trained anew (--mode auto)"
    decided = judge_training(run, config, problem or None).counts
    if decided["trained_anew"]:
        _rounds(run, config, found, keep=False)
    return str(decided["why"])


def _changed_settings(run: RunLayout, config: Config) -> Iterator[str]:
    record = read_record(run) if run.run_json.is_file() else {}
    if record.get("finished"):
        then = dict(_flat(record["config"]))
        yield from (f"{name} was {then.get(name)!r} and is {value!r}" for name, value in _flat(as_dict(config)) if then.get(name) != value)


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value
