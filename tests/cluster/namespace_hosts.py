"""Hosts of a network of their own, on this machine: each has its own network and processes, sshd, home, /tmp/ray and /dev/shm.

Needs root, and the programs in `PROGRAMS`. Everything ends with `close`, and so does every process of a host with `Host.kill`.
"""

import os
import pwd
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from tests.polling import wait_for

PROGRAMS = ("ip", "unshare", "sshd", "ssh", "ssh-keygen", "rsync", "mount")
ROOT = Path(__file__).resolve().parents[2]
HOME = Path(pwd.getpwuid(0).pw_dir)
BIN = Path(sys.prefix) / "bin"
START_S = 30.0

_HOST = """
set -eu
mkdir -p /tmp/ray
mount --bind "$DIR/ray" /tmp/ray
mount -t tmpfs tmpfs /dev/shm
for path in $VISIBLE; do
    mkdir -p "$DIR/home/${path#"$HOME_DIR"/}"
    mount --bind "$path" "$DIR/home/${path#"$HOME_DIR"/}"
done
mount --rbind "$DIR/home" "$HOME_DIR"
cd /
exec "$@"
"""


def missing_program() -> str:
    """Why there can be no such hosts here; empty: there can."""
    if os.getuid() != 0:
        return "needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return f"needs {', '.join(absent)}" if absent else ""


class Network:
    """A bridge with hosts on it. Commands run on the bridge's own host, as from an operator's machine."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """`environment`: of every login at a host."""
        self._folder, self._environment = folder, environment
        self._prefix = f"pbkv-{uuid.uuid4().hex[:6]}"
        self._stack = ExitStack()
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self.key = folder / "key"
        self._switch = self._namespace("switch")
        self._ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        self._ip("-n", self._switch, "addr", "add", "10.77.0.254/24", "dev", "br0")
        self._ip("-n", self._switch, "link", "set", "br0", "up")
        for name in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def add(self, number: int) -> str:
        """Starts a host. Returns its address, at which its sshd answers."""
        address, name = f"10.77.0.{number}", f"h{number}"
        namespace = self._namespace(name)
        self._ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        self._ip("-n", self._switch, "link", "set", name, "master", "br0", "up")
        self._ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        self._ip("-n", namespace, "link", "set", "eth0", "up")
        self._ip("-n", namespace, "route", "add", "default", "via", "10.77.0.254")
        folder = self._folder / name
        config = folder / "sshd_config"
        self._make_home(folder)
        config.write_text(
            f"ListenAddress {address}:22\nHostKey {self._folder / 'host_key'}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"PasswordAuthentication no\nPermitRootLogin yes\nAuthorizedKeysFile {self.key}.pub\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        log = self._stack.enter_context((folder / "sshd.log").open("wb"))
        sshd = shutil.which("sshd", path="/usr/sbin:/sbin")
        self._hosts[address] = self._start(namespace, folder, [str(sshd), "-D", "-e", "-f", str(config)], log)
        wait_for(lambda: self.run(self.ssh(address, "true")).returncode == 0, START_S)
        return address

    def kill(self, address: str) -> None:
        """Takes a host off the network, and ends all its processes, so that nobody hears of its end."""
        self._ip("-n", self._switch, "link", "set", f"h{address.rpartition('.')[2]}", "down")
        host = self._hosts.pop(address)
        host.kill()
        host.wait()

    def ssh(self, address: str, command: str) -> list[str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5"]
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-i", str(self.key), *flags, f"root@{address}", f"bash -lic {_quoted(command)}"]

    def at(self, address: str, command: str, timeout_s: float = 60.0) -> str:
        """What a command prints at a host; fails if it fails."""
        done = self.run(self.ssh(address, command), timeout_s)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def run(self, command: Sequence[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs a command on the operator's machine."""
        wrapped, environment = self._wrapped(command)
        return subprocess.run(wrapped, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        wrapped, environment = self._wrapped(command)
        return subprocess.Popen(wrapped, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def processes(self, address: str) -> list[str]:
        """The commands of all processes of a host but sshd and what asks."""
        names = self.at(address, "for each in /proc/[0-9]*; do tr '\\0' ' ' < $each/cmdline 2>/dev/null; echo; done; true")
        return [line for line in map(str.strip, names.splitlines()) if line and not _is_ours(line)]

    def close(self) -> None:
        for host in self._hosts.values():
            host.kill()
            host.wait()
        self._stack.close()

    def _wrapped(self, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        ray = self._folder / "operator" / "ray"
        ray.mkdir(parents=True, exist_ok=True)
        script = f'mkdir -p /tmp/ray; mount --bind {ray} /tmp/ray; exec "$@"'
        wrapped = ["ip", "netns", "exec", self._switch, "unshare", "--mount", "sh", "-ec", script, "sh", *command]
        home = {"HOME": str(self._folder / "operator"), "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        return wrapped, {**os.environ, **home, "RAY_USAGE_STATS_ENABLED": "0"}

    def _make_home(self, folder: Path) -> None:
        for name in ("ray", "home/tmp"):
            (folder / name).mkdir(parents=True)
        variables = {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(HOME / "tmp"),
            "RAY_TMPDIR": "/tmp",
            **self._environment,
        }
        lines = [f"export {name}={_quoted(value)}" for name, value in variables.items()]
        (folder / "home" / ".bashrc").write_text("\n".join(lines) + "\n")
        (folder / "home" / ".profile").write_text(". ~/.bashrc\n")

    def _start(self, namespace: str, folder: Path, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        needed = {Path(sys.base_prefix), Path(sys.prefix).resolve(), ROOT}
        visible = [str(path) for path in needed if path.is_relative_to(HOME)]
        environment = {"DIR": str(folder), "HOME_DIR": str(HOME), "VISIBLE": " ".join(visible), "PATH": os.environ["PATH"]}
        unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return subprocess.Popen(
            ["ip", "netns", "exec", namespace, *unshare, "bash", "-c", _HOST, "bash", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def _namespace(self, name: str) -> str:
        namespace = f"{self._prefix}-{name}"
        self._ip("netns", "add", namespace)
        self._stack.callback(self._ip, "netns", "del", namespace)
        self._ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _ip(self, *arguments: str) -> Any:
        subprocess.run(["ip", *arguments], check=True)


def _is_ours(command: str) -> bool:
    return "sshd" in command.split(" ")[0] or command.startswith(("bash -lic", "tr ", "unshare", "bash -c for each"))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
