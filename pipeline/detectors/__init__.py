"""Finders of faces, one file each; `pipeline/faces.py` has the dict."""

from pipeline.detectors.base import Face, Find

__all__ = ["Face", "Find"]
