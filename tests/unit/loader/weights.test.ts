import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { truncateSync, writeFileSync } from "node:fs";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { type FloatDType, narrow, widen } from "../../../src/base/dtype.ts";
import { ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import type { ParameterSpec } from "../../../src/base/parameter-spec.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { dummyWeights } from "../../../src/loader/dummy-weights.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { temporaryFolder } from "../../support.ts";
import { bytesOf, FakeBackend } from "./fake-backend.ts";
import { f32, safetensors, spec, type TensorData } from "./support.ts";

setDefaultTimeout(300_000);

function valuesOf(tensor: Tensor | undefined): number[] {
  const values = new Float32Array(tensor!.size);
  widen(bytesOf(tensor!), tensor!.dtype as FloatDType, values);
  return [...values];
}

async function withCheckpoint(
  tensors: Record<string, TensorData>,
  run: (checkpoint: Checkpoint) => Promise<void>,
): Promise<void> {
  using folder = temporaryFolder();
  writeFileSync(folder.file("model.safetensors"), safetensors(tensors));
  using checkpoint = Checkpoint.open(folder.path);
  await run(checkpoint);
}

describe("loadWeights", () => {
  const q = f32([4, 2], [0, 1, 2, 3, 4, 5, 6, 7]);
  const k = f32([2, 2], [10, 11, 12, 13]);

  test("stacks sources along dimension 0", () =>
    withCheckpoint({ q, k }, async (checkpoint) => {
      const qkv = spec("qkv", [6, 2], { name: "k", shape: [2, 2] }, { name: "q", shape: [4, 2] });
      const progress: [number, number][] = [];
      const weights = await loadWeights(checkpoint, [qkv], new FakeBackend().backend, {
        dtype: "float32",
        ignored: [],
        onProgress: (loaded, total) => progress.push([loaded, total]),
      });
      expect(valuesOf(weights.get("qkv"))).toEqual([10, 11, 12, 13, 0, 1, 2, 3, 4, 5, 6, 7]);
      expect(weights.get("qkv")!.shape).toEqual([6, 2]);
      expect(progress).toEqual([
        [16, 48],
        [48, 48],
      ]);
    }));

  test("slices dimension 0 and dimension 1, before stacking", () =>
    withCheckpoint({ q, k, bias: f32([4]) }, async (checkpoint) => {
      const specs = [
        spec(
          "rows",
          [3, 2],
          { name: "q", shape: [4, 2], slice: { dim: 0, start: 2, end: 4 } },
          { name: "k", shape: [2, 2], slice: { dim: 0, start: 1, end: 2 } },
        ),
        spec("columns", [4, 1], { name: "q", shape: [4, 2], slice: { dim: 1, start: 1, end: 2 } }),
        spec("bias", [2], { name: "bias", shape: [4], slice: { dim: 0, start: 1, end: 3 } }),
      ];
      const weights = await loadWeights(checkpoint, specs, new FakeBackend().backend, {
        dtype: "float32",
        ignored: [],
      });
      expect(valuesOf(weights.get("rows"))).toEqual([4, 5, 6, 7, 12, 13]);
      expect(valuesOf(weights.get("columns"))).toEqual([1, 3, 5, 7]);
      expect(valuesOf(weights.get("bias"))).toEqual([1, 2]);
    }));

  test("converts between every pair of float dtypes", async () => {
    const values = [0, -1, 0.5, 3.140625, 100];
    const names = { F32: "float32", F16: "float16", BF16: "bfloat16" } as const;
    for (const [dtype, from] of Object.entries(names)) {
      for (const to of Object.values(names)) {
        const data = narrow(Float32Array.from(values), from);
        await withCheckpoint({ w: { dtype, shape: [5], data } }, async (checkpoint) => {
          const specs = [spec("w", [5], { name: "w", shape: [5] })];
          const weights = await loadWeights(checkpoint, specs, new FakeBackend().backend, {
            dtype: to,
            ignored: [],
          });
          expect(weights.get("w")!.dtype).toBe(to);
          expect(valuesOf(weights.get("w"))).toEqual(values);
        });
      }
    }
  });

  test("chunks of at most 16 MiB, whole and column-sliced", async () => {
    const shape = [2100, 2048];
    await withCheckpoint({ w: f32(shape) }, async (checkpoint) => {
      const fake = new FakeBackend();
      const specs = [
        spec("w", shape, { name: "w", shape }),
        spec("half", [2100, 1024], { name: "w", shape, slice: { dim: 1, start: 1024, end: 2048 } }),
      ];
      const progress: [number, number][] = [];
      const weights = await loadWeights(checkpoint, specs, fake.backend, {
        ...{ dtype: "float32", ignored: [] },
        onProgress: (loaded, total) => progress.push([loaded, total]),
      });
      expect(fake.largestUpload).toBe(16 * 1024 * 1024);
      const [whole, half] = [2100 * 2048 * 4, 2100 * 1024 * 4];
      expect(progress.at(-1)).toEqual([whole + half, whole + half]);
      const view = (name: string) => {
        const bytes = bytesOf(weights.get(name)!);
        return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      };
      expect(view("w").every((value, i) => value === i)).toBe(true);
      expect(
        view("half").every((value, i) => value === Math.floor(i / 1024) * 2048 + 1024 + (i % 1024)),
      ).toBe(true);
    });
  });

  test.each([
    [1023, "all of their rows are read", 2048],
    [1024, "they alone are read", 1024],
  ])("of %d columns, %s", (columns, _, read) =>
    withCheckpoint({ w: f32([7, 2048]) }, async (checkpoint) => {
      let total = 0;
      const slice = { dim: 1, start: 512, end: 512 + columns } as const;
      const specs = [spec("part", [7, columns], { name: "w", shape: [7, 2048], slice })];
      const weights = await loadWeights(checkpoint, specs, new FakeBackend().backend, {
        ...{ dtype: "bfloat16", ignored: [] },
        onProgress: (_loaded, bytes) => {
          total = bytes;
        },
      });
      expect(total).toBe(7 * read * 4);
      const expected = new Float32Array(7 * columns).map(
        (_, i) => Math.floor(i / columns) * 2048 + 512 + (i % columns),
      );
      expect([...bytesOf(weights.get("part")!)]).toEqual([...narrow(expected, "bfloat16")]);
    }),
  );

  test("missing, misshapen, unexpected and unloadable tensors are named before anything is allocated", async () => {
    const tensors = {
      a: f32([2]),
      extra: f32([1]),
      ids: { dtype: "I32", shape: [1], data: new Int32Array(1) },
    };
    const a = spec("a", [2], { name: "a", shape: [2] });
    const many = Array.from({ length: 8 }, (_, i) => spec(`m${i}`, [1], { name: `m${i}`, shape: [1] }));
    const ids = spec("ids", [1], { name: "ids", shape: [1] });
    // Packed numbers have another shape, too: that is not what is wrong with them.
    const packed = spec("ids", [8], { name: "ids", shape: [8] });
    const cases: [ParameterSpec[], RegExp[], string][] = [
      [[a, ...many], [], "missing tensors: m0, m1, m2, m3, m4 and 3 more"],
      [
        [spec("a", [2, 1], { name: "a", shape: [2, 1] })],
        [],
        "misshapen tensors: a (expected [2, 1], found [2])",
      ],
      [[a], [], "unexpected tensors: extra, ids"],
      [[a], [/^ids$/], "unexpected tensors: extra"],
      [[a, ids], [/^extra$/], "not BF16, F16 or F32: ids (I32)"],
      [[a, packed], [], "not BF16, F16 or F32: ids (I32)"],
    ];
    await withCheckpoint(tensors, async (checkpoint) => {
      for (const [specs, ignored, message] of cases) {
        const fake = new FakeBackend();
        const load = () => loadWeights(checkpoint, specs, fake.backend, { dtype: "float32", ignored });
        await expect(load()).rejects.toThrow(ModelDataError);
        await expect(load()).rejects.toThrow(message);
        expect(fake.allocations).toBe(0);
      }
      const load = () =>
        loadWeights(checkpoint, [a, ids], new FakeBackend().backend, { dtype: "float32", ignored: [/x/] });
      await expect(load()).rejects.toThrow(UnsupportedModelError);
      const ignored = [/^extra$/g, /^ids$/];
      const weights = await loadWeights(checkpoint, [a], new FakeBackend().backend, {
        dtype: "float32",
        ignored,
      });
      expect(weights.size).toBe(1);
    });
  });

  test("names of a file are quoted in messages unless they are words", async () => {
    await withCheckpoint({ "a\u001b[31m\nb": f32([1]) }, async (checkpoint) => {
      const load = loadWeights(checkpoint, [], new FakeBackend().backend, { dtype: "float32", ignored: [] });
      await expect(load).rejects.toThrow('unexpected tensors: "a\\u001b[31m\\nb"');
    });
  });

  test("what is wrong in one of several files is named with it", async () => {
    using folder = temporaryFolder();
    const places = { a: "1.safetensors", b: "2.safetensors", c: "2.safetensors" };
    writeFileSync(folder.file("1.safetensors"), safetensors({ a: f32([2]) }));
    writeFileSync(folder.file("2.safetensors"), safetensors({ b: f32([2]), c: f32([2]) }));
    writeFileSync(folder.file("model.safetensors.index.json"), JSON.stringify({ weight_map: places }));
    using checkpoint = Checkpoint.open(folder.path);
    const sized = (name: string, size: number) => spec(name, [size], { name, shape: [size] });
    const refusal = async (...specs: ParameterSpec[]) => {
      const { backend } = new FakeBackend();
      const loading = loadWeights(checkpoint, specs, backend, { dtype: "float32", ignored: [] });
      return await loading.then(
        () => "none",
        (error: Error) => error.message,
      );
    };
    expect(await refusal(sized("a", 2), sized("b", 3), sized("c", 2))).toStartWith(
      `${folder.file("2.safetensors")}: misshapen tensors: b (expected [3], found [2])`,
    );
    expect(await refusal(sized("a", 3), sized("b", 3), sized("c", 2))).toEndWith("; 1 in other files");
    expect(await refusal(sized("a", 2), sized("c", 2))).toStartWith(
      `${folder.file("2.safetensors")}: unexpected tensors: b`,
    );
    expect(await refusal(sized("d", 2))).toStartWith(`${folder.path}: missing tensors: d`);
  });

  test("a file that shrinks while loading is an error, and what was allocated is freed", () =>
    withCheckpoint({ a: f32([2]), b: f32([4]) }, async (checkpoint) => {
      const fake = new FakeBackend();
      const { file, end } = checkpoint.tensors.get("b")!;
      truncateSync(file.path, end - 4);
      const specs = ["a", "b"].map((name, i) => spec(name, [2 + 2 * i], { name, shape: [2 + 2 * i] }));
      const load = loadWeights(checkpoint, specs, fake.backend, { dtype: "float32", ignored: [] });
      await expect(load).rejects.toThrow("became shorter");
      expect(fake.allocations).toBe(2);
      expect(fake.live).toBe(0);
    }));
});

describe("dummyWeights", () => {
  const specs: ParameterSpec[] = [
    { name: "w", shape: [1500, 1024], sources: [], dummy: "normal" },
    { name: "v", shape: [7, 111], sources: [], dummy: "normal" },
    { name: "norm", shape: [7], sources: [], dummy: "ones" },
    { name: "bias", shape: [7], sources: [], dummy: "zeros" },
  ];
  const make = (seed: number) => {
    const fake = new FakeBackend();
    const weights = dummyWeights(specs, fake.backend, "bfloat16", seed);
    expect(fake.live).toBe(specs.length);
    expect(fake.guardsHold).toBe(true);
    return weights;
  };

  test("normal values have mean 0 and standard deviation 0.02, and do not repeat by row", () => {
    const weights = make(0);
    const values = valuesOf(weights.get("w"));
    const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
    const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(1e-4);
    expect(Math.abs(Math.sqrt(variance) - 0.02)).toBeLessThan(1e-4);
    const rows = Array.from({ length: 1500 }, (_, i) => values.slice(1024 * i, 1024 * (i + 1)).join());
    expect(new Set(rows).size).toBe(1500);
    expect(valuesOf(weights.get("norm"))).toEqual(new Array(7).fill(1));
    expect(valuesOf(weights.get("bias"))).toEqual(new Array(7).fill(0));
  });

  test("the same seed gives the same values, another seed others", () => {
    const first = valuesOf(make(5).get("v"));
    expect(valuesOf(make(5).get("v"))).toEqual(first);
    expect(valuesOf(make(6).get("v"))).not.toEqual(first);
  });
});
