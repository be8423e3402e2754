import {
  ChatTemplateError,
  EngineDeadError,
  ExitCode,
  InvalidRequestError,
  OctavoError,
  ReplicaDeadError,
  RequestFailedError,
} from "../base/errors.ts";
import { apiMessage, apiName } from "./schemas/sampling.ts";

export type ApiErrorType =
  | "invalid_request_error"
  | "authentication_error"
  | "rate_limit_error"
  | "server_error";

/** Longest message and field name in characters: both may quote what a client sent. */
const MAX_MESSAGE = 500;
const MAX_PARAM = 128;

/** An error reply: its HTTP status and OpenAI's error document. */
export class ApiError extends OctavoError {
  readonly exitCode = ExitCode.internal;

  /** The field at fault, as the request spells it. */
  readonly param: string | null;

  constructor(
    readonly status: ApiStatus,
    readonly code: string,
    message: string,
    param: string | null = null,
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(clipped(message, MAX_MESSAGE));
    this.param = param && clipped(param, MAX_PARAM);
  }

  get type(): ApiErrorType {
    return typeOf(this.status);
  }
}

export type ApiStatus = 400 | 401 | 403 | 404 | 405 | 409 | 413 | 415 | 429 | 499 | 500 | 501 | 503 | 504;

/** The server cannot listen on the address. */
export class BindError extends OctavoError {
  readonly code = "cannot_bind";
  readonly exitCode = ExitCode.cannotBind;
}

/** OpenAI's error document. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: ApiErrorType;
    readonly param: string | null;
    readonly code: string;
  };
}

/** Refuses a field that other servers know and this one does not. */
export function unsupported(field: string, message: string, status: 400 | 501 = 501): ApiError {
  return new ApiError(status, "unsupported_parameter", message, field);
}

export function invalidValue(field: string, message: string, code = "invalid_value"): ApiError {
  return new ApiError(400, code, message, field);
}

export function invalidJson(message: string): ApiError {
  return new ApiError(400, "invalid_json", message);
}

export function overloaded(code: string, message: string, retrySeconds = 1): ApiError {
  return new ApiError(503, code, message, null, { "Retry-After": String(retrySeconds) });
}

/** Messages, by code, for failures inside the engine, whose own messages could hold addresses or paths. */
const FAILURES: Readonly<Record<string, string>> = {
  numerical_error: "the model's logits are not finite numbers",
  step_failed: "computing a step failed",
  detokenize_failed: "turning tokens into text failed",
  body_failed: "parsing the body failed",
};

/** The error reply for anything thrown while a request was served. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof InvalidRequestError) {
    const message = error instanceof ChatTemplateError ? error.message : apiMessage(error.message);
    return new ApiError(400, error.code, message, apiName(error.param));
  }
  if (error instanceof ReplicaDeadError)
    return overloaded("replica_dead", "the engine that ran the request has stopped, others go on");
  if (error instanceof EngineDeadError)
    return new ApiError(503, error.code, "the engine has stopped", null, { "X-Should-Retry": "false" });
  if (error instanceof RequestFailedError)
    return new ApiError(500, error.code, FAILURES[error.code] ?? "the request failed");
  return new ApiError(500, "internal_error", "internal error");
}

export function errorBody({ message, type, param, code }: ApiError): ErrorBody {
  return { error: { message, type, param, code } };
}

/** The reply to a request that failed before anything of it was sent. */
export function errorResponse(error: ApiError): Response {
  // The SDKs repeat requests that get a 5xx, which would not help here.
  const retry = error.status === 501 ? { "X-Should-Retry": "false" } : {};
  return Response.json(errorBody(error), {
    status: error.status,
    headers: { ...retry, ...error.headers },
  });
}

function clipped(text: string, most: number): string {
  return text.length > most ? `${text.slice(0, most)}…` : text;
}

function typeOf(status: ApiStatus): ApiErrorType {
  if (status === 401) return "authentication_error";
  if (status === 429) return "rate_limit_error";
  return status >= 500 && status !== 501 ? "server_error" : "invalid_request_error";
}
