"""How XLA compiles in tests: quickly, since most programs run for less time than it takes to compile them well."""

from importlib import metadata

# Unoptimised code, and no splitting of a program over threads, all of which are busy. Where XLA still has them (it
# ends a process that asks for what it does not know), the emitters of before, which take half the time for the same
# speed. The step of a cold start compiles in 28 s, by the first of them alone in 58 s.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
    # Eight devices on two busy cores may wait for one another longer than 40 s, after which XLA ends the process.
    XLA_FLAGS += " --xla_cpu_collective_call_terminate_timeout_seconds=300"


def devices(count: int) -> str:
    """The same, and so many CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {XLA_FLAGS}"
