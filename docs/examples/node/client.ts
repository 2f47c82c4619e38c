// Classifies a prompt, with a deadline and a tier to fall back to: node build/client.js ADDRESS PROMPT [MILLISECONDS]
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./generated/classifier.js";
import type { ClassifyRequest } from "./generated/classifier/v1/ClassifyRequest.js";

const root = fileURLToPath(new URL("../../../../proto", import.meta.url));
const loaded = loadSync("classifier/v1/classifier.proto", { includeDirs: [root], enums: String, defaults: true });
const { ClassifierService } = (grpc.loadPackageDefinition(loaded) as unknown as ProtoGrpcType).classifier.v1;

const [address = "127.0.0.1:50051", prompt = "What is the capital of Australia?", within = "250"] =
  process.argv.slice(2);
// Prompts go to the server alone: by default gRPC asks the proxy that http_proxy or https_proxy names.
const client = new ClassifierService(address, grpc.credentials.createInsecure(), { "grpc.enable_http_proxy": 0 });

const request: ClassifyRequest = { messages: [{ role: "user", content: prompt }] };
client.classify(request, { deadline: Date.now() + Number(within) }, (error, answer) => {
  const tier = error || !answer ? "TIER_COMPLEX" : answer.tier;
  const fallback = error ? grpc.status[error.code] : "";
  console.log(JSON.stringify({ tier, fallback, decision_id: answer?.decisionId }));
  client.close();
});
