# SPDX-License-Identifier: Apache-2.0
"""Which picture is due when, and what must be made for it: no I/O, the time is given."""
