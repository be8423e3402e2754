import {
  type BatchTensors,
  type KvScales,
  type LayerCache,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
  type StepBatch,
} from "../../../../src/backend/backend.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../../../src/base/sampling-params.ts";
import { FakeTensors } from "./fake-tensors.ts";

/** A step's operands, in blocks of 16 tokens; nothing is behind them. */
export class FakeOperands extends FakeTensors {
  /** Rows of one token, then prompts of so many. */
  readonly batch = (extents: { decodeRows: number; prefill: readonly number[] }): BatchTensors => {
    const { decodeRows, prefill } = extents;
    const numTokens = decodeRows + prefill.reduce((a, b) => a + b, 0);
    const numRows = decodeRows + prefill.length;
    return {
      ...{ numTokens, numRows, decodeRows, blockSize: 16 },
      maxQueryLen: Math.max(1, ...prefill),
      ...{ tokenIds: this.i32(numTokens), positions: this.i32(numTokens), slotMapping: this.i32(numTokens) },
      ...{ cuSeqlensQ: this.i32(numRows + 1), contextLens: this.i32(numRows), rowSlots: this.i32(numRows) },
      blockTables: this.i32(300, 64),
    };
  };

  /** The batch of so many groups of layers, before `prepareBatch`. */
  readonly stepBatch = (batch: BatchTensors, groups = 1): StepBatch => ({
    ...batch,
    slotMappings: this.i32(groups, batch.numTokens + 7),
  });

  readonly slotTables = (vocab: number, slots = 300, groups = 1): SlotTensors => ({
    tokens: this.i32(slots, 1025),
    lengths: this.i32(slots),
    numComputedTokens: this.i32(slots),
    blockTables: this.i32(groups, slots, 64),
    params: this.of("uint32", slots, SLOT_WORDS),
    edits: this.of("uint32", slots, MAX_LOGIT_EDITS, 3),
    badWords: this.of("uint32", slots, MAX_BAD_WORD_TOKENS),
    allowed: this.of("uint32", slots, Math.ceil(vocab / 32)),
    counts: this.of("uint32", slots, vocab),
  });

  readonly sampleRows = (count: number): SampleRows => {
    return { slots: this.i32(count), positions: this.i32(count), tokenIndices: this.i32(count) };
  };

  readonly layerCache = (kvHeads: number, headDim: number): LayerCache => {
    return { keys: this.bf16(100, kvHeads, 16, headDim), values: this.bf16(100, kvHeads, 16, headDim) };
  };

  /** The same in eight bits. */
  readonly float8Cache = (kvHeads: number, headDim: number, scales: KvScales = {}): LayerCache => {
    const blocks = () => this.of("float8_e4m3", 100, kvHeads, 16, headDim);
    return { keys: blocks(), values: blocks(), ...scales };
  };
}
