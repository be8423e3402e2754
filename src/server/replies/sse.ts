import { type ApiError, errorBody } from "../errors.ts";
import { type ReplyStreamOptions, replyStream } from "./reply-stream.ts";

/** Silence after which proxies, and Bun itself, take a connection for dead. */
const KEEP_ALIVE = { milliseconds: 5000, text: ": keep-alive\n\n" } as const;

export const SSE_HEADERS = {
  "Content-Type": "text/event-stream; charset=utf-8",
  "Cache-Control": "no-cache",
  /** nginx would collect events before passing them on. */
  "X-Accel-Buffering": "no",
} as const;

export const DONE = "data: [DONE]\n\n";

/** The text of one event. JSON has no line breaks of its own. @param name its type; default none. */
export function* event(data: Iterable<string>, name?: string): Generator<string, void, undefined> {
  yield name === undefined ? "data: " : `event: ${name}\ndata: `;
  yield* data;
  yield "\n\n";
}

/** The body of a streaming reply. An error in `parts` becomes the last event, and nothing follows. */
export function eventStream(
  parts: AsyncGenerator<string, void, undefined>,
  options: Omit<ReplyStreamOptions, "keepAlive" | "lastWords">,
  failure = (told: ApiError): Iterable<string> => event([JSON.stringify(errorBody(told))]),
): ReadableStream<Uint8Array> {
  return replyStream(parts, {
    ...options,
    keepAlive: KEEP_ALIVE,
    lastWords: (told) => [...failure(told)].join(""),
  });
}
