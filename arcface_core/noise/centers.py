"""Sub-centers of identities: who is nearest, who is dominant.

Every function takes one part of the samples. Votes are counts, so the votes of a crawl are the sum of the votes of its parts.
What has no direction takes no part: a zero or non-finite embedding votes for nothing, a zero center wins nothing. Indices are then -1
and angles NaN, which no rule keeps.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from arcface_core.angles import angle_deg, cosine, normalize

_FLOATS_PER_GROUP = 1 << 21  # what stays in a cache does not wait for memory

__all__ = [
    "angle_of",
    "angle_to",
    "cluster_centers",
    "dominant",
    "dominant_centers",
    "groups_of_one_size",
    "nearest_of",
    "nearest_subcenter",
    "random_other",
    "subcenter_angles",
    "vote",
    "with_direction",
]


def subcenter_angles(embeddings_ND: Tensor, class_index_N: Tensor, centers_CKD: Tensor) -> Tensor:
    """Angle in degrees [N, K] of each sample to every sub-center of its own identity; NaN where either has no direction.

    Identities of one size are multiplied together, so each embedding is read once. A zero row of `centers` is a sub-center that does not exist.
    Raises ValueError when a class index has no row in `centers`.
    """
    _check_part(embeddings_ND, class_index_N, centers_CKD)
    dtype = torch.promote_types(torch.float32, embeddings_ND.dtype)
    angle_NK = torch.full((len(embeddings_ND), centers_CKD.shape[1]), torch.nan, device=embeddings_ND.device, dtype=dtype)
    length_CK = _lengths(centers_CKD)
    for identity_G, rows_Gn in groups_of_one_size(class_index_N, embeddings_ND.shape[1]):
        samples_GnD, centers_GKD = _rows(embeddings_ND, rows_Gn).to(dtype), _rows(centers_CKD, identity_G[:, None])[:, 0].to(dtype)
        # The product is divided by the lengths afterwards: unit copies of all embeddings would double what memory has to move.
        lengths_GnK = _lengths(samples_GnD)[:, :, None] * length_CK[identity_G][:, None].to(dtype)
        angle_NK[rows_Gn] = angle_deg((samples_GnD @ centers_GKD.mT) / lengths_GnK)
    return angle_NK


def _rows(embeddings_ND: Tensor, rows_Gn: Tensor) -> Tensor:
    """`embeddings[rows]`, without a copy where the rows stand together, as they do in a crawl of a folder per person."""
    first, count = int(rows_Gn[0, 0]), rows_Gn.numel()
    together = int(rows_Gn[-1, -1]) == first + count - 1 and bool((rows_Gn.flatten().diff() == 1).all())
    return embeddings_ND[first : first + count].view(*rows_Gn.shape, *embeddings_ND.shape[1:]) if together else embeddings_ND[rows_Gn]


def groups_of_one_size(class_index_N: Tensor, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(identities [G], rows [G, n]) over all identities that occur, those of one size together, at most 8 MiB of embeddings at a time."""
    order_N = class_index_N.argsort(stable=True)
    sizes_C = torch.bincount(class_index_N)
    first_C = sizes_C.cumsum(0) - sizes_C
    for size in sorted(set(sizes_C.tolist()) - {0}):
        identities = (sizes_C == size).nonzero()[:, 0]
        for group in identities.split(max(1, _FLOATS_PER_GROUP // (size * dim))):
            yield group, order_N[first_C[group][:, None] + torch.arange(size, device=group.device)]


def nearest_subcenter(embeddings_ND: Tensor, class_index_N: Tensor, centers_CKD: Tensor) -> tuple[Tensor, Tensor]:
    """Index (int64) and angle (degrees) of the sub-center of its own identity nearest to each sample, both [N]; ties to the lowest k.

    Index -1 and angle NaN: the sample or all of its sub-centers have no direction.
    """
    return nearest_of(subcenter_angles(embeddings_ND, class_index_N, centers_CKD))


def nearest_of(angle_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Index and value of the smallest angle of each row, ties to the lowest index; -1 and NaN where all are NaN."""
    nowhere_N = angle_NK.isnan().all(dim=1)
    index_N = angle_NK.nan_to_num(nan=torch.inf).argmin(dim=1)
    return index_N.masked_fill(nowhere_N, -1), angle_NK.gather(1, index_N[:, None])[:, 0]


def angle_of(angle_NK: Tensor, index_N: Tensor) -> Tensor:
    """`angle[i, index[i]]` [N]; NaN where the index is -1."""
    return angle_NK.gather(1, index_N.clamp_min(0)[:, None])[:, 0].masked_fill(index_N < 0, torch.nan)


def angle_to(embeddings_ND: Tensor, class_index_N: Tensor, centers_CD: Tensor) -> Tensor:
    """Angle in degrees [N], in [0, 180], between sample i and `centers[class_index[i]]`. NaN where either has no direction or the index is -1."""
    dtype = torch.promote_types(torch.float32, embeddings_ND.dtype)
    cos_N = torch.empty(len(embeddings_ND), device=embeddings_ND.device, dtype=dtype)
    length_C = _lengths(centers_CD).to(dtype)
    for first in range(0, len(cos_N), rows := max(1, _FLOATS_PER_GROUP // max(1, centers_CD.shape[1]))):
        part_RD, index_R = embeddings_ND[first : first + rows].to(dtype), class_index_N[first : first + rows].clamp_min(0)
        product_R = (part_RD * centers_CD[index_R].to(dtype)).sum(dim=1)
        cos_N[first : first + rows] = product_R / (_lengths(part_RD) * length_C[index_R])
    return angle_deg(cos_N).masked_fill(class_index_N < 0, torch.nan)


def vote(nearest_N: Tensor, class_index_N: Tensor, num_classes: int, num_subcenters: int) -> Tensor:
    """How many samples of each identity are nearest to each of its sub-centers, int64 [C, K]. Additive over parts; `nearest` -1 is no vote."""
    if len(nearest_N) != len(class_index_N):
        raise ValueError(f"one vote per sample, got {len(nearest_N)} nearest sub-centers and {len(class_index_N)} class indices")
    voted_N = nearest_N >= 0
    index_N, nearest_N = class_index_N[voted_N].long(), nearest_N[voted_N].long()
    if len(index_N) and (index_N.min() < 0 or index_N.max() >= num_classes or nearest_N.max() >= num_subcenters):
        raise ValueError(
            f"a vote lies outside the {num_classes} x {num_subcenters} sub-centers: were these samples judged by another head?"
        )
    counts = torch.bincount(index_N * num_subcenters + nearest_N, minlength=num_classes * num_subcenters)
    return counts.view(num_classes, num_subcenters)


def dominant(counts_CK: Tensor) -> Tensor:
    """The sub-center with most votes, int64 [C]; ties to the lowest k, -1 for an identity without votes. Source: ArcFace TPAMI 3.2."""
    return counts_CK.argmax(dim=1).masked_fill(counts_CK.sum(dim=1) == 0, -1)


def dominant_centers(centers_CKD: Tensor, dominant_C: Tensor) -> Tensor:
    """Unit dominant sub-center of each identity, [C, D]; a zero row where `dominant` is -1."""
    rows_C = torch.arange(len(dominant_C), device=centers_CKD.device)
    chosen_CD = normalize(centers_CKD[rows_C, dominant_C.clamp_min(0)])
    return chosen_CD.masked_fill((dominant_C < 0)[:, None], 0.0)


def random_other(class_index_N: Tensor, salt_N: Tensor, present_P: Tensor) -> Tensor:
    """Class index, int64 [N], of an identity of `present_P` other than each sample's own; -1 when there is none.

    `present_P`: rising class indices, as `with_direction(centers)` gives them. `salt_N` (int64, >= 0) chooses: pass bits of each sample's content
    hash, and the choice follows the sample through any order or sharding. The angles to these are null angles: what "not this person" looks like.
    """
    if len(present_P) == 0:
        return torch.full_like(class_index_N, -1, dtype=torch.int64)
    place_N = torch.searchsorted(present_P, class_index_N.long())
    own_N = present_P[place_N.clamp_max(len(present_P) - 1)] == class_index_N
    others_N = len(present_P) - own_N.long()
    chosen_N = present_P[(place_N + own_N.long() + salt_N.long() % others_N.clamp_min(1)) % len(present_P)]
    return chosen_N.masked_fill(others_N == 0, -1)


def with_direction(centers_CD: Tensor) -> Tensor:
    """Rising indices, int64, of the centers that are finite and not zero: the identities that are there."""
    return _has_direction(centers_CD).nonzero()[:, 0]


def cluster_centers(embeddings_ND: Tensor, num_subcenters: int, *, iterations: int = 20) -> Tensor:
    """Unit sub-centers [K, D] of ONE identity by spherical K-means, for identities that no head was trained on.

    Deterministic: it starts from the sample nearest to the mean direction, then always the sample farthest from those chosen; ties to the
    lowest index. An emptied cluster stays where it was. Samples without direction are left out. When fewer than K directions differ, the
    missing sub-centers are zero rows, which win no vote.
    Source: Dhillon and Modha 2001 (spherical K-means), Gonzalez 1985 (farthest first).
    """
    if num_subcenters < 1:
        raise ValueError(f"num_subcenters must be at least 1, got {num_subcenters}")
    unit_ND = normalize(embeddings_ND[_has_direction(embeddings_ND)])
    centers_KD = torch.zeros(num_subcenters, embeddings_ND.shape[1], dtype=unit_ND.dtype, device=unit_ND.device)
    if len(unit_ND) == 0:
        return centers_KD
    closeness_N = -cosine(unit_ND, unit_ND.mean(dim=0, keepdim=True))[:, 0]
    found = 0
    while found < num_subcenters:
        start = int(closeness_N.argmin())
        if found and closeness_N[start] > 1.0 - 1e-6:  # within 0.08 degrees of a start already taken
            break
        centers_KD[found] = unit_ND[start]
        cos_N = cosine(unit_ND, unit_ND[start : start + 1])[:, 0]
        closeness_N = cos_N if found == 0 else torch.maximum(closeness_N, cos_N)
        found += 1
    assigned_N = None
    for _ in range(iterations):
        now_N = cosine(unit_ND, centers_KD[:found]).argmax(dim=1)
        if assigned_N is not None and torch.equal(now_N, assigned_N):
            break
        assigned_N = now_N
        sums_KD = torch.zeros_like(centers_KD).index_add_(0, assigned_N, unit_ND)
        centers_KD = torch.where((sums_KD.norm(dim=1) > 1e-6)[:, None], normalize(sums_KD), centers_KD)
    return centers_KD


def _has_direction(vectors_ND: Tensor) -> Tensor:
    """True for the rows that are finite and not zero."""
    return ~_lengths(vectors_ND).isnan()


def _lengths(vectors_ND: Tensor) -> Tensor:
    """Length of each row, float32 or wider; NaN where it gives no direction: zero, not finite, or beyond what the type can hold."""
    length_N: Tensor = vectors_ND.norm(dim=-1, dtype=torch.promote_types(torch.float32, vectors_ND.dtype))
    return length_N.masked_fill((length_N == 0) | ~length_N.isfinite(), torch.nan)


def _check_part(embeddings_ND: Tensor, class_index_N: Tensor, centers: Tensor) -> None:
    """Raise ValueError unless samples, class indices and centers fit together."""
    if len(embeddings_ND) != len(class_index_N) or embeddings_ND.shape[-1] != centers.shape[-1]:
        raise ValueError(
            f"embeddings {tuple(embeddings_ND.shape)}, class indices {tuple(class_index_N.shape)} and centers {tuple(centers.shape)} "
            "do not fit: one class index per embedding, one width for embeddings and centers"
        )
    if len(class_index_N) and (class_index_N.min() < 0 or class_index_N.max() >= len(centers)):
        raise ValueError(
            f"class_index must be in 0..{len(centers) - 1}, got {int(class_index_N.min())}..{int(class_index_N.max())}: "
            "it is local to one head, so use the table of identities that this head was trained with"
        )
