import { MaskEngines } from "./mask-engines.ts";
import { MatcherThread } from "./matcher-thread.ts";
import type { StageMessage, StageReply } from "./stage-protocol.ts";

declare const self: Worker;

/** xgrammar prints what it aborts on, and warnings about the paths of its own build. */
for (const method of ["log", "warn", "error"] as const) console[method] = () => {};

let thread: MatcherThread | undefined;
// Messages are handled one after the other, though the handlers of some wait.
let last: Promise<void> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<StageMessage>) => {
  last = last.then(async () => {
    if (data.type === "vocabulary") {
      const engines = new MaskEngines(data.tokens, data.vocabSize);
      thread = new MatcherThread(engines, data.shared, (reply: StageReply) => self.postMessage(reply));
    } else await thread!.handle(data);
  });
};
