"""``python -m hwa_jax.data NAME``: prepares a data set of TensorFlow Datasets."""

import argparse
import sys

from hwa_jax.data.preparation import prepare
from hwa_jax.errors import UserError


def main() -> int:
    """Prepares the named data set and prints where it is; 2 after a user's error."""
    parser = argparse.ArgumentParser(prog="python -m hwa_jax.data", description=__doc__)
    parser.add_argument("name", help="such as cifar10")
    parser.add_argument("--data_dir", help="default: HWA_JAX_DATA_DIR, else ~/.cache/hwa_jax")
    arguments = parser.parse_args()
    try:
        print(prepare(arguments.name, arguments.data_dir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
