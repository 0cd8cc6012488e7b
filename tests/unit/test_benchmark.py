# SPDX-License-Identifier: Apache-2.0
"""What the benchmark makes of its measurements: medians, verdicts, tables, plots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from lipsync_fast.audio.windows import AudioWindow, frame_count, frame_sees
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.compare import compare, verdict
from lipsync_fast.benchmark.hops import profile
from lipsync_fast.benchmark.load import Notes, Spoken, figures
from lipsync_fast.benchmark.report import markdown, write
from lipsync_fast.benchmark.rows import SCHEMA, Report, Row, Spread, ratios
from lipsync_fast.benchmark.run import Plan, Progress, _steps, offered, sentence
from lipsync_fast.benchmark.speech import frame_due_ns
from lipsync_fast.cli.main import app
from lipsync_fast.errors import OutputError

MACHINE = {"cores": 2, "processor": "a processor", "python": "3.11", "load_average": [0.1]}


def row(kind: str, name: str, round_: int, rate: float, **more: object) -> Row:
    return Row(
        kind=kind,  # type: ignore[arg-type]
        name=name,
        round=round_,
        frames_per_s=rate,
        **more,  # type: ignore[arg-type]
    )


def report(*rows: Row) -> Report:
    made = Report(command="bench", version="1", machine=MACHINE, rows=list(rows))
    made.sentence = sentence(made)
    return made


def some(scale: float = 1.0) -> Report:
    rows = []
    for k in range(3):
        rows += [
            row("peer", "naive", k, scale * (1.0 + 0.1 * k)),
            row("ours", "lipsync-fast", k, scale * 20.0),
        ]
    cpu = {"engine": 9.0, "front": 0.2, "load generator": 0.1}
    rows.append(
        row(
            "throughput",
            "demo avatar, 2 sessions",
            0,
            100.0 * scale,
            compared=8,
            bytes_per_frame=50_000,
            cpu_ms_per_frame=cpu,
            private_mb={"engine-1": 300.0},
            shared_mb={"engine-1": 400.0},
        )
    )
    rows.append(
        row(
            "live",
            "2 in real time",
            0,
            50.0,
            expected=200,
            settings={"sessions": 2},
            latency_ms={"p50": 60.0, "p99": 70.0, "p99.9": 75.0},
        )
    )
    return report(*rows)


def test_ours_is_compared_with_each_peer_in_the_same_round() -> None:
    found = ratios(some().rows, "naive")
    assert found == pytest.approx([20.0, 20.0 / 1.1, 20.0 / 1.2])
    assert Spread.of(found) == Spread(pytest.approx(20 / 1.1), pytest.approx(20 / 1.2), 20.0, 3)
    assert ratios(some().rows, "nobody") == []


def test_the_sentence_says_it_all() -> None:
    words = sentence(some())
    for part in ("2 cores", "100 frames/s", "18.2x naive", "2 live sessions", "frame right"):
        assert part in words
    wrong = some()
    wrong.rows[0].different = 1
    assert "1 MEASUREMENTS WRONG" in sentence(wrong)
    unseen = some()
    for each in unseen.rows:
        each.compared = 0
    assert "no frame was compared" in sentence(unseen)
    assert "right" not in sentence(unseen)


@pytest.mark.slow
def test_the_table_has_every_measurement(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    made = some()
    made.not_measured.append("this and that")
    text = markdown(made)
    for part in ("**18.2x** (16.7 to 20.0)", "| 8, 0 |", "200, 0, 0", "this and that", "300 (400)"):
        assert part in text
    paths = write(made, tmp_path / "out")
    assert [p.name for p in paths] == ["run.json", "run.md", "run.png"]
    assert msgspec.json.decode(paths[0].read_bytes(), type=Report) == made
    assert paths[2].stat().st_size > 10_000
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.json", "run.md", "run.png"]


def test_a_report_of_nothing_is_written_too(tmp_path: Path) -> None:
    paths = write(report(), tmp_path)
    assert [p.name for p in paths] == ["run.json", "run.md"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write(some(), tmp_path / "file")


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ((10, 11, 12), (13, 14, 15), "faster"),
        ((10, 11, 12), (7, 8, 9), "slower"),
        ((10, 11, 12), (12, 13, 14), "noise"),
        ((10, 11, 12), (11, 11, 11), "noise"),
        ((10,), (20,), "too few rounds to say (1)"),
    ],
)
def test_what_is_noise_is_called_so(
    before: tuple[float, ...], after: tuple[float, ...], word: str
) -> None:
    assert verdict(Spread.of(before), Spread.of(after)) == word


def test_two_runs_side_by_side() -> None:
    text = compare(some(), some(1.5))
    assert (
        "| lipsync-fast | 20.00 (20.00 to 20.00) | 30.00 (30.00 to 30.00) | +50.0% | faster |"
        in (text)
    )
    other = some()
    other.machine = MACHINE | {"cores": 8}
    other.rows = [r for r in other.rows if r.kind != "live"]
    text = compare(some(), other)
    assert "different machines" in text
    assert "only before: 2 in real time" in text


def test_nothing_is_expected_of_what_was_refused() -> None:
    """The server counts the utterances that it takes; its second one is the third here."""
    window, frames = AudioWindow(), 10
    notes = Notes(0)
    for begun, refused in ((0, False), (1_000_000_000, True), (2_000_000_000, False)):
        notes.utterances.append(Spoken(begun, refused=refused))
    first, refused_one, third = notes.utterances
    assert [notes.utterance(n) for n in (0, 1, 2, 3)] == [None, first, third, None]
    for spoken, came in ((first, 10), (third, 9)):
        spoken.came = came
        for frame in range(came):
            spoken.arrivals[frame] = spoken.begun_ns + frame_due_ns(frame, window) + 60_000_000
    found = figures([notes], window, frames)
    assert (found.utterances, found.refused, found.expected) == (2, 1, 20)
    assert (found.shown, found.late, found.lost) == (19, 0, 1)
    assert found.latency_ms()["most"] == pytest.approx(60)
    assert not refused_one.arrivals


def test_the_hops_of_a_frame_add_up(tmp_path: Path) -> None:
    window, samples = AudioWindow(), 32_000
    notes = Notes(0, session="s7", utterances=[Spoken(10_000_000_000)])
    spoken = notes.utterances[0]
    lines = []
    for frame in range(frame_count(samples)):
        due = spoken.begun_ns + frame_due_ns(frame, window)
        spoken.arrivals[frame] = due + 36_000_000
        moments = [due + k * (k + 1) // 2 * 1_000_000 for k in range(1, 8)]
        names = ("asked", "in_ring", "taken", "made", "read", "shown", "sent")
        at = dict(zip(names, moments, strict=True))
        lines.append(json.dumps({"session": 7, "utterance": 1, "frame": frame, **at}))
        lines.append(json.dumps({"session": 8, "utterance": 1, "frame": frame, **at}))
    trace = tmp_path / "trace"
    trace.write_text("\n".join([*lines, '{"session": 7, "utter']))
    found = profile(trace, [notes], window, samples)
    assert found is not None
    inside = sum(frame_sees(k, window)[1] <= samples for k in range(frame_count(samples)))
    assert 0 < found.traced == inside < frame_count(samples)
    assert list(found.hops_ms.values()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.mean_ms == 36
    empty = tmp_path / "empty"
    empty.touch()
    assert profile(empty, [notes], window, samples) is None


def run(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", *args])
    return done.exit_code, done.output


@pytest.mark.slow
def test_the_command_compares_files(tmp_path: Path) -> None:
    for name, scale in (("a", 1.0), ("b", 0.5)):
        write(some(scale), tmp_path / name)
    files = [str(tmp_path / name / "run.json") for name in ("a", "b")]
    code, out = run("--compare", *files)
    assert code == 0
    assert "slower" in out


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    write(some(), tmp_path)
    good, bad = tmp_path / "run.json", tmp_path / "bad.json"
    for data, words in (
        (b"nonsense", "is not a result"),
        (b"{}", "is not a result"),
        (json.dumps(json.loads(good.read_bytes()) | {"schema": SCHEMA + 1}).encode(), "schema"),
    ):
        bad.write_bytes(data)
        code, out = run("--compare", str(good), str(bad))
        assert code != 0
        assert words in out
        assert "Traceback" not in out
    assert run("--compare", str(good), str(tmp_path / "none.json"))[0] != 0


@pytest.mark.parametrize(
    "args",
    [("--part", "nonsense"), ("--rounds", "0"), ("--duration", "0.1"), ("--backend", "abacus")],
)
def test_wrong_options_are_refused_before_anything_starts(args: tuple[str, ...]) -> None:
    code, out = run(*args)
    assert code != 0
    assert "Traceback" not in out


def test_the_document_is_what_the_committed_results_say() -> None:
    writer = Path(__file__).parents[2] / "bench" / "performance.py"
    command = [sys.executable, "-P", str(writer), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_progress_says_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    plan = Plan.quick(2)
    progress = Progress(_steps(plan), told.append)
    for k in range(_steps(plan)):
        progress.step(f"thing {k}")
    assert told[0].startswith("[....")
    assert told[-1].startswith("[####")
    assert told[-1].endswith(f"thing {_steps(plan) - 1}")


@pytest.mark.parametrize(
    ("admitted", "expected"),
    [
        (1, (1, 2, 10)),
        (3, (1, 2, 3, 4, 6, 30)),
        (4, (1, 2, 4, 5, 8, 40)),
        (90, (1, 2, 4, 8, 16, 32, 64, 90, 91, 180, 900)),
    ],
)
def test_load_is_offered_up_to_ten_times_what_is_admitted(
    admitted: int, expected: tuple[int, ...]
) -> None:
    assert offered(admitted) == expected


def test_a_programs_options_are_read_by_their_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told(*words: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", ["bench/x.py", *words])
        defaults = {"rounds": 5, "warm_up": 8.0, "stages": [1, 2], "quick": False, "avatar": "demo"}
        return vars(program.options("What it does.", **defaults, out=None, to=Path("results")))

    assert told() == {
        "rounds": 5, "warm_up": 8.0, "stages": [1, 2], "quick": False, "avatar": "demo",
        "out": None, "to": Path("results"),
    }  # fmt: skip
    words = [
        "--rounds",
        "7",
        "--warm-up",
        "2",
        "--stages",
        "3",
        "--quick",
        "--avatar",
        "other",
        "--out",
        "x.json",
        "--to",
        "y",
    ]
    assert told(*words) == {
        "rounds": 7, "warm_up": 2.0, "stages": [3], "quick": True, "avatar": "other",
        "out": Path("x.json"), "to": Path("y"),
    }  # fmt: skip
    with pytest.raises(SystemExit):
        told("--rounds", "many")


def test_a_programs_result_says_what_it_was_measured_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--rounds", "2"])
    rounds = [{"a": {"us": us}} for us in (3.0, 1.0, 2.0)]
    program.keep(None, found=1)
    program.keep(tmp_path / "new" / "x.json", medians=program.medians(rounds))
    read = json.loads((tmp_path / "new" / "x.json").read_text())
    assert read["command"] == "python bench/x.py --rounds 2"
    assert read["machine"]["cores"] >= 1
    assert read["medians"] == {"a": {"us": 2.0}}
