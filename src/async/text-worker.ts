import { messageOf, OctavoError, RequestFailedError } from "../base/errors.ts";
import { createPromptEncoder, loadTokenizer } from "../tokenizer/load-text.ts";
import type { PromptEncoder } from "../tokenizer/prompt-encoder.ts";
import { encodeError } from "./error-codec.ts";
import type {
  EncodedText,
  OpenTextMessage,
  TextJobName,
  TextJobs,
  TextMessage,
  TextReply,
} from "./worker-protocol.ts";

declare const self: Worker;

type Jobs = { [K in TextJobName]: (input: TextJobs[K]["input"]) => TextJobs[K]["output"] };

self.onmessage = ({ data: { folder, config } }: MessageEvent<OpenTextMessage>) => {
  const opened = loadTokenizer(folder, config).then((tokenizer) =>
    jobs(createPromptEncoder(tokenizer, config)),
  );
  // Each job reports that loading failed.
  opened.catch(() => {});
  self.onmessage = async ({ data: { call, job, input } }: MessageEvent<TextMessage>) => {
    try {
      const perform = (await opened)[job] as (input: unknown) => unknown;
      const output = perform(input);
      post({ call, output }, job === "encode" ? [(output as EncodedText).tokenIds.buffer] : []);
    } catch (error) {
      post({ call, error: encodeError(error instanceof OctavoError ? error : textFailed(error)) });
    }
  };
};

function post(reply: TextReply, transfer: ArrayBuffer[] = []): void {
  self.postMessage(reply, transfer);
}

function jobs(encoder: PromptEncoder): Jobs {
  return {
    open: () => undefined,
    encode: ({ prompt, addSpecialTokens }) => {
      const { tokenIds, ...encoded } = encoder.encode(prompt, addSpecialTokens);
      return { ...encoded, tokenIds: new Int32Array(tokenIds) };
    },
    badWordTokens: (badWords) => encoder.badWordTokens(badWords),
    tokenStrings: (ids) => Array.from(ids, (id) => encoder.tokenizer!.idToToken(id) ?? ""),
    detokenize: ({ ids, skipSpecialTokens }) =>
      encoder.tokenizer!.decode(Array.from(ids), { skipSpecialTokens }),
  };
}

function textFailed(cause: unknown): RequestFailedError {
  return new RequestFailedError(`preparing the text failed: ${messageOf(cause)}`, "text_failed", { cause });
}
