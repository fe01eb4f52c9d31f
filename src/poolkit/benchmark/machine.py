"""What a timing depends on: the machine, the system and the versions of all that ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

import poolkit

from .peers import Peer


def describe_machine(limits: Mapping[str, str]) -> dict[str, object]:
    """Processor, cores, instruction sets, system, and how busy the machine was at the start.

    limits: the variables by which the peers were kept to an instruction set.
    """
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "poolkit_isa": poolkit.info()["isa"],
        "peers_limited_by": dict(limits),
        "last_cache": _last_cache(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peer_versions(peers: Sequence[type[Peer]]) -> dict[str, str]:
    return {peer.name: "missing" if peer.missing() else peer.version() for peer in peers}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _last_cache() -> str | None:
    """The size of the last cache, as Linux states it: 32768K."""
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return sizes[-1].read_text(encoding="ascii").strip() if sizes else None
