# SPDX-License-Identifier: Apache-2.0
"""Names of the two kinds of arrays that go through most of the code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
"""Samples, features, network inputs and outputs."""
U8 = NDArray[np.uint8]
"""Pixels: height x width x 3, RGB, or height x width."""
