import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { type QuantisedForm, ScaleKind } from "../../../../src/backend/cuda/ops/quantised-form.ts";
import { planFew } from "../../../../src/backend/cuda/ops/quantised-linear.ts";
import { planSplit } from "../../../../src/backend/cuda/ops/quantised-split.ts";
import { planTile } from "../../../../src/backend/cuda/ops/quantised-wgmma.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { HOPPER_SHARED_BYTES, MULTIPROCESSORS } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const { bf16 } = new FakeTensors();
const INT4: QuantisedForm = {
  ...{ bits: 4, float8: false, scales: ScaleKind.groupHalves, ordered: true },
  ...{ factors: bf16(1), zeros: bf16(1), units: undefined },
  ...{ groupSize: 128, groups: 96, blockRows: 1 },
};
const GPU = {
  ...{ dtype: "bfloat16", smCount: MULTIPROCESSORS, encodeTensorMap: () => new Uint8Array(128) },
  ...{ sharedBytesPerBlock: HOPPER_SHARED_BYTES, sharedBytesPerSm: 228 * 1024 },
} as const;

describe("a plan of a quantised product", () => {
  const shape = {
    outFeatures: 4096,
    inFeatures: 12288,
    tokens: 8,
    norm: false,
    gated: false,
    floatOut: false,
  };

  test("takes x in segments, of which two fit, and keeps the sums of all tiles", () => {
    const plan = planFew(shape, INT4, GPU)!;
    expect(plan).toMatchObject({
      segment: 4096,
      buffers: 2,
      kept: 2,
      blocks: MULTIPROCESSORS,
      tiles: 256,
    });
    expect(plan.sharedBytes).toBeLessThanOrEqual(HOPPER_SHARED_BYTES);
    expect(planFew({ ...shape, tokens: 1 }, INT4, GPU)).toMatchObject({ segment: 12288, warps: 16 });
    expect(planFew({ ...shape, tokens: 9 }, INT4, GPU)).toMatchObject({ warps: 8, warpBlocks: 2 });
  });

  test("has tiles of one strip where there would be too few of two", () => {
    const small = { ...shape, outFeatures: 1024, inFeatures: 3072 };
    expect(planFew(small, INT4, GPU)).toMatchObject({ strips: 1, tiles: 128, blocks: 128 });
  });

  test("is none for a GPU without room, for many tokens and for halves that are no whole strips", () => {
    expect(
      planFew({ ...shape, tokens: 32 }, INT4, { ...GPU, sharedBytesPerBlock: 48 * 1024 }),
    ).toBeUndefined();
    expect(planFew({ ...shape, tokens: 33 }, INT4, GPU)).toBeUndefined();
    expect(planFew({ ...shape, outFeatures: 4104, gated: true }, INT4, GPU)).toBeUndefined();
  });

  test("splits columns among as many CTAs as x needs", () => {
    const few = { ...shape, tokens: 16 };
    // 15 clusters of 16 find eight multiprocessors together; 256 tiles are at most nine for each of their teams.
    expect(planSplit(few, INT4, GPU)).toMatchObject({
      ...{
        splits: 4,
        clusterTeams: 2,
        teams: 30,
        tiles: 256,
        slots: 3,
        columns: 3072,
        columnParts: 4,
        stages: 3,
      },
    });
    expect(planSplit({ ...few, inFeatures: 256 }, INT4, GPU)).toMatchObject({
      splits: 2,
      clusterTeams: 2,
      teams: 60,
    });
    expect(planSplit({ ...few, tokens: 8 }, INT4, GPU)).toMatchObject({
      ...{ splits: 2, clusterTeams: 1, teams: 66, tokenBlocks: 1, stages: 4 },
    });
    // A cluster is whole: one of its teams has no tile.
    expect(planSplit({ ...few, outFeatures: 40, inFeatures: 256 }, INT4, GPU)).toMatchObject({
      ...{ splits: 2, clusterTeams: 2, teams: 4, tiles: 3, slots: 1, columns: 128, columnParts: 1 },
    });
  });

  test.each([
    ["one token", { ...shape, tokens: 1 }, INT4],
    ["more tokens", { ...shape, tokens: 17 }, INT4],
    ["8 bits", shape, { ...INT4, bits: 8 }],
    ["superblocks", shape, { ...INT4, scales: ScaleKind.steps }],
    ["columns that are one block", { ...shape, inFeatures: 128 }, INT4],
    ["halves that are no whole strips", { ...shape, outFeatures: 4104, gated: true }, INT4],
    ["an order that is the canonical one", shape, { ...INT4, ordered: false }],
  ] as const)("splits none of %s", (_, some, form) => {
    expect(planSplit(some, form, GPU)).toBeUndefined();
  });

  test("of a tile splits columns where rows alone leave multiprocessors idle", () => {
    const some = { ...shape, activation: -1 };
    expect(planTile({ ...some, tokens: 64 }, INT4, GPU)).toMatchObject({
      tokens: 64,
      splits: 4,
      residency: 2,
    });
    expect(planTile({ ...some, tokens: 256 }, INT4, GPU)).toMatchObject({
      tokens: 96,
      tokenTiles: 3,
      residency: 1,
    });
    const rows = { ...INT4, scales: ScaleKind.rowFloats, groups: 1, groupSize: 12288 };
    expect(planTile({ ...some, tokens: 256 }, rows, GPU)).toMatchObject({ tokens: 128, tokenTiles: 2 });
  });
});
