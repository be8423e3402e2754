import type { RequestContext, ServerContext } from "../context.ts";
import { ApiError } from "../errors.ts";
import { headerOf } from "../header.ts";
import { clientClosed } from "../request-lifetime.ts";
import type { RequestKind, Requests } from "./parse-request.ts";

/**
 * Reads, parses and checks a request's body.
 * @throws ApiError 413, 415, or 400 naming the field.
 */
export async function readRequest<K extends RequestKind>(
  c: RequestContext,
  { config, bodies, unknownFields: log }: ServerContext,
  kind: K,
): Promise<Requests[K]> {
  checkHeaders(c.req.raw.headers, config.maxRequestBytes);
  const bytes = await readBytes(c.req.raw, config.maxRequestBytes);
  const { request, unknownFields } = await bodies.parse(kind, bytes);
  if (unknownFields.length > 0) log.add(unknownFields);
  return request;
}

function checkHeaders(headers: Headers, maxBytes: number): void {
  const type = headerOf(headers, "content-type")?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json")
    throw new ApiError(415, "unsupported_media_type", "Content-Type must be application/json");
  const encoding = headerOf(headers, "content-encoding")?.trim().toLowerCase() ?? "identity";
  if (encoding !== "identity")
    throw new ApiError(415, "unsupported_encoding", "the body must not be compressed");
  if (Number(headers.get("content-length") ?? 0) > maxBytes) throw tooLarge(maxBytes);
}

/** The whole body, in a buffer of its own. */
async function readBytes(request: Request, maxBytes: number): Promise<Uint8Array<ArrayBuffer>> {
  if (!request.body) return new Uint8Array(0);
  const reader = request.body.getReader();
  const parts: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw clientClosed();
    });
    if (done) break;
    length += value.length;
    if (length > maxBytes) {
      await reader.cancel();
      throw tooLarge(maxBytes);
    }
    parts.push(value);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function tooLarge(maxBytes: number): ApiError {
  return new ApiError(413, "request_too_large", `the body has more than ${maxBytes} bytes`);
}
