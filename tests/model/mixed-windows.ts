import { blocksOfSequence } from "../../src/base/kv-group.ts";
import { readModelConfig } from "../../src/models/config.ts";
import { cachedLayersOf } from "../../src/models/kv-heads.ts";
import { kvBlockBytes } from "../../src/runner/kv-cache.ts";
import { kvLayout } from "../../src/runner/kv-layout.ts";
import { Random } from "../simulation/random.ts";
import type { FixtureName } from "./fixtures.ts";

/** Models in which layers with and without windows take turns. */
export const MIXED_NAMES: readonly FixtureName[] = ["gemma3", "gpt-oss", "olmo3", "gemma4", "gemma4-e"];
/** With 16 tokens of window and a tile, layers with one give back what lies 143 tokens back. */
export const MIXED_MODEL_LEN = 256;
const BLOCK_SIZE = 16;

const random = new Random(5);
const tokens = (count: number) => Array.from({ length: count }, () => 3 + random.below(60));
const shared = tokens(170);
/** The second begins with all of the first, the third with a part of it. */
export const MIXED_PROMPTS = [
  shared,
  [...shared, ...tokens(40)],
  [...shared.slice(0, 100), ...tokens(90)],
  tokens(40),
].map((promptTokenIds) => ({ promptTokenIds }));

/** A pool of float32 or 16-bit keys and values that holds one sequence of all tokens, and little more. */
export function smallPool(modelDir: string, kvDtype: "float32" | "bfloat16") {
  const layers = cachedLayersOf(readModelConfig(modelDir), { rank: 0, size: 1 });
  const layout = kvLayout(layers, MIXED_MODEL_LEN);
  const blocks = blocksOfSequence(layout.groups, MIXED_MODEL_LEN, BLOCK_SIZE) + 4;
  const blockBytes = kvBlockBytes({ layout, blockSize: BLOCK_SIZE, kvDtype });
  return { groups: layout.groups, blocks, kvCacheMemoryBytes: blocks * blockBytes };
}
