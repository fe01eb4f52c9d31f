"""One instruction set for a whole run: poolkit's, and the peers' where they let it be chosen.

Imports no peer: their libraries read the environment when they are loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from poolkit import kernels

# For a processor of AVX2, or of neither, what torch, torch.compile (as torch), oneDNN (also the
# one inside OpenVINO) and XLA may use. ONNX Runtime uses all that the processor has.
SWITCHES = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
    },
}


@contextmanager
def limited_to(isa: str | None) -> Iterator[dict[str, str]]:
    """Poolkit's kernels on `isa`, or on POOLKIT_ISA where it is None; yields what peers were told.

    A variable that is already set stays as it is, and where torch is loaded already nothing is
    told. Raises PoolValueError for an instruction set that is not there.
    """
    isa = isa or os.environ.get("POOLKIT_ISA")
    if not isa:
        yield {}
        return
    before = kernels.info()["isa"]
    kernels.use_isa(isa)
    late = "torch" in sys.modules
    told = {} if late else {k: v for k, v in SWITCHES.get(isa, {}).items() if k not in os.environ}
    os.environ.update(told)
    try:
        yield told
    finally:
        kernels.use_isa(before)
        for name in told:
            del os.environ[name]
