import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { ModelDataError } from "../../../src/base/errors.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { CALIBRATION_TENSORS, readKvScales } from "../../../src/loader/kv-scales.ts";
import { temporaryFolder, thrown } from "../../support.ts";
import { f32, safetensors, type TensorData } from "./support.ts";

setDefaultTimeout(300_000);

const ATTENTION = "model.layers.0.self_attn.";
const bf16 = (shape: readonly number[], ...bits: number[]): TensorData => ({
  ...{ dtype: "BF16", shape, data: Uint16Array.from(bits) },
});

/** Reads the scales of two layers from a checkpoint of these tensors of the first one's attention. */
function read(tensors: Readonly<Record<string, TensorData>>) {
  using folder = temporaryFolder();
  const named = Object.entries(tensors).map(([name, data]) => [ATTENTION + name, data]);
  writeFileSync(folder.file("model.safetensors"), safetensors(Object.fromEntries(named)));
  using checkpoint = Checkpoint.open(folder.path);
  return readKvScales(checkpoint, [0, 1]);
}

const ONES = { keyScale: 1, valueScale: 1 };

test.each([
  ["nothing", {}, ONES],
  ["compressed-tensors", { k_scale: bf16([1], 0x3e80), v_scale: bf16([1], 0x4000) }, [0.25, 2]],
  ["ModelOpt", { "k_proj.k_scale": f32([], [0.5]), "v_proj.v_scale": f32([], [0.25]) }, [0.5, 0.25]],
  ["fused projections", { "qkv_proj.k_scale": f32([], [4]), "qkv_proj.v_scale": f32([], [8]) }, [4, 8]],
  ["AutoFP8", { kv_scale: f32([1], [0.125]) }, [0.125, 0.125]],
  ["an older spelling", { "k_proj.output_scale": f32([], [4]), "v_proj.output_scale": f32([], [8]) }, [4, 8]],
  ["attention of its own", { "attn.k_scale": f32([], [4]), "attn.v_scale": f32([], [8]) }, [4, 8]],
  ["one of the two", { v_scale: f32([], [3]) }, [3, 3]],
  ["none that counts", { k_scale: f32([], [0]), v_scale: f32([], [-1]) }, ONES],
  [
    "heads of their own",
    { k_scale: f32([3, 1, 1], [0.5, 2, 1]), v_scale: f32([3, 1, 1], [1, 2, 3]) },
    [2, 3],
  ],
] satisfies [string, Record<string, TensorData>, object][])("scales of %s", (_, tensors, expected) => {
  const scales = Array.isArray(expected)
    ? { keyScale: expected[0] as number, valueScale: expected[1] as number }
    : (expected as typeof ONES);
  expect(read(tensors)).toEqual([scales, ONES]);
});

test.each([
  ["that is no number", f32([], [Number.NaN]), "is a scale that is no finite number"],
  ["that is infinite", f32([], [Infinity]), "is a scale that is no finite number"],
  ["of no elements", f32([0], []), "has 0 scales"],
  ["of too many", f32([4097]), "has 4097 scales"],
  ["of bytes", { dtype: "U8", shape: [], data: Uint8Array.of(1) }, "is a scale in U8"],
] satisfies [string, TensorData, string][])("a scale %s is refused by name", (_, tensor, rule) => {
  const error = thrown(() => read({ k_scale: tensor })) as ModelDataError;
  expect(error).toBeInstanceOf(ModelDataError);
  expect(error.message).toContain(`tensor "${ATTENTION}k_scale" ${rule}`);
  expect(error.message).toContain("model.safetensors");
});

test("nothing of calibration is an unexpected tensor, and no weight is calibration", () => {
  const isKnown = (name: string) => CALIBRATION_TENSORS.some((pattern) => pattern.test(ATTENTION + name));
  const known = ["k_scale", "v_scale", "q_scale", "prob_scale", "kv_scale", "k_zero_point", "attn.k_scale"];
  for (const name of [...known, "k_proj.k_scale", "v_proj.v_scale", "k_proj.output_scale"])
    expect([name, isKnown(name)]).toEqual([name, true]);
  for (const name of [
    "k_proj.weight",
    "k_proj.weight_scale",
    "k_proj.input_scale",
    "q_norm.weight",
    "k_scale.weight",
  ])
    expect([name, isKnown(name)]).toEqual([name, false]);
});
