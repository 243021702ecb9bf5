"""Nearest code: scipy's k-d tree, products in chunks and `torch.cdist`, at the sizes of the paper's codebooks.

    python benchmarks/vq_nearest.py --quick        the small-codebook crossing, some seconds
    python benchmarks/vq_nearest.py                and N = 65536 with K = 8192, some minutes
    python benchmarks/vq_nearest.py --case 16384 8192 3     N vectors, K codes, C channels; several are possible

Results are compared first. All run in one process, interleaved, on one thread; reported is the median CPU time of the rounds
in milliseconds, and which way `nearest_code` takes. The rule it follows (`tree_wins`) is read off this table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ldmkit.autoencoder.codebook_search import CPU_CHUNK, by_product, by_tree, tree_wins

QUICK = [(n, k, c) for c in (3, 4, 8) for k in (64, 256, 2048) for n in (8192,)]
FULL = [(n, k, c) for c in (2, 3, 4, 8, 16) for k in (64, 256, 512, 2048, 8192) for n in (16384, 65536)]


def by_cdist(vectors: Tensor, codes: Tensor) -> Tensor:
    """The whole N x K matrix at once, as most code has it."""
    return torch.cdist(vectors, codes).argmin(dim=1)


def cpu_time(run: Callable[[], Tensor]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def ways(vectors: Tensor, codes: Tensor) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {"product": lambda: by_product(vectors, codes, CPU_CHUNK)}
    if codes.shape[1] <= 8:
        found["tree"] = lambda: by_tree(vectors, codes)
    if len(vectors) * len(codes) <= 1 << 28:  # 1 GiB
        found["cdist"] = lambda: by_cdist(vectors, codes)
    return found


def compare(vectors: Tensor, codes: Tensor, runs: dict[str, Callable[[], Tensor]]) -> None:
    """Every way must find a code as near as the others do, up to rounding."""
    near = {name: (vectors - codes[run()]).double().square().sum(dim=1) for name, run in runs.items()}
    best = torch.stack(list(near.values())).min(dim=0).values
    for name, distances in near.items():
        excess = float((distances - best).max())
        if excess > 1e-4:
            raise SystemExit(f"{name} is wrong by {excess:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--case", nargs=3, type=int, action="append", metavar=("N", "K", "C"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'N':>6} {'K':>5} {'c':>3} {'tree':>9} {'product':>9} {'cdist':>9}   tree wins by, taken")
    for n, k, c in options.case or (QUICK if options.quick else FULL):
        generator = torch.Generator().manual_seed(0)
        vectors, codes = torch.randn(n, c, generator=generator), torch.randn(k, c, generator=generator)
        runs = ways(vectors, codes)
        compare(vectors, codes, runs)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                times[name].append(cpu_time(run))
        middle = {name: statistics.median(values) for name, values in times.items()}
        cells = " ".join(
            f"{middle[name]:9.1f}" if name in middle else f"{'-':>9}" for name in ("tree", "product", "cdist")
        )
        gain = f"{middle['product'] / middle['tree']:5.1f}" if "tree" in middle else "    -"
        print(f"{n:6} {k:5} {c:3} {cells}   {gain}, {'tree' if tree_wins(k, c) else 'product'}", flush=True)


if __name__ == "__main__":
    main()
