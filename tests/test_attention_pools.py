"""Attention pooling: against torch's own attention, by hand, masked, ragged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from poolkit import PoolTypeError, PoolValueError, Segments  # noqa: E402
from poolkit.vision.attention import (  # noqa: E402
    PMA,
    AttentionPool2d,
    AttentiveStatsPool,
    GatedAttentionPool,
    MAPPool2d,
    SimPool2d,
)

MASKED: dict[str, Callable[[], Any]] = {
    "pma": lambda: PMA(8, seeds=3, heads=2),
    "map": lambda: MAPPool2d(8, heads=4),
    "abmil": lambda: GatedAttentionPool(8, 6),
    "abmil without gate": lambda: GatedAttentionPool(8, 6, gated=False),
    "attentive_stats": lambda: AttentiveStatsPool(8, 6),
}
ALL: dict[str, Callable[[], Any]] = {
    "attention": lambda: AttentionPool2d(8, input_size=(4, 5), heads=2, output_channels=6),
    "attention elsewhere": lambda: AttentionPool2d(8, input_size=3),
    "simpool": lambda: SimPool2d(8),
    "simpool 1.25": lambda: SimPool2d(8, gamma=1.25),
    **MASKED,
}


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype)


def tokens_of(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def separate(
    module: Any, query: torch.Tensor, tokens: torch.Tensor, heads: int, mask: Any = None
) -> torch.Tensor:
    """torch's own attention, with the weights of a module's three linear maps."""
    attention = torch.nn.MultiheadAttention(query.shape[-1], heads, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([module.query.weight, module.key_value.weight]))
        attention.in_proj_bias.copy_(torch.cat([module.query.bias, module.key_value.bias]))
        attention.out_proj.load_state_dict(module.project.state_dict())
    absent = None if mask is None else ~mask
    out: torch.Tensor = attention(query, tokens, tokens, absent, need_weights=False)[0]
    return out


# --- attention over positions --------------------------------------------------------------------


def test_attention_pool_is_that_of_clip() -> None:
    pool = AttentionPool2d(8, input_size=(3, 4), heads=2, output_channels=5).double()
    x = random(2, 8, 3, 4)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    right, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, 8, 2, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight, need_weights=False,
    )  # fmt: skip
    torch.testing.assert_close(pool(x), right[0])
    torch.testing.assert_close(pool(x[0]), right[0, 0])
    assert [name for name, _ in pool.named_parameters()] == [
        "positional_embedding", "k_proj.weight", "k_proj.bias", "q_proj.weight", "q_proj.bias",
        "v_proj.weight", "v_proj.bias", "c_proj.weight", "c_proj.bias",
    ]  # fmt: skip


def test_attention_pool_by_hand() -> None:
    # One channel, all maps the identity, no positions: x = (0, log 8), their mean is log 8 / 2 = m.
    # The scores are m * (m, 0, 2 m). Without a query (q = 0) all three weigh the same: the mean.
    pool = AttentionPool2d(1, input_size=(1, 2)).double()
    with torch.no_grad():
        pool.positional_embedding.zero_()
        for part in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            part.weight.fill_(1.0)
            part.bias.zero_()
    x = torch.tensor([[[[0.0, 8.0]]]]).double().log().clamp(min=0)
    m = x.mean()
    shares = torch.stack([m * m, 0 * m, 2 * m * m]).exp()
    right = (shares[0] * m + shares[2] * 2 * m) / shares.sum()
    torch.testing.assert_close(pool(x).flatten(), right[None])
    with torch.no_grad():
        pool.q_proj.weight.zero_()
    torch.testing.assert_close(pool(x).flatten(), m[None])


def test_positions_are_interpolated() -> None:
    pool = AttentionPool2d(4, input_size=3).double()
    with torch.no_grad():
        pool.positional_embedding[1:] = 0.25  # the same everywhere: so is what is between
    for size in ((3, 3), (5, 2), (1, 1), (9, 9)):
        found = pool._positions(*size)
        assert found.shape == (1 + size[0] * size[1], 4)
        torch.testing.assert_close(found[1:], torch.full_like(found[1:], 0.25))
        assert torch.equal(found[0], pool.positional_embedding[0])
    pool = AttentionPool2d(4, input_size=(3, 4)).double()
    grid = pool.positional_embedding[1:].detach().reshape(3, 4, 4).permute(2, 0, 1)
    right = torch.stack([F.interpolate(plane[None, None], (6, 5), mode="bicubic")[0, 0]
                         for plane in grid])  # fmt: skip
    found = pool._positions(6, 5)[1:].reshape(6, 5, 4).permute(2, 0, 1)
    torch.testing.assert_close(found, right)
    # The channels of a position stay together: a map without any content still tells places apart.
    assert pool(random(1, 4, 6, 5)).shape == (1, 4)


def test_pma_is_that_of_the_paper() -> None:
    pool = PMA(8, seeds=3, heads=2).double()
    x = random(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
    seeds = pool.seeds.expand(2, -1, -1)
    hidden = pool.norm(seeds + separate(pool, seeds, pool.encode(x), 2, mask))
    right = pool.norm_out(hidden + pool.feed_forward(hidden))
    torch.testing.assert_close(pool(x, mask), right)
    shuffled = pool(x[:, [3, 1, 4, 0, 2]], mask[:, [3, 1, 4, 0, 2]])
    torch.testing.assert_close(shuffled, right)
    maps = random(2, 8, 2, 3)
    torch.testing.assert_close(pool(maps), pool(tokens_of(maps)))


def test_map_is_a_query_and_an_mlp() -> None:
    pool = MAPPool2d(8, heads=4, hidden=12).double()
    x = random(2, 5, 8)
    mask = torch.tensor([[True] * 5, [False, True, True, False, False]])
    asked = separate(pool, pool.probe.expand(2, -1, -1), x, 4, mask)[:, 0]
    torch.testing.assert_close(pool(x, mask), asked + pool.mlp(pool.norm(asked)))
    maps, seen = random(2, 8, 2, 3), torch.tensor([[[True, False, True]] * 2] * 2)
    torch.testing.assert_close(pool(maps, seen), pool(tokens_of(maps), seen.flatten(1)))
    assert pool.mlp[0].out_features == 12
    assert MAPPool2d(128).heads == 2
    assert MAPPool2d(8).heads == 1
    assert MAPPool2d(200).heads == 2


# --- SimPool -------------------------------------------------------------------------------------


def test_simpool_is_that_of_the_paper() -> None:
    pool = SimPool2d(4, gamma=2.0, eps=1e-9).double()
    x = random(2, 4, 3, 3)
    for image, found in zip(tokens_of(x), pool(x), strict=True):
        mean = sum(image[i] for i in range(9)) / 9
        spread = image.var(1, unbiased=False, keepdim=True)
        normed = (image - image.mean(1, keepdim=True)) / (spread + 1e-6).sqrt()
        scores = (normed @ pool.key.weight.T) @ (pool.query.weight @ mean) / 4**0.5
        values = normed - normed.min()
        right = (scores.softmax(0)[:, None] * values**2).sum(0).sqrt()
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pool(tokens_of(x)), pool(x))


def test_simpool_between_mean_and_max() -> None:
    x = random(1, 4, 3, 3)
    normed = F.layer_norm(tokens_of(x)[0], (4,), eps=1e-6)
    values = normed - normed.min()
    pools = [SimPool2d(4, gamma=gamma, eps=1e-12).double() for gamma in (1.0, 2.0, 8.0, 300.0)]
    for pool in pools:
        torch.nn.init.zeros_(pool.query.weight)  # attention is the same everywhere
    found = [pool(x)[0] for pool in pools]
    torch.testing.assert_close(found[0], values.mean(0))
    torch.testing.assert_close(found[-1], values.amax(0), rtol=0.02, atol=0.0)
    assert all((a <= b).all() for a, b in pairwise(found))


def test_simpool_of_constants() -> None:
    x = torch.full((2, 8, 3, 3), 7.0, requires_grad=True)
    out = SimPool2d(8)(x)
    out.sum().backward()
    torch.testing.assert_close(out, torch.full_like(out, 1e-6))  # eps, as all are the minimum
    assert x.grad.isfinite().all()
    # One image does not depend on the others.
    x = random(3, 8, 3, 3, dtype=torch.float32)
    pool = SimPool2d(8)
    torch.testing.assert_close(pool(x)[:1], pool(x[:1]))


# --- bags ----------------------------------------------------------------------------------------


def test_gated_attention_by_hand() -> None:
    # V x = x, U x = 0, whose sigmoid is 1/2, and w = 2: the scores are tanh x. Instances 0 and t
    # with tanh t = 0.8 weigh as 1 to e^0.8 = 2.2255, and the mean is t * 2.2255 / 3.2255.
    pool = GatedAttentionPool(1, 1).double()
    with torch.no_grad():
        pool.attend.weight.fill_(1.0)
        pool.gate.weight.fill_(0.0)
        pool.weigh.weight.fill_(2.0)
    t = torch.tensor(0.8).double().atanh()
    bag = torch.stack([0 * t, t])[:, None]
    out, weights = pool(bag, return_weights=True)
    share = torch.tensor(0.8).double().exp()
    torch.testing.assert_close(weights, torch.stack([1 / (1 + share), share / (1 + share)]))
    torch.testing.assert_close(out, (t * share / (1 + share))[None])
    pool.gate = None
    with torch.no_grad():
        pool.weigh.weight.fill_(1.0)
    torch.testing.assert_close(pool(bag), out)


def test_attentive_stats_by_hand() -> None:
    # Scores of 0: the mean of 1, 5 is 3, the deviation 2. A weight of 0 for the score: the same.
    pool = AttentiveStatsPool(1, 4)
    torch.nn.init.zeros_(pool.weigh.weight)
    assert pool(torch.tensor([[[1.0], [5.0]]])).tolist() == [[3.0, 2.0]]
    assert pool(torch.tensor([[1.0], [5.0]])).tolist() == [3.0, 2.0]


LENGTHS = [3, 0, 1, 5]


def bags() -> dict[str, tuple[Any, Any]]:
    """The same bags in every form, NaN where nothing is."""
    parts = list(random(9, 8, dtype=torch.float32).split(LENGTHS))
    rows = torch.cat(parts)
    batch, left = (torch.full((4, 6, 8), torch.nan) for _ in range(2))
    mask, mask_left = (torch.zeros(4, 6, dtype=torch.bool) for _ in range(2))
    for i, part in enumerate(parts):
        n = len(part)
        batch[i, :n], mask[i, :n] = part, True
        left[i, 6 - n :], mask_left[i, 6 - n :] = part, True
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    order = torch.tensor([4, 0, 3, 5, 6, 1, 7, 2, 8])
    return {
        "offsets": (rows, Segments(offsets=[0, 3, 3, 4, 9])),
        "ids": (rows[order], Segments(ids=ids[order])),
        "lengths": (batch, Segments(lengths=LENGTHS)),
        "left": (left, Segments(mask=mask_left)),
        "nested": (torch.nested.nested_tensor(parts, layout=torch.jagged), None),
        "mask": (batch, mask),
        "mask left": (left, mask_left.int()),
    }


@pytest.mark.parametrize("name", ["abmil", "abmil without gate", "attentive_stats"])
def test_every_form_of_bags(name: str) -> None:
    pool = MASKED[name]()
    forms = bags()
    rows, _ = forms["offsets"]
    right = [pool(part) if len(part) else None for part in rows.split(LENGTHS)]
    for form, (x, segments) in forms.items():
        leaf = x.detach().requires_grad_()
        pool.zero_grad()
        found = pool(leaf, segments)
        assert found.shape[0] == 4
        for i in range(4):
            wanted = torch.zeros_like(found[i]) if right[i] is None else right[i]
            torch.testing.assert_close(found[i], wanted, rtol=1e-5, atol=1e-6, msg=form)
        found.square().sum().backward()
        for parameter in pool.parameters():
            assert parameter.grad.isfinite().all(), form
        if form not in ("nested", "ids"):
            absent = x.isnan().any(-1)
            assert leaf.grad.isfinite().all()
            assert (leaf.grad[absent] == 0).all()


def test_weights_of_instances() -> None:
    pool = GatedAttentionPool(8, 6)
    forms = bags()
    _, right = pool(*forms["offsets"], return_weights=True)
    for start, end in ((0, 3), (3, 4), (4, 9)):
        torch.testing.assert_close(right[start:end].sum(), torch.tensor(1.0))
    for form in ("lengths", "left", "mask", "mask left"):
        x, segments = forms[form]
        found = pool(x, segments, return_weights=True)[1]
        absent = x.isnan().any(-1)
        assert found.shape == (4, 6)
        assert (found[absent] == 0).all()
        torch.testing.assert_close(found[~absent], right)
    maps = random(2, 8, 3, 4, dtype=torch.float32)
    seen = torch.ones(2, 3, 4, dtype=torch.bool)
    seen[0] = False
    pooled, weights = pool(maps, seen, return_weights=True)
    assert pooled.shape == (2, 8)
    assert weights.shape == (2, 3, 4)
    assert (weights[0] == 0).all()
    torch.testing.assert_close((weights[1] * maps[1]).sum((1, 2)), pooled[1])


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
def test_padding_does_not_matter(name: str) -> None:
    pool = MASKED[name]()
    parts = [random(n, 8, seed=n, dtype=torch.float32) for n in (4, 7, 2)]
    right = torch.cat([pool(part[None]) for part in parts])
    for time, left, filled in [(7, False, 0.0), (20, False, torch.nan), (64, True, 3e38)]:
        x = torch.full((4, time, 8), filled)
        mask = torch.zeros(4, time, dtype=torch.bool)
        for i, part in enumerate(parts):
            at = slice(time - len(part), None) if left else slice(0, len(part))
            x[i, at], mask[i, at] = part, True
        x.requires_grad_()
        pool.zero_grad()
        found = pool(x, mask)
        torch.testing.assert_close(found[:3], right, rtol=2e-6, atol=1e-6)
        assert (found[3] == 0).all()  # nothing there
        found.sum().backward()
        assert (x.grad[~mask] == 0).all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in pool.parameters())


@pytest.mark.parametrize("name", ALL)
def test_nothing_at_all(name: str) -> None:
    pool = ALL[name]()
    right = pool(random(1, 8, 4, 5, dtype=torch.float32))
    assert pool(torch.zeros(0, 8, 4, 5)).shape == (0, *right.shape[1:])
    if name in MASKED:
        assert pool(torch.zeros(0, 3, 8)).shape == (0, *right.shape[1:])
        none = pool(torch.zeros(2, 0, 8))
        assert none.shape == (2, *right.shape[1:])
        assert (none == 0).all()
        x = torch.full((2, 3, 8), torch.nan, requires_grad=True)
        none = pool(x, torch.zeros(2, 3, dtype=torch.bool))
        none.sum().backward()
        assert (none == 0).all()
        assert (x.grad == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_gradients(name: str) -> None:
    pool = ALL[name]().double()
    names = [key for key, _ in pool.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in pool.parameters()]
    x = random(2, 8, 4, 5).requires_grad_()
    mask = torch.rand(2, 4, 5) < 0.7

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        given = (x, mask) if name in MASKED else (x,)
        return torch.func.functional_call(pool, dict(zip(names, values, strict=True)), given)

    torch.autograd.gradcheck(call, (x, *values), fast_mode=True)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(name: str, dtype: torch.dtype) -> None:
    pool = ALL[name]().to(dtype)
    x = random(2, 8, 4, 5, dtype=dtype)
    right = copy.deepcopy(pool).double()(x.double())
    found = pool(x)
    assert found.dtype == dtype
    # What is between two layers is rounded, too: a few steps of the dtype.
    step = 8 * torch.finfo(dtype).eps * right.abs().max()
    assert (found.double() - right).abs().max() <= step


@pytest.mark.parametrize("name", ALL)
def test_layouts_compilers_and_states(name: str) -> None:
    pool = ALL[name]()
    x = random(3, 8, 4, 5, dtype=torch.float32)
    given: tuple[Any, ...] = (x,)
    if name in MASKED:
        mask = torch.ones(3, 4, 5, dtype=torch.bool)
        mask[1, 2:] = False
        given = (x, mask)
    right = pool(*given)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(pool(last, *given[1:]), right)
    with torch.no_grad():
        torch.testing.assert_close(pool(*given), right)
    if name in ("attention elsewhere", "simpool", "map", "attentive_stats"):
        torch.compiler.reset()
        compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*given), right)
    with torch.autocast("cpu", torch.bfloat16):
        rough = pool(*given)
    torch.testing.assert_close(rough.float(), right, rtol=0.1, atol=0.1)
    other = ALL[name]()
    other.load_state_dict(pool.state_dict())
    assert torch.equal(other(*given), right)
    assert torch.equal(copy.deepcopy(pool)(*given), right)
    x[0, 0, 0, 0] = torch.nan
    assert pool(*given).flatten(1).isnan().any(1).tolist() == [True, False, False]


def test_errors() -> None:
    x = torch.zeros(2, 8, 3, 3)
    with pytest.raises(PoolValueError) as caught:
        MAPPool2d(4)(x)
    assert str(caught.value) == (
        "the module is for 4 channels, the input has 8, while pooling float32 (2, 8, 3, 3) by "
        "MAPPool2d. Make it with channels=8; channels come second in maps, last in tokens."
    )
    with pytest.raises(PoolTypeError, match=r"input is bfloat16, the module float32.*by SimPool2d"):
        SimPool2d(8)(x.bfloat16())
    with pytest.raises(PoolTypeError, match=r"input is float64, the module float32.*AttentionPool"):
        AttentionPool2d(8)(x.double())
    with pytest.raises(PoolTypeError, match=r"must be floating, got int64.*by PMA"):
        PMA(8)(x.long())
    with pytest.raises(PoolTypeError, match="a torch tensor was expected, got list"):
        GatedAttentionPool(8)([[1.0]])
    with pytest.raises(PoolValueError, match="8 channels do not make 3 heads"):
        AttentionPool2d(8, heads=3)
    with pytest.raises(PoolValueError, match=r"input_size has 2 axes, got \(1, 2, 3\)"):
        AttentionPool2d(8, input_size=(1, 2, 3))
    with pytest.raises(PoolValueError, match="seeds must be at least 1, got 0"):
        PMA(8, seeds=0)
    with pytest.raises(PoolValueError, match="gamma must be positive and finite, got 0"):
        SimPool2d(8, gamma=0)
    with pytest.raises(PoolValueError, match=r"an axis without elements.*AttentionPool2d"):
        AttentionPool2d(8)(x[:, :, :0])
    with pytest.raises(PoolValueError, match=r"no tokens to pool, .*by SimPool2d"):
        SimPool2d(8)(torch.zeros(2, 0, 8))
    with pytest.raises(PoolValueError, match=r"mask has shape \(2, 9\), the maps \(2, 8, 3, 3\)"):
        MAPPool2d(8)(x, torch.ones(2, 9, dtype=torch.bool))
    tokens = torch.zeros(2, 3, 8)
    with pytest.raises(
        PoolValueError, match=r"mask has shape \(2, 4\), what it is of \(2, 3\).*PMA"
    ):
        PMA(8)(tokens, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(PoolTypeError, match=r"a mask holds bools, or 0 and 1, got torch\.float32"):
        MAPPool2d(8)(tokens, torch.ones(2, 3))
    with pytest.raises(PoolTypeError, match="a mask is a tensor, got list"):
        MAPPool2d(8)(tokens, [[True]])  # type: ignore[arg-type]
    with pytest.raises(PoolValueError, match="maps have rank 4 and tokens rank 3, got rank 2"):
        PMA(8)(tokens[0])
    with pytest.raises(PoolValueError, match=r"instances have rank 2 to 4, got rank 1"):
        AttentiveStatsPool(8)(tokens[0, 0])
    with pytest.raises(PoolTypeError, match="one bag has no mask"):
        AttentiveStatsPool(8)(tokens[0], torch.ones(3, dtype=torch.bool))
    with pytest.raises(PoolTypeError, match="segments are of rows or tokens, not of maps"):
        GatedAttentionPool(8)(x, Segments(lengths=[9, 9]))
    with pytest.raises(PoolValueError, match=r"offsets end at 4, there are 3 rows.*by Gated"):
        GatedAttentionPool(8)(tokens[0], Segments(offsets=[0, 4]))
