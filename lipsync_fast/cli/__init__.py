# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lipsync-fast render | demo | doctor | avatar``."""
