import type { AttentionShape } from "../attention-step.ts";
import type { Case } from "../backend.contract.ts";
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
}
