"""Which identities take part in a step, drawn identity by identity: the draw does not depend on how the identities are spread over processes.

Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC", CVPR 2022. There every
process draws a fixed number of its own; here an identity takes part if its number, mixed with seed and draw, falls below the rate.
"""

import torch
from torch import Tensor

__all__ = ["drawn"]

_BITS = 53
_WORD = 2**64


def drawn(first: int, stop: int, *, rate: float, seed: int, draw: int, device: torch.device | None = None) -> Tensor:
    """True for about `rate` of the identities `first` to `stop` - 1, bool, [stop - first]; independent of each other, and from draw to draw."""
    key = _mix_int(_mix_int(seed) + draw)
    numbers = torch.arange(first, stop, device=device, dtype=torch.int64)
    uniform: Tensor = (_mix(numbers + _signed(key)) >> (64 - _BITS)) & (2**_BITS - 1)
    return uniform < int(rate * 2**_BITS)


# SplitMix64 (Steele, Lea, Flood 2014), on tensors of int64, whose products wrap as those of unsigned words do, and on Python's numbers.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(words: Tensor) -> Tensor:
    words = (words + 1) * _signed(_STEP)
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _signed(_FIRST)
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _signed(_SECOND)
    return words ^ ((words >> 31) & (2**33 - 1))


def _mix_int(word: int) -> int:
    word = (word + 1) * _STEP % _WORD
    word = (word ^ (word >> 30)) * _FIRST % _WORD
    word = (word ^ (word >> 27)) * _SECOND % _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD // 2 else word
