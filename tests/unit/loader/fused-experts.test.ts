import { expect, setDefaultTimeout, test } from "bun:test";
import { ModelDataError } from "../../../src/base/errors.ts";
import type { CheckpointTensor } from "../../../src/loader/checkpoint-tensor.ts";
import { splitFusedExperts } from "../../../src/loader/fused-experts.ts";

setDefaultTimeout(300_000);

const file = { path: "model.safetensors", fd: 3 };
const stored = (begin: number, ...shape: number[]): CheckpointTensor => {
  const end = begin + 2 * shape.reduce((product, extent) => product * extent, 1);
  return { dtype: "BF16", shape, begin, end, file };
};

test("an expert's matrices are parts of the file, gate before up", () => {
  const split = splitFusedExperts(
    new Map([
      ["l.mlp.experts.gate_up_proj", stored(100, 2, 6, 4)],
      ["l.mlp.experts.down_proj", stored(1000, 2, 4, 3)],
      ["l.mlp.gate.weight", stored(2000, 2, 4)],
    ]),
  );
  const found = [...split].map(([name, { shape, begin, end }]) => [name, shape, begin, end]);
  expect(found).toEqual([
    ["l.mlp.experts.0.gate_proj.weight", [3, 4], 100, 124],
    ["l.mlp.experts.0.up_proj.weight", [3, 4], 124, 148],
    ["l.mlp.experts.1.gate_proj.weight", [3, 4], 148, 172],
    ["l.mlp.experts.1.up_proj.weight", [3, 4], 172, 196],
    ["l.mlp.experts.0.down_proj.weight", [4, 3], 1000, 1024],
    ["l.mlp.experts.1.down_proj.weight", [4, 3], 1024, 1048],
    ["l.mlp.gate.weight", [2, 4], 2000, 2016],
  ]);
});

test("factors of FP8 are divided as the matrices are; one of all is both matrices'", () => {
  const scales = (inner: number, ...shape: number[]) =>
    splitFusedExperts(
      new Map([
        ["l.experts.gate_up_proj", stored(0, 2, 2 * inner, 256)],
        ["l.experts.gate_up_proj_scale_inv", stored(1e6, ...shape)],
      ]),
    );
  const found = (split: ReturnType<typeof scales>) =>
    ["0.gate", "0.up", "1.gate", "1.up"].map((part) => {
      const { shape, begin, end, within } = split.get(`l.experts.${part}_proj.weight_scale_inv`)!;
      return [shape, begin - 1e6, end - 1e6, within];
    });
  expect(found(scales(384, 2, 6, 2))).toEqual(
    [0, 12, 24, 36].map((begin) => [[3, 2], begin, begin + 12, undefined]),
  );
  expect(found(scales(96, 2, 1, 1))).toEqual([0, 0, 2, 2].map((begin) => [[1], begin, begin + 2, undefined]));
  // A block of the first projection's last rows has the other's first ones, too.
  expect(() => scales(96, 2, 2, 2)).toThrow("blocks of 128 rows, which hold rows of two matrices of 96");
  expect(() => scales(128, 2, 3, 2)).toThrow("is [2, 3, 2], expected [experts, rows, columns]");
});

test("gpt-oss's rows of gate and up take turns", () => {
  const bytes = (begin: number, ...shape: number[]) => {
    const end = begin + shape.reduce((product, extent) => product * extent, 1);
    return { ...stored(begin), dtype: "U8", shape, end };
  };
  const split = splitFusedExperts(
    new Map([
      ["l.experts.gate_up_proj_blocks", bytes(0, 2, 6, 2, 16)],
      ["l.experts.gate_up_proj_bias", stored(1000, 2, 6)],
      ["l.experts.down_proj_scales", bytes(2000, 2, 4, 1)],
    ]),
  );
  const within = (rowBytes: number, start: number) => ({ rowBytes, start });
  expect(
    [...split].map(([name, { shape, begin, end, within }]) => [name, shape, begin, end, within]),
  ).toEqual([
    ["l.experts.0.gate_proj.blocks", [3, 32], 0, 192, within(64, 0)],
    ["l.experts.0.up_proj.blocks", [3, 32], 0, 192, within(64, 32)],
    ["l.experts.1.gate_proj.blocks", [3, 32], 192, 384, within(64, 0)],
    ["l.experts.1.up_proj.blocks", [3, 32], 192, 384, within(64, 32)],
    ["l.experts.0.gate_proj.bias", [3], 1000, 1012, within(4, 0)],
    ["l.experts.0.up_proj.bias", [3], 1000, 1012, within(4, 2)],
    ["l.experts.1.gate_proj.bias", [3], 1012, 1024, within(4, 0)],
    ["l.experts.1.up_proj.bias", [3], 1012, 1024, within(4, 2)],
    ["l.experts.0.down_proj.scales", [4, 1], 2000, 2004, undefined],
    ["l.experts.1.down_proj.scales", [4, 1], 2004, 2008, undefined],
  ]);
});

test("of floats with a bias beside them columns are rows, and those of gate and up take turns", () => {
  const name = "l.mlp.experts.gate_up_proj";
  const biased = (shape: number[], dtype = "BF16") =>
    new Map([
      [name, { ...stored(0, ...shape), dtype }],
      [`${name}_bias`, stored(96, 2, 6)],
    ]);
  const split = splitFusedExperts(biased([2, 4, 6]));
  expect(
    ["0.gate", "0.up", "1.gate", "1.up"].map((part) => split.get(`l.mlp.experts.${part}_proj.weight`)),
  ).toEqual(
    [0, 1, 2, 3].map((i) => ({
      ...{ ...stored(0), shape: [3, 4], begin: i < 2 ? 0 : 48, end: i < 2 ? 48 : 96 },
      transposed: { start: i % 2, stride: 2 },
    })),
  );
  for (const [shape, dtype] of [
    [[2, 4, 5], "BF16"],
    [[8, 6], "BF16"],
    [[2, 4, 6], "I8"],
    [[5000, 1, 2], "BF16"],
  ] as const)
    expect(() => splitFusedExperts(biased([...shape], dtype))).toThrow(ModelDataError);
});

test("tensors of another shape are refused", () => {
  const name = "l.mlp.experts.gate_up_proj";
  for (const shape of [
    [6, 4],
    [2, 5, 4],
    [0, 6, 4],
  ])
    expect(() => splitFusedExperts(new Map([[name, stored(0, ...shape)]]))).toThrow(ModelDataError);
});

test("a count that costs a file nothing, a matrix that is there twice and codes that are no bytes are refused", () => {
  const down = "l.mlp.experts.down_proj";
  const refused: [Record<string, CheckpointTensor>, string][] = [
    [{ [down]: stored(0, 2 ** 50, 2, 0) }, "expected [experts, rows, columns]"],
    [{ [down]: stored(0, 4097, 1, 1) }, "4097 experts, at most 4096"],
    [
      Object.fromEntries(
        Array.from({ length: 65 }, (_, i) => [`${i}.experts.down_proj`, stored(0, 4096, 1, 1)]),
      ),
      "more than 262144 matrices",
    ],
    [{ [down]: stored(0, 1, 2, 2), "l.mlp.experts.0.down_proj.weight": stored(8, 2, 2) }, "is there, too"],
    [{ [`${down}_scales`]: stored(0, 1, 2, 2) }, "is BF16, expected U8"],
  ];
  for (const [tensors, rule] of refused)
    expect(() => splitFusedExperts(new Map(Object.entries(tensors)))).toThrow(rule);
});
