"""Prints the tables of docs/scaling.md: memory, traffic and time of HWA between sites, by `hwa_jax.analysis.communication`.

    python experiments/scaling.py
"""

from hwa_jax.analysis.communication import Link, bytes_sent, overhead, smallest_period, synchronization_seconds
from hwa_jax.report.tables import format_bytes, markdown_table

NUM_WEIGHTS = 7_000_000_000
NUM_SITES = (8, 16, 32, 64)
GBITS_PER_SECOND = (1, 10, 100)
PERIODS = (1, 10, 100, 1000)
WINDOW_SIZE = 10
LATENCY = 0.05
# A site: 6 FLOP for each weight and token, half a million tokens a step, eight accelerators that sustain 400 TFLOP/s.
STEP_SECONDS = 6 * NUM_WEIGHTS * 500_000 / (8 * 400e12)
PAYLOADS = {"float32": 4 * NUM_WEIGHTS, "bfloat16": 2 * NUM_WEIGHTS}


def memory() -> str:
    """What one replica takes and where."""
    weights = 4 * NUM_WEIGHTS
    rows = [
        ("float32 weights, Adam's two moments, gradients", "devices of a site", 4 * weights, "any training"),
        ("the weights of the last average", "devices of a site", weights, "`hwa.sync_dtype` or `hwa.outer_optimizer`"),
        ("momentum of the outer optimizer", "devices of a site", weights, "`hwa.outer_optimizer` with momentum"),
        ("copies on their way to the disk, at most 4", "host of one site", 4 * weights, "the window"),
        ("float64 sum of the window", "host of one site", 2 * weights, "the window"),
        (f"I = {WINDOW_SIZE} members", "disk of one site", WINDOW_SIZE * weights, "the window"),
    ]
    return markdown_table(["what", "where", "bytes", "for"], [[what, where, format_bytes(size), why] for what, where, size, why in rows], "llrl")


def seconds(num_sites: int, gbits: float, dtype: str) -> float:
    """Of one synchronization: ring or tree, whichever is faster."""
    link = Link(gbits * 1e9 / 8, LATENCY)
    return min(synchronization_seconds(PAYLOADS[dtype], num_sites, link, algorithm) for algorithm in ("ring", "tree"))


def synchronizations() -> str:
    """Bytes and seconds of one synchronization."""
    rows = [
        [str(sites), dtype, format_bytes(bytes_sent(PAYLOADS[dtype], sites)), *[f"{seconds(sites, gbits, dtype):,.1f}" for gbits in GBITS_PER_SECOND]]
        for sites in NUM_SITES for dtype in PAYLOADS
    ]
    return markdown_table(["K", "sent as", "each site sends", *[f"seconds at {gbits} Gbit/s" for gbits in GBITS_PER_SECOND]], rows, "rlrrrr")


def overheads() -> str:
    """Time spent synchronizing per time spent training."""
    rows = [
        [str(sites), f"{gbits} Gbit/s", *[
            f"{100 * overhead(seconds(sites, gbits, 'bfloat16'), STEP_SECONDS, period):,.2f} %" for period in PERIODS
        ], *[f"{smallest_period(seconds(sites, gbits, 'bfloat16'), STEP_SECONDS, limit):,}" for limit in (0.05, 0.01)]]
        for sites in NUM_SITES for gbits in GBITS_PER_SECOND
    ]
    header = ["K", "bandwidth", *[f"H = {period}" for period in PERIODS], "H for 5 %", "H for 1 %"]
    return markdown_table(header, rows, "rrrrrrrr")


def main() -> None:
    print(f"One replica:\n\n{memory()}\n\nOne synchronization:\n\n{synchronizations()}\n")
    print(f"Overhead, sent as bfloat16, with steps of {STEP_SECONDS:.2f} s:\n\n{overheads()}")


if __name__ == "__main__":
    main()
