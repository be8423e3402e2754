import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Backend } from "../../../src/backend/backend.ts";
import { ConfigError, DeviceError } from "../../../src/base/errors.ts";
import { DRIVER_BYTES, KvPlan, type PoolShape } from "../../../src/runner/kv-plan.ts";

setDefaultTimeout(300_000);

const LIMIT = 1024;
/** 1 KiB of keys and values a token. */
const SHAPE: PoolShape = {
  layers: [1, 3].map((numKvHeads) => ({ numKvHeads, headDim: 64, window: 0 })),
  ...{ blockSize: 16, kvDtype: "bfloat16" },
};
type Options = ConstructorParameters<typeof KvPlan>[2];
const OPTIONS: Options = {
  ...{ maxModelLen: undefined, maxNumSeqs: 4 },
  ...{ gpuMemoryUtilization: 1, kvCacheMemoryBytes: undefined },
};

/** A GPU of 1 MiB besides what is the driver's, of which `free` are free; changes with `free`. */
class Gpu {
  constructor(public free: number) {}
  readonly backend = {
    memory: () => ({ free: DRIVER_BYTES + this.free, total: DRIVER_BYTES + 2 ** 20 }),
  } as unknown as Backend;
}

const host = {} as unknown as Backend;
const KIB = 1024;

describe("on a GPU", () => {
  test("the pool is what is left; the model's limit is the default when it fits", () => {
    const plan = new KvPlan(200, SHAPE, OPTIONS, new Gpu(1000 * KIB).backend);
    expect(plan.maxModelLen).toBe(200);
    expect(plan.numBlocks()).toBe(Math.floor(1000 / 16));
  });

  test("a default that turns out longer than the pool is no error, what was asked for is", () => {
    const gpu = new Gpu(500 * KIB);
    const plans = [undefined, 384].map(
      (maxModelLen) => new KvPlan(LIMIT, SHAPE, { ...OPTIONS, maxModelLen }, gpu.backend),
    );
    expect(plans.map(({ maxModelLen }) => maxModelLen)).toEqual([400, 384]);
    gpu.free = 100 * KIB; // Activations took more than was estimated.
    expect(plans[0]!.numBlocks()).toBe(6);
    expect(() => plans[1]!.numBlocks()).toThrow(DeviceError);
    expect(() => plans[1]!.numBlocks()).toThrow("or set maxModelLen to 96 at most");
  });

  test("a share of the memory that leaves the driver enough is all given", () => {
    const gpu = new Gpu(2 ** 20);
    const share = 2 ** 19 / (DRIVER_BYTES + 2 ** 20);
    const plan = new KvPlan(32, SHAPE, { ...OPTIONS, gpuMemoryUtilization: share }, gpu.backend);
    expect(plan.numBlocks()).toBe(512 / 16);
  });

  test("no room at all is an error that suggests no length", () => {
    const gpu = new Gpu(500 * KIB);
    const plan = new KvPlan(LIMIT, SHAPE, OPTIONS, gpu.backend);
    gpu.free = 15 * KIB;
    expect(() => plan.numBlocks()).toThrow(/raise it or free GPU memory$/);
  });
});

describe("of a given size", () => {
  const plan = (options: Partial<Options>, shape: Partial<PoolShape> = {}) =>
    new KvPlan(
      LIMIT,
      { ...SHAPE, ...shape },
      { ...OPTIONS, kvCacheMemoryBytes: 100 * KIB, ...options },
      host,
    );

  test("what cannot be used is not allocated", () => {
    expect(plan({}).numBlocks()).toBe(6);
    expect(plan({ maxModelLen: 17, maxNumSeqs: 2 }).numBlocks()).toBe(4);
    expect(plan({ maxModelLen: 17 }, { blockSize: 1 }).numBlocks()).toBe(68);
    expect(plan({}, { kvDtype: "float32" }).numBlocks()).toBe(3);
    expect(plan({}, { kvDtype: "float8_e4m3" }).numBlocks()).toBe(12);
  });

  test("less than one sequence, or one block, is refused with what would help", () => {
    expect(() => plan({ maxModelLen: 97 })).toThrow(ConfigError);
    expect(() => plan({ maxModelLen: 97 })).toThrow("raise kvCacheMemoryBytes, or set maxModelLen to 96");
    expect(() => plan({}, { blockSize: 256 })).toThrow(/raise kvCacheMemoryBytes$/);
  });

  test("block tables that an int32 cannot index are refused", () => {
    const options = { ...OPTIONS, maxModelLen: 2 ** 20, maxNumSeqs: 4096, kvCacheMemoryBytes: 2 ** 42 };
    expect(() => new KvPlan(2 ** 24, { ...SHAPE, blockSize: 1 }, options, host)).toThrow(/raise blockSize/);
    expect(new KvPlan(2 ** 24, SHAPE, options, host).numBlocks()).toBe(2 ** 27 - 2);
  });
});

describe("layers with and without windows", () => {
  const KIB_A_TOKEN = { numKvHeads: 4, headDim: 64 } as const;
  const layers = [0, 100, 100].map((window) => ({ ...KIB_A_TOKEN, window }));
  const plan = (blocks: number, options: Partial<Options> = {}) =>
    new KvPlan(
      LIMIT,
      { ...SHAPE, layers },
      { ...OPTIONS, kvCacheMemoryBytes: blocks * 16 * KIB, ...options },
      host,
    );
  // A window and a tile are seen in 16 blocks of 16 tokens at most.
  const perWindow = Math.ceil((100 + 127 - 1) / 16) + 1;

  test("a sequence needs all of its blocks in one group, and a window's in the others", () => {
    expect(plan(40 + 2 * perWindow).maxModelLen).toBe(640);
    expect(plan(1000).maxModelLen).toBe(LIMIT);
    expect(plan(1000).numBlocks()).toBe(3 * 64 * 4);
    const least = 64 + 2 * perWindow;
    expect(plan(least, { maxModelLen: LIMIT }).numBlocks()).toBe(least);
    expect(() => plan(least - 1, { maxModelLen: LIMIT })).toThrow("or set maxModelLen to 1008");
  });

  test("that no sequence outgrows are one group, whose blocks are of all layers", () => {
    const short = plan(1000, { maxModelLen: 200 });
    expect(short.layout.groups).toEqual([{ reach: Infinity, parts: 1 }]);
    expect(short.numBlocks()).toBe(13 * 4);
  });

  test("where layers share a column, a token has a number for each of them", () => {
    const half = layers.map((layer) => ({ ...layer, numKvHeads: layer.window > 0 ? 2 : 4 }));
    const options = { ...OPTIONS, maxNumSeqs: 4096, kvCacheMemoryBytes: 2 ** 43, maxModelLen: 2 ** 18 };
    const plan = new KvPlan(2 ** 24, { ...SHAPE, layers: half }, options, host);
    expect(plan.layout.groups.map(({ parts }) => parts)).toEqual([1, 2]);
    expect(plan.numBlocks()).toBe(2 ** 26 - 2);
  });

  test("block tables of all groups are counted", () => {
    const options = { ...OPTIONS, maxNumSeqs: 8191, kvCacheMemoryBytes: 2 ** 42, maxModelLen: 2 ** 22 };
    const shape = { ...SHAPE, layers, blockSize: 32 };
    expect(() => new KvPlan(2 ** 24, shape, options, host)).toThrow(/block tables of 3221225472 entries/);
    const whole = layers.map((layer) => ({ ...layer, window: 0 }));
    expect(new KvPlan(2 ** 24, { ...shape, layers: whole }, options, host).maxModelLen).toBe(2 ** 22);
  });
});

describe("states beside the pool", () => {
  const plan = (backend: Backend, stateBytes: number, options: Partial<Options> = {}) =>
    new KvPlan(64, SHAPE, { ...OPTIONS, ...options }, backend, stateBytes);
  const pool = { kvCacheMemoryBytes: 1000 * KIB };

  test("take what they need, and blocks the rest", () => {
    const roomy = plan(host, 50 * KIB, { ...pool, maxNumSeqs: 64 });
    expect([roomy.maxNumSeqs, roomy.numBlocks()]).toEqual([9, (1000 - 10 * 50 - 4) / 16]);
    expect(plan(host, 50 * KIB, { ...pool, maxNumSeqs: 3 }).maxNumSeqs).toBe(3);
    expect(() => plan(host, 50 * KIB, { ...pool, maxModelLen: 64, kvCacheMemoryBytes: 101 * KIB })).toThrow(
      "state takes 50 KiB, and as much again for padding; there is room for 50.5 KiB",
    );
  });

  test("have snapshots beside them where prefixes are cached", () => {
    const cached = { ...pool, maxNumSeqs: 12, enablePrefixCaching: true };
    const { numSnapshots } = plan(host, 30 * KIB, cached);
    expect(numSnapshots).toBe(3);
    expect(plan(host, 30 * KIB, cached).numBlocks()).toBe(Math.floor((1000 - 16 * 30) / 16));
    expect(plan(host, 30 * KIB, { ...cached, enablePrefixCaching: false }).numSnapshots).toBe(0);
    expect(plan(host, 0, cached).numSnapshots).toBe(0);
  });

  test("are part of what a GPU has left: they are allocated before blocks are counted", () => {
    const gpu = new Gpu(1000 * KIB);
    const measured = plan(gpu.backend, 50 * KIB, { maxNumSeqs: 64 });
    expect(measured.maxNumSeqs).toBe(400 / 50 - 1);
    gpu.free -= 8 * 50 * KIB;
    expect(measured.numBlocks()).toBe(Math.floor(600 / 16));
    expect(() => plan(new Gpu(100 * KIB).backend, 50 * KIB)).toThrow(DeviceError);
  });
});
