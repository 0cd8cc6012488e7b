// SPDX-License-Identifier: Apache-2.0
//
// A gRPC client of another language: all ten rpcs of a server, by @grpc/grpc-js and the .proto.
//
//     npm install @grpc/grpc-js @grpc/proto-loader
//     node bench/grpc_client/all_rpcs.cjs 127.0.0.1:50051 [TOKEN]
//
// Prints a line for each rpc, and ends with 1 where one is not what it should be.
"use strict";
const assert = require("node:assert");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PROTO = path.join(__dirname, "../../lipsync_fast/gateway/rpc/optimized_lipsyncsrv.proto");
const [address = "127.0.0.1:50051", token] = process.argv.slice(2);
const described = loader.loadSync(PROTO, { keepCase: true, longs: Number, defaults: true });
const { OptimizedLipSyncService: Service } =
  grpc.loadPackageDefinition(described).optimized_lipsyncsrv;
const client = new Service(address, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": 50 << 20,
});
const metadata = new grpc.Metadata();
if (token) metadata.set("authorization", `Bearer ${token}`);

const call = (name, request) =>
  new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 120_000 };
    client[name](request, metadata, options, (error, answer) =>
      error ? reject(error) : resolve(answer));
  });
const isJpeg = (bytes) => bytes.length > 1000 && bytes.readUInt16BE(0) === 0xffd8;
const told = (name, words) => console.log(`${name.padEnd(24)} ${words}`);

async function stream(count) {
  const answers = [];
  const both = client.StreamInference(metadata, { deadline: Date.now() + 120_000 });
  const ended = new Promise((resolve, reject) => {
    both.on("data", (answer) => answers.push(answer));
    both.on("end", resolve);
    both.on("error", reject);
  });
  for (let id = -2; id < count - 2; id++) both.write({ model_name: "demo", frame_id: id });
  both.end();
  await ended;
  return answers;
}

async function main() {
  const health = await call("HealthCheck", {});
  assert(health.healthy, health.status);
  told("HealthCheck", `${health.status}, ${health.loaded_models} loaded`);
  const models = await call("ListModels", {});
  assert(models.loaded_models.includes("demo"));
  told("ListModels", models.loaded_models.join(", "));
  const loaded = await call("LoadPackage", { package_name: "demo", package_dir: "/nowhere" });
  assert(loaded.success, loaded.error);
  told("LoadPackage", `${loaded.message}; ${loaded.frame_count} frames on ${loaded.device}`);
  const about = await call("GetModelMetadata", { model_name: "demo" });
  assert(about.success && about.bounds.length === 4);
  told("GetModelMetadata", `${about.frame_count} frames, ${about.available_videos.join(", ")}`);
  const frame = await call("GetVideoFrame",
    { model_name: "demo", frame_id: 5, video_type: "full_body" });
  assert(frame.success && isJpeg(frame.frame_data));
  told("GetVideoFrame", `${frame.frame_data.length} bytes`);
  const one = await call("GenerateInference", { model_name: "demo", frame_id: -1 });
  assert(one.success && one.frame_id === -1 && isJpeg(one.prediction_data), one.error);
  told("GenerateInference", `${one.prediction_shape}, ${one.prediction_data.length} bytes`);
  const many = await call("GenerateBatchInference", { model_name: "demo", frame_ids: [9, 3, 7] });
  assert.deepStrictEqual(many.responses.map((r) => r.frame_id), [9, 3, 7]);
  assert(many.responses.every((r) => r.success));
  told("GenerateBatchInference", `${many.responses.length} pictures`);
  const chunk = () => Buffer.from(Int16Array.from({ length: 960 },
    (_, i) => 8000 * Math.sin(i / 7) * Math.sin(i / 301)).buffer);
  const heard = await call("GenerateBatchWithAudio", { model_name: "demo", start_frame_id: 0,
    frame_count: 20, audio_chunks: Array.from({ length: 35 }, chunk) });
  assert.strictEqual(heard.responses.length, 20);
  assert(heard.responses.every((r) => r.success && isJpeg(r.prediction_data)));
  told("GenerateBatchWithAudio",
    `${heard.responses.length} pictures, ${heard.avg_frame_time_ms.toFixed(1)} ms each`);
  const streamed = await stream(30);
  assert.deepStrictEqual(streamed.map((r) => r.frame_id), [...Array(30).keys()].map((k) => k - 2));
  assert(streamed.every((r) => r.success));
  told("StreamInference", `${streamed.length} pictures, in order`);
  const stats = await call("GetStats", { model_name: "demo" });
  assert(stats.total_requests >= 54);
  told("GetStats", `${stats.total_requests} requests, ${stats.optimizations_active.join(", ")}`);
  const nobody = await call("GenerateInference", { model_name: "nobody" });
  assert(!nobody.success && nobody.error.includes("nobody"));
  const missing = await call("GetVideoFrame", { model_name: "nobody" }).catch((error) => error);
  assert.strictEqual(missing.code, grpc.status.NOT_FOUND);
  told("unknown model", `${nobody.error} / status ${missing.code} (NOT_FOUND)`);
}

main().then(() => client.close(), (error) => {
  console.error(error);
  process.exit(1);
});
