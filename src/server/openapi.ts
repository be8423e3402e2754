import { z } from "zod";
import { CountTokensBody, MessagesBody } from "./schemas/anthropic.ts";
import { ChatBody } from "./schemas/chat.ts";
import { CompletionsBody } from "./schemas/completions.ts";
import { EmbeddingsBody } from "./schemas/embeddings.ts";
import { ResponsesBody } from "./schemas/responses.ts";
import { DetokenizeBody, TokenizeBody } from "./schemas/tokenize.ts";

type Operation = readonly [
  method: "get" | "post" | "delete",
  path: string,
  summary: string,
  body?: z.ZodType,
];

const OPERATIONS: readonly Operation[] = [
  ["get", "/v1/models", "The served models"],
  ["get", "/v1/models/{model}", "One served model"],
  ["post", "/v1/completions", "Continue prompts", CompletionsBody],
  ["post", "/v1/chat/completions", "Continue a conversation", ChatBody],
  ["post", "/v1/responses", "Continue a conversation of items", ResponsesBody],
  ["post", "/v1/messages", "Continue a conversation, Anthropic's way", MessagesBody],
  ["post", "/v1/messages/count_tokens", "The number of a conversation's tokens", CountTokensBody],
  ["get", "/v1/responses/{id}", "A stored response"],
  ["delete", "/v1/responses/{id}", "Forget a stored response"],
  ["post", "/v1/embeddings", "Vectors of texts", EmbeddingsBody],
  ["post", "/v1/completions/render", "The tokens of prompts", CompletionsBody],
  ["post", "/v1/chat/completions/render", "The tokens of a conversation", ChatBody],
  ["post", "/tokenize", "The tokens of a text or conversation", TokenizeBody],
  ["post", "/detokenize", "The text of tokens", DetokenizeBody],
  ["post", "/reset_prefix_cache", "Forget all cached prefixes"],
  ["get", "/live", "Whether the process answers"],
  ["get", "/ready", "Whether requests are taken"],
  ["get", "/health", "Whether requests are taken and make progress"],
  ["get", "/ping", "The same as /health"],
  ["get", "/version", "The version"],
  ["get", "/load", "Requests under way"],
  ["get", "/metrics", "Metrics for Prometheus"],
  ["get", "/engine", "An engine's blocks and queues as they change, as events"],
];

/** The OpenAPI 3.1 document of the server. */
export function openApiDocument(version: string): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const [method, path, summary, body] of OPERATIONS) {
    const schema = body && z.toJSONSchema(body, { io: "input", unrepresentable: "any" });
    const requestBody = { required: true, content: { "application/json": { schema } } };
    const parameters = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => {
      return { name, in: "path", required: true, schema: { type: "string" } };
    });
    paths[path] = {
      ...paths[path],
      [method]: {
        ...{ summary, parameters, responses: { 200: { description: "OK" } } },
        ...(schema && { requestBody }),
      },
    };
  }
  const securitySchemes = { key: { type: "http", scheme: "bearer" } };
  const security = [{}, { key: [] }];
  const info = { title: "Octavo", version };
  return { openapi: "3.1.0", info, security, paths, components: { securitySchemes } };
}
