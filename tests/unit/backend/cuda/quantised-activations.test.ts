import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import type { Fp8Weight, GroupedWeight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { fakeWeights } from "./fake-weights.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const machine = new FakeMachine();
afterAll(() => machine[Symbol.dispose]());
const on = machine.backend("bfloat16", { quantiseActivations: true });
const { cuda } = machine;
const { bf16 } = new FakeTensors();
const { fp8, prepared } = fakeWeights(on);
const SILU = { kind: "silu", gated: true } as const;

describe("activations in eight bits", () => {
  const run = (weight: Fp8Weight | GroupedWeight, tokens: number, fusion: LinearFusion = {}) => {
    const [n, k] = weight.shape;
    const [x, out] = [bf16(tokens, k), bf16(tokens, fusion.activation?.gated ? n / 2 : n)];
    const before = cuda.launches.length;
    on.linear(out, x, weight, fusion);
    return { x, out, all: cuda.launches.slice(before) };
  };

  test("are made by a kernel of their own, norm and all, and multiplied in another", () => {
    const weight = prepared(fp8(4096, 1024));
    const norm = { weight: bf16(1024), eps: 1e-6 };
    const { x, out, all } = run(weight, 64, { norm, activation: SILU });
    const [quantised, multiplied] = all;
    expect(quantised).toMatchObject({ entry: "quantise_tokens", grid: [64, 1, 1], block: [64, 1, 1] });
    const args = namedArguments(quantised!);
    expect(args).toMatchObject({ x: x.address, gamma: norm.weight.address, width: 1024 });
    expect(multiplied).toMatchObject({ entry: "linear_float8", grid: [64, 1, 2], block: [192, 1, 1] });
    expect(namedArguments(multiplied!)).toMatchObject({
      ...{
        out: out.address,
        factors: weight.scales.address,
        x_factors: args["factors"],
        bias: 0,
        residual: 0,
      },
      ...{ tokens: 64, outputs: 2048, row_tiles: 64, k_tiles: 8 },
    });
    expect(all.length).toBe(2);
  });

  test("of a prompt are multiplied in large tiles, of which few row tiles are computed at once", () => {
    const { all } = run(prepared(fp8(4096, 1024)), 4096);
    // 16 token tiles, and 32 row tiles of 128 in so many rounds as keep 132 multiprocessors at work.
    expect(all[1]).toMatchObject({ entry: "linear_float8", grid: [8, 16, 1], block: [320, 1, 1] });
  });

  test.each([
    ["few tokens", () => fp8(256, 512), 8, "linear_quantised"],
    ["weights in blocks", () => fp8(256, 512, { blockRows: 128 }), 16, "linear_quantised_wgmma"],
    ["outputs that are no whole tiles", () => fp8(72, 512), 16, "linear_quantised"],
  ])("not of %s", (_, make, tokens, entry) => {
    expect(run(prepared(make()), tokens).all.at(-1)!.entry).toBe(entry);
  });
});
