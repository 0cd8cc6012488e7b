# SPDX-License-Identifier: Apache-2.0
"""What the documents show can be read by what it is for; their numbers are those measured."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import LINE
from documents import NOT_RUN, ROOT, RUNNABLE, Block, anchors, blocks, links

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.batch.manifest import read_manifest
from lipsync_fast.benchmark.run import PARTS
from lipsync_fast.cli.systemd import UnitRequest, unit_of
from lipsync_fast.config_load import load
from lipsync_fast.frontend.http.openapi import document
from lipsync_fast_client.protocol import decode_client, decode_server

RUN = {RUNNABLE, "python", "nginx", "haproxy", "caddyfile", "yaml"}
"""Kinds that are run: integration/test_documents_run.py, test_proxies.py."""
READ = {"sh", "toml", "json", "jsonl", "ini"}
DRAWN = {"", "text"}
"""What is printed, drawn or talked: nothing to run."""
SIMPLE = {
    ".",
    "export",
    "cd",
    "cp",
    "mkdir",
    "echo",
    "head",
    "kill",
    "wait",
    "sleep",
    "for",
    "done",
}
"""The shell's own, and its like."""
BEFORE = {"until", "do", "sudo"}
"""What a command may follow."""
FOREIGN = {"apt-get", "aws", "az", "bash", "docker", "gcloud", "kubectl", "nvidia-smi", "systemctl"}
"""Programs of others, in blocks that are not run."""
RESULTS = ROOT / "bench" / "results"


def test_no_block_is_of_a_kind_that_nobody_checks() -> None:
    found = blocks()
    assert len(found) > 30, "the pattern finds the blocks"
    fences = sum(path.read_text().count("\n```") for path in {b.path for b in found})
    assert fences == 2 * len(found)
    for block in found:
        assert block.kind in RUN | READ | DRAWN, block


def test_what_a_page_does_not_run_it_says() -> None:
    pages = ROOT / "docs" / "scenarios"
    found = [block for block in blocks("sh", RUNNABLE) if block.path.parent == pages]
    assert len({block.path for block in found}) >= 10
    for block in found:
        said = NOT_RUN.search(block.above) is not None
        assert said != (block.kind == RUNNABLE), f"{block}: it is run, or says 'not run here'"


def test_the_documents_lead_to_what_is_there() -> None:
    found = list(links())
    assert len(found) > 100
    wrong = []
    for path, link in found:
        name, _, heading = link.partition("#")
        to = (path.parent / name).resolve() if name else path
        if not to.exists() or (heading and heading not in anchors(to)):
            wrong.append(f"{path.relative_to(ROOT)}: {link}")
    assert not wrong


def ids(found: list[Block]) -> Any:
    return pytest.mark.parametrize("block", found, ids=str)


# ---------------------------------------------------------------- commands
@ids(blocks("sh", RUNNABLE))
def test_commands_are_such(block: Block) -> None:
    done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    commands = list(block.commands())
    assert commands
    for words in commands:
        check_command(words, foreign=block.kind == "sh")


def check_command(words: list[str], *, foreign: bool) -> None:
    while words[0] in BEFORE or re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    name = Path(words[0]).name or words[0]
    if name == "lipsync-fast":
        parsed(words[1:])
    elif name == "make":
        make = ["make", "-n", "-C", str(ROOT), *words[1:]]
        assert subprocess.run(make, capture_output=True).returncode == 0, words
    elif name == "pip":
        check_pip(words[1:])
    elif name == "pytest":
        folders = [word for word in words[1:] if word.startswith("tests")]
        assert all((ROOT / folder).is_dir() for folder in folders), words
    elif name == "curl":
        check_request(words[1:])
    elif name == "python3":
        assert words[1:3] == ["-m", "venv"], words
    elif name == "python":
        assert words[1:4] == ["-m", "grpc_tools.protoc", "-I"], words
        assert (ROOT / words[4] / words[-1]).is_file(), words
    elif name == "ffplay":
        assert words[1:] == ["-f", "mjpeg", "-"], words
    elif name == "helm":
        assert (ROOT / "deploy/helm/lipsync-fast/Chart.yaml").is_file()
        assert "deploy/helm/lipsync-fast" in words
    elif name in FOREIGN:
        assert foreign, f"{words}: no test can run it"
    else:
        assert name in SIMPLE, f"{words}: no test knows this command"


def parsed(args: list[str]) -> None:
    """See that the command line takes this, without running it."""
    command = LINE
    context = command.make_context("lipsync-fast", list(args))
    while hasattr(command, "commands"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def check_pip(args: list[str]) -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"])
    assert args[0] == "install"
    for word in args[1:]:
        for extra in re.findall(r"\[([\w,-]+)\]", word):
            assert set(extra.split(",")) <= known, word
        assert word in ("-e", "-c", "--constraint") or "lipsync" in word or word[0] in ".$"


def check_request(args: list[str]) -> None:
    """A request is one that the HTTP port describes."""
    method = args[args.index("-X") + 1].lower() if "-X" in args else "get"
    (url,) = [arg for arg in args if arg.startswith("http")]
    path = "/" + url.split("/", 3)[3]
    described = document()["paths"]
    fits = [p for p in described if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", p), path)]
    assert any(method in described[p] for p in fits), args
    if "-d" in args:
        assert json.loads(args[args.index("-d") + 1])


# ---------------------------------------------------------------- files and messages
@ids(blocks("toml"))
def test_configurations_load(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIPSYNC_FAST_UTTERANCES_DISK_MB", raising=False)
    file = tmp_path / "serve.toml"
    file.write_text(block.text)
    assert any(source == str(file) for source in load(file).sources.values())


@ids(blocks("jsonl"))
def test_lists_of_recordings_are_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(block.text)
    assert len(read_manifest(tmp_path / "list.jsonl")) == block.text.count('"audio"')


@ids(blocks("json"))
def test_messages_are_of_the_protocol(block: Block) -> None:
    text, decoder = block.text.strip(), json.JSONDecoder()
    while text:
        value, end = decoder.raw_decode(text)
        one, text = text[:end], text[end:].strip()
        kinds = [decode_client, decode_server]
        if block.text.count("session.start"):
            kinds = kinds[:: -1 if "started" in block.text else 1]
        for decode in kinds:
            try:
                message = decode(one)
                break
            except Exception as error:
                failure = error
        else:
            raise failure
        known = msgspec.to_builtins(message)
        assert has_all(known, value), "what is shown is what there is"


def has_all(known: Any, shown: Any) -> bool:
    if isinstance(shown, dict):
        return all(name in known and has_all(known[name], one) for name, one in shown.items())
    return bool(known == shown)


def test_the_unit_is_the_one_that_the_command_writes() -> None:
    (block,) = blocks("ini")
    request = UnitRequest(config=Path("/etc/lipsync-fast.toml"))
    assert block.text == unit_of(request, load(environ={}))


# ---------------------------------------------------------------- numbers
def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def row(found: Any, name: str) -> Any:
    return next(row for row in found["rows"] if row["name"] == name)


def test_the_first_screen_has_the_numbers_that_were_measured() -> None:
    screen = (ROOT / "README.md").read_text().split("\n## ", 1)[0]
    live, full, build = (
        result(name) for name in ("run/again-live.json", "run/run.json", "build.json")
    )
    cores = live["machine"]["cores"]
    assert (cores, "two cores of an AMD EPYC" in screen) == (2, True)
    three = row(live, "3 in real time")
    assert (three.get("late", 0), three.get("refused", 0), three["settings"]["sessions"]) == (
        0,
        0,
        3,
    )
    assert f"speakers a core | {3 / cores:g}: three sessions" in screen
    assert f"none of {three['expected']:,} frames came late" in screen

    with AvatarPackage.open(AvatarLibrary().find("demo")) as demo:
        ahead = demo.manifest.audio.lookahead_samples / 16
    p50, p99 = (round(ahead + three["latency_ms"][name]) for name in ("p50", "p99"))
    assert f"{p50} ms in the median, {p99} ms at p99: the avatar hears {ahead:g} ms ahead" in screen

    def kbits(found: Any) -> str:
        return f"{round(found['bytes_per_frame'] * 25 * 8 / 1000, -2):,.0f}"

    ways = ("quality 60", "640 wide", "mouth alone")
    rates = [kbits(three), *(kbits(row(full, f"demo avatar, {way}")) for way in ways)]
    assert (
        '{} kbit/s; {} with `quality=60`, {} with `max_width=640`, {} with `content="mouth"`'
    ).format(*rates) in screen
    stream = result("streams.json")["rows"]["H.264, quality 65, speaking"]["kbit_s"]
    assert f"to each viewer | {round(stream, -2):.0f} kbit/s of H.264, as on the page;" in screen
    best = max(
        r["frames_per_s"] for r in full["rows"] if r["name"].endswith(("1 session", "sessions"))
    )
    assert f"{best:.0f} frames/s" in screen
    assert (
        f"takes {build['wheel_cpu_s']:.0f} s of processor time (of an"
        f" {build['machine']['processor']}; it uses all cores), installing what it needs"
        f" {build['install_cpu_s']:.0f} s more, and {build['installed_mb']:.0f} MB." in screen
    )
    for name in ("docs/images/page.jpg", "docs/images/demo.jpg", "docs/images/ben.jpg"):
        assert f"]({name})" in screen
        assert (ROOT / name).stat().st_size < 200_000


def test_how_far_an_avatar_hears_ahead_is_what_is_said() -> None:
    ahead = {after: AudioWindow(8, after).lookahead_samples / 16 for after in (2, 8)}
    avatars = (ROOT / "docs" / "avatars.md").read_text()
    assert f"a look-ahead of {ahead[8]:g} ms; `--after 2`" in avatars
    assert f"{ahead[8] - ahead[2]:g} ms sooner, with a look-ahead of {ahead[2]:g} ms" in avatars
    options = LINE.commands["avatar"].commands["train"].params
    (after,) = [option for option in options if option.name == "after"]
    assert f"8 is {ahead[8]:g} ms, 2 is {ahead[2]:g} ms" in after.help


def test_the_parts_of_the_benchmark_are_named() -> None:
    (part,) = [option for option in LINE.commands["bench"].params if option.name == "part"]
    assert part.metavar == f"[{'|'.join(PARTS)}]"


def test_what_a_training_is_made_of_is_as_it_was_measured() -> None:
    text = (ROOT / "docs" / "avatars.md").read_text()
    found = result("train_tricks.json")
    runs = found["runs"] + found["detail"]
    assert len(runs) > 8
    for r in runs:
        figures = f"{r['r']:.2f} | {r['shut']:.0%} | {r['sharpness']:.2f} | {r['seam']:.2f}"
        assert f"| {r['name']} | {figures} |" in text
