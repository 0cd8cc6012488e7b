# SPDX-License-Identifier: Apache-2.0
"""The checklist of ``doctor --production``: each item comes out both ways, by what is there."""

from __future__ import annotations

import dataclasses
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lipsync_fast.cli.doctor_production import ProductionRequest, examine
from lipsync_fast.config import (
    Access,
    Avatars,
    Engines,
    Limits,
    Listen,
    Log,
    ServeConfig,
    Speech,
    Utterances,
    WebRtc,
)
from lipsync_fast.config_load import SECRET, keys, without_secrets
from lipsync_fast.errors import ConfigError, ServerError
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.status import AvatarStatus, EngineStatus, FrontLoad, FrontStatus, ServerStatus
from lipsync_fast.production import checks, facts, outside
from lipsync_fast.production.facts import Facts, Machine, Process, Unit
from lipsync_fast.version import __version__

MIB = 1 << 20
TOKEN = "*" * 24


def engine(name: str, state: Any, **load: Any) -> EngineStatus:
    return EngineStatus(
        name=name, slot=0, pid=19 + int(name[-1]), device="cpu", state=state, uptime_s=9.0,
        restarts=0, avatars=[], capacity=100.0, silent_s=0.0, load=Load(**load),
    )  # fmt: skip


def front(**load: Any) -> FrontStatus:
    return FrontStatus(
        name="front-1", pid=30, state="ready", uptime_s=9.0, restarts=0, load=FrontLoad(**load)
    )


STATUS = ServerStatus(
    version=__version__, pid=10, state="serving", uptime_s=7200.0, host="127.0.0.1", ports=[1],
    http_port=2, default_avatar="demo", capacity=100.0, speakers=3, frames_per_s=0.0, ignored=0,
    engines=[engine("engine-1", "ready", made=1000), engine("engine-2", "spare")],
    fronts=[front(frames=1000, idle_frames=500, late=1)],
    avatars=[AvatarStatus(name="demo", version=1, state="current")],
)  # fmt: skip
FACTS = Facts(
    settings=ServeConfig(listen=Listen(token=TOKEN), limits=Limits(speakers_per_address=2)),
    status=STATUS,
    process=Process(open_files=65536, unit="lipsync-fast.service", store=Path("/var/lib/x")),
    machine=Machine(
        memory_free=4096 * MIB, synchronized=True, store_free=9000 * MIB, processors=2.0
    ),
    unit=Unit(stop_s=20.0, restart="on-failure"),
)
PUBLIC = Listen(host="0.0.0.0", token=TOKEN)


def settings(**sections: Any) -> Facts:
    return replace(FACTS, settings=replace(FACTS.settings, **sections))


def process(**known: Any) -> Facts:
    return replace(FACTS, process=replace(FACTS.process, **known))


def machine(**known: Any) -> Facts:
    return replace(FACTS, machine=replace(FACTS.machine, **known))


def status(**known: Any) -> Facts:
    return replace(FACTS, status=replace(STATUS, **known))


def test_a_server_as_it_should_be_has_one_warning() -> None:
    """That its avatars are not signed: there are no keys here."""
    found = {item.name: item.result for item in checks.judge(FACTS)}
    assert len(found) == len(checks.CHECKS)
    assert {name for name, result in found.items() if result != "ok"} == {"avatars"}


OTHERWISE: list[tuple[Facts, str, str, str]] = [
    (settings(listen=Listen(host="0.0.0.0")), "clients", "wrong", "no token"),
    (settings(listen=Listen(host="::", token="*" * 6)), "clients", "warning", "6 characters"),
    (settings(listen=Listen(origins=("https://a.org",))), "clients", "warning", "proxy"),
    (settings(listen=Listen()), "clients", "ok", "this machine"),
    (settings(listen=Listen(host="::"), access=Access(jwt_keys="/k")), "clients", "ok", "a JWT"),
    (settings(listen=Listen(host="::", tls_client_ca="/k")), "clients", "ok", "a certificate"),
    (settings(access=Access(api_keys="/no/such")), "secret files", "wrong", "No such file"),
    (settings(listen=Listen(origins=("*",))), "pages", "wrong", "every origin"),
    (settings(listen=Listen(origins=("*",), token=TOKEN)), "pages", "warning", "every origin"),
    (settings(listen=PUBLIC), "encryption", "wrong", "0.0.0.0"),
    (settings(listen=replace(PUBLIC, tls_cert="/c")), "encryption", "ok", "TLS on every port"),
    (settings(listen=replace(PUBLIC, proxies=("10.0.0.1",))), "encryption", "warning", "10.0.0.1"),
    (settings(listen=Listen(origins=("https://a.org",))), "proxies", "wrong", "count as one"),
    (
        settings(listen=PUBLIC, limits=Limits(sessions=100, sessions_per_address=100)),
        "proxies", "warning", "all connections",
    ),
    (settings(listen=replace(PUBLIC, proxies=("10.0.0.1",))), "proxies", "ok", "10.0.0.1"),
    (settings(limits=Limits()), "quotas", "warning", "without end"),
    (
        settings(limits=Limits(sessions_per_subject=2)), "quotas", "warning", "without end",
    ),  # of whom a token names: the shared one names nobody
    (
        settings(limits=Limits(sessions_per_subject=2), access=Access(jwt_keys="/k")),
        "quotas", "ok", "sessions_per_subject 2",
    ),
    (settings(limits=Limits(seconds_per_day_per_address=90.5)), "quotas", "ok", "90.5"),
    (settings(limits=Limits(), listen=Listen()), "quotas", "ok", "this machine"),
    (settings(listen=PUBLIC), "audit log", "warning", "nobody writes"),
    (settings(listen=Listen(origins=("https://a.org",))), "audit log", "warning", "nobody"),
    (settings(listen=PUBLIC, log=Log(audit="/a.jsonl")), "audit log", "ok", "/a.jsonl"),
    (settings(avatars=Avatars(require_signed="/no/such")), "avatars", "wrong", "No such file"),
    (process(root=True), "privileges", "wrong", "root"),
    (process(capabilities=True), "privileges", "wrong", "capabilities"),
    (process(open_files=1024), "open files", "wrong", "1024"),
    (process(open_files=None), "open files", "warning", "cannot be seen"),
    (settings(limits=Limits(sessions=70_000)), "open files", "wrong", "70323 are needed"),
    (machine(memory_free=100 * MIB), "memory", "wrong", "100 MiB"),
    (machine(memory_free=500 * MIB), "memory", "warning", "500 MiB"),
    (machine(memory_free=None), "memory", "warning", "cannot be seen"),
    (machine(commit_free=100 * MIB), "memory", "wrong", "overcommit"),
    (machine(commit_free=-MIB), "memory", "wrong", "0 MiB"),
    (process(swapped_bytes=99 * MIB), "swap", "wrong", "99 MiB"),
    (status(capacity=20.0), "processors", "wrong", "less than one speaker"),
    (machine(processors=1.5), "processors", "warning", "quota of 1.5"),
    (settings(engines=Engines(spares=0)), "spare engines", "warning", "none"),
    (status(engines=STATUS.engines[:1]), "spare engines", "wrong", "0 of 1"),
    (
        status(engines=[STATUS.engines[0], engine("engine-3", "starting")]),
        "spare engines", "warning", "starting",
    ),
    (process(store=None), "disk", "wrong", "no engine has their file open"),
    (machine(store_free=100 * MIB), "disk", "wrong", "100 MiB"),
    (machine(store_free=500 * MIB), "disk", "warning", "500 MiB"),
    (machine(store_lasts=False), "disk", "warning", "in memory"),
    (replace(process(store=None), settings=ServeConfig(utterances=Utterances(disk_mb=0))),
     "disk", "ok", "no utterances"),
    (machine(synchronized=False), "clock", "wrong", "not synchronized"),
    (machine(synchronized=None), "clock", "warning", "cannot be asked"),
    (settings(log=Log(trace="/tmp/t")), "logs", "wrong", "/tmp/t"),
    (settings(log=Log(level="debug")), "logs", "warning", "everything"),
    (settings(log=Log(level="error")), "logs", "warning", "only errors"),
    (status(engines=STATUS.engines[1:]), "engines", "wrong", "none works"),
    (
        status(engines=[*STATUS.engines, replace(engine("engine-4", "gone"), reason="signal 9")]),
        "engines", "wrong", "engine-4: signal 9",
    ),
    (
        status(engines=[engine("engine-1", "ready", made=8, failed=2)]),
        "engines", "warning", "2 of 10",
    ),
    (
        status(fronts=[front(errors={"internal": 2, "bad_request": 5})]),
        "errors", "warning", "internal 2",
    ),
    (status(fronts=[front(errors={"bad_request": 5})]), "errors", "ok", "none"),
    (status(fronts=[front(frames=100, late=2)]), "late frames", "warning", "2 of 100"),
    (status(fronts=[replace(front(), restarts=1)]), "restarts", "warning", "1 in 2.0 h"),
    (status(fronts=[replace(front(), restarts=9)]), "restarts", "wrong", "9 in 2.0 h"),
    (settings(drain_seconds=30.0), "stopping", "wrong", "33 s to stop, and is killed after 20"),
    (replace(FACTS, stop_s=10.0), "stopping", "wrong", "after 10"),
    (replace(FACTS, unit=None), "stopping", "warning", "13 s"),
    (replace(FACTS, unit=None, stop_s=30.0), "stopping", "ok", "has 30"),
    (replace(FACTS, unit=Unit(stop_s=20.0, restart="no")), "supervision", "wrong", "not restarted"),
    (replace(FACTS, unit=None), "supervision", "warning", "nobody"),
    (replace(process(first=True), unit=None), "supervision", "ok", "container"),
    (status(version="0.0.1"), "version", "warning", "0.0.1 runs"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "name", "result", "said"), OTHERWISE)
def test_each_item_comes_out_as_things_are(found: Facts, name: str, result: str, said: str) -> None:
    (item,) = [item for item in checks.judge(found) if item.name == name]
    assert (item.result, said in item.found) == (result, True), item
    assert bool(item.advice) == (result != "ok")


def test_every_item_can_be_other_than_well() -> None:
    bad = {name for _, name, result, _ in OTHERWISE if result != "ok"}
    assert {item.name for item in checks.judge(FACTS)} - bad == {"avatars"} - bad


def test_keys_that_others_may_write_sign_nothing(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.pem"
    keys_file.write_text("")
    for mode, result in ((0o644, "ok"), (0o664, "wrong"), (0o646, "wrong")):
        keys_file.chmod(mode)
        found = checks.avatars(settings(avatars=Avatars(require_signed=str(keys_file))))
        assert found.result == result, found


def test_secrets_that_others_may_read_are_none(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("")
    given = [
        (settings(listen=Listen(tls_key=str(file))), {0o600: "ok", 0o640: "ok", 0o644: "wrong"}),
        (settings(access=Access(api_keys=str(file))), {0o600: "ok", 0o660: "wrong"}),
        (settings(access=Access(jwt_keys=str(file))), {0o644: "ok", 0o666: "wrong"}),
    ]
    for found, results in given:
        for mode, result in results.items():
            file.chmod(mode)
            assert checks.secrets(found).result == result, oct(mode)


def test_secrets_do_not_leave_the_server() -> None:
    config = ServeConfig(
        listen=Listen(token="let-me-in", admin_token="me-too"),
        speech=Speech(key="costly"),
        webrtc=WebRtc(ice_credential="turn"),
    )
    covered = without_secrets(config)
    assert (covered.listen.token, covered.speech.key) == ("*" * 9, "*" * 6)
    assert keys().keys() >= SECRET
    for secret in ("let-me-in", "me-too", "costly", "turn"):
        assert secret not in str(covered)


# ---------------------------------------------------------------- what the kernel tells
def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_processes_are_read_from_the_kernel(tmp_path: Path) -> None:
    store = tmp_path / "state"
    files(
        tmp_path,
        proc__10__status="Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\t0000000000000400\nNSpid:\t10\t1\n"
        "VmSwap:\t    100 kB\n",
        proc__20__status="VmSwap:\t     28 kB\n",
        proc__10__limits="Limit  Soft  Hard\nMax open files            1024       4096     files\n",
        proc__10__cgroup="0::/system.slice/lipsync-fast.service/payload\n",
    )
    (tmp_path / "proc/20/fd").mkdir()
    (tmp_path / "proc/20/fd/7").symlink_to(store / "utterances.sqlite")
    assert facts.look_at_process(STATUS, tmp_path) == Process(
        open_files=1024, root=True, capabilities=True, swapped_bytes=128 * 1024,
        unit="lipsync-fast.service", first=True, store=store,
    )  # fmt: skip
    files(
        tmp_path,
        proc__10__status="Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\nNSpid:\t10\n",
        proc__10__limits="Max open files            unlimited       unlimited     files\n",
        proc__10__cgroup="0::/user.slice/user-1000.slice/user@1000.service\n",
    )
    found = facts.look_at_process(STATUS, tmp_path)
    assert (found.root, found.capabilities, found.first, found.unit) == (False, False, False, "")
    assert found.open_files == 1 << 30
    assert facts.look_at_process(STATUS, tmp_path / "nothing") == Process()


def test_memory_is_what_the_least_group_leaves(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__system.slice__a"
    files(
        tmp_path,
        proc__meminfo="MemAvailable:   1000 kB\nCommitLimit: 900 kB\nCommitted_AS: 800 kB\n",
        proc__sys__vm__overcommit_memory="2\n",
        proc__self__mountinfo="30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        proc__10__cgroup="0::/system.slice/a\n",
        **{f"{group}__memory.max": "700000\n", f"{group}__memory.current": "300000\n",
           f"{group}__memory.stat": "anon 5\ninactive_file 100000\n"},
    )  # fmt: skip
    found = facts.look_at_machine(10, None, tmp_path)
    assert found.memory_free == 500_000
    assert found.commit_free == 100 * 1024
    files(tmp_path, **{f"{group}__memory.max": "max\n"}, proc__sys__vm__overcommit_memory="0\n")
    found = facts.look_at_machine(10, None, tmp_path)
    assert (found.memory_free, found.commit_free) == (1000 * 1024, None)
    assert facts.look_at_machine(10, None, tmp_path / "nothing").memory_free is None


def test_what_is_kept_in_memory_is_known_as_such(tmp_path: Path) -> None:
    for kind, lasts in (("tmpfs", False), ("ext4", True)):
        mounts = f"/dev/sda / ext4 rw 0 0\nx {tmp_path} {kind} rw 0 0\ny {tmp_path}/b ext4 rw 0 0\n"
        files(tmp_path, proc__mounts=mounts)
        found = facts.look_at_machine(10, tmp_path, tmp_path)
        assert found.store_lasts == lasts
        assert found.store_free


def test_spans_are_those_of_systemd() -> None:
    assert [facts.seconds(text) for text in ("20s", "1min 30s", "500ms", "infinity")] == [
        20.0, 90.0, 0.5, float("inf"),
    ]  # fmt: skip
    assert [facts.seconds(text) for text in ("", "soon", "5")] == [None] * 3


# ---------------------------------------------------------------- as clients see it
GOOD = {
    "/health/ready": (200, b"{}"),
    "/stats": (401, b""),
    "/metrics": (200, b"# TYPE lipsync_fast_up gauge\nlipsync_fast_up 1\n"),
    "/ws": (101, b""),
}


@contextmanager
def answering(
    answers: dict[str, tuple[int, bytes]], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that gives these answers; its address, and the requests with a token."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answers.get(self.path, (404, b""))
            if self.headers.get("Authorization") == "Bearer sesame":
                shown.append(self.path)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", shown
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def probed(answers: dict[str, tuple[int, bytes]], token: str = "") -> dict[str, str]:
    with answering(answers) as (url, _):
        return {item.name: item.result for item in outside.probe(outside.place_of(url, token))}


def test_a_server_that_can_be_reached_is_well() -> None:
    with answering(GOOD) as (url, shown):
        found = outside.probe(outside.place_of(f"{url}/", "sesame"))
    assert {item.result for item in found} == {"ok"}, found
    assert shown == ["/health/ready", "/metrics", "/ws"]  # and not as a stranger


@pytest.mark.parametrize(
    ("path", "answer", "name", "result"),
    [
        ("/health/ready", (503, b""), "health", "wrong"),
        ("/stats", (200, b"{}"), "strangers", "ok"),  # on this machine
        ("/stats", (404, b""), "strangers", "warning"),
        ("/metrics", (401, b""), "metrics", "warning"),
        ("/metrics", (404, b""), "metrics", "wrong"),
        ("/metrics", (200, b"<html>"), "metrics", "wrong"),
        ("/metrics", (200, b"go_threads 1\n"), "metrics", "wrong"),
        ("/metrics", (200, b"\xff"), "metrics", "wrong"),
        ("/ws", (400, b""), "WebSocket", "wrong"),
        ("/ws", (200, b"<html>"), "WebSocket", "wrong"),
        ("/ws", (401, b""), "WebSocket", "ok"),
    ],
)
def test_what_is_answered_otherwise_is_told(
    path: str, answer: tuple[int, bytes], name: str, result: str
) -> None:
    assert probed({**GOOD, path: answer})[name] == result


def test_a_token_that_is_refused_is_wrong() -> None:
    assert probed({**GOOD, "/metrics": (401, b"")}, "sesame")["metrics"] == "wrong"


def test_where_nobody_answers_that_is_all_that_is_said() -> None:
    with answering(GOOD) as (url, _):
        pass
    (item,) = outside.probe(outside.place_of(url, ""))
    assert (item.name, item.result) == ("health", "wrong")
    assert "does not answer" in item.found


def test_strangers_are_told_nothing_on_the_internet() -> None:
    there = outside.Place(True, "lip.example.org", 443, "", "")
    no, yes = outside.Answer(401), outside.Answer(200, b"{}")
    assert outside.strangers(there, {"/stats": no, "/metrics": no}).result == "ok"
    for answers in ({"/stats": yes, "/metrics": no}, {"/stats": no, "/metrics": yes}):
        found = outside.strangers(there, answers)
        assert found.result == "wrong"
        assert ("/stats" in found.found) == (answers["/stats"] is yes)
    assert outside.certificate(dataclasses.replace(there, tls=False)).result == "wrong"


def test_addresses() -> None:
    place = outside.place_of("https://lip.example.org/avatars/", "")
    assert (place.tls, place.host, place.port, place.path) == (
        True, "lip.example.org", 443, "/avatars",
    )  # fmt: skip
    for url in ("ftp://x", "lip.example.org", "http://", "http://x:port", "http://[::1"):
        with pytest.raises(ConfigError):
            outside.place_of(url, "")


def test_a_certificate_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="needs the extra sign")
    from certificates import Authority

    own = Authority(tmp_path).issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.with_suffix(".both"))
    with answering(GOOD, context) as (url, _):
        place = outside.place_of(url.replace("http:", "https:"), "")
        (stranger,) = outside.probe(place)  # nobody has told this machine of that authority
        place = dataclasses.replace(place, trusted=str(own))
        (soon,) = [item for item in outside.probe(place) if item.name == "certificate"]
        monkeypatch.setattr(outside, "DAYS", 0.5)
        later = outside.probe(place)
    assert (stranger.result, "not trusted" in stranger.found) == ("wrong", True), stranger
    assert (soon.result, soon.found) == ("warning", "ends in 1 days")
    assert {item.result for item in later} == {"ok"}


def test_a_server_elsewhere_is_asked_at_its_address_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsync_fast.supervisor.run_folder._own_tmp", lambda: tmp_path)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with answering(GOOD) as (url, _):
        items = examine(ProductionRequest(url, None, None, None), "")
        assert [item.name for item in items] == [
            "health", "certificate", "strangers", "metrics", "WebSocket",
        ]  # fmt: skip
        with pytest.raises(ServerError, match="no server runs in"):
            examine(ProductionRequest(url, tmp_path / "none", None, None), "")
    with pytest.raises(ServerError, match="no server of this user runs"):
        examine(ProductionRequest("", None, None, None), "")
