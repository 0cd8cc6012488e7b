# SPDX-License-Identifier: Apache-2.0
"""Carry out a Dockerfile's own steps without a container engine, and try what comes of them.

    sudo python deploy/bare_root.py deploy/Dockerfile [--report bench/results/image.json]
        [--mirror URL] [--share FILE…] [--stage NAME] [--work FOLDER]

A root of Debian is made by debootstrap, and slimmed as Debian's own slim images are. Each step is
a layer (overlayfs), and runs in a sandbox (bubblewrap) with the capabilities that an engine gives.
The last stage is then served from as an operator would: its user, no capabilities, a read-only
root, a network of its own, /tmp and a volume to write to; clients of the old service and of
lipsync.v1 talk to it, also through HAProxy; and a real systemd runs the hardened unit. Layers are
kept in --work, and used again where nothing below has changed.

Linux, root, debootstrap, bubblewrap; for the rest haproxy, prometheus and systemd-container, where
they are there. What the machine needs to reach its indexes of packages is given by
--share FILE[:PLACE] (seen during RUN, such as /etc/pip.conf): no layer gets it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile import (
    Dockerfile,
    DockerfileError,
    Step,
    assignments,
    context,
    expand,
    read,
)

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETPCAP", "SETUID",
    "NET_BIND_SERVICE", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT",
)  # fmt: skip
"""What engines give a step of a build."""
SLIM = """path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/overrides/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
path-exclude /usr/share/groff/*
"""
"""What Debian's slim images leave out, now and in packages to come."""
CLEAN = """DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin"; };
Acquire::Languages "none";
Acquire::GzipIndexes "true";
"""


@dataclass
class Image:
    """What a stage has become so far: its layers, lowest first, and its settings."""

    layers: list[Path]
    sizes: list[tuple[str, int]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: str = ""
    stop_signal: str = "SIGTERM"

    def variables(self) -> dict[str, str]:
        """What is put in where an instruction names a variable."""
        return {**self.arguments, **self.env}


class Builder:
    """Makes images, layer by layer, in a folder of its own.

    Args:
        work: the folder; layers of earlier runs are used again.
        mirror: of Debian's packages; debootstrap's own where empty.
        share: files of this machine, and where steps see them.
    """

    def __init__(self, work: Path, mirror: str, share: dict[Path, Path]) -> None:
        self.work, self.mirror, self.share = work, mirror, share
        (work / "mnt").mkdir(parents=True, exist_ok=True)
        (work / "layers").mkdir(exist_ok=True)
        self.images: dict[str, Image] = {}
        self.arguments: dict[str, str] = {}

    def build(self, file: Dockerfile, until: str = "") -> Image:
        """Carry out the stages, up to one where it is named; the last one's image."""
        self.arguments = file.arguments
        for stage in file.stages:
            image = self._base(stage.base)
            for step in stage.steps:
                self.step(image, step)
            self.images[stage.name] = image
            if stage.name == until:
                break
        return image

    # ------------------------------------------------------------ layers
    def _layer(self, key: str, name: str, image: Image, make: list[str]) -> None:
        """A layer above the others: what a command does to the root that is mounted in mnt."""
        below = "".join(layer.name for layer in image.layers)
        folder = self.work / "layers" / hashlib.sha256(f"{below}{key}".encode()).hexdigest()[:12]
        if not folder.exists():
            upper = folder.with_suffix(".new")
            shutil.rmtree(upper, ignore_errors=True)
            upper.mkdir()
            say(name)
            done = subprocess.run(self.over(image, upper, make))
            if done.returncode:
                raise DockerfileError(f"{name}: ended with {done.returncode}")
            for path in self.share.values():
                _unmade(upper, path)
            upper.rename(folder)
        image.layers.append(folder)
        image.sizes.append((name, size_of(folder)))

    def over(self, image: Image, upper: Path | None, command: list[str]) -> list[str]:
        """A command that sees an image in mnt, and writes what it changes into a folder."""
        mount = self._mounted(image.layers, upper)
        return ["unshare", "--mount", "sh", "-ec", mount, "sh", *command]

    def _mounted(self, layers: list[Path], upper: Path | None) -> str:
        """A script that mounts layers as mnt, then becomes its arguments."""
        lower = ":".join(layer.name for layer in reversed(layers))
        options = f"lowerdir={lower}"
        if upper is not None:
            aside = self.work / "aside"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            options += f",upperdir={upper.name},workdir=../aside"
        at = shlex.quote(str(self.work / "layers"))
        return f'cd {at}; mount -t overlay overlay -o {options} ../mnt; exec "$@"'

    def _base(self, name: str) -> Image:
        if name in self.images:
            before = self.images[name]
            return Image(list(before.layers), list(before.sizes), dict(before.env))
        known = re.fullmatch(r"debian:(\w+)-slim(?:@sha256:\w+)?", name)
        if known is None:
            raise DockerfileError(f"FROM {name}: only debian:SUITE-slim has a counterpart here")
        folder = self.work / "layers" / known[1]
        if not folder.exists():
            new = folder.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            say(f"debootstrap {known[1]}")
            mirror = [self.mirror] if self.mirror else []
            command = ["debootstrap", "--variant=minbase", known[1], str(new), *mirror]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            _slim(new)
            new.rename(folder)
        return Image([folder], [(f"FROM {name}", size_of(folder))])

    # ------------------------------------------------------------ steps
    def step(self, image: Image, step: Step) -> None:
        """Carry out one instruction upon an image."""
        words = {"ENTRYPOINT": "entrypoint", "CMD": "command"}
        if step.word == "RUN":
            self._run(image, step)
        elif step.word == "COPY":
            self._copy(image, step)
        elif step.word == "ENV":
            image.env |= assignments(step, image.variables())
        elif step.word == "ARG":
            name, _, default = step.text.partition("=")
            image.arguments[name] = self.arguments.get(name, default)
        elif step.word == "WORKDIR":
            image.workdir = os.path.join(image.workdir, expand(step.text, image.variables()))
            inside = f"{self.work}/mnt{image.workdir}"
            self._layer(step.text, f"WORKDIR {step.text}", image, ["mkdir", "-p", inside])
        elif step.word == "USER":
            image.user = step.text
        elif step.word in words:
            if not step.text.startswith("["):
                raise DockerfileError(f"line {step.line}: {step.word}: the list form is expected")
            setattr(image, words[step.word], step.words())
        elif step.word == "HEALTHCHECK":
            image.health = step.text.removeprefix("CMD ")
        elif step.word == "STOPSIGNAL":
            image.stop_signal = step.text

    def _run(self, image: Image, step: Step) -> None:
        inside = ["/bin/sh", "-c", step.text]
        shared = [w for pair in self.share.items() for w in ("--ro-bind", *map(str, pair))]
        command = [
            *("bwrap", "--bind", str(self.work / "mnt"), "/", *SANDBOX, *shared),
            *("--ro-bind", "/etc/resolv.conf", "/etc/resolv.conf"),
            *(word for name in CAPABILITIES for word in ("--cap-add", f"CAP_{name}")),
            *setenv({"PATH": DEFAULT_PATH, "HOME": "/root", **image.variables()}),
            *("--chdir", image.workdir, "--", *as_user(image.user), *inside),
        ]
        key = json.dumps([step.text, image.variables(), image.workdir, image.user])
        self._layer(key, f"RUN {step.text}", image, command)

    def _copy(self, image: Image, step: Step) -> None:
        *sources, target = (expand(word, image.variables()) for word in step.words())
        where = os.path.normpath(os.path.join(image.workdir, target))
        to = Path(f"{self.work}/mnt{where}")
        many = target.endswith("/") or target == "." or len(sources) > 1
        if "from" in step.flags:
            other = self.images[step.flags["from"]]
            key = "".join(layer.name for layer in other.layers) + step.text
            (source,) = sources
            mount = self._mounted(other.layers, None).replace("../mnt", "../from")
            (self.work / "from").mkdir(exist_ok=True)
            copy = 'mkdir -p "$2"; exec cp -a --no-preserve=ownership "$1"/. "$2"'
            inside = ["sh", "-ec", copy, "sh", f"{self.work}/from{source}", str(to)]
            self._layer(key, f"COPY {step.text}", image, ["sh", "-ec", mount, "sh", *inside])
            return
        staged = self.work / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        digest = hashlib.sha256(f"{sources} {where}".encode())
        for path in context(ROOT):
            for source in sources:
                inside = _below(path, source)
                if inside is None:
                    continue
                place = staged / inside if many or inside.parts[1:] else staged / to.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, place)
                digest.update(f"{inside}\0{(ROOT / path).stat().st_mode}\0".encode())
                digest.update((ROOT / path).read_bytes())
        if not staged.exists():
            raise DockerfileError(f"line {step.line}: nothing to copy: {' '.join(sources)}")
        folder = to if many else to.parent
        copy = 'mkdir -p "$2"; exec cp -a --no-preserve=ownership "$1"/. "$2"'
        make = ["sh", "-ec", copy, "sh", str(staged), str(folder)]
        self._layer(digest.hexdigest(), f"COPY {step.text}", image, make)

    # ------------------------------------------------------------ running
    def run(self, image: Image, extra: list[str], env: dict[str, str]) -> list[str]:
        """The command that runs an image as a container would: its user, a root to read only."""
        bounds = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        command = [
            *("bwrap", "--ro-bind", str(self.work / "mnt"), "/", *SANDBOX, "--unshare-net"),
            *("--as-pid-1", "--perms", "1777", "--tmpfs", "/tmp", *extra),
            *(w for n in ("SETUID", "SETGID", "SETPCAP") for w in ("--cap-add", f"CAP_{n}")),
            *setenv({"PATH": DEFAULT_PATH, **image.env, **env}),
            *("--chdir", image.workdir, "--", *as_user(image.user, bounds)),
            *image.entrypoint,
            *image.command,
        ]
        return self.over(image, None, command)


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SANDBOX = (
    "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm", "--proc", "/proc",
    "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--clearenv",
    "--cap-drop", "ALL",
)  # fmt: skip


def setenv(values: dict[str, str]) -> Iterator[str]:
    """Arguments of bubblewrap for an environment."""
    for name, value in values.items():
        yield from ("--setenv", name, value)


def as_user(user: str, more: list[str] | None = None) -> list[str]:
    """Arguments of setpriv for a user, by number."""
    if not user:
        return []
    uid, _, gid = user.partition(":")
    if not (uid + gid).isdecimal():
        raise DockerfileError(f"USER {user}: expected numbers, which Kubernetes asks for as well")
    ids = ["setpriv", f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups", *(more or [])]
    return [*ids, "--"]


def size_of(folder: Path) -> int:
    """Bytes of the files in a layer; one with several names counts once."""
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            seen[found.st_ino] = found.st_size
    return sum(seen.values())


def say(text: str) -> None:
    """One line of progress."""
    print(text[:120], file=sys.stderr, flush=True)


def _below(path: Path, source: str) -> Path | None:
    """Where a file of the context comes to lie below a copy's target; None where it does not."""
    whole = Path(source)
    if path == whole:
        return Path(path.name)
    return path.relative_to(whole) if path.is_relative_to(whole) else None


def _unmade(upper: Path, path: Path) -> None:
    """Remove the empty file, and folders, that the sandbox has made to show a file of ours at."""
    made = upper / str(path).lstrip("/")
    if made.is_file() and made.stat().st_size == 0:
        made.unlink()
        for folder in made.parents:
            if folder == upper or any(folder.iterdir()):
                break
            folder.rmdir()


def _slim(root: Path) -> None:
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(SLIM)
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
    for left in ("var/lib/apt/lists", "var/cache/apt", "var/log", "var/cache/debconf"):
        for path in (root / left).rglob("*"):
            if path.is_file():
                path.unlink()
    for name in ("info", "linda", "lintian", "locale", "man", "groff"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for path in (root / "usr/share/doc").rglob("*"):
        if path.is_file() and path.name != "copyright":
            path.unlink()


def main() -> None:
    """Build, try, and write down what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--mirror", default="")
    parser.add_argument("--share", action="append", default=[])
    parser.add_argument("--stage", default="")
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/lipsync-fast-image"))
    args = parser.parse_args()
    share = {
        Path(file): Path(place or file) for file, _, place in (s.partition(":") for s in args.share)
    }
    arguments = dict(given.partition("=")[::2] for given in args.build_arg)
    builder = Builder(args.work.absolute(), args.mirror, share)
    image = builder.build(read(args.file.read_text(), arguments), args.stage)
    total = sum(size for _, size in image.sizes)
    for name, size in image.sizes:
        print(f"{size / 1e6:7.1f} MB  {name[:100]}")
    print(f"{total / 1e6:7.1f} MB in all")
    if args.stage:
        return
    import trial
    import unit_trial

    found = {"container": trial.attempt(builder, image)}
    if unit_trial.there():
        found["unit"] = unit_trial.attempt(builder, image)
    print(json.dumps(found, indent=1))
    if args.report:
        from lipsync_fast.benchmark.program import about_this_run, write

        options = [f"--build-arg {given}" for given in args.build_arg]
        command = " ".join(["sudo python deploy/bare_root.py", str(args.file), *options])
        layers = [{"step": name, "mb": round(size / 1e6, 1)} for name, size in image.sizes]
        sizes = {"layers": layers, "mb": round(total / 1e6, 1), "packages": largest(image)}
        write(args.report, about_this_run() | {"command": command} | sizes | found)


def largest(image: Image) -> dict[str, float]:
    """Megabytes of the largest Python packages in an image's last layer."""
    (folder,) = image.layers[-1].glob("opt/*/lib/python*/site-packages")
    sizes = {path.name: size_of(path) / 1e6 for path in folder.iterdir() if path.is_dir()}
    by_size = sorted(sizes.items(), key=lambda item: -item[1])
    return {name: round(size, 1) for name, size in by_size[:12]}


if __name__ == "__main__":
    main()
