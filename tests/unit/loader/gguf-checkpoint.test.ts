import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { type FloatDType, narrow } from "../../../src/base/dtype.ts";
import { ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { BLOCK_TYPES, type BlockType, blockOf, dequantize } from "../../../src/gguf/dequantize.ts";
import { checkpointName, ggufName } from "../../../src/gguf/tensor-names.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { Random } from "../../contract/random.ts";
import { floats, gguf, type TensorInput, type Value } from "../../gguf-writer.ts";
import { temporaryFolder, thrown } from "../../support.ts";
import blocks from "../gguf/fixtures/blocks.json";
import { bytesOf, FakeBackend, FakeBulkBackend } from "./fake-backend.ts";
import { spec } from "./support.ts";

setDefaultTimeout(300_000);

const TYPE_IDS: Readonly<Record<BlockType, number>> = {
  Q4_0: 2,
  Q4_1: 3,
  Q8_0: 8,
  Q4_K: 12,
  Q5_K: 13,
  Q6_K: 14,
};
const LLAMA: Record<string, Value> = {
  "general.architecture": "llama",
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
};

function open(tensors: Record<string, TensorInput>, metadata = LLAMA) {
  const folder = temporaryFolder();
  const path = folder.file("model.gguf");
  try {
    writeFileSync(path, gguf({ metadata, tensors }));
    const checkpoint = Checkpoint.open(path);
    return {
      ...{ checkpoint, path },
      [Symbol.dispose]() {
        checkpoint[Symbol.dispose]();
        folder[Symbol.dispose]();
      },
    };
  } catch (error) {
    folder[Symbol.dispose]();
    throw error;
  }
}

/** A matrix of blocks, and its values. */
function matrix(
  type: BlockType,
  rows: number,
  columns: number,
): { stored: TensorInput; values: Float32Array } {
  const { elements, bytes } = blockOf(type);
  const known = Buffer.from(blocks[type].blocks, "base64");
  const count = (rows * columns) / elements;
  const random = new Random(columns);
  const data = Buffer.concat(
    Array.from({ length: count }, () => {
      // The values of the fourth block are more than float16 has room for.
      const which = [0, 1, 2, 4][random.int(4)]! * bytes;
      return known.subarray(which, which + bytes);
    }),
  );
  const values = new Float32Array(rows * columns);
  dequantize(data, type, values);
  return { stored: { type: TYPE_IDS[type], shape: [rows, columns], data }, values };
}

/** Part of a matrix, row by row. */
function cut(
  values: Float32Array,
  width: number,
  [top, bottom]: number[],
  [left, right]: number[],
): Float32Array {
  const rows = Array.from({ length: bottom! - top! }, (_, i) => (top! + i) * width);
  return Float32Array.from(rows.flatMap((row) => [...values.subarray(row + left!, row + right!)]));
}

function expectValues(tensor: Tensor, values: Float32Array): void {
  expect(Buffer.compare(bytesOf(tensor), narrow(values, tensor.dtype as FloatDType))).toBe(0);
}

describe("blocks become floats while they are loaded", () => {
  test.each(
    BLOCK_TYPES.flatMap((type) =>
      (["float32", "bfloat16", "float16"] as const).map((to) => [type, to] as const),
    ),
  )(
    "%s to %s: whole, rows, and columns that begin and end between blocks and within them",
    async (type, dtype) => {
      const [rows, columns] = [21, 768];
      const { stored, values } = matrix(type, rows, columns);
      using file = open({ w: stored });
      const source = { name: "w", shape: [rows, columns] };
      const slices = [
        [256, 512],
        [0, 768],
        [0, 96],
        [96, 384],
        [384, 768],
        [100, 700],
        [17, 19],
      ];
      const specs = [
        spec("whole", [rows, columns], source),
        spec("rows", [8, columns], { ...source, slice: { dim: 0, start: 5, end: 13 } }),
        ...slices.map(([start, end]) =>
          spec(`${start}-${end}`, [rows, end! - start!], {
            ...source,
            slice: { dim: 1, start: start!, end: end! },
          }),
        ),
      ];
      for (const { backend } of [new FakeBackend(), new FakeBulkBackend(5, 40_000)]) {
        const options = { dtype, ignored: [], readers: 2 };
        const weights = await loadWeights(file.checkpoint, specs, backend, options);
        expectValues(weights.get("whole")!, values);
        expectValues(weights.get("rows")!, cut(values, columns, [5, 13], [0, columns]));
        for (const [start, end] of slices)
          expectValues(weights.get(`${start}-${end}`)!, cut(values, columns, [0, rows], [start!, end!]));
      }
    },
  );

  test("of a part no more is read than its blocks, where they are many", async () => {
    const { stored } = matrix("Q8_0", 3, 8192 * 2);
    using file = open({ w: stored });
    const shape = [3, 8192 * 2];
    let read = 0;
    const onProgress = (_: number, total: number) => {
      read = total;
    };
    const options = { dtype: "float32", ignored: [], onProgress } as const;
    const half = spec("half", [3, 8192], { name: "w", shape, slice: { dim: 1, start: 8192, end: 16384 } });
    await loadWeights(file.checkpoint, [half], new FakeBackend().backend, options);
    expect(read).toBe(stored.data.length / 2);
    const middle = spec("m", [3, 8191], { name: "w", shape, slice: { dim: 1, start: 1, end: 8192 } });
    await loadWeights(file.checkpoint, [middle], new FakeBackend().backend, options);
    expect(read).toBe(stored.data.length / 2);
  });

  test("host memory is bounded by the chunk", async () => {
    const { stored, values } = matrix("Q4_0", 1024, 8192);
    using file = open({ w: stored });
    const fake = new FakeBackend();
    const specs = [spec("w", [1024, 8192], { name: "w", shape: [1024, 8192] })];
    const weights = await loadWeights(file.checkpoint, specs, fake.backend, {
      dtype: "float32",
      ignored: [],
    });
    expect(fake.largestUpload).toBe(16 * 2 ** 20);
    expectValues(weights.get("w")!, values);
  });

  test.each([
    ["Q4_0", [0]],
    ["Q4_1", [0, 2]],
    ["Q8_0", [0]],
    ["Q4_K", [0, 2]],
    ["Q5_K", [0, 2]],
    ["Q6_K", [208]],
  ] as const)(
    "%s: a scale that is no finite number is refused by the tensor's name",
    async (type, halves) => {
      const { elements, bytes } = blockOf(type);
      const stored = { type: TYPE_IDS[type], shape: [3, 2 * elements] };
      const source = { name: "model.layers.0.mlp.up_proj.weight", shape: stored.shape };
      const slice = { dim: 1, start: elements + 1, end: 2 * elements } as const;
      for (const half of halves) {
        // Infinity, times codes of 0 as of any others.
        const data = new Uint8Array(6 * bytes);
        data[5 * bytes + half + 1] = 0x7c;
        using file = open({ "blk.0.ffn_up.weight": { ...stored, data } });
        for (const w of [
          spec("w", stored.shape, source),
          spec("w", [3, elements - 1], { ...source, slice }),
        ]) {
          for (const dtype of ["float32", "bfloat16"] as const) {
            const loading = loadWeights(file.checkpoint, [w], new FakeBackend().backend, {
              dtype,
              ignored: [],
            });
            const error = await loading.catch((reason) => reason);
            expect(error).toBeInstanceOf(ModelDataError);
            expect(error.message).toBe(
              `${file.path}: tensor "blk.0.ffn_up.weight" has a scale that is no finite number`,
            );
          }
        }
      }
    },
  );
});

describe("llama's query and key rows", () => {
  /** Rows in the order of a checkpoint, [heads · 2 · half, K], and as the file has them. */
  const stored = (heads: number, half: number, width: number) => {
    const rows = 2 * heads * half;
    const values = Float32Array.from({ length: rows * width }, (_, i) => i);
    const order = Array.from({ length: rows }, (_, row) => {
      const [head, inHead] = [Math.floor(row / (2 * half)), row % (2 * half)];
      return head * 2 * half + (inHead % 2) * half + (inHead >> 1);
    });
    const paired = order.flatMap((row) => [...values.subarray(row * width, (row + 1) * width)]);
    return { values, paired };
  };

  test.each([6, 1500])("rows of %d: in order again, whole and by heads; biases too", async (width) => {
    const [q, k] = [stored(4, 3, width), stored(2, 3, width)];
    const bias = stored(4, 3, 1);
    using file = open({
      "blk.0.attn_q.weight": floats([24, width], q.paired),
      "blk.0.attn_k.weight": floats([12, width], k.paired),
      "blk.0.attn_v.weight": floats([12, width], k.paired),
      "blk.0.attn_q.bias": floats([24], bias.paired),
    });
    const source = (part: string, shape: number[]) => ({ name: `model.layers.0.self_attn.${part}`, shape });
    const [query, key] = [source("q_proj.weight", [24, width]), source("k_proj.weight", [12, width])];
    const specs = [
      spec("qk", [36, width], query, key),
      spec(
        "part",
        [18, width],
        { ...query, slice: { dim: 0, start: 6, end: 18 } },
        {
          ...key,
          slice: { dim: 0, start: 6, end: 12 },
        },
      ),
      spec("v", [12, width], source("v_proj.weight", [12, width])),
      spec("bias", [24], source("q_proj.bias", [24])),
    ];
    for (const dtype of ["float32", "float16"] as const) {
      const weights = await loadWeights(file.checkpoint, specs, new FakeBackend().backend, {
        dtype,
        ignored: [],
      });
      expectValues(weights.get("qk")!, Float32Array.of(...q.values, ...k.values));
      const rows = (values: Float32Array, start: number, end: number) =>
        values.subarray(start * width, end * width);
      expectValues(weights.get("part")!, Float32Array.of(...rows(q.values, 6, 18), ...rows(k.values, 6, 12)));
      expectValues(weights.get("v")!, Float32Array.from(k.paired));
      expectValues(weights.get("bias")!, bias.values);
    }
  });

  test("other architectures store them in order", () => {
    using file = open(
      { "blk.0.attn_q.weight": floats([8, 1], new Float32Array(8)) },
      {
        "general.architecture": "qwen3",
      },
    );
    expect(file.checkpoint.tensors.get("model.layers.0.self_attn.q_proj.weight")!.pairedRows).toBeUndefined();
  });
});

describe("names", () => {
  test("of a checkpoint and of the file, both ways; what is unknown keeps its own", () => {
    const names = [
      ["token_embd.weight", "model.embed_tokens.weight"],
      ["output_norm.weight", "model.norm.weight"],
      ["output.weight", "lm_head.weight"],
      ["blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"],
      ["blk.31.ffn_down.weight", "model.layers.31.mlp.down_proj.weight"],
      ["blk.7.attn_q.bias", "model.layers.7.self_attn.q_proj.bias"],
      ["blk.7.attn_k_norm.weight", "model.layers.7.self_attn.k_norm.weight"],
    ];
    for (const [gguf, checkpoint] of names as [string, string][]) {
      expect(checkpointName(gguf)).toBe(checkpoint);
      expect(ggufName(checkpoint)).toBe(gguf);
    }
    for (const name of [
      "blk.0.ssm_a",
      "attn_q.weight",
      "blk.0.token_embd.weight",
      "x.weight",
      "constructor.weight",
    ])
      expect(checkpointName(name)).toBe(name);
  });
});

describe("tensors that do not fit are refused by the file's names, and nothing is allocated", () => {
  const load = async (tensors: Record<string, TensorInput>, shape: number[]) => {
    using file = open(tensors);
    const fake = new FakeBackend();
    const specs = [spec("w", shape, { name: "model.layers.0.mlp.up_proj.weight", shape })];
    const options = { dtype: "float32", ignored: [] } as const;
    const error = await loadWeights(file.checkpoint, specs, fake.backend, options).catch((reason) => reason);
    expect(fake.allocations).toBe(0);
    expect(error.message).toStartWith(`${file.path}: `);
    return error;
  };
  const up = (shape: number[], type = 0, bytes = shape.reduce((a, b) => a * b) * 4) => ({
    "blk.0.ffn_up.weight": { type, shape, data: new Uint8Array(bytes) },
  });

  test("missing, misshapen, unexpected, of a type that cannot be loaded", async () => {
    expect((await load({}, [2, 4])).message).toContain("missing tensors: blk.0.ffn_up.weight");
    const misshapen = "blk.0.ffn_up.weight (expected [2, 4], found [4, 2])";
    expect((await load(up([4, 2]), [2, 4])).message).toContain(`misshapen tensors: ${misshapen}`);
    const more = { ...up([2, 4]), "blk.0.ffn_gate_exps.weight": floats([1], [1]) };
    expect((await load(more, [2, 4])).message).toContain("unexpected tensors: blk.0.ffn_gate_exps.weight");
    for (const [type, id, bytes] of [
      ["Q2_K", 10, 84],
      ["I8", 24, 256],
      ["Q4_0_4_4", 31, 144],
    ] as const) {
      const error = thrown(() => open(up([1, 256], id, bytes))) as Error;
      expect(error).toBeInstanceOf(UnsupportedModelError);
      expect(error.message).toContain(
        `tensors that are not F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K or Q6_K: blk.0.ffn_up.weight (${type})`,
      );
    }
  });

  test.each<
    [what: string, tensors: Record<string, TensorInput>, metadata: Record<string, Value>, message: string]
  >([
    [
      "heads of 3 rows",
      { "blk.0.attn_q.weight": floats([12, 1], new Float32Array(12)) },
      LLAMA,
      "not of whole heads",
    ],
    [
      "no heads",
      { "blk.0.attn_q.weight": floats([8, 1], new Float32Array(8)) },
      { "general.architecture": "llama" },
      "not of whole heads",
    ],
    [
      "heads of text",
      { "blk.0.attn_k.weight": floats([8, 1], new Float32Array(8)) },
      { ...LLAMA, "llama.attention.head_count_kv": "2" },
      "must be a number",
    ],
    [
      "a vector of blocks",
      { "output_norm.weight": { type: 8, shape: [32], data: new Uint8Array(34) } },
      LLAMA,
      'tensor "output_norm.weight" is a vector of Q8_0',
    ],
    [
      "another architecture",
      {},
      { "general.architecture": "rwkv7" },
      'architecture "rwkv7" is not supported',
    ],
  ])("%s", (_what, tensors, metadata, message) => {
    const error = thrown(() => open(tensors, metadata)) as ModelDataError;
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain(message);
  });
});
