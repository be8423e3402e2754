import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, truncateSync, writeFileSync } from "node:fs";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { type FloatDType, narrow } from "../../../src/base/dtype.ts";
import { InvariantError, ModelDataError } from "../../../src/base/errors.ts";
import type { ParameterSpec } from "../../../src/base/parameter-spec.ts";
import { SplitMix64 } from "../../../src/base/random.ts";
import { bulkLoad } from "../../../src/loader/bulk-load.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import type { ChunkRead } from "../../../src/loader/chunk-reader.ts";
import type { WeightChunk } from "../../../src/loader/weight-plan.ts";
import { WeightReader } from "../../../src/loader/weight-reader.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { eventually, temporaryFolder } from "../../support.ts";
import { bytesOf, FakeBackend, FakeBulkBackend } from "./fake-backend.ts";
import { safetensors, spec, type TensorData } from "./support.ts";

setDefaultTimeout(300_000);

const DTYPES = { F32: "float32", F16: "float16", BF16: "bfloat16" } as const;

/** Values that no conversion turns into NaN or infinity. */
function randomTensor(dtype: keyof typeof DTYPES, shape: number[], seed: number): TensorData {
  const random = new SplitMix64(seed);
  const size = shape.reduce((product, extent) => product * extent, 1);
  const values = Float32Array.from({ length: size }, () => (Number(random.next() >> 32n) / 2 ** 32) * 8 - 4);
  return { dtype, shape, data: narrow(values, DTYPES[dtype]) };
}

/** The temporary folder goes, and the files are closed, when the block that declared it with `using` ends. */
function openCheckpoint(tensors: Record<string, TensorData>): Disposable & { checkpoint: Checkpoint } {
  const folder = temporaryFolder();
  writeFileSync(folder.file("model.safetensors"), safetensors(tensors));
  const checkpoint = Checkpoint.open(folder.path);
  return {
    checkpoint,
    [Symbol.dispose]() {
      checkpoint[Symbol.dispose]();
      folder[Symbol.dispose]();
    },
  };
}

/** A merged parameter, a row-sharded, a column-sharded and a small one, in every dtype. No size is a power of two. */
function mixedModel(): { tensors: Record<string, TensorData>; specs: ParameterSpec[] } {
  const dtypes = Object.keys(DTYPES) as (keyof typeof DTYPES)[];
  const tensors: Record<string, TensorData> = {};
  const specs: ParameterSpec[] = [];
  for (const [i, dtype] of dtypes.entries()) {
    const [q, k, down, norm] = ["q", "k", "down", "norm"].map((name) => `${dtype}.${name}`) as [
      ...[string, string, string, string],
    ];
    tensors[norm] = randomTensor(dtype, [3], i);
    tensors[q] = randomTensor(dtype, [101, 77], i + 10);
    tensors[k] = randomTensor(dtype, [53, 77], i + 20);
    tensors[down] = randomTensor(dtype, [211, 67], i + 30);
    const rows = { name: q, shape: [101, 77], slice: { dim: 0, start: 17, end: 100 } } as const;
    const columns = { name: down, shape: [211, 67], slice: { dim: 1, start: 13, end: 62 } } as const;
    specs.push(
      spec(`${dtype}.qk`, [154, 77], { name: q, shape: [101, 77] }, { name: k, shape: [53, 77] }),
      spec(`${dtype}.rows`, [136, 77], rows, { name: k, shape: [53, 77] }),
      spec(`${dtype}.columns`, [211, 49], columns),
      spec(`${dtype}.norm`, [3], { name: norm, shape: [3] }),
    );
  }
  return { tensors, specs };
}

const numThreads = () => readdirSync("/proc/self/task").length;
const numFiles = () => readdirSync("/proc/self/fd").length;

const same = (a: Tensor, b: Tensor) => Buffer.compare(bytesOf(a), bytesOf(b)) === 0;

describe("bulk loading", () => {
  test.each(Object.values(DTYPES))("to %s: the same bytes as on one thread, none beside", async (dtype) => {
    const { tensors, specs } = mixedModel();
    using file = openCheckpoint(tensors);
    const plain = new FakeBackend();
    const expected = await loadWeights(file.checkpoint, specs, plain.backend, { dtype, ignored: [] });
    const bulk = new FakeBulkBackend(5, 1234);
    const progress: [number, number][] = [];
    const weights = await loadWeights(file.checkpoint, specs, bulk.backend, {
      dtype,
      ignored: [],
      readers: 3,
      onProgress: (loaded, total) => progress.push([loaded, total]),
    });
    expect([...weights.keys()]).toEqual([...expected.keys()]);
    for (const [name, tensor] of weights)
      expect([name, same(tensor, expected.get(name)!)]).toEqual([name, true]);
    expect(bulk.guardsHold && plain.guardsHold).toBe(true);
    expect(new Set(bulk.buffersUsed).size).toBe(5);
    expect(bulk.committed.length).toBeGreaterThan(200);
    expect(bulk.liveBulkUploads).toBe(0);
    const loaded = progress.map(([bytes]) => bytes);
    expect(loaded).toEqual(loaded.toSorted((a, b) => a - b));
    expect(progress).toHaveLength(bulk.committed.length);
    expect(progress.at(-1)).toEqual([progress[0]![1], progress[0]![1]]);
  });

  test("a chunk that takes long does not hold up those after it", async () => {
    const size = 4_000_000;
    const data = randomTensor("F32", [size], 1);
    using file = openCheckpoint({ w: data });
    const { file: source, begin } = file.checkpoint.tensors.get("w")!;
    const bulk = new FakeBulkBackend(6, 2 * size);
    const targets = { small: bulk.empty("bfloat16", [25]), large: bulk.empty("bfloat16", [size]) };
    const chunk = (target: Tensor): WeightChunk => ({
      read: {
        ...{ name: "w", path: source.path, fd: source.fd, begin, end: begin + 4 * target.size },
        ...{ rowBytes: 4, columnBegin: 0, columnEnd: 4, dtype: "float32", targetDtype: "bfloat16" },
      },
      target,
    });
    // Small ones until both readers have delivered what they began with; then the large one among small ones.
    const unread = new Set([1, 2, 3, 4].map(() => chunk(targets.small)));
    const isDone = () => bulk.committed.includes(targets.large);
    const chunks = function* () {
      yield* unread;
      while (unread.size > 0) yield chunk(targets.small);
      yield chunk(targets.large);
      while (!isDone()) yield chunk(targets.small);
    };
    let overtaking = -4; // As many may have been under way when the large one began.
    const upload = bulk.bulkUpload();
    await bulkLoad(chunks(), upload, 2, (done) => {
      unread.delete(done);
      if (unread.size === 0 && !isDone()) overtaking++;
    });
    upload.dispose();
    expect(overtaking).toBeGreaterThan(0);
    const expected = narrow(new Float32Array(data.data.buffer), "bfloat16");
    expect(Buffer.compare(bytesOf(targets.large), expected)).toBe(0);
    expect(Buffer.compare(bytesOf(targets.small), expected.subarray(0, 50))).toBe(0);
    expect(bulk.guardsHold).toBe(true);
  });

  test("less than 64 MiB, one reader, or no bulk uploads: this thread alone", async () => {
    using file = openCheckpoint({ w: randomTensor("F32", [7], 1) });
    const specs = [spec("w", [7], { name: "w", shape: [7] })];
    const bulk = new FakeBulkBackend(2, 4096);
    const load = (readers?: number) =>
      loadWeights(file.checkpoint, specs, bulk.backend, {
        dtype: "float32",
        ignored: [],
        ...(readers && { readers }),
      });
    await expect(load()).rejects.toThrow("upload beside a bulk upload");
    await expect(load(1)).rejects.toThrow("upload beside a bulk upload");
    expect(bulk.bulkUploads).toBe(0);
    expect(bulk.live).toBe(0);
    const plain = new FakeBackend();
    const weights = await loadWeights(file.checkpoint, specs, plain.backend, {
      dtype: "float32",
      ignored: [],
      readers: 4,
    });
    expect(plain.largestUpload).toBe(28);
    expect((await load(2)).size).toBe(weights.size);
    expect(bulk.bulkUploads).toBe(1);
  });
});

describe("failures of bulk loading", () => {
  const shape = [300, 100];
  const specs = ["a", "b", "c"].map((name) => spec(name, shape, { name, shape }));
  const tensors = Object.fromEntries(
    ["a", "b", "c"].map((name, i) => [name, randomTensor("F32", shape, i)] as const),
  );

  async function failingLoad(
    arrange: (bulk: FakeBulkBackend, checkpoint: Checkpoint) => void,
    onProgress: () => void = () => {},
    dtype: FloatDType = "bfloat16",
  ) {
    using file = openCheckpoint(tensors);
    const bulk = new FakeBulkBackend(4, 4096);
    arrange(bulk, file.checkpoint);
    const options = { dtype, ignored: [], readers: 2, onProgress };
    const outcome = loadWeights(file.checkpoint, specs, bulk.backend, options);
    const error = await outcome.then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(bulk.live).toBe(0);
    expect(bulk.liveBulkUploads).toBe(0);
    expect(bulk.guardsHold).toBe(true);
    return { error, bulk };
  }

  test("a file that shrinks is a ModelDataError naming it", async () => {
    const { error, bulk } = await failingLoad((_, checkpoint) => {
      const { file, end } = checkpoint.tensors.get("b")!;
      truncateSync(file.path, end - 4);
    });
    expect(error).toBeInstanceOf(ModelDataError);
    const { file, message } = error as ModelDataError;
    expect(message).toBe(`${file}: became shorter while being read`);
    expect(file).toEndWith("model.safetensors");
    expect(bulk.committed.length).toBeLessThan(60);
  });

  test("what a commit or the progress callback throws comes out as it is", async () => {
    const reason = new Error("copy failed");
    const failAtSeventh = (count: number) => {
      if (count === 7) throw reason;
    };
    const commit = await failingLoad((bulk) => {
      bulk.onCommit = failAtSeventh;
    });
    expect(commit.error).toBe(reason);
    let reports = 0;
    const progress = await failingLoad(
      () => {},
      () => failAtSeventh(reports++),
    );
    expect(progress.error).toBe(reason);
    // At most what the other lanes were reading is committed after the error.
    expect(progress.bulk.committed.length).toBeLessThanOrEqual(8 + 3);
  });

  test("a reader that dies rejects what it was reading and all that comes after", async () => {
    using file = openCheckpoint(tensors);
    const { file: source, begin } = file.checkpoint.tensors.get("a")!;
    const chunk: ChunkRead = {
      ...{ name: "a", path: source.path, fd: source.fd, begin, end: begin + 64, rowBytes: 64 },
      ...{ columnBegin: 0, columnEnd: 64, dtype: "float32", targetDtype: "bfloat16" },
    };
    const bulk = new FakeBulkBackend(1, 4096);
    const upload = bulk.bulkUpload();
    const [buffer] = upload.buffers;
    using reader = new WeightReader();
    await reader.read(chunk, buffer!.address, 32);
    const reads = await Promise.allSettled([
      reader.read(chunk, buffer!.address, 31),
      reader.read(chunk, buffer!.address, 32),
    ]);
    for (const read of reads) {
      expect(read.status).toBe("rejected");
      expect((read as PromiseRejectedResult).reason).toBeInstanceOf(InvariantError);
    }
    await expect(reader.read(chunk, buffer!.address, 32)).rejects.toThrow("16 elements for 31 bytes");

    const target = bulk.empty("bfloat16", [16]);
    const chunks = function* () {
      for (let i = 0; i < 100; i++)
        yield { read: { ...chunk, end: i === 3 ? begin + 8192 : chunk.end }, target };
    };
    const small = {
      buffers: [{ ...buffer!, byteLength: 32, wait: () => {}, commit: () => {} }],
      dispose() {},
    };
    await expect(bulkLoad(chunks(), small, 1, () => {})).rejects.toThrow("a weight reader died");
  });

  test("no thread and no file stays open, however loading ends", async () => {
    const load = async () => {
      using file = openCheckpoint(tensors);
      const bulk = new FakeBulkBackend(4, 4096);
      await loadWeights(file.checkpoint, specs, bulk.backend, { dtype: "float32", ignored: [], readers: 4 });
      await failingLoad((failing) => {
        failing.onCommit = () => {
          throw new Error("copy failed");
        };
      });
    };
    await load();
    const before = { threads: numThreads(), files: numFiles() };
    for (let i = 0; i < 4; i++) await load();
    // Workers take a moment to end, and the runtime has threads of its own that come and go.
    await eventually(() => numThreads() < before.threads + 8 && numFiles() <= before.files);
  });
});
