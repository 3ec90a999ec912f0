"""Templates of many images, as IJB-B and IJB-C, YouTube Faces and any set of videos compare them.

An IJB template is a set of images and video frames of one person. Frames of one video (a medium) are averaged, media are summed, the sum is normalised,
and templates are compared by cosine. Before that an image may count by the norm of its feature (N) and by its detector's score (D), and its feature is that of
the picture plus that of its mirror image, or of the picture alone (F). The modes are named as in insightface's `eval_ijbc.py`: N1 keeps the norm, N0 takes it
out. (`ijb_evals.py` of the same repository calls these N0 and N1.)
Source: Xie and Zisserman, "Multicolumn Networks for Face Recognition", 2018; insightface `eval_ijbc.py`. The ArcFace paper's text says only "feature centre".
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import normalize

__all__ = ["Templates", "group_means", "image_weights", "mode_name", "pair_cosines", "pooled_templates"]

_ROWS = 2048  # summed at a time: what fits into a cache
_PAIRS = 1 << 22  # pairs looked at at a time
_SCORES = 1 << 23  # cosines held at a time
_TABLE = 1 << 24  # ids within such a range are looked up in a table
_SPARSE = 24  # from this many cosines per pair on, rows are compared one by one


class Templates(NamedTuple):
    """`vectors_TD`, unit rows, float32, of the templates `ids_T`, int64, rising. A template without any feature is a zero row."""

    ids_T: Tensor
    vectors_TD: Tensor


def mode_name(*, keep_norm: bool, detector_scores: bool, mirrored: bool) -> str:
    """`N1D1F2` and the like, in the words of `eval_ijbc.py`: F2 adds the mirror image, F0 leaves it out."""
    return f"N{int(keep_norm)}D{int(detector_scores)}F{2 if mirrored else 0}"


def image_weights(feature_ND: Tensor, *, keep_norm: bool = True, detector_N: Tensor | None = None) -> Tensor:
    """How much each image's feature counts in its template, float64 [N]: 1, or with `keep_norm` False one over its norm, times its detector's score.

    A zero feature counts nothing. Raises ValueError: shapes that disagree, or scores that are negative or not finite.
    """
    if feature_ND.ndim != 2 or (detector_N is not None and detector_N.shape != feature_ND.shape[:1]):
        got = None if detector_N is None else tuple(detector_N.shape)
        raise ValueError(f"features must be [N, D] and scores [N], got {tuple(feature_ND.shape)} and {got}")
    if detector_N is not None and not bool((detector_N.isfinite() & (detector_N >= 0)).all()):
        raise ValueError("a detector's score is finite and not negative: check the last column of the image list")
    weight_N = torch.ones(len(feature_ND), dtype=torch.float64) if detector_N is None else detector_N.cpu().double()
    if not keep_norm:
        norm_N = torch.cat([part.double().norm(dim=1).cpu() for part in torch.split(feature_ND, _ROWS)])
        weight_N = torch.where(norm_N > 0, weight_N / norm_N, 0.0)
    return weight_N


def pooled_templates(feature_ND: Tensor, template_N: Tensor, media_N: Tensor, weight_N: Tensor | None = None) -> Templates:
    """Templates of images: the mean over the frames of each medium of a template, summed over media, normalised.

    `sum_i w_i f_i / n(template_i, media_i)`, so one weighted sum in float64, and neither templates nor media are visited one by one. The same medium in
    two templates is two media. `weight_N`: of `image_weights`; 1 without. Raises ValueError: shapes that disagree, no image, or a feature that is not finite.
    """
    if feature_ND.ndim != 2 or not template_N.shape == media_N.shape == feature_ND.shape[:1] or len(feature_ND) == 0:
        got = f"{tuple(feature_ND.shape)}, {tuple(template_N.shape)} and {tuple(media_N.shape)}"
        raise ValueError(f"features must be [N, D], templates and media [N], N at least 1; got {got}")
    ids_T, place_N = np.unique(template_N.cpu().numpy(), return_inverse=True)
    _, medium_N = np.unique(media_N.cpu().numpy(), return_inverse=True)
    _, group_N, size = np.unique(place_N * (int(medium_N.max()) + 1) + medium_N, return_inverse=True, return_counts=True)
    share_N = torch.from_numpy(1.0 / size[group_N])
    summed_TD = _weighted_sums(feature_ND, torch.from_numpy(place_N), share_N if weight_N is None else share_N * weight_N, len(ids_T))
    return Templates(torch.from_numpy(ids_T), _unit(summed_TD))


def group_means(feature_ND: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """Unit vectors [groups, D]: the normalised mean of the features of each group, as a video of YouTube Faces is the mean of its frames.

    Groups are numbered from 0; raises ValueError for one without a feature, or a feature that is not finite.
    """
    count_G = torch.bincount(group_N, minlength=groups)
    if len(count_G) != groups or bool((count_G == 0).any()):
        raise ValueError(f"every one of the {groups} groups needs a feature: {int((count_G == 0).sum())} have none")
    return _unit(_weighted_sums(feature_ND, group_N, 1.0 / count_G[group_N].double(), groups))


def pair_cosines(templates: Templates, left_M: Tensor, right_M: Tensor) -> Tensor:
    """Cosine, float32 [M], of template `left_M[i]` with template `right_M[i]`, both ids of templates.

    A few million pairs at a time: all left templates of these with all right ones, block by block, of which the wanted are picked, unless pairs are few
    among these. Beyond the cosines, memory does not grow with the pairs. Raises ValueError naming the first ids that have no template.
    """
    cos_M = torch.empty(len(left_M), dtype=torch.float32)
    place_of = _places(templates.ids_T)
    for start in range(0, len(left_M), _PAIRS):
        part = slice(start, start + _PAIRS)
        left, right = place_of(left_M[part].cpu().numpy()), place_of(right_M[part].cpu().numpy())
        _fill_cosines(cos_M[part], templates.vectors_TD, left, right)
    return cos_M.clamp_(-1.0, 1.0)


def _fill_cosines(cos_M: Tensor, vectors_TD: Tensor, left_M: NDArray[np.int32], right_M: NDArray[np.int32]) -> None:
    (lefts, left), (rights, right) = _used(left_M, len(vectors_TD)), _used(right_M, len(vectors_TD))
    if len(lefts) * len(rights) > _SPARSE * len(left):
        step = max(1, _SCORES // vectors_TD.shape[1])
        for start in range(0, len(left), step):
            part = slice(start, start + step)
            cos_M[part] = (vectors_TD[torch.from_numpy(left_M[part])] * vectors_TD[torch.from_numpy(right_M[part])]).sum(1).cpu()
        return
    step = max(1, _SCORES // len(rights))
    right_vectors = vectors_TD[torch.from_numpy(rights)]
    for start in range(0, len(lefts), step):
        rows = np.flatnonzero((left >= start) & (left < start + step))
        cos = (vectors_TD[torch.from_numpy(lefts[start : start + step])] @ right_vectors.mT).reshape(-1).cpu()
        picked = (left[rows] - start).astype(np.int64) * len(rights) + right[rows]
        cos_M[torch.from_numpy(rows)] = cos[torch.from_numpy(picked)]


def _places(ids_T: Tensor) -> Callable[[NDArray[np.integer]], NDArray[np.int32]]:
    """A function from ids to their places among the rising `ids_T`, which raises ValueError for those that are not there."""
    ids: NDArray[np.int64] = ids_T.cpu().numpy()
    low, high = (int(ids[0]), int(ids[-1])) if len(ids) else (0, -1)
    table = np.full(high - low + 1, -1, np.int32) if high - low < _TABLE else None  # ids of IJB are small numbers
    if table is not None:
        table[ids - low] = np.arange(len(ids), dtype=np.int32)

    def place_of(wanted: NDArray[np.integer]) -> NDArray[np.int32]:
        if table is not None:
            inside = (wanted >= low) & (wanted <= high)
            place = np.where(inside, table[np.where(inside, wanted - low, 0)], np.int32(-1))
        else:
            place = np.searchsorted(ids, wanted).clip(max=len(ids) - 1).astype(np.int32)
            place[ids[place] != wanted] = -1
        if (place < 0).any():
            lacking = np.unique(wanted[place < 0])
            raise ValueError(
                f"{len(lacking)} templates of the pairs have no image ({', '.join(map(str, lacking[:3]))} ...): the pair list is of another set"
            )
        return place

    return place_of


def _used(place_M: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(which of `count` templates occur, and the number of each place among these)."""
    used = np.zeros(count, bool)
    used[place_M] = True
    return np.flatnonzero(used), (np.cumsum(used, dtype=np.int32) - 1)[place_M]


def _unit(summed_TD: Tensor) -> Tensor:
    unit_TD = torch.empty_like(summed_TD, dtype=torch.float32)
    for start in range(0, len(summed_TD), _ROWS):
        unit_TD[start : start + _ROWS] = normalize(summed_TD[start : start + _ROWS])
    return unit_TD


def _weighted_sums(feature_ND: Tensor, place_N: Tensor, weight_N: Tensor, count: int) -> Tensor:
    sums = torch.zeros(count, feature_ND.shape[1], dtype=torch.float64)
    for start in range(0, len(feature_ND), _ROWS):
        part = slice(start, start + _ROWS)
        rows = feature_ND[part].cpu().double()
        if not bool(rows.isfinite().all()):
            raise ValueError(f"features {start}..{start + len(rows) - 1} hold NaN or infinity: the backbone failed on one of these images")
        sums.index_add_(0, place_N[part], rows * weight_N[part, None])
    return sums
