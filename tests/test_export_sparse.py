"""Exported sparse networks: the file bit for bit, its size, the card, the report, and bad input in one line."""

import errno
import json
import re
import shutil

import numpy as np
import pytest

from hwa_jax import load_sparse_predictor
from hwa_jax.algorithms import sparse_export
from hwa_jax.report.sparse_report import print_report, sparse_report
from hwa_jax.storage import safetensors
from hwa_jax.storage.sparse_weights import load_sparse_weights, save_sparse_weights
from hwa_jax.training import latency, predictor
from programs import call
from pruning_runs import IMP, prune
from sparse_networks import description, images_of, pruned_weights, read_with_numpy
from training_runs import compilation_cache_dir, compiled_once, listing  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def workdir(compiled_once, tmp_path_factory):  # noqa: F811
    """Three cycles: 0, 36 and 59 % pruned."""
    directory = tmp_path_factory.mktemp("pruned") / "run"
    prune(directory, {**IMP, "model.norm": "batch", "data.data_dir": "/home/me/data"})
    return directory


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """What the program wrote and printed for the last cycle; the work directory was left alone."""
    output, before = tmp_path_factory.mktemp("exported") / "new" / "net.safetensors", listing(workdir)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(latency, "_SECONDS", 0.0)
        ended = call("export_sparse.py", f"--workdir={workdir}", f"--output={output}", "--batch_sizes=1,3")
    assert ended.code == 0, ended.stderr
    assert listing(workdir) == before
    return output, ended


def stored_arrays(path):
    params, batch_stats, _ = load_sparse_weights(path)
    return safetensors.named_leaves({"params": params, "batch_stats": batch_stats})


def require_equal_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_numpy_and_safetensors_alone_read_the_file_bit_for_bit(workdir, exported):
    expected = stored_arrays(workdir / "cycles" / "002" / "average.safetensors")
    assert sum(np.count_nonzero(array) for name, array in expected.items() if name.endswith("kernel")) == 20562
    require_equal_bits(read_with_numpy(exported[0]), expected)


def test_the_card_s_own_lines_load_and_read_it(workdir, exported, monkeypatch):
    card = exported[0].with_suffix(".md").read_text()
    predict, read = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(exported[0].parent)
    names = {"images": np.zeros((2, 8, 8, 1), np.uint8)}
    exec(predict, names)
    assert names["logits"].shape == (2, 10) and names["logits"].dtype == np.float32
    assert "hwa_jax import" not in read and "import hwa_jax" not in read
    exec(read, names)
    require_equal_bits(names["arrays"], read_with_numpy(exported[0]))
    assert "59.0% of the prunable weights are zero" in card and "/home/me" not in card
    metrics = json.loads((workdir / "cycles" / "002" / "metrics.json").read_text())["evaluation"]["average"]["test"]
    assert f"{100 * metrics['accuracy']:.2f} | {metrics['nll']:.4f} | {metrics['ece']:.4f} |" in card


def test_predictions_are_those_of_the_dense_network(workdir, exported):
    params, batch_stats, _ = load_sparse_weights(workdir / "cycles" / "002" / "average.safetensors")
    metadata = safetensors.load_metadata(workdir / "weights.safetensors")
    dense, predict = predictor.predictor(predictor.network(metadata), (params, batch_stats), metadata), load_sparse_predictor(exported[0])
    for n in (1, 4):
        images = images_of(metadata, n)
        np.testing.assert_allclose(predict(images), dense(images), rtol=1e-5, atol=1e-5)


def test_the_report_counts(exported):
    found = json.loads(exported[0].with_suffix(".report.json").read_text())
    remaining = 20562  # 50,200 pruned twice by round(0.36 of what remains): 32,128, 20,562
    # BatchNorm has a scale and an offset for each of 400 units; the classifier a bias for each of 10.
    assert found["parameters"] == {
        "dense": 50200 + 810, "remaining": remaining + 810, "prunable": 50200, "prunable_remaining": remaining,
    }
    assert found["flops"] == {"dense": 2 * 50200, "sparse": 2 * remaining}
    assert found["bytes"]["sparse_file"] == exported[0].stat().st_size
    # Besides parameters the running mean and variance of 400 units; the header of a safetensors file is below 2 kB here.
    assert found["bytes"]["dense_weights"] == 4 * (50200 + 810 + 800)
    assert 0 < found["bytes"]["dense_file"] - found["bytes"]["dense_weights"] < 2000
    assert [row["batch_size"] for row in found["latency"]] == [1, 3]
    execution = safetensors.load_metadata(exported[0])["execution"]
    for row in found["latency"]:
        assert row["csr_layers"] == execution[str(row["batch_size"])]
        assert row["largest_difference"] < 1e-4 and min(row["seconds"].values()) > 0
        # The fastest plan was chosen, or the dense one where that gains less than the margin.
        fastest, dense = min(row["alternatives"].values()), row["alternatives"]["0"]
        assert row["alternatives"][str(len(row["csr_layers"]))] == (fastest if fastest < (1 - latency.MARGIN) * dense else dense)
    assert {"scipy", "numpy", "jax", "cpu_model", "cpu_cores", "load_average"} <= set(found["environment"])


def test_the_report_says_slower_where_it_is(exported, capsys):
    found = json.loads(exported[0].with_suffix(".report.json").read_text())
    rows = dict(zip((0.004, 0.001), found["latency"]))
    for predict, row in rows.items():
        row["seconds"] = {"dense": 0.002, "predict": predict}
    text = sparse_report(found, "python export")
    print_report(found)
    for written in (text.replace("|", " "), capsys.readouterr().out):
        lines = [" ".join(line.split()) for line in written.splitlines()]
        assert any(line.startswith("1 2 4 0.50 slower") for line in lines)
        assert any(line.startswith("3 2 1 2.00 faster") for line in lines)
    assert "a multiply-add counts as 2" in " ".join(text.split()) and "Measured with `python export`" in text
    assert "20,562" in text and f"| jax           | {found['environment']['jax']} " in text


def test_the_program_prints_the_tables(exported):
    _, ended = exported
    assert "parameters" in ended.stdout and "FLOPs per image" in ended.stdout and "dense, ms" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("weights: ")


def test_an_earlier_cycle_of_an_unfinished_run(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("results.json", "weights.safetensors", "002", "ticket"))
    ended = call("export_sparse.py", f"--workdir={tmp_path}/run", "--batch_sizes=1", "--cycle=0")
    assert ended.code == 0, ended.stderr
    # Beside the work directory, under its name.
    require_equal_bits(read_with_numpy(tmp_path / "run.safetensors"), stored_arrays(workdir / "cycles" / "000" / "average.safetensors"))
    assert sparse_export.open_cycle(tmp_path / "run").facts["cycle"] == 1


def test_six_percent_of_lenet_300_100_at_98_percent(workdir, tmp_path):
    """With all that an export says, the batch sizes of the program's default and all layers in CSR among it."""
    metadata = description("mlp", (28, 28, 1))
    params, batch_stats, mask = pruned_weights(metadata, 0.98)
    facts = {**sparse_export.open_cycle(workdir).facts, **metadata}
    facts["execution"] = {size: [f"params/{layer}/kernel" for layer in ("dense1", "dense2", "classifier")] for size in ("1", "8", "64", "512")}
    save_sparse_weights(tmp_path / "sparse.safetensors", params, batch_stats, mask, facts)
    safetensors.save_weights(tmp_path / "dense.safetensors", params, batch_stats)
    dense, sparse = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("dense", "sparse"))
    assert sparse <= 0.06 * dense
    require_equal_bits(read_with_numpy(tmp_path / "sparse.safetensors"), safetensors.named_leaves({"params": params}))


BAD = {
    "no directory": (["--workdir={here}/none"], "none: has no config.json: give the --workdir of experiments/train_swamp.py"),
    "not of a pruning": (["--workdir={here}/hwa"], "hwa: belongs to another program"),
    "no cycle": (["--workdir={here}/young"], "young: has no finished cycle yet: train longer"),
    "unknown cycle": (["--workdir={workdir}", "--cycle=7"], "--cycle=7: finished are 0, 1, 2: give one of them"),
    "no number": (["--workdir={workdir}", "--cycle=last"], "flag --cycle=last"),
    "no safetensors": (["--workdir={workdir}", "--output={here}/net.npz"], "net.npz: give a file whose name ends in .safetensors"),
    "exists": (["--workdir={workdir}", "--output={here}/mine.safetensors"], "mine.report.md: exists: give another file, or --overwrite"),
    "batch sizes": (["--workdir={workdir}", "--batch_sizes=1,0"], "--batch_sizes=1,0: give whole numbers of at least 1"),
    "no batch size": (["--workdir={workdir}", "--batch_sizes="], "--batch_sizes=: give whole numbers"),
    "a damaged file": (["--workdir={here}/damaged"], "average.safetensors: not a complete safetensors file"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_writes_nothing(workdir, tmp_path, arguments, words):
    (tmp_path / "mine.report.md").write_text("mine")
    for name, config in (("hwa", {"hwa": {}}), ("young", {"swamp": {}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"config": config, "data_fingerprint": ""}))
    damaged = tmp_path / "damaged" / "cycles" / "000"
    shutil.copytree(workdir / "cycles" / "000", damaged)
    shutil.copy(workdir / "config.json", tmp_path / "damaged")
    (damaged / "average.safetensors").write_bytes((damaged / "average.safetensors").read_bytes()[:-9])
    before = listing(tmp_path)
    given = [argument.format(here=tmp_path, workdir=workdir) for argument in arguments]
    if not any(argument.startswith("--output") for argument in given):
        given.append(f"--output={tmp_path}/new/net.safetensors")
    ended = call("export_sparse.py", *given)
    assert ended.code == 2 and words in ended.stderr and re.fullmatch(r"error: [^\n]*\n", ended.stderr)
    assert listing(tmp_path) == before


def test_a_full_disk_leaves_the_old_file(workdir, tmp_path, monkeypatch):
    output = tmp_path / "net.safetensors"
    output.write_text("old")
    monkeypatch.setattr(sparse_export, "choose_layers", lambda network, size: latency.Choice({}, {0: 1.0}, []))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hwa_jax.storage.atomic.os.fsync", full)
    ended = call("export_sparse.py", f"--workdir={workdir}", f"--output={output}", "--overwrite")
    assert ended.code == 2 and "net.safetensors: the disk is full" in ended.stderr and "Traceback" not in ended.stderr
    assert output.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
