"""The launch scripts run on a copy of their folder, with PATH holding nothing but stand-ins and ordinary tools."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLOUD = "gcloud kubectl xpk docker srun sbatch scontrol ssh scp ssh-add ssh-keygen curl"
ORDINARY = """
awk basename bash cat chmod cksum cp date dirname du env find flock git grep gzip head hostname ls mkdir mktemp mv pgrep
ps rm sed seq setsid sh sleep sort tail tar tee touch tr true uname wc xargs
"""
CONFIG = "configs/it's a config.py"


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """What starts these tests in the background may have them ignore SIGINT, and so all that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Cloud:
    """Stand-ins, workers and a checkout.

    Attributes:
      root: the checkout that scripts are called in.
      workers: home folder of each worker, by name.
    """

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "my code"
        self.bin, self.tools, self.state = folder / "bin", folder / "tools", folder / "standin"
        for made in (self.bin, self.tools, self.state / "workers", folder / "home", folder / "tmp"):
            made.mkdir(parents=True)
        for name in CLOUD.split():
            self.write_standin(self.bin / name)
        for name in ORDINARY.split():
            if found := shutil.which(name):
                (self.tools / name).symlink_to(found)
        (self.tools / "python3").symlink_to(sys.executable)
        shutil.copytree(ROOT / "launch", self.root / "launch")
        (self.root / "configs").mkdir()
        (self.root / "setup.py").write_text("# what is installed depends on it\n")
        (self.root / CONFIG).write_text("def get_config(arg=None):\n    return {}\n")
        self.play()

    def write_standin(self, path: Path) -> None:
        source = (Path(__file__).parent / "standin.py").read_text()
        path.write_text(f"#!{sys.executable} -IS\n{source}")
        path.chmod(0o755)

    def install(self, *extras: str) -> None:
        """Has the checkout look installed, with hardware and extras; without a Python that reads configurations."""
        (self.root / ".venv/bin").mkdir(parents=True)
        self.write_standin(self.root / ".venv/bin/uae")
        with open(self.root / "setup.py") as setup:
            made_for = subprocess.run(["cksum"], stdin=setup, capture_output=True, text=True).stdout
        (self.root / ".venv/uae_extras").write_text(
            made_for + "".join(f"{each}\n" for each in extras or ("cuda", "gcs"))
        )

    def add_workers(self, *names: str) -> dict[str, Path]:
        """Machines with an environment whose `uae` and `python` are stand-ins."""
        homes = {name: self.state / "workers" / name for name in names}
        for home in homes.values():
            binaries = home / "uae_jax/.venv/bin"
            binaries.mkdir(parents=True)
            for name in ("uae", "python"):
                self.write_standin(binaries / name)
        return homes

    def play(self, *plays: dict) -> None:
        """What the stand-ins are to do; see `standin.py`."""
        (self.state / "plays.json").write_text(json.dumps(plays))

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / script), *arguments],
            env=self.environment(**variables),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.bin}:{self.tools}"
        base = {"PATH": path, "WORKER_PATH": path, "HOME": str(self.folder / "home"), "STANDIN": str(self.state)}
        base |= {"TMPDIR": str(self.folder / "tmp"), "RETRY_SECONDS": "0", "SETTLE_SECONDS": "0", "LC_ALL": "C.UTF-8"}
        return base | variables

    def calls(self, *words: str) -> list[dict]:
        """Calls among whose tool and arguments each of the words is."""
        record = self.state / "record.jsonl"
        lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        return [call for call in lines if set(words) <= {call["tool"], *call["argv"]}]

    def wait_for(self, *words: str, times: int = 1) -> dict:
        until = time.monotonic() + 120
        while len(calls := self.calls(*words)) < times:
            assert time.monotonic() < until, f"{words} was never called; calls: {self.calls()}"
            time.sleep(0.05)
        return calls[-1]

    def end_leftovers(self) -> None:
        """Ends runs that a test left on workers, as it should have."""
        for call in self.calls("uae"):
            try:
                if str(self.state).encode() in Path(f"/proc/{call['pid']}/environ").read_bytes():
                    os.kill(call["pid"], signal.SIGKILL)
            except (OSError, ProcessLookupError):
                pass


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    made.end_leftovers()
