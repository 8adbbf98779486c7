"""Batches from disk: those of memory, whatever the devices, wherever one begins; and what is wrong with files, in one line."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tfds_pictures import COUNTS, picture
from training_runs import compilation_cache_dir, compiled_once, small_setup  # noqa: F401

import hwa_jax.data
from hwa_jax import particles
from hwa_jax.analysis.split_loss import SplitLoss
from hwa_jax.data import Split
from hwa_jax.data.cropping import center_crop
from hwa_jax.data.streamed import load_streamed
from hwa_jax.data.streaming import stream
from hwa_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("compiled_once")

PHOTOS = {"data.name": "hwa_test_photos", "data.streamed": True, "data.image_size": 16, "data.num_train": 0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where the data sets of this module are prepared."""
    directory = tmp_path_factory.mktemp("data")
    for name in ("hwa_test_png", "hwa_test_photos", "hwa_test_unlabelled", "hwa_test_sizes"):
        hwa_jax.data.prepare(name, directory)
    return str(directory)


def photos_setup(data_dir, fields=()):
    return small_setup({**PHOTOS, "data.data_dir": data_dir, **dict(fields)})


def memory(split):
    """A streamed split read example by example."""
    examples = [split.example(position) for position in range(split.num_examples)]
    return Split(*(np.stack([example[name] for example in examples]) for name in ("image", "label")))


def take(setup, first, number):
    """So many streamed batches of a training after `first` steps, as NumPy."""
    splits = setup.splits(first, setup.keys()[0])
    found = [jax.device_get(next(splits)) for _ in range(number)]
    splits.close()
    return found


def assert_equal_batches(mine, theirs):
    assert len(mine) == len(theirs)
    for ours, others in zip(mine, theirs):
        np.testing.assert_array_equal(ours.images, others.images)
        np.testing.assert_array_equal(ours.labels, others.labels)


def test_every_image_is_read_once_as_it_was_written(data_dir):
    data = load_streamed("hwa_test_png", data_dir=data_dir, validation_fraction=0.2, seed=3)
    assert data.num_classes == 3 and data.train.image_shape == (8, 8, 3)
    splits = {name: memory(getattr(data, name)) for name in ("train", "validation", "test")}
    assert [split.num_examples for split in splits.values()] == [24, 6, 10]
    for written, read in (("train", ("train", "validation")), ("test", ("test",))):
        found = [(image.tobytes(), label) for name in read for image, label in zip(splits[name].images, splits[name].labels)]
        assert sorted(found) == sorted((picture(written, i).tobytes(), i % 3) for i in range(COUNTS[written]))
    images = splits["train"].images / 255
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, images.std((0, 1, 2)), rtol=1e-5)


def test_the_choice_of_images_is_the_seeds_and_known_by_its_fingerprint(data_dir):
    def load(**keywords):
        return load_streamed("hwa_test_png", data_dir=data_dir, **keywords)

    same, again, other = load(num_train=20, seed=1), load(num_train=20, seed=1), load(num_train=20, seed=2)
    assert [split.num_examples for split in (same.train, same.validation)] == [18, 2]
    np.testing.assert_array_equal(same.train.indices, again.train.indices)
    assert same.fingerprint == again.fingerprint
    assert {*other.train.indices} != {*same.train.indices}
    assert len({data.fingerprint for data in (same, other, load(num_train=19, seed=1), load(num_train=20, seed=1, image_size=4))}) == 4


def test_a_test_split_without_labels_gives_way_to_the_validation_split(data_dir):
    data = load_streamed("hwa_test_photos", data_dir=data_dir, image_size=16)
    assert data.test.where == "hwa_test_photos validation" and data.test.num_examples == 5
    # Noise around five times their number.
    levels = [data.test.example(i)["image"].mean() - 39.5 for i in range(5)]
    np.testing.assert_allclose(sorted(levels), 5 * np.arange(5), atol=2.4)


@pytest.mark.parametrize("data_mode", ["shared", "partitioned"])
def test_batches_are_those_of_memory(data_dir, data_mode):
    fields = {"hwa.data_mode": data_mode, "training.batch_size": 3, "hwa.num_replicas": 2}
    setup = photos_setup(data_dir, fields)
    key, split = setup.keys()[0], memory(setup.dataset.train)
    in_memory = dataclasses.replace(setup, train=split)
    length = setup.periods.epoch
    streamed = take(setup, 0, setup.periods.total)
    assert len(streamed) == 2 * length
    for step, batch in enumerate(streamed):
        indices = np.asarray(in_memory.epoch_indices(step, key))[:, step % length]
        np.testing.assert_array_equal(batch.images, split.images[indices])
        np.testing.assert_array_equal(batch.labels, split.labels[indices])


RANDOM = {"data.random_resized_crop": True, "training.batch_size": 4, "hwa.num_replicas": 4}


def test_batches_depend_neither_on_devices_nor_on_where_one_begins(data_dir):
    expected = take(photos_setup(data_dir, RANDOM), 0, 10)
    for layout in ({"num_devices": 4}, {"num_devices": 8, "hwa.data_parallel": 2}, {"num_devices": 8, "hwa.data_parallel": 4}):
        setup = photos_setup(data_dir, {**RANDOM, **layout})
        assert_equal_batches(take(setup, 0, 3), expected[:3])
        assert_equal_batches(take(setup, 7, 3), expected[7:])
    batch = next(setup.splits(0, setup.keys()[0]))
    # Two groups of four devices: two replicas each, one row of the four.
    assert {shard.data.shape for shard in batch.images.addressable_shards} == {(2, 1, 16, 16, 3)}


def test_parts_are_drawn_anew_for_every_replica_step_and_seed(data_dir):
    # Pictures that show where they were cut.
    image = np.arange(40 * 40, dtype=np.uint32).view(np.uint8).reshape(40, 40, 4)[..., :3]
    source = [{"image": image, "label": 0}] * 8
    batches = []
    for seed in (0, 1):
        setup = photos_setup(data_dir, {**RANDOM, "seed": seed})
        split = dataclasses.replace(setup.train, source=source, indices=np.arange(8))
        setup = dataclasses.replace(setup, train=split)
        batches += take(setup, 0, 3)
    crops = np.concatenate([batch.images.reshape(-1, 16 * 16 * 3) for batch in batches])
    assert len(np.unique(crops, axis=0)) == len(crops) == 2 * 3 * 4 * 4


def test_a_share_is_read_by_its_owner_alone(monkeypatch):
    """A process that holds two of four rows asks for nothing else."""
    mesh = particles.device_mesh(jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    whole = NamedSharding.addressable_devices_indices_map
    monkeypatch.setattr(
        NamedSharding, "addressable_devices_indices_map", lambda self, shape: dict(list(whole(self, shape).items())[2:])
    )
    asked = []

    def example(step, row):
        asked.append((step, row))
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        next(stream(example, range(5, 6), (4,), sharding))
    assert {*asked} <= {(5, 2), (5, 3)}


def test_it_reads_ahead_but_not_without_bounds():
    sharding = NamedSharding(particles.device_mesh(jax.devices()[:1]), PartitionSpec())
    read, lock = set(), threading.Lock()

    def example(step, row):
        with lock:
            read.add(step)
        return {"image": np.zeros((1, 1, 1), np.uint8), "label": np.int32(step)}

    batches = stream(example, range(10_000), (2,), sharding)
    assert [next(batches).labels.tolist() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]
    batches.close()
    assert len(read) < 100
    before = len(read)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("grain-thread-prefetch")]
    assert len(read) == before


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_padded_batches_are_those_of_memory(data_dir, num_devices, size):
    split = load_streamed("hwa_test_png", data_dir=data_dir).test
    split = dataclasses.replace(split, mesh=particles.device_mesh(jax.devices()[:num_devices]))
    batches = list(split.padded_batches(size))
    for mine, theirs in zip(batches, memory(split).padded_batches(size), strict=True):
        for ours, others in zip(mine, theirs, strict=True):
            assert ours.is_fully_replicated and len(ours.devices()) == num_devices
            np.testing.assert_array_equal(ours, others)
    images = [np.asarray(images) for images in split.image_batches(size, 9)]
    assert [len(part) for part in images] == [len(part) for part in memory(split).image_batches(size, 9)]
    np.testing.assert_array_equal(np.concatenate(images), memory(split).images[:9])


def test_images_are_cut_to_the_size_that_is_asked_for(data_dir):
    data = load_streamed("hwa_test_sizes", data_dir=data_dir, image_size=6)
    source = data.train.source
    for position, index in enumerate(data.train.indices):
        np.testing.assert_array_equal(data.train.example(position)["image"], center_crop(source[int(index)]["image"], 6))
    data = load_streamed("hwa_test_photos", data_dir=data_dir, image_size=16)
    assert len({data.train.source[index]["image"].shape for index in range(30)}) > 5
    assert data.train.image_shape == data.train.example(0)["image"].shape == (16, 16, 3)


class Broken:
    def __getitem__(self, index):
        raise OSError("disk on\nfire")


def test_an_unreadable_example_ends_the_training_with_its_line(data_dir):
    setup = photos_setup(data_dir)
    broken = dataclasses.replace(setup.train, source=Broken())
    with pytest.raises(UserError, match=r"hwa_test_photos train: example \d+ cannot be read \(OSError: disk on fire\); prepare"):
        take(dataclasses.replace(setup, train=broken), 0, 1)
    with pytest.raises(UserError, match="cannot be read"):
        next(broken.padded_batches(4))


WRONG = {
    "unlabelled": ("hwa_test_unlabelled", {}, "hwa_test_unlabelled test: label -1 of example 0 is not in 0..2; choose"),
    "sizes": ("hwa_test_sizes", {}, r"example \d+ has the shape \(\d, 8, 3\), the first one \(\d, 8, 3\): set data.image_size"),
    "num_train": ("hwa_test_png", {"num_train": 31}, "num_train=31: give a whole number from 1 to 30"),
    "fraction": ("hwa_test_png", {"num_train": 3}, "validation_fraction=0.1: leaves 3 images to train and 0 to validate of 3"),
    "missing": ("cifar10", {}, "data set 'cifar10' not found"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_do_not_fit_are_refused(data_dir, case):
    name, keywords, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        data = load_streamed(name, data_dir=data_dir, **keywords)
        memory(data.test)
        memory(data.train)


def test_damaged_files_are_refused(tmp_path):
    hwa_jax.data.prepare("hwa_test_png", tmp_path)
    [file] = tmp_path.rglob("*train*array_record*")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="train cannot be read .*delete this directory and prepare it again"):
        load_streamed("hwa_test_png", data_dir=tmp_path)


FIELDS = {
    "source": ({"data.source": "folder"}, "data.source='folder': with data.streamed=True give 'name'"),
    "sizes": ({"hwa.replica_batch_sizes": (4,)}, r"hwa.replica_batch_sizes=\(4,\): with data.streamed=True give \(\)"),
    "noise": ({"data.label_noise": 0.1}, "data.label_noise=0.1: with data.streamed=True give 0"),
    "steps": ({"training.steps_per_call": 2}, "training.steps_per_call=2: with data.streamed=True give 0"),
    "crop": ({"data.image_size": 0, "data.random_resized_crop": True}, "data.random_resized_crop=True: needs data.streamed=True and data.image_size"),
    "in memory": ({"data.streamed": False, "data.random_resized_crop": True}, "data.random_resized_crop=True: needs data.streamed=True"),
    "resize": ({"data.streamed": False}, "image_size=16: images are resized with source='folder' alone, or data.streamed=True"),
    "batch": ({"training.batch_size": 24}, r"batch_size=24: a particle has 22 examples"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_that_do_not_fit_are_refused(data_dir, case):
    fields, message = FIELDS[case]
    with pytest.raises(UserError, match=message):
        photos_setup(data_dir, fields)


def test_what_needs_images_in_memory_says_so(data_dir):
    setup = photos_setup(data_dir)
    for look in (lambda split: split.images, lambda split: SplitLoss(setup, split)):
        with pytest.raises(UserError, match="data.streamed=True: hwa_test_photos train is not in memory"):
            look(setup.train_sample)
