"""Whether a round's model has learned to tell identities apart, as its judge found out; without torch, for who only asks."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import HeadNotLearned

LEAST_CLASSES = 2
"""Identities that a head needs to tell them apart."""


def not_learned(noise: Path) -> str | None:
    """What was seen of a model that tells no identities apart, and what to do; None when it does, or judged all the same, or nobody has looked."""
    facts = _facts(noise)
    if not facts["warning"] or facts["judged_anyway"]:
        return None
    return (
        f"{facts['warning']} Nothing was judged: the raw angles stand in {noise}, every verdict is `review`. "
        "To judge all the same: --set isolate.judge_anyway=true."
    )


def judged_anyway(noise: Path) -> str | None:
    """What was seen of a model that tells no identities apart, where the settings had it judge all the same; else None."""
    facts = _facts(noise)
    return (
        f"{facts['warning']} It was judged by all the same, as isolate.judge_anyway says."
        if facts["judged_anyway"] and facts["warning"]
        else None
    )


def advice_on_too_few(noise: Path | None) -> str:
    """What to do where fewer than two identities are left to train on. `noise`: of the round before, by which they were chosen; None in round 1."""
    warning = _facts(noise)["warning"] if noise else None
    if warning:
        return f"The round before judged by a model that told nobody apart, as isolate.judge_anyway says. {warning}"
    return "Give a larger crawl, or lower evaluate.holdout or train.min_samples."


def require_learned(noise: Path) -> None:
    """Raise HeadNotLearned, with what was seen and what to do, when the model of this round told no identities apart."""
    if told := not_learned(noise):
        raise HeadNotLearned(told)


def _facts(noise: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((noise / "judge.json").read_text("utf-8"))
        return facts
    except FileNotFoundError:
        return {"warning": None, "judged_anyway": False}
