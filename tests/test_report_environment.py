"""The environment is complete, ready for JSON and names neither machine nor directory."""

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import jax
import pytest

from hwa_jax.training import environment as module
from hwa_jax.training.environment import environment


def test_versions_and_devices():
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["jax"] == jax.__version__
    assert found["orbax"] == metadata.version("orbax-checkpoint")
    assert (found["platform"], found["num_devices"]) == ("cpu", jax.device_count())
    assert found["cpu_cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_neither_host_name_nor_directory():
    text = json.dumps(environment())
    assert str(Path(module.__file__).resolve().parents[2]) not in text
    assert str(Path.home()) not in text
    assert len(platform.node()) < 4 or platform.node() not in text


def test_package_that_is_absent_is_null():
    assert module._version("no-such-distribution-of-hwa-jax") is None


def test_cpu_model_from_cpuinfo(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Chip: 9000 @ 2 GHz\nmodel name\t: other\n")
    assert module._cpu_model(cpuinfo) == "Chip: 9000 @ 2 GHz"
    assert module._cpu_model(tmp_path / "absent") == (platform.processor() or None)


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit of a package, and a function that runs git in it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    return package, git


def test_commit_of_a_checkout_and_of_a_changed_one(checkout):
    package, git = checkout
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    assert module._git_commit(package) == commit
    (package / "new.py").write_text("")
    assert module._git_commit(package) == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert module._git_commit(package) == commit + "-dirty"


def test_package_installed_inside_somebody_elses_repository_has_no_commit(checkout):
    package, _ = checkout
    installed = package / "site-packages" / "hwa_jax"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert module._git_commit(installed) is None


def test_no_repository_and_no_git_have_no_commit(checkout, tmp_path_factory, monkeypatch):
    package, _ = checkout
    assert module._git_commit(tmp_path_factory.mktemp("bare")) is None
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    assert module._git_commit(package) is None
