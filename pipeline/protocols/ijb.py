"""IJB-B and IJB-C as insightface distributes them: loose crops, and lists of landmarks, templates, media, pairs, galleries and probes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from pipeline.errors import BadInput
from pipeline.protocols.faces import Faces, in_folder

VERSION = "templates/1"
_GALLERIES = (("G1", "gallery_G1"), ("G2", "gallery_G2"), ("G1", "gallery_S1"), ("G2", "gallery_S2"))
_FEW = 3


@dataclass(frozen=True)
class Enrolment:
    """Templates and whose they are: a gallery, or probes."""

    template_T: NDArray[np.int64]
    subject_T: NDArray[np.int64]


@dataclass(frozen=True)
class TemplateSet:
    """Images of templates, pairs of templates, and what 1:N needs when it is there."""

    faces: Faces
    detector_N: NDArray[np.float32]
    template_N: NDArray[np.int64]
    media_N: NDArray[np.int64]
    left_M: NDArray[np.int64]
    right_M: NDArray[np.int64]
    genuine_M: NDArray[np.bool_]
    galleries: dict[str, Enrolment] = field(default_factory=dict)
    probes: Enrolment | None = None
    protocol: str = VERSION

    def counts(self) -> dict[str, int]:
        """What can be compared with the numbers of a benchmark."""
        return {
            "images": len(self.faces),
            "units": len(np.unique(self.template_N)),
            "pairs": len(self.genuine_M),
            "genuine": int(self.genuine_M.sum()),
        }


def read_ijb(path: Path, name: str) -> TemplateSet:
    """The set in a folder with `loose_crop/` and `meta/`: `*_name_5pts_score.txt`, `*_face_tid_mid.txt`, `*_template_pair_label.txt`, and for 1:N
    `*_1N_gallery_G1.csv`, `_G2` (`_S1`, `_S2` in IJB-B) and `*_1N_probe_mixed.csv`.

    Raises BadInput: a list that is missing, damaged, or not of the same images in the same order; an image that is missing; a template without images.
    """
    images = read_columns(_one(path, name, "name_5pts_score"), [pa.string(), *[pa.float32()] * 11])
    media = read_columns(_one(path, name, "face_tid_mid"), [pa.string(), pa.int64(), pa.int64()])
    left, right, label = read_arrays(_one(path, name, "template_pair_label"), [pa.int32(), pa.int32(), pa.int8()])
    if not images.column(0).equals(media.column(0)):
        raise BadInput(
            f"{path / 'meta'}: the list of landmarks ({images.num_rows} lines) and that of templates ({media.num_rows}) are not of the same images in the same "
            "order. One of them was sorted or cut: take both from their source again."
        )
    *points, detector = _arrays(images.select(range(1, 12)))
    landmarks = np.stack(points, 1).reshape(-1, 5, 2)
    if not np.isfinite(landmarks).all() or not ((detector >= 0) & (detector <= 1)).all():
        raise BadInput(
            f"{path / 'meta'}: landmarks must be finite and detector scores in 0..1, in the list of landmarks. Take it from its source again."
        )
    if not np.isin(label, (0, 1)).all() or label.min(initial=1) == 1 or label.max(initial=0) == 0:
        raise BadInput(
            f"{path / 'meta'}: the third column of the pair list must be 0 and 1, some of each. Take the list from its source again."
        )
    template, medium = _arrays(media.select((1, 2)))
    _require_templates("the pair list", np.union1d(np.unique(left), np.unique(right)), template, path)
    galleries = {
        one: _enrolment(file, template, path) for one, part in _GALLERIES for file in sorted((path / "meta").glob(f"*_1N_{part}.csv"))[:1]
    }
    probes = [_enrolment(file, template, path) for file in sorted((path / "meta").glob("*_1N_probe_mixed.csv"))[:1]]
    faces = in_folder(path / "loose_crop", images.column(0).to_pylist(), landmarks)
    return TemplateSet(
        faces=faces,
        detector_N=detector,
        template_N=template,
        media_N=medium,
        left_M=left,
        right_M=right,
        genuine_M=label == 1,
        galleries=galleries if probes else {},
        probes=probes[0] if galleries and probes else None,
    )


def _one(path: Path, name: str, part: str) -> Path:
    found = sorted((path / "meta").glob(f"*_{part}.txt"))
    if len(found) != 1:
        raise BadInput(
            f"{path / 'meta'} has {len(found)} files *_{part}.txt, and {name} wants one. data/protocols/README.md lists what belongs there."
        )
    return found[0]


def read_columns(path: Path, types: list[Any], *, delimiter: str = " ", skip: int = 0) -> pa.Table:
    """A list without a header as a table of the types given. Raises BadInput for a line that is otherwise."""
    names = [str(number) for number in range(len(types))]
    try:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=skip),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types=dict(zip(names, types, strict=True)), null_values=[]),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is damaged: {' '.join(str(error).split())[:200]}. Take it from its source again.") from error


def read_arrays(path: Path, types: list[Any]) -> list[NDArray[Any]]:
    """The columns of a list of numbers. 15 million pairs are 141 MB so, and Arrow gives back at once what it read them into, which is as much again."""
    found = _arrays(read_columns(path, types))
    pa.default_memory_pool().release_unused()
    return found


def _arrays(table: pa.Table) -> list[NDArray[Any]]:
    """The columns of a table of numbers, one after another, each an array of its own that can be written to."""
    found = (column.to_numpy() for column in table.itercolumns())
    return [array if array.flags.owndata and array.flags.writeable else array.copy() for array in found]


def _enrolment(path: Path, template_N: NDArray[np.int64], root: Path) -> Enrolment:
    table = read_columns(path, [pa.int64(), pa.int64()], delimiter=",", skip=1) if _columns(path) == 2 else _wide(path)
    every, subject = _arrays(table)
    template, first = np.unique(every, return_index=True)
    _require_templates(path.name, template, template_N, root)
    return Enrolment(template, subject[first])


def _columns(path: Path) -> int:
    with path.open("rb") as file:
        file.readline(1 << 16)
        return file.readline(1 << 16).count(b",") + 1


def _wide(path: Path) -> pa.Table:
    """Templates and subjects of NIST's own files, which have more columns, a row for each image."""
    try:
        table = pa.csv.read_csv(path)
        return pa.table({"0": table.column(0).cast(pa.int64()), "1": table.column(1).cast(pa.int64())})
    except (pa.ArrowInvalid, OSError, IndexError) as error:
        raise BadInput(
            f"{path} is damaged: {' '.join(str(error).split())[:200]}. Its first columns are TEMPLATE_ID, SUBJECT_ID."
        ) from error


def _require_templates(what: str, wanted: NDArray[Any], template_N: NDArray[np.int64], root: Path) -> None:
    lacking = np.setdiff1d(wanted, template_N)
    if len(lacking):
        raise BadInput(
            f"{root}: {what} names {len(lacking)} templates that have no image ({', '.join(map(str, lacking[:_FEW]))}). The lists are of different sets, "
            "or one was cut: take them from their source again."
        )
