"""A head over several processes, and one that draws its identities: the same loss, gradients and steps as one that is whole."""

import math
import multiprocessing
from functools import partial
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.nn import functional

from arcface_core.across import place, share
from arcface_core.heads import SubCenterHead
from arcface_core.quality import AdaFace, MagFace
from arcface_core.row_optimizers import RowAdamW, RowSGD
from arcface_core.sampling import drawn

CLASSES, DIM, K, BATCH, STEPS, MORE = 37, 8, 3, 10, 3, 5
CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "sampled": {"sample_rate": 0.4},
    "sampled and filtered": {"sample_rate": 0.5, "max_negative_cos": 0.3},
    "nobody else": {"max_negative_cos": -0.999},
    "adaface": {"margin": partial(AdaFace, new_weight=0.5), "sample_rate": 0.4},
    "magface": {"margin": partial(MagFace, least_norm=2.0, most_norm=4.0, norm_weight=9.0)},
}
"""Settings of the head; a quality margin is made anew for each."""


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, DIM, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)


def shares(ranks: int) -> list[int]:
    """Samples of each process: not as many everywhere."""
    return [BATCH] if ranks == 1 else [BATCH - ranks + 1] + [1] * (ranks - 1)


def train(case: str, group: Any = None, resume: dict[str, torch.Tensor] | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Steps up to `steps`, from the start or from what is resumed, by one of a group: losses, gradients of its samples' features, votes; the end state."""
    rank, ranks = place(group)
    settings = {name: value() if name == "margin" else value for name, value in CASES[case].items()}
    head = SubCenterHead(CLASSES, DIM, num_subcenters=K, scale=16.0, seed=5, process_group=group, **settings)
    optimizer = RowSGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    if resume:
        head.load_state_tensors(resume, optimizer)
    losses, gradients = [], []
    before = sum(shares(ranks)[:rank])
    for step in range(STEPS if resume else 0, steps):
        features, index = (part[before : before + shares(ranks)[rank]] for part in batch(step))
        features.requires_grad_()
        optimizer.zero_grad()
        loss = head(features, index)
        loss.backward()
        optimizer.step()
        assert features.grad is not None
        losses.append(float(loss.detach()))
        gradients.append((features.grad / ranks).tolist())
    votes = [part.tolist() for part in head.nearest(features.detach(), index)]
    return {"losses": losses, "gradients": gradients, "votes": votes, "state": head.state_tensors(optimizer)}


def one_of_many(rank: int, folder: str) -> None:
    """All four work together, then the first two of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    for ranks, group in ((4, dist.group.WORLD), (2, dist.new_group([0, 1]))):
        told = {}
        for case in CASES if rank < ranks else ():
            told[case] = train(case, group)
            told[f"{case}, resumed"] = train(case, group, torch.load(f"{folder}/alone-{case}.pt"), MORE)
        torch.save(told, f"{folder}/{ranks}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The same by one process; what is to be resumed was not interrupted here."""
    first, whole = {case: train(case) for case in CASES}, {case: train(case, steps=MORE) for case in CASES}
    return first | {
        f"{case}, resumed": whole[case] | {name: whole[case][name][STEPS:] for name in ("losses", "gradients")} for case in CASES
    }


@pytest.fixture(scope="module")
def told(alone: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each of 2 and of 4 processes saw."""
    folder, context = tmp_path_factory.mktemp("spread"), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once
    for case in CASES:
        torch.save(alone[case]["state"], folder / f"alone-{case}.pt")
    processes = [context.Process(target=one_of_many, args=(rank, str(folder))) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0] * 4
    return {ranks: [torch.load(folder / f"{ranks}-{rank}.pt") for rank in range(ranks)] for ranks in (2, 4)}


@pytest.fixture(params=[2, 4])
def spread(request: pytest.FixtureRequest, told: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return told[request.param]


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).double().norm() / wanted.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("case", [*CASES, *(f"{case}, resumed" for case in CASES)])
def test_many_processes_see_the_loss_and_gradients_of_one(case: str, spread: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Also of a training resumed by them from the checkpoint of one process."""
    wanted = alone[case]
    for told in spread:
        assert told[case]["losses"] == pytest.approx(wanted["losses"], rel=1e-5)
        assert told[case]["votes"] == wanted["votes"]
    for step, of_all in enumerate(wanted["gradients"]):
        together = [row for told in spread for row in told[case]["gradients"][step]]
        assert far(torch.tensor(together), torch.tensor(of_all)) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_many_processes_is_that_of_one_and_resumes_on_one(
    case: str, spread: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    saved, wanted = spread[0][case]["state"], alone[case]["state"]
    assert [told[case]["state"] for told in spread[1:]] == [None] * (len(spread) - 1)
    remembered = {"margin.mean", "margin.std"} if case == "adaface" else set()
    assert saved.keys() == wanted.keys() == {"weight", "draws", "optimizer.momentum_buffer"} | remembered
    assert saved["draws"] == wanted["draws"] == (STEPS if "sample_rate" in CASES[case] else 0)
    assert max(far(saved[name], wanted[name]) for name in ("weight", "optimizer.momentum_buffer", *remembered)) < 1e-5
    assert train(case, resume=saved, steps=MORE)["losses"] == pytest.approx(alone[f"{case}, resumed"]["losses"], rel=1e-5)


def test_nobody_else_left_is_no_loss(alone: dict[str, Any]) -> None:
    assert alone["nobody else"]["losses"] == [0.0] * STEPS
    assert not torch.tensor(alone["nobody else"]["gradients"]).any()


def test_the_filter_drops_nearer_negatives_and_keeps_one_at_the_threshold() -> None:
    head = SubCenterHead(4, 2, num_subcenters=1, scale=4.0, max_negative_cos=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.75**0.5], [0.0, 1.0]]))
    features = torch.tensor([[1.0, 0.0]])
    kept = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 1.0]])
    fewer = SubCenterHead(3, 2, num_subcenters=1, scale=4.0)
    fewer.weight.data = kept
    assert float(head(features, torch.tensor([0])).detach()) == pytest.approx(float(fewer(features, torch.tensor([0])).detach()), rel=1e-6)
    assert float(head(features, torch.tensor([0])).detach()) == pytest.approx(
        float(functional.cross_entropy(head.logits(features, torch.tensor([0])), torch.tensor([0])).detach()), rel=1e-5
    )
    head(features, torch.tensor([0])).backward()
    assert head.weight.grad is not None and head.weight.grad[1].tolist() == [0, 0] and float(head.weight.grad[2].norm()) > 0


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_own_identities_always_take_part_and_the_rest_by_the_rate(rate: float) -> None:
    head = SubCenterHead(20_000, 4, num_subcenters=2, sample_rate=rate)
    index = torch.tensor([7, 19_999, 7, 0])
    head(torch.randn(4, 4), index).backward()
    gradient = head.weight.grad
    assert gradient is not None and gradient.is_sparse == (rate < 1)
    moved = gradient.to_dense().view(20_000, 2, 4).abs().sum(dim=(1, 2)) > 0
    assert moved[index].all()
    if rate < 1:
        rows = gradient.coalesce().indices()[0]
        assert abs(len(rows) / 40_000 - rate) < 4 * math.sqrt(rate * (1 - rate) / 20_000) + 1e-4
        assert rows.view(-1, 2).diff(dim=1).eq(1).all(), "the sub-centers of an identity go together"


def test_judging_looks_at_all_identities() -> None:
    sampled, whole = (SubCenterHead(50, 4, sample_rate=rate) for rate in (0.1, 1.0))
    features, index = torch.randn(3, 4), torch.tensor([1, 2, 3])
    assert float(sampled.eval()(features, index).detach()) == float(whole(features, index).detach())
    assert sampled.draws == 0


def test_draws_differ_by_step_and_seed_and_do_not_depend_on_how_identities_are_spread() -> None:
    whole = drawn(0, 10_000, rate=0.3, seed=1, draw=0)
    assert torch.equal(torch.cat([drawn(*share(10_000, rank, 3), rate=0.3, seed=1, draw=0) for rank in range(3)]), whole)
    for other in (drawn(0, 10_000, rate=0.3, seed=1, draw=1), drawn(0, 10_000, rate=0.3, seed=2, draw=0)):
        assert abs(float((other & whole).float().mean()) - 0.09) < 0.012, "independent draws share 0.3 x 0.3"
    assert drawn(0, 1000, rate=1.0, seed=0, draw=0).all()
    often = sum(drawn(0, 500, rate=0.2, seed=3, draw=draw).long() for draw in range(500))
    assert isinstance(often, torch.Tensor) and int(often.min()) > 60 and int(often.max()) < 145


@pytest.mark.parametrize(("count", "ranks"), [(10, 4), (37, 2), (4, 4), (1_000_003, 7)])
def test_shares_are_even_runs(count: int, ranks: int) -> None:
    bounds = [share(count, rank, ranks) for rank in range(ranks)]
    assert [stop for _, stop in bounds] == [*(first for first, _ in bounds[1:]), count] and bounds[0][0] == 0
    assert max(stop - first for first, stop in bounds) - min(stop - first for first, stop in bounds) <= 1


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (RowSGD, torch.optim.SGD, {"momentum": 0.9}),
        (RowAdamW, torch.optim.AdamW, {"betas": (0.8, 0.99)}),
    ],
)
def test_a_row_optimiser_is_torchs_where_all_rows_have_a_gradient(ours: Any, theirs: Any, settings: dict[str, Any]) -> None:
    weights = [torch.nn.Parameter(torch.arange(12.0).view(4, 3)) for _ in range(2)]
    optimizers = [kind([weight], lr=0.1, weight_decay=0.1, **settings) for kind, weight in zip((ours, theirs), weights, strict=True)]
    for step in range(4):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.linspace(-1, step, 12).view(4, 3)
            if optimizer is optimizers[0] and step % 2:
                weight.grad = weight.grad.to_sparse(1)
            optimizer.step()
    assert torch.allclose(*weights, rtol=1e-5)


def test_row_adamw_counts_the_steps_of_each_row() -> None:
    """A row whose first gradient comes late moves by the whole rate, as any first step of Adam, and one without a gradient not at all."""
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = RowAdamW([weight], lr=0.1, weight_decay=0.0)
    for rows in ([0], [0], [1]):
        weight.grad = torch.sparse_coo_tensor([rows], torch.full((1, 2), 5.0), (3, 2), check_invariants=False)
        optimizer.step()
    assert weight[:, 0].tolist() == pytest.approx([-0.2, -0.1, 0.0], rel=1e-5)
    assert optimizer.state[weight]["steps"].tolist() == [2, 1, 0]


def test_row_sgd_leaves_the_other_rows_and_adds_up_gradients_of_the_same_row() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 2))
    optimizer = RowSGD([weight], lr=1.0, momentum=0.5, weight_decay=0.5)
    for rows in ([1, 1], [2, 3]):
        weight.grad = torch.sparse_coo_tensor([rows], torch.ones(2, 2), (4, 2), check_invariants=False)
        optimizer.step()
    assert weight[:, 0].tolist() == [1.0, 1 - 2.5, 1 - 1.5, 1 - 1.5], (
        "row 1: two gradients and the decay, and no momentum of the step without it"
    )
    assert optimizer.state[weight]["momentum_buffer"][:, 0].tolist() == [0, 2.5, 1.5, 1.5]


def test_two_parts_of_a_batch_add_up_their_sparse_gradients() -> None:
    head = SubCenterHead(30, 4, num_subcenters=2, sample_rate=0.5)
    features, index = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    apart = []
    for part in (slice(0, 2), slice(2, 4)):
        head.draws = part.start
        head.zero_grad()
        head(features[part], index[part]).backward()
        assert head.weight.grad is not None
        apart.append(head.weight.grad.to_dense())
    head.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        head.draws = part.start
        head(features[part], index[part]).backward()
    assert head.weight.grad is not None and torch.allclose(head.weight.grad.to_dense(), apart[0] + apart[1], atol=1e-6)


def test_first_centers_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = SubCenterHead(600, 3, seed=4).weight
    torch.manual_seed(2)
    assert torch.equal(SubCenterHead(600, 3, seed=4).weight, one)
    assert not torch.equal(SubCenterHead(600, 3, seed=5).weight, one)
    assert float(one.detach().std()) == pytest.approx(0.01, rel=0.05) and len(one.unique(dim=0)) == 1800


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="a sample rate above 0"):
        SubCenterHead(3, 4, sample_rate=0.0)
    with pytest.raises(ValueError, match="one class index for each"):
        SubCenterHead(3, 4)(torch.randn(0, 4), torch.zeros(0, dtype=torch.int64))
    head = SubCenterHead(3, 4)
    optimizer = RowSGD(head.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="belongs to another model"):
        head.load_state_tensors({"weight": torch.zeros(6, 4)}, optimizer)
