# SPDX-License-Identifier: Apache-2.0
"""The messages of ``optimized_lipsyncsrv.proto``.

They are made from the compiled description that lies beside it (``make proto``): it is checked in,
so that nobody needs a compiler, and any release of protobuf can read it, while generated code is
bound to few of them.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "optimized_lipsyncsrv"
SERVICE = f"{PACKAGE}.OptimizedLipSyncService"
COMPILED = "optimized_lipsyncsrv.binpb"
Message = Any
"""One of those below: its fields are what the description says, which no checker can read."""


def _described() -> Any:
    """The description, known to protobuf from now on."""
    content = FileDescriptorSet.FromString(files(__package__).joinpath(COMPILED).read_bytes())
    pool = Default()
    for file in content.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = _described()


def _class(name: str) -> Any:
    return GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


OptimizedInferenceRequest = _class("OptimizedInferenceRequest")
OptimizedInferenceResponse = _class("OptimizedInferenceResponse")
BatchInferenceRequest = _class("BatchInferenceRequest")
BatchInferenceWithAudioRequest = _class("BatchInferenceWithAudioRequest")
BatchInferenceResponse = _class("BatchInferenceResponse")
LoadPackageRequest = _class("LoadPackageRequest")
LoadPackageResponse = _class("LoadPackageResponse")
StatsRequest = _class("StatsRequest")
StatsResponse = _class("StatsResponse")
ListModelsRequest = _class("ListModelsRequest")
ListModelsResponse = _class("ListModelsResponse")
HealthRequest = _class("HealthRequest")
HealthResponse = _class("HealthResponse")
GetVideoFrameRequest = _class("GetVideoFrameRequest")
GetVideoFrameResponse = _class("GetVideoFrameResponse")
GetModelMetadataRequest = _class("GetModelMetadataRequest")
GetModelMetadataResponse = _class("GetModelMetadataResponse")


def methods() -> dict[str, Any]:
    """The service's rpcs by name, as the description has them."""
    return dict(_pool.FindServiceByName(SERVICE).methods_by_name)


def class_of(descriptor: Any) -> Any:
    """The class of a message's description."""
    return GetMessageClass(descriptor)
