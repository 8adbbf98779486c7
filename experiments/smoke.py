"""Checks HWA and pruning on the devices that are there, in a minute or two: `make smoke`.

Devices, synchronization, window, masks and resume, each against NumPy or against itself; no data set is needed. It prints a
table of verdicts, and ends with exit code 1 where one of them is not "ok".
"""

import sys
import time

from hwa_jax.report.tables import print_table
from hwa_jax.training import smoke


def main() -> int:
    rows = []
    for name, check in smoke.CHECKS.items():
        start = time.perf_counter()
        try:
            verdict, said = "ok", check()
        # Whatever it is, the other checks are still worth their verdicts.
        except Exception as error:
            verdict, said = "FAILED", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        rows.append([name, verdict, f"{time.perf_counter() - start:.1f}", said])
    print_table(["check", "verdict", "seconds", "what was checked"], rows, "llrl")
    return int(any(verdict != "ok" for _, verdict, *_ in rows))


if __name__ == "__main__":
    sys.exit(main())
