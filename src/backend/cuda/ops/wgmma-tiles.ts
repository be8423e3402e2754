import { invariant } from "../../../base/errors.ts";
import type { WgmmaShape, WgmmaTile } from "./wgmma-linear.ts";

/** Products of more tokens are left to others: arithmetic, not reading, is then their cost. */
export const MAX_WGMMA_TOKENS = 256;
/** Weight rows of a warpgroup. */
const GROUP_ROWS = 64;
/** Tokens that a tile may have: few enough to compile, close enough to waste little. */
const TILE_TOKENS = [16, 32, 64, 96, 128];
/** Stages of two blocks of columns that each of eight splits needs at least. */
const MIN_SPLIT_STAGES = 3;

/** One way to run a product: its cut, and whether the norm is a kernel of its own ahead of it. */
export interface WgmmaWay {
  readonly tile: WgmmaTile;
  readonly normKernel: boolean;
}

/** A name that tells ways of a product apart. */
export function wayName({ tile, normKernel }: WgmmaWay): string {
  const { groups, tokens, rowCluster, tokenCluster, splits, kBlocks, residency } = tile;
  return [groups, tokens, rowCluster, tokenCluster, splits, kBlocks, residency, normKernel ? 1 : 0].join(".");
}

/**
 * Ways worth a try for a product of up to `MAX_WGMMA_TOKENS` tokens, the likely fastest first. The table in bench/NOTES.md has
 * what they were chosen from. All have about a CTA a multiprocessor: more splits only where tiles are fewer.
 */
export function wgmmaWays(shape: WgmmaShape, tokens: number, smCount: number): WgmmaWay[] {
  const { outFeatures, inFeatures, norm } = shape;
  const rowTiles = outFeatures / GROUP_ROWS;
  const ways: WgmmaWay[] = [];
  const add = (tile: Partial<WgmmaTile> & { readonly tokens: number }, normKernel = false) => {
    const common = {
      groups: 1,
      rowCluster: 1,
      tokenCluster: 1,
      splits: 1,
      kBlocks: 2,
      residency: 1,
    } as const;
    ways.push({ tile: { ...common, ...tile }, normKernel });
  };
  /** Splits, a power of two, that fill the GPU with tiles of a row. */
  const fill = (tokenTiles: number, most: number) => {
    let splits = 1;
    while (splits < most && rowTiles * tokenTiles * splits * 2 <= smCount + 8) splits *= 2;
    return splits;
  };
  const whole = tileOf(Math.min(tokens, 128));
  const half = tileOf(Math.ceil(tokens / 2));
  if (tokens <= 64 && norm) {
    const splits = fill(1, 4);
    add({ tokens: whole, splits, residency: 2 });
    add({ tokens: whole, splits, residency: 2, rowCluster: 2 });
  } else if (tokens <= 64) {
    const splits = fill(1, tokens <= 32 && inFeatures / 128 >= 8 * MIN_SPLIT_STAGES ? 8 : 4);
    add({ tokens: whole, splits });
    add({ tokens: whole, splits, residency: 2, kBlocks: 1 });
  } else if (tokens <= 128 && norm) {
    add({ tokens: half, tokenCluster: 2, residency: 2 });
    add({ tokens: half, rowCluster: 2, residency: 2 });
    add({ tokens: whole, splits: fill(1, 2) });
    add({ tokens: half, tokenCluster: 2, residency: 2, kBlocks: 1 }, true);
  } else if (tokens <= 128) {
    add({ tokens: whole, splits: fill(1, 4) });
    add({ tokens: half, tokenCluster: 2, splits: fill(2, 2) });
  } else if (norm) {
    add({ tokens: half, tokenCluster: 2 }, true);
    add({ tokens: half, tokenCluster: 2, groups: 2, kBlocks: 1 }, true);
  } else if (rowTiles * 2 <= smCount / 2) {
    add({ tokens: half, splits: fill(2, 2) });
  } else {
    add({ tokens: half, tokenCluster: 2, kBlocks: 1 });
  }
  return ways;
}

/**
 * The one tile of a shape that takes every number of tokens: rows of a product then have the same sums in the same order
 * whatever other rows there are.
 */
export function invariantTile({ outFeatures, inFeatures }: WgmmaShape, smCount: number): WgmmaTile {
  let splits = 1;
  while (splits < 4 && (outFeatures / GROUP_ROWS) * splits * 2 <= smCount) splits *= 2;
  const kBlocks = inFeatures % 128 === 0 && inFeatures / 128 >= splits ? 2 : 1;
  return { groups: 1, tokens: 64, rowCluster: 1, tokenCluster: 1, splits, kBlocks, residency: 2 };
}

function tileOf(tokens: number): number {
  const size = TILE_TOKENS.find((each) => each >= tokens);
  invariant(size !== undefined, `no tile has ${tokens} tokens`);
  return size;
}
