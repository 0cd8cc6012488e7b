# SPDX-License-Identifier: Apache-2.0
"""Many recordings at once, on the processors of one machine or of many."""
