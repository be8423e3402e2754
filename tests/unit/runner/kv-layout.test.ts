import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import fc from "fast-check";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import type { PlacedBuffer } from "../../../src/backend/simd/place.ts";
import { SimdBackend } from "../../../src/backend/simd/simd-backend.ts";
import { blocksOfSequence, tokensInPool } from "../../../src/base/kv-group.ts";
import { readModelConfig } from "../../../src/models/config.ts";
import { type CachedLayer, cachedLayersOf } from "../../../src/models/kv-heads.ts";
import { deviceBlock, KvCache } from "../../../src/runner/kv-cache.ts";
import { type KvLayout, kvLayout } from "../../../src/runner/kv-layout.ts";
import PUBLISHED from "../../model/published-configs.json" with { type: "json" };
import { temporaryFolder } from "../../support.ts";

setDefaultTimeout(300_000);

/** A layer without a window, or with one, of so many heads. */
const layer = (window: number, numKvHeads = 1, headDim = 8): CachedLayer => ({
  numKvHeads,
  headDim,
  window,
});
const repeat = (count: number, ...layers: CachedLayer[]) => Array<CachedLayer[]>(count).fill(layers).flat();
const reaches = ({ groups }: KvLayout) => groups.map(({ reach }) => reach);

describe("one group", () => {
  const everywhere = (layers: readonly CachedLayer[], maxModelLen = 4096) => {
    const layout = kvLayout(layers, maxModelLen);
    expect(layout.columns).toEqual(layers.map(({ numKvHeads, headDim }) => numKvHeads * headDim));
    expect(layout.layers.map(({ column }) => column)).toEqual([...layers.keys()]);
    return reaches(layout);
  };

  test("where no layer has a window, or all have: a tile beyond the widest", () => {
    expect(everywhere([layer(0), layer(0, 3)])).toEqual([Infinity]);
    expect(everywhere([layer(48), layer(100), layer(48)])).toEqual([100 + 127]);
  });

  test("where no sequence becomes as long as a window, or sizes do not fit into each other", () => {
    expect(everywhere([layer(48), layer(0)], 48 + 127)).toEqual([Infinity]);
    expect(reaches(kvLayout([layer(48), layer(0)], 48 + 128))).toEqual([Infinity, 48 + 127]);
    expect(everywhere([layer(48, 3), layer(0, 2)])).toEqual([Infinity]);
    expect(everywhere([layer(48), layer(48, 2), layer(0, 2)])).toEqual([Infinity]);
  });
});

describe("groups", () => {
  const published = (name: keyof typeof PUBLISHED) => {
    using folder = temporaryFolder();
    writeFileSync(folder.file("config.json"), JSON.stringify(PUBLISHED[name].config));
    const config = readModelConfig(folder.path);
    const layers = cachedLayersOf(config, { rank: 0, size: 1 });
    return { layers, layout: kvLayout(layers, config.maxPositionEmbeddings) };
  };

  test.each<[name: keyof typeof PUBLISHED, columns: number, whole: number, windowed: number, reach: number]>([
    ["openai/gpt-oss-20b", 12, 1, 1, 255],
    ["google/gemma-2-9b-it", 21, 1, 1, 4223],
    ["google/gemma-3-4b-it", 5, 1, 6, 1151],
    ["google/gemma-3-12b-it", 8, 1, 5, 1151],
    ["google/gemma-3-27b-it", 5, 2, 11, 1151],
    ["allenai/Olmo-3-7B-Instruct", 8, 1, 3, 4223],
  ])(
    "of %s: %d columns, %d groups without a window and %d with one",
    (name, columns, whole, windowed, reach) => {
      const { layers, layout } = published(name);
      expect(layout.columns).toHaveLength(columns);
      expect(reaches(layout)).toEqual([
        ...Array<number>(whole).fill(Infinity),
        ...Array<number>(windowed).fill(reach),
      ]);
      // Layers that follow each other in the model stay together.
      for (const [i, { group }] of layout.layers.entries()) {
        const before = layout.layers
          .slice(0, i)
          .findLast((_, at) => layers[at]!.window === layers[i]!.window);
        expect(group).toBeGreaterThanOrEqual(before?.group ?? 0);
      }
    },
  );

  test("a sequence of 128k tokens takes a sixth of what it took", () => {
    const { layers, layout } = published("google/gemma-3-4b-it");
    const tokens = 2 ** 17;
    const blocks = blocksOfSequence(layout.groups, tokens, 16);
    const taken = blocks * 16 * layout.columns.length;
    expect(taken).toBeLessThan((tokens * layers.length) / 6);
    expect(tokensInPool(layout.groups, blocks, 16)).toBe(tokens);
    expect(tokensInPool(layout.groups, blocks - 1, 16)).toBe(tokens - 16);
  });

  test("layers of half the size share a column", () => {
    // Five layers of two heads of 256 dimensions for one of four heads of 512, as in some models of Gemma 4.
    const layout = kvLayout(repeat(2, ...repeat(4, layer(16, 2, 256)), layer(0, 2, 512)), 1024);
    expect(layout.columns).toEqual([1024, 1024]);
    expect(layout.groups).toEqual([
      { reach: Infinity, parts: 1 },
      { reach: 16 + 127, parts: 2 },
      { reach: 16 + 127, parts: 2 },
    ]);
    const windowed = layout.layers.filter(({ group }) => group > 0);
    expect(windowed.map(({ group, column, part }) => [group, column, part])).toEqual(
      [1, 2].flatMap((group) => [0, 1].flatMap((column) => [0, 1].map((part) => [group, column, part]))),
    );
  });
});

test("whatever layers there are, what one writes to its group's blocks no other changes that has other blocks", () => {
  const property = fc.property(
    fc.integer({ min: 1, max: 7 }),
    fc.integer({ min: 1, max: 9 }),
    fc.constantFrom([1, 1], [1, 2], [2, 1], [1, 4]),
    fc.nat(7),
    (whole, windowed, [wholeHeads, windowHeads], shift) => {
      const layout = kvLayout(
        [...repeat(whole, layer(0, wholeHeads, 2)), ...repeat(windowed, layer(4, windowHeads, 2))],
        4096,
      );
      const backend = new CpuBackend();
      const [numBlocks, blockSize] = [5, 2];
      const cache = new KvCache(backend, { layout, blockSize, kvDtype: "float32" }, numBlocks);
      let next = 0;
      const written = cache.layers.flatMap(({ keys, values, group }) => {
        const { parts } = layout.groups[group!]!;
        const own = Array.from({ length: numBlocks }, (_, block) => block).filter(
          (block) => (block + shift) % layout.groups.length === group,
        );
        return own.flatMap((block) =>
          [keys, values].map((tensor) => {
            const entry = deviceBlock(block, parts);
            const memory = tensor.rows(entry, entry + 1);
            const data = Float32Array.from({ length: memory.size }, () => next++);
            backend.upload(memory, data);
            return { memory, data };
          }),
        );
      });
      for (const { memory, data } of written)
        expect(new Float32Array(backend.download(memory).slice().buffer)).toEqual(data);
      cache.dispose();
      backend.dispose();
    },
  );
  fc.assert(property, { numRuns: 60 });
});

test("keys and values of a layer lie in one memory of a backend that has several", () => {
  const layout = kvLayout(repeat(9, layer(0, 2, 64)), 4096);
  for (const numBlocks of [23, 30, 37, 44]) {
    const backend = new SimdBackend({ threads: 1, placeBytes: 2 ** 22, sparedBytes: 2 ** 20 });
    const cache = new KvCache(backend, { layout, blockSize: 16, kvDtype: "float32" }, numBlocks);
    const places = cache.layers.map((layer) =>
      [layer.keys, layer.values].map(({ buffer }) => (buffer as PlacedBuffer).place),
    );
    expect(new Set(places.flat()).size).toBeGreaterThan(1);
    for (const [keys, values] of places) expect(values === keys).toBe(true);
    cache.dispose();
    backend.dispose();
  }
});
