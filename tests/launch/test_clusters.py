"""gpu_nodes.sh, slurm.sh and xpk.sh against stand-ins of ssh, Slurm and kubectl."""

import shlex
import signal
import subprocess

import pytest

from tests.launch.conftest import CONFIG
from uae_jax.errors import ABANDONED, STOPPED

OVERRIDE = '--config.prompt=say "hi" to $HOME; it\'s `fine`'
RUN = ("--config", CONFIG, "--workdir", "gs://b/it's a run", OVERRIDE)
TRAINED = ["train", *RUN]
NODES = ("--nodes", "me@a b")
ABSENT = {"tool": "kubectl", "words": ["get", "jobset", "--ignore-not-found"], "code": 0}
THERE = ABSENT | {"out": "jobset.jobset.x-k8s.io/w1"}
TLS = {"tool": "kubectl", "words": ["jobset"], "code": 1, "err": "net/http: TLS handshake timeout"}
XPK = (
    "--name",
    "w1",
    "--cluster",
    "c",
    "--zone",
    "z",
    "--project",
    "p",
    "--tpu-type",
    "v5p-16",
    "--image",
    "registry/uae:1",
)


def test_every_node_runs_one_process_that_knows_its_place(cloud):
    homes = cloud.add_workers("a", "b")
    done = cloud.run("gpu_nodes.sh", *NODES, *RUN, HF_TOKEN="hf_secret", XLA_FLAGS="--x=1 --y=2")
    assert done.returncode == 0, done.stderr
    trained = {call["home"]: call for call in cloud.calls("uae")}
    assert {name: call["argv"] for name, call in trained.items()} == {"a": TRAINED, "b": TRAINED}
    for number, (name, call) in enumerate(sorted(trained.items())):
        assert call["env"] == {
            "JAX_COORDINATOR_ADDRESS": "a:8476",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
            "JAX_COMPILATION_CACHE_DIR": "gs://b/it's a run/compile_cache",
            "HF_TOKEN_PATH": str(homes[name] / ".uae_jax/hf_token"),
            "XLA_FLAGS": "--x=1 --y=2",
        }
    assert all(".[cuda,gcs]" in call["argv"] for call in cloud.calls("python", "--editable"))
    assert "hf_secret" not in done.stdout + done.stderr + str([call["argv"] for call in cloud.calls()])


def test_the_node_that_fails_is_named_and_the_others_are_stopped(cloud):
    cloud.add_workers("a", "b")
    cloud.play({"tool": "uae", "home": "b", "code": 9}, {"tool": "uae", "sleep": 600, "on_term": STOPPED})
    done = cloud.run("gpu_nodes.sh", *NODES, *RUN, GRACE_SECONDS="0")
    assert done.returncode == 9
    assert "error: b: run ended with exit code 9" in done.stderr
    assert "a: run was told to stop, and saved; the same command goes on" in done.stderr
    assert cloud.calls("SIGTERM", "uae")  # it had not noticed by itself within the grace
    assert len([call for call in cloud.calls("uae") if call["tool"] == "uae"]) == 2


def test_a_lost_node_is_waited_for_and_the_same_command_goes_on(cloud):
    cloud.add_workers("a", "b")
    gone = {"tool": "ssh", "words": ["UAE_WORKER=b", "worker.sh run"], "code": 255, "times": 1}
    there = {"tool": "scp", "words": ["b:"], "times": 1}
    away = {"tool": "scp", "words": ["b:"], "code": 255, "times": 3}
    cloud.play(gone, there, away, {"tool": "uae", "code": ABANDONED, "times": 1})  # b is lost, and a, alone, gives up
    done = cloud.run("gpu_nodes.sh", *NODES, *RUN, "--restarts", "1")
    assert done.returncode == 0, done.stderr
    assert "b: the connection broke" in done.stderr and "restart 1 of at most 1" in done.stderr
    assert "retry 3 of at most 100" in done.stderr  # until it is back, which is no restart
    assert [call["argv"] for call in cloud.calls("uae")] == [TRAINED] * 3


def test_what_failed_is_told_from_what_only_lost_it(cloud):
    cloud.add_workers("a", "b")
    cloud.play({"tool": "uae", "home": "a", "code": ABANDONED}, {"tool": "uae", "sleep": 2, "code": 9})
    done = cloud.run("gpu_nodes.sh", *NODES, *RUN)
    assert done.returncode == 9 and "error: b: run ended with exit code 9" in done.stderr


def test_a_node_that_was_never_reached_is_not_waited_for(cloud):
    cloud.add_workers("a", "b")
    cloud.play({"tool": "scp", "words": ["b:"], "err": "Host key verification failed.", "code": 255})
    done = cloud.run("gpu_nodes.sh", *NODES, *RUN)
    assert done.returncode == 1 and "restart" not in done.stderr
    assert "Host key verification failed." in done.stdout


def test_an_interrupt_leaves_the_nodes_running_and_says_so(cloud):
    cloud.add_workers("a", "b")
    cloud.play({"tool": "uae", "sleep": 600})
    process = cloud.start("gpu_nodes.sh", *NODES, *RUN)
    cloud.wait_for("uae", times=2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and not cloud.calls("SIGTERM")
    assert "goes on on me@a b" in err and "ssh b 'bash uae_jax/launch/worker.sh stop'" in err


def test_the_job_is_submitted_with_all_that_it_needs(cloud):
    logs = str(cloud.folder / "job logs")
    cloud.play({"tool": "sbatch", "out": "4711;cluster", "code": 0})
    more = ("--nodes", "4", "--gpus-per-node", "2", "--time", "1:00:00", "--partition", "gpu", "--logs", logs)
    cloud.install()
    done = cloud.run("slurm.sh", *RUN, *more, NODES="not this one")
    assert done.returncode == 0 and done.stdout == "4711\n"
    assert "scancel 4711" in done.stderr and "job logs/uae-4711.log" in done.stderr
    (submitted,) = cloud.calls("sbatch")
    argv = submitted["argv"]
    assert argv[argv.index("launch/slurm_job.sh") + 1 :] == TRAINED[1:]
    for option in ("--nodes 4", "--ntasks-per-node 1", "--gpus-per-node 2", "--partition gpu", "--time 1:00:00"):
        assert option in " ".join(argv)
    assert {"--requeue", "B:TERM@180", str(cloud.root)} <= set(argv)
    assert submitted["env"]["JAX_LOCAL_DEVICE_IDS"] == "0,1"  # JAX's own guess under Slurm is one GPU a process


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, {"--exclusive", "--mem"}),  # else Slurm gives one CPU
        ({"SBATCH_CPUS_PER_GPU": "8", "SBATCH_MEM_PER_GPU": "64G"}, set()),
        ({"SBATCH_CPUS_PER_GPU": "8"}, set()),  # all memory would keep others off the node
        ({"SBATCH_MEM_PER_NODE": "500G"}, {"--exclusive"}),
        ({"SBATCH_EXCLUSIVE": "user"}, {"--mem"}),
    ],
)
def test_a_job_has_all_of_its_nodes_unless_told_otherwise(cloud, variables, wanted):
    cloud.install()
    done = cloud.run("slurm.sh", *RUN, "--logs", str(cloud.folder / "logs"), **variables)
    assert done.returncode == 0, done.stderr
    argv = cloud.calls("sbatch")[0]["argv"]
    assert {"--exclusive", "--mem"} & set(argv) == wanted
    assert "--mem" not in argv or argv[argv.index("--mem") + 1] == "0"


def test_an_environment_for_other_hardware_is_not_submitted(cloud):
    """As launch/local.sh --only-install makes it on a node without GPUs."""
    cloud.install("cpu")
    made = cloud.root / ".venv/uae_extras"
    logs = ("--logs", str(cloud.folder / "logs"), "--dry-run")
    installation = "env UAE_HARDWARE=cuda UAE_EXTRAS=gcs launch/local.sh --only-install"
    for extras, installed in (("cpu", False), ("cuda", False), ("gcs\ncuda", True)):
        made.write_text("\n".join((made.read_text().splitlines()[0], extras, "")))
        done = cloud.run("slurm.sh", *RUN, *logs)
        assert done.returncode == 0 and (installation not in done.stdout) == installed, extras
    assert installation.replace("gcs", "''") not in cloud.run("slurm.sh", *RUN, "--workdir", "/s/x", *logs).stdout
    (cloud.root / "setup.py").write_text("# wants more now")
    assert installation in cloud.run("slurm.sh", *RUN, *logs).stdout
    cloud.write_standin(cloud.root / ".venv/bin/python")
    done = cloud.run("slurm.sh", *RUN, *logs[:-1])
    assert done.returncode == 0, done.stderr
    (installed,) = cloud.calls("python", "--editable")
    assert ".[cuda,gcs]" in installed["argv"] and cloud.calls("sbatch")
    assert cloud.run("slurm.sh", *RUN, *logs[:-1]).returncode == 0
    assert len(cloud.calls("python", "--editable")) == 1  # it is known now


def test_a_job_for_gpus_does_not_train_on_cpus(cloud):
    cloud.install()
    logs = ("--logs", str(cloud.folder / "logs"))
    for more, variables, platforms in (
        ((), {}, "cuda,cpu"),
        ((), {"JAX_PLATFORMS": "rocm"}, "rocm"),
        (("--gpus-per-node", "0"), {}, None),
    ):
        cloud.run("slurm.sh", *RUN, *logs, *more, **variables)
        assert cloud.calls("sbatch")[-1]["env"].get("JAX_PLATFORMS") == platforms


def test_where_nothing_is_installed_it_is_first(cloud):
    done = cloud.run("slurm.sh", *RUN, "--logs", str(cloud.folder / "logs"), "--dry-run")
    lines = done.stdout.splitlines()
    assert lines[0] == "env UAE_HARDWARE=cuda UAE_EXTRAS=gcs launch/local.sh --only-install"
    assert shlex.split(lines[-1])[-len(RUN) :] == list(RUN)


def start_job(cloud, **variables) -> subprocess.Popen:
    env = cloud.environment(SLURM_JOB_ID="4711", UAE_VENV="venv", **variables)
    command = ["bash", "launch/slurm_job.sh", *RUN]
    return subprocess.Popen(command, cwd=cloud.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_task_that_fails_ends_the_job_with_its_code(cloud):
    cloud.play({"tool": "srun", "err": "srun: error: node2: task 1: Exited with exit code 7", "code": 7})
    job = start_job(cloud)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 7 and "srun ended with exit code 7" in err and "node2: task 1" in err
    (call,) = cloud.calls("srun")
    assert call["argv"][call["argv"].index("--cpu-bind") + 1] == "none"
    assert call["argv"][-len(TRAINED) - 1 :] == ["venv/bin/uae", *TRAINED]
    assert not cloud.calls("scontrol")  # what fails would fail again


@pytest.mark.parametrize(("restarts", "queued"), [("0", True), ("3", False)])
def test_a_job_told_to_stop_saves_and_queues_again(cloud, restarts, queued):
    cloud.play({"tool": "srun", "sleep": 600, "on_term": STOPPED})
    job = start_job(cloud, SLURM_RESTART_COUNT=restarts, UAE_RESTARTS="3")
    cloud.wait_for("srun")
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert cloud.calls("SIGTERM", "srun")
    assert bool(cloud.calls("scontrol", "requeue", "4711")) == queued
    assert "told to stop; saving" in err


def test_a_job_whose_tasks_alone_were_told_to_stop_queues_again(cloud):
    cloud.play({"tool": "srun", "code": STOPPED})
    job = start_job(cloud)
    _, err = job.communicate(timeout=120)
    assert cloud.calls("scontrol", "requeue", "4711") and "error" not in err


def ended(state: str) -> dict:
    return {"tool": "kubectl", "words": ["jobset", "terminalState"], "out": state, "code": 0}


def test_the_workload_runs_the_same_command(cloud):
    kept = cloud.folder / "tmp"
    cloud.play(ended("") | {"times": 1}, ended("Completed"))
    done = cloud.run("xpk.sh", *XPK, *RUN, "--build", "--num-slices", "2", "--restarts", "5", "--delete-after")
    assert done.returncode == 0, done.stderr
    order = [(call["tool"], call["argv"][0]) for call in cloud.calls() if call["tool"] != "kubectl"]
    assert order == [("xpk", "workload"), ("docker", "build"), ("docker", "push"), *[("xpk", "workload")] * 2]
    assert "linux/amd64" in cloud.calls("docker", "build", "--platform")[0]["argv"]  # as nodes are, and Macs are not
    reach, create, delete = cloud.calls("xpk")
    assert reach["argv"][:2] == ["workload", "list"]
    argv = create["argv"]
    options = dict(zip(argv[2::2], argv[3::2], strict=True))
    folder, command = options["--command"].split(" && ", 1)
    assert folder == "cd /uae_jax" and shlex.split(command) == [".venv/bin/uae", *TRAINED]
    assert options["--num-slices"] == "2" and options["--max-restarts"] == "5"
    assert options["--docker-image"] == "registry/uae:1"
    assert delete["argv"][:2] == ["workload", "delete"] and "--force" in delete["argv"]
    assert len(cloud.calls("kubectl", "logs")) == 2  # pods that started again are followed again
    assert not list(kept.iterdir())


def test_the_token_is_in_no_argument_and_no_file(cloud):
    done = cloud.run("xpk.sh", *XPK, *RUN, "--dry-run", HF_TOKEN="hf_secret")
    assert done.returncode == 0 and "hf_secret" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("printf")]
    assert shlex.split(line)[2:5] == [
        "JAX_COMPILATION_CACHE_DIR=gs://b/it's a run/compile_cache",
        "UAE_START_TIMEOUT=600",  # seconds for nodes to come and to pull the image
        "HF_TOKEN",
    ]
    cloud.play(ended("Completed"))
    cloud.run("xpk.sh", *XPK, *RUN, HF_TOKEN="hf_secret")
    assert cloud.calls("xpk", "create")[0]["env"]["HF_TOKEN"] == "hf_secret"  # from which xpk fills it in


def test_pods_that_failed_are_named(cloud):
    pods = {"tool": "kubectl", "words": ["pods"], "out": "w1-slice-0-0 0\nw1-slice-0-1 7\nw1-slice-0-2", "code": 0}
    cloud.play(ended("Failed"), pods)
    done = cloud.run("xpk.sh", *XPK, *RUN)
    assert done.returncode == 7
    assert "error: pod w1-slice-0-1 ended with exit code 7" in done.stderr and "slice-0-0 ended" not in done.stderr
    assert "workload w1 ended as Failed" in done.stderr


def test_a_pod_with_an_error_of_its_own_is_told_from_those_that_lost_it(cloud):
    out = f"w1-slice-0-0 {ABANDONED}\nw1-slice-0-1 1\nw1-slice-0-2 {STOPPED}"
    cloud.play(ended("Failed"), {"tool": "kubectl", "words": ["pods"], "out": out, "code": 0})
    assert cloud.run("xpk.sh", *XPK, *RUN).returncode == 1


CONTAINER = """
_sigterm() (kill -SIGTERM $! 2>/dev/null;);
trap _sigterm SIGTERM;
(export TPU_STDERR_LOG_LEVEL=0 && {command}) & PID=$!;
while kill -0 $PID 2>/dev/null;
    do sleep 1;
done;
wait $PID;
exit $?
"""  # as xpk 1.16 has a pod run the command, but for the seconds


@pytest.mark.parametrize("told", [True, False])
def test_pods_that_are_preempted_start_again_and_those_that_fail_do_not(cloud, told):
    """xpk (get_restart_exit_codes): a pod that ends with 42 or 127 to 255 does, any other code ends the workload."""
    cloud.play(ended("Completed"))
    assert cloud.run("xpk.sh", *XPK, *RUN).returncode == 0
    argv = cloud.calls("xpk", "create")[0]["argv"]
    command = argv[argv.index("--command") + 1].replace("/uae_jax", shlex.quote(str(cloud.root)), 1)
    cloud.install()
    cloud.play({"tool": "uae", "sleep": 600, "on_term": STOPPED} if told else {"tool": "uae", "code": 1})
    script = CONTAINER.format(command=command)
    pod = subprocess.Popen(["bash", "-c", script], env=cloud.environment())
    cloud.wait_for("uae")
    if told:
        pod.send_signal(signal.SIGTERM)
    assert (pod.wait(timeout=120) in (42, *range(127, 256))) == told
    assert bool(cloud.calls("SIGTERM", "uae")) == told  # it reaches `uae`, which saves


def test_an_interrupt_leaves_the_workload_and_says_so(cloud):
    cloud.play({"tool": "kubectl", "words": ["logs"], "sleep": 600})
    process = cloud.start("xpk.sh", *XPK, *RUN)
    cloud.wait_for("kubectl", "logs")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and not cloud.calls("xpk", "delete")
    assert "workload w1 on cluster c goes on" in err and "xpk workload delete --workload w1" in err


def test_a_workload_that_is_refused_leaves_nothing(cloud):
    cloud.play({"tool": "xpk", "words": ["create"], "code": 3})
    done = cloud.run("xpk.sh", *XPK, *RUN, "--delete-after")
    assert done.returncode == 1 and "xpk did not create the workload" in done.stderr
    assert not cloud.calls("kubectl", "logs") and not cloud.calls("xpk", "delete") and "may go on" not in done.stderr


def test_a_workload_that_somebody_made_meanwhile_is_left_alone(cloud):
    cloud.play({"tool": "xpk", "words": ["create"], "code": 1, "err": "already exists"}, ABSENT | {"times": 1}, THERE)
    done = cloud.run("xpk.sh", *XPK, *RUN, "--delete-after")
    assert done.returncode == 1 and not cloud.calls("xpk", "delete")
    assert "workload w1 on cluster c may go on: nothing was deleted" in done.stderr


def test_called_again_it_looks_on(cloud):
    """At what an interrupt left, without making, building or, while it runs, deleting anything."""
    command = {"words": ["jsonpath={.spec"], "out": '["bash","-c","uae train --workdir gs://b/run;"]', "code": 0}
    run = (*XPK, "--config", CONFIG, "--workdir", "gs://b/run", "--delete-after", "--build")
    cloud.play(THERE, command, ended("") | {"times": 1}, ended("Completed"))
    done = cloud.run("xpk.sh", *run)
    assert done.returncode == 0, done.stderr
    assert [call["argv"][1] for call in cloud.calls("xpk")] == ["list", "delete"] and not cloud.calls("docker")
    assert len(cloud.calls("kubectl", "logs")) == 2 and "workload w1 is there; looking on" in done.stderr
    cloud.play(THERE, command | {"out": '["bash","-c","uae train --workdir gs://b/run2;"]'})
    done = cloud.run("xpk.sh", *run)
    assert done.returncode == 1 and "there is a workload w1 with another --workdir than gs://b/run" in done.stderr
    assert len(cloud.calls("xpk", "delete")) == 1 and not cloud.calls("xpk", "create")


@pytest.mark.parametrize("delete", [(), ("--delete-after",)])
def test_a_state_that_cannot_be_asked_for_a_moment_ends_nothing(cloud, delete):
    cloud.play(ABSENT | {"times": 1}, TLS | {"times": 5}, ended("Completed"))
    done = cloud.run("xpk.sh", *XPK, *RUN, *delete)
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("kubectl", "logs")) == 1 and bool(cloud.calls("xpk", "delete")) == bool(delete)
    assert "TLS handshake timeout" in done.stderr and "asking again in 0 s (try 2 of 8)" in done.stderr


@pytest.mark.parametrize("delete", [(), ("--delete-after",)])
def test_a_workload_of_unknown_state_is_not_deleted(cloud, delete):
    cloud.play(ABSENT | {"times": 1}, TLS)
    done = cloud.run("xpk.sh", *XPK, *RUN, *delete, ASK_TRIES="3")
    assert done.returncode == 1 and not cloud.calls("xpk", "delete")
    assert "kubectl does not say how w1 stands, asked 3 times" in done.stderr
    assert "workload w1 on cluster c may go on: nothing was deleted; the cluster is billed" in done.stderr
    assert "  xpk workload delete --workload w1" in done.stderr and "  kubectl get jobset w1" in done.stderr


def test_a_cluster_that_cannot_be_reached_gets_nothing(cloud):
    cloud.play({"tool": "xpk", "words": ["list"], "code": 1})
    done = cloud.run("xpk.sh", *XPK, *RUN, "--build", "--delete-after")
    assert done.returncode == 1 and "xpk cannot reach the cluster c" in done.stderr
    assert len(cloud.calls()) == 1


def test_a_workload_that_is_gone_is_not_deleted(cloud):
    cloud.play(ABSENT, TLS | {"err": 'Error from server (NotFound): jobsets.jobset.x-k8s.io "w1" not found'})
    done = cloud.run("xpk.sh", *XPK, *RUN, "--delete-after")
    assert done.returncode == 1 and "workload w1 is gone" in done.stderr and not cloud.calls("xpk", "delete")
