"""What stands in for gcloud, ssh and the like: this file, under their names, in a folder at the front of PATH.

It appends what it was called with to $STANDIN/record.jsonl, then plays what $STANDIN/plays.json holds for it: the first
play of its name whose words all occur in the arguments, and which is not used up, gives output and exit code. Copies
and remote commands of gcloud, scp and ssh are really carried out, in folders that stand in for the workers' homes.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["STANDIN"])
TOOL, ARGUMENTS = Path(sys.argv[0]).name, sys.argv[1:]
STDIN = sys.stdin.read() if TOOL in ("curl", "ssh") else ""
SHOWN = ("HF_TOKEN", "HF_TOKEN_PATH", "XLA_FLAGS")


def main() -> int:
    play = take_play()
    if play.get("sleep"):
        on_term(play.get("on_term", 1))
    record()
    if "out" in play:
        print(play["out"], flush=True)
    if "err" in play:
        print(play["err"], file=sys.stderr, flush=True)
    time.sleep(play.get("sleep", 0))
    if "code" in play:
        return play["code"]
    return act()


def record() -> None:
    env = {name: value for name, value in os.environ.items() if name.startswith("JAX_") or name in SHOWN}
    line = {"tool": TOOL, "argv": ARGUMENTS, "env": env, "home": Path(os.environ.get("HOME", "/")).name}
    line |= {"stdin": STDIN, "pid": os.getpid()}
    with locked(), open(HOME / "record.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def take_play() -> dict:
    mine = {"tool": TOOL, "home": Path(os.environ.get("HOME", "/")).name}
    with locked():
        plays = json.loads((HOME / "plays.json").read_text())
        for play in plays:
            fits = all(play.get(name, value) == value for name, value in mine.items())
            if (
                fits
                and play.get("times", 1)
                and all(any(w in each for each in ARGUMENTS) for w in play.get("words", ()))
            ):
                play["times"] = play.get("times", 10**9) - 1
                (HOME / "plays.json").write_text(json.dumps(plays))
                return play
    return {}


def act() -> int:
    if TOOL == "gcloud" and "scp" in ARGUMENTS:
        files = ARGUMENTS[ARGUMENTS.index("scp") + 1 : ARGUMENTS.index("--worker=all") - 1]
        return max(copy(file, home) for home in workers() for file in files)
    if TOOL == "gcloud" and "ssh" in ARGUMENTS:
        command = ARGUMENTS[ARGUMENTS.index("--command") + 1]
        started = [start(command, home, TPU_WORKER_ID=home.name) for home in workers()]
        return int(any([wait(code) for code in started]))  # gcloud's own code does not tell the workers'
    if TOOL == "scp":
        return copy(ARGUMENTS[-2], HOME / "workers" / ARGUMENTS[-1].removesuffix(":").split("@")[-1])
    if TOOL == "ssh":
        return wait(start(ARGUMENTS[-1], HOME / "workers" / ARGUMENTS[-2].split("@")[-1], stdin=STDIN))
    return 0


def workers() -> list[Path]:
    return sorted(path for path in (HOME / "workers").iterdir())


def copy(file: str, home: Path) -> int:
    return subprocess.call(["cp", "-p", file, str(home)])


def start(command: str, home: Path, stdin: str = "", **variables) -> int:
    """Runs a command on a worker: no child of ours, so that it outlives us. Returns where its exit code can be read."""
    env = {"PATH": os.environ["WORKER_PATH"], "HOME": str(home), "STANDIN": str(HOME), **variables}
    code, ours = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        done = subprocess.run(["bash", "-c", command], cwd=home, env=env, input=stdin, text=True)
        os.write(ours, bytes([done.returncode % 256]))
        os._exit(0)
    os.close(ours)
    return code


def wait(code: int) -> int:
    return os.read(code, 1)[0]


def on_term(code: int) -> None:
    def handler(number, frame):
        with locked(), open(HOME / "record.jsonl", "a") as file:
            file.write(
                json.dumps({"tool": "SIGTERM", "argv": [TOOL], "env": {}, "home": "", "pid": os.getpid()}) + "\n"
            )
        os._exit(code)

    signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def locked():
    with open(HOME / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
