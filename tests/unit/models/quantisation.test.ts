import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { JsonFields } from "../../../src/models/json-fields.ts";
import { type QuantisationConfig, readQuantisation } from "../../../src/models/quantisation.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

function read(config: object, files: Readonly<Record<string, object>> = {}): QuantisationConfig | undefined {
  using folder = temporaryFolder();
  for (const [name, content] of Object.entries({ ...files, "config.json": config }))
    writeFileSync(folder.file(name), JSON.stringify(content));
  return readQuantisation(JsonFields.read(folder.path, "config.json")!, folder.path);
}

const of = (quantization_config: object) => read({ quantization_config });

const compressed = (weights: object, more: object = {}) => ({
  ...{ quant_method: "compressed-tensors", format: "pack-quantized", ...more },
  config_groups: { group_0: { targets: ["Linear"], weights, input_activations: null } },
});
const INT4 = { num_bits: 4, type: "int", symmetric: true, strategy: "group", group_size: 128 };
const FP8 = { num_bits: 8, type: "float", symmetric: true, strategy: "channel" };

describe("what checkpoints state", () => {
  test.each<[string, object, object]>([
    [
      "FP8 by blocks",
      { quant_method: "fp8", weight_block_size: [128, 128], activation_scheme: "dynamic" },
      { method: "fp8", declared: { kind: "float8", granularity: "block" } },
    ],
    ["FP8 by tensors", { quant_method: "fp8" }, { declared: { kind: "float8", granularity: "channel" } }],
    ["FBGEMM", { quant_method: "fbgemm_fp8" }, { declared: { kind: "float8", granularity: "channel" } }],
    [
      "ModelOpt",
      { quant_method: "modelopt", quant_algo: "fp8_pb_wo" },
      { method: "modelopt", declared: { kind: "float8", granularity: "block" } },
    ],
    [
      "AWQ",
      { quant_method: "awq", bits: 4, group_size: 128, zero_point: true, version: "GEMM" },
      { declared: { kind: "integers", bits: 4, groupSize: 128, zeros: true } },
    ],
    [
      "AWQ's older names",
      { quant_method: "awq", w_bit: 4, q_group_size: 64, zero_point: false },
      { declared: { kind: "integers", bits: 4, groupSize: 64, zeros: false } },
    ],
    [
      "GPTQ",
      { quant_method: "gptq", bits: 8, group_size: -1, sym: false, desc_act: true },
      { gptqZeros: "v1", declared: { kind: "integers", bits: 8, groupSize: -1, zeros: true } },
    ],
    ["GPTQ v2", { quant_method: "gptq", bits: 4, checkpoint_format: "gptq_v2" }, { gptqZeros: "v2" }],
    [
      "AutoRound",
      { quant_method: "intel/auto-round", bits: 4, group_size: 32, packing_format: "auto_round:auto_awq" },
      { declared: { kind: "integers", bits: 4, groupSize: 32, zeros: true } },
    ],
    [
      "compressed integers",
      compressed(INT4),
      { declared: { kind: "integers", bits: 4, groupSize: 128, zeros: false } },
    ],
    [
      "compressed FP8",
      compressed(FP8, { format: "float-quantized" }),
      { declared: { kind: "float8", granularity: "channel" } },
    ],
    [
      "compressed FP8 by blocks",
      compressed({ ...FP8, strategy: "block", block_structure: [128, 128] }, { format: "float-quantized" }),
      { declared: { kind: "float8", granularity: "block" } },
    ],
  ])("%s", (_, config, expected) => {
    expect(of(config)).toMatchObject(expected);
  });

  test("groups of several forms, and a cache that alone was calibrated", () => {
    const mixed = compressed(INT4, { format: "mixed-precision" });
    expect(of(mixed)).toMatchObject({ declared: { kind: "integers", bits: 4 } });
    const ofCache = { quant_method: "compressed-tensors", format: "dense", config_groups: {} };
    expect(of({ ...ofCache, kv_cache_scheme: { num_bits: 8, type: "float" } })?.declared?.kind).toBe(
      "floats",
    );
    const modelOpt = { quant_method: "modelopt", quant_algo: null, kv_cache_quant_algo: "FP8" };
    expect(of(modelOpt)?.declared?.kind).toBe("floats");
    expect(read({}, { "hf_quant_config.json": { quantization: modelOpt } })?.declared?.kind).toBe("floats");
  });

  test("that all have zero points: none of several groups is without", () => {
    const group = (symmetric: boolean) => ({ targets: ["Linear"], weights: { ...INT4, symmetric } });
    const several = (...symmetric: boolean[]) =>
      of({ ...compressed(INT4), config_groups: { ...symmetric.map(group) } })?.needsZeros;
    expect([several(false), several(false, false), several(false, true), several(true)]).toEqual([
      ...[true, true, false, false],
    ]);
    expect(of({ quant_method: "awq", bits: 4 })?.needsZeros).toBe(true);
    expect(of({ quant_method: "awq", bits: 4, zero_point: false })?.needsZeros).toBe(false);
  });

  test("that all say in which order their columns are", () => {
    const group = (actorder: unknown) => ({ targets: ["Linear"], weights: { ...INT4, actorder } });
    const several = (...orders: unknown[]) =>
      of({ ...compressed(INT4), config_groups: { ...orders.map(group) } })?.needsOrder;
    expect([several("group"), several("group", null), several("weight"), several(null)]).toEqual([
      ...[true, false, false, false],
    ]);
    expect(of({ quant_method: "gptq", bits: 4, desc_act: true })?.needsOrder).toBe(true);
    expect(of({ quant_method: "gptq", bits: 4, desc_act: false })?.needsOrder).toBe(false);
  });

  test("settings of transforms, of which there are none", () => {
    const config = compressed(INT4, { transform_config: { config_groups: {} }, sparsity_config: {} });
    expect(of(config)?.declared?.kind).toBe("integers");
  });

  test("nothing, for a model in floats", () => {
    expect(read({})).toBeUndefined();
    expect(read({ quantization_config: null })).toBeUndefined();
  });

  test("in a file of its own, in older checkpoints", () => {
    const hf = { quantization: { quant_algo: "FP8", kv_cache_quant_algo: null } };
    expect(read({}, { "hf_quant_config.json": hf })).toMatchObject({ method: "modelopt" });
    expect(read({}, { "quantize_config.json": { bits: 4, group_size: 128 } })).toMatchObject({
      method: "gptq",
    });
    expect(read({}, { "quant_config.json": { w_bit: 4, q_group_size: 128 } })).toMatchObject({
      method: "awq",
    });
    expect(read({ compression_config: compressed(INT4) })).toMatchObject({ method: "compressed-tensors" });
  });
});

describe("what is refused by name, with what would work", () => {
  test.each<[string, object]>([
    ...["bitsandbytes", "aqlm", "hqq", "eetq", "quark", "torchao", "constructor"].map(
      (method): [string, object] => [`(${method})`, { quant_method: method }],
    ),
    ["(bitsandbytes)", { load_in_4bit: true, bnb_4bit_quant_type: "nf4" }],
    ["(mlx)", { group_size: 64, bits: 4, mode: "affine" }],
    ['("line\\nof its own")', { quant_method: "line\nof its own" }],
    ['layout "line\\nof its own"', { quant_method: "gptq", checkpoint_format: "line\nof its own" }],
    ['GPTQ\'s layout "marlin"', { quant_method: "gptq", bits: 4, checkpoint_format: "marlin" }],
    ["ModelOpt's NVFP4", { quant_method: "modelopt", quant_algo: "NVFP4" }],
    ["GPTQ of 3 bits", { quant_method: "gptq", bits: 3 }],
    ["AWQ of 8 bits", { quant_method: "awq", bits: 8 }],
    ['"gemv"', { quant_method: "awq", bits: 4, version: "gemv" }],
    ['"gemv_fast"', { quant_method: "awq", bits: 4, version: "GEMV_FAST" }],
    ["weight_block_size [64,128]", { quant_method: "fp8", weight_block_size: [64, 128] }],
    ["block_structure", compressed({ ...FP8, strategy: "block" }, { format: "float-quantized" })],
    ["nvfp4-pack-quantized", compressed(INT4, { format: "nvfp4-pack-quantized" })],
    ["transform_config", compressed(INT4, { transform_config: { config_groups: { R1: {} } } })],
    ["sparsity_config", compressed(INT4, { sparsity_config: { format: "sparse-24-bitmask" } })],
    ["int weights of 3 bits", compressed({ ...INT4, num_bits: 3 })],
    ["packing_format", { quant_method: "auto-round", packing_format: "auto_round:llm_compressor" }],
  ])("%s", (what, config) => {
    const error = thrown(() => of(config));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect((error as Error).message).toContain("config.json: ");
    expect((error as Error).message).toContain(what);
    expect((error as Error).message).toMatch(
      /not supported; what would: the model in 16 bits, with quantization: "fp8"/,
    );
  });

  test("MLX's, by its own field alone, too", () => {
    const error = thrown(() => read({ quantization: { group_size: 64, bits: 4 } }));
    expect((error as Error).message).toContain("quantised weights (mlx) are not supported");
    expect(read({ quantization: {} })).toBeUndefined();
  });

  test("a name of any length in a line", () => {
    const error = thrown(() => of({ quant_method: "x".repeat(1e5) }));
    expect((error as Error).message.length).toBeLessThan(500);
  });

  test.each([
    [{ quant_method: 4 }],
    [{ quant_method: "gptq", bits: "4" }],
    [{ quant_method: "gptq", group_size: -2 }],
    [{ quant_method: "compressed-tensors", config_groups: {} }],
    [{ quant_method: "compressed-tensors", config_groups: { group_0: 3 } }],
    [{ quant_method: "awq", version: 3 }],
  ])("%j is malformed", (config) => {
    const error = thrown(() => of(config));
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error).not.toBeInstanceOf(UnsupportedModelError);
  });
});
