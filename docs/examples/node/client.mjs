// Classifies a prompt, with a deadline and a tier to fall back to: node client.mjs ADDRESS PROMPT [MILLISECONDS]
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const root = fileURLToPath(new URL("../../../proto", import.meta.url));
const loaded = loadSync("classifier/v1/classifier.proto", { includeDirs: [root], enums: String, defaults: true });
const { ClassifierService } = grpc.loadPackageDefinition(loaded).classifier.v1;

const [address = "127.0.0.1:50051", prompt = "What is the capital of Australia?", within = "250"] = process.argv.slice(2);
const client = new ClassifierService(address, grpc.credentials.createInsecure());

const request = { messages: [{ role: "user", content: prompt }] };
client.classify(request, { deadline: Date.now() + Number(within) }, (error, answer) => {
  const tier = error ? "TIER_COMPLEX" : answer.tier;
  console.log(JSON.stringify({ tier, fallback: error ? grpc.status[error.code] : "", decision_id: answer?.decisionId }));
  client.close();
});
