"""Flags that several commands have, which are settings by another name: what reads a crawl, and what finds the faces in it."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from flows.outputs import require_named
from pipeline.config import SourceName

SETTINGS = Group("Settings", help="Later wins: defaults, --preset, --config, then --set and the options below.", validator=require_named)
Source = Annotated[SourceName | None, Parameter(group=SETTINGS, help="What reads the crawl, where the look of it misleads.")]
Detector = Annotated[
    Literal["none", "landmarks", "yunet", "scrfd"] | None,
    Parameter(group=SETTINGS, help="What finds the faces in photos: none (pictures are crops already), landmarks, yunet, scrfd."),
]
DetectorModel = Annotated[
    Path | None,
    Parameter(group=SETTINGS, help="The ONNX file of yunet or scrfd; docs/faces.md says where to get one. Nothing is downloaded."),
]
Landmarks = Annotated[
    Path | None, Parameter(group=SETTINGS, help="For --detector landmarks: a JSON file of five points per picture, by source_uri.")
]
Faces = Annotated[
    Literal["main", "all"] | None,
    Parameter(group=SETTINGS, help="Of several faces in a photo: the largest and most central, or each as a sample of its own."),
]


def ingest_overrides(**chosen: Any) -> list[str]:
    """The flags that were given, as settings of `ingest` of the same name."""
    return [
        f"ingest.{name}={json.dumps(str(value) if isinstance(value, Path) else value)}"
        for name, value in chosen.items()
        if value is not None
    ]
