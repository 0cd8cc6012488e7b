# SPDX-License-Identifier: Apache-2.0
"""Who may connect, who may change something, and what a connection is to the protocols."""
