import { createSHA256, type IHasher } from "hash-wasm";
import type { ResolvedSamplingParams } from "../../../src/base/sampling-params.ts";
import { Engine } from "../../../src/engine/engine.ts";
import type { EngineDeps } from "../../../src/engine/engine-deps.ts";
import { checkRequest, type RequestDraft } from "../../../src/engine/request.ts";
import { FakeRunner, type FakeRunnerOptions } from "../../simulation/fake-runner.ts";
import { EOS, makeSeed } from "../../simulation/oracle.ts";
import { Outcomes } from "../../simulation/outcomes.ts";

export const sha256: IHasher = await createSHA256();

export const range = (start: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => (start + i) % 19);

let nextRequest = 0;

/** Continues `promptTokenIds` greedily past any end-of-sequence token, by 4 tokens unless said otherwise. */
export function makeRequest(
  promptTokenIds: readonly number[],
  sampling: Partial<ResolvedSamplingParams> = {},
  fields: Partial<RequestDraft> = {},
): RequestDraft {
  const index = nextRequest++;
  return {
    ...{ id: `r${index}`, promptTokenIds, arrivalTime: 0, ...fields },
    sampling: {
      ...{ n: 1, temperature: 1, topP: 1, topK: 0, minP: 0, maxTokens: 4, minTokens: 0, stop: [] },
      ...{ presencePenalty: 0, frequencyPenalty: 0, repetitionPenalty: 1, seed: makeSeed(index, 0) },
      ...{ stopTokenIds: [], includeStopStrInOutput: false, ignoreEos: true, detokenize: true },
      ...{ logprobs: undefined, promptLogprobs: undefined, logitBias: [], allowedTokenIds: undefined },
      ...{
        isMaxTokensDefault: false,
        badWords: [],
        skipSpecialTokens: true,
        outputKind: "delta" as const,
        ...sampling,
      },
    },
  };
}

/** An engine on a fake runner: 16 blocks of 4 tokens, 4 sequences, 32 tokens a step. */
export function makeEngine(
  deps: Partial<EngineDeps> = {},
  runnerOptions: Partial<FakeRunnerOptions> = {},
): { engine: Engine; runner: FakeRunner } {
  const maxNumSeqs = deps.maxNumSeqs ?? 4;
  const maxNumBatchedTokens = deps.maxNumBatchedTokens ?? 32;
  const runner = new FakeRunner({
    ...{ numBlocks: 16, blockSize: 4, maxModelLen: 64, maxNumSeqs, maxNumBatchedTokens },
    ...{ execution: "lazy", ...runnerOptions },
  });
  let now = 0;
  const engine = new Engine({
    ...{ runner, maxNumSeqs, maxNumBatchedTokens, hasher: sha256, enablePrefixCaching: true },
    ...{ overlap: false, eosTokenIds: [EOS], clock: () => now++, nextSeed: () => 0n },
    ...{ debugInvariants: true, ...deps },
  });
  return { engine, runner };
}

/** Checks and queues a request. */
export function add(engine: Engine, request: RequestDraft): void {
  engine.add(checkRequest(request, engine.limits));
}

/** Steps until nothing is left to do. */
export function drain(engine: Engine, outcomes = new Outcomes()): Outcomes {
  while (engine.hasUnfinished) outcomes.take(engine.step());
  return outcomes;
}
