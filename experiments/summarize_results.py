"""Writes results/README.md: what became of every claim of the two papers, from the results that are there.

    python experiments/summarize_results.py
"""

import pathlib

from absl import flags

from hwa_jax.report.claims_page import write_page
from hwa_jax.training import program

_RESULTS = flags.DEFINE_string("results", str(pathlib.Path(__file__).parents[1] / "results"), "directory with the directories of results")


def main() -> None:
    print(f"written: {write_page(_RESULTS.value)}")


if __name__ == "__main__":
    program.run(main)
