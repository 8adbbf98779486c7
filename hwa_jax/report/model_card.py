"""The model card of exported weights: what they are, how they were made, what they are good for."""

from typing import Any

from hwa_jax.report.tables import markdown_table

_NAMES = {
    "outer": "Outer weights: the mean of the replicas at the end of training",
    "hwa": "HWA weights: the mean over the replicas and over the window of training steps",
    "ema": "Exponential average of the weights over the steps of training",
    "slow": "Slow weights of Lookahead",
}


def model_card(facts: dict[str, Any], file_name: str) -> str:
    """Markdown for a file that `hwa_jax.algorithms.stored_run.export` wrote.

    Args:
        facts: the metadata of the file.
        file_name: its name, for the three lines that load it.
    """
    config, model = facts["config"], facts["model"]
    hwa, data = config["hwa"], config["data"]
    window = f", here {len(facts['window'])} members up to step {facts['window'][-1]}" if facts["window"] else ""
    return f"""# {model["name"]} trained on {data["name"]}

{_NAMES[facts["weights"]]}. The file holds parameters and BatchNorm statistics.

## Loading

```python
import hwa_jax
predict = hwa_jax.load_predictor("{file_name}")
logits = predict(images)  # uint8 [n, {_shape(model)}] -> float32 [n, {model["num_classes"]}]
```

## Metrics

{_metrics(facts["metrics"])}

NLL is in nats per image; ECE uses 15 bins. These are the figures of one training with one seed.

## Training

Hierarchical Weight Averaging (Gu et al., 2023, arXiv 2304.11519), {facts["steps"]} steps ({facts["epochs"]:g} epochs) per replica:
K = {hwa["num_replicas"]} replicas, averaged every H = {hwa["sync_period"]}; window I = {hwa["window_size"]}{window}.

- seed of weights, batch order and augmentation: {config["seed"]}; of the data's subset, split and label noise: {data["seed"]}
- images: {facts["num_examples"]["train"]} for training, {facts["num_examples"]["validation"]} held out of them for validation, \
{facts["num_examples"]["test"]} for testing
- fingerprint of the data (SHA-256): `{facts["data_fingerprint"]}`

{_limits(facts)}"""


def sparse_model_card(facts: dict[str, Any], file_name: str) -> str:
    """Markdown for a file that `hwa_jax.algorithms.sparse_export.export` wrote.

    Args:
        facts: the metadata of the file.
        file_name: its name, for the three lines that load it.
    """
    config, model = facts["config"], facts["model"]
    swamp = config["swamp"]
    made = "The mean of the particles" if facts["weights"] == "average" else f"One particle ({facts['weights']})"
    return f"""# Sparse {model["name"]} trained on {config["data"]["name"]}

{made} after cycle {facts["cycle"]} of pruning: {facts["sparsity"]:.1%} of the prunable weights are zero. The file holds a bit for each
of them, the values of the others, all other parameters, and BatchNorm statistics.

## Loading

```python
import hwa_jax
predict = hwa_jax.load_sparse_predictor("{file_name}")
logits = predict(images)  # uint8 [n, {_shape(model)}] -> float32 [n, {model["num_classes"]}]
```

`predict` runs on the CPU. It takes SciPy's CSR product for the layers where this measured faster on the machine of the
export, batch size by batch size ("execution" in the metadata; the nearest measured one counts), and the dense one elsewhere.

{_sparse_format(file_name)}

## Metrics

{_metrics(facts["metrics"])}

NLL is in nats per image; ECE uses 15 bins. These are the figures of one training with one seed; "train" is a sample.

## Training

Iterative magnitude pruning by SWAMP (Choi et al., 2024, arXiv 2305.14852; one particle without SWA is IMP): in each cycle
{facts["num_particles"]} particles of {config["training"]["duration"]}, SWA {"on" if swamp["swa"] else "off"}, then {swamp["fraction"]:.0%} of the remaining weights go, rewind to {swamp["rewind"]}.

- seed of weights, batch order and augmentation: {config["seed"]}; of the data's subset, split and label noise: {config["data"]["seed"]}
- fingerprint of the data (SHA-256): `{facts["data_fingerprint"]}`

{_limits(facts)}"""


def _sparse_format(file_name):
    return f"""## Format

safetensors. The header's metadata hold one entry, "hwa_jax", which is JSON. A pruned array "NAME" lies in the file as two:

- `NAME:mask`, uint8: the mask in row-major order, eight weights a byte, the first one in the highest bit, zeros at the end;
- `NAME:values`: the values of the remaining weights in row-major order,

and its shape is in the metadata under "shapes". All others lie under their names. Without this package:

```python
import json
import numpy as np
from safetensors import safe_open

with safe_open("{file_name}", framework="np") as file:
    arrays = {{name: file.get_tensor(name) for name in file.keys()}}
    shapes = json.loads(file.metadata()["hwa_jax"])["shapes"]
for name, shape in shapes.items():
    mask = np.unpackbits(arrays.pop(name + ":mask"), count=np.prod(shape)).astype(bool).reshape(shape)
    values = arrays.pop(name + ":values")
    arrays[name] = np.zeros(shape, values.dtype)
    arrays[name][mask] = values
```

Kernels are [in, out], of convolutions [height, width, in, out]. The network takes (image / 255 - mean) / std, with "mean" and
"std" of each channel from the metadata, where "model" says which network it is."""


def _limits(facts):
    config, data, model = facts["config"], facts["config"]["data"], facts["model"]
    names = f" ({', '.join(facts['class_names'])}, in the order of the logits)" if facts.get("class_names") else ""
    return f"""## Intended use and limits

For research on weight averaging, and for classifying images like those of {data["name"]}: {_shape(model)} (height, width, channels), \
uint8 from 0 to 255, in one of its {model["num_classes"]} classes{names}. Every image gets one of these classes, whatever it shows. \
The metrics hold for images drawn as the test split was; other sources, other preprocessing and deliberate disturbance \
were not tested, nor was fairness between groups. The confidence is as reliable as the ECE above says, and no more. \
The terms of the data set apply to what is done with the weights.

## Versions

{_table(facts["environment"])}

## Configuration

{_table(_flat(config))}
"""


def _shape(model):
    return ", ".join(map(str, model["input_shape"]))


def _metrics(metrics):
    rows = [[split, f"{100 * m['accuracy']:.2f}", f"{m['nll']:.4f}", f"{m['ece']:.4f}"] for split, m in metrics.items()]
    return markdown_table(["split", "accuracy %", "NLL", "ECE"], rows, "lrrr")


def _table(values):
    return markdown_table(["field", "value"], [[name, "unknown" if value is None else str(value)] for name, value in values.items()], "ll")


def _flat(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
