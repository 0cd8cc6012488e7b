// SPDX-License-Identifier: Apache-2.0
//
// Records messages of the old gRPC service as protobufjs writes them, for tests/unit/test_grpc_wire.py:
//
//     npm install protobufjs@7 && node tools/grpc_wire/record.cjs > tests/data/grpc_wire.json
//
// The numbers stand here once more, on purpose: this file does not read the server's .proto, so that
// a number that is wrong there is found.
"use strict";
const protobuf = require("protobufjs");

const TYPES = {
  OptimizedInferenceRequest: "string model_name, int32 frame_id",
  OptimizedInferenceResponse:
    "bool success, bytes prediction_data, repeated float bounds, int32 processing_time_ms," +
    " string model_name, int32 frame_id, string prediction_shape, optional string error," +
    " double prepare_time_ms, double inference_time_ms, double composite_time_ms," +
    " repeated string optimizations",
  BatchInferenceRequest: "string model_name, repeated int32 frame_ids",
  BatchInferenceWithAudioRequest:
    "string model_name, int32 start_frame_id, int32 frame_count, repeated bytes audio_chunks",
  BatchInferenceResponse:
    "repeated OptimizedInferenceResponse responses, int32 total_processing_time_ms," +
    " double avg_frame_time_ms",
  LoadPackageRequest: "string package_name, string package_dir",
  LoadPackageResponse:
    "bool success, string package_name, string message, int32 initialization_time_ms," +
    " int32 frame_count, string device, repeated string videos_loaded," +
    " repeated int32 audio_features_shape, bool memory_mapped_audio, optional string error",
  StatsRequest: "string model_name",
  StatsResponse:
    "string model_name, int32 total_requests, double avg_inference_time_ms," +
    " double min_inference_time_ms, double max_inference_time_ms, int32 frame_count," +
    " string device, repeated string optimizations_active",
  ListModelsRequest: "",
  ListModelsResponse: "repeated string loaded_models, int32 count",
  HealthRequest: "",
  HealthResponse: "bool healthy, string status, int32 loaded_models, int64 uptime_seconds",
  GetVideoFrameRequest: "string model_name, int32 frame_id, string video_type",
  GetVideoFrameResponse:
    "bool success, bytes frame_data, int32 frame_id, string video_type, optional string error",
  GetModelMetadataRequest: "string model_name",
  GetModelMetadataResponse:
    "bool success, string model_name, int32 frame_count, repeated string available_videos," +
    " string audio_path, repeated float bounds, optional string error",
};

// Fields are numbered from 1 on, in the order in which they stand above.
const source = Object.entries(TYPES).map(([name, fields]) => {
  const lines = fields.split(",").map((f) => f.trim()).filter(Boolean);
  return `message ${name} { ${lines.map((line, i) => `${line} = ${i + 1};`).join(" ")} }`;
});
const root = protobuf.parse(
  `syntax = "proto3"; package optimized_lipsyncsrv; ${source.join("\n")}`,
  { keepCase: true },
).root.resolveAll();

const jpeg = Buffer.from("ffd8ffe000104a464946ffd9", "hex");
const picture = {
  success: true, prediction_data: jpeg, bounds: [1.5, -2.25, 320, 0.1], processing_time_ms: 17,
  model_name: "demo", frame_id: 4711, prediction_shape: "320x320x3", prepare_time_ms: 0.25,
  inference_time_ms: 12.125, composite_time_ms: 1e-3, optimizations: ["one", "two"],
};
const failure = { model_name: "nobody", frame_id: -3, error: "Unknown model 'nobody'" };
const SAMPLES = [
  ["OptimizedInferenceRequest", { model_name: "demo", frame_id: 7 }],
  ["OptimizedInferenceRequest", { model_name: "Zoë 🙂", frame_id: -1 }],
  ["OptimizedInferenceRequest", { frame_id: 2147483647 }],
  ["OptimizedInferenceRequest", {}],
  ["OptimizedInferenceResponse", picture],
  ["OptimizedInferenceResponse", failure],
  ["OptimizedInferenceResponse", { success: true, error: "" }],
  ["BatchInferenceRequest", { model_name: "demo", frame_ids: [0, 1, 300, -2147483648] }],
  ["BatchInferenceRequest", { model_name: "demo" }],
  ["BatchInferenceWithAudioRequest",
    { model_name: "demo", start_frame_id: 100, frame_count: 2,
      audio_chunks: [Buffer.alloc(5, 1), Buffer.alloc(0), Buffer.from([0, 255, 128])] }],
  ["BatchInferenceResponse",
    { responses: [picture, failure], total_processing_time_ms: 40, avg_frame_time_ms: 20.5 }],
  ["LoadPackageRequest", { package_name: "demo", package_dir: "/models/demo" }],
  ["LoadPackageResponse",
    { success: true, package_name: "demo", message: "loaded", initialization_time_ms: 250,
      frame_count: 523, device: "cuda:0", videos_loaded: ["full_body", "face_regions"],
      audio_features_shape: [522, 512], memory_mapped_audio: true }],
  ["LoadPackageResponse", { package_name: "x", error: "no such package" }],
  ["StatsRequest", { model_name: "demo" }],
  ["StatsResponse",
    { model_name: "demo", total_requests: 1000, avg_inference_time_ms: 8.5,
      min_inference_time_ms: 5.25, max_inference_time_ms: 99.75, frame_count: 523, device: "cpu",
      optimizations_active: ["a", "b", "c"] }],
  ["ListModelsRequest", {}],
  ["ListModelsResponse", { loaded_models: ["demo", "other"], count: 2 }],
  ["HealthRequest", {}],
  ["HealthResponse",
    { healthy: true, status: "SERVING", loaded_models: 2, uptime_seconds: 123456 }],
  ["GetVideoFrameRequest", { model_name: "demo", frame_id: 12, video_type: "full_body" }],
  ["GetVideoFrameResponse",
    { success: true, frame_data: jpeg, frame_id: 12, video_type: "full_body" }],
  ["GetVideoFrameResponse", { frame_id: 12, video_type: "hat", error: "Unknown video type" }],
  ["GetModelMetadataRequest", { model_name: "demo" }],
  ["GetModelMetadataResponse",
    { success: true, model_name: "demo", frame_count: 523, available_videos: ["full_body"],
      audio_path: "aud.wav", bounds: [10, 20, 330.5, 340.25] }],
  ["GetModelMetadataResponse", { model_name: "nobody", error: "Unknown model" }],
];

const bytesAsText = (key, value) =>
  value && value.type === "Buffer" ? Buffer.from(value.data).toString("base64") : value;
const recorded = SAMPLES.map(([name, fields]) => {
  const type = root.lookupType(`optimized_lipsyncsrv.${name}`);
  const wire = type.encode(type.fromObject(fields)).finish();
  return { message: name, fields: JSON.parse(JSON.stringify(fields, bytesAsText)),
    wire: Buffer.from(wire).toString("hex") };
});
const lines = recorded.map((each) => JSON.stringify(each));
process.stdout.write(`[\n${lines.join(",\n")}\n]\n`);
