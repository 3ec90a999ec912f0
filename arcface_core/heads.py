"""Sub-center ArcFace head: K centers for an identity, of which the nearest to a sample answers for it. K = 1 is ArcFace.

Noise may settle in a center of its own without pulling the one that the clean samples share. Nothing keeps sub-centers apart or together.
One head may be spread over processes, and a step may draw a part of the identities (Partial FC); alone and with all of them it is plain ArcFace.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from arcface_core.across import combined, gathered, on_the_first, place, share
from arcface_core.angles import cosine, normalize
from arcface_core.fused import own_and_others
from arcface_core.margins import Margin
from arcface_core.quality import QualityMargin
from arcface_core.sampling import drawn

__all__ = ["SubCenterHead"]

_EXACT_NATS = 50.0
"""softplus(x) is x beyond: the difference, exp(-50), is far below the spacing of float64 there."""
_DRAWN_AT_ONCE = 256


class SubCenterHead(nn.Module):
    """Cross-entropy over `scale * cos`, with a margin on the own identity. Source: paper, equations 3 and 7.

    cos[b, c] = max over k of cos(feature b, center c k), for every identity, negatives included: only the arg-max sub-center of an identity
    gets gradient, the lowest k on a tie.

    `weight` is [C' * K, D], class-major (row = (class_index - first) * K + k), as insightface's: the centers of the identities `first` to `stop` - 1.
    `process_group` None: this process has all of them, C' = C. A group: each process has a run of them, all K together, and calls `forward` and
    `backward` with its own samples at the same time as the others do. The loss is that of all samples over all identities, the same number on every
    process, and the gradient of `weight` is whole: nothing is to be averaged. The features' gradient is times the number of processes, for
    DistributedDataParallel, which takes the mean over them. The first centers, and what is drawn, depend on `seed` and not on the number of processes.

    `sample_rate` below 1: a training step looks at the identities of its samples and at this share of all others, drawn anew each time. The gradient
    of `weight` is sparse then: give it an optimiser of `row_optimizers`. Source: Partial FC (see `sampling`). `draws` counts them.

    `max_negative_cos`: another identity that is nearer to a sample than this (at exactly this it stays) leaves that sample's loss: it may be the same
    person under a second name. Source: insightface's `interclass_filtering_threshold`, which puts such a logit to 0, next to nothing.

    `margin`: one of `quality` belongs to this head alone; it goes by the norms of the features of all processes, and its penalty is part of the loss.

    Raises ValueError for fewer than two identities, for more processes than identities, and for other numbers out of range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        num_subcenters: int = 3,
        margin: Margin | QualityMargin = Margin(),
        scale: float = 64.0,
        sample_rate: float = 1.0,
        max_negative_cos: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2 or not 1 <= num_subcenters <= 255 or not scale > 0 or not 0 < sample_rate <= 1:
            raise ValueError(
                "A head takes two identities or more, 1 to 255 sub-centers, a positive scale, a sample rate above 0 and up to 1; "
                f"got {num_classes}, {num_subcenters}, {scale}, {sample_rate}."
            )
        self.rank, self.ranks = place(process_group)
        if num_classes < self.ranks:
            raise ValueError(f"{num_classes} identities cannot be spread over {self.ranks} processes. Use fewer processes.")
        self.num_classes, self.num_subcenters, self.group = num_classes, num_subcenters, process_group
        self.margin, self.scale, self.sample_rate, self.max_negative_cos = margin, scale, sample_rate, max_negative_cos
        self.first, self.stop = share(num_classes, self.rank, self.ranks)
        self.seed, self.draws = seed, 0
        self.weight = nn.Parameter(_first_centers(self.first, self.stop, num_subcenters, embedding_dim, seed))

    def logits(self, features_BD: Tensor, class_index_B: Tensor) -> Tensor:
        """`scale * cos`, [B, C], with the margin on the own identity, of a head that is whole: the definition, in B x C x K memory.

        With every identity taking part, `forward` gives its cross-entropy; beside it a quality margin's penalty, and the norms of the batch are observed first.
        """
        with torch.autocast(features_BD.device.type, enabled=False):
            cos_BCK = cosine(features_BD, self.weight).reshape(len(features_BD), self.num_classes, self.num_subcenters)
            cos_BC = cos_BCK.max(dim=2).values
            own_B1 = class_index_B.unsqueeze(1)
            logits_BC = self.scale * cos_BC
            if self.max_negative_cos is not None:
                logits_BC = logits_BC.masked_fill(cos_BC > self.max_negative_cos, -torch.inf)
            return logits_BC.scatter(1, own_B1, self.scale * self._target(cos_BC.gather(1, own_B1), _norms(features_BD).unsqueeze(1)))

    def forward(self, features_BD: Tensor, class_index_B: Tensor) -> Tensor:
        """Mean cross-entropy of the samples of all processes, with a quality margin's penalty, in nats, float32 or wider.

        Called under autocast on a GPU that has bfloat16, the operands of the matrix products are rounded to it, and their sums, the margin and the
        softmax stay float32: a cosine is then off by some 1e-4. On a CPU autocast changes nothing here. Raises ValueError for no sample, and for a
        class index that the head does not have; on a GPU, where to look would be to wait, the loss is NaN instead.
        """
        self._check(features_BD, class_index_B)
        narrow = _narrow(features_BD.device)
        with torch.autocast(features_BD.device.type, enabled=False):
            unit_BD, norm_B, index_B = self._of_all(features_BD, class_index_B)
            identities_S, position_B = self._taking_part(index_B)
            own_B, others_B = own_and_others(
                unit_BD,
                self.weight,
                position_B,
                num_subcenters=self.num_subcenters,
                scale=self.scale,
                identities_S=identities_S,
                max_negative_cos=self.max_negative_cos,
                narrow=narrow,
            )
            own_B, others_B = combined(own_B, others_B, self.group)
            own_B = own_B.masked_fill((index_B < 0) | (index_B >= self.num_classes), torch.nan)
            losses_B = functional.softplus(others_B - self.scale * self._target(own_B, norm_B), threshold=_EXACT_NATS)
            if isinstance(self.margin, QualityMargin) and norm_B is not None:
                losses_B = losses_B + self.margin.penalty(norm_B)
            return losses_B.mean()

    def _of_all(self, features_BD: Tensor, class_index_B: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Unit features, norms (for a quality margin only, which has seen them then) and class indices of the samples of all processes.

        A norm has its gradient on the process that holds the sample's identity, as its own cosine has: on all of them it would count for each.
        """
        if not isinstance(self.margin, QualityMargin):
            unit_BD, index_B = gathered(normalize(features_BD), class_index_B, self.group)
            return unit_BD, None, index_B
        joined_BE = torch.cat([normalize(features_BD), _norms(features_BD).unsqueeze(1)], dim=1)
        joined_BE, index_B = gathered(joined_BE, class_index_B, self.group)
        norm_B = joined_BE[:, -1]
        if self.training:
            self.margin.observe(norm_B)
        return joined_BE[:, :-1].contiguous(), torch.where(self._is_here(index_B), norm_B, norm_B.detach()), index_B

    def _target(self, cos: Tensor, norm: Tensor | None) -> Tensor:
        target: Tensor = self.margin(cos, norm) if isinstance(self.margin, QualityMargin) else self.margin(cos)
        return target

    def _check(self, features_BD: Tensor, class_index_B: Tensor) -> None:
        if len(features_BD) == 0 or len(features_BD) != len(class_index_B):
            raise ValueError(f"A batch is one class index for each of one sample or more; got {len(class_index_B)} for {len(features_BD)}.")
        if class_index_B.device.type != "cpu":
            return
        least, most = torch.stack(class_index_B.aminmax()).tolist()
        if not (least >= 0 and most < self.num_classes):
            raise ValueError(f"Class indices are 0 to {self.num_classes - 1}; got {least} to {most}.")

    def _is_here(self, index_B: Tensor) -> Tensor:
        return (index_B >= self.first) & (index_B < self.stop)

    def _taking_part(self, index_B: Tensor) -> tuple[Tensor | None, Tensor]:
        """Which of this process's identities (None: all), and the position of each sample's own among them, -1 where it is elsewhere."""
        is_here_B = self._is_here(index_B)
        local_B = index_B - self.first
        if self.sample_rate == 1 or not self.training:
            return None, torch.where(is_here_B, local_B, -1)
        takes_part = drawn(self.first, self.stop, rate=self.sample_rate, seed=self.seed, draw=self.draws, device=index_B.device)
        takes_part[local_B[is_here_B]] = True
        self.draws += 1
        position = takes_part.cumsum(0) - 1
        return takes_part.nonzero().squeeze(1), torch.where(is_here_B, position[local_B.clamp(0, self.stop - self.first - 1)], -1)

    @torch.no_grad()
    def nearest(self, features_BD: Tensor, class_index_B: Tensor) -> tuple[Tensor, Tensor]:
        """Class indices of the samples of all processes, and to which sub-center of its identity each is nearest, the lowest on a tie. Both int64."""
        unit_BD, index_B = gathered(normalize(features_BD), class_index_B, self.group)
        is_here_B = self._is_here(index_B)
        own_BKD = self.weight.view(self.stop - self.first, self.num_subcenters, -1)[(index_B - self.first)[is_here_B]]
        nearest_B = torch.zeros_like(index_B)
        nearest_B[is_here_B] = torch.einsum("bd,bkd->bk", unit_BD[is_here_B], normalize(own_BKD)).argmax(dim=1)
        if self.group is not None:
            dist.all_reduce(nearest_B, group=self.group)
        return index_B, nearest_B

    @torch.no_grad()
    def unit_centers(self) -> Tensor:
        """The sub-centers of this process's identities as unit rows, [C', K, D]."""
        return normalize(self.weight).reshape(self.stop - self.first, self.num_subcenters, -1).clone()

    @torch.no_grad()
    def whole(self, rows: Tensor) -> Tensor | None:
        """Of a tensor whose first axis is this process's identities, or their centers: that of all, on process 0; None on others.

        All processes call it. `part` is the inverse.
        """
        each = len(rows) // (self.stop - self.first)
        bounds = [share(self.num_classes, rank, self.ranks) for rank in range(self.ranks)]
        return on_the_first(rows, [(stop - first) * each for first, stop in bounds], self.group)

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a tensor whose first axis is all identities, or all centers: a view."""
        each = len(whole) // self.num_classes
        return whole[self.first * each : self.stop * each]

    def state_tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor] | None:
        """All that a checkpoint needs, on process 0, whatever the number of processes: `weight`, `draws`, what the optimiser holds, and what a quality
        margin remembers; None on others.

        Tensors that the optimiser keeps row by row are gathered, others (a count of steps) are as on process 0. All processes call it.
        """
        held = {name: value for name, value in optimizer.state.get(self.weight, {}).items() if isinstance(value, Tensor)}
        tensors = {"weight": self.whole(self.weight.detach())}
        for name, value in sorted(held.items()):
            tensors[f"optimizer.{name}"] = self.whole(value) if value.dim() and len(value) == len(self.weight) else value
        if self.rank:
            return None
        tensors |= {f"margin.{name}": value for name, value in self._remembered().items()}
        return {name: value for name, value in tensors.items() if value is not None} | {"draws": torch.tensor(self.draws)}

    def _remembered(self) -> dict[str, Tensor]:
        return dict(self.margin.named_buffers()) if isinstance(self.margin, QualityMargin) else {}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Puts `state_tensors` back, whatever the number of processes was. Raises ValueError when they are of another head."""
        wanted, got = (self.num_classes * self.num_subcenters, self.weight.shape[1]), tuple(tensors["weight"].shape)
        if got != wanted:
            raise ValueError(f"The checkpoint belongs to another model: its centers are {got}, those of this head {wanted}.")
        remembered = self._remembered()
        if missing := [name for name in remembered if f"margin.{name}" not in tensors]:
            raise ValueError(
                f"The checkpoint belongs to another model: it holds no {missing[0]} for the margin {type(self.margin).__name__}."
            )
        self.weight.copy_(self.part(tensors["weight"]))
        for name, held in remembered.items():
            held.copy_(tensors[f"margin.{name}"])
        self.draws = int(tensors["draws"])
        for name, value in tensors.items():
            if not name.startswith("optimizer."):
                continue
            by_row = value.dim() > 0 and len(value) == wanted[0]
            own = self.part(value).to(self.weight.device, copy=True) if by_row else value.clone()
            optimizer.state[self.weight][name.removeprefix("optimizer.")] = own


def _first_centers(first: int, stop: int, subcenters: int, dim: int, seed: int) -> Tensor:
    """N(0, 0.01), of the identities `first` to `stop` - 1, the same whoever holds them."""
    centers = torch.empty(stop - first, subcenters, dim)
    for start in range(first - first % _DRAWN_AT_ONCE, stop, _DRAWN_AT_ONCE):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + start) % 2**63)
        block = torch.randn(_DRAWN_AT_ONCE, subcenters, dim, generator=generator)
        low, high = max(start, first), min(start + _DRAWN_AT_ONCE, stop)
        centers[low - first : high - first] = block[low - start : high - start] * 0.01
    return centers.view(-1, dim)


def _norms(features_BD: Tensor) -> Tensor:
    """Lengths, float32 or wider; the gradient of a zero vector's is zero."""
    lengths: Tensor = torch.linalg.vector_norm(features_BD, dim=1, dtype=torch.promote_types(features_BD.dtype, torch.float32))
    return lengths


def _narrow(device: torch.device) -> torch.dtype | None:
    on_gpu = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else None
