"""Whether the optimised face detector holds up as a service: many threads, any batch, bad images.

P-Net, R-Net and O-Net are optimised and exported into a temporary folder. A process of its own,
whose address space is limited, loads the programs once. Then threads ask it for faces, each as fast
as it is answered: one to eight images a request, cut out of real photographs in many sizes; every
eighth request has an image that is bad. Requests and their answers are fixed before, by one thread
that asks alone, and every answer is compared with that one, bit for bit.

Resident memory is read once a second behind a warm-up, which does not count as time: it lasts until
every thread has asked every request, and the memory has then stood still for some readings, or
the time for it is over. What is reported of it is how far the highest and the lowest reading are
from the first, and the middle of the last tenth of the readings from that of the first. The exit
status is 1 if an answer differs, an error is not the one expected, a thread dies, or any of these
is beyond the limit.

    python benchmarks/serving.py
    python benchmarks/serving.py --seconds 60 --threads 2
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch

import poolkit
from poolkit.errors import PoolError
from poolkit.examples.faces import photograph
from poolkit.examples.service import FaceService, export_networks

PHOTOGRAPHS = ("astronaut", "astronaut", "astronaut", "chelsea", "coffee")  # one has a face
SIZES = (13, 97, 160, 200, 256, 311, 384, 448)
REQUESTS, MOST_IMAGES, BAD_EVERY = 24, 8, 8
STEADY, STILL = 5, 0.002
"""Readings in a row, and the share by which they may differ, once the service is warm."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc keeps what was freed, as services set it: otherwise the resident memory goes up and down
with every request. Each thread frees into memory of its own, which soon has seen every request."""


def requests() -> list[list[np.ndarray]]:
    """Batches of one to eight images, cut and resized from photographs."""
    draw = random.Random(0)
    photographs = [photograph(name) for name in PHOTOGRAPHS]
    made = []
    for number in range(REQUESTS):
        images = []
        for _ in range(1 + number % MOST_IMAGES):
            pixels = draw.choice(photographs)
            _, height, width = pixels.shape
            side = draw.randint(min(height, width) // 2, min(height, width))
            top, left = draw.randint(0, (height - side) // 4), draw.randint(0, (width - side) // 2)
            cut = pixels[None, :, top : top + side, left : left + side].float()
            size = draw.choice(SIZES), draw.choice(SIZES)
            resized = torch.nn.functional.interpolate(cut, size, mode="area")[0]
            image = resized.round().byte().permute(1, 2, 0).numpy()
            images.append(image if draw.random() < 0.5 else image.astype(np.float32) / 255)
        made.append(images)
    return made


def bad_images() -> dict[str, tuple[Any, str]]:
    """By kind an image that must be refused, and what the message must say."""
    fine = np.full((60, 80, 3), 0.5, np.float32)
    nan, infinite = fine.copy(), fine.copy()
    nan[30, 40, 1], infinite[0, 0, 0] = np.nan, np.inf
    return {
        "one channel": (fine[:, :, :1], "(height, width, 3) is needed"),
        "four channels": (np.zeros((60, 80, 4), np.uint8), "(height, width, 3) is needed"),
        "no channels": (fine[:, :, 0], "(height, width, 3) is needed"),
        "channels first": (fine.transpose(2, 0, 1), "(height, width, 3) is needed"),
        "empty": (fine[:0], "is empty"),
        "NaN": (nan, "NaN or infinite"),
        "infinite": (infinite, "NaN or infinite"),
        "not in 0..1": (fine * 255, "must lie in 0..1"),
        # Of no memory: its rows are one and the same.
        "huge": (np.broadcast_to(np.uint8(7), (100_000, 90_000, 3)), "more than 2048 along a side"),
        "integers": (np.zeros((60, 80, 3), np.int64), "dtype int64"),
        "text": (np.full((60, 80, 3), "x"), "dtype <U1"),
        "no array": ([[0, 0, 0]], "not a NumPy array"),
        "nothing": (None, "not a NumPy array"),
    }


@dataclass
class Tally:
    """What one thread has seen."""

    images: int = 0
    asked: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    difference: float = 0.0


def difference(one: Any, other: Any) -> float:
    """The largest difference of two answers; infinite if they are not of the same faces."""
    counts = [[len(faces) for faces in answer] for answer in (one, other)]
    if counts[0] != counts[1]:
        return float("inf")
    pairs = zip(numbers(one), numbers(other), strict=True)
    return max((abs(a - b) for a, b in pairs), default=0.0)


def numbers(answer: Any) -> list[float]:
    return [
        number
        for faces in answer
        for face in faces
        for number in (*face.box, *sum(face.landmarks, ()), face.probability)
    ]


def ask(
    service: FaceService, right: list[Any], until: Callable[[], bool], seed: int, tally: Tally
) -> None:
    """Ask again and again; one thread's work."""
    torch.set_num_threads(1)
    draw, asked, bad = random.Random(seed), requests(), bad_images()
    first = list(range(len(asked)))
    draw.shuffle(first)
    while not until():
        spoilt = draw.randrange(BAD_EVERY) == 0
        which = draw.randrange(len(asked)) if spoilt or not first else first.pop()
        if spoilt:
            kind = draw.choice(list(bad))
            image, expected = bad[kind]
            batch: list[Any] = list(asked[which])
            place = draw.randint(0, len(batch))
            batch.insert(place, image)
            try:
                service(batch)
                tally.errors.append(f"{kind}: was not refused")
            except PoolError as error:
                if f"image {place} " not in str(error) or expected not in str(error):
                    tally.errors.append(f"{kind}: {error}")
                tally.refused[kind] += 1
            except Exception as error:
                tally.errors.append(f"{kind}: {type(error).__name__}: {error}")
            continue
        start = perf_counter()
        try:
            answer = service(asked[which])
        except Exception as error:
            tally.errors.append(f"request {which}: {type(error).__name__}: {error}")
            continue
        tally.seconds.append(perf_counter() - start)
        tally.asked.add(which)
        tally.images += len(asked[which])
        tally.difference = max(tally.difference, difference(answer, right[which]))


def resident() -> float:
    """MiB, from Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def serve(
    folder: Path, seconds: float, threads: int, memory: int, drift: float, most: float
) -> int:
    """The measured process."""
    resource.setrlimit(resource.RLIMIT_AS, (memory * 2**20, memory * 2**20))
    torch.set_num_threads(1)
    service = FaceService(folder)
    right = [service(batch) for batch in requests()]
    faces = sum(len(found) for answer in right for found in answer)
    tallies = [Tally() for _ in range(threads)]
    done = threading.Event()
    workers = [
        threading.Thread(target=ask, args=(service, right, done.is_set, n, tally))
        for n, tally in enumerate(tallies)
    ]
    start = perf_counter()
    for worker in workers:
        worker.start()
    every = min(1.0, seconds / 20)
    try:
        warmed = warm_up(tallies, every, most)
        readings = [resident()]
        # While all threads are there: one that ends frees its memory.
        while perf_counter() - start < warmed + seconds:
            sleep(every)
            readings.append(resident())
    finally:
        done.set()
        for worker in workers:
            worker.join()
    print(f"warm-up         {warmed:.1f} s")
    return report(tallies, readings, faces, memory, drift, perf_counter() - start)


def warm_up(tallies: list[Tally], every: float, most: float) -> float:
    """Wait until the service is warm, for ``most`` seconds at most; returns those that it took."""
    start, last = perf_counter(), [resident()]
    while perf_counter() - start < most and not is_warm(tallies, last):
        sleep(every)
        last.append(resident())
    return perf_counter() - start


def is_warm(tallies: list[Tally], readings: list[float]) -> bool:
    """Whether every thread has asked everything, and the last readings are as good as one."""
    last = readings[-STEADY:]
    asked = all(len(tally.asked) == REQUESTS for tally in tallies)
    return asked and len(last) == STEADY and max(last) <= (1 + STILL) * min(last)


def parts_of(readings: list[float]) -> list[list[float]]:
    """Ten parts of the readings in their order, or as many as there are readings."""
    count = min(10, len(readings))
    edges = [len(readings) * n // count for n in range(count + 1)]
    return [readings[low:high] for low, high in pairwise(edges)]


def report(
    tallies: list[Tally],
    readings: list[float],
    faces: int,
    memory: int,
    drift: float,
    seconds: float,
) -> int:
    times = sorted(s for tally in tallies for s in tally.seconds)
    refused = sum((tally.refused for tally in tallies), Counter[str]())
    errors = [error for tally in tallies for error in tally.errors]
    apart = max(tally.difference for tally in tallies)
    first, *_, last = (median(part) for part in parts_of(readings))
    away = {
        "highest": max(readings) / readings[0] - 1,
        "lowest": min(readings) / readings[0] - 1,
        "last tenth against the first": last / first - 1,
    }
    cuts = quantiles(times, n=100) if len(times) > 1 else times * 99
    print(
        f"requests        {len(times)} in {seconds:.0f} s, of {REQUESTS} kinds "
        f"({faces} faces in all)\n"
        f"images          {sum(tally.images for tally in tallies)}\n"
        f"errors          {len(errors)}\n"
        f"refused         {sum(refused.values())}: "
        + ", ".join(f"{kind} {count}" for kind, count in sorted(refused.items()))
        + f"\nlargest difference from one thread alone  {apart:g}\n"
        f"latency         {1e3 * cuts[49]:.0f} ms in the middle, {1e3 * cuts[94]:.0f} ms for 95 %, "
        f"{1e3 * cuts[98]:.0f} ms for 99 %\n"
        f"resident        {readings[0]:.1f} MiB at first, {readings[-1]:.1f} MiB at last, of "
        f"{memory} MiB of address space\n"
        "in tenths       " + ", ".join(f"{median(part):.1f}" for part in parts_of(readings)) + "\n"
        "drift           " + ", ".join(f"{name} {share:+.2%}" for name, share in away.items())
    )
    for error in sorted(set(errors))[:20]:
        print(f"ERROR {error}")
    broken = [name for name, share in away.items() if abs(share) > drift]
    if broken:
        print(f"BEYOND the limit of {drift:.1%}: {', '.join(broken)}")
    return int(bool(errors or broken or apart or not times))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=4, help="that ask at once")
    parser.add_argument("--memory", type=int, default=3072, help="MiB of address space")
    parser.add_argument("--drift", type=float, default=0.02, help="of resident memory, as a share")
    parser.add_argument("--warm-up", type=float, default=60, help="seconds at most")
    parser.add_argument("--tuning", type=float, default=0.4, help="seconds to time each layer for")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        return serve(
            given.folder, given.seconds, given.threads, given.memory, given.drift, given.warm_up
        )
    with tempfile.TemporaryDirectory() as folder:
        reports = export_networks(Path(folder), given.tuning)
        swapped = ", ".join(
            f"{len(found.swapped)} of {len(found.layers)} poolings of {found.model_name}"
            for found in reports
        )
        print(
            f"{given.threads} threads for {given.seconds:g} s; poolkit's are {swapped}; torch "
            f"{torch.__version__}, {poolkit.info()['isa']}",
            flush=True,
        )
        line = [sys.executable, *sys.flags.no_site * ["-S"], __file__, *sys.argv[1:]]
        return subprocess.run([*line, "--folder", folder], env=os.environ | MALLOC).returncode


if __name__ == "__main__":
    sys.exit(main())
