"""One of two processes that stream: which examples it reads for an epoch of training, and for an evaluation.

    python streaming_worker.py PORT PROCESS_ID DATA_DIR
"""

import json
import sys

import jax
import numpy as np

from hwa_jax.data.streamed import StreamedSplit
from hwa_jax.training import processes
from training_runs import small_setup

FIELDS = {
    "data.name": "hwa_test_photos", "data.streamed": True, "data.image_size": 8, "data.random_resized_crop": True, "data.num_train": 0,
    "num_devices": 0, "hwa.num_replicas": 2, "hwa.data_parallel": 2, "hwa.data_mode": "partitioned", "training.batch_size": 4,
}


def main(port, process_id, data_dir):
    import tfds_pictures  # noqa: F401, registers the builder

    processes.join(f"127.0.0.1:{port}", 2, int(process_id))
    setup = small_setup({**FIELDS, "data.data_dir": data_dir})
    read, example = [], StreamedSplit.example
    StreamedSplit.example = lambda split, position, random=None: read.append(int(position)) or example(split, position, random)
    batches = list(setup.splits(0, setup.keys()[0]))[: setup.periods.epoch]
    said = {"train": [*read], "labels": [np.asarray(shard.data).tolist() for batch in batches for shard in batch.labels.addressable_shards]}
    read.clear()
    metrics = setup.evaluator.one(*jax.device_get(setup.model.init(jax.random.key(0))), setup.test)
    print(json.dumps({**said, "test": read, "metrics": metrics}))


if __name__ == "__main__":
    main(*sys.argv[1:])
