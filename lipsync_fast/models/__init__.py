# SPDX-License-Identifier: Apache-2.0
"""Network families: torch definitions (extra ``train``), weights and ONNX export."""
