"""Evaluation sets as their owners distribute them: read, counted and checked before anything is embedded.

PROTOCOLS says what is known of each: who reads it, and how many pictures, pairs and templates it must have. A name that is not in it is read by its
looks and not counted, so that any set of the same form can be evaluated. Everything in a set is hostile until it was read: names, numbers, pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadConfig, BadInput
from pipeline.protocols.ijb import TemplateSet, read_ijb
from pipeline.protocols.megaface import DistractorSet, read_megaface
from pipeline.protocols.pairs import PairSet, check_folds, read_pairs
from pipeline.protocols.persons import IdentitySet, read_identities
from pipeline.protocols.videos import read_ytf

__all__ = ["PROTOCOLS", "DistractorSet", "EvaluationSet", "IdentitySet", "Known", "PairSet", "TemplateSet", "known_set", "open_set"]

EvaluationSet = PairSet | TemplateSet | DistractorSet | IdentitySet


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a benchmark."""

    about: str
    read: Callable[[Path, str], EvaluationSet]
    pairs: int | None = None
    genuine: int | None = None
    images: int | None = None
    """Pictures, frames of videos included."""
    units: int | None = None
    """Videos, templates or probes."""
    is_frontal: bool = False
    """Near frontal on the whole, so that the mean face shows whether the alignment is the ArcFace template."""
    is_ordered: bool = False
    """Its list has ten folds of equally many genuine and impostor pairs, as LFW's own file."""


PROTOCOLS: dict[str, Known] = {
    "lfw": Known(about="Labeled Faces in the Wild, view 2", read=read_pairs, pairs=6000, genuine=3000, is_frontal=True, is_ordered=True),
    "cfp_fp": Known(about="Celebrities in Frontal-Profile, frontal to profile", read=read_pairs, pairs=7000, genuine=3500),
    "agedb_30": Known(about="AgeDB, 30 years apart", read=read_pairs, pairs=6000, genuine=3000, is_frontal=True),
    "calfw": Known(about="Cross-Age LFW", read=read_pairs, pairs=6000, genuine=3000, is_frontal=True),
    "cplfw": Known(about="Cross-Pose LFW", read=read_pairs, pairs=6000, genuine=3000),
    "ytf": Known(about="YouTube Faces, unrestricted", read=read_ytf, pairs=5000, genuine=2500),
    "ijbb": Known(about="IJB-B, 1:1 and 1:N", read=read_ijb, images=227_630, units=12_115, pairs=8_010_270, genuine=10_270),
    "ijbc": Known(about="IJB-C, 1:1 and 1:N", read=read_ijb, images=469_375, units=23_124, pairs=15_658_489, genuine=19_557),
    "megaface": Known(about="MegaFace challenge 1, FaceScrub probes", read=read_megaface, units=3530),
    "all-pairs": Known(about="a folder per person, all pairs, as Trillion-Pairs, LFR2019 and MFR-ALL", read=read_identities),
}


def known_set(name: str) -> Known | None:
    """What is known under a name, in capitals or with dashes too; None when nothing is."""
    return PROTOCOLS.get(name.lower()) or PROTOCOLS.get(name.lower().replace("-", "_"))


def open_set(name: str, path: Path) -> EvaluationSet:
    """The evaluation set at `path`, checked against what PROTOCOLS knows of `name`.

    Raises BadInput: when it cannot be read, or has other counts than the benchmark. Raises BadConfig for a name that tells no form.
    """
    known = known_set(name)
    if known is not None:
        found = known.read(path, name)
        _check_counts(found, known, name, path)
        if isinstance(found, PairSet) and known.is_ordered:
            check_folds(found, path)
        return found
    return _reader_by_looks(name, path)(path, name)


def _reader_by_looks(name: str, path: Path) -> Callable[[Path, str], EvaluationSet]:
    if path.is_file():
        return read_pairs
    for pattern, read in (
        ("pairs.txt", read_pairs),
        ("splits.txt", read_ytf),
        ("meta/*_template_pair_label.txt", read_ijb),
        ("megaface_lst", read_megaface),
    ):
        if any(path.glob(pattern)):
            return read
    raise BadConfig(
        f"Nothing tells how to read {name}={path}: it is no .bin file and holds no pairs.txt, splits.txt, meta/*_template_pair_label.txt or megaface_lst. "
        f"Known names are {', '.join(PROTOCOLS)}; data/protocols/README.md says what each wants."
    )


def _check_counts(found: EvaluationSet, known: Known, name: str, path: Path) -> None:
    there = found.counts()
    wrong = [
        f"{there[what]:,} {what}, and {name} has {wanted:,}"
        for what, wanted in (("images", known.images), ("units", known.units), ("pairs", known.pairs), ("genuine", known.genuine))
        if wanted is not None and what in there and there[what] != wanted
    ]
    if wrong:
        raise BadInput(
            f"{path} has {'; '.join(wrong)}. It is incomplete, or another set: take it from its source again. To measure it as it is, give it "
            f"another name, as --protocol my-{name}={path}."
        )
