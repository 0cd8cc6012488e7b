# SPDX-License-Identifier: Apache-2.0
"""What crosses between the front and the engines: rings of shared memory, and control messages."""
