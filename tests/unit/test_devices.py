# SPDX-License-Identifier: Apache-2.0
"""Which GPUs are found, which engines they get, what is said, and the MPS daemon's life.

The machine is a folder of files as the kernel shows them, and the daemon a program that keeps to
its protocol: it is about what is started, with which environment, and how it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import lives, until

from lipsync_fast.config import Engines, ServeConfig
from lipsync_fast.errors import ServerError
from lipsync_fast.frontend.http.metrics import metrics_text
from lipsync_fast.supervisor import gpus
from lipsync_fast.supervisor.children import Child, ChildSlot
from lipsync_fast.supervisor.devices import plan_devices
from lipsync_fast.supervisor.gpus import DetectedGpus, Gpu, detect_gpus, processors_near
from lipsync_fast.supervisor.mps import CONTROL, LOGS, PIPES, Mps
from lipsync_fast.supervisor.replicas import initial_holders, next_holder
from lipsync_fast.supervisor.status import FrameRates, ServerFacts, Usable, server_status

TWO = DetectedGpus([Gpu(0, "0"), Gpu(1, "1", (4, 5))])
BROKEN = DetectedGpus(
    TWO.gpus, "torch built for CUDA is missing (install the extra cuda12 or cuda13)"
)


# ---------------------------------------------------------------- what a machine shows
def machine(root: Path, *cards: tuple[int, str, int, str]) -> Path:
    """Files of GPUs: number of the device file, PCI address, NUMA node, processors near it."""
    for folder in ("dev", "proc/driver/nvidia/gpus", "sys/bus/pci/devices"):
        (root / folder).mkdir(parents=True)
    (root / "dev/nvidiactl").touch()
    (root / "dev/nvidia-uvm").touch()
    for minor, address, node, near in cards:
        (root / f"dev/nvidia{minor}").touch()
        told = root / "proc/driver/nvidia/gpus" / address
        told.mkdir()
        (told / "information").write_text(
            f"Model: \t\t NVIDIA H200\nIRQ:   \t\t 51\nBus Location: \t {address}\n"
            f"Device Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
        place = root / "sys/bus/pci/devices" / address
        place.mkdir()
        (place / "numa_node").write_text(f"{node}\n")
        (place / "local_cpulist").write_text(f"{near}\n")
    return root


@pytest.fixture
def all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is missing; what would be is tested by itself."""
    monkeypatch.setattr(gpus, "_missing", lambda: "")


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may use processors 0 to 15."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("all_parts", "sixteen")
def test_gpus_are_numbered_by_address_and_know_their_processors(tmp_path: Path) -> None:
    machine(
        tmp_path,
        (0, "0000:C1:00.0", 1, "8-15,24-31"),  # the files' order is not that of the addresses
        (1, "0000:3b:00.0", 0, "0-7"),
    )
    upper = tmp_path / "sys/bus/pci/devices/0000:C1:00.0"
    upper.rename(upper.with_name("0000:c1:00.0"))  # as the kernel writes it
    found = detect_gpus(tmp_path, {})
    assert found == DetectedGpus([Gpu(0, "0", tuple(range(8))), Gpu(1, "1", tuple(range(8, 16)))])
    assert found.gpus[1].environ() == {
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


@pytest.mark.usefixtures("all_parts")
def test_a_container_that_shows_one_of_many_has_a_gpu_0(tmp_path: Path) -> None:
    machine(tmp_path, (0, "0000:01:00.0", 0, "0"), (5, "0000:05:00.0", 0, "0"))
    (tmp_path / "dev/nvidia0").unlink()
    assert [gpu.visible for gpu in detect_gpus(tmp_path, {}).gpus] == ["0"]


@pytest.mark.usefixtures("all_parts")
def test_a_driver_that_does_not_tell_addresses(tmp_path: Path) -> None:
    machine(tmp_path, (0, "0000:01:00.0", 0, "0"), (1, "0000:05:00.0", 0, "0"))
    (tmp_path / "proc/driver/nvidia/gpus/0000:05:00.0/information").write_bytes(b"\xff")
    assert detect_gpus(tmp_path, {}).gpus == [Gpu(0, "0"), Gpu(1, "1")]


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("node", "near", "expected"),
    [
        (0, "0-1,4", (0, 1, 4)),
        (-1, "0-15", ()),  # no such thing on this machine
        (0, "0-15", ()),  # all: nothing to keep to
        (1, "16-31", ()),  # none of ours
        (0, "", ()),
        (0, "many", ()),
    ],
)
def test_processors_near_a_gpu(
    tmp_path: Path, node: int, near: str, expected: tuple[int, ...]
) -> None:
    machine(tmp_path, (0, "0000:01:00.0", node, near))
    assert processors_near("0000:01:00.0", tmp_path) == expected
    assert processors_near("0000:02:00.0", tmp_path) == ()


@pytest.mark.usefixtures("all_parts")
@pytest.mark.parametrize(
    ("named", "visible"),
    [
        (None, ["0", "1", "2"]),
        ("2,0", ["2", "0"]),
        (" 1 ", ["1"]),
        ("", []),
        ("-1", []),
        ("0,9,1", ["0"]),
        ("GPU-8f2a, 1", ["GPU-8f2a", "1"]),
    ],
)
def test_only_those_that_cuda_may_see(
    tmp_path: Path, named: str | None, visible: list[str]
) -> None:
    machine(tmp_path, *((n, f"0000:0{n + 1}:00.0", -1, "0") for n in range(3)))
    found = detect_gpus(tmp_path, {} if named is None else {"CUDA_VISIBLE_DEVICES": named})
    assert [gpu.visible for gpu in found.gpus] == visible
    assert [gpu.device for gpu in found.gpus] == [f"cuda:{n}" for n in range(len(visible))]


# ---------------------------------------------------------------- what is installed
def installed(folder: Path, *, cuda: bool) -> None:
    """A package torch, with or without its CUDA library; importing it would be an error."""
    (folder / "torch/lib").mkdir(parents=True)
    (folder / "torch/__init__.py").write_text("raise RuntimeError('not to be imported here')\n")
    if cuda:
        (folder / "torch/lib/libtorch_cuda.so").touch()


@pytest.mark.parametrize("cuda", [True, False])
def test_torch_is_judged_by_its_files(tmp_path: Path, cuda: bool) -> None:
    installed(tmp_path, cuda=cuda)
    code = "from lipsync_fast.supervisor.gpus import has_torch; print(has_torch())"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.run([sys.executable, "-c", code], env=environ, stdout=-1, text=True)
    assert said.stdout == f"{cuda}\n"


def test_a_machine_without_gpus_is_asked_for_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_missing", lambda: pytest.fail("it has no GPU"))
    assert detect_gpus(tmp_path, {}) == DetectedGpus()


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("print(2)", ""),
        ("print(0)", "the CUDA driver sees none of them"),
        ("raise ImportError('libx.so: no such file')", "ImportError: libx.so: no such file"),
        ("import os; os._exit(7)", "exit status 7"),
        ("import time; time.sleep(60)", "the CUDA driver does not answer"),
    ],
)
def test_the_driver_is_asked_in_another_process(
    monkeypatch: pytest.MonkeyPatch, probe: str, said: str
) -> None:
    monkeypatch.setattr(gpus, "PROBE", probe)
    monkeypatch.setattr(gpus, "PROBE_S", 2.0)
    problem = gpus._driver_problem()
    assert said in problem
    assert bool(said) == bool(problem)


# ---------------------------------------------------------------- the choice
def test_all_gpus_get_engines() -> None:
    chosen = plan_devices(Engines(per_gpu=2, spares=3), 1, TWO)
    assert chosen.devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert chosen.spares == ["cuda:0", "cuda:1", "cuda:0"]
    assert chosen.gpus == {"cuda:0": TWO.gpus[0], "cuda:1": TWO.gpus[1]}
    assert chosen.remark == ""


def test_some_gpus_get_engines() -> None:
    chosen = plan_devices(Engines(gpus="1", spares=0), 1, TWO)
    assert (chosen.devices, chosen.gpus) == (["cuda:1"], {"cuda:1": TWO.gpus[1]})


@pytest.mark.parametrize("asked", ["all", "none"])
def test_without_gpus_there_are_cpu_engines(asked: str) -> None:
    chosen = plan_devices(Engines(gpus=asked, per_gpu=2, spares=1, threads=3), 1, DetectedGpus())
    assert (chosen.devices, chosen.spares, chosen.threads) == (["cpu", "cpu"], ["cpu"], 3)
    assert chosen.gpus == {}
    assert not chosen.alarming
    told = "no NVIDIA GPU was found; engines run on the CPU"
    assert chosen.remark == (told if asked == "all" else "")


def test_gpus_that_cannot_be_used_are_told_of() -> None:
    chosen = plan_devices(Engines(), 1, BROKEN)
    assert chosen.devices == ["cpu"]
    assert chosen.alarming
    assert chosen.remark == (
        f"2 NVIDIA GPUs were found but cannot be used: {BROKEN.missing}; engines run on the CPU"
    )
    assert plan_devices(Engines(gpus="none"), 1, BROKEN).remark == ""


@pytest.mark.parametrize(
    ("asked", "detected", "said"),
    [
        (
            "0",
            DetectedGpus(),
            "engines.gpus = '0': no NVIDIA GPU was found; 'none' serves on the CPU",
        ),
        ("0,1", BROKEN, "found but cannot be used: torch built for CUDA is missing"),
        ("1,2", TWO, "there is no GPU 2 here; there are: 0, 1"),
    ],
)
def test_numbers_that_cannot_be_used_are_an_error(
    asked: str, detected: DetectedGpus, said: str
) -> None:
    with pytest.raises(ServerError) as error:
        plan_devices(Engines(gpus=asked), 1, detected)
    assert said in str(error.value)


# ---------------------------------------------------------------- avatars
def engine(name: str, avatars: str, busy: float = 0.0, used: int = 0, total: int = 100) -> Child:
    """An engine that works, of 100 frames/s."""
    child = Child(name, ChildSlot("engine", 0), None, -1, None, state="ready")  # type: ignore[arg-type]
    child.avatars, child.capacity = set(avatars), 100.0
    child.load.frames_per_s = 100 * busy
    child.load.device_memory_used, child.load.device_memory_total = used, total
    return child


def test_an_avatar_is_loaded_by_all_that_have_room() -> None:
    cpu, roomy, full = engine("c", "", total=0), engine("r", "", used=85), engine("f", "", used=86)
    assert initial_holders("x", [cpu, roomy, full]) == [cpu, roomy]
    assert initial_holders("x", [full]) == [full], "somebody must"
    fuller = engine("g", "", used=99)
    assert initial_holders("x", [fuller, full]) == [full], "the one with most left"
    fuller.avatars.add("x")
    assert initial_holders("x", [fuller, full]) == []


def test_an_avatar_in_demand_is_loaded_by_one_more() -> None:
    holder, busy, idle = engine("h", "x", 0.8), engine("b", "y", 0.5), engine("i", "", 0.1, 99)
    engines = [holder, busy, idle]
    assert next_holder("x", engines) is idle
    idle.loading.add("x")
    assert next_holder("x", engines) is None, "it is on its way"
    idle.loading.clear()
    idle.load_errors.add("x", "no memory is left")
    assert next_holder("x", engines) is busy
    busy.avatars.add("x")
    assert next_holder("x", engines) is None, "one that holds it has room"
    busy.load.frames_per_s = 75
    assert next_holder("x", engines) is None, "nobody is left to ask"


def test_an_avatar_whose_only_engine_has_died_is_loaded_by_another() -> None:
    starting, other = engine("s", "", used=0), engine("o", "y", used=99)
    starting.state, starting.loading = "starting", {"x"}
    assert next_holder("x", [starting, other]) is other


def test_a_gpus_memory_is_a_metric_and_a_cpu_has_none() -> None:
    status = server_status(
        ServerFacts(config=ServeConfig(), ports=[1], http_port=2, started_at=0.0),
        "serving",
        [known("g", 60, 100), known("c", 0, 0)],
        FrameRates(),
        0,
        Usable(),
    )
    lines = metrics_text(status)[0].decode().splitlines()
    told = [line for line in lines if line.startswith("lipsync_fast_engine_device_memory_bytes{")]
    assert told == [
        'lipsync_fast_engine_device_memory_bytes{device="cuda:0",engine="g",kind="used"} 60.0',
        'lipsync_fast_engine_device_memory_bytes{device="cuda:0",engine="g",kind="total"} 100.0',
    ]


def known(name: str, used: int, total: int) -> Child:
    """An engine with a process, as the status tells of it."""
    child = engine(name, "", 0.0, used, total)
    child.process, child.device = subprocess.Popen("true"), "cuda:0" if total else "cpu"
    child.process.wait()
    return child


# ---------------------------------------------------------------- MPS
DAEMON = """#!{python}
import os, signal, subprocess, sys, time
pipes = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
pid_file = os.path.join(pipes, "pid")
if sys.argv[1:] == ["-f"]:
    if os.environ.get("BROKEN"):
        sys.exit("an error occurred: no device")
    server = subprocess.Popen(["sleep", "600"])  # as it starts servers for its clients
    names = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_DEVICE_ORDER"
    told = [os.environ[n] for n in names] + [os.environ.get("CUDA_VISIBLE_DEVICES", "all")]
    with open(os.environ["NOTES"], "w") as notes:
        print(os.getpid(), server.pid, *told, file=notes)
    with open(pid_file + "~", "w") as file:
        file.write(str(os.getpid()))
    os.rename(pid_file + "~", pid_file)
    time.sleep(600)
elif not sys.argv[1:]:
    try:
        with open(pid_file) as file:
            pid = int(file.read())
        os.kill(pid, 0)
    except (OSError, ValueError):
        sys.exit("Cannot find MPS control daemon process")
    if sys.stdin.read() == "quit\\n" and not os.environ.get("STUBBORN"):
        os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with the daemon on its path."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / CONTROL
    program.write_text(DAEMON.format(python=sys.executable))
    program.chmod(0o755)
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        PIPES: str(tmp_path / "usual"),
        "CUDA_VISIBLE_DEVICES": "1",
    }


def noted(environ: dict[str, str]) -> tuple[list[int], list[str]]:
    """Processes of the daemon that was started, and what it was told."""
    words = Path(environ["NOTES"]).read_text().split()
    return [int(word) for word in words[:2]], words[2:]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_daemon_of_our_own_is_started_and_ended(
    tmp_path: Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture, stubborn: bool
) -> None:
    caplog.set_level("INFO")
    if stubborn:
        environ["STUBBORN"] = "1"
    folder = tmp_path / "run" / "mps"
    (folder / "pipes").mkdir(parents=True)
    (folder / "pipes" / "pid").write_text("1000000000")  # a crashed run's
    daemon = Mps.use(folder.parent, environ)
    pids, told = noted(environ)
    assert all(map(lives, pids))
    assert told == [daemon.environ[PIPES], daemon.environ[LOGS], "PCI_BUS_ID", "all"]
    assert Path(daemon.environ[PIPES]).parent == folder
    assert f"started an MPS daemon, which ends with this server folder={folder}" in caplog.text
    daemon.close()
    assert not any(map(lives, pids)), "the daemon and its servers have ended"
    assert not folder.exists()
    daemon.close()


def test_a_daemon_that_runs_is_used_and_left(
    tmp_path: Path, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    others = Mps.use(tmp_path / "other", environ)
    environ[PIPES] = others.environ[PIPES]
    mine = Mps.use(tmp_path / "mine", environ)
    assert mine.environ == {PIPES: others.environ[PIPES]}
    assert f"that runs, and leaves it running folder={environ[PIPES]}" in caplog.text
    assert not (tmp_path / "mine").exists()
    mine.close()
    pids, _ = noted(environ)
    assert all(map(lives, pids))
    others.close()


def test_a_daemon_ends_when_its_server_is_killed(tmp_path: Path, environ: dict[str, str]) -> None:
    code = (
        "import os, time\nfrom pathlib import Path\nfrom lipsync_fast.supervisor.mps import Mps\n"
        f"daemon = Mps.use(Path({str(tmp_path / 'run')!r}))\nprint('up', flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=-1) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        pids, _ = noted(environ)
        assert all(map(lives, pids))
        server.send_signal(signal.SIGKILL)
    until(lambda: not any(map(lives, pids)), "until the daemon has ended")


def test_without_the_program_or_where_it_does_not_start(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    with pytest.raises(ServerError, match=f"{CONTROL} was not found; it comes with the NVIDIA"):
        Mps.use(tmp_path / "run", {"PATH": str(tmp_path)})
    with pytest.raises(ServerError, match="does not start: an error occurred: no device"):
        Mps.use(tmp_path / "run", {**environ, "BROKEN": "1"})
