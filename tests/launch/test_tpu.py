"""tpu_vm.sh and tpu_queued.sh against a stand-in of gcloud, whose workers are folders of this machine."""

import os
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import CONFIG
from uae_jax.errors import STOPPED

VM = ("--name", "n1", "--zone", "z", "--project", "p", "--tpu-type", "v5p-16")
WORKDIR = "gs://b/it's a run"
OVERRIDE = '--config.prompt=say "hi" to $HOME; it\'s `fine`'
RUN = ("--config", f"{CONFIG}:steps=2,name=x y", "--workdir", WORKDIR, OVERRIDE)
TRAINED = ["train", *RUN]
ABSENT = {"tool": "gcloud", "words": ["tpu-vm", "describe"], "code": 1, "err": "ERROR: NOT_FOUND: no such node"}
READY = {"tool": "gcloud", "words": ["tpu-vm", "describe"], "code": 0, "out": "READY"}
PREEMPTED = {"tool": "gcloud", "words": ["tpu-vm", "describe"], "code": 0, "out": "PREEMPTED"}


def queued(state: str, times: int = 1) -> dict:
    return {"words": ["queued-resources", "describe", "value(state.state)"], "code": 0, "out": state, "times": times}


NOT_QUEUED = queued("") | {"code": 1, "err": "NOT_FOUND"}


def once(play: dict) -> dict:
    return play | {"times": 1}


def verbs(cloud) -> list[str]:
    """What gcloud was told to do, in order."""
    return [call["argv"][3] for call in cloud.calls("gcloud") if call["argv"][3] != "describe"]


def test_every_word_reaches_every_worker(cloud):
    cloud.add_workers("0", "1")
    cloud.play(ABSENT)
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["create", "scp", "ssh", "ssh"]
    create = cloud.calls("gcloud", "create")[0]["argv"]
    assert " ".join(create[4:]) == "n1 --accelerator-type v5p-16 --version v2-alpha-tpuv5 --zone z --project p --quiet"
    trained = cloud.calls("uae")
    assert sorted(call["home"] for call in trained) == ["0", "1"]
    assert [call["argv"] for call in trained] == [TRAINED, TRAINED]
    assert all(call["env"]["JAX_COMPILATION_CACHE_DIR"] == f"{WORKDIR}/compile_cache" for call in trained)
    installs = [call["argv"] for call in cloud.calls("python") if ".[tpu,gcs]" in call["argv"]]
    assert len(installs) == 2
    assert "left running, and billed until it is deleted: n1" in done.stderr
    assert not list((cloud.folder / "tmp").iterdir())  # staged files are gone


def test_a_connection_that_dies_silently_is_noticed(cloud):
    cloud.add_workers("0")
    cloud.play(READY)
    assert cloud.run("tpu_vm.sh", *VM, *RUN).returncode == 0
    for call in cloud.calls("gcloud", "ssh"):
        assert {"--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4"} <= set(call["argv"])


KEY = {"tool": "ssh-keygen", "out": "3072 SHA256:abc me@here (RSA)", "code": 0}
HELD = {"tool": "ssh-add", "out": "256 SHA256:xyz other (ED25519)\n3072 SHA256:abc me@here (RSA)", "code": 0}
EMPTY = {"tool": "ssh-add", "out": "The agent has no identities.", "code": 1}


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_queued.sh"])
@pytest.mark.parametrize(
    ("plays", "said"),
    [
        ((KEY, EMPTY), "does not hold gcloud's key, without which gcloud does not reach several workers: ssh-add"),
        ((KEY, HELD | {"out": "256 SHA256:xyz other"}), "does not hold gcloud's key"),
        ((KEY | {"out": "", "code": 255}, HELD), "no key yet: ssh-keygen -t rsa -f ~/.ssh/google_compute_engine"),
    ],
)
def test_an_agent_without_gclouds_key_is_told_before_anything_is_made(cloud, script, plays, said):
    """gcloud: "SSH Key is not present in the SSH agent", where there are several workers."""
    cloud.play(*plays)
    done = cloud.run(script, *VM, *RUN, SSH_AUTH_SOCK="/tmp/agent")
    assert done.returncode == 1 and said in done.stderr and not cloud.calls("gcloud")


@pytest.mark.parametrize(
    ("agent", "kind", "plays"),
    [
        ("/tmp/agent", "v5p-16", (KEY, HELD)),
        ("/tmp/agent", "v5p-8", (KEY, EMPTY)),  # one worker
        ("/tmp/gone", "v5p-16", (KEY, EMPTY | {"code": 2})),  # nobody answers at that address
        ("", "v5p-16", (KEY, EMPTY)),
    ],
)
def test_other_agents_are_no_obstacle(cloud, agent, kind, plays):
    cloud.add_workers("0")
    cloud.play(*plays, READY)
    done = cloud.run("tpu_vm.sh", *VM[:-1], kind, *RUN, SSH_AUTH_SOCK=agent)
    assert done.returncode == 0, done.stderr


def test_prints_of_workers_carry_their_number(cloud):
    cloud.add_workers("0", "1")
    cloud.play(
        READY, {"tool": "uae", "home": "0", "out": "loss 1.5", "code": 0}, {"tool": "uae", "out": "idle", "code": 0}
    )
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    lines = done.stdout.splitlines()
    assert "[worker 0] loss 1.5" in lines and "[worker 1] idle" in lines
    assert "create" not in verbs(cloud)


def test_names_the_worker_that_failed(cloud):
    cloud.add_workers("0", "1")
    cloud.play(READY, {"tool": "uae", "home": "1", "err": "Traceback", "code": 7})
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 7
    assert "error: worker 1: run ended with exit code 7" in done.stderr
    assert "[worker 1] Traceback" in done.stdout
    assert len(cloud.calls("uae")) == 2  # a failure is not tried again
    assert "delete" not in verbs(cloud)


def test_names_the_worker_that_could_not_install(cloud):
    cloud.add_workers("0", "1")
    cloud.play(READY, {"tool": "python", "home": "1", "err": "no network", "code": 3})
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 3
    assert "error: worker 1: install ended with exit code 3" in done.stderr
    assert not cloud.calls("uae")


def test_a_worker_whose_python_is_too_old_gets_another(cloud):
    homes = cloud.add_workers("0")  # as Cloud TPU's Ubuntu 22.04 has 3.10
    uv = homes["0"] / ".uae_jax/uv/bin/uv"
    uv.parent.mkdir(parents=True)
    cloud.write_standin(uv)
    (cloud.tools / "python3").unlink()
    cloud.write_standin(cloud.tools / "python3")
    cloud.play(READY, {"tool": "python3", "words": ["-c"], "code": 1}, {"tool": "uv", "out": "python3", "code": 0})
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 0, done.stderr
    assert cloud.calls("python3", "--target", str(uv.parents[1]), "uv")
    assert [call["argv"] for call in cloud.calls("uv", "3.12")] == [
        ["python", "install", "--quiet", "3.12"],
        ["python", "find", "3.12"],
    ]


def test_a_preempted_vm_is_made_again_and_runs_the_same_command(cloud):
    cloud.add_workers("0", "1")
    # Told to stop, workers save and end while the VM still says READY.
    told = {"tool": "uae", "code": STOPPED, "times": 2}
    cloud.play(told, once(ABSENT), once(READY), PREEMPTED | {"times": 2}, ABSENT)
    done = cloud.run("tpu_vm.sh", *VM, *RUN, "--spot")
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["create", "scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert all("--spot" in call["argv"] for call in cloud.calls("gcloud", "create"))
    assert [call["argv"] for call in cloud.calls("uae")] == [TRAINED] * 4
    assert "n1 is PREEMPTED" in done.stderr and "restart 1 of at most 20" in done.stderr
    assert "was told to stop" not in done.stderr  # not an error of the run


def test_capacity_that_comes_back_later_is_waited_for(cloud):
    cloud.add_workers("0")
    told = {"tool": "uae", "code": STOPPED, "times": 1}
    none_free = {"tool": "gcloud", "words": ["create"], "code": 1, "err": "no more capacity"}
    created = {"tool": "gcloud", "words": ["create"], "code": 0}
    cloud.play(told, once(ABSENT), PREEMPTED | {"times": 2}, ABSENT, once(created), none_free | {"times": 3})
    done = cloud.run("tpu_vm.sh", *VM, *RUN, "--restarts", "1", RETRY_SECONDS="1", ASK_SECONDS="2")
    assert done.returncode == 0, done.stderr
    assert verbs(cloud).count("create") == 5
    assert "restart 1 of at most 1" in done.stderr  # what was not there was not taken away
    waits = [line.rpartition(" again ")[2] for line in done.stderr.splitlines() if "no worker could" in line]
    assert waits == [f"in {seconds} s (retry {number} of at most 100)" for number, seconds in ((1, 1), (2, 2), (3, 2))]


def test_gives_up_after_as_many_restarts_as_asked(cloud):
    cloud.add_workers("0")
    cloud.play({"words": ["create"], "code": 1}, once(ABSENT), ABSENT)
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 75 and verbs(cloud) == ["create"]  # the first time, gcloud's reason stands
    assert "left running" not in done.stderr
    cloud.play(
        {"words": ["create"], "code": 1},
        {"tool": "uae", "code": 1},
        once(READY),
        PREEMPTED | {"times": 2},
        ABSENT,
    )
    done = cloud.run("tpu_vm.sh", *VM, *RUN, "--retries", "2")
    assert done.returncode == 1 and verbs(cloud).count("create") == 1 + 3
    assert "no worker could be had or reached in 3 tries, see above; --retries N allows more" in done.stderr
    cloud.play({"tool": "uae", "code": STOPPED}, once(READY), *[PREEMPTED | {"times": 2}, once(ABSENT)] * 3)
    done = cloud.run("tpu_vm.sh", *VM, *RUN, "--restarts", "2")
    assert done.returncode == 1
    assert "taken away once more after 2 restarts" in done.stderr


def test_what_somebody_else_deleted_is_not_made_again(cloud):
    cloud.add_workers("0")
    cloud.play({"tool": "uae", "code": 1}, once(READY), ABSENT)
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 1
    assert "create" not in verbs(cloud)
    assert "somebody stopped or deleted n1" in done.stderr and "left running" not in done.stderr


def test_a_broken_connection_is_taken_up_again_and_the_run_goes_on(cloud):
    cloud.add_workers("0")
    train = {"tool": "gcloud", "words": ["ssh", "worker.sh run"], "out": "[worker 0] step 1", "code": 255, "times": 1}
    cloud.play(train, READY)
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 0, done.stderr
    assert "the connection to n1 broke" in done.stderr
    assert len(cloud.calls("uae")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_vm_and_says_so(cloud, number):
    homes = cloud.add_workers("0")
    cloud.play({"tool": "uae", "sleep": 600, "out": "step 1", "on_term": STOPPED}, READY)
    process = cloud.start("tpu_vm.sh", *VM, *RUN)
    trained = cloud.wait_for("uae")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "delete" not in verbs(cloud)
    assert "left running, and billed until it is deleted: n1, v5p-16 in z, project p" in err
    assert "gcloud compute tpus tpu-vm delete n1 --zone z --project p --quiet" in err
    assert "worker.sh stop" in err and "nothing else needs clearing up" in err
    os.kill(trained["pid"], 0)  # the run goes on
    # The printed command comes back to it, and starts no second one.
    line = next(line for line in err.splitlines() if line.startswith("  launch/tpu_vm.sh"))
    with open(cloud.folder / "again", "w+") as seen:
        again = subprocess.Popen(
            ["bash", "-c", line], cwd=cloud.root, env=cloud.environment(), stdout=seen, stderr=seen
        )
        while "looking on" not in (cloud.folder / "again").read_text():
            assert again.poll() is None
            time.sleep(0.05)
    stop = {"PATH": cloud.environment()["PATH"], "HOME": str(homes["0"]), "STANDIN": str(cloud.state)}
    stopped = subprocess.run(["bash", "uae_jax/launch/worker.sh", "stop"], cwd=homes["0"], env=stop, timeout=120)
    assert stopped.returncode == 0 and cloud.calls("SIGTERM", "uae")  # asked, so that it saves
    assert again.wait(timeout=120) == STOPPED and len(cloud.calls("uae")) == 2  # the run, and its SIGTERM
    assert "worker 0: run was told to stop, and saved" in (cloud.folder / "again").read_text()


def test_an_interrupt_deletes_where_it_was_asked_to(cloud):
    cloud.add_workers("0")
    cloud.play({"tool": "uae", "sleep": 600}, READY)
    process = cloud.start("tpu_vm.sh", *VM, *RUN, "--delete-after")
    cloud.wait_for("uae")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert verbs(cloud)[-1] == "delete" and "nothing is left running" in err


def test_a_deletion_that_fails_is_said(cloud):
    cloud.add_workers("0")
    cloud.play(READY, {"tool": "gcloud", "words": ["delete"], "code": 1})
    done = cloud.run("tpu_vm.sh", *VM, *RUN, "--delete-after")
    assert "deleting n1 failed" in done.stderr and "billed until it is deleted: n1" in done.stderr


def test_another_run_on_the_vm_is_not_disturbed(cloud):
    homes = cloud.add_workers("0")
    cloud.play({"tool": "uae", "sleep": 600}, READY)
    first = cloud.start("tpu_vm.sh", *VM, *RUN)
    cloud.wait_for("uae")
    marker = homes["0"] / "uae_jax/launch/local.sh"
    marker.unlink()
    second = cloud.run("tpu_vm.sh", *VM, *RUN, "--config.seed=2")
    assert second.returncode == 1 and "[worker 0] another run is under way" in second.stdout
    assert not marker.exists() and len(cloud.calls("uae")) == 1
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)


def test_the_token_travels_by_file(cloud):
    homes = cloud.add_workers("0")
    cloud.play(READY)
    done = cloud.run("tpu_vm.sh", *VM, *RUN, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr + str([call["argv"] for call in cloud.calls()])
    token = homes["0"] / ".uae_jax/hf_token"
    assert token.read_text() == "hf_secret" and token.stat().st_mode & 0o077 == 0
    assert cloud.calls("uae")[0]["env"]["HF_TOKEN_PATH"] == str(token)


def test_the_queue_is_waited_for(cloud):
    cloud.add_workers("0", "1")
    cloud.play(NOT_QUEUED, queued("WAITING_FOR_RESOURCES", 2), queued("PROVISIONING"), queued("ACTIVE", 99), READY)
    done = cloud.run("tpu_queued.sh", *VM, *RUN, "--valid-until", "6h", "--delete-after")
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["create", "scp", "ssh", "ssh", "delete"]
    create = cloud.calls("queued-resources", "create")[0]["argv"]
    assert create[4:9] == ["n1", "--node-id", "n1", "--accelerator-type", "v5p-16"]
    assert create[create.index("--valid-until-duration") + 1] == "6h"
    assert "WAITING_FOR_RESOURCES" in done.stderr
    assert [call["argv"] for call in cloud.calls("uae")] == [TRAINED, TRAINED]
    assert "--force" in cloud.calls("queued-resources", "delete")[0]["argv"]


def test_a_suspended_resource_is_asked_for_again(cloud):
    cloud.add_workers("0")
    told = {"tool": "uae", "code": STOPPED, "times": 1}
    cloud.play(told, queued("ACTIVE"), queued("SUSPENDED", 2), NOT_QUEUED, queued("ACTIVE", 99), READY)
    done = cloud.run("tpu_queued.sh", *VM, *RUN)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["scp", "ssh", "ssh", "delete", "create", "scp", "ssh", "ssh"]
    assert [call["argv"] for call in cloud.calls("uae")] == [TRAINED, TRAINED]


def test_a_request_that_fails_is_shown(cloud):
    cloud.play(NOT_QUEUED, queued("FAILED", 9), {"words": ["describe"], "code": 0, "out": "quota exceeded"})
    done = cloud.run("tpu_queued.sh", *VM, *RUN)
    assert done.returncode == 1
    assert "quota exceeded" in done.stdout and "ended as FAILED" in done.stderr


def test_an_interrupt_in_the_queue_says_that_it_will_be_billed(cloud):
    cloud.play(queued("WAITING_FOR_RESOURCES", 10**6))
    process = cloud.start("tpu_queued.sh", *VM, *RUN, RETRY_SECONDS="1")
    cloud.wait_for("describe", times=2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "queued-resources delete n1 --force" in err and verbs(cloud) == []


OFFLINE = {"tool": "gcloud", "words": ["describe"], "code": 1, "err": "ServerNotFoundError: Unable to find the server"}


def test_a_state_that_cannot_be_asked_for_a_moment_ends_nothing(cloud):
    """The connection breaks under a run, and gcloud does not answer at once."""
    cloud.add_workers("0")
    broken = {"words": ["ssh", "worker.sh run"], "out": "[worker 0] step 1", "code": 255, "times": 1}
    cloud.play(broken, once(READY), OFFLINE | {"times": 5}, READY)
    done = cloud.run("tpu_vm.sh", *VM, *RUN)
    assert done.returncode == 0, done.stderr
    assert "asking again in 0 s (try 2 of 8)" in done.stderr and "the connection to n1 broke" in done.stderr
    assert len(cloud.calls("uae")) == 1 and "delete" not in verbs(cloud)


@pytest.mark.parametrize("delete", [(), ("--delete-after",)])
@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_queued.sh"])
def test_a_vm_of_unknown_state_is_not_deleted(cloud, script, delete):
    cloud.add_workers("0")
    broken = {"words": ["ssh", "worker.sh run"], "out": "[worker 0] step 1", "code": 255, "times": 1}
    cloud.play(
        broken,
        {"words": ["describe"], "code": 0, "out": "READY" if script == "tpu_vm.sh" else "ACTIVE", "times": 1},
        OFFLINE,
    )
    done = cloud.run(script, *VM, *RUN, *delete, ASK_TRIES="3")
    assert done.returncode == 1 and "delete" not in verbs(cloud)
    assert "gcloud does not say how n1 stands, asked 3 times" in done.stderr
    assert "perhaps left running, and then billed until it is deleted: n1, v5p-16 in z, project p" in done.stderr
    kind = "tpu-vm" if script == "tpu_vm.sh" else "queued-resources"
    for verb in ("describe", "delete"):
        assert f"  gcloud compute tpus {kind} {verb} n1" in done.stderr
    assert f"  launch/{script} --name n1" in done.stderr


def test_a_connection_that_stays_broken_deletes_nothing(cloud):
    """The run may go on: neither a copy that fails nor too many tries tell how it stands."""
    cloud.add_workers("0")
    broken = {"words": ["ssh", "worker.sh run"], "out": "[worker 0] step 1", "code": 255, "times": 1}
    cloud.play(broken, {"words": ["scp"], "times": 1}, {"words": ["scp"], "code": 255}, READY)
    done = cloud.run("tpu_vm.sh", *VM, *RUN, "--delete-after", "--retries", "1")
    assert done.returncode == 1 and "delete" not in verbs(cloud)
    assert "in 2 tries, see above" in done.stderr and "perhaps left running" in done.stderr


def test_a_queue_that_does_not_answer_for_a_moment_is_waited_in(cloud):
    cloud.add_workers("0")
    waiting = queued("WAITING_FOR_RESOURCES")
    cloud.play(waiting, OFFLINE | {"times": 5}, waiting | {"times": 2}, queued("ACTIVE", 99), READY)
    done = cloud.run("tpu_queued.sh", *VM, *RUN, "--delete-after")
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["scp", "ssh", "ssh", "delete"] and "not our doing" not in done.stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_queued.sh"])
def test_where_gcloud_never_answers_nothing_is_made(cloud, script):
    cloud.play(OFFLINE)
    done = cloud.run(script, *VM, *RUN, "--delete-after")
    assert done.returncode == 1 and verbs(cloud) == []
    assert "gcloud does not say whether n1 is there, see above; nothing was made" in done.stderr
    assert len(cloud.calls("describe")) == 3 and "left running" not in done.stderr


def test_a_module_that_is_gone_is_gone_on_workers(cloud):
    homes = cloud.add_workers("0")
    package = cloud.root / "uae_jax"
    (package / "old folder").mkdir(parents=True)
    for name in ("kept.py", "old folder/gone it's.py", "notes.txt"):
        (package / name).write_text("1")
    there = homes["0"] / "uae_jax"
    (there / "uae_jax").mkdir()
    (there / "uae_jax/older.py").write_text("from before there was a list of what was unpacked")
    cloud.play(READY)
    assert cloud.run("tpu_vm.sh", *VM, *RUN).returncode == 0
    assert not (there / "uae_jax/older.py").exists() and (there / "uae_jax/old folder/gone it's.py").exists()
    (there / "runs").mkdir()
    for name in ("runs/log", "mine.txt", "uae_jax/mine.json"):
        (there / name).write_text("mine")
    (package / "old folder/gone it's.py").unlink()
    (package / "kept.py").write_text("2")
    (package / "notes.txt").rename(package / "notes")
    unpacked = there / ".unpacked"
    unpacked.write_text(unpacked.read_text() + "runs/\n")  # as a repository in the checkout is listed
    assert cloud.run("tpu_vm.sh", *VM, *RUN).returncode == 0
    assert sorted(path.name for path in (there / "uae_jax").iterdir()) == [
        "kept.py",
        "mine.json",
        "notes",
        "old folder",
    ]
    assert not list((there / "uae_jax/old folder").iterdir())
    assert (there / "uae_jax/kept.py").read_text() == "2"
    assert (there / "runs/log").exists() and (there / "mine.txt").exists() and (there / ".venv/bin/uae").exists()
