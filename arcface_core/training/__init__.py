"""The training loop and its parts: a generator of step metrics, resumable to the same losses, over as many processes as there are."""

from arcface_core.training.augmentation import AUGMENTATIONS, to_input
from arcface_core.training.loop import LoopOptions, StepMetrics, training_steps
from arcface_core.training.state import OPTIMIZERS, Diverged, TrainState, check_finite, load_state_tensors, new_state, state_tensors

__all__ = [
    "AUGMENTATIONS",
    "OPTIMIZERS",
    "Diverged",
    "LoopOptions",
    "StepMetrics",
    "TrainState",
    "check_finite",
    "load_state_tensors",
    "new_state",
    "state_tensors",
    "to_input",
    "training_steps",
]
