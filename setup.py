"""Installation of hwa_jax: `pip install -c constraints.txt -e .` gives the versions that are tested."""

from setuptools import find_packages, setup

BASE = [
    "jax>=0.10,<0.13",
    "optax>=0.2.8",
    "flax>=0.12.8",
    "orbax-checkpoint>=0.12.8,<0.13",  # 0.x changes its interface between minor versions
    "tensorstore>=0.1.80",  # Orbax's own: looks into checkpoints before Orbax reads them
    "etils>=1.12",  # Orbax's paths
    "numpy>=2.0",
    "scipy>=1.14",
    "absl-py>=2.0",
    "ml_collections>=1.0",
    "safetensors>=0.5",
    "tqdm>=4.66",
    "rich>=13.0",
    "matplotlib>=3.9",
    "tensorboardX>=2.6",  # TensorBoard files without TensorFlow
    "tensorflow-datasets>=4.9.9",  # reads through data_source, without TensorFlow
    "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not say so
    "grain>=0.2.18,<0.3",  # reads streamed data sets
    "array_record>=0.8.1; sys_platform != 'win32'",  # the file format of data_source
    "scikit-learn>=1.5",  # its digits are the data set that needs no download
    "Pillow>=10.0",  # encodes images when a data set is prepared, and reads folders of images
]

EXTRAS = {
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "dev": [
        "pytest>=8.0",
        "pytest-xdist>=3.8",
        "hypothesis>=6.100",
        "ml_dtypes>=0.5",  # bfloat16 in NumPy
        "equinox>=0.13",  # the core is tested on another library's models
        "packaging>=24.0",
        "PyYAML>=6.0",
        "setuptools>=70.1",  # the first that builds a wheel by itself
    ],
    "bench": ["torch>=2.9"],  # what benchmarks/ compare with
    "onednn": [  # convolutions on CPUs: hwa_jax/onednn.py
        "onednn-cpu-gomp>=2023.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "onednn-devel-cpu-gomp>=2023.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],
    "mnist1d": ["mnist1d>=0.0.2"],  # generates the data set of this name
    "docs": ["Sphinx>=9.0", "myst-parser>=5.0", "furo>=2025.12.19"],
}

setup(
    name="hwa_jax",
    version="0.1.0",
    description="Hierarchical weight averaging and SWAMP pruning for JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hwa_jax", "hwa_jax.*"]),
    package_data={"": ["*.json", "*.cc"], "hwa_jax": ["py.typed"]},
    install_requires=BASE,
    extras_require=EXTRAS,
)
