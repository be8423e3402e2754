import { ApiError, toApiError } from "../errors.ts";
import { clientClosed } from "../request-lifetime.ts";

export interface ReplyStreamOptions {
  /** A client that reads nothing for so long is dropped. */
  readonly writeStallSeconds: number;
  /** Sent while nothing else comes, every so many milliseconds. Default nothing. */
  readonly keepAlive?: { readonly text: string; readonly milliseconds: number };
  /** The text of the error that ends the reply; without it the connection is reset. */
  readonly lastWords?: (told: ApiError) => string;
  /** Ends the request, while the stream goes on until its source has ended. */
  readonly abort: (reason: ApiError) => void;
  /** Called once when the stream has ended; after a failure with the error sent to the client, and its cause. */
  readonly onEnd: (told?: ApiError, error?: unknown) => void;
}

/**
 * The body of a reply that is written as it is made. A part is taken from `parts` only when the client has room for it, so at
 * most one waits here.
 */
export function replyStream(
  parts: AsyncGenerator<string, void, undefined>,
  { writeStallSeconds, keepAlive, lastWords, abort, onEnd }: ReplyStreamOptions,
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
    void parts.return().catch(() => {});
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
          next ??= parts.next();
          const result = keepAlive ? await within(next, keepAlive.milliseconds) : await next;
          if (ended) return;
          if (result === undefined) {
            send(controller, keepAlive!.text);
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
          end(failure, error);
          if (!lastWords) {
            controller.error(failure);
            return;
          }
          controller.enqueue(encoder.encode(lastWords(failure)));
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
