import type { JsonObject } from "../../base/json-object.ts";
import { type MessagesRequest, parseCountTokens, parseMessagesRequest } from "../schemas/anthropic.ts";
import { type ChatRequest, parseChat } from "../schemas/chat.ts";
import { type CompletionsRequest, parseCompletions } from "../schemas/completions.ts";
import { type EmbeddingsRequest, parseEmbeddings } from "../schemas/embeddings.ts";
import type { BodyLimits, UnknownFields } from "../schemas/request-body.ts";
import { parseResponses, type ResponsesRequest } from "../schemas/responses.ts";
import {
  type DetokenizeRequest,
  parseDetokenize,
  parseTokenize,
  type TokenizeRequest,
} from "../schemas/tokenize.ts";
import { parseJsonBody } from "./json-body.ts";

/** The requests with a body, by kind. */
export interface Requests {
  readonly completions: CompletionsRequest;
  readonly chat: ChatRequest;
  readonly responses: ResponsesRequest;
  readonly messages: MessagesRequest;
  readonly countTokens: MessagesRequest;
  readonly embeddings: EmbeddingsRequest;
  readonly tokenize: TokenizeRequest;
  readonly detokenize: DetokenizeRequest;
}

export type RequestKind = keyof Requests;

export interface ParsedRequest<K extends RequestKind> {
  readonly request: Requests[K];
  /** Names of the fields that nothing knows. */
  readonly unknownFields: readonly string[];
}

type Parser<K extends RequestKind> = (
  json: JsonObject,
  onUnknown: UnknownFields,
  limits: BodyLimits,
) => Requests[K];

const PARSERS: { readonly [K in RequestKind]: Parser<K> } = {
  completions: parseCompletions,
  chat: parseChat,
  responses: parseResponses,
  messages: parseMessagesRequest,
  countTokens: parseCountTokens,
  embeddings: parseEmbeddings,
  tokenize: parseTokenize,
  detokenize: parseDetokenize,
};

/**
 * Parses a body and checks it against its schema. The request holds no more than the engine may accept of it: it is cheap
 * to pass on between threads.
 * @throws ApiError naming the field.
 */
export function parseRequest<K extends RequestKind>(
  kind: K,
  bytes: Uint8Array,
  limits: BodyLimits,
): ParsedRequest<K> {
  let unknownFields: readonly string[] = [];
  const onUnknown = (names: readonly string[]) => {
    unknownFields = names;
  };
  const request = PARSERS[kind](parseJsonBody(bytes), onUnknown, limits);
  return { request, unknownFields };
}
