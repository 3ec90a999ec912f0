"""Whether a round's model has learned to tell identities apart, as its judge found out; without torch, for who only asks."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import HeadNotLearned


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
