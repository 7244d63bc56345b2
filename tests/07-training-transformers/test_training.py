"""The training step: accumulated = one big batch, sharded = single process, nothing silent."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from lr_schedules import linear
from token_dataset import PackedBatch, document_ids, document_positions
from training import IGNORE_INDEX, TrainingStep, all_reduce_gradients, next_token_loss
from training_testing import (
    ROWS,
    SEQ,
    batch_of,
    config_of,
    gradients,
    largest_difference,
    plain_gradients,
    step_of,
    tiny_gpt,
)

# --- accumulation -----------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 6, 12])
def test_accumulated_is_one_big_batch(micro_batch_size):
    model, batch = tiny_gpt(), batch_of(1)
    wanted, wanted_loss = plain_gradients(model, batch)
    step = step_of(model, micro_batch_size=micro_batch_size)
    assert step.config.accumulation == ROWS // micro_batch_size
    metrics = step(batch)
    assert largest_difference(gradients(model), wanted) < 1e-6
    assert float(metrics["loss"]) == pytest.approx(wanted_loss, abs=1e-6)
    assert float(metrics["tokens"]) == (batch[1] != IGNORE_INDEX).sum().item()
    norm = torch.cat([g.flatten() for g in wanted.values()]).norm().item()
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_the_mean_of_means_would_be_seen():
    """The tolerance above is at least 100 times below what the classic bug does here."""
    model, batch = tiny_gpt(), batch_of(1)
    wanted, _ = plain_gradients(model, batch)
    wrong = {name: torch.zeros_like(g) for name, g in wanted.items()}
    for start in range(0, ROWS, 3):
        rows = slice(start, start + 3)
        for name, gradient in plain_gradients(model, (batch[0][rows], batch[1][rows]))[0].items():
            wrong[name] += gradient / 4
    assert largest_difference(wrong, wanted) > 1e-4


def test_several_steps_with_a_real_optimizer_are_the_plain_loop():
    # Without biases: a key's has no gradient but rounding, which AdamW blows up to full steps.
    ours, theirs = tiny_gpt(bias=False), tiny_gpt(bias=False)
    schedule = linear(10, warmup_steps=3)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.01)
    step = TrainingStep(ours, optimizer, schedule, config_of(micro_batch_size=4, clip_norm=0.3))
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for number in range(6):
        batch = batch_of(number)
        metrics = step(batch)
        for group in reference.param_groups:
            group["lr"] = 0.01 * schedule(number)
        reference.zero_grad()
        logits = theirs(batch[0]).flatten(0, 1)
        F.cross_entropy(logits, batch[1].flatten(), ignore_index=IGNORE_INDEX).backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        reference.step()
        assert metrics["lr"] == pytest.approx(0.01 * schedule(number), abs=1e-12)
        assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-4)
    assert step.step == 6
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [1e-3, 0.37, 1e3])
def test_clipping_is_that_of_torch(clip_norm):
    model, batch = tiny_gpt(), batch_of(2)
    reference = copy.deepcopy(model)
    F.cross_entropy(
        reference(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=IGNORE_INDEX
    ).backward()
    norm = nn.utils.clip_grad_norm_(reference.parameters(), clip_norm)
    metrics = step_of(model, micro_batch_size=6, clip_norm=clip_norm)(batch)
    scale = min(1.0, clip_norm / norm.item())
    assert largest_difference(gradients(model), gradients(reference)) < 1e-6 * scale
    assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=1e-5)


def test_each_group_follows_the_schedule_from_its_own_rate():
    model = tiny_gpt()
    first, rest = next(model.parameters()), list(model.parameters())[1:]
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": rest, "lr": 0.02}])
    step = TrainingStep(model, optimizer, linear(4), config_of())
    seen = []
    for number in range(4):
        step(batch_of(number))
        seen.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [pytest.approx([0.5 * left, 0.02 * left]) for left in (1, 0.75, 0.5, 0.25)]


def test_packed_documents_do_not_see_each_other():
    model = tiny_gpt().eval()
    ids, targets = batch_of(3, ignored=False)
    ids[:, 4] = 0  # the mark that begins a second document
    documents = document_ids(ids, eos_id=0)
    batch = PackedBatch(ids, targets, documents, document_positions(documents))
    nats, count = next_token_loss(model, batch)
    alone = 0.0
    for row in range(ROWS):
        pieces = [at for at in range(SEQ) if at == 0 or ids[row, at] == 0] + [SEQ]
        for start, stop in itertools.pairwise(pieces):
            part = ids[row : row + 1, start:stop], targets[row : row + 1, start:stop]
            alone += next_token_loss(model, part)[0].item()
    assert nats.item() == pytest.approx(alone, rel=1e-6)
    assert count.item() == ROWS * SEQ
    assert abs(next_token_loss(model, (ids, targets))[0].item() - alone) > 1e-3 * alone / SEQ
    # And through the step, cut into micro-batches, as a NamedTuple still.
    metrics = step_of(model, micro_batch_size=4)(batch)
    assert float(metrics["loss"]) == pytest.approx(alone / (ROWS * SEQ), rel=1e-6)


def test_a_step_can_train_on_another_loss():
    def squares(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(), torch.tensor(float(len(batch[0])))

    model = nn.Linear(2, 1)
    batch = torch.randn(ROWS, 2), torch.randn(ROWS, 1)
    wanted = ((model(batch[0]) - batch[1]) ** 2).sum() / ROWS
    wanted_gradient = torch.autograd.grad(wanted, model.weight)[0]
    metrics = step_of(model, loss=squares, micro_batch_size=3)(batch)
    assert float(metrics["loss"]) == pytest.approx(wanted.item(), rel=1e-6)
    assert float(metrics["tokens"]) == ROWS
    assert torch.allclose(gradients(model)["weight"], wanted_gradient, atol=1e-6)


# --- several processes ------------------------------------------------------------------------


def _one_rank(rank, world_size, folder, steps):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    model = tiny_gpt()
    step = step_of(
        model,
        micro_batch_size=3,
        world_size=world_size,
        clip_norm=0.5,
        reduce=all_reduce_gradients,
    )
    share = ROWS // world_size
    losses = []
    for number in range(steps):
        rows = slice(rank * share, (rank + 1) * share)
        metrics = step(tuple(tensor[rows] for tensor in batch_of(number)))
        losses.append([float(metrics[name]) for name in ("loss", "grad_norm", "tokens")])
    torch.save((losses, model.state_dict()), f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    """Ranks whose shares hold 81 and 32 targets: weighting the ranks alike would be seen."""
    steps = 3
    single = tiny_gpt()
    step = step_of(single, micro_batch_size=6, clip_norm=0.5)
    losses = []
    for number in range(steps):
        metrics = step(batch_of(number))
        losses.append([float(metrics[name]) for name in ("loss", "grad_norm", "tokens")])
    mp.spawn(_one_rank, (2, tmp_path, steps), nprocs=2)
    (losses_0, weights_0), (losses_1, weights_1) = (
        torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert losses_0 == losses_1
    assert torch.allclose(torch.tensor(losses_0), torch.tensor(losses), atol=1e-5)
    for name, weight in single.state_dict().items():
        assert torch.equal(weights_0[name], weights_1[name]), "the ranks have drifted apart"
        assert torch.allclose(weights_0[name], weight, atol=1e-6), name


def test_reducing_needs_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        all_reduce_gradients(tiny_gpt().parameters())


def test_gradients_that_are_missing_or_of_another_type_are_reduced_too(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        used, unused = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))
        frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        half = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
        used.grad, half.grad = torch.arange(6.0).view(3, 2).T.contiguous().T, torch.ones_like(half)
        totals = torch.tensor([3.0, 4.0])
        all_reduce_gradients([used, unused, frozen, half], totals)
        assert used.grad.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert unused.grad is not None
        assert unused.grad.tolist() == [0, 0, 0, 0]
        assert frozen.grad is None
        assert half.grad.tolist() == [1] * 5
        assert totals.tolist() == [3, 4]
    finally:
        dist.destroy_process_group()
