# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs as bytes: read, checked and written, without torch and without a runtime."""
