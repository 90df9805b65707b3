"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .entries import ENTRIES
from .measure import Sample, sample
from .workloads import WORKLOADS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--peers", default="")
    options = parser.parse_args()
    load = Path(tempfile.mkdtemp()) / "wsload"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", load, Path(__file__).parent / "wsload.c"], check=True)
    entries = {n: e for n, e in ENTRIES.items() if not options.peers or n in options.peers.split(",")}
    for name, workload in WORKLOADS.items():
        if options.only and not any(name.startswith(o) for o in options.only.split(",")):
            continue
        cells = workload.cells(entries)
        rounds: list[dict[str, Sample]] = []
        for number in range(options.rounds):
            rounds.append({})
            for label, entry, what in cells[:: -1 if number % 2 else 1]:
                rounds[-1][label] = s = sample(load, sys.executable, entry, workload, what, options.seconds)
                print(
                    f"  {name} {label}: {s['rate']:.0f}/s {s['cpu_us']:.2f} us core {s['server_share']:.2f} load {s['load_share']:.2f} p50 {s['p50_us']:.0f} bad {s['bad']} missing {s['missing']} dead {s['dead']} {s['bad_sample']}",
                    file=sys.stderr,
                )
        for label, _, _ in cells:
            rate = [r[label]["rate"] / r[cells[0][0]]["rate"] for r in rounds]
            cpu = [r[cells[0][0]]["cpu_us"] / r[label]["cpu_us"] for r in rounds]
            print(
                f"{name} {label}: rate {statistics.median(rate):.2f} [{min(rate):.2f}, {max(rate):.2f}] "
                f"cpu {statistics.median(cpu):.2f} [{min(cpu):.2f}, {max(cpu):.2f}]"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
