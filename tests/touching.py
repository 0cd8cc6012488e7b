# SPDX-License-Identifier: Apache-2.0
"""What ``render``, ``doctor`` and ``serve`` touch: files that they write or make, names that they
ask for, whom they connect to. Run as a program, in a folder that becomes their whole world:

    python touching.py FOLDER plain|preload|strace

The first way only leaves what they leave; the second notes calls of the C library (another library
is loaded before it), the third all calls of the system. What was noted lies in FOLDER/notes:
``write PATH``, ``local PATH`` (a socket of this machine), ``ask NAME``, ``connect ADDRESS``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path

SPY = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static void note(const char *kind, const char *what) {
  const char *file = getenv("SPY_NOTES");
  char line[5000];
  int size = snprintf(line, sizeof line, "%s %s\n", kind, what ? what : "?");
  if (!file || size <= 0) return;
  long fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return;
  if (write((int)fd, line, (size_t)(size < (int)sizeof line ? size : (int)sizeof line - 1)) < 0) {}
  close((int)fd);
}
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }
static void addressed(const struct sockaddr *to) {
  char text[200] = "?";
  if (!to) return;
  if (to->sa_family == AF_INET)
    inet_ntop(AF_INET, &((const struct sockaddr_in *)to)->sin_addr, text, sizeof text);
  else if (to->sa_family == AF_INET6)
    inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)to)->sin6_addr, text, sizeof text);
  else if (to->sa_family == AF_UNIX) {
    note("local", ((const struct sockaddr_un *)to)->sun_path);
    return;
  } else
    return;
  note("connect", text);
}
int connect(int fd, const struct sockaddr *to, socklen_t size) {
  addressed(to);
  return ((int (*)(int, const struct sockaddr *, socklen_t))real("connect"))(fd, to, size);
}
ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to,
               socklen_t size) {
  addressed(to);
  return ((ssize_t(*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))real(
      "sendto"))(fd, data, n, flags, to, size);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  if (node) note("ask", node);
  return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))real(
      "getaddrinfo"))(node, service, hints, found);
}
#define OPENS(name, args, pass)                                                        \
  int name args {                                                                      \
    va_list more;                                                                      \
    va_start(more, flags);                                                             \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? (mode_t)va_arg(more, int) : 0;     \
    va_end(more);                                                                      \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT)) note("write", path);                    \
    return pass;                                                                       \
  }
typedef int (*Open)(const char *, int, ...);
typedef int (*OpenAt)(int, const char *, int, ...);
OPENS(open, (const char *path, int flags, ...), ((Open)real("open"))(path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), ((Open)real("open64"))(path, flags, mode))
OPENS(openat, (int at, const char *path, int flags, ...),
      ((OpenAt)real("openat"))(at, path, flags, mode))
OPENS(openat64, (int at, const char *path, int flags, ...),
      ((OpenAt)real("openat64"))(at, path, flags, mode))
FILE *fopen(const char *path, const char *how) {
  if (strpbrk(how, "wa+")) note("write", path);
  return ((FILE * (*)(const char *, const char *)) real("fopen"))(path, how);
}
FILE *fopen64(const char *path, const char *how) {
  if (strpbrk(how, "wa+")) note("write", path);
  return ((FILE * (*)(const char *, const char *)) real("fopen64"))(path, how);
}
int mkdir(const char *path, mode_t mode) {
  note("write", path);
  return ((int (*)(const char *, mode_t))real("mkdir"))(path, mode);
}
int rename(const char *from, const char *to) {
  note("write", to);
  return ((int (*)(const char *, const char *))real("rename"))(from, to);
}
"""
TRACED = (
    "connect,sendto,sendmsg,sendmmsg,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,"
    "renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,truncate"
)
_LOOPBACK_UP = struct.pack("16sh", b"lo", 0x41)
PATIENCE_S = 240.0


def main(folder: Path, way: str) -> None:
    """Render a recording, have the machine looked at, and serve a client."""
    if way == "strace":  # in a network of its own, which has nothing but this
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, 0x8914, _LOOPBACK_UP)
    for name in ("home", "tmp", "work", "run"):
        (folder / name).mkdir(mode=0o700)
    sound = folder / "work" / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    before, environ = watched(folder, way)
    own = [sys.executable, "-P", "-m", "lipsync_fast"]
    render = ["render", str(sound), "-o", "out.mp4", "--quiet"]
    for name, words, fails in (("render", render, False), ("doctor", ["doctor"], True)):
        subprocess.run(  # what doctor looks at may be amiss here
            [*before(name), *own, *words],
            cwd=folder / "work",
            env=environ,
            check=not fails,
            timeout=PATIENCE_S,
        )
    with served([*before("serve"), *own, "serve"], folder, environ) as (stream, http):
        speak(f"ws://127.0.0.1:{stream}/")
        for path in ("/", "/health", "/metrics", "/v1/avatars", "/models/demo/video.mp4"):
            with urllib.request.urlopen(
                f"http://127.0.0.1:{http}{path}", timeout=PATIENCE_S
            ) as answer:
                answer.read()
        time.sleep(float(os.environ.get("LINGER_S", "3")))  # who reports does it by and by
    if way == "strace":
        (folder / "notes").write_text("\n".join(traced(folder)) + "\n")


def watched(folder: Path, way: str) -> tuple[object, dict[str, str]]:
    """What stands before a command so that it is watched, and its environment."""
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    environ |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if way == "preload":
        library = folder / "spy.so"
        source = folder / "spy.c"
        source.write_text(SPY)
        build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(build, check=True)
        environ |= {"LD_PRELOAD": str(library), "SPY_NOTES": str(folder / "notes")}

    def before(name: str) -> list[str]:
        if way != "strace":
            return []
        trace = ["-e", f"trace={TRACED}", "-e", "signal=none", "-o", str(folder / f"{name}.trace")]
        return ["strace", "-f", "-qq", "-s", "400", "--seccomp-bpf", *trace]

    return before, environ


@contextlib.contextmanager
def served(command: list[str], folder: Path, environ: dict[str, str]) -> Iterator[tuple[int, int]]:
    """A server; its ports."""
    config = folder / "work" / "server.toml"
    config.write_text(
        "[listen]\nports = [0]\nhttp_port = 0\n[engines]\nspares = 0\nhung_s = 120\n"
        "[live]\nspeakers = 4\nmargin_most_ms = 60000\nhold_ms = 60000\n[log]\nformat = 'json'\n"
    )
    log = folder / "log"
    with open(log, "wb") as to:
        process = subprocess.Popen(
            [*command, "--config", str(config)], stderr=to, env=environ, cwd=folder / "work"
        )
    try:
        until, found = time.monotonic() + PATIENCE_S, None
        while found is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
            found = re.search(
                r'"message":"serving","ports":"(\d+)","http_port":(\d+)', log.read_text()
            )
        yield int(found[1]), int(found[2])
        for child in children(process.pid) if command[0] == "strace" else [process.pid]:
            os.kill(child, signal.SIGTERM)
        process.wait(PATIENCE_S)
    finally:
        for child in [*children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait()


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def speak(url: str) -> None:
    """Say half a second, and see it."""
    import trio

    import lipsync_fast

    async def say() -> None:
        with trio.fail_after(PATIENCE_S):
            async with lipsync_fast.connect(url, pace="burst", open_timeout=60) as session:
                await session.send(bytes(16_000))
                await session.end_utterance()
                async for event in session:
                    if type(event).__name__ == "UtteranceEnded":
                        return

    trio.run(say)


def traced(folder: Path) -> Iterator[str]:
    """What strace has written down, as notes."""
    for file in folder.glob("*.trace"):
        for line in file.read_text(errors="replace").splitlines():
            yield from _noted(line)


def _noted(line: str) -> Iterator[str]:
    call = re.match(r"\d+ +(\w+)\((.*)", line)
    if call is None:  # the end of a call that another line begins
        return
    name, rest = call[1], call[2]
    if name in ("connect", "sendto", "sendmsg", "sendmmsg"):
        for address in re.findall(r'inet_addr\("([^"]+)"\)', rest):
            yield f"connect {address}"
        for address in re.findall(r'inet_pton\(AF_INET6, "([^"]+)"', rest):
            yield f"connect {address}"
        for path in re.findall(r'sun_path=@?"([^"]+)"', rest):
            yield f"local {path}"
        return
    paths = re.findall(r'"((?:[^"\\]|\\.)*)"', rest)
    if name in ("open", "openat", "openat2"):
        if re.search(r"O_WRONLY|O_RDWR|O_CREAT", rest):
            yield f"write {paths[0]}"
    else:
        yield f"write {paths[-1] if paths else '?'}"


def can_strace() -> bool:
    """Whether there is strace, and this user may make a network."""
    if shutil.which("strace") is None or shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-n", "strace", "-f", "-qq", "--seccomp-bpf", "-o", os.devnull, "true"]
    return subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
