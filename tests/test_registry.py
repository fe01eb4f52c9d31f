"""Every listed 2-D pooling: built by name, differentiated, saved, copied, in every dtype."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import poolkit

torch = pytest.importorskip("torch")

import poolkit.nn  # noqa: E402
from poolkit.vision.registry import POOLS  # noqa: E402
from poolkit.vision.table import markdown_page, markdown_table  # noqa: E402

NAMES = sorted(POOLS)


def made(name: str, channels: int = 4) -> Any:
    torch.manual_seed(0)
    options = {"kernel_size": 2, **dict(POOLS[name].options)}
    return poolkit.nn.create_pool2d(name, channels=channels, **options).eval()


def drawn(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def fixed(name: str) -> None:
    torch.manual_seed(3)  # fractional pooling draws its regions


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients(name: str) -> None:
    module, kind = made(name), POOLS[name].kind
    for height, width in ((12, 12), (13, 9)):
        x = drawn(2, 4, height, width).requires_grad_()
        y = module(x)
        if kind == "window":
            assert y.shape == (2, 4, height // 2, width // 2)
        elif kind == "global":
            assert y.flatten(1).shape[0] == 2
            assert all(n == 1 for n in y.shape[2:])
        y.sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    module = made(name, 2).double()
    x = (drawn(1, 2, 6, 5, dtype=torch.float64) + 0.1).requires_grad_()

    def run(x: Any) -> Any:
        fixed(name)
        return module(x)

    assert torch.autograd.gradcheck(run, (x,))


@pytest.mark.parametrize("name", NAMES)
def test_state_copies_and_empty_batches(name: str) -> None:
    module, x = made(name), drawn(2, 4, 12, 12)
    twin = made(name)
    twin.load_state_dict(module.state_dict())
    with torch.no_grad():
        fixed(name)
        want = module(x)
        for other in (twin, copy.deepcopy(module)):
            fixed(name)
            assert torch.equal(other(x), want)
        fixed(name)
        behind = module(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(behind, want, rtol=1e-5, atol=1e-6)
        assert module(x[:0]).shape == (0, *want.shape[1:])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(name: str, dtype: Any) -> None:
    if name == "fractional_max":
        pytest.skip("draws its regions in the input's dtype, so they differ")
    x = drawn(2, 4, 12, 12).to(dtype)
    with torch.no_grad():
        fixed(name)
        found = made(name).to(dtype)(x)
        fixed(name)
        want = made(name).to(dtype).double()(x.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), want, rtol=3e-2, atol=3e-2)


def test_names() -> None:
    assert poolkit.nn.pools2d() == NAMES
    assert {"max", "avg", "gem", "soft", "spp", "conv", "ordinal"} <= set(NAMES)
    assert set(poolkit.nn.pools2d("global")) < set(NAMES)


def test_errors() -> None:
    with pytest.raises(poolkit.PoolValueError, match=r"no pooling called 'maxx'.*Did you mean max"):
        poolkit.nn.create_pool2d("maxx")
    with pytest.raises(poolkit.PoolValueError, match="Known: "):
        poolkit.nn.create_pool2d("qqqqqqqq")
    with pytest.raises(poolkit.PoolTypeError, match=r"MaxPool2d. has no argument 'kernel'"):
        poolkit.nn.create_pool2d("max", kernel=2)
    with pytest.raises(poolkit.PoolTypeError, match=r"max .MaxPool2d. needs kernel_size"):
        poolkit.nn.create_pool2d("max", channels=3)
    with pytest.raises(poolkit.PoolValueError, match="Did you mean max"):
        poolkit.nn.create_pool2d("MaxPool2d")
    with pytest.raises(poolkit.PoolTypeError, match="has no argument 'padding'"):
        poolkit.nn.create_pool2d("lp", norm_type=2, kernel_size=2, padding=1)
    with pytest.raises(poolkit.PoolValueError, match="there is no kind 'windows'"):
        poolkit.nn.pools2d("windows")
    with pytest.raises(poolkit.PoolTypeError, match="needs channels"):
        poolkit.nn.create_pool2d("conv", kernel_size=2)


def test_table_has_a_full_row_for_each() -> None:
    rows = [
        line
        for kind in ("window", "global", "map")
        for line in markdown_table(kind).splitlines()[2:]
    ]
    assert len(rows) == len(NAMES)
    for line in rows:
        cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 7
        assert all(cells), line


def test_page_in_the_docs_is_fresh() -> None:
    page = Path(__file__).parent.parent / "docs" / "pools.md"
    fresh = page.read_text(encoding="utf-8") == markdown_page()
    assert fresh, "run python -m poolkit.vision.table > docs/pools.md"
