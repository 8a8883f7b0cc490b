"""Compares a linen module with its PyTorch original: save there, load here, run both."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from uae_jax.models.runtime import Runtime
from uae_jax.weights.pretrained import load_pretrained

# Relative L2 error of float32 against float32: both round at 6e-8 and sum in different orders; ten layers deep that
# gives some 1e-6. A wrong epsilon, activation or axis order gives 1e-3 and more.
TOLERANCE = 2e-5


def randomise(model: torch.nn.Module, seed: int, std: float = 0.05) -> torch.nn.Module:
    """Gives every parameter noise, so that no zero or one of the initialisation hides a missing term."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def relative_error(got: Any, wanted: Any) -> float:
    """||got - wanted|| / ||wanted||, in float64."""
    got = np.asarray(to_numpy(got), np.float64)
    wanted = np.asarray(to_numpy(wanted), np.float64)
    assert got.shape == wanted.shape, f"shape {got.shape}, wanted {wanted.shape}"
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def assert_close(got: Any, wanted: Any, name: str = "output", tolerance: float = TOLERANCE) -> None:
    """Fails with the name and both figures when the relative L2 error is above `tolerance`, or is NaN."""
    error = relative_error(got, wanted)
    assert error <= tolerance, f"{name}: relative L2 error {error:.2e}, wanted at most {tolerance:.0e}"


def to_numpy(x: Any) -> np.ndarray:
    return x.detach().float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


@dataclasses.dataclass
class Loaded:
    """A converted model, ready to run."""

    config: Any
    params: Any
    module: Any
    architecture: Any

    def __call__(self, *args: Any, lora: Any = None, method: Any = None, **kwargs: Any) -> Any:
        variables = {"params": self.params, **(lora or {})}
        return jax.jit(lambda v, a, k: self.module.apply(v, *a, method=method, **k))(variables, args, kwargs)

    def with_intermediates(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Returns the output and the tree of sown values."""
        run = jax.jit(lambda p, a, k: self.module.apply({"params": p}, *a, mutable=["intermediates"], **k))
        out, state = run(self.params, args, kwargs)
        return out, state["intermediates"]


def convert(model: Any, folder: Path, runtime: Runtime | None = None) -> Loaded:
    """Saves a transformers or diffusers model, and loads the folder with this package."""
    model.save_pretrained(folder)
    loaded = load_pretrained(folder)
    runtime = runtime or Runtime()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded.params))
    module = loaded.architecture.module(loaded.config, runtime)
    return Loaded(loaded.config, loaded.params, module, loaded.architecture)
