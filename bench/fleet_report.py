# SPDX-License-Identifier: Apache-2.0
"""What fleet.py has measured and simulate_fleet.py has simulated, for people: docs/scale.md has the
rows of ``measured`` and ``simulated``, and a test holds it to them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = (
    "what",
    "sessions lost",
    "noticed after, s: median, most",
    "from there to a session, s: median, most",
    "to a picture, s",
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


def markdown(results: list[dict[str, Any]]) -> str:
    """The whole report of fleet.py."""
    lines = ["# Three servers behind a balancer"]
    for result, run in [(each, run) for each in results for run in each["runs"]]:
        about = result["machine"]
        lines += [
            "",
            f"## {name_of(run)}",
            "",
            f"`{result['command']}`, lipsync-fast {result['version']}, on {about['cores']} cores of"
            f" {about['processor']}; servers, balancer and clients share them, and so do others:"
            f" load average at the end {about['load_average'][0]}.",
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
                f" {seconds(step['noticed_ms'])} |"
                f" {seconds(step['lost_to_session_ms'])} | {seconds(step['lost_to_picture_ms'])} |"
                f" {step['utterances_cut_off']} |"
                f" {there['frames']}, {there['lost']}, {there['late']} |"
                f" {step['outages_elsewhere']} | {came or '-'} |"
                f" {', '.join(str(n) for n in step['spread_after'].values())} |"
            )
    return "\n".join(lines) + "\n"


def measured(results: list[dict[str, Any]]) -> Iterator[str]:
    """Rows of a table: what was done behind which balancer; restarts together."""
    for run in [run for result in results for run in result["runs"]]:
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
                f" {total('outages')} | {noticed} | {seconds(all_of('lost_to_session_ms'))} |"
                f" {seconds(all_of('lost_to_picture_ms'))} |"
                f" {total('utterances_cut_off')} | {total('outages_elsewhere')} |"
                f" {frames:,}, {lost}, {late:,} |"
            )


def simulated(found: dict[str, Any], policies: dict[str, str]) -> Iterator[str]:
    """Rows of a table: how much of all places can be wanted, by policy and nodes."""
    unequal = {row["policy"]: row["load"] for row in found["unequal"]}
    by_nodes: dict[str, dict[int, float]] = {}
    for row in found["nodes"]:
        by_nodes.setdefault(row["policy"], {})[row["nodes"]] = row["load"]
    for policy, words in policies.items():
        loads = by_nodes.get(policy, {})
        cells = [f"{loads[n]:.0%}" if n in loads else "" for n in (3, 10, 100, 500)]
        cells.append(f"{unequal[policy]:.0%}" if policy in unequal else "")
        yield f"| {words} | {' | '.join(cells)} |"


def sizes(found: dict[str, Any]) -> Iterator[str]:
    """Rows of a table: the same by the size of nodes."""
    rows = [row for row in found["sizes"] if row["policy"] == "least"]
    yield f"| least connections | {' | '.join(format(row['load'], '.0%') for row in rows)} |"


def a_day(found: dict[str, Any]) -> Iterator[str]:
    """Rows of a table: what happened in an evening, or a day."""
    for name, day in found["days"].items():
        worst = max(row["refused"] for row in day["rows"][6:])
        yield (
            f"| {name} | {day['taken']:.0%} | {day['refused']:.3%} | {worst:.2%} |"
            f" {day['cut_off']:,} of {day['utterances'] / 1e6:.1f} M | {day['moved']:,} |"
        )


# ---------------------------------------------------------------- pictures
def draw(found: dict[str, Any], policies: dict[str, str], path: Path) -> None:
    """What can be taken, by nodes, places and policy; and the day."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(13, 9))
    by_nodes, by_places, day, refused = axes.flat
    for policy in dict.fromkeys(row["policy"] for row in found["nodes"]):
        rows = [row for row in found["nodes"] if row["policy"] == policy]
        by_nodes.plot(
            [r["nodes"] for r in rows], [r["load"] for r in rows], "o-", label=policies[policy]
        )
    by_nodes.set(xscale="log", xlabel="nodes of 100 places", ylim=(0, 1))
    by_nodes.legend(fontsize=8)
    for policy in dict.fromkeys(row["policy"] for row in found["sizes"]):
        rows = [row for row in found["sizes"] if row["policy"] == policy]
        by_places.plot(
            [r["places"] for r in rows], [r["load"] for r in rows], "o-", label=policies[policy]
        )
    by_places.set(xscale="log", xlabel="places of a node, 100 nodes", ylim=(0, 1))
    by_places.legend(fontsize=8)
    for axis in (by_nodes, by_places):
        axis.set_ylabel("of all places, until one\nutterance in 1,000 is refused")
        axis.xaxis.set_major_formatter("{x:g}")
    for name, result in found["days"].items():
        hours = [row["h"] for row in result["rows"]]
        day.plot(hours, [row["taken"] for row in result["rows"]], lw=1.2, label=name)
        refused.plot(hours, [100 * row["refused"] for row in result["rows"]], lw=1.2, label=name)
    day.set(
        xlabel="hours from the beginning",
        ylabel="of the places that there are, taken",
        ylim=(0, 1.05),
    )
    refused.set(xlabel="hours from the beginning", ylabel="utterances refused, %")
    refused.legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    figure.suptitle("Simulation, not a measurement: sessions that speak a third of the time")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
