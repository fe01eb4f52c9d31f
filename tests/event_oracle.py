"""The oracle of event windows: plain Python over lists, sharing no code with what it checks.

An event is a dict of key, time, tie, known, value (a list), order and weight; a query one of key,
time and target.
"""

from __future__ import annotations

import math
from typing import Any


def visible(events: list[dict], query: dict, window: int | None) -> list[dict]:
    """What a query sees, in order: t - W <= ts < t, and known by t."""
    seen = []
    for event in events:
        if event["key"] != query["key"] or not event["time"] < query["time"]:
            continue
        if window is not None and event["time"] < query["time"] - window:
            continue
        if event["known"] is not None and event["known"] > query["time"]:
            continue
        seen.append(event)
    return sorted(seen, key=lambda e: (e["time"], e["tie"], e["order"], e["weight"]))


def reduced(seen: list[dict], query: dict, reduction: str, parameter: Any = None) -> Any:
    """The answer for the events seen: a list of numbers, or a count. None for no events."""
    if reduction == "count":
        return len(seen)
    if reduction == "last":
        seen, reduction = seen[-parameter:], "mean"
    if not seen:
        return None
    weights = [e["weight"] for e in seen]
    heavy = [e for e in seen if e["weight"]] or seen[-1:]  # what weighs nothing decides nothing
    columns = list(zip(*[e["value"] for e in seen], strict=True))
    if reduction == "decay":
        ages = [max(heavy[-1]["time"] - e["time"], 0) for e in seen]
        weights = [w * 2.0 ** -(age / parameter) for w, age in zip(weights, ages, strict=True)]
    if reduction == "attend":
        target = query["target"]
        scores = [parameter * math.fsum(map(math.prod, zip(target, e["value"], strict=True)))
                  for e in seen]  # fmt: skip
        most = max((s for w, s in zip(weights, scores, strict=True) if w), default=0.0)
        weights = [w and w * math.exp(s - most) for w, s in zip(weights, scores, strict=True)]
    total = math.fsum(weights)
    sums = [math.fsum(w * x for w, x in zip(weights, xs, strict=True)) for xs in columns]
    if reduction == "sum":
        return sums
    if reduction in ("max", "min"):
        pick = max if reduction == "max" else min
        return [pick(w * x for w, x in zip(weights, xs, strict=True)) for xs in columns]
    means = [s / total if total else 0.0 for s in sums]
    if reduction != "std":
        return means
    squares = [math.fsum(w * (x - m) ** 2 for w, x in zip(weights, xs, strict=True))
               for xs, m in zip(columns, means, strict=True)]  # fmt: skip
    return [math.sqrt(s / total) if total else 0.0 for s in squares]
