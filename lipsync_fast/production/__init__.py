# SPDX-License-Identifier: Apache-2.0
"""Whether a running server is fit for others to depend on: ``lipsync-fast doctor --production``."""
