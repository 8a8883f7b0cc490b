"""local.sh: the same --config and --workdir as the scripts beside it."""

import pytest

from tests.launch.conftest import CONFIG

RUN = ("--config", f"{CONFIG}:steps=2", "--workdir", "runs/it's a run", "--config.x=1")


@pytest.fixture
def installed(cloud):
    cloud.install("cpu")
    cloud.write_standin(cloud.root / ".venv/bin/python")
    return cloud


def test_a_config_is_trained_and_none_is_the_demo(installed):
    assert installed.run("local.sh", *RUN).returncode == 0
    assert installed.run("local.sh", "--workdir", "runs/demo", "--config.understanding.steps=2").returncode == 0
    assert [call["argv"] for call in installed.calls("uae")] == [
        ["train", *RUN],
        ["demo", "--workdir", "runs/demo", "--config.understanding.steps=2"],
    ]
    assert not installed.calls("python")  # installed it is


def test_it_is_installed_first_for_what_is_found(installed):
    installed.write_standin(installed.bin / "nvidia-smi")
    assert installed.run("local.sh", *RUN[:2], "--workdir", "gs://b/x").returncode == 0
    assert ".[cuda,gcs]" in installed.calls("python", "--editable")[0]["argv"]
    assert installed.calls("uae", "train")
    assert installed.run("local.sh", "--is-installed", UAE_EXTRAS="gcs").returncode == 0
    assert installed.run("local.sh", "--is-installed", UAE_HARDWARE="tpu").returncode == 1
    assert installed.run("local.sh", "--only-install").returncode == 0
    assert len(installed.calls("python", "--editable")) == 2 and len(installed.calls("uae")) == 1


@pytest.mark.parametrize(("arguments", "command"), [(RUN, "train"), ((), "demo")])
def test_a_dry_run_prints_installation_and_command(cloud, arguments, command):
    done = cloud.run("local.sh", *arguments, "--dry-run", UAE_HARDWARE="cuda")
    assert done.returncode == 0 and not cloud.calls() and not (cloud.root / ".venv").exists()
    lines = done.stdout.splitlines()
    assert "-m venv .venv" in lines[0] and "--upgrade pip" in lines[1] and "[cuda" in lines[2]
    assert lines[3].startswith(f".venv/bin/uae {command}") and len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config", "configs/none.py", "--workdir", "x"), "configs/none.py: no such config file"),
        (("--config", CONFIG), "--workdir is missing"),
        (("--config", "--dry-run", "--workdir", "x"), "--config has no value: '--dry-run', which follows it"),
        (("--config=", "--workdir", "x"), "--config has no value"),
        (("--workdir",), "--workdir has no value"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_installed(cloud, arguments, said):
    done = cloud.run("local.sh", *arguments)
    assert done.returncode == 2 and said in done.stderr
    assert not cloud.calls() and not (cloud.root / ".venv").exists()
