"""Synthetic cells for the report's tests: the effect of every method is chosen, not trained."""

import numpy as np

EPOCHS = 20.0
COSTS = {"online": 2, "hwa": 2, "sam": 2}
NUM_REPLICAS = {"online": 2, "hwa": 2}


def cell(method="plain", comparison="equal_steps", seed=0, accuracy=0.9, **changes):
    """One cell with a curve of 20 points that rises to ``accuracy``."""
    epochs = 2 * EPOCHS if comparison == "equal_compute" else EPOCHS
    progress = np.arange(1, 21) / 20
    replicas = NUM_REPLICAS.get(method, 1)
    synchronizations = int(epochs) if replicas > 1 else 0
    return {
        "method": method,
        "optimizer": "sgd",
        "schedule": "constant",
        "comparison": comparison,
        "seed": seed,
        "num_train": 9000,
        "num_replicas": replicas,
        "sync_period": 90,
        "window_size": 10,
        "averaging": None,
        "replica_batch_sizes": None,
        "epochs_per_replica": epochs,
        "compute_epochs": epochs * COSTS.get(method, 1),
        "bytes_communicated": 400_000 * synchronizations,
        "synchronizations": synchronizations,
        "seconds": 3.0 * epochs * COSTS.get(method, 1),
        "curve": [
            {
                "step": int(90 * epochs * p),
                "epoch": float(epochs * p),
                "accuracy": float(accuracy - 0.3 * np.exp(-6 * p)),
                "nll": float(0.3 + np.exp(-6 * p)),
            }
            for p in progress
        ],
        "train": {"accuracy": accuracy + 0.05, "nll": 0.1, "ece": 0.01},
        "validation": {"accuracy": accuracy, "nll": 0.3, "ece": 0.02},
        "test": {"accuracy": accuracy, "nll": 0.32, "ece": 0.03},
    } | changes


def paired(method, differences, comparison="equal_steps", base=0.9):
    """Cells of plain at ``base`` plus the seed's own level, and of a method that far from it."""
    cells = []
    for seed, difference in enumerate(differences):
        level = base - 0.01 * seed
        cells.append(cell("plain", comparison, seed, level))
        cells.append(cell(method, comparison, seed, level + difference))
    return cells


EFFECTS = {  # method -> test accuracy minus plain's, by basis of comparison
    "ema": (0.006, 0.004),
    "online": (0.002, -0.004),
    "offline_window": (0.008, 0.006),
    "offline_uniform": (0.004, 0.005),
    "lookahead": (0.0, 0.0),
    "sam": (-0.005, -0.010),
    "hwa": (0.015, 0.010),
}


def full_comparison(seeds=5, spread=0.002):
    """Every method at SGD and AdamW, constant and cosine; noise around the effects."""
    rng = np.random.default_rng(0)
    cells = []
    for optimizer, schedule in [(o, s) for o in ("sgd", "adamw") for s in ("constant", "cosine")]:
        changes = {"optimizer": optimizer, "schedule": schedule}
        base = 0.87 + 0.01 * (schedule == "cosine") - 0.005 * (optimizer == "adamw")
        for seed in range(seeds):
            start = base + rng.normal(0, 0.003)
            longer = start + 0.005 + rng.normal(0, spread / 2)
            cells.append(cell("plain", "equal_steps", seed, start, **changes))
            cells.append(cell("plain", "equal_compute", seed, longer, **changes))
            for method, (at_steps, at_compute) in EFFECTS.items():
                noise = rng.normal(0, spread)
                at_steps, at_compute = start + at_steps + noise, longer + at_compute + noise
                if method in COSTS:
                    cells.append(cell(method, "both", seed, at_steps, **changes))
                else:
                    cells.append(cell(method, "equal_steps", seed, at_steps, **changes))
                    cells.append(cell(method, "equal_compute", seed, at_compute, **changes))
    return cells
