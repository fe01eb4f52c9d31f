"""The library in a process: what importing it loads, forks, threads, one OpenMP, large arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import poolkit
from poolkit.windows import Global, Sliding

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, forks")


def run(code: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter. The timeout is there for what would hang."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def printed(code: str, **environment: str) -> str:
    ran = run(code, **environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


needs_torch = pytest.mark.skipif(
    run("import torch").returncode != 0, reason="torch is not installed"
)

# --- importing -----------------------------------------------------------------------------------

NEW_MODULES = """
import sys
import numpy
before = set(sys.modules)
{action}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(",".join(sorted(names - set(sys.stdlib_module_names))))
"""


def loaded_by(action: str) -> set[str]:
    """Packages beyond the standard library and NumPy that an action imports."""
    return set(printed(NEW_MODULES.format(action=action)).split(",")) - {"", "numpy"}


def test_importing_loads_numpy_alone() -> None:
    assert loaded_by("import poolkit") == {"poolkit"}


def test_events_of_numpy_arrays_load_numpy_alone() -> None:
    action = (
        "from poolkit.events import Column, WindowPool\n"
        "spec = WindowPool('user', 'ts', Column('x'), ['1d'], ['mean', 'median'])\n"
        "times = numpy.array(['2024-01-01', '2024-01-02'], 'datetime64[s]')\n"
        "table = {'user': ['a', 'a'], 'ts': times, 'x': [1.0, 2.0]}\n"
        "spec.asof(table, table)\n"
        "spec.state(spec.state().to_bytes()).update(table)"
    )
    assert loaded_by(action) == {"poolkit"}


def test_pooling_numpy_arrays_loads_numpy_alone() -> None:
    action = (
        "import poolkit\n"
        "poolkit.max_pool2d(numpy.ones((1, 1, 4, 4)), 2)\n"
        "poolkit.pool(numpy.ones((1, 1, 4, 4)), 'Sliding(2)', 'median')\n"
        "poolkit.explain(numpy.ones((1, 1, 4, 4)), poolkit.Global())"
    )
    assert loaded_by(action) == {"poolkit"}


def test_the_import_check_can_fail() -> None:
    assert "hypothesis" in loaded_by("import poolkit, hypothesis")


@needs_torch
def test_what_needs_torch_is_loaded_when_asked_for() -> None:
    assert "torch" in loaded_by("import poolkit\npoolkit.nn")


HIDDEN = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Hide())
import numpy, poolkit
"""


def test_without_torch_numpy_arrays_are_pooled() -> None:
    got = printed(
        HIDDEN
        + "x = numpy.arange(16.0).reshape(1, 1, 4, 4)\n"
        + "print(poolkit.max_pool2d(x, 2).tolist(), poolkit.pool(x, 'Global()', 'std').shape)"
    )
    assert got == "[[[[5.0, 7.0], [13.0, 15.0]]]] (1, 1, 1, 1)"


@pytest.mark.parametrize("part", ["nn", "inspect", "optimize", "export_onnx"])
def test_without_torch_the_message_names_the_extra(part: str) -> None:
    got = printed(
        HIDDEN
        + f"try:\n    poolkit.{part}\n"
        + "except poolkit.MissingExtraError as error:\n    print(error)\n"
    )
    assert got.startswith("this part of poolkit needs the package 'torch', which is not installed.")
    assert got.endswith("pip install 'poolkit[torch]'.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'poolkit' has no attribute 'max_pool9d'"):
        poolkit.max_pool9d  # noqa: B018


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "threads"), [("3", "3"), ("3,2", "3"), ("0", None), ("many", None), ("", None)]
)
def test_the_number_of_threads_comes_from_the_environment(
    setting: str, threads: str | None
) -> None:
    got = printed("import poolkit; print(poolkit.num_threads())", OMP_NUM_THREADS=setting)
    if threads is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        threads = str(len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count())
    assert got == threads


@pytest.mark.usefixtures("keep_settings")
def test_the_number_of_threads_can_be_set() -> None:
    poolkit.set_num_threads(3)
    assert poolkit.num_threads() == poolkit.info()["threads"] == 3


@pytest.mark.usefixtures("keep_settings")
@pytest.mark.parametrize("reduction", ["max", "sum", "mean", "Lp(3)"])
def test_threads_do_not_change_bits(reduction: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 130, 140)).astype(np.float32)
    for window in (Sliding(3, stride=2, padding=1), Sliding(40, stride=7), Global()):
        results = set()
        for threads in (1, 2, 3, 16):
            poolkit.set_num_threads(threads)
            results.add(poolkit.pool(x, window, reduction).tobytes())
            poolkit.pool(x[:1, :1], window, reduction)
        assert len(results) == 1


@pytest.mark.usefixtures("keep_settings")
def test_python_threads_pool_at_once() -> None:
    """Calls release the GIL and share no memory; plans are shared."""
    poolkit.set_num_threads(2)
    rng = np.random.default_rng(0)
    inputs = [
        rng.integers(-9, 9, (2, 4, 60 + n % 5, 70)).astype(("float32", "int8", "float64")[n % 3])
        for n in range(24)
    ]
    work = [
        (x, window, reduction)
        for x in inputs
        for window in (Sliding(3, stride=2, padding=1), Sliding(9, stride=1), Global())
        for reduction in ("max", "mean", "median")
    ]
    work = [w for w in work if w[2] != "median" or w[0].shape[2] == 60]
    want = [poolkit.pool(*w) for w in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(lambda w: poolkit.pool(*w), work))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


# --- forks ---------------------------------------------------------------------------------------

FORKED = """
import os, signal
import numpy as np
import poolkit
{imports}
poolkit.set_num_threads(2)
{prepare}
x = np.random.default_rng(0).random((4, 8, 128, 128)).astype(np.float32)
window = poolkit.Sliding(3, stride=2, padding=1)

def work():
    return [poolkit.pool({given}, window, name) for name in ("max", "sum", "mean")]

want = [numpy_of(result) for result in work()]  # a parallel region of two threads
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends it if it hangs
    for got, right in zip(work(), want):
        if not (numpy_of(got) == right).all():
            os._exit(3)
    os._exit(0 if poolkit.num_threads() == 1 else 4)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), poolkit.num_threads())
"""


@LINUX
def test_a_forked_child_pools_numpy_arrays() -> None:
    """The threads of the parent do not exist in it; waiting for them would take for ever."""
    code = FORKED.format(imports="numpy_of = np.asarray", prepare="", given="x")
    assert printed(code) == "0 2"


@LINUX
@needs_torch
def test_a_forked_child_pools_torch_tensors() -> None:
    code = FORKED.format(
        imports="import torch\nnumpy_of = torch.Tensor.numpy",
        prepare="torch.set_num_threads(2)",
        given="torch.from_numpy(x)",
    )
    assert printed(code) == "0 2"


@LINUX
@needs_torch
def test_data_loader_workers_pool() -> None:
    code = """
    import warnings
    import numpy as np, torch, poolkit
    poolkit.set_num_threads(2)
    torch.set_num_threads(2)
    x = np.random.default_rng(0).random((4, 8, 128, 128)).astype(np.float32)
    want = poolkit.pool(x, poolkit.Sliding(2), "max")
    poolkit.pool(torch.from_numpy(x), poolkit.Sliding(2), "max")

    class Pooled(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            by_torch = poolkit.pool(torch.from_numpy(x[i]), poolkit.Sliding((2, 2)), "max")
            by_numpy = poolkit.pool(x[i], poolkit.Sliding((2, 2)), "max")
            return torch.stack([by_torch, torch.from_numpy(by_numpy)])

    loader = torch.utils.data.DataLoader(
        Pooled(), batch_size=2, num_workers=2, multiprocessing_context="fork"
    )
    got = torch.cat(list(loader)).numpy()
    print((got[:, 0] == want).all(), (got[:, 1] == want).all())
    """
    assert printed(code) == "True True"


# --- one OpenMP ----------------------------------------------------------------------------------


@LINUX
@needs_torch
@pytest.mark.parametrize("order", ["poolkit, torch", "torch, poolkit"])
def test_one_openmp_runtime(order: str) -> None:
    """Two pools of threads would fight for the cores."""
    code = f"""
    import numpy as np
    import {order}
    x = np.random.default_rng(0).random((4, 8, 256, 256)).astype(np.float32)
    poolkit.set_num_threads(2)
    torch.set_num_threads(2)
    poolkit.pool(x, poolkit.Sliding(2), "max")
    poolkit.pool(torch.from_numpy(x), poolkit.Sliding(2), "max")
    torch.nn.functional.avg_pool2d(torch.from_numpy(x), 2)
    with open("/proc/self/maps") as maps:
        files = {{line.split()[-1] for line in maps if "/" in line}}
    print(len([f for f in files if "libgomp" in f or "libiomp" in f or "libomp" in f]))
    """
    assert printed(code) == "1"


# --- large ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    """Values and positions at the far end, where 32 bits would have wrapped (3 GB)."""
    side = 46400
    x = np.zeros((1, 1, side, side), dtype=np.int8)
    assert x.size > 2**31
    x[0, 0, -1, -1] = 7
    x[0, 0, 17, 29] = -3
    window = Sliding(64)
    got, at = poolkit.pool_with_indices(x, window, "max")
    assert got.shape == (1, 1, 725, 725)
    assert got[0, 0, -1, -1] == 7
    assert at[0, 0, -1, -1] == side * side - 1 > 2**31
    assert got.sum() == 7
    lowest, at = poolkit.pool_with_indices(x, window, "min")
    assert lowest[0, 0, 0, 0] == -3
    assert at[0, 0, 0, 0] == 17 * side + 29
    assert poolkit.pool(x, window, "sum")[0, 0, -1, -1] == 7
    behind = x.reshape(1, side // 4, side, 4)
    got = poolkit.pool(behind, Sliding(16), "max", ndim=2, channels_last=True)
    assert got[0, -1, -1].tolist() == [0, 0, 0, 7]
