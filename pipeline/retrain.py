"""Whether a crawl has outgrown its training: by volume, by new identities, or by angles that have moved (mode `auto`)."""

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import shards
from pipeline.config import Config, RetrainConfig
from pipeline.duck import every
from pipeline.history import drift
from pipeline.layout import RunLayout
from pipeline.receipts import Progress, Receipt
from pipeline.train import held_out
from pipeline.trained import changed_settings, made_of, unseen


@dataclass(frozen=True, kw_only=True)
class Grown:
    """How far a crawl is from what its training saw."""

    samples: int
    new_samples: int
    """Of these, in shards that the first round's training has not seen."""
    samples_without_center: int
    """Of all, those of identities that a training would take, and the first round's did not have."""
    drift: float | None
    """Kolmogorov-Smirnov distance of `angle_deg` of new samples from that of the others, by one model, of identities that are held out of training:
    what a model has trained on lies nearer to its centers than what it has not, drift or none. None where either has too few."""

    @property
    def new_share(self) -> float:
        return self.new_samples / max(1, self.samples)

    @property
    def without_center(self) -> float:
        return self.samples_without_center / max(1, self.samples)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether to train anew, and why, or why not, in words."""

    train_anew: bool
    why: str


def decide(grown: Grown, limits: RetrainConfig) -> Decision:
    """Train anew when anything is beyond its limit; exactly at a limit is within it."""
    measured = [
        ("new samples", grown.new_share, "retrain.new_share", limits.new_share),
        ("samples of identities without a center", grown.without_center, "retrain.new_identities", limits.new_identities),
        ("drift of the angles", grown.drift, "retrain.drift", limits.drift),
    ]
    beyond = [f"{what} {value:.3f} above {name} {limit:g}" for what, value, name, limit in measured if value is not None and value > limit]
    if beyond:
        return Decision(train_anew=True, why=f"trained anew: {'; '.join(beyond)}")
    within = [
        f"{what} {'not counted, too few' if value is None else f'{value:.3f}'} ({name} {limit:g})" for what, value, name, limit in measured
    ]
    return Decision(train_anew=False, why=f"training kept: {'; '.join(within)}")


def measure(run: RunLayout, config: Config, progress: Progress | None = None) -> Grown:
    """How far the run's raw/ is from what its first round's training saw, by the verdicts of the last round, which stand."""
    first, last = run.round(1), run.round(config.rounds)
    told = made_of(first.train)
    new = unseen({} if told is None else told["shards"], run.raw)
    angles = {True: np.zeros(180, np.int64), False: np.zeros(180, np.int64)}
    samples = {True: 0, False: 0}
    held = held_out(run.raw, config)
    stems = shards.shard_stems(last.noise)
    for number, stem in enumerate(stems):
        table = pq.read_table(last.noise / f"{stem}.parquet", columns=["identity", "angle_deg"])
        samples[stem in new] += table.num_rows
        angle_N = table.filter(pc.is_in(table["identity"], held["identity"]))["angle_deg"].to_numpy()
        angles[stem in new] += np.histogram(angle_N[~np.isnan(angle_N)], bins=180, range=(0, 180))[0]
        if progress:
            progress(number + 1, len(stems))
    with duckdb.connect() as db:
        db.register("held_out", held)
        without = db.execute(
            """SELECT coalesce(sum(samples), 0)::BIGINT FROM (SELECT identity, count(*) AS samples FROM read_parquet($raw) WHERE status = 'ok' GROUP BY ALL)
               WHERE samples >= $least AND identity NOT IN (FROM held_out) AND identity NOT IN (SELECT identity FROM read_parquet($classes))""",
            {
                "raw": every(run.raw, "raw-*.parquet"),
                "least": config.train.min_samples,
                "classes": every(first.train, "classes.parquet"),
            },
        ).fetchall()[0][0]
    return Grown(
        samples=sum(samples.values()),
        new_samples=samples[True],
        samples_without_center=without,
        drift=drift(angles[False].tolist(), angles[True].tolist()),
    )


def judge_training(run: RunLayout, config: Config, problem: str | None, *, progress: Progress | None = None) -> Receipt:
    """The decision as a receipt of a stage that writes nothing: counts `trained_anew`, `why`, and what was measured. `problem`, when something
    is known already that wants a new training."""
    if problem:
        return Receipt("retrain", "", {"trained_anew": True, "why": f"trained anew: {problem}"}, 0.0)
    grown = measure(run, config, progress)
    decision = decide(grown, config.retrain)
    return Receipt(
        "retrain",
        "",
        {
            "trained_anew": decision.train_anew,
            "why": decision.why,
            "new_share": round(grown.new_share, 4),
            "without_center": round(grown.without_center, 4),
            "drift": grown.drift,
        },
        0.0,
    )


def changed(run: RunLayout, config: Config) -> list[str]:
    """Settings that a finished training of the run was made with and `config` has otherwise, in words."""
    return sorted({text for number in range(1, config.rounds + 1) for text in changed_settings(run.round(number).train, config)})
