"""Measure the whole case table: what `poolkit bench` and `make bench` do.

python benchmarks/run.py [--quick] [--json FILE] [--markdown FILE] [--threads 1,2]
                         [--cases PATTERNS] [--peers NAMES]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from poolkit.benchmark import main


def thread_counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="poolkit against its peers, interleaved.")
    parser.add_argument("--quick", action="store_true", help="a few cases and rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--threads", type=thread_counts, help="for example 1,2: a table for each")
    parser.add_argument("--cases", help="comma-separated names or shell patterns")
    parser.add_argument("--peers", help="comma-separated: poolkit, eager, onednn, copy, ...")
    sys.exit(main(**vars(parser.parse_args())))
