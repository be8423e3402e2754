import { ApiError, errorBody, toApiError } from "./errors.ts";
import { clientClosed } from "./request-lifetime.ts";

/** Silence after which proxies, and Bun itself, take a connection for dead. */
const KEEP_ALIVE_MS = 5000;
const KEEP_ALIVE = ": keep-alive\n\n";

export const SSE_HEADERS = {
  "Content-Type": "text/event-stream; charset=utf-8",
  "Cache-Control": "no-cache",
  /** nginx would collect events before passing them on. */
  "X-Accel-Buffering": "no",
} as const;

/** The text of one event. JSON has no line breaks of its own. */
export function event(data: object): string {
  return `data: ${JSON.stringify(data)}\n\n`;
}

export const DONE = "data: [DONE]\n\n";

export interface EventStreamOptions {
  /** A client that reads nothing for so long is dropped. */
  readonly writeStallSeconds: number;
  /** Ends the request, while the stream goes on until its source has ended. */
  readonly abort: (reason: ApiError) => void;
  /** Called once when the stream has ended; after a failure with the error sent to the client, and its cause. */
  readonly onEnd: (told?: ApiError, error?: unknown) => void;
}

/**
 * The body of a streaming reply. An event is taken from `events` only when the client has room for it, so at most one
 * waits here. An error in `events` becomes the last event, and no `[DONE]` follows.
 */
export function eventStream(
  events: AsyncGenerator<string, void, undefined>,
  { writeStallSeconds, abort, onEnd }: EventStreamOptions,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  let next: Promise<IteratorResult<string, void>> | undefined;
  let stallTimer: ReturnType<typeof setTimeout> | undefined;
  let ended = false;

  const end = (told?: ApiError, error: unknown = told) => {
    clearTimeout(stallTimer);
    if (ended) return;
    ended = true;
    onEnd(told, error);
  };
  const leave = (reason: ApiError) => {
    abort(reason);
    end(reason);
    // The error that the abort makes the source throw has been reported.
    void events.return().catch(() => {});
  };
  const send = (controller: ReadableStreamDefaultController<Uint8Array>, text: string) => {
    controller.enqueue(encoder.encode(text));
    stallTimer = setTimeout(() => {
      const message = `the client read nothing for ${writeStallSeconds} s`;
      const stalled = new ApiError(499, "client_stalled", message);
      leave(stalled);
      controller.error(stalled);
    }, writeStallSeconds * 1000);
  };

  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        clearTimeout(stallTimer);
        try {
          next ??= events.next();
          const result = await within(next, KEEP_ALIVE_MS);
          if (ended) return;
          if (result === undefined) {
            send(controller, KEEP_ALIVE);
            return;
          }
          next = undefined;
          if (!result.done) {
            send(controller, result.value);
            return;
          }
          end();
        } catch (error) {
          if (ended) return;
          const failure = toApiError(error);
          controller.enqueue(encoder.encode(event(errorBody(failure))));
          end(failure, error);
        }
        controller.close();
      },
      cancel: () => leave(clientClosed()),
    },
    { highWaterMark: 0 },
  );
}

/** The promise's value, or undefined if it takes longer. */
async function within<T>(promise: Promise<T>, milliseconds: number): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), milliseconds);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
