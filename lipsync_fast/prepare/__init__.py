# SPDX-License-Identifier: Apache-2.0
"""From a video of a person who agreed to a prepared folder, which training turns into an avatar."""
