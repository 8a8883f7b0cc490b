"""How XLA compiles in tests: quickly, since most programs run for less time than it takes to compile them well."""

from importlib import metadata

# Unoptimised code, and no splitting of a program over threads, all of which are busy. Where XLA still has them (it
# ends a process that asks for what it does not know), the emitters of before, which take half the time for the same
# speed. The step of a cold start compiles in 28 s, by the first of them alone in 58 s.
_PLAIN = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
_HAS_OLD_EMITTERS = tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)
XLA_FLAGS = f"{_PLAIN} --xla_cpu_use_fusion_emitters=false" if _HAS_OLD_EMITTERS else _PLAIN


def devices(count: int) -> str:
    """The same, and so many CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {XLA_FLAGS}"


def of_a_process(count: int) -> str:
    """So many devices of one of several processes, which have to meet in the same order.

    By the emitters of before they do not, where two collectives do not depend on one another, as those of the towers of
    `contrastive`: one waits for another for ever, or takes its data for its own.
    """
    return f"--xla_force_host_platform_device_count={count} {_PLAIN}"
