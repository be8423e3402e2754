import type { ApiError } from "./errors.ts";

/** Anthropic's error document, which has no place for the field at fault but the message. */
export function anthropicError({ status, param, message }: ApiError): object {
  const text = param === null || message.includes(param) ? message : `${param}: ${message}`;
  return { type: "error", error: { type: typeOf(status), message: text } };
}

/** The reply of `/v1/messages` to a request that failed before anything of it was sent. */
export function anthropicErrorResponse(error: ApiError): Response {
  return Response.json(anthropicError(error), { status: error.status, headers: error.headers });
}

function typeOf(status: ApiError["status"]): string {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    case 504:
      return "timeout_error";
    default:
      return status >= 500 && status !== 501 ? "api_error" : "invalid_request_error";
  }
}
