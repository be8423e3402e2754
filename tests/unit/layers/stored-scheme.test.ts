import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { rowsOf } from "../../../src/backend/cpu/dequantise.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import type { Weight } from "../../../src/backend/weight.ts";
import { ConfigError, ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import type { ParameterSpec } from "../../../src/base/parameter-spec.ts";
import type { Span } from "../../../src/base/shard.ts";
import { StoredScheme, type StoredSchemeOptions } from "../../../src/layers/schemes/stored-scheme.ts";
import type { MatrixSpec } from "../../../src/layers/weight-scheme.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { directoryOf } from "../../../src/loader/tensor-directory.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { Random } from "../../contract/random.ts";
import { temporaryFolder, thrown } from "../../support.ts";
import { bytesOf, FakeBackend, FakeBulkBackend } from "../loader/fake-backend.ts";
import { safetensors, type TensorData } from "../loader/support.ts";
import { awq, float8, gptq, int8, type MakeLayout, packed, type StoredLayout } from "./stored-layouts.ts";

setDefaultTimeout(300_000);

/** Rows of two matrices of one product, the first no multiple of a block, and their columns. */
const ROWS = [192, 64] as const;
const COLUMNS = 384;
/** A group for every third column. */
const SCATTERED = (column: number) => (column * 7) % 3;

interface Layout {
  readonly make: MakeLayout;
  readonly options?: StoredSchemeOptions;
  /** The least columns that ranks may cut between; undefined: they may not. */
  readonly cut: number | undefined;
}

const LAYOUTS: Readonly<Record<string, Layout>> = {
  "fp8 by blocks": { make: float8("block"), cut: 128 },
  "fp8 by blocks of ModelOpt": { make: float8("block", true), cut: 128 },
  "fp8 by channels": { make: float8("channel"), cut: 1 },
  "fp8 by tensors": { make: float8("tensor"), cut: 1 },
  "8 bits, signed": { make: int8(), cut: 16 },
  "packed 4 bits": { make: packed(4, 64, true), cut: 64 },
  "packed 4 bits with zeros": { make: packed(4, 32, false), cut: 32 },
  "packed 8 bits with zeros": { make: packed(8, 128, false), cut: 128 },
  "packed 4 bits by channels": { make: packed(4, COLUMNS, false), cut: 16 },
  AWQ: { make: awq(32), cut: 32 },
  "AWQ by channels": { make: awq(COLUMNS), cut: 16 },
  "GPTQ 4 bits": { make: gptq({ bits: 4, group: 64, version: "v1" }), cut: 64 },
  "GPTQ v2, 4 bits": {
    make: gptq({ bits: 4, group: 32, version: "v2" }),
    options: { gptqZeros: "v2" },
    cut: 32,
  },
  "GPTQ 8 bits": { make: gptq({ bits: 8, group: 32, version: "v1" }), cut: 32 },
  "GPTQ in another order": {
    make: gptq({ bits: 4, group: 128, version: "v1", groupOf: SCATTERED }),
    cut: undefined,
  },
  "GPTQ of 8 bits in another order": {
    make: gptq({ bits: 8, group: 128, version: "v1", groupOf: SCATTERED }),
    cut: undefined,
  },
};

/** The part of two stacked matrices that a rank holds. */
interface Part {
  readonly rows: readonly [Span, Span];
  readonly columns: Span;
}

const WHOLE: Part = {
  rows: [
    { start: 0, end: ROWS[0] },
    { start: 0, end: ROWS[1] },
  ],
  columns: { start: 0, end: COLUMNS },
};

function matrixSpec({ rows, columns }: Part): MatrixSpec {
  const parts = rows.map((rowSpan, i) => ({ source: `m${i}`, rows: ROWS[i]!, rowSpan }));
  return { name: "m", parts, columns: COLUMNS, columnSpan: columns };
}

function makeBoth(make: MakeLayout, change = (tensors: Record<string, TensorData>) => tensors) {
  const random = new Random(7);
  const layouts = ROWS.map((n) => make(random, n, COLUMNS));
  const named = layouts.flatMap(({ tensors }, i) =>
    Object.entries(tensors).map(([name, tensor]) => [`m${i}.${name}`, tensor] as const),
  );
  return { layouts, tensors: change(Object.fromEntries(named)) };
}

async function withCheckpoint<T>(
  tensors: Readonly<Record<string, TensorData>>,
  run: (checkpoint: Checkpoint) => Promise<T>,
): Promise<T> {
  using folder = temporaryFolder();
  writeFileSync(folder.file("model.safetensors"), safetensors(tensors));
  using checkpoint = Checkpoint.open(folder.path);
  return await run(checkpoint);
}

/** The specs of a part's parameters, and the weight that is made of what was loaded for them. */
function plan(checkpoint: Checkpoint, part: Part, options?: StoredSchemeOptions) {
  const scheme = new StoredScheme(directoryOf(checkpoint), options);
  const specs: ParameterSpec[] = [];
  const placeholder = { disposed: true } as unknown as Tensor;
  scheme.weight(matrixSpec(part), (spec) => {
    specs.push(spec);
    return placeholder;
  });
  const build = (loaded: ReadonlyMap<string, Tensor>): Weight =>
    scheme.weight(matrixSpec(part), (spec) => loaded.get(spec.name)!);
  return { specs, build, ignored: scheme.ignored };
}

async function load(
  checkpoint: Checkpoint,
  part: Part,
  options?: StoredSchemeOptions,
): Promise<Float32Array> {
  const backend = new CpuBackend();
  const { specs, build, ignored } = plan(checkpoint, part, options);
  const loaded = await loadWeights(checkpoint, specs, backend, { dtype: "float32", ignored });
  const weight = build(loaded);
  if (weight.format === "dense") throw new Error("dense");
  const [n, k] = weight.shape;
  const values = new Float32Array(n * k);
  rowsOf(weight).dequantise(values, 0, n);
  backend.dispose();
  return values;
}

function expected(layouts: readonly StoredLayout[], { rows, columns }: Part): Float32Array {
  const parts = layouts.flatMap(({ values }, i) => {
    const { start, end } = rows[i]!;
    return Array.from({ length: end - start }, (_, row) => {
      const at = (start + row) * COLUMNS;
      return [...values.subarray(at + columns.start, at + columns.end)];
    });
  });
  return Float32Array.from(parts.flat());
}

const half = ({ start, end }: Span, index: 0 | 1): Span => {
  const middle = (start + end) / 2;
  return index === 0 ? { start, end: middle } : { start: middle, end };
};

describe.each(Object.entries(LAYOUTS))("%s", (_, { make, options, cut }) => {
  const { layouts, tensors } = makeBoth(make);

  test("a product of two matrices stands for their numbers", () =>
    withCheckpoint(tensors, async (checkpoint) => {
      expect(await load(checkpoint, WHOLE, options)).toEqual(expected(layouts, WHOLE));
    }));

  test("ranks have their rows", () =>
    withCheckpoint(tensors, async (checkpoint) => {
      for (const index of [0, 1] as const) {
        const part = { ...WHOLE, rows: [half(WHOLE.rows[0], index), half(WHOLE.rows[1], index)] as const };
        expect(await load(checkpoint, part, options)).toEqual(expected(layouts, part));
      }
    }));

  test("ranks have their columns, or are refused", () =>
    withCheckpoint(tensors, async (checkpoint) => {
      for (const ranks of [2, 3, 4]) {
        const size = COLUMNS / ranks;
        for (let start = 0; start < COLUMNS; start += size) {
          const part = { ...WHOLE, columns: { start, end: start + size } };
          if (cut !== undefined && size % cut === 0)
            expect(await load(checkpoint, part, options)).toEqual(expected(layouts, part));
          else {
            const refused = await load(checkpoint, part, options).catch((error: unknown) => error);
            expect(refused).toBeInstanceOf(ConfigError);
            expect((refused as ConfigError).message).toMatch(/these would not: 1|tensorParallelSize 1 would/);
          }
        }
      }
    }));

  test("small chunks of several readers give the same bytes", () =>
    withCheckpoint(tensors, async (checkpoint) => {
      const { specs, ignored } = plan(checkpoint, WHOLE, options);
      const plain = new FakeBackend();
      const whole = await loadWeights(checkpoint, specs, plain.backend, { dtype: "float32", ignored });
      const bulk = new FakeBulkBackend(4, 1536);
      const progress: number[] = [];
      const pieces = await loadWeights(checkpoint, specs, bulk.backend, {
        ...{ dtype: "float32", ignored, readers: 2 },
        onProgress: (loaded, total) => progress.push(loaded / total),
      });
      expect(bulk.committed.length).toBeGreaterThan(specs.length);
      for (const [name, tensor] of whole) expect(bytesOf(pieces.get(name)!)).toEqual(bytesOf(tensor));
      expect(progress.at(-1)).toBe(1);
      expect(bulk.guardsHold).toBe(true);
    }));
});

describe("what is not as it must be", () => {
  const bytes = (tensor: TensorData) => new Uint8Array(tensor.data.buffer.slice(0));

  async function refusal(make: MakeLayout, change: (tensors: Record<string, TensorData>) => void) {
    const { tensors } = makeBoth(make);
    change(tensors);
    return await withCheckpoint(tensors, async (checkpoint) => {
      const fake = new FakeBackend();
      try {
        const { specs, ignored } = plan(checkpoint, WHOLE);
        await loadWeights(checkpoint, specs, fake.backend, { dtype: "float32", ignored });
      } catch (error) {
        expect(fake.live).toBe(0);
        expect(error).toBeInstanceOf(ModelDataError);
        return { error: error as ModelDataError, allocations: fake.allocations };
      }
      throw new Error("was accepted");
    });
  }

  const resized = (tensor: TensorData, ...shape: number[]): TensorData => {
    const size = shape.reduce((product, extent) => product * extent, 1);
    const each = tensor.data.byteLength / tensor.shape.reduce((product, extent) => product * extent, 1);
    return { ...tensor, shape, data: new Uint8Array(size * each) };
  };

  test.each<[string, MakeLayout, string, (tensors: Record<string, TensorData>) => void, string]>([
    ["fp8 without a scale", float8("channel"), "m1.weight", (t) => delete t["m1.weight_scale"], "is missing"],
    [
      "a scale of another shape",
      float8("block"),
      "m0.weight_scale_inv",
      (t) => (t["m0.weight_scale_inv"] = resized(t["m0.weight_scale_inv"]!, 3, 3)),
      "[2, 3] of blocks of 128 × 128",
    ],
    [
      "codes of another shape",
      float8("tensor"),
      "m0.weight",
      (t) => (t["m0.weight"] = resized(t["m0.weight"]!, 384, 192)),
      "expected [192, 384]",
    ],
    ["AWQ without scales", awq(32), "m0.qweight", (t) => delete t["m0.scales"], "is missing"],
    [
      "zeros of other groups",
      awq(32),
      "m0.qzeros",
      (t) => (t["m0.qzeros"] = resized(t["m0.qzeros"]!, 6, 24)),
      "expected [12, 24]",
    ],
    [
      "words of another number",
      gptq({ bits: 4, group: 64, version: "v1" }),
      "m1.qweight",
      (t) => (t["m1.qweight"] = resized(t["m1.qweight"]!, 49, 64)),
      "no codes of 4 or 8 bits",
    ],
    [
      "groups of different size",
      gptq({ bits: 4, group: 128, version: "v1", groupOf: SCATTERED }),
      "m0.g_idx",
      (t) => ((t["m0.g_idx"]!.data as Int32Array)[5]! ^= 1),
      "does not give each of 3 groups 128 columns",
    ],
    [
      "a group that is none",
      gptq({ bits: 4, group: 128, version: "v1", groupOf: SCATTERED }),
      "m0.g_idx",
      (t) => ((t["m0.g_idx"]!.data as Int32Array)[5] = -7),
      "does not give each of 3 groups 128 columns",
    ],
    [
      "another shape than is stated",
      packed(4, 64, true),
      "m0.weight_shape",
      (t) => ((t["m0.weight_shape"]!.data as BigInt64Array)[1] = 383n),
      "says [192, 383], expected [192, 384]",
    ],
    [
      "a shape beyond 32 bits",
      packed(4, 64, true),
      "m0.weight_shape",
      (t) => ((t["m0.weight_shape"]!.data as BigInt64Array)[1] = 384n + 2n ** 32n),
      "expected [192, 384]",
    ],
  ])("%s", async (_, make, tensor, change, rule) => {
    const { error, allocations } = await refusal(make, (tensors) => void change(tensors));
    expect(error.message).toContain(`model.safetensors: tensor "${tensor}" `);
    expect(error.message).toContain(rule);
    expect(allocations).toBe(0);
  });

  test.each<[string, MakeLayout, StoredSchemeOptions, string]>([
    ["zero points of AWQ", awq(32), { needsZeros: true }, "qzeros"],
    ["packed zero points", packed(4, 64, false), { needsZeros: true }, "weight_zero_point"],
    [
      "an order of columns",
      gptq({ bits: 4, group: 128, version: "v1", groupOf: SCATTERED }),
      { needsOrder: true },
      "g_idx",
    ],
    ["a packed order of columns", packed(4, 64, true), { needsOrder: true }, "weight_g_idx"],
  ])("%s that the config says are there", async (_, make, options, suffix) => {
    const { tensors } = makeBoth(make);
    for (const name of ["m0", "m1"]) delete tensors[`${name}.${suffix}`];
    await withCheckpoint(tensors, async (checkpoint) => {
      const error = thrown(() => plan(checkpoint, WHOLE, options)) as Error;
      expect(error).toBeInstanceOf(ModelDataError);
      expect(error.message).toContain(`needs "m0.${suffix}", which is missing`);
      // Where the config says nothing, the tensors do.
      plan(checkpoint, WHOLE);
    });
  });

  test.each<[string, MakeLayout, (tensors: Record<string, TensorData>) => void, string]>([
    [
      "3 bits",
      gptq({ bits: 4, group: 64, version: "v1" }),
      (t) => (t["m0.qweight"] = resized(t["m0.qweight"]!, 36, 192)),
      "has 3 bits a weight; 4 and 8 are supported",
    ],
    [
      "scales in float32",
      packed(4, 64, true),
      (t) => (t["m0.weight_scale"] = { dtype: "F32", shape: [192, 6], data: new Float32Array(192 * 6) }),
      "is F32; scales of integers are F16 or BF16",
    ],
    [
      "different bits in one product",
      packed(4, 64, true),
      (t) => (t["m1.weight_packed"] = resized(t["m1.weight_packed"]!, 64, 96)),
      "m0 and m1 are one product, but have different bits",
    ],
    [
      "floats beside integers in one product",
      awq(32),
      (t) => {
        for (const name of ["qweight", "qzeros", "scales"]) delete t[`m1.${name}`];
        t["m1.weight"] = { dtype: "BF16", shape: [64, 384], data: new Uint16Array(64 * 384) };
      },
      "m0 is stored as integers, m1 as floats",
    ],
    [
      "different orders in one product",
      gptq({ bits: 4, group: 128, version: "v1", groupOf: SCATTERED }),
      (t) => {
        const order = t["m1.g_idx"]!.data as Int32Array;
        [order[0], order[1]] = [order[1]!, order[0]!];
      },
      "different orders of columns",
    ],
  ])("%s: unsupported, and nothing is allocated", async (_, make, change, rule) => {
    const { error, allocations } = await refusal(make, (tensors) => void change(tensors));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect(error.message).toContain(rule);
    expect(error.file).toEndWith("model.safetensors");
    expect(allocations).toBe(0);
  });

  test.each<[string, MakeLayout, string, (tensors: Record<string, TensorData>) => void, string]>([
    [
      "a NaN among codes",
      float8("tensor"),
      "m0.weight",
      (t) => {
        const data = bytes(t["m0.weight"]!);
        data[data.length - 2] = 0xff;
        t["m0.weight"] = { ...t["m0.weight"]!, data };
      },
      "has a NaN",
    ],
    [
      "an infinite scale",
      float8("channel"),
      "m1.weight_scale",
      (t) => ((t["m1.weight_scale"]!.data as Float32Array)[3] = Infinity),
      "has a scale that is no finite number",
    ],
  ])("%s: found while reading, and all is freed", async (_, make, tensor, change, rule) => {
    const { error } = await refusal(make, (tensors) => void change(tensors));
    expect(error.message).toContain(`model.safetensors: tensor "${tensor}" ${rule}`);
  });

  test("a dtype that the layout does not have", async () => {
    const { error, allocations } = await refusal(awq(32), (tensors) => {
      tensors["m0.qweight"] = { ...tensors["m0.qweight"]!, dtype: "F32" };
    });
    expect(error.message).toContain("tensors of another dtype: m0.qweight (expected I32, found F32)");
    expect(allocations).toBe(0);
  });

  test("8-bit floats of another kind", () => {
    const scheme = new StoredScheme({
      find: (name) =>
        name === "m.weight" ? { dtype: "F8_E5M2", shape: [8, 16], file: "a file" } : undefined,
      words: () => new Int32Array(0),
      isZero: () => false,
    });
    const parts = [{ source: "m", rows: 8, rowSpan: { start: 0, end: 8 } }];
    const matrix = { name: "m", parts, columns: 16, columnSpan: { start: 0, end: 16 } };
    const get = () => expect.unreachable();
    expect(() => scheme.weight(matrix, get)).toThrow("is F8_E5M2; weights of 8-bit floats are F8_E4M3");
  });

  test("a bias of zeros that the model does not have is no error; another is", async () => {
    const { tensors } = makeBoth(awq(32));
    const bias = (value: number): TensorData => ({
      dtype: "F16",
      shape: [64],
      data: new Uint16Array(64).fill(value),
    });
    await withCheckpoint({ ...tensors, "m1.bias": bias(0) }, async (checkpoint) => {
      expect((await load(checkpoint, WHOLE)).length).toBe(256 * COLUMNS);
    });
    await withCheckpoint({ ...tensors, "m1.bias": bias(1) }, async (checkpoint) => {
      await expect(load(checkpoint, WHOLE)).rejects.toThrow("unexpected tensors: m1.bias");
    });
  });
});

describe("GPTQ's zero points", () => {
  test("that are all the middle need no memory", () =>
    withCheckpoint(makeBoth(gptq({ bits: 4, group: 64, version: "v1" })).tensors, async (checkpoint) => {
      expect(plan(checkpoint, WHOLE).specs.map(({ name }) => name)).toEqual([
        "m.weight",
        "m.scales",
        "m.zeros",
      ]);
      const { tensors } = makeBoth(gptq({ bits: 4, group: 64, version: "v1" }), (all) =>
        Object.fromEntries(
          Object.entries(all).map(([name, tensor]) => {
            if (!name.endsWith("qzeros")) return [name, tensor];
            return [name, { ...tensor, data: new Int32Array(tensor.data.byteLength / 4).fill(0x7777_7777) }];
          }),
        ),
      );
      await withCheckpoint(tensors, async (symmetric) => {
        expect(plan(symmetric, WHOLE).specs.map(({ name }) => name)).toEqual(["m.weight", "m.scales"]);
      });
    }));
});
