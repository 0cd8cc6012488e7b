# SPDX-License-Identifier: Apache-2.0
"""The gRPC messages byte for byte as another implementation writes them (tools/grpc_wire)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="the extra grpc is not installed")

from google.protobuf import json_format

from lipsync_fast.gateway.rpc import messages as m

RECORDED = json.loads(
    (Path(__file__).parents[1] / "data" / "grpc_wire.json").read_text(encoding="utf-8")
)
METHODS = {
    "GenerateInference": ("OptimizedInferenceRequest", "OptimizedInferenceResponse"),
    "GenerateBatchInference": ("BatchInferenceRequest", "BatchInferenceResponse"),
    "GenerateBatchWithAudio": ("BatchInferenceWithAudioRequest", "BatchInferenceResponse"),
    "StreamInference": ("OptimizedInferenceRequest", "OptimizedInferenceResponse"),
    "LoadPackage": ("LoadPackageRequest", "LoadPackageResponse"),
    "GetStats": ("StatsRequest", "StatsResponse"),
    "ListModels": ("ListModelsRequest", "ListModelsResponse"),
    "HealthCheck": ("HealthRequest", "HealthResponse"),
    "GetVideoFrame": ("GetVideoFrameRequest", "GetVideoFrameResponse"),
    "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
}


@pytest.mark.parametrize("sample", RECORDED, ids=lambda sample: sample["message"])
def test_messages_are_written_and_read_as_recorded(sample: dict[str, Any]) -> None:
    kind, wire = getattr(m, sample["message"]), bytes.fromhex(sample["wire"])
    made = json_format.ParseDict(sample["fields"], kind())
    assert made.SerializeToString(deterministic=True).hex() == sample["wire"]
    read = kind.FromString(wire)
    assert read == made
    assert not made.SerializeToString() or read.ByteSize() == len(wire)


def test_all_messages_were_recorded() -> None:
    kinds = {kind for pair in METHODS.values() for kind in pair}
    assert {sample["message"] for sample in RECORDED} == kinds
    recorded: dict[str, set[str]] = {}
    for sample in RECORDED:
        recorded.setdefault(sample["message"], set()).update(sample["fields"])
    for kind in kinds:
        fields = {f.name for f in getattr(m, kind).DESCRIPTOR.fields if f.number < 100}
        assert recorded[kind] == fields, kind


def test_the_service_has_the_ten_rpcs() -> None:
    assert m.SERVICE == "optimized_lipsyncsrv.OptimizedLipSyncService"
    found = m.methods()
    assert found.keys() == METHODS.keys()
    for name, (reads, writes) in METHODS.items():
        described = found[name]
        assert (described.input_type.name, described.output_type.name) == (reads, writes)
        both = name == "StreamInference"
        assert described.client_streaming == described.server_streaming == both, name


def test_what_is_compiled_is_what_stands_there(tmp_path: Path) -> None:
    """`make proto` was run after the .proto was changed."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    folder, out = Path(m.__file__).parent, tmp_path / "now.binpb"
    name = "optimized_lipsyncsrv.proto"
    assert protoc.main(["", f"-I{folder}", f"--descriptor_set_out={out}", name]) == 0
    now, kept = out.read_bytes(), (folder / m.COMPILED).read_bytes()
    assert FileDescriptorSet.FromString(now) == FileDescriptorSet.FromString(kept)
