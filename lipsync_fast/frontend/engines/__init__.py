# SPDX-License-Identifier: Apache-2.0
"""The engines as a front sees them: each job gets one answer."""
