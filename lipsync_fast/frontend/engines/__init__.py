# SPDX-License-Identifier: Apache-2.0
"""The engines as a front sees them: each job gets one answer.

pool               all engines: who gets a job, and what becomes of it when one dies
engine_link        one engine: its two rings, what it owes
placement          which engine makes a session's frames
single_requests    one picture for one question
latency_estimate   what engines take now
latencies, trace   how long frames took, and where
numbers            what jobs are told apart by
"""
