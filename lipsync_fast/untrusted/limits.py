# SPDX-License-Identifier: Apache-2.0
"""How much a package, or a folder to import, may ask for; each number with its reason.

Files of avatars come from strangers. What they say of themselves is held against these limits
before memory is taken or time is spent; docs/avatars.md ("Trust") has the same list for people.
"""

from __future__ import annotations

from typing import NamedTuple

MANIFEST_BYTES = 1 << 20
"""Size of a manifest. The largest texts and 1,000 members need 350 KB."""
MEMBERS = 1_000
"""Members of a package. Ours have at most 14."""
DIRECTORY_BYTES = 1 << 20
"""Size of a zip's directory: 1,000 members with the longest names need 300 KB."""
NAME_CHARACTERS = 200
"""Length of a member's name, and of an avatar's, which clients may say in as many."""
FRAME_PIXELS = 40_000_000
"""Pixels of one frame: 8192 x 4320 has 35 million. As RGB that is 120 MB."""
SCANS = 64
"""Scans of a progressive JPEG; usual ones have 10. Each costs a pass over the whole picture."""
NETWORK_BYTES = 512 << 20
"""Size of one network. The reference's largest has 50 MB; width 256 would have 3 GB and runs
nowhere."""
NETWORK_PARTS = 2048
"""Nodes, constants, inputs and outputs of one network; the exporter writes a few hundred."""
TENSOR_ELEMENTS = 1 << 27
"""Elements of what one operation yields (512 MiB). The reference's largest have 6.5 million."""
LIVE_ELEMENTS = 1 << 29
"""Elements of all tensors that must be kept at one time in a run (2 GiB). The reference has 40
million."""
MULTIPLICATIONS = 1 << 39
"""Multiplications of one run of a network: half a minute of one processor. The reference's decoder
has 2^32."""
PICTURE_BYTES = 256 << 20
"""Size of a picture's file that is imported."""
LANDMARK_BYTES = 1 << 16
"""Size of a file of landmarks: 110 lines of two numbers have some 2 KB."""
RECTANGLE_BYTES = 8 << 20
"""Size of a file of rectangles that is imported: 15,000, ten minutes of frames, have some 2 MB."""
BOUNDS_BYTES = 1 << 12
"""Size of a file with the bounds of one face: five or six numbers and a header of 128 bytes."""
COORDS_BYTES = 4 << 20
"""Size of a pickle of face boxes: 15,000 of numpy's numbers have some 1.2 MB."""
COORDS_STEPS = 620_000
"""Operations of such a pickle: 15,000 boxes of numpy's numbers have 525,000."""
CHECKPOINT_BYTES = 4 << 30
"""Size of a file of weights. The largest of our families with their optimizer have 500 MB."""
PICKLE_BYTES = 16 << 20
"""Size of the part of a checkpoint that says which tensors there are; 0.3 MB with an optimizer."""
SIGNATURE_BYTES = 1 << 12
"""Size of a signature, or a key."""
BLOCK = 16
"""Runtimes keep pictures in blocks of so many channels: one channel takes as much."""


class Need(NamedTuple):
    """What a run of a network needs for one frame, and what it has.

    Attributes:
        tensor: numbers of its largest tensor, or of what an operator holds while it runs.
        live: of all tensors that are there at one time.
        multiplications: of a run.
        weights: numbers of its constants.
    """

    tensor: int
    live: int
    multiplications: int
    weights: int
