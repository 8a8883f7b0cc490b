"""What a program may take of a chip's memory."""

import pytest

from uae_jax.plan import limits
from uae_jax.plan.topologies import CHIPS

H100, V5P = CHIPS["h100"], CHIPS["v5p"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in limits.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_jax_takes_three_quarters_of_a_gpu():
    # 60 of 80 GB, 56 GiB: at nine tenths, as of a TPU, plans of up to 67 GiB were said to fit.
    assert limits.share(H100) * H100.memory == 60e9 and limits.share(V5P) == 0.9
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=.92 in the environment" in limits.remedy(H100, 70e9)
    assert limits.remedy(H100, 59e9) == "" == limits.remedy(H100, 74e9)  # fits as it is; fits with nothing
    assert limits.remedy(V5P, 90e9) == ""  # there is no such setting for TPUs


def test_the_environment_may_say_another(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".95")
    assert limits.share(H100) == 0.95 and limits.share(V5P) == 0.9
    assert limits.remedy(H100, 70e9) == ""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ValueError, match="MEM_FRACTION is 'most', wanted a part"):
        limits.share(H100)
