# SPDX-License-Identifier: Apache-2.0
"""What fleet.py has measured and simulate_fleet.py has simulated, for people: docs/scale.md has the
rows of ``measured`` and ``simulated``, and a test holds it to them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

COLUMNS = (
    "what",
    "sessions lost",
    "noticed after, s: median, most",
    "from there to a picture, s",
    "utterances cut off",
    "elsewhere: frames, lost, late",
    "sessions lost elsewhere",
    "newcomers meanwhile",
    "spread after",
)


def seconds(values: list[int]) -> str:
    """Median and most, of milliseconds."""
    if not values:
        return "-"
    return f"{statistics.median(values) / 1e3:.2f}, {max(values) / 1e3:.2f}"


def picture_us(run: dict[str, Any]) -> float:
    """What the balancer takes of a processor for a picture, and sound that goes the other way."""
    used = run["balancer_cpu"]
    return float(1e6 * used["seconds"] / max(1, used["pictures"]))


def kilobytes(run: dict[str, Any]) -> float:
    """Of a picture."""
    used = run["balancer_cpu"]
    return float(1e3 * used["megabytes"] / max(1, used["pictures"]))


def name_of(run: dict[str, Any]) -> str:
    """The balancer, and whether it closes sessions."""
    name = "HAProxy" if run["balancer"].startswith("HAProxy") else "Envoy"
    return (
        name
        if run["closes_lost"]
        else f"{name}, which closes nothing; `keepalive` {run['keepalive_s']:g} s"
    )


def markdown(result: dict[str, Any]) -> str:
    """The whole report of fleet.py."""
    about = result["machine"]
    lines = [
        "# Three servers behind a balancer",
        "",
        f"`{result['command']}`, lipsync-fast {result['version']}, on {about['cores']} cores of"
        f" {about['processor']}; servers, balancer and clients share them (load average at the end"
        f" {about['load_average'][0]}).",
    ]
    for run in result["runs"]:
        lines += [
            "",
            f"## {name_of(run)}",
            "",
            f"{run['balancer']}. {run['sessions']} sessions, keepalive {run['keepalive_s']:g} s;"
            f" at first {', '.join(str(n) for n in run['spread'].values())} on each server."
            f" The balancer needs {picture_us(run):.0f} us of a processor for a picture of"
            f" {kilobytes(run):.1f} kB.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
        ]
        for step in run["steps"]:
            there = step["elsewhere"]
            came = ", ".join(f"{n} {name[-1]}" for name, n in step.get("newcomers", {}).items())
            lines.append(
                f"| {step['what']}: {step['hit'][-1]} | {step['outages']} |"
                f" {seconds(step['noticed_ms'])} | {seconds(step['lost_to_picture_ms'])} |"
                f" {step['utterances_cut_off']} |"
                f" {there['frames']}, {there['lost']}, {there['late']} |"
                f" {step['outages_elsewhere']} | {came or '-'} |"
                f" {', '.join(str(n) for n in step['spread_after'].values())} |"
            )
    return "\n".join(lines) + "\n"


def measured(result: dict[str, Any]) -> Iterator[str]:
    """Rows of a table: what was done behind which balancer; restarts together."""
    for run in result["runs"]:
        for what in dict.fromkeys(step["what"] for step in run["steps"]):
            steps = [step for step in run["steps"] if step["what"] == what]

            def total(name: str, steps: list[dict[str, Any]] = steps) -> int:
                return sum(step[name] for step in steps)

            def all_of(name: str, steps: list[dict[str, Any]] = steps) -> list[int]:
                return [value for step in steps for value in step[name]]

            frames, lost, late = (
                sum(step["elsewhere"][name] for step in steps)
                for name in ("frames", "lost", "late")
            )
            noticed = "as they end" if what == "restart" else seconds(all_of("noticed_ms"))
            yield (
                f"| {name_of(run)} | {what}{f', {len(steps)} times' * (len(steps) > 1)} |"
                f" {total('outages')} | {noticed} | {seconds(all_of('lost_to_picture_ms'))} |"
                f" {total('utterances_cut_off')} | {total('outages_elsewhere')} |"
                f" {frames:,}, {lost}, {late:,} |"
            )


def simulated(found: dict[str, Any], policies: dict[str, str]) -> Iterator[str]:
    """Rows of a table: how much of all places can be wanted, by policy and nodes."""
    unequal = {row["policy"]: row["load"] for row in found["unequal"]}
    by_nodes: dict[str, dict[int, float]] = {}
    for row in found["by_nodes"]:
        by_nodes.setdefault(row["policy"], {})[row["nodes"]] = row["load"]
    for policy, words in policies.items():
        loads = by_nodes.get(policy, {})
        cells = [f"{loads[n]:.0%}" if n in loads else "" for n in (3, 10, 100, 500)]
        cells.append(f"{unequal[policy]:.0%}" if policy in unequal else "")
        yield f"| {words} | {' | '.join(cells)} |"


def sizes(found: dict[str, Any]) -> Iterator[str]:
    """Rows of a table: the same by the size of nodes."""
    for policy, words in (("least", "least connections"), ("moves", "who is refused moves")):
        rows = [row for row in found["by_places"] if row["policy"] == policy]
        yield f"| {words} | {' | '.join(format(row['load'], '.0%') for row in rows)} |"


def a_day(found: dict[str, Any]) -> Iterator[str]:
    """Rows of a table: what happened in a day."""
    for name, day in found["days"].items():
        worst = max(row["refused"] for row in day["rows"][6:])
        yield (
            f"| {name} | {day['taken']:.0%} | {day['refused']:.3%} | {worst:.2%} |"
            f" {day['cut_off']:,} of {day['utterances'] / 1e6:.0f} M | {day['moved']:,} |"
        )
