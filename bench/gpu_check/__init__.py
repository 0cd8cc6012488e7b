# SPDX-License-Identifier: Apache-2.0
"""What bench/gpu_check.sh runs, in pieces that know nothing of each other.

    gpu_check.sh ─► __main__: one part after the other, each in a process with a limit of its own
                      │            environment, build, avatars, floors, parity, kernels,
                      │            engine, live, loader, sanitizer, server, profile
                      ▼
                    a part writes its JSON after every finding (findings.py), so that one which is
                    killed leaves what it had found
                      ▼
                    report.py: report.md, report.json and plots from whatever is there

Only ``__main__`` and what it imports runs before the package is built: the standard library alone.
"""
