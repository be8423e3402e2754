import { MAX_BAD_WORD_TOKENS } from "./backend/backend.ts";
import { InvalidRequestError } from "./base/errors.ts";
import {
  type ResolvedSamplingParams,
  resolveSamplingParams,
  type SamplingLimits,
  type SamplingParams,
} from "./base/sampling-params.ts";
import type { EngineRequest } from "./engine/request.ts";
import type { Tokenizer } from "./tokenizer/tokenizer.ts";

/** What to continue: text, or token ids. */
export type Prompt = string | TextPrompt | TokensPrompt;

export interface TextPrompt {
  readonly prompt: string;
  /** Requests share cached prefixes only with requests of the same salt. */
  readonly cacheSalt?: string;
}

export interface TokensPrompt {
  readonly promptTokenIds: readonly number[];
  readonly cacheSalt?: string;
}

/** Turns prompts and sampling parameters from outside into requests that the engine can trust. */
export class RequestBuilder {
  constructor(
    private readonly tokenizer: Tokenizer | undefined,
    private readonly limits: SamplingLimits,
    /** Default sampling of the model. */
    private readonly defaults: SamplingParams,
  ) {}

  /**
   * @throws InvalidRequestError naming the parameter: an empty prompt, text without a tokenizer, or sampling that is out
   * of range. Token ids are checked by the engine.
   */
  build(
    id: string,
    prompt: Prompt,
    params: SamplingParams,
    arrivalTime: number,
    options: { readonly addSpecialTokens?: boolean; readonly logits?: boolean } = {},
  ): EngineRequest {
    const sampling = this.sampling(params);
    const { text, tokenIds, cacheSalt } = this.#tokens(prompt, options.addSpecialTokens ?? true);
    const badWordTokens = this.#badWordTokens(sampling.badWords);
    return {
      ...{ id, promptTokenIds: tokenIds, sampling, badWordTokens, arrivalTime },
      ...(text !== undefined && { prompt: text }),
      ...(cacheSalt !== undefined && { cacheSalt }),
      ...(options.logits && { logits: true }),
    };
  }

  /** Validates sampling alone, so that a batch can be refused before any of it is tokenized. */
  sampling(params: SamplingParams): ResolvedSamplingParams {
    const sampling = resolveSamplingParams(params, this.limits, this.defaults);
    if (this.tokenizer === undefined) {
      if (sampling.stop.length > 0) throw new InvalidRequestError("stop", "stop strings need a tokenizer");
      if (sampling.badWords.length > 0)
        throw new InvalidRequestError("badWords", "bad words need a tokenizer");
    }
    return sampling;
  }

  #tokens(prompt: Prompt, addSpecialTokens: boolean) {
    const given = typeof prompt === "string" ? { prompt } : prompt;
    if (typeof given !== "object" || given === null)
      throw new InvalidRequestError("prompt", "a prompt must be a string, { prompt } or { promptTokenIds }");
    const cacheSalt = given.cacheSalt;
    if (
      cacheSalt !== undefined &&
      (typeof cacheSalt !== "string" || cacheSalt === "" || cacheSalt.length > 256)
    )
      throw new InvalidRequestError("cacheSalt", "cacheSalt must be a string of 1 to 256 characters");
    if ("promptTokenIds" in given) {
      if (!Array.isArray(given.promptTokenIds))
        throw new InvalidRequestError("promptTokenIds", "promptTokenIds must be a list of token ids");
      return { text: undefined, tokenIds: given.promptTokenIds, cacheSalt };
    }
    const text = given.prompt;
    if (typeof text !== "string")
      throw new InvalidRequestError("prompt", "a prompt must be a string, { prompt } or { promptTokenIds }");
    if (this.tokenizer === undefined)
      throw new InvalidRequestError("prompt", "text prompts need a tokenizer; give promptTokenIds instead");
    if (!text.isWellFormed())
      throw new InvalidRequestError("prompt", "the prompt holds half of a surrogate pair", "invalid_unicode");
    if (text === "") throw new InvalidRequestError("prompt", "the prompt is empty", "empty_prompt");
    return { text, tokenIds: this.tokenizer.encode(text, { addSpecialTokens }), cacheSalt };
  }

  /** Token sequences of each bad word, at the start of a text and after a space. */
  #badWordTokens(badWords: readonly string[]): readonly (readonly number[])[] {
    const sequences: number[][] = [];
    for (const word of badWords) {
      const bare = this.tokenizer!.encode(word.trimStart(), { addSpecialTokens: false });
      const spaced = this.tokenizer!.encode(` ${word.trimStart()}`, { addSpecialTokens: false });
      sequences.push(bare);
      if (spaced.join() !== bare.join()) sequences.push(spaced);
    }
    const entries = sequences.reduce((sum, tokens) => sum + tokens.length + 1, 1);
    if (entries > MAX_BAD_WORD_TOKENS) {
      const message = `badWords come to ${entries} tokens, at most ${MAX_BAD_WORD_TOKENS} are allowed`;
      throw new InvalidRequestError("badWords", message);
    }
    return sequences;
  }
}
