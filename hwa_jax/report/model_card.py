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
    shape = ", ".join(map(str, model["input_shape"]))
    window = f", here {len(facts['window'])} members up to step {facts['window'][-1]}" if facts["window"] else ""
    return f"""# {model["name"]} trained on {data["name"]}

{_NAMES[facts["weights"]]}. The file holds parameters and BatchNorm statistics.

## Loading

```python
import hwa_jax
predict = hwa_jax.load_predictor("{file_name}")
logits = predict(images)  # uint8 [n, {shape}] -> float32 [n, {model["num_classes"]}]
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

## Intended use and limits

For research on weight averaging, and for classifying images like those of {data["name"]}: {shape} (height, width, channels), \
uint8 from 0 to 255, in one of its {model["num_classes"]} classes. Every image gets one of these classes, whatever it shows. \
The metrics hold for images drawn as the test split was; other sources, other preprocessing and deliberate disturbance \
were not tested, nor was fairness between groups. The confidence is as reliable as the ECE above says, and no more. \
The terms of the data set apply to what is done with the weights.

## Versions

{_table(facts["environment"])}

## Configuration

{_table(_flat(config))}
"""


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
