"""Cells of the benchmark on a Ray cluster of two nodes with one processor each, beside two plain processes.

The cluster is on this machine, and its start is not counted, as it is there already where one uses it; that of the
workers and their imports is, on both sides. The two take turns. ::

    python -m benchmarks.ray_cells --cells 40 --repeats 2
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from selfdistill.experiments.benchmark.cells import plan, read, run_cells
from selfdistill.experiments.benchmark.settings import QUICK


def main() -> None:
    """Print the seconds of each round, the load, and the ratio of the sums."""
    import ray
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    (setting, *_) = QUICK.values()
    wanted = plan([setting], ["elr()", "ps_kd()", "mean_teacher()"], -(-options.cells // 4))[: options.cells]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    spent = {"processes": 0.0, "ray": 0.0}
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for side in sorted(spent, reverse=not number % 2):
                begun = time.monotonic()
                run_cells(wanted, Path(folder) / side, workers=2, on="ray" if side == "ray" else None)
                seconds = time.monotonic() - begun
                spent[side] += seconds
                print(f"round {number + 1}, {side}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
            records = [[read(cell, Path(folder) / side) for cell in wanted] for side in spent]
            plain = [[{**(record or {}), "seconds": 0} for record in side] for side in records]
            print(f"equal records: {plain[0] == plain[1]}; {len(wanted)} cells", flush=True)
    print(f"ray / processes: {spent['ray'] / spent['processes']:.3f}")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
