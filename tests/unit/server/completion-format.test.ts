import { expect, setDefaultTimeout, test } from "bun:test";
import type { Logprob, PositionLogprobs, SubmittedRequest } from "../../../src/base/outputs.ts";
import { CompletionFormat } from "../../../src/server/replies/completion-format.ts";
import { merged } from "../../../src/server/replies/json-parts.ts";
import type { CompletionsRequest } from "../../../src/server/schemas/completions.ts";
import { TokenTable } from "../../../src/tokenizer/token-table.ts";

setDefaultTimeout(300_000);

/** Token i is the letter with that code. */
const TOKENS = new TokenTable({
  bytes: Uint8Array.from({ length: 128 }, (_, i) => i),
  starts: Int32Array.from({ length: 129 }, (_, i) => i),
  kinds: new Uint8Array(128),
});
const PROMPT_TOKENS = 2000;
const TOP = 20;
const N = 128;

/** Log-probabilities that count how often they are read. */
class CountedPosition extends Map<number, Logprob> {
  reads = 0;

  override [Symbol.iterator]() {
    this.reads++;
    return super[Symbol.iterator]();
  }
}

const counted = () =>
  new CountedPosition(
    Array.from({ length: TOP }, (_, i) => [97 + i, { logprob: -i, rank: i + 1, decodedToken: "" }]),
  );

async function reply(body: object) {
  const positions = [null, ...Array.from({ length: PROMPT_TOKENS - 1 }, counted)];
  const request = {
    promptTokenIds: new Array(PROMPT_TOKENS).fill(97),
    promptLogprobs: positions as readonly (PositionLogprobs | null)[],
    sampling: { logprobs: TOP },
  } as unknown as SubmittedRequest;
  const format = new CompletionFormat(
    { body, sampling: {} } as unknown as CompletionsRequest,
    { suffix: "x", model: "m" },
    TOKENS,
    async () => "a".repeat(PROMPT_TOKENS),
  );
  const prompt = await format.prompt(request);
  for (let choice = 0; choice < N; choice++)
    format.add({
      ...{ choice, request, prompt, text: "b", tokenIds: [98], scores: [{ id: 98, position: counted() }] },
      ...{ finishReason: "length", stopReason: null },
    });
  const usage = { prompt_tokens: PROMPT_TOKENS, completion_tokens: N, total_tokens: PROMPT_TOKENS + N };
  return { parts: merged(format.document(usage)), positions };
}

test("the log-probabilities of a prompt are written once for all its choices", async () => {
  const { parts, positions } = await reply({ prompt_logprobs: TOP });
  let length = 0;
  let longest = 0;
  for (const part of parts) {
    length += part.length;
    longest = Math.max(longest, part.length);
  }
  expect(length).toBeGreaterThan(100e6);
  expect(longest).toBeLessThan(128 * 1024);
  // Once for the echo and once for prompt_logprobs.
  expect(new Set(positions.slice(1).map((position) => position!.reads))).toEqual(new Set([2]));
});

test("the parts are a document", async () => {
  const { parts } = await reply({});
  const { choices, usage } = JSON.parse([...parts].join("")) as {
    choices: { text: string; logprobs: { text_offset: number[]; token_logprobs: unknown[] } }[];
    usage: object;
  };
  expect(usage).toMatchObject({ completion_tokens: N });
  expect(choices).toHaveLength(N);
  const { text, logprobs } = choices.at(-1)!;
  expect(text).toBe(`${"a".repeat(PROMPT_TOKENS)}b`);
  expect(logprobs.text_offset).toEqual(Array.from({ length: PROMPT_TOKENS + 1 }, (_, i) => i));
  expect(logprobs.token_logprobs.slice(0, 3)).toEqual([null, 0, 0]);
});
