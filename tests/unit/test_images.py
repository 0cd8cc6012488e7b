# SPDX-License-Identifier: Apache-2.0
"""Images: their Dockerfiles, what is locked for them, and what compose.yaml puts around them.

hadolint, CycloneDX, HAProxy and promtool are asked where they are installed (``make test-images``
brings the first two). The steps themselves are carried out by deploy/bare_root.py, as root.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import LINE
from documents import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lipsync_fast.config import ServeConfig
from lipsync_fast.config_load import PREFIX, load
from lipsync_fast.supervisor.exposure import check_exposure

sys.path += [str(ROOT / "deploy"), str(ROOT / "tools")]
import bare_root
import beside
import dockerfile
import make_locks

DEPLOY, COMPOSE = ROOT / "deploy", ROOT / "deploy" / "compose"
FILES = ("Dockerfile", "Dockerfile.cuda")
ENVIRONMENT = {
    "python_version": make_locks.PYTHON,
    "python_full_version": f"{make_locks.PYTHON}.2",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "extra": "",
}


def read(name: str, **given: str) -> dockerfile.Dockerfile:
    return dockerfile.read((DEPLOY / name).read_text(), given)


def steps(stage: dockerfile.Stage, word: str) -> list[dockerfile.Step]:
    return [step for step in stage.steps if step.word == word]


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str, **environ: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- Dockerfiles
def test_hadolint_finds_nothing() -> None:
    config = DEPLOY / "hadolint.yaml"
    run(tool("hadolint"), "--config", str(config), *(str(DEPLOY / name) for name in FILES))


@pytest.mark.parametrize("name", FILES)
def test_what_runs_is_an_ordinary_user_without_a_compiler(name: str) -> None:
    *before, last = read(name).stages
    assert before
    (user,) = steps(last, "USER")
    uid, gid = user.text.split(":")
    assert int(uid) > 1000 < int(gid)  # Kubernetes takes numbers alone for one that is not root
    (packages,) = steps(last, "RUN")
    installed = re.search(r"--no-install-recommends ([\w -]+)", packages.text)
    assert installed is not None
    assert installed[1].split() == ["python3"]
    assert f"--uid {uid} " in packages.text
    assert {stage.base for stage in (*before, last)} == {"debian:bookworm-slim"}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_installed_without_its_hash(name: str) -> None:
    found = 0
    for stage in read(name).stages:
        for step in steps(stage, "RUN"):
            for command in re.split(r"&&|\|\|", step.text):
                if re.search(r"\bpip\b.*\b(install|wheel)\b", command):
                    assert "--require-hashes" in command or "--no-index" in command, command
                    found += 1
    assert found >= 3


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_there(name: str) -> None:
    names = {str(path) for path in dockerfile.context(ROOT)}
    for lock in ("cpu", "cpu-webrtc"):
        file = read(name, LOCK=lock)
        earlier: set[str] = set()
        for stage in file.stages:
            for step in steps(stage, "COPY"):
                if "from" in step.flags:
                    assert step.flags["from"] in earlier
                    continue
                for source in step.words()[:-1]:
                    source = dockerfile.expand(source, file.arguments)
                    assert source == "." or source in names, source
            earlier.add(stage.name)


@pytest.mark.parametrize("name", FILES)
def test_its_commands_and_settings_are_the_servers(name: str) -> None:
    last = read(name).stages[-1]
    (health,), (entry,), (command,) = (
        steps(last, word) for word in ("HEALTHCHECK", "ENTRYPOINT", "CMD")
    )
    checked = json.loads(health.text.removeprefix("CMD "))
    for words in (checked, entry.words() + command.words()):
        assert words[0] == "lipsync-fast"
        assert words[1] in LINE.commands
        LINE.commands[words[1]].make_context(words[1], words[2:])
    environ: dict[str, str] = {}
    for step in steps(last, "ENV"):
        environ |= dockerfile.assignments(step, environ)
    ours = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    listen = load(environ=ours).config.listen
    (ports,) = steps(last, "EXPOSE")
    assert [*listen.ports, listen.http_port] == [int(port) for port in ports.text.split()]
    assert listen.host == "0.0.0.0"
    assert environ["HOME"] == environ["LIPSYNC_FAST_UTTERANCES_FOLDER"]


def test_the_context_is_the_sources_and_nothing_else() -> None:
    names = {str(path) for path in dockerfile.context(ROOT)}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert {path.split("/")[0] for path in names} == {
        "CMakeLists.txt", "LICENSE", "NOTICE", "README.md", "client", "cmake", "csrc", "deploy",
        "lipsync_fast", "pyproject.toml",
    }  # fmt: skip
    assert {name for name in names if name.startswith("deploy/")} == {
        f"deploy/requirements-{lock}.txt" for lock in make_locks.LOCKS
    }
    listed = subprocess.run(
        ["git", "ls-files", "lipsync_fast", "csrc", "cmake", "client"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("no checkout of git")
    assert set(listed.stdout.split()) <= names


def test_the_reader_puts_lines_and_arguments_together() -> None:
    text = (
        "# above\nARG BASE=debian\nARG KIND\nFROM ${BASE}:$KIND AS one\n"
        "RUN a \\\n    # between\n    && b\n\nFROM one\nCOPY --from=one /a /b\n"
        'CMD ["x", "y z"]\nENV A=1 B="2 $A"\n'
    )
    file = dockerfile.read(text, {"KIND": "slim"})
    one, last = file.stages
    assert (one.base, one.name, last.base, last.name) == ("debian:slim", "one", "one", "1")
    assert one.steps[0].text.split() == ["a", "&&", "b"]
    copy, command, env = last.steps
    assert (copy.flags, copy.words()) == ({"from": "one"}, ["/a", "/b"])
    assert command.words() == ["x", "y z"]
    assert dockerfile.assignments(env, {"A": "0"}) == {"A": "1", "B": "2 0"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RUN before",
        "FROM a\nADD x y",
        "FROM a\nSHELL [x]",
        "FROM a\nRUN <<EOF\nx\nEOF",
        "FROM a\nRUN --mount=type=cache x",
        "FROM a\nCOPY --chown=1 x y",
        "FROM a b c d",
        "FROM a\nRUN x \\",
    ],
)
def test_what_the_reader_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(dockerfile.DockerfileError):
        dockerfile.read(text)


def test_dockerignore_is_read_as_docker_does(tmp_path: Path) -> None:
    for name in ("a/b.txt", "a/c.so", "a/d/__pycache__/e", "f.txt", "g/h"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".dockerignore").write_text("# all\n*\n!a\n!*.txt\n**/__pycache__\n**/*.so\n")
    assert [str(path) for path in dockerfile.context(tmp_path)] == ["a/b.txt", "f.txt"]


def test_layers_are_measured_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to("a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e").write_bytes(bytes(10))
    assert bare_root.size_of(tmp_path) == 1010


def test_users_are_numbers() -> None:
    assert bare_root.as_user("") == []
    assert bare_root.as_user("10001:10002")[1:3] == ["--reuid=10001", "--regid=10002"]
    with pytest.raises(dockerfile.DockerfileError):
        bare_root.as_user("lipsync")


def test_the_size_that_is_told_is_the_one_that_was_measured() -> None:
    found = json.loads((ROOT / "bench" / "results" / "image.json").read_text())
    assert round(sum(layer["mb"] for layer in found["layers"])) == round(found["mb"])
    assert found["mb"] <= 400
    text = (DEPLOY / "README.md").read_text()
    last = found["layers"][-1]["mb"]
    assert f"{found['mb']:.0f} MB, of which {last:.0f} the server and its packages" in text
    assert found["container"]["old_client_pictures"] == 50
    assert found["container"]["compose"]["frames_through_tls"] == [25, 25]
    assert found["unit"]["restarted_by_watchdog"]
    (cpu,) = [layer["step"] for layer in found["layers"][:1]]
    assert cpu == f"FROM {read('Dockerfile').stages[-1].base}"


# ---------------------------------------------------------------- locks
def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a lock."""
    found: dict[str, tuple[str, int]] = {}
    text = (DEPLOY / f"requirements-{name}.txt").read_text()
    for entry in re.split(r"\n(?=\S)", text):
        if entry.startswith("#"):
            continue
        package, version = re.match(r"([\w.-]+)==(\S+)", entry).groups()  # type: ignore[union-attr]
        assert canonicalize_name(package) not in found
        found[canonicalize_name(package)] = version, entry.count("--hash=sha256:")
    return found


@pytest.mark.parametrize("name", make_locks.LOCKS)
def test_what_is_locked_is_what_is_declared(name: str) -> None:
    found = locked(name)
    for line in make_locks.LOCKS[name]():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(ENVIRONMENT):
            continue
        version, _ = found.get(canonicalize_name(requirement.name), ("nothing", 0))
        assert requirement.specifier.contains(version), f"{line}: {version}; run `make locks`"


@pytest.mark.parametrize("name", make_locks.LOCKS)
def test_each_has_its_hashes_and_no_address(name: str) -> None:
    assert all(hashes for _, hashes in locked(name).values())
    text = (DEPLOY / f"requirements-{name}.txt").read_text()
    assert not re.search(r"://|@ |--(extra-)?index|--find-links|^-e", text, re.MULTILINE)


def test_images_have_what_the_server_offers() -> None:
    project = make_locks.project(".")["project"]
    extras = {*make_locks.SERVED, "webrtc", "cuda13"}
    assert extras <= set(project["optional-dependencies"])
    assert {"aiortc"} <= locked("cpu-webrtc").keys() - locked("cpu").keys()
    assert {"torch", "cupy-cuda13x"} <= locked("cuda").keys()


def test_the_list_of_parts_is_whole(tmp_path: Path) -> None:
    file, lock = tmp_path / "sbom.json", str(DEPLOY / "requirements-cpu.txt")
    how = ("requirements", "--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible")
    run(tool("cyclonedx-py"), *how, "--output-file", str(file), lock)
    found = json.loads(file.read_text())
    parts = {canonicalize_name(each["name"]): each for each in found["components"]}
    wanted = locked("cpu")
    assert {name: part["version"] for name, part in parts.items()} == {
        name: version for name, (version, _) in wanted.items()
    }
    assert found["metadata"]["component"]["name"] == "lipsync-fast"
    for name, part in parts.items():
        hashes = {each["content"] for r in part["externalReferences"] for each in r["hashes"]}
        assert len(hashes) == wanted[name][1], name


# ---------------------------------------------------------------- compose
def compose() -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def test_compose_runs_a_server_that_may_be_reached() -> None:
    services = compose()["services"]
    server = services["server"]
    given = {
        name: re.sub(r"\$\{.*\}", "x" * 24, value) for name, value in server["environment"].items()
    }
    config: ServeConfig = load(environ={**given, "LIPSYNC_FAST_LISTEN_HOST": "0.0.0.0"}).config
    assert check_exposure(config.listen, config.access) == ""
    networks = services["haproxy"]["networks"]
    assert config.listen.proxies == (networks["inside"]["ipv4_address"],) == (beside.ADDRESS,)
    assert "ports" not in server  # but through the proxy
    assert int(server["stop_grace_period"].removesuffix("s")) > config.drain_seconds + 3


def test_compose_lets_nothing_be_written_and_mounts_what_is_there() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("image", "").endswith((":latest",)), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).is_file(), source
    build = compose()["services"]["server"]["build"]
    assert (COMPOSE / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    haproxy = tool("haproxy")
    pytest.importorskip("cryptography", reason="needs the extra sign")
    from certificates import Authority

    own = Authority(tmp_path).issue("server").with_suffix(".both")
    run(haproxy, "-c", "-f", str(COMPOSE / "haproxy.cfg"), CERTIFICATE=str(own))


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    promtool = tool("promtool")
    (tmp_path / "token").write_text("open sesame")
    rules = ROOT / "deploy" / "helm" / "lipsync-fast" / "files" / "rules.yaml"
    shutil.copy(rules, tmp_path / "rules.yaml")
    text = (COMPOSE / "prometheus.yml").read_text()
    assert "/run/secrets/token" in text
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/run/secrets/token", str(tmp_path / "token")))
    run(promtool, "check", "config", str(file))
