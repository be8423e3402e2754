import { expect, setDefaultTimeout, test } from "bun:test";
import { LLAMA, LLAMA3_SCALING, readConfig } from "./read-config.ts";

setDefaultTimeout(300_000);

test("YaRN's positions are those that it stretches training to", () => {
  const positions = (fields: object) => readConfig({ ...LLAMA, ...fields }).maxPositionEmbeddings;
  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
  expect(positions({ max_position_embeddings: 32768, rope_scaling: yarn })).toBe(131072);
  expect(positions({ max_position_embeddings: 40960, rope_parameters: yarn })).toBe(131072);
  expect(positions({ max_position_embeddings: 262144, rope_scaling: yarn })).toBe(262144);
  expect(positions({ max_position_embeddings: 8192, rope_scaling: { type: "yarn", factor: 2 } })).toBe(16384);
  const older = { original_max_position_embeddings: 4096, rope_scaling: { type: "yarn", factor: 2 } };
  expect(positions({ max_position_embeddings: 1024, ...older })).toBe(8192);
  expect(positions({ max_position_embeddings: 4096, rope_scaling: { type: "linear", factor: 4 } })).toBe(
    4096,
  );
});

test("longrope, dynamic and proportional rope", () => {
  const factors = (last: number) => Array.from({ length: 48 }, (_, i) => 1 + (last * i) / 47);
  const lists = { short_factor: factors(1), long_factor: factors(40) };
  const phi = { head_dim: 128, partial_rotary_factor: 0.75, original_max_position_embeddings: 4096 };
  const longrope = (fields: object) =>
    readConfig({ ...LLAMA, ...phi, rope_scaling: { type: "longrope", ...lists, ...fields } }).layerRopes[0]!
      .scaling;
  const common = { kind: "longrope", shortFactors: factors(1), longFactors: factors(40) };
  const original = { originalMaxPositionEmbeddings: 4096 };
  expect(longrope({})).toEqual({ ...common, ...original, attentionFactor: 1.1902380714238083 } as never);
  for (const type of ["su", "yarn"]) expect(longrope({ type })).toEqual(longrope({}));
  expect(longrope({ attention_factor: 1.5 })).toMatchObject({ attentionFactor: 1.5 });
  expect(longrope({ factor: 1 })).toMatchObject({ attentionFactor: 1 });
  for (const [name, list] of [
    ["short_factor", factors(1).slice(1)],
    ["long_factor", [...factors(40), 1]],
    ["long_factor", "none"],
    ["short_factor", [...factors(1).slice(1), 0]],
  ] as const)
    expect(() => longrope({ [name]: list })).toThrow(`rope_scaling.${name} must be a list of`);

  const dynamic = readConfig({
    ...LLAMA,
    max_position_embeddings: 2048,
    rope_scaling: { type: "dynamic", factor: 4 },
  });
  expect(dynamic.layerRopes[0]!.scaling).toEqual({
    ...{ kind: "dynamic", factor: 4, originalMaxPositionEmbeddings: 2048 },
  });
  expect(dynamic.maxPositionEmbeddings).toBe(8192);
  const rope_parameters = { rope_type: "proportional", rope_theta: 1e6, partial_rotary_factor: 0.25 };
  const { rope_theta: _, ...silent } = LLAMA;
  expect(readConfig({ ...silent, rope_parameters }).layerRopes[0]!).toEqual({
    ...{ theta: 1e6, partialRotaryFactor: 0.25, scaling: { kind: "proportional", factor: 1 } },
  });
  const yarn = { rope_type: "yarn", factor: 32, truncate: false };
  expect(readConfig({ ...LLAMA, rope_scaling: yarn }).layerRopes[0]!.scaling).toMatchObject({
    truncate: false,
  });
});

test("ropes that differ between layers", () => {
  const types = {
    layer_types: ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
  };
  const { rope_theta: _, ...silent } = { ...LLAMA, ...types, sliding_window: 1024 };
  const rope_parameters = {
    full_attention: { rope_type: "linear", rope_theta: 1e6, factor: 8 },
    sliding_attention: { rope_type: "default", rope_theta: 1e4 },
  };
  const recent = readConfig({ ...silent, rope_parameters });
  const [sliding, full] = recent.layerRopes;
  expect(sliding).toEqual({ theta: 1e4, partialRotaryFactor: 1, scaling: { kind: "none" } });
  expect(full).toEqual({ theta: 1e6, partialRotaryFactor: 1, scaling: { kind: "linear", factor: 8 } });
  // What is the same is one object.
  expect(recent.layerRopes[2]).toBe(sliding!);
  expect(recent.layerRopes[3]).toBe(full!);
  const rope_scaling = { rope_type: "linear", factor: 8 };
  const old = readConfig({ ...silent, rope_theta: 1e6, rope_local_base_freq: 1e4, rope_scaling });
  expect(old.layerRopes).toEqual(recent.layerRopes);
});

test("scaling of queries by position", () => {
  const scaling = {
    rope_type: "default",
    llama_4_scaling_beta: 0.1,
    original_max_position_embeddings: 16384,
  };
  const queryScaling = { beta: 0.1, originalMaxPositionEmbeddings: 16384 };
  expect(readConfig({ ...LLAMA, rope_parameters: scaling })).toMatchObject({ queryScaling });
  expect(readConfig({ ...LLAMA, rope_scaling: scaling })).toMatchObject({ queryScaling });
  expect(readConfig(LLAMA).queryScaling).toBeUndefined();
});

test("rope scaling", () => {
  const scaling = (rope_scaling: object) => readConfig({ ...LLAMA, rope_scaling }).layerRopes[0]!.scaling;
  expect(scaling({ type: "linear", factor: 2.5 })).toEqual({ kind: "linear", factor: 2.5 });
  expect(scaling({ rope_type: "default" })).toEqual({ kind: "none" });
  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
  const common = {
    kind: "yarn",
    factor: 4,
    betaFast: 32,
    betaSlow: 1,
    originalMaxPositionEmbeddings: 32768,
    truncate: true,
  };
  expect(scaling(yarn)).toEqual({ ...common, attentionFactor: 0.1 * Math.log(4) + 1 } as never);
  expect(scaling({ ...yarn, mscale: 1, mscale_all_dim: 1 })).toEqual({
    ...common,
    attentionFactor: 1,
  } as never);
  expect(scaling({ ...yarn, attention_factor: 1.5 })).toEqual({ ...common, attentionFactor: 1.5 } as never);
  expect(readConfig({ ...LLAMA, partial_rotary_factor: 0.5 }).layerRopes[0]!.partialRotaryFactor).toBe(0.5);
  const rope_parameters = { rope_theta: 7, partial_rotary_factor: 0.25 };
  expect(readConfig({ ...LLAMA, rope_parameters }).layerRopes[0]).toMatchObject({
    theta: 7,
    partialRotaryFactor: 0.25,
  });
  const both = { rope_scaling: { type: "linear", factor: 2 }, rope_parameters };
  expect(readConfig({ ...LLAMA, ...both }).layerRopes[0]).toMatchObject({
    theta: 500000,
    scaling: { kind: "linear" },
  });
  expect(readConfig({ ...LLAMA, ...both, rope_scaling: {} }).layerRopes[0]!.theta).toBe(7);
  const { factor, ...stretched } = yarn;
  expect(scaling(stretched)).toMatchObject({ kind: "yarn", factor: 131072 / 32768 });
  const { original_max_position_embeddings, ...silent } = LLAMA3_SCALING;
  expect(scaling({ rope_type: "llama3", ...silent })).toMatchObject({
    originalMaxPositionEmbeddings: 131072,
  });
});
