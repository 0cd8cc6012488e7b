# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels; not there in a build without nvcc. ``_emulated.pyi`` describes them."""

from lipsync_fast._emulated import Version as Version
from lipsync_fast._emulated import compose as compose
from lipsync_fast._emulated import device_count as device_count
from lipsync_fast._emulated import jpeg as jpeg
from lipsync_fast._emulated import jpeg_gather as jpeg_gather
from lipsync_fast._emulated import jpeg_slot_bytes as jpeg_slot_bytes
from lipsync_fast._emulated import mel as mel
from lipsync_fast._emulated import mel_products as mel_products
from lipsync_fast._emulated import pin as pin
from lipsync_fast._emulated import quant_tables as quant_tables
from lipsync_fast._emulated import region_input as region_input
from lipsync_fast._emulated import unpin as unpin
from lipsync_fast._emulated import version as version
