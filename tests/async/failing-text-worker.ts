import { existsSync } from "node:fs";
import type { TextMessage, TextReply } from "../../src/async/worker-protocol.ts";
import { ModelDataError } from "../../src/base/errors.ts";
import { encodeError } from "../../src/threads/error-codec.ts";

declare const self: Worker;

const post = (reply: TextReply) => self.postMessage(reply);
const worker = crypto.randomUUID();

/**
 * Opens any folder that exists. Of spaces at its end a text is the longer; without them "crash" throws outside of any job,
 * "hang" is never answered, of all others the only token is 5. Decoded, tokens are the worker's name.
 */
self.onmessage = ({ data: opening }: MessageEvent<TextMessage<"open">>) => {
  const { folder } = opening.input;
  if (!existsSync(folder)) return post({ error: encodeError(new ModelDataError(folder, "gone")) });
  self.onmessage = ({ data: { job, input } }: MessageEvent<TextMessage>) => {
    if (job === "detokenize") return post({ output: worker });
    if (job !== "encode") return post({ output: [] });
    const { prompt } = input as { prompt: string };
    if (prompt.trimEnd() === "crash") throw new RangeError("the text is too much");
    if (prompt.trimEnd() === "hang") for (;;);
    post({ output: { text: prompt, tokenIds: Int32Array.of(5) } });
  };
  post({ output: undefined });
};
