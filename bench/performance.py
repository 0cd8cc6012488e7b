# SPDX-License-Identifier: Apache-2.0
"""Write docs/performance.md from the committed results.

    python bench/performance.py [--check]

and its plots, docs/images/performance.png.

Reads bench/results/run/run.json (``lipsync-fast bench --out``), parts of it that were measured
again (run/again-*.json), run/prepared-avatars.json, streams.json, page.json, webrtc.json,
distill.json, and bench/results/micro/*.json. ``--check`` writes nothing, and fails where the
document is not what would be written.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.report import draw, markdown
from lipsync_fast.benchmark.rows import Report, Row, Spread, rates, ratios
from lipsync_fast.benchmark.run import IDLE, OURS, read

sys.path.insert(0, str(Path(__file__).resolve().parent))

from performance_gpu import chapter
from performance_page import the_page
from performance_students import students

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "bench" / "results", ROOT / "docs" / "performance.md"
PLOTS = DOCUMENT.parent / "images" / "performance.png"
A, B, C = "PyTorch, frame by frame", "ONNX Runtime, frame by frame", "ONNX Runtime, offline"
SPOKEN = "demo avatar, 2 sessions"

Goal = tuple[str, str, str, bool | None]
"""What, the goal, what was found, and whether it is met; None where it was not measured."""


def micro(name: str) -> Any:
    """A micro-benchmark's result, or None."""
    path = RESULTS / "micro" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def against(report: Report, peer: str, least: float) -> Goal:
    """Ours against a peer, in each round."""
    found = ratios(report.rows, peer)
    what = f"the reference's network against {peer}"
    if not found:
        return what, f"≥ {least:g}x", "not measured", None
    s = Spread.of(found)
    words = f"{s.median:.1f}x ({s.least:.1f} to {s.most:.1f} over {s.rounds} rounds)"
    floor = micro("floor")
    if floor is not None and s.median < least:
        ours = statistics.median(rates(report.rows, "ours", OURS))
        most = 1e3 / floor["millions"]["reference"]["floor_ms"]
        words += (
            f"; ours makes {ours:.1f} frames/s of the {most:.0f} that its multiply-adds allow at"
            f" the peak of these processors, and {least:g}x is {least * ours / s.median:.0f}"
        )
    return what, f"≥ {least:g}x", words, s.median >= least


def demo(report: Report) -> Goal:
    """Frames a second of the demo avatar."""
    what = "demo avatar, frames/s end to end, load generator on the same processors"
    found = [r.frames_per_s for r in report.rows if "session" in r.name and r.kind == "throughput"]
    if not found:
        return what, "≥ 75", "not measured", None
    peer = rates(report.rows, "peer", B)
    words = f"{max(found):.0f}"
    if peer:
        words += f" ({B} with the reference's network: {statistics.median(peer):.1f})"
    return what, "≥ 75", words, max(found) >= 75


def front(report: Report) -> Goal:
    """The front's processor time."""
    what, goal = "front's processor time a frame, everything in", "≤ 120 µs"
    rows = [r for r in report.rows if r.name == SPOKEN]
    found = micro("front")
    if found is None:
        return what, goal, "not measured", None
    values = {name: v["front"] for name, v in found["medians"].items()}
    words = [f"{name}: {us:.0f} µs" for name, us in values.items()]
    if rows:
        beside = 1e3 * statistics.median(r.cpu_ms_per_frame["front"] for r in rows)
        words.append(f"as fast as it goes beside a CPU engine on the same processors: {beside:.0f}")
    bare = micro("send")
    if bare is not None:
        us = statistics.median(bare["us_per_frame"]["bare stream"])
        words.append(f"a bare send of {bare['size'] / 1e3:.0f} kB: {us:.0f}")
    return what, goal, "; ".join(words), max(values.values()) <= 120


def ring(report: Report) -> Goal:
    """The ring against ZeroMQ."""
    what, goal = "ring, one-way p50 against ZeroMQ ipc", "≥ 5x faster"
    found = micro("ring")
    if found is None:
        return what, goal, "not measured", None
    words, worst = [], float("inf")
    for size in found["medians"]["ring"]:
        ours, theirs = (found["medians"][w][size]["p50_us"] for w in ("ring", "ZeroMQ ipc"))
        awake = [found["medians"][w][size]["awake_p50_us"] for w in ("ring", "ZeroMQ ipc")]
        words.append(
            f"{size}: {theirs / ours:.1f}x ({ours:.0f} against {theirs:.0f} µs); to a reader that"
            f" is awake {awake[1] / awake[0]:.1f}x ({awake[0]:.1f} against {awake[1]:.1f} µs)"
        )
        worst = min(worst, theirs / ours)
    floor = found["floor"]
    words.append(f"waking a process alone takes {floor['wake_us']:.0f} µs")
    return what, goal, "; ".join(words), worst >= 5


def avatars(report: Report) -> Goal:
    """Twenty avatars in turn."""
    what, goal = "20 avatars in turn against one", "≥ 95% of the speed, ≤ 60 MB each"
    one = [r for r in report.rows if r.name == "1 avatar"]
    many = [r for r in report.rows if r.name == "20 avatars"]
    if not one or not many:
        return what, goal, "not measured", None
    share = Spread.of(b.frames_per_s / a.frames_per_s for a, b in zip(one, many, strict=True))
    engine = "engine-1"
    each = (many[0].private_mb[engine] - one[0].private_mb[engine]) / 19
    words = f"{share.median:.0%} ({share.least:.0%} to {share.most:.0%}), {each:.0f} MB each"
    return what, goal, words, share.median >= 0.95 and each <= 60


def prepared_avatars() -> Any:
    """What bench/prepared_avatars.py found, or None."""
    path = RESULTS / "run" / "prepared-avatars.json"
    return json.loads(path.read_text()) if path.exists() else None


def prepared(report: Report) -> Goal:
    """Twenty avatars from videos, each with networks of its own."""
    what = "the same with avatars prepared by one command, each with networks of its own"
    goal, found = "≥ 95% of the speed, ≤ 60 MB each", prepared_avatars()
    if found is None:
        return what, goal, "not measured", None
    words, met = [], True
    for size, each in found["networks"].items():
        share = Spread.of(each["share"])
        words.append(
            f"networks of {size} size: {share.median:.0%} ({share.least:.0%} to {share.most:.0%}),"
            f" {each['private_mb_each']:.0f} MB each"
        )
        met = met and each["right"] and share.median >= 0.95 and each["private_mb_each"] <= 60
    return what, goal, "; ".join(words), met


def idle(report: Report) -> Goal:
    """A frame without speech."""
    what, goal = "server's processor time of an idle frame against a spoken one", "≤ 5%"
    quiet = [r for r in report.rows if r.name == IDLE]
    spoken = [r for r in report.rows if r.name == SPOKEN]
    if not quiet or not spoken:
        return what, goal, "not measured", None
    mine = "engine", "front", "supervisor"
    a, b = (sum(r[0].cpu_ms_per_frame.get(k, 0.0) for k in mine) for r in (quiet, spoken))
    return what, goal, f"{a / b:.1%} ({a:.2f} ms against {b:.1f})", a / b <= 0.05


def goals(report: Report) -> list[str]:
    """The table of goals."""
    makers: list[Callable[[Report], Goal]] = [
        lambda r: against(r, A, 15),
        lambda r: against(r, B, 3),
        demo,
        front,
        ring,
        avatars,
        prepared,
        idle,
    ]
    lines = ["| what | goal | found | |", "|---|---|---|---|"]
    for make in makers:
        what, goal, words, met = make(report)
        verdict = {True: "met", False: "**missed**", None: ""}[met]
        lines.append(f"| {what} | {goal} | {words} | {verdict} |")
    return lines


def parts() -> list[str]:
    """The micro-benchmarks' tables."""
    lines: list[str] = []
    found = micro("parts")
    if found is not None:
        lines += ["", "## Parts of a frame", "", f"`{found['command']}`", ""]
        lines += ["| what | ours | the plain way | ratio | |", "|---|---|---|---|---|"]
        for name, values in found["results"].items():
            times = [f"{k[:-3]} {v} ms" for k, v in values.items() if k.endswith("_ms")]
            lines.append(
                f"| {name} | {times[0]} | {times[1]} | {values['ratio']}x | {values['floor']} |"
            )
    found = micro("ring")
    if found is not None:
        lines += ["", "## From process to process", "", f"`{found['command']}`", ""]
        lines += [
            "| way | record | p50, p99, p99.9 µs | reader awake: p50, p99 µs | records/s | MB/s |",
            "|---|---|---|---|---|---|",
        ]
        for way, sizes in found["medians"].items():
            for size, v in sizes.items():
                lines.append(
                    f"| {way} | {size} | {v['p50_us']}, {v['p99_us']}, {v['p99.9_us']} | "
                    f"{v['awake_p50_us']}, {v['awake_p99_us']} | "
                    f"{v['records_per_s']:.0f} | {v['mb_per_s']:.0f} |"
                )
        floor = found["floor"]
        copies = ", ".join(f"{k} {v} µs" for k, v in floor["copy_us"].items())
        lines += ["", f"Floor: waking a process {floor['wake_us']} µs; one copy: {copies}."]
    found = micro("send")
    if found is not None:
        lines += ["", "## Sending a frame", "", f"`{found['command']}`", ""]
        lines += ["| way | µs a frame, median |", "|---|---|"]
        for way, values in found["us_per_frame"].items():
            lines.append(f"| {way} | {statistics.median(values):.1f} |")
    found = micro("tls")
    if found is not None:
        about = found["machine"]
        lines += ["", "## TLS", "", f"`{found['command']}`, at a load of"]
        lines[-1] += f" {about['load_average'][0]:.0f} on {about['cores']} processors: the rows are"
        lines[-1] += " to be compared with each other, and not with those of other tables."
        lines += [""]
        lines += ["| what a front does | µs, median |", "|---|---|"]
        for way, values in found["us_per_frame"].items():
            size = f"{found['size'] // 1000} kB"
            lines.append(f"| sends a frame of {size} {way} | {statistics.median(values):.0f} |")
        for key, values in found["us_per_handshake"].items():
            lines.append(f"| shakes hands, key of {key} | {statistics.median(values):.0f} |")
        lines += ["", f"Each connection needs {found['kb_per_connection']:.0f} kB more."]
    found = micro("front")
    if found is not None:
        lines += ["", "## The front beside an engine that has every picture at once", ""]
        lines += [f"`{found['command']}`; what was changed for it: `bench/micro/front.md`", ""]
        lines += ["| sessions | frames/s | µs a frame: front, engine's loop |", "|---|---|---|"]
        for name, v in found["medians"].items():
            lines.append(
                f"| {name} | {v['frames_per_s']:.0f} | {v['front']:.0f}, {v['engine']:.0f} |"
            )
    found = micro("floor")
    if found is not None:
        lines += ["", "## Multiply-adds", "", f"`{found['command']}`", ""]
        lines += ["| avatar | millions: audio encoder, image half, decoder | of a frame | floor |"]
        lines += ["|---|---|---|---|"]
        for name, v in found["millions"].items():
            each = f"{v['audio_encoder']}, {v['image']}, {v['decoder']}"
            lines.append(f"| {name} | {each} | {v['a_frame']} | {v['floor_ms']} ms |")
        lines += [
            "",
            f"At {found['peak']:.0f} thousand million a second, which a matrix product reaches here"
            " with all processors. The image half is cached; a frame needs one new audio vector.",
        ]
    found = micro("batcher")
    if found is not None:
        lines += ["", "## The engine's loop", "", f"`{found['command']}`", ""]
        lines += ["| jobs in the ring | µs a job | rings alone |", "|---|---|---|"]
        for name, values in found["us_per_job"].items():
            a, b = (statistics.median(values[k]) for k in ("loop", "rings alone"))
            lines.append(f"| {name} | {a:.1f} | {b:.1f} |")
    return lines


def from_videos() -> list[str]:
    """The table of avatars that were prepared from videos."""
    found = prepared_avatars()
    if found is None:
        return []
    p, machine = found["prepare"], found["machine"]
    lines = [
        "",
        "## From videos to twenty avatars",
        "",
        f"`{found['command']}` with {found['commit']}, {found['date']}, on"
        f" {machine['cores']} cores of {machine['processor']}: {p['videos']} videos of"
        f" {p['frames']} frames, {p['size'][0]} x {p['size'][1]}, with sound and landmarks, one of"
        f" them cut off, by one `lipsync-fast avatar prepare`: {p['prepared']} prepared,"
        f" {len(p['failed'])} refused by name, in {p['wall_s']:.0f} s. Each was packed with"
        " networks of its own, of random weights: nothing was trained. Then clients came, spoke for"
        " a second and went, of one avatar and of all in turn. Image halves that do not fit into"
        " the memory for them are made again each time, which costs what the last column says.",
        "",
        "| networks | 1 avatar, frames/s | 20 avatars | share of the speed | MB each: own, shared |"
        " image halves, ms a frame |",
        "|---|---|---|---|---|---|",
    ]
    for size, each in found["networks"].items():
        one, many = (
            Spread.of(r["frames_per_s"] for r in each["rows"] if r["settings"]["avatars"] == count)
            for count in (1, each["avatars"])
        )
        share = Spread.of(each["share"])
        again = each["rows"][-1]["engine_ms_per_frame"]["image half"]
        lines.append(
            f"| {size} size: width {each['width']}, region {each['region']}"
            f" | {one.median:.1f} ({one.least:.1f} to {one.most:.1f})"
            f" | {many.median:.1f} ({many.least:.1f} to {many.most:.1f})"
            f" | {share.median:.1%} ({share.least:.1%} to {share.most:.1%})"
            f" | {each['private_mb_each']}, {each['shared_mb_each']} | {again:.1f} |"
        )
    return lines


def preparing() -> list[str]:
    """How fast a video is prepared, as bench/prepare_speed.py found it; else nothing."""
    file = RESULTS / "run" / "prepare-speed.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    machine, steps = found["machine"], found["steps_ms"]
    rate, cpu = Spread.of(found["frames_per_s"]), Spread.of(found["cpu_ms_per_frame"])
    return [
        "## Preparing a video",
        "",
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, load average"
        f" {found['load']:g} by other programs: {found['frames']} frames of"
        f" {found['side']} x {found['side']} with sound, by one `lipsync-fast avatar prepare` from"
        f" its start to its end: {rate.median:.0f} frames/s ({rate.least:.0f} to {rate.most:.0f});"
        f" {cpu.median:.1f} ms of processor time a frame ({cpu.least:.1f} to {cpu.most:.1f}). Three"
        " threads share it, and each step alone, in one, takes:",
        "",
        "| step | ms a frame |",
        "|---|---|",
        *(f"| {name} | {ms:.2f} |" for name, ms in steps.items()),
        "",
    ]


def viewers() -> list[str]:
    """What a viewer costs, as bench/streams.py found it; else nothing."""
    file = RESULTS / "streams.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    machine, rows = found["machine"], found["rows"]
    lines = [
        "",
        "## What a viewer costs",
        "",
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, load average"
        f" {found['load']:g} by other programs, which the processor time suffers from, too: the"
        f" {found['avatar']} avatar, {found['size']}, 25 frames/s, medians over"
        f" {found['rounds']} rounds. What is done once for an avatar is not in it; its rest in"
        " H.264 is encoded once for all who rest, and said below.",
        "",
        "| pictures | kbit/s | processor time, ms a frame | from picture to bytes, ms |",
        "|---|---|---|---|",
    ]
    once = []
    for name, row in rows.items():
        if "bytes" in row:
            once.append(f"{name}: {row['cpu_ms']:.1f} ms a frame, {row['bytes'] / 1e3:.0f} kB")
            continue
        lines.append(
            f"| {name} | {row['kbit_s']:,.0f} | {row['cpu_ms']:.2f} | {row['within_ms']:.1f} |"
        )
    return [*lines, "", "; ".join(once) + "."]


def browsers() -> list[str]:
    """What a browser says of WebRTC, as bench/webrtc_browser.py found it; else nothing."""
    file = RESULTS / "webrtc.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    machine = found["machine"]
    lines = [
        "",
        "## WebRTC in a browser",
        "",
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, load average"
        f" {found['load']:g} by other programs: server and headless Chromium on one machine, the"
        f" {found['avatar']} avatar; the page of [the manual](integrations.md#whep), and"
        f" LiveTalking's own, unmodified; medians over {found['rounds']} rounds. Buffers are what"
        " the browser held before it showed it;"
        " sound and picture: by how much the sound is ahead, as the browser estimates both, in the"
        " middle and at most.",
        "",
        "| page | | frames/s, freezes | buffers: picture, sound, ms | sound and picture, ms"
        " | kbit/s: picture, sound | gateway, ms a frame |",
        "|---|---|---|---|---|---|---|",
    ]
    said = []
    for page, phases in found["rows"].items():
        for phase in ("at rest", "speaking"):
            row = phases[phase]
            lines.append(
                f"| {page} | {phase} | {row['frames_s']:.1f}, {row['freezes']:.0f}"
                f" | {row['picture_buffer_ms']:.0f}, {row['sound_buffer_ms']:.0f}"
                f" | {row['apart_ms']:.0f}, {row['apart_most_ms']:.0f}"
                f" | {row['picture_kbit_s']:.0f}, {row['sound_kbit_s']:.0f}"
                f" | {row['gateway_cpu_ms']:.1f} |"
            )
        begins, quiet = phases["beginning"], phases["interruption"]["quiet_ms"]
        said.append(
            f"{page}: first picture after {begins['first_picture_ms']:.0f} ms, sound heard"
            f" {begins['heard_ms']:.0f} ms after it was handed over, quiet {quiet:.0f} ms after an"
            " interruption"
        )
    return [*lines, "", "; ".join(said) + "."]


def is_offered(row: Row) -> bool:
    """Whether a row is of the sweep over sessions: how many follows from what is admitted."""
    return row.kind == "live" and row.name.endswith(" in real time")


def renewed(report: Report) -> tuple[Report, list[str]]:
    """With the rows of parts that were measured again; and what to say of that."""
    remarks = []
    for path in sorted(RESULTS.glob("run/again-*.json")):
        again = read(path)
        names = {(row.kind, row.name) for row in again.rows}
        offered = any(is_offered(row) for row in again.rows)
        old = [
            row
            for row in report.rows
            if (row.kind, row.name) in names or (offered and is_offered(row))
        ]
        report.rows = [row for row in report.rows if row not in old] + again.rows
        rates = {row.name: f"{row.frames_per_s:.1f}" for row in old}
        before = ", ".join(f"{name} {rate}" for name, rate in rates.items())
        remarks += [
            "",
            f"Measured again after a change, by `{again.command}` with {again.commit}, {again.date}"
            f" (`bench/results/run/{path.name}`; frames/s in the last round before: {before}).",
        ]
    return report, remarks


def document(report: Report, remarks: list[str]) -> str:
    """All of docs/performance.md."""
    body = markdown(report).split("\n", 1)
    lines = [
        "# Performance",
        "",
        "Written by `python bench/performance.py` from the results in `bench/results`, which"
        " `lipsync-fast bench` and the programs in `bench/micro` measured. Server, load generator"
        " and peers run on one machine. Medians over rounds in which each variant has its turn.",
        "",
        f"**{body[0].removeprefix('# ')}**",
        *remarks,
        "",
        "## Goals",
        "",
        *goals(report),
        "",
        "![Frames per second, latency over load, a frame's way and its processor time]"
        f"({PLOTS.relative_to(DOCUMENT.parent)})",
        body[1].rstrip("\n"),
        *preparing(),
        *from_videos(),
        *students(),
        *viewers(),
        *the_page(),
        *browsers(),
        *parts(),
        *chapter(),
        "",
        "Two results side by side: `lipsync-fast bench --compare A.json B.json`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the document, or check it."""
    args = program.options(__doc__, check=False)
    report, remarks = renewed(read(RESULTS / "run" / "run.json"))
    text = document(report, remarks)
    if args.check:
        if DOCUMENT.read_text() != text:
            print(f"{DOCUMENT.name} is not what the results say", file=sys.stderr)
            return 1
        return 0
    if not draw(report, PLOTS):
        print("the plots are not drawn: install the extra bench", file=sys.stderr)
        return 1
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
