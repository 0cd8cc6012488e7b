# SPDX-License-Identifier: Apache-2.0
"""Recordings: sound and pictures of any file that PyAV reads, streaming, in bounded memory."""
