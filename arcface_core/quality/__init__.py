"""Margins that go by the norm of a sample's feature too, which is high where the picture shows its face well. A new one is a file here and a line below."""

from collections.abc import Callable

from arcface_core.quality.adaface import AdaFace
from arcface_core.quality.base import QualityMargin
from arcface_core.quality.magface import MagFace

__all__ = ["QUALITY_MARGINS", "AdaFace", "MagFace", "QualityMargin"]

QUALITY_MARGINS: dict[str, Callable[..., QualityMargin]] = {"adaface": AdaFace.in_proportion, "magface": MagFace.in_proportion}
"""By name, of (margin_rad, scale, embedding_dim): the margin that is as strong as ArcFace's of `margin_rad`, as published for 0.5."""
