import { messageOf, OctavoError, RequestFailedError } from "../base/errors.ts";
import { GrammarCache } from "../grammar/grammar-cache.ts";
import { encodeError } from "../threads/error-codec.ts";
import { createPromptEncoder, loadTokenizer } from "../tokenizer/load-text.ts";
import type { PromptEncoder } from "../tokenizer/prompt-encoder.ts";
import { packTokens } from "../tokenizer/token-table.ts";
import type {
  EncodedText,
  TextInfo,
  TextJobName,
  TextJobs,
  TextMessage,
  TextReply,
} from "./worker-protocol.ts";

declare const self: Worker;

type Jobs = {
  [K in Exclude<TextJobName, "open">]: (input: TextJobs[K]["input"]) => TextJobs[K]["output"];
};

self.onmessage = ({ data: { input } }: MessageEvent<TextMessage<"open">>) =>
  answer(async () => {
    const tokenizer = await loadTokenizer(input.folder, input.config);
    const encoder = createPromptEncoder(tokenizer, input.config);
    const jobs = jobsOf(encoder);
    self.onmessage = ({ data: { job, input } }: MessageEvent<TextMessage<keyof Jobs>>) =>
      answer(() => (jobs[job] as (input: unknown) => unknown)(input));
    return { chatTemplate: encoder.chatTemplate?.source } satisfies TextInfo;
  });

/** Posts the result of a job, or its error. */
async function answer(perform: () => unknown): Promise<void> {
  try {
    const output = await perform();
    const tokenIds = (output as Partial<EncodedText> | undefined)?.tokenIds;
    post({ output }, tokenIds && [tokenIds.buffer]);
  } catch (error) {
    post({ error: encodeError(error instanceof OctavoError ? error : textFailed(error)) });
  }
}

function post(reply: TextReply, transfer: ArrayBuffer[] = []): void {
  self.postMessage(reply, transfer);
}

function jobsOf(encoder: PromptEncoder): Jobs {
  const grammars = new GrammarCache();
  return {
    tokens: () => packTokens(encoder.tokenizer!),
    encode: ({ prompt, ...options }) => {
      const { tokenIds, ...encoded } = encoder.encode(prompt, options);
      return { ...encoded, tokenIds: new Int32Array(tokenIds) };
    },
    badWordTokens: (badWords) => encoder.badWordTokens(badWords),
    grammar: (outputs) => grammars.grammarOf(outputs),
    shapeGrammar: ({ shape, param }) => grammars.shapeGrammar(shape, param),
    tokenStrings: (ids) => Array.from(ids, (id) => encoder.tokenizer!.idToToken(id) ?? ""),
    detokenize: ({ ids, skipSpecialTokens }) =>
      encoder.tokenizer!.decode(Array.from(ids), { skipSpecialTokens }),
  };
}

function textFailed(cause: unknown): RequestFailedError {
  return new RequestFailedError(`preparing the text failed: ${messageOf(cause)}`, "text_failed", { cause });
}
