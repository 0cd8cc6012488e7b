# SPDX-License-Identifier: Apache-2.0
"""What fleet.py has measured, for people."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "what",
    "sessions lost",
    "noticed after, s: p50 / p90 / most",
    "from there to a picture, s",
    "utterances cut off",
    "elsewhere: frames, lost, late",
    "sessions lost elsewhere",
    "newcomers meanwhile",
    "spread after",
)


def markdown(result: dict[str, Any]) -> str:
    """The report for people."""
    about = result["machine"]
    lines = [
        "# Three servers behind a balancer",
        "",
        f"`{result['command']}`, lipsync-fast {result['version']}, on {about['cores']} cores of"
        f" {about['processor']}; servers, balancer and clients share them (load average at the end"
        f" {about['load_average'][0]}).",
    ]

    def some(values: dict[str, float]) -> str:
        if not values["count"]:
            return "-"
        return f"{values['p50']:.2f} / {values['p90']:.2f} / {values['most']:.2f}"

    for run in result["runs"]:
        closes = "" if run["closes_lost"] else ", which closes no session of a machine that is gone"
        used = run["balancer_cpu"]
        per = 1e6 * used["seconds"] / max(1, used["pictures"])
        lines += [
            "",
            f"## {run['balancer']}{closes}",
            "",
            f"{run['sessions']} sessions, keepalive {run['keepalive_s']:g} s;"
            f" at first {', '.join(str(n) for n in run['spread'].values())} on each server."
            f" The balancer needs {per:.0f} us of a processor for a picture of"
            f" {1e3 * used['megabytes'] / max(1, used['pictures']):.1f} kB.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
        ]
        for step in run["steps"]:
            there = step["elsewhere"]
            came = ", ".join(f"{n} {name[-1]}" for name, n in step.get("newcomers", {}).items())
            lines.append(
                f"| {step['what']}: {step['hit'][-1]} | {step['outages']} |"
                f" {some(step['noticed_s'])} | {some(step['lost_to_picture_s'])} |"
                f" {step['utterances_cut_off']} |"
                f" {there['frames']}, {there['lost']}, {there['late']} |"
                f" {step['outages_elsewhere']} | {came or '-'} |"
                f" {', '.join(str(n) for n in step['spread_after'].values())} |"
            )
    return "\n".join(lines) + "\n"
