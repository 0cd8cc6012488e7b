#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The CUDA engine on a machine with a GPU: builds it, checks it, measures it, in under ten minutes.
#
# Before, where there is a network: `make gpu-wheels` collects into .gpu-wheels/ what that machine
# lacks; that folder goes along with the repository. There, in the repository's root, one line does
# it all (report.md, report.json, plots and logs are left in the folder given):
#
#     bash bench/gpu_check.sh --out "${OUT:-bench/results/gpu}"
#
#   --only engine,live   some parts, and those that they need
#   --seconds 570        for everything; parts that would come too late are not begun
#   --wheels FOLDER      in place of .gpu-wheels
#   --dry-run            everything but the launches, on a machine without a GPU
#
# Needed there: Python 3.12 with torch, numpy, onnx, onnxruntime, pillow, pybind11,
# scikit-build-core, CMake, and nvcc. Nothing is fetched, nothing is installed outside of a
# temporary folder, and the card's settings stay as they are. Each part has a limit of its own; one
# that fails or cannot run says so in the report and lets the rest go on.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root/bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" -m gpu_check "$@"
