import type { OpenTextMessage, TextMessage } from "../../src/async/worker-protocol.ts";

declare const self: Worker;

/** Knows three texts: "crash" throws outside of any job, "hang" is never answered, of all others the only token is 5. */
self.onmessage = (_: MessageEvent<OpenTextMessage>) => {
  self.onmessage = ({ data: { call, job, input } }: MessageEvent<TextMessage>) => {
    const { prompt } = (input ?? {}) as { prompt?: unknown };
    if (prompt === "crash") throw new RangeError("the text is too much");
    if (prompt === "hang") for (;;);
    const output = { text: prompt, tokenIds: Int32Array.of(5) };
    self.postMessage({ call, output: job === "encode" ? output : undefined });
  };
};
