"""Eight CPU devices and no network, before anything imports JAX; and one small checkpoint for all who need one."""

import gc
import os
import shutil
import tempfile

from tests import quickly

os.environ.setdefault("XLA_FLAGS", quickly.devices(8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Said here, no run in this process ends the cache for all others, as one of several CPU devices does by itself.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import pytest

# Tracing makes millions of objects that live on; looking through them for cycles as often as Python does by itself
# takes a tenth of the tests' time.
gc.set_threshold(100_000, 20, 100)


def pytest_configure(config):
    """What one test compiled serves all others of the run, those in other processes too."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers have their parent's
        folder = tempfile.mkdtemp(prefix="uae_jax_programs_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(tryfirst=True)  # before -m picks by marks
def pytest_collection_modifyitems(items):
    """What is exhaustive is slow: -m "not slow" stands in place of pyproject.toml's -m "not exhaustive".

    Files with slow tests go first: at the end, several workers still find something to share.
    """
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def uae_checkpoint(tmp_path_factory):
    """A small random UAE checkpoint in the published layout, adapters included: (folder, PyTorch originals).

    Not to be changed: all tests of a session share it.
    """
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from tests import published

    folder = tmp_path_factory.mktemp("published")
    return folder, published.write(folder)


@pytest.fixture(scope="session")
def small_uae(uae_checkpoint):
    """That checkpoint, loaded; shared, so that what one test compiled serves the next."""
    from uae_jax import UAE

    return UAE.from_pretrained(uae_checkpoint[0], dtype="float32", max_pixels=20_000)
