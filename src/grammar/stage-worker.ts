import { MaskEngines } from "./mask-engines.ts";
import { MatcherThread } from "./matcher-thread.ts";
import { type StageMessage, type StageReply, StageWord } from "./stage-protocol.ts";

declare const self: Worker;

type Vocabulary = Extract<StageMessage, { type: "vocabulary" }>;

/** Longest sleep, in milliseconds. */
const NAP_MS = 100;

/** xgrammar prints what it aborts on, and warnings about the paths of its own build. */
for (const method of ["log", "warn", "error"] as const) console[method] = () => {};

self.onmessage = ({ data }: MessageEvent<StageMessage>) => void serve(data as Vocabulary);

/**
 * Handles messages in their order, and between them the tokens that matchers are told of. While there are matchers the thread sleeps
 * on the bell, not in its event loop: it is awake sooner.
 */
async function serve({ tokens, vocabSize, shared }: Vocabulary): Promise<void> {
  const words = new Int32Array(shared);
  const thread = new MatcherThread(new MaskEngines(tokens, vocabSize), shared, (reply: StageReply) =>
    self.postMessage(reply),
  );
  const inbox: Exclude<StageMessage, Vocabulary>[] = [];
  let numReceived = 0;
  let received = Promise.withResolvers<void>();
  self.onmessage = ({ data }: MessageEvent<StageMessage>) => {
    inbox.push(data as (typeof inbox)[number]);
    numReceived = (numReceived + 1) | 0;
    received.resolve();
  };
  for (;;) {
    const bell = Atomics.load(words, StageWord.bell);
    await thread.takeTokens();
    for (let message = inbox.shift(); message; message = inbox.shift()) {
      await thread.handle(message);
      await thread.takeTokens();
    }
    if (!thread.isLive) await received.promise;
    else {
      await new Promise<void>((resolve) => setImmediate(resolve));
      if (numReceived === Atomics.load(words, StageWord.messages))
        Atomics.wait(words, StageWord.bell, bell, NAP_MS);
    }
    received = Promise.withResolvers();
  }
}
