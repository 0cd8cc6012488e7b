# SPDX-License-Identifier: Apache-2.0
"""What the documents show is run: programs, commands, and proxies before a real server."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documents import Block, blocks
from sounds import write_wav
from talking import ALONE, SLOW_MACHINE, speech
from websockets.sync.client import connect

from lipsync_fast.client.local import LocalServer
from lipsync_fast_client.protocol import (
    MediaType,
    SessionStart,
    UtteranceEnd,
    UtteranceEnded,
    decode_server,
    encode,
    unpack_media,
)

PATIENCE_S = 120.0
PYTHON = blocks("python")
NAME = "app.example.org"
"""What the proxies' configurations call the service."""


@pytest.fixture
def place(tmp_path: Path, tiny_avatar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording, and a home with an avatar; commands are this installation's."""
    write_wav(tmp_path / "speech.wav", speech(0.6)[:, None] / 32_768)
    shutil.copy(tmp_path / "speech.wav", tmp_path / "greeting.wav")
    home = tmp_path / "home"
    shutil.copytree(tiny_avatar, home / ".local/share/lipsync-fast/avatars/anna")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "lipsync-fast": f'exec "{sys.executable}" -P -m lipsync_fast "$@"',
        "ffplay": "cat > played",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "LIPSYNC_FAST_UTTERANCES_DISK_MB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- programs
@pytest.mark.slow
def test_programs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")
    files = []
    for number, block in enumerate(PYTHON):
        files.append(tmp_path / f"block{number}.py")
        files[-1].write_text(f"# {block}\n{block.text}")
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}/cache"]
    # In a folder of its own: the package is what is installed, whose own lines are not looked at.
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_programs_run(block: Block, place: Path, server: LocalServer) -> None:
    (place / "program.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py", server.url, "speech.wav"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "print(" in block.text:
        assert done.stdout.count("\n") >= 15, "0.6 s of speech are 15 frames"


def test_the_detector_of_the_documents_is_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from lipsync_fast.prepare.detectors import found_points, open_detector

    (block,) = [b for b in PYTHON if "class Mine" in b.text]
    (place / "mine.py").write_text(block.text)
    monkeypatch.syspath_prepend(place)
    detector = open_detector("mine:Mine", {"model": "face.bin"})
    pictures = [np.zeros((48, 64, 3), np.uint8)] * 2
    assert np.isnan(found_points(detector, pictures, 0, "mine:Mine")).all()


# ---------------------------------------------------------------- commands
RUN = re.compile(
    r"lipsync-fast (render speech\.wav.*(-o (video|out)\.mp4|frames/|-o - \|).*"
    r"|avatar (list|prerender\w*|unprerender|keygen|sign|verify) ?.*|doctor)"
)
"""The commands that are run here; the others need a server, hours, or files of somebody's."""


@pytest.mark.slow
def test_commands_run(place: Path) -> None:
    """In the order in which they stand, in one folder; --force where a document renders again."""
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    run = []
    for block in blocks("sh"):
        for line in block.text.splitlines():
            if not RUN.match(line) or "prerender anna hello.wav" in line:
                continue
            again = "video.mp4" in line or "out.mp4" in line
            command = line.replace("speech.wav", "speech.wav --force", 1) if again else line
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail\n{command}"],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert done.returncode == 0, (line, done.stderr)
            run.append(line)
    assert len(run) >= 12
    assert (place / "video.mp4").stat().st_size > 1000
    assert (place / "played").read_bytes()[:2] == b"\xff\xd8"
    assert len(list((place / "frames").glob("*.png"))) == 15


# ---------------------------------------------------------------- proxies
@pytest.fixture(scope="module")
def behind() -> Iterator[LocalServer]:
    """A server as the documents have it behind a proxy."""
    (block,) = [b for b in blocks("toml") if "proxies = " in b.text]
    for line in (f'origins = ["https://{NAME}"]', 'proxies = ["127.0.0.1"]'):
        assert line in block.text
    config = {
        "listen": {"origins": [f"https://{NAME}"], "proxies": ["127.0.0.1"]},
        "live": SLOW_MACHINE,
        "engines": ALONE,
    }
    with LocalServer(config) as running:
        yield running


def certificate(folder: Path) -> None:
    """A certificate of ``NAME``, its key, and both in one file."""
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / f"{NAME}.pem").write_bytes(made)
    (folder / f"{NAME}.key").write_bytes(private)
    (folder / "both.pem").write_bytes(made + private)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def nginx(folder: Path, text: str, port: int) -> list[str]:
    """The command that runs nginx with the documents' configuration, and nothing else."""
    site = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    site = site.replace("/etc/ssl/", f"{folder}/")
    kept = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{kept}\n{site}\n}}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def haproxy(folder: Path, text: str, port: int) -> list[str]:
    """The same for HAProxy."""
    site = text.replace("bind :443", f"bind 127.0.0.1:{port}")
    site = site.replace(f"/etc/haproxy/{NAME}.pem", str(folder / "both.pem"))
    (folder / "haproxy.cfg").write_text(site)
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


@pytest.mark.parametrize("command", [nginx, haproxy], ids=["nginx", "haproxy"])
def test_proxies_pass_on_what_they_should(
    command: Callable[[Path, str, int], list[str]], behind: LocalServer, tmp_path: Path
) -> None:
    name = command.__name__
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))
    program = shutil.which(name, path=path)
    if program is None:
        pytest.skip(f"{name} is not installed (Debian's {name})")
    certificate(tmp_path)
    (block,) = blocks(name)
    upstream = behind.http_url.removeprefix("http://")
    assert "127.0.0.1:8086" in block.text
    port = free_port()
    text = block.text.replace("127.0.0.1:8086", upstream)
    arguments = [program, *command(tmp_path, text, port)[1:]]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        check_proxy(port, tmp_path, process)
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_proxy(port: int, folder: Path, process: subprocess.Popen[bytes]) -> None:
    trust = ssl.create_default_context(cafile=str(folder / f"{NAME}.pem"))

    def dial() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        return trust.wrap_socket(plain, server_hostname=NAME)

    end = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, "the proxy has ended"
        with contextlib.suppress(OSError), dial():
            break
        assert time.monotonic() < end, "the proxy does not listen"
        time.sleep(0.05)

    def ask(method: str, path: str, **headers: str) -> tuple[int, bytes]:
        client = http.client.HTTPConnection(NAME, port)
        client.sock = dial()
        with contextlib.closing(client):
            client.request(method, path, headers={"Host": NAME, **headers})
            answer = client.getresponse()
            return answer.status, answer.read()

    while ask("GET", "/health")[0] == 503 and time.monotonic() < end:
        time.sleep(0.1)  # HAProxy asks first whether the server is well
    status, page = ask("GET", "/")
    assert (status, b"<html" in page) == (200, True)
    assert ask("GET", "/v1/avatars")[0] == 200
    status, words = ask("DELETE", "/v1/avatars/demo")
    assert (status, b"admin_token" in words) == (403, True)
    assert ask("GET", "/v1/avatars", Host="evil.example")[0] in (403, 421)

    frames = 0
    with connect(
        f"wss://{NAME}/ws",
        sock=socket.create_connection(("127.0.0.1", port), PATIENCE_S),
        ssl=trust,
        server_hostname=NAME,
        origin=f"https://{NAME}",  # type: ignore[arg-type]
        subprotocols=["lipsync.v1"],  # type: ignore[list-item]
        proxy=None,
    ) as session:
        session.send(encode(SessionStart(pace="burst")))
        session.send(speech(0.6).tobytes())
        session.send(encode(UtteranceEnd()))
        while True:
            message = session.recv(PATIENCE_S)
            if isinstance(message, bytes):
                frames += unpack_media(message)[0].type == MediaType.FRAME
            elif isinstance(decode_server(message), UtteranceEnded):
                break
    assert frames == 15
