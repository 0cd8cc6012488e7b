# SPDX-License-Identifier: Apache-2.0
"""The parts of bench/gpu_check that need no GPU: time, goals, reports, wheels, tools' words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from gpu_check import goals, plan, report, sanitizer, wheels  # noqa: E402
from gpu_check.__main__ import Run  # noqa: E402
from gpu_check.build import resources, short_name  # noqa: E402
from gpu_check.findings import CannotRunError, Findings  # noqa: E402
from gpu_check.profile import parsed  # noqa: E402

ABOUT = {"when": "now", "commit": "abc"}
WHOLE: dict[str, dict[str, Any]] = {
    "parity": {"precision": {"fp16": {"worst": 1, "mean": 0.02}}},
    "engine": {
        "reference": {
            "start": {"first_frame_s": 3.5, "all_graphs_s": 9.0},
            "single": {"p50_ms": 4.0, "p99_ms": 6.5},
            "closed loop": {
                "1": {"frames_per_s": 200.0, "p50_ms": 5.0, "p99_ms": 6.0},
                "64": {"frames_per_s": 2500.0, "p50_ms": 25.0, "p99_ms": 30.0},
            },
            "free": {"frames_per_s": 6100.0},
            "memory": {"further_avatar_mb": 80},
        }
    },
    "live": {
        "sessions": {
            "90": {"p50_ms": 8.0, "p99_ms": 12.0, "most_ms": 20.0, "lost": 0},
            "120": {"p50_ms": 9.0, "p99_ms": 39.0, "most_ms": 60.0, "lost": 0},
            "240": {"p50_ms": 9.0, "p99_ms": 30.0, "most_ms": 60.0, "lost": 3},
        }
    },
}


def found_of(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = {"status": "ok", "reason": "", "dry": False, "seconds": 1.0, "values": values}
    return {**made, "checks": [], **more}


# ---------------------------------------------------------------- time
def test_parts_need_what_comes_before_them() -> None:
    seen: set[str] = set()
    for part in plan.PARTS:
        assert set(part.needs) <= seen
        seen.add(part.name)
    assert [part.name for part in plan.named(["live"])] == [
        "build",
        "avatars",
        "live",
    ]
    assert plan.named([]) == plan.PARTS
    with pytest.raises(ValueError, match="nothing"):
        plan.named(["nothing"])


@given(st.lists(st.floats(0, 1), min_size=len(plan.PARTS), max_size=len(plan.PARTS)))
def test_all_parts_together_keep_within_the_time(shares: list[float]) -> None:
    left = plan.TOTAL_S
    for part, share in zip(plan.PARTS, shares, strict=True):
        seconds = plan.allowed(part, left)
        if seconds is not None:
            assert plan.LEAST_S <= seconds <= part.limit_s
            left -= seconds * share
    assert left >= plan.REPORT_S
    assert plan.TOTAL_S < 600


def test_a_part_without_its_ground_is_not_begun() -> None:
    engine = next(part for part in plan.PARTS if part.name == "engine")
    assert plan.missing(engine, {"avatars": "ok"}) is None
    assert plan.missing(engine, {"avatars": "failed"}) is None  # it found something, that is all
    assert "broke off" in (plan.missing(engine, {"avatars": "broke"}) or "")
    assert "has not run" in (plan.missing(engine, {}) or "")


# ---------------------------------------------------------------- goals
def test_goals_of_a_whole_report() -> None:
    lines = {line.what.split(",")[0]: line for line in goals.table(WHOLE)}
    assert lines["720p frames/s"].verdict == "aim reached"
    assert "6100 frames/s (free-running)" in lines["720p frames/s"].found
    assert lines["live 25 frames/s sessions"].verdict == "met"
    assert lines["live 25 frames/s sessions"].found.startswith("120 sessions")
    assert lines["batch of one"].verdict == "met"
    assert lines["start"].verdict == "missed"  # 9 s for the graphs
    assert lines["device memory a further avatar"].verdict == "met"
    assert lines["fp16 against fp32"].verdict == "met"


def test_goals_that_are_missed() -> None:
    worse = json.loads(json.dumps(WHOLE))
    worse["engine"]["reference"]["free"]["frames_per_s"] = 1.0
    worse["engine"]["reference"]["closed loop"].pop("64")
    worse["engine"]["reference"]["single"]["p99_ms"] = 10.1
    worse["engine"]["reference"]["memory"]["further_avatar_mb"] = 101
    worse["parity"]["precision"]["fp16"]["mean"] = 0.11
    for row in worse["live"]["sessions"].values():
        row["p99_ms"] = 40.0
    assert {line.verdict for line in goals.table(worse)} == {"missed"}
    assert "0 sessions" in goals.live(worse).found
    worse["live"]["sessions"]["90"].update(p99_ms=12.0)
    del worse["live"]["sessions"]["90"]["lost"]  # not known to have lost none
    assert goals.live(worse).verdict == "missed"


anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["engine", "reference", "single", "p99_ms", "live", "sessions", "30"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["engine", "live", "parity", "other"]), anything))
def test_goals_of_nothing_that_was_expected(parts: dict[str, Any]) -> None:
    for line in goals.table(parts):
        assert line.verdict in ("not measured", "missed", "met", "aim reached")
    assert all(line.verdict == "not measured" for line in goals.table({}))


# ---------------------------------------------------------------- reports
def test_a_report_of_partial_data(tmp_path: Path) -> None:
    found = {
        "environment": found_of({"GPU 0": {"name": "a card | with a bar"}, "python": "3.12"}),
        "build": found_of(
            {"seconds to build": 31.5},
            checks=[
                {"name": "fine", "ok": True, "detail": ""},
                {"name": "wrong", "ok": False, "detail": "two\nlines"},
            ],
            status="failed",
            reason="1 checks failed",
        ),
        "engine": found_of(WHOLE["engine"], status="timed out"),
    }
    report.write(tmp_path, plan.PARTS, found, ABOUT)
    text = (tmp_path / "report.md").read_text()
    assert "| build | failed (1 checks failed) | 1 | 1 of 2 good |" in text
    assert "| live | not begun | | |" in text
    assert "- **FAILED** wrong: two lines" in text
    assert "a card / with a bar" in text
    assert "| 64 | 2,500 | 25 | 30 |" in text
    assert "dry run" not in text
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["parts"] == found
    assert len(document["goals"]) == len(goals.GOALS)
    assert {line["verdict"] for line in document["goals"]} > {"not measured"}


def test_a_dry_run_measures_nothing(tmp_path: Path) -> None:
    found = Findings(tmp_path / "engine.json", dry=True)
    found.value("reference", "free", "frames_per_s", value=9999.0)
    found.check("it runs", True)
    found.end("ok")
    document = json.loads((tmp_path / "engine.json").read_text())
    assert document["values"] == {}
    # Even if values got there, they would not count.
    dry = {"engine": found_of(WHOLE["engine"], dry=True)}
    assert goals.table(report.values(dry)) == goals.table({})
    report.write(tmp_path, plan.PARTS, {"engine": document}, ABOUT)
    assert "nothing here was measured" in (tmp_path / "report.md").read_text()


def test_findings_outlive_their_process(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    found = Findings(path)
    found.value("a", "b", value=1)
    assert json.loads(path.read_text())["status"] == "timed out"
    with found.attempt("a step"):
        raise RuntimeError("no luck")
    with found.attempt("another"):
        raise CannotRunError("not here")
    found.value("a", "c", value=2)
    found.end("failed", "1 checks failed")
    document = json.loads(path.read_text())
    assert document["values"]["a"] == {"b": 1, "c": 2}
    assert document["values"]["another: cannot run"] == "not here"
    assert found.failed == ["a step"]
    assert "no luck" in document["checks"][0]["detail"]


def test_limits_of_what_is_left(tmp_path: Path) -> None:
    logs = {"one": b"x" * 5000, "two": b"short"}
    joined = report.joined_logs(logs, 2000)
    assert len(joined) < 2300
    assert b"left out" in joined
    assert b"short" in joined
    for k in range(report.MOST_FILES):
        (tmp_path / f"{k}").write_text("")
    assert report.too_much(tmp_path) == []
    with (tmp_path / "large").open("wb") as file:
        file.truncate(report.MOST_BYTES + 1)
    assert len(report.too_much(tmp_path)) == 2


def test_a_part_that_hangs_is_killed_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "gpu_check"
    package.mkdir(parents=True)
    source = (ROOT / "bench" / "gpu_check").glob("*.py")
    for path in source:
        (package / path.name).write_text(path.read_text())
    (package / "hangs.py").write_text(
        "import time\ndef main(context):\n"
        "    context.found.value('v', value=7)\n    time.sleep(99)\n"
    )
    (package / "dies.py").write_text("import os\ndef main(context):\n    os._exit(3)\n")
    monkeypatch.setattr(plan, "LEAST_S", 0.1)
    args = type("Args", (), {"seconds": 60.0, "wheels": tmp_path, "dry_run": False})()
    run = Run(args, tmp_path)
    run.all(
        [plan.Part("hangs", "", 2.0), plan.Part("dies", "", 9.0), plan.Part("x", "", 9, ("no",))]
    )
    assert run.found["hangs"]["status"] == "timed out"
    assert run.found["hangs"]["values"] == {"v": 7}
    assert (run.found["dies"]["status"], run.found["dies"]["reason"]) == ("broke", "exit status 3")
    assert run.found["x"]["status"] == "cannot run"
    assert "killed after 2 s" in run.logs().get("hangs", b"").decode() or "hangs" not in run.logs()


# ---------------------------------------------------------------- wheels
def test_wheels_are_those_that_were_pinned() -> None:
    wanted = wheels.pinned("# none\nPyZMQ==27.1.0\nh2==4.4.1  # why\n\n")
    assert wanted == {"pyzmq": "27.1.0", "h2": "4.4.1"}
    with pytest.raises(ValueError, match="NAME==VERSION"):
        wheels.pinned("trio>=0.30")
    have = wheels.collected(["pyzmq-27.1.0-cp312-abi3-linux.whl", "av-1.0-py3-none-any.whl"])
    wrong = wheels.complaints(wanted, have)
    assert wrong == ["h2==4.4.1 is missing", "av==1.0 was not asked for"]
    with pytest.raises(ValueError, match="H2: 1 and 2"):
        wheels.collected(["h2-1-py3-none-any.whl", "H2-2-py3-none-any.whl"])


def test_the_requirements_pin_what_the_package_needs() -> None:
    pinned = wheels.pinned(wheels.REQUIREMENTS.read_text())
    assert {"msgspec", "trio", "pyzmq", "websockets", "soxr", "starlette", "hypercorn"} <= set(
        pinned
    )
    assert not any("dali" in name for name in pinned)


def test_size_of_what_travels(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("/ignored\n")
    (tmp_path / "tracked").write_bytes(bytes(100))
    git("add", "tracked")
    (tmp_path / "new").write_bytes(bytes(50))
    (tmp_path / "ignored").write_bytes(bytes(10_000))
    assert wheels.travelling(tmp_path) == 100 + 50 + len("/ignored\n")
    folder = tmp_path / "ignored-wheels"
    folder.mkdir()
    (tmp_path / ".gitignore").write_text("/ignored*\n")
    with (folder / "h2-4.4.1-py3-none-any.whl").open("wb") as file:
        file.truncate(wheels.MOST_BYTES)
    wrong = wheels.check(folder, {"h2": "4.4.1"}, tmp_path)
    assert len(wrong) == 1
    assert "64.0 MiB" in wrong[0]


# ---------------------------------------------------------------- words of other programs
@pytest.mark.parametrize(
    ("status", "text", "verdict"),
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", True),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", True),
        (66, "========= ERROR SUMMARY: 3 errors\n", False),
        (1, "========= ERROR SUMMARY: 0 errors\n", False),  # the program itself failed
        (1, "========= Error: Device not supported\n", None),
        (None, "", None),
        (1, "compute-sanitizer: unknown option\n", None),
    ],
)
def test_what_compute_sanitizer_says(status: int | None, text: str, verdict: bool | None) -> None:
    assert sanitizer.judged(status, text)[0] is verdict


MANGLED = (
    "_ZN7lipsync4cuda6detail3runINS0_4jpeg6EncodeEEEvNT_4ArgsE",
    "_ZN7lipsync4cuda6detail3runINS0_3MelEEEvNT_4ArgsE",
)


def test_registers_of_kernels() -> None:
    text = (
        "Resource usage:\n Common:\n  GLOBAL:0\n"
        f" Function {MANGLED[0]}:\n  REG:40 STACK:16 SHARED:2048 LOCAL:0 CONSTANT[0]:600\n"
        f" Function {MANGLED[1]}:\n  REG:32 STACK:0 SHARED:0 LOCAL:8\n"
    )
    assert resources(text) == {
        "jpeg::Encode": {"reg": 40, "stack": 16, "shared": 2048, "local": 0},
        "Mel": {"reg": 32, "stack": 0, "shared": 0, "local": 8},
    }
    assert short_name("plain") == "plain"


def test_counters_of_a_profiler() -> None:
    text = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum"\n'
        '"","","ns","Mbyte"\n'
        f'"0","{MANGLED[1]}","12,500","1.5"\n'
        f'"1","{MANGLED[1]}","n/a","2"\n'
    )
    assert parsed(text) == {
        "Mel (0)": {"us": 12.5, "read_MB": 1.5},
        "Mel (1)": {"read_MB": 2.0},
    }
    assert parsed("==ERROR== nothing\n") == {}


# ---------------------------------------------------------------- on the host, in a device's place
def run_program(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(ROOT / "bench"), str(ROOT / "tests")))
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_the_script_leaves_a_report(tmp_path: Path) -> None:
    script, out = str(ROOT / "bench" / "gpu_check.sh"), tmp_path / "out"
    told = ("--dry-run", "--only", "environment", "--out", str(out), "--wheels", str(tmp_path))
    ended = run_program("bash", script, *told, cwd=tmp_path, PYTHON=sys.executable)
    assert ended.returncode == 0, ended.stdout
    document = json.loads((out / "report.json").read_text())
    assert document["parts"]["environment"]["status"] == "ok"
    assert "make gpu-wheels" in document["parts"]["environment"]["values"]["wheels: cannot run"]
    assert sorted(path.name for path in out.iterdir()) == ["logs.txt", "report.json", "report.md"]
    wrong = run_program("bash", script, "--only", "nothing", cwd=tmp_path, PYTHON=sys.executable)
    assert wrong.returncode == 2
    assert "expected one of" in wrong.stdout


@pytest.mark.slow
def test_small_runs_of_all_kernels(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    command = (sys.executable, "-m", "gpu_check.small", "--dry-run")
    ended = run_program(*command, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout
    for kernel in ("mel", "region input", "compose", "jpeg"):
        assert f"ok   {kernel}" in ended.stdout


@pytest.mark.slow
def test_the_engine_in_a_process_of_its_own(tiny_avatar: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    (tmp_path / "avatars").mkdir()
    shutil.copytree(tiny_avatar, tmp_path / "avatars" / "tiny")
    told = ("--json", str(tmp_path / "engine.json"), "--work", str(tmp_path), "--wheels", "none")
    ended = run_program(
        sys.executable, "-m", "gpu_check.part", "engine", *told, "--dry-run", cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stdout
    document = json.loads((tmp_path / "engine.json").read_text())
    assert document["status"] == "ok"
    assert all(check["ok"] for check in document["checks"])
    assert document["values"] == {}  # a dry run has measured nothing


@pytest.mark.slow
def test_plots_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    from gpu_check.plots import draw

    floors = {"kernels": {"mel x 1": {"median_us": 9.0, "floor_us": 3.0}, "x": {"median_us": 1.0}}}
    found = {name: found_of(value) for name, value in (*WHOLE.items(), ("kernels", floors))}
    report.write(tmp_path, plan.PARTS, found, ABOUT)
    names = [path.name for path in draw(tmp_path / "report.json", tmp_path)]
    assert names == ["batches.png", "live.png", "kernels.png"]
    report.write(tmp_path, plan.PARTS, {}, ABOUT)
    assert draw(tmp_path / "report.json", tmp_path) == []
    assert not list(tmp_path.glob("*.png"))  # those of an older report are gone
