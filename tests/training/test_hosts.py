"""Runs on two hosts: network, file systems and names of their own, on one machine."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import neobert_train
from training.runs import ONE_THREAD, SMOKE, assert_bit_identical, train_on_two, wait_for_step

pytestmark = pytest.mark.slow

PLANTED = str(Path(__file__).with_name("planted.py"))
NAMES = ("host0", "host1")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
    "--rdzv-backend=c10d", "--rdzv-endpoint=host0:29500", "--rdzv-id=run",
]  # fmt: skip
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


class Host:
    """Namespaces for network, mounts and the host's name, which live as long as a process in them."""

    def __init__(self) -> None:
        # It ends with this process, however that ends, and the namespaces with it.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.is_ready = self._holder.stdout.readline() == "ready\n"
        self.pid = str(self._holder.pid)
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *command: object) -> None:
        subprocess.run(self._enter(command), check=True, capture_output=True)

    def start(self, *command: object, **environment: str) -> "subprocess.Popen[str]":
        source = str(Path(neobert_train.__file__).parents[1])
        process = subprocess.Popen(
            self._enter(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": source, "GLOO_SOCKET_IFNAME": "eth0",
                 **environment},
        )  # fmt: skip
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
            process.communicate()
        self._holder.kill()
        self._holder.communicate()

    def _enter(self, command: object) -> list[str]:
        return ["nsenter", "--target", self.pid, "--net", "--mount", "--uts", *map(str, command)]


@pytest.fixture
def hosts(tmp_path):
    """Two hosts that see the same disk and are joined by a cable; Debian's names for themselves."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if os.geteuid() or missing:
        pytest.skip(f"needs root to make namespaces, and {' '.join(missing) or 'no more'}")
    pair = [Host(), Host()]
    try:
        if not all(host.is_ready for host in pair):
            pytest.skip("this system makes no namespaces")
        subprocess.run(
            ["ip", "link", "add", "eth0", "netns", pair[0].pid, "type", "veth",
             "peer", "name", "eth0", "netns", pair[1].pid], check=True,
        )  # fmt: skip
        for index, host in enumerate(pair):
            names = tmp_path / f"{NAMES[index]}.hosts"
            names.write_text(
                f"127.0.0.1 localhost\n127.0.1.1 {NAMES[index]}\n"
                f"{ADDRESSES[1 - index]} {NAMES[1 - index]}\n"
            )
            host.run("mount", "--bind", names, "/etc/hosts")
            host.run("hostname", NAMES[index])
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "link", "set", "eth0", "up")
            host.run("ip", "address", "add", f"{ADDRESSES[index]}/24", "dev", "eth0")
        yield pair
    finally:
        for host in pair:
            host.close()


def launch(hosts, *words, **environment):
    """Start one process on each host; returns their exit codes, what both printed, and the seconds."""
    started = time.monotonic()
    processes = [host.start(*TORCHRUN, *words, **environment) for host in hosts]
    codes, output = finish_all(processes)
    return codes, output, time.monotonic() - started


def finish_all(processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], "".join(outputs)


def test_a_run_on_two_hosts_is_killed_on_one_and_ends_as_on_one_host(hosts, tmp_path):
    words = [*SMOKE, f"output_dir={tmp_path / 'run'}"]
    codes, output, seconds = launch(hosts, PLANTED, *words, FAULT="die", STEPS="5")
    assert codes == [1, 1], output
    assert "rank 0: ends, since another process of the run did" in output
    assert "Signal 9 (SIGKILL)" in output
    assert seconds < 90
    codes, output, _ = launch(hosts, "-m", "neobert_train", *words)
    assert codes == [0, 0], output
    assert "continuing after step" in output
    train_on_two(tmp_path / "expected")
    assert_bit_identical(tmp_path / "run", tmp_path / "expected")


def test_an_output_dir_that_each_host_has_for_itself_is_refused(hosts, tmp_path):
    (tmp_path / "runs").mkdir()
    hosts[1].run("mount", "-t", "tmpfs", "none", tmp_path / "runs")
    codes, output, _ = launch(
        hosts, "-m", "neobert_train", *SMOKE, f"output_dir={tmp_path}/runs/new"
    )
    assert codes == [1, 1], output
    assert re.search(
        rf"host\d cannot see what the main process on host\d writes to {tmp_path}/runs/new: write "
        r"output_dir=\.\.\. to choose a folder on a file system that all hosts share",
        output,
    )
    assert "exitcode  : 2" in output
    assert list((tmp_path / "runs").iterdir()) == []


def test_hosts_whose_files_differ_are_refused(hosts, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("of a\n" * 100)
    hosts[1].run("mount", "-t", "tmpfs", "none", texts)
    hosts[1].run("sh", "-c", f"yes of A | head -n 100 > {texts}/a.txt")
    words = [*SMOKE, f"output_dir={tmp_path / 'run'}", "data=files", f"data.paths=[{texts}]"]
    codes, output, _ = launch(hosts, "-m", "neobert_train", *words)
    assert codes == [1, 1], output
    assert re.search(r"process 1 on host\d finds other files than the main process", output)
    assert "source 'corpus': a.txt (content hash " in output
    assert not (tmp_path / "run").exists()


def test_deepspeed_on_two_hosts_without_ssh(hosts, tmp_path):
    (tmp_path / "hostfile").write_text("host0 slots=1\nhost1 slots=1\n")
    words = [
        DEEPSPEED, f"--hostfile={tmp_path / 'hostfile'}", "--no_ssh", "--master_addr=host0",
        "--master_port=29500",
    ]  # fmt: skip
    run = ["--module", "neobert_train", *SMOKE, f"output_dir={tmp_path / 'run'}"]
    codes, output = finish_all(
        [host.start(*words, f"--node_rank={rank}", *run) for rank, host in enumerate(hosts)]
    )
    assert codes == [0, 0], output
    train_on_two(tmp_path / "expected")
    assert_bit_identical(tmp_path / "run", tmp_path / "expected")


def test_processes_end_when_nothing_is_heard_of_the_other_host(hosts, tmp_path):
    """A host that lost its power or network closes no connection; torchrun itself may wait on."""
    words = [*SMOKE, f"output_dir={tmp_path / 'run'}", "trainer.step_timeout_seconds=8"]
    fault = {"FAULT": "unplug", "STEPS": "5"}
    launchers = [host.start(*TORCHRUN, PLANTED, *words, **fault) for host in hosts]
    wait_for_step(tmp_path / "run", 4, launchers[0])
    deadline = time.monotonic() + 60
    while any(map(has_process, launchers)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for launcher in launchers:
        launcher.kill()
    _, output = finish_all(launchers)
    for rank in (0, 1):
        assert f"rank {rank}: step 5 has taken longer than 8 seconds" in output


def has_process(launcher):
    try:
        children = psutil.Process(launcher.pid).children()
        return any(child.status() != psutil.STATUS_ZOMBIE for child in children)
    except psutil.NoSuchProcess:
        return False
