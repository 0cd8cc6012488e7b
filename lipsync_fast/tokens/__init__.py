# SPDX-License-Identifier: Apache-2.0
"""Who somebody is, by the token that is shown; for fronts, the gateway and the command line."""
