import type { AsyncLLM } from "../../src/async/async-llm.ts";
import type { FinishReason, SubmittedRequest } from "../../src/base/outputs.ts";
import { replying } from "./disturbed-llm.ts";

export interface Saying {
  readonly text: string;
  /** Default "stop". */
  readonly finishReason?: FinishReason;
  /** The stop string that ended it. Default none. */
  readonly stopReason?: string | null;
  /** Tokens a delta. Default 1. */
  readonly tokens?: number;
}

/** A model that says given texts, token by token, as the engine would hand them out. */
export function saying(
  llm: AsyncLLM,
  reply: (request: SubmittedRequest) => string | Saying,
): Partial<AsyncLLM> {
  return replying(llm, async function* (stream) {
    for (const request of stream.requests) {
      const given = reply(request);
      const said: Saying = typeof given === "string" ? { text: given } : given;
      const { text, finishReason = "stop", stopReason = null, tokens = 1 } = said;
      const tokenIds =
        text === "" ? [] : (await llm.tokenize({ prompt: text }, { addSpecialTokens: false })).tokenIds;
      const table = await llm.tokenTable();
      const { skipSpecialTokens, n } = request.sampling;
      for (let index = 0; index < n; index++) {
        const decoder = new TextDecoder();
        for (let at = 0; at < tokenIds.length || at === 0; at += tokens) {
          const ids = tokenIds.slice(at, at + tokens);
          const shown = ids.filter((id) => !(skipSpecialTokens && table.isSpecial(id)));
          const isLast = at + tokens >= tokenIds.length;
          yield {
            ...{ requestId: request.id, index, tokenIds: ids },
            text: decoder.decode(Buffer.concat(shown.map((id) => table.bytes(id))), { stream: !isLast }),
            ...(isLast ? { finishReason, stopReason } : { finishReason: null, stopReason: null }),
          };
        }
      }
    }
  });
}
