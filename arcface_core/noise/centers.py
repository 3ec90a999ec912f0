"""Sub-centers of identities: who is nearest, who is dominant.

Every function takes one part of the samples. Votes are counts, so the votes of a crawl are the sum of the votes of its parts.
What has no direction takes no part: a zero or non-finite embedding votes for nothing, a zero center wins nothing. Indices are then -1
and angles NaN, which no rule keeps.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from arcface_core.angles import angle_deg, normalize

_FLOATS_PER_GROUP = 1 << 21  # what stays in a cache does not wait for memory

__all__ = [
    "angle_of",
    "angle_to",
    "cluster_centers",
    "cluster_groups",
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
    is_sorted = bool((class_index_N.diff() >= 0).all())  # as in a crawl of a folder per person
    order_N = torch.arange(len(class_index_N), device=class_index_N.device) if is_sorted else class_index_N.argsort(stable=True)
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
    for first in range(0, len(cos_N), rows := max(1, _FLOATS_PER_GROUP // max(1, centers_CD.shape[1]))):
        part_RD, index_R = embeddings_ND[first : first + rows].to(dtype), class_index_N[first : first + rows].clamp_min(0)
        centers_RD = centers_CD[index_R].to(dtype)
        cos_N[first : first + rows] = (part_RD * centers_RD).sum(dim=1) / (_lengths(part_RD) * _lengths(centers_RD))
    return angle_deg(cos_N).masked_fill(class_index_N < 0, torch.nan)


def vote(nearest_N: Tensor, class_index_N: Tensor, num_classes: int, num_subcenters: int) -> Tensor:
    """How many samples of each identity are nearest to each of its sub-centers, int64 [C, K]. Additive over parts; `nearest` -1 is no vote."""
    if len(nearest_N) != len(class_index_N):
        raise ValueError(f"one vote per sample, got {len(nearest_N)} nearest sub-centers and {len(class_index_N)} class indices")
    nowhere = num_classes * num_subcenters
    inside_N = (class_index_N >= 0) & (class_index_N < num_classes) & (nearest_N < num_subcenters)
    if not bool((inside_N | (nearest_N < 0)).all()):
        raise ValueError(
            f"a vote lies outside the {num_classes} x {num_subcenters} sub-centers: were these samples judged by another head?"
        )
    place_N = (class_index_N.long() * num_subcenters + nearest_N).masked_fill(nearest_N < 0, nowhere)
    return torch.bincount(place_N, minlength=nowhere + 1)[:nowhere].view(num_classes, num_subcenters)


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
    """Unit sub-centers [K, D] of ONE identity, as `cluster_groups` finds them."""
    return cluster_groups(embeddings_ND[None], num_subcenters, iterations=iterations)[0]


def cluster_groups(embeddings_GnD: Tensor, num_subcenters: int, *, iterations: int = 20) -> Tensor:
    """Unit sub-centers [G, K, D] of G identities of n samples by spherical K-means, each for itself, for identities that no head was trained on.

    Deterministic: it starts from the sample nearest to the mean direction, then always the sample farthest from those chosen; ties to the
    lowest index. An emptied cluster stays where it was. Samples without direction are left out. When fewer than K directions differ, the
    missing sub-centers are zero rows, which win no vote.
    Source: Dhillon and Modha 2001 (spherical K-means), Gonzalez 1985 (farthest first).
    """
    if num_subcenters < 1:
        raise ValueError(f"num_subcenters must be at least 1, got {num_subcenters}")
    there_Gn = _has_direction(embeddings_GnD)
    unit_GnD = normalize(embeddings_GnD.masked_fill(~there_Gn[..., None], 0.0))
    groups, size, dim = unit_GnD.shape
    centers_GKD = unit_GnD.new_zeros(groups, num_subcenters, dim)
    if size == 0:
        return centers_GKD
    group_G = torch.arange(groups, device=unit_GnD.device)
    closeness_Gn = -(unit_GnD @ normalize(unit_GnD.sum(dim=1))[..., None])[..., 0]
    for found in range(num_subcenters):
        closeness_Gn = closeness_Gn.masked_fill(~there_Gn, torch.inf)
        least_G, start_G = closeness_Gn.min(dim=1)
        is_new_G = least_G.isfinite() & (least_G <= 1.0 - 1e-6) if found else least_G.isfinite()  # 0.08 degrees from every start taken
        chosen_GD = unit_GnD[group_G, start_G] * is_new_G[:, None]
        centers_GKD[:, found] = chosen_GD
        cos_Gn = (unit_GnD @ chosen_GD[..., None])[..., 0]
        closeness_Gn = cos_Gn if found == 0 else torch.maximum(closeness_Gn, cos_Gn)
    missing_GK = ~_has_direction(centers_GKD)
    assigned_Gn = None
    for _ in range(iterations):
        cos_GnK = (unit_GnD @ centers_GKD.mT).masked_fill(missing_GK[:, None], -torch.inf)
        now_Gn = cos_GnK.argmax(dim=2)
        if assigned_Gn is not None and torch.equal(now_Gn, assigned_Gn):
            break
        assigned_Gn = now_Gn
        members_GnK = torch.nn.functional.one_hot(assigned_Gn, num_subcenters).to(unit_GnD.dtype)
        sums_GKD = members_GnK.mT @ unit_GnD
        centers_GKD = torch.where(sums_GKD.norm(dim=2, keepdim=True) > 1e-6, normalize(sums_GKD), centers_GKD)
    return centers_GKD


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
