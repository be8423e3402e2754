import { LOGIT_EDIT_WORDS, type SampleRows, SLOT_WORDS, type SlotTensors } from "../src/backend/backend.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import { denseWeight } from "../src/backend/weight.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../src/base/sampling-params.ts";
import type { ModelConfig } from "../src/models/config.ts";
import { packSlotRecord } from "../src/runner/slot-record.ts";
import type { SlotSampling } from "../src/runner/types.ts";
import type { CaseMemory, KernelCase } from "./kernel-case.ts";

export const ROW_COUNTS = [1, 64, 256];

const NORM_EPS = 1e-6;
const PLAIN: SlotSampling = {
  ...{ temperature: 1, topP: 1, topK: 0, minP: 0 },
  ...{ repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, seed: 1n },
  ...{ logitBias: [], bannedTokens: [], bannedUntil: 0, allowedTokenIds: undefined, badWords: [] },
};
/** The ways to draw; `plain` ones need no logits. */
const MODES: Readonly<Record<string, { readonly sampling: SlotSampling; readonly plain: boolean }>> = {
  greedy: { sampling: { ...PLAIN, temperature: 0 }, plain: true },
  temperature: { sampling: PLAIN, plain: true },
  "top-k + top-p": { sampling: { ...PLAIN, topK: 50, topP: 0.9 }, plain: false },
};
/** Logits by the rank of a token: nearly equal ones are hardest to cut, a long tail is what text is like. */
const LOGITS: Readonly<Record<string, (rank: number) => number>> = {
  flat: (rank) => 1e-6 * (rank % 1009),
  Zipf: (rank) => -Math.log(rank + 1),
};
/** Room for the tokens that all launches of a case draw. */
const SLOT_TOKENS = 4096;
/** Ranks are spread over the vocabulary by a multiplier without common factors. */
const RANK_STEP = 48271;

/** Final norm, LM head and draw, as a decode step ends. The head's weights come from memory. */
export function headCases(
  memory: CaseMemory,
  modelName: string,
  { vocabSize, hiddenSize }: ModelConfig,
  rowCounts = ROW_COUNTS,
): KernelCase[] {
  const { backend } = memory;
  const bytes = 2 * vocabSize * hiddenSize;
  const operands = memory.coldSets(bytes);
  const heads: Tensor[] = [];
  return rowCounts.flatMap((rows) =>
    Object.entries(MODES).map(([mode, { sampling, plain }]) => ({
      ...{ group: `LM head and sampling ${modelName}`, name: `${mode}, ${rows} rows` },
      ...{ bytes, flops: rows * bytes, operands },
      prepare: () => {
        while (heads.length < operands) heads.push(memory.random(vocabSize, hiddenSize));
        const hidden = memory.random(rows, hiddenSize);
        const norm = { weight: memory.ones(hiddenSize), eps: NORM_EPS };
        const logits = memory.zeros("float32", rows, vocabSize);
        const { out, samples, slots } = drawing(memory, rows, vocabSize, sampling);
        const launch = (i: number) => {
          const weight = denseWeight(heads[i % operands]!);
          if (plain) return backend.drawTokens(out, hidden, { weight, norm }, logits, samples, slots);
          backend.linear(logits, hidden, weight, { norm });
          backend.processLogits(logits, logits, samples, slots);
          backend.sample(out, logits, logits, samples, slots);
        };
        for (let i = 0; i < operands; i++) launch(i);
        backend.tuneLinear?.([rows]);
        return launch;
      },
    })),
  );
}

/** The draw alone, from logits of a known shape. A step has just written them; many rows outgrow the cache anyway. */
export function samplingCases(memory: CaseMemory, vocabSize: number, rowCounts = ROW_COUNTS): KernelCase[] {
  const { backend } = memory;
  return rowCounts.flatMap((rows) =>
    Object.entries(LOGITS).flatMap(([shape, logitOf]) =>
      Object.entries(MODES).map(([mode, { sampling }]) => ({
        ...{ group: "sampling", name: `${mode}, ${shape} logits, ${rows} rows` },
        ...{ bytes: 4 * rows * vocabSize, flops: 0, operands: 1 },
        prepare: () => {
          const logits = memory.empty("float32", rows, vocabSize);
          const row = Float32Array.from({ length: vocabSize }, (_, i) =>
            logitOf((i * RANK_STEP) % vocabSize),
          );
          for (let i = 0; i < rows; i++) backend.upload(logits.rows(i, i + 1), row);
          const { out, samples, slots } = drawing(memory, rows, vocabSize, sampling);
          return () => {
            backend.processLogits(logits, logits, samples, slots);
            backend.sample(out, logits, logits, samples, slots);
          };
        },
      })),
    ),
  );
}

/** What a draw for each row reads and writes besides logits. Each row has a slot of its own. */
interface Drawing {
  readonly out: Tensor;
  readonly samples: SampleRows;
  readonly slots: SlotTensors;
}

function drawing(memory: CaseMemory, rows: number, vocabSize: number, sampling: SlotSampling): Drawing {
  const { backend } = memory;
  const record = packSlotRecord(sampling, vocabSize);
  const params = memory.empty("uint32", rows, SLOT_WORDS);
  for (let i = 0; i < rows; i++) backend.upload(params.rows(i, i + 1), record.params);
  const numbers = Int32Array.from({ length: rows }, (_, i) => i);
  const slots: SlotTensors = {
    ...{
      params,
      tokens: memory.zeros("int32", rows, SLOT_TOKENS),
      blockTables: memory.zeros("int32", rows, 1),
    },
    lengths: memory.ints(numbers.map(() => 1)),
    numComputedTokens: memory.zeros("int32", rows),
    edits: memory.zeros("uint32", rows, MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS),
    badWords: memory.zeros("uint32", rows, MAX_BAD_WORD_TOKENS),
    allowed: memory.zeros("uint32", rows, Math.ceil(vocabSize / 32)),
    counts: memory.zeros("uint32", rows, vocabSize),
  };
  const samples: SampleRows = {
    slots: memory.ints(numbers),
    positions: memory.zeros("int32", rows),
    tokenIndices: memory.ints(numbers),
  };
  return { out: memory.empty("int32", rows), samples, slots };
}
