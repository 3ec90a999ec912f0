"""Learning rates by optimiser step, counted from 0, after a linear warm-up whose last step has the full rate."""

from collections.abc import Callable, Sequence

__all__ = ["SCHEDULES", "poly", "step_decay"]


def _warming(step: int, warmup_steps: int, base_lr: float) -> float | None:
    return base_lr * (step + 1) / warmup_steps if step < warmup_steps else None


def poly(step: int, *, total_steps: int, warmup_steps: int, base_lr: float, power: float = 1.0) -> float:
    """`base_lr * (1 - t) ** power`, where t goes from 0 at the end of the warm-up to 1 at `total_steps`; 0 from there on.

    Source: arcface_torch, whose default this is. Raises ValueError when the warm-up leaves no step.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"The warm-up ({warmup_steps} steps) must be shorter than the training ({total_steps} steps). Lower train.warmup_epochs."
        )
    warming = _warming(step, warmup_steps, base_lr)
    if warming is not None:
        return warming
    done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return float(base_lr * (1.0 - done) ** power)


def step_decay(step: int, *, milestones: Sequence[int], warmup_steps: int, base_lr: float, factor: float = 0.1) -> float:
    """`base_lr * factor ** n`, where n milestones are at or before `step`. Source: paper, section 4.1."""
    warming = _warming(step, warmup_steps, base_lr)
    return warming if warming is not None else float(base_lr * factor ** sum(step >= milestone for milestone in milestones))


SCHEDULES: dict[str, Callable[..., float]] = {"poly": poly, "step": step_decay}
