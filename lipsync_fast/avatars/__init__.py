# SPDX-License-Identifier: Apache-2.0
"""Avatar packages: the format, finding, writing and importing them."""
