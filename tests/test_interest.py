"""Histories pooled against a target, and by their age."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import poolkit

torch = pytest.importorskip("torch")

PoolValue, PoolType = poolkit.PoolValueError, poolkit.PoolTypeError


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(**options: Any) -> Any:
    torch.manual_seed(0)
    return poolkit.nn.TargetAttention(4, **options).double()


def test_decay_by_hand() -> None:
    # Ages 7, 0 and 14 of a half-life of 7: weights 1/2, 1, 1/4. (0.5 * 1 + 4 + 0.25 * 6) / 1.75.
    x, ages = torch.tensor([[[1.0], [4.0], [6.0]]]), torch.tensor([[7.0, 0.0, 14.0]])
    assert poolkit.decayed_mean(x, ages, 7.0).item() == pytest.approx(6 / 1.75)
    mask = torch.tensor([[True, True, False]])
    x[0, 2] = float("nan")  # padding may hold anything
    assert poolkit.decayed_mean(x, ages, 7.0, mask).item() == 3
    assert poolkit.decayed_mean(x, ages, 7.0, ~mask & False).item() == 0
    # A history that is a million half-lives old still counts, relative to its youngest event.
    assert poolkit.decayed_mean(x, ages + 7e6, 7.0, mask).item() == 3
    # Very long half-lives give the mean.
    assert poolkit.decayed_mean(x, ages, 1e12, mask).item() == pytest.approx(2.5)


def test_decay_gradients_and_half_types() -> None:
    x, ages = drawn(2, 5, 3).requires_grad_(), drawn(2, 5, seed=1).abs()
    half_life = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    assert torch.autograd.gradcheck(
        lambda x, h: poolkit.decayed_mean(x, ages, h, mask), (x, half_life)
    )
    want = poolkit.decayed_mean(x, ages, 2.0, mask)
    for dtype in (torch.bfloat16, torch.float16):
        found = poolkit.decayed_mean(x.to(dtype), ages, 2.0, mask)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["dice", "relu", "sigmoid"])
def test_against_the_definition(softmax: bool, activation: str) -> None:
    module = made(softmax=softmax, activation=activation, hidden=(6, 5)).eval()
    history, target = drawn(3, 5, 4), drawn(3, 4, seed=1)
    lengths = torch.tensor([5, 2, 0])
    found = module(history, target, lengths=lengths)
    for n, length in enumerate(lengths.tolist()):
        want = torch.zeros(4, dtype=torch.float64)
        if length:
            k, q = history[n, :length], target[n].expand(length, 4)
            weights = module.unit(torch.cat([q, k, q - k, q * k], 1))
            weights = weights.softmax(0) if softmax else weights
            want = (weights * k).sum(0)
        torch.testing.assert_close(found[n], want)


@pytest.mark.parametrize("softmax", [False, True])
def test_padding_does_not_matter(softmax: bool) -> None:
    module = made(softmax=softmax)  # training: statistics are of events alone
    history, target = drawn(3, 5, 4), drawn(3, 2, 4, seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    found = copy.deepcopy(module)(history, target, mask)
    assert found.shape == (3, 2, 4)
    assert found[1].abs().max() == 0
    spoilt = torch.where(mask[..., None], history, float("nan"))
    wider = torch.cat([torch.full((3, 2, 4), float("inf")).double(), spoilt], 1)
    wide_mask = torch.cat([torch.zeros(3, 2, dtype=torch.bool), mask], 1)
    torch.testing.assert_close(copy.deepcopy(module)(wider, target, wide_mask), found)
    module.eval()
    one = module(history, target[:, 0], mask)
    torch.testing.assert_close(one, module(history, target, mask)[:, 0])


def test_gradients() -> None:
    module = made(activation="sigmoid").eval()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    history, target = drawn(2, 3, 4).requires_grad_(), drawn(2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, t: module(h, t, mask), (history, target))
    module(history, target, mask).sum().backward()
    assert history.grad[0, 2].abs().max() == 0
    module = made(softmax=True)
    module(history, target, mask).sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("softmax", [False, True])
def test_half_types(softmax: bool, dtype: Any) -> None:
    module = made(softmax=softmax).eval()
    history, target = drawn(2, 9, 4), drawn(2, 4, seed=1)
    want = module(history, target, lengths=torch.tensor([9, 4]))
    found = module.to(dtype)(history.to(dtype), target.to(dtype), lengths=torch.tensor([9, 4]))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), want, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("softmax", [False, True])
def test_empty_batches_and_histories(softmax: bool) -> None:
    module = made(softmax=softmax)
    assert module(drawn(0, 3, 4), drawn(0, 4)).shape == (0, 4)
    assert module(drawn(2, 0, 4), drawn(2, 3, 4)).tolist() == [[[0.0] * 4] * 3] * 2
    assert (
        poolkit.decayed_mean(drawn(2, 3, 4), drawn(2, 3).abs(), 1.0, torch.zeros(2, 3).bool())
        .eq(0)
        .all()
    )


def test_without_a_mask_all_are_events() -> None:
    history, target = drawn(3, 5, 4), drawn(3, 2, 4, seed=1)
    found, masked = (made()(history, target, mask) for mask in (None, torch.ones(3, 5).bool()))
    torch.testing.assert_close(found, masked)


def test_compiles() -> None:
    module = made(softmax=True).eval()
    history, target, lengths = drawn(2, 3, 4), drawn(2, 5, 4, seed=1), torch.tensor([1, 3])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = compiled(history, target, lengths=lengths)
    torch.testing.assert_close(found, module(history, target, lengths=lengths))


def test_weights_of_zero_learn() -> None:
    """A last layer that begins at 0 gives all events the weight 0, and has a gradient."""
    module = made(activation="sigmoid")
    torch.nn.init.zeros_(module.unit[-1].weight)
    torch.nn.init.zeros_(module.unit[-1].bias)
    found = module(drawn(2, 3, 4), drawn(2, 4, seed=1))
    assert found.abs().max() == 0
    found.sum().backward()
    assert module.unit[-1].bias.grad.abs() > 0


def test_dice() -> None:
    """With alpha 1 it is the identity; with 0 and p = 1/2 half of it."""
    dice = poolkit.nn.Dice(2)
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    dice.alpha.data.fill_(1)
    torch.testing.assert_close(dice(x), x)
    dice.alpha.data.zero_()
    torch.testing.assert_close(dice(x), torch.sigmoid(x) * x)  # the batch has deviation 1
    assert dice(x[:1]).isfinite().all()


def test_errors() -> None:
    history, target = drawn(2, 3, 4), drawn(2, 4)
    module = made()
    with pytest.raises(PoolValue, match=r"a history must be \(N, time, 4\).*by TargetAttention"):
        module(history[..., :3], target)
    with pytest.raises(PoolValue, match=r"the target has shape \(4,\)"):
        module(history, target[0])
    with pytest.raises(PoolType, match="say the same"):
        module(history, target, torch.ones(2, 3), lengths=torch.ones(2))
    with pytest.raises(PoolValue, match=r"the mask has shape \(3, 2\)"):
        module(history, target, torch.ones(3, 2))
    with pytest.raises(PoolValue, match="activation must be dice, relu or sigmoid"):
        made(activation="tanh")
    with pytest.raises(PoolValue, match=r"ages have shape \(2, 2\)"):
        poolkit.decayed_mean(history, torch.ones(2, 2), 1.0)
    with pytest.raises(PoolValue, match="half_life must be above 0"):
        poolkit.decayed_mean(history, torch.ones(2, 3), 0.0)
    with pytest.raises(PoolType, match="must be floating"):
        poolkit.decayed_mean(torch.ones(2, 3), torch.ones(2, 3), 1.0)


def test_an_additive_mask_is_refused() -> None:
    """As a truth value it would be the opposite of what it means."""
    history, additive = torch.rand(2, 3, 4), torch.zeros(2, 3)
    with pytest.raises(PoolType, match="a mask holds bools, or 0 and 1"):
        poolkit.decayed_mean(history, torch.ones(2, 3), 1.0, additive)
    with pytest.raises(PoolType, match="a mask holds bools, or 0 and 1"):
        poolkit.nn.TargetAttention(4)(history, history[:, 0], additive)


def test_histories_of_no_time() -> None:
    assert (
        poolkit.decayed_mean(torch.rand(2, 0, 4), torch.ones(2, 0), 1.0).tolist() == [[0] * 4] * 2
    )
    for softmax in (False, True):
        pooled = poolkit.nn.TargetAttention(4, softmax=softmax)(
            torch.rand(2, 0, 4), torch.rand(2, 4)
        )
        assert pooled.tolist() == [[0] * 4] * 2
