import { ATTENTION_TILE } from "../../../src/backend/attention-spec.ts";
import { type AttentionShape, AttentionStep } from "../attention-step.ts";
import type { Case } from "../backend.contract.ts";
import { batchTensors, type RowShape, raggedBatch } from "../ragged-batch.ts";
import { attendCase, type BatchName } from "./attend.ts";

type Form = Pick<AttentionShape, "queryScales" | "softCap" | "sinks" | "scale">;

const FORMS: readonly Form[] = [
  { softCap: 2 },
  { sinks: true },
  { softCap: 1.5, sinks: true, queryScales: true },
  { softCap: 50, scale: 0.08 },
  { queryScales: true },
  { sinks: true, scale: 0.1 },
];
const NAMES: readonly BatchName[] = ["long decodes", "chunk with cached prefix", "mixed"];
const HEADS = [
  [4, 2, 64],
  [8, 1, 128],
  [4, 2, 256],
  [16, 1, 64],
] as const;
const WINDOWS = [0, 5, 100, 17];
const SCALES = [undefined, { keyScale: 0.037, valueScale: 0.21 }];

const VALUES = { normsValues: true } as const;
const READER = { readsOnly: true } as const;
/** Values with norms, caches that are only read, and the largest heads, on their own and together. */
const LARGE_HEADS: readonly (readonly [BatchName, number, number, number, Partial<AttentionShape>])[] = [
  ["mixed", 4, 2, 64, { ...VALUES, window: 17 }],
  ["short decodes", 8, 1, 256, { ...VALUES, window: 5, rotaryDim: 64 }],
  ["decode, chunk and prompt", 4, 2, 128, { ...VALUES, scales: SCALES[1]! }],
  ["mixed", 4, 2, 64, { ...READER, window: 17 }],
  ["long decodes", 8, 1, 256, READER],
  ["decode, chunk and prompt", 4, 2, 128, { ...READER, headNorm: false, rotaryDim: 0, scales: SCALES[1]! }],
  ["short decodes", 4, 2, 512, { rotaryDim: 256 }],
  ["long decodes", 8, 1, 512, { headNorm: false, blockSize: 64 }],
  ["mixed", 8, 2, 512, { ...VALUES, window: 100 }],
  ["chunk with cached prefix", 16, 1, 512, VALUES],
  ["decode, chunk and prompt", 4, 1, 512, READER],
  ["mixed", 4, 2, 512, { ...VALUES, scales: SCALES[1]! }],
  ["mixed", 4, 2, 512, { ...READER, scales: SCALES[1]!, window: 33 }],
];

/** What layers of some models have besides: capped scores, sinks, scaled queries, no rotation; with all that they may go with. */
export function attendFormsCases(addCase: Case): void {
  for (const [i, [numHeads, numKvHeads, headDim]] of HEADS.entries()) {
    for (const [j, form] of FORMS.entries()) {
      const turn = i + j;
      const scales = SCALES[turn % 2];
      attendCase(addCase, NAMES[turn % NAMES.length]!, {
        ...{ numHeads, numKvHeads, headDim, blockSize: j % 2 === 0 ? 16 : 64, headNorm: turn % 3 === 0 },
        ...{ rotaryDim: [headDim, 0, headDim / 2, headDim][(i + 2 * j) % 4]!, window: WINDOWS[(i + j) % 4]! },
        ...form,
        ...(scales && { scales }),
      });
    }
  }
  for (const [name, numHeads, numKvHeads, headDim] of [
    ["one decode", 4, 2, 64],
    ["decode, chunk and prompt", 3, 1, 96],
    ["many queries", 2, 1, 128],
    ["tokens for all of a GPU", 1, 1, 256],
  ] as const) {
    const heads = { numHeads, numKvHeads, headDim, rotaryDim: headDim, blockSize: 16, headNorm: false };
    attendCase(addCase, name, { ...heads, window: 0, softCap: 2, sinks: true, queryScales: true });
    attendCase(addCase, name, { ...heads, window: 5, rotaryDim: 0 });
  }
  for (const [name, numHeads, numKvHeads, headDim, form] of LARGE_HEADS) {
    const heads = { numHeads, numKvHeads, headDim, rotaryDim: headDim, blockSize: 16, headNorm: true };
    attendCase(addCase, name, { ...heads, window: 0, scale: 1 / 24, ...form });
  }
  unreadCases(addCase);
}

/** An entry that no kernel may follow. */
const NO_BLOCK = 0x7fffffff;
const LONG_ROWS: readonly RowShape[] = [
  [700, 1],
  [129, 1],
  [1000, 1],
  [650, 40],
  [400, 7],
];

/** Blocks far enough before a window may be anybody's. */
function unreadCases(addCase: Case): void {
  for (const [headDim, window, scales] of [
    [64, 5, undefined],
    [128, 100, undefined],
    [256, 17, undefined],
    [96, 1, undefined],
    [128, 33, SCALES[1]],
  ] as const) {
    const heads = { numHeads: 4, numKvHeads: 2, headDim, rotaryDim: headDim, blockSize: 16, headNorm: false };
    const title = `blocks before a window of ${window} are not read, heads of ${headDim}${scales ? ", eight bits" : ""}`;
    addCase("attend", title, (fixture) => {
      const batch = raggedBatch(fixture, LONG_ROWS, heads.blockSize);
      const step = new AttentionStep(fixture, batch, { ...heads, window, ...(scales && { scales }) });
      const blockTables = batch.blockTables.slice();
      for (const [row, [contextLen, queryLen]] of LONG_ROWS.entries()) {
        const firstRead = contextLen - queryLen - window + 1 - (ATTENTION_TILE - 1);
        const unread = Math.max(0, Math.floor(firstRead / heads.blockSize));
        blockTables.fill(
          NO_BLOCK,
          batch.rowSlots[row]! * batch.maxBlocks,
          batch.rowSlots[row]! * batch.maxBlocks + unread,
        );
      }
      const tensors = batchTensors(fixture, { ...batch, blockTables });
      fixture.backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec);
      step.check();
    });
  }
}
