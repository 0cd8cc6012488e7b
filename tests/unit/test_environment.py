# SPDX-License-Identifier: Apache-2.0
"""What is taken from the environment: homes, runtime folders, quotas, descriptors, the clock."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lipsync_fast import places
from lipsync_fast.avatars.library import AvatarLibrary, folder_for_new, shipped_folder
from lipsync_fast.config import Engines, ServeConfig, Utterances
from lipsync_fast.errors import AvatarError, StoreError
from lipsync_fast.frontend.access import door as doors
from lipsync_fast.frontend.access.door import Door, room_for_clients
from lipsync_fast.machine import processor_quota, processors, raise_open_files
from lipsync_fast.supervisor import launch, run_folder
from lipsync_fast.supervisor.devices import plan_devices
from lipsync_fast.supervisor.run_folder import default_run_folder, run_folders
from lipsync_fast.utterances import store as stores
from lipsync_fast.utterances.store import Row, Store, store_folder

VARIABLES = "HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "STATE_DIRECTORY"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without HOME and without an entry in the list of users."""
    for variable in (*VARIABLES, "XDG_RUNTIME_DIR", "LIPSYNC_FAST_AVATARS"):
        monkeypatch.delenv(variable, raising=False)

    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)


# ---------------------------------------------------------------- homes
@pytest.mark.usefixtures("homeless")
def test_without_a_home_what_is_shipped_is_found() -> None:
    assert places.home() is None
    assert AvatarLibrary().folders == [shipped_folder()]
    assert AvatarLibrary().find("demo").is_relative_to(shipped_folder())
    with pytest.raises(AvatarError, match=r"no home folder .*say where with --out, or set HOME"):
        folder_for_new("--out")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StoreError, match=r"no home folder .*utterances\.folder"):
        store_folder()
    caplog.set_level("INFO")
    assert launch._kept_somewhere(ServeConfig()).utterances.disk_mb == 0
    assert "utterances are not kept" in caplog.text
    named = ServeConfig(utterances=Utterances(folder="/srv/kept"))
    assert launch._kept_somewhere(named) == named


@pytest.mark.parametrize("home", ["", "not/absolute"])
def test_a_home_that_is_no_path_is_none(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, home)
    found = places.data_folder()
    assert found is None or found.is_absolute(), "never below the working directory"


def test_variables_that_are_no_paths_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert places.data_folder() == tmp_path / ".local" / "share" / "lipsync-fast"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert places.data_folder() == tmp_path / "data" / "lipsync-fast"


# ---------------------------------------------------------------- runtime folders
def test_the_runtime_folder_of_somebody_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_run_folder(8084) == tmp_path / "lipsync-fast-8084"
    (tmp_path / "lipsync-fast-8084").mkdir()
    assert list(run_folders()) == [tmp_path / "lipsync-fast-8084"]
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    own = Path(f"/tmp/lipsync-fast-{mine + 1}")
    assert default_run_folder(8084) == own / "8084"
    assert run_folder._own_tmp() == own
    assert not list(run_folders()), "status looks where serve is"


def test_a_runtime_folder_that_is_gone_or_no_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for given in ("", "relative", str(tmp_path / "gone"), str(tmp_path / "file")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", given)
        assert places.runtime_folder() is None


# ---------------------------------------------------------------- processors
V2 = "30 24 0:26 {top} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {top} {at} rw,relatime - cgroup cgroup rw,{controllers}"


def machine(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A system whose control groups are so."""
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


SERVICE = "sys/fs/cgroup/system.slice/lipsync.service"
CPU = "sys/fs/cgroup/cpu"
BOTH = [
    V1.format(top="/", at="/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct"),
    V1.format(top="/", at="/sys/fs/cgroup/cpuset", controllers="cpuset"),
    V2.format(top="/", at="/sys/fs/cgroup/unified"),
]
CASES = {
    "systemd's CPUQuota": (
        "0::/system.slice/lipsync.service\n",
        [V2.format(top="/", at="/sys/fs/cgroup")],
        {
            f"{SERVICE}/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "max 100000",
        },
        1.5,
    ),
    "the slice above allows less": (
        "0::/system.slice/lipsync.service\n",
        [V2.format(top="/", at="/sys/fs/cgroup")],
        {
            f"{SERVICE}/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "50000 100000",
        },
        0.5,
    ),
    "a container that sees its own group alone": (
        "0::/\n",
        [V2.format(top="/", at="/sys/fs/cgroup")],
        {"sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "version 1": (
        "4:cpuset:/\n3:cpu,cpuacct:/user/a\n1:name=systemd:/user\n0::/\n",
        BOTH,
        {
            "sys/fs/cgroup/cpu,cpuacct/user/a/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/user/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/user/cpu.cfs_period_us": "100000\n",
        },
        1.0,
    ),
    "version 1 in a container that is told its name outside": (
        "3:cpu,cpuacct:/docker/0123\n",
        [V1.format(top="/docker/0123", at="/sys/fs/cgroup/cpu", controllers="cpu")],
        {f"{CPU}/cpu.cfs_quota_us": "300000\n", f"{CPU}/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "a group outside of what can be seen": (
        "0::/../other\n",
        [V2.format(top="/", at="/sys/fs/cgroup")],
        {"sys/fs/cgroup/cpu.max": "100000 100000\n"},
        1.0,
    ),
    "a name with a space": (
        "0::/a b\n",
        [V2.format(top="/", at="/sys/fs/c\\040g")],
        {"sys/fs/c g/a b/cpu.max": "100000 100000\n"},
        1.0,
    ),
    "no limit": ("0::/\n", BOTH, {"sys/fs/cgroup/unified/cpu.max": "max 100000\n"}, None),
    "nothing that can be read": ("", [], {"sys/fs/cgroup/cpu.max": "?\n"}, None),
    "nothing but the usual folder": ("", [], {"sys/fs/cgroup/cpu.max": "100000 50000\n"}, 2.0),
}


@pytest.mark.parametrize("case", CASES)
def test_quotas_of_control_groups(tmp_path: Path, case: str) -> None:
    groups, mounts, files, expected = CASES[case]
    assert processor_quota(machine(tmp_path, groups, mounts, files)) == expected


@pytest.mark.parametrize(
    ("quota", "allowed", "expected"),
    [(50, 8, 1), (100, 8, 1), (149, 8, 1), (150, 8, 2), (250, 8, 3), (1200, 8, 8), (None, 8, 8)],
)
def test_processors_by_quota_and_affinity(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quota: int | None,
    allowed: int,
    expected: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)))
    text = "max" if quota is None else str(quota * 1000)
    mounts = [V2.format(top="/", at="/sys/fs/cgroup")]
    root = machine(tmp_path, "0::/\n", mounts, {"sys/fs/cgroup/cpu.max": f"{text} 100000\n"})
    assert processors(root) == expected


def test_render_and_serve_take_what_the_quota_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsync_fast.engine.backends import create_backend

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr("lipsync_fast.machine.processor_quota", lambda root: 2.0)
    assert plan_devices(Engines(gpus="none"), 1).threads == 2
    backend = create_backend("cpu")
    try:
        assert backend.depth == 2 * 2 + 1, "two frames at a time, not eight"
    finally:
        backend.close()


# ---------------------------------------------------------------- descriptors
@contextlib.contextmanager
def open_files(soft: int) -> Iterator[None]:
    """So many may be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_files_as_may_be_asked_for() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_files(512):
        assert raise_open_files() == min(hard, 1 << 20)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 1 << 20)
        assert raise_open_files() == min(hard, 1 << 20), "twice is harmless"


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    with open_files(512), monkeypatch.context() as patched:
        patched.setattr(resource, "setrlimit", refuse)
        assert raise_open_files() == 512


def test_clients_beyond_the_descriptors_are_told_so(caplog: pytest.LogCaptureFixture) -> None:
    refused: list[int] = []
    answers: list[bytes] = []

    async def run() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        taken: list[trio.SocketStream] = []
        door = Door(listener, lambda: refused.append(1))

        async def ask() -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
                answers.append(b"".join([part async for part in stream]))

        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                while True:
                    taken.append(await door.accept())

            nursery.start_soon(serve)
            for _ in range(3):
                nursery.start_soon(ask)
            with trio.fail_after(30):
                while len(refused) < 3 or len(answers) < 3:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert not taken
        await door.aclose()

    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(doors, "room_for_clients", lambda kept: max(held) - 2)
            trio.run(run)
    finally:
        for fd in held:
            os.close(fd)
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
    assert all(b"Retry-After: 2\r\n" in answer for answer in answers)
    assert caplog.text.count("clients are turned away") == 1
    assert "Traceback" not in caplog.text


def test_where_nothing_can_be_accepted_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        door = Door(listener, lambda: None)
        client = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        held = []
        with open_files(64):
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            with trio.move_on_after(3 * doors.PAUSE_S):
                await door.accept()
            for fd in held:
                os.close(fd)
            with trio.fail_after(30):
                await (await door.accept()).aclose()
        await client.aclose()
        await door.aclose()

    trio.run(run)
    assert "clients are turned away" in caplog.text
    assert "Traceback" not in caplog.text


def test_the_last_descriptors_are_not_for_clients() -> None:
    with open_files(1024):
        assert room_for_clients() == 1024 - 64
        assert room_for_clients(96) == 1024 - 96
    with open_files(256):
        assert room_for_clients() == 256 - 32
        assert room_for_clients(96) == 256 - 48


# ---------------------------------------------------------------- the clock
def row(number: int) -> Row:
    """A frame that takes some pages."""
    return Row(number.to_bytes(32, "big"), number, 1.0, bytes(200_000))


def test_a_clock_that_is_set_back_does_not_cost_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, 2_000_000)
    now = 2_000_000_000.0
    monkeypatch.setattr(stores.time, "time", lambda: now)
    store.add([row(0)])
    now = 1_000_000.0  # a machine without a battery begins in 1970
    store.add([row(1)])
    now += 10
    store.add([row(2)])
    for number in range(3, 30):
        now += 10
        store.add([row(number)])
        assert store.find(number.to_bytes(32, "big"), number, 1.0), "the newest is there"
    assert store.find((0).to_bytes(32, "big"), 0, 1.0) is None, "the oldest was given up"
    store.close()


# ---------------------------------------------------------------- importing
def test_importing_says_no_to_telemetry_before_anything_else() -> None:
    code = (
        "import os, sys, lipsync_fast\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    )
    clean = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    for given, expected in ((None, "1"), ("", "1"), ("0", "0")):
        environ = clean if given is None else {**clean, "ORT_DISABLE_TELEMETRY": given}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [expected, "False"]
