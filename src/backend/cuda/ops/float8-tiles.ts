import type { TileShape } from "./quantised-wgmma.ts";
import { GROUP_ROWS, type WgmmaTile } from "./wgmma-linear.ts";

/** Tokens of one tile, as decode steps have them; all tiles of more tokens are of the last sizes. */
const TILE_TOKENS = [16, 32, 64, 96, 128, 192, 256] as const;
/** Tokens of a tile of which two fit a multiprocessor. */
const RESIDENT_TOKENS = 64;
/** Columns of a stage of one swizzled row of x. */
const K_BYTES = 128;
/** What a tile costs besides its stages, in stages of `K_BYTES`. */
const TILE_COST = 16;
/** The same of a large tile, in microseconds, and what a stage costs of it, as measured on an H100. */
const LARGE_TILE_COST = 3;
const LARGE_TILES = [
  { groups: 2, tokens: 256, stageCost: 0.76 },
  { groups: 2, tokens: 192, stageCost: 0.6 },
  { groups: 1, tokens: 256, stageCost: 0.5 },
  { groups: 1, tokens: 192, stageCost: 0.43 },
] as const;
type LargeTile = (typeof LARGE_TILES)[number];
/** Token tiles up to which all rows may be computed at once. */
const FEW_TOKEN_TILES = 4;
/** CTAs along the rows that share what they read through L2, for many tokens. */
const [LEAST_COLUMNS, MOST_COLUMNS] = [8, 32];

/** The cut of a product of 8-bit floats; see `linear_float8.cu`. */
export function float8Tile(shape: TileShape, smCount: number): WgmmaTile {
  return shape.tokens > TILE_TOKENS.at(-1)! ? largeTile(shape, smCount) : oneTile(shape, smCount);
}

/** The cuts that products of so many tokens may have; of more than one tile's tokens, those of any number. */
export function float8Tiles(shape: TileShape, smCount: number): WgmmaTile[] {
  if (shape.tokens <= TILE_TOKENS.at(-1)!) return [oneTile(shape, smCount)];
  return largeTiles(shape).map((tile) => cutOf(tile, shape));
}

/** All tokens in a tile, the columns split where rows alone leave multiprocessors idle. */
function oneTile({ outFeatures, inFeatures, tokens }: TileShape, smCount: number): WgmmaTile {
  const rowTiles = outFeatures / GROUP_ROWS;
  const whole = TILE_TOKENS.find((each) => each >= tokens)!;
  const residency = whole <= RESIDENT_TOKENS ? 2 : 1;
  const isMiddle = whole > RESIDENT_TOKENS && whole <= 128;
  const kBlocks = isMiddle && inFeatures % (2 * K_BYTES) === 0 ? 2 : 1;
  const kTiles = inFeatures / K_BYTES / kBlocks;
  const costOf = (splits: number) =>
    Math.ceil((rowTiles * splits) / (smCount * residency)) *
    (Math.ceil(kTiles / splits) + TILE_COST / kBlocks);
  const splits = kTiles > 1 && costOf(2) < costOf(1) ? 2 : 1;
  const rowCluster = splits === 1 && whole > 128 && rowTiles % 2 === 0 ? 2 : 1;
  return { groups: 1, tokens: whole, rowCluster, tokenCluster: 1, splits, kBlocks, residency };
}

function largeTile(shape: TileShape, smCount: number): WgmmaTile {
  const { outFeatures, inFeatures, tokens } = shape;
  const costOf = ({ groups, tokens: size, stageCost }: LargeTile) =>
    Math.ceil(((outFeatures / GROUP_ROWS / groups) * Math.ceil(tokens / size)) / smCount) *
    ((inFeatures / K_BYTES) * stageCost + LARGE_TILE_COST);
  const best = largeTiles(shape).reduce((best, tile) => (costOf(tile) < costOf(best) ? tile : best));
  return cutOf(best, shape);
}

function largeTiles({ outFeatures }: TileShape): LargeTile[] {
  return LARGE_TILES.filter(({ groups }) => (outFeatures / GROUP_ROWS) % groups === 0);
}

function cutOf({ groups, tokens }: LargeTile, { outFeatures }: TileShape): WgmmaTile {
  const rowCluster = (outFeatures / GROUP_ROWS / groups) % 2 === 0 ? 2 : 1;
  return { groups, tokens, rowCluster, tokenCluster: 1, splits: 1, kBlocks: 1, residency: 1 };
}

/**
 * CTAs along the rows. Of one token tile, as many as there is room for; of more, some that share what they read, so many that all
 * multiprocessors are at work for the shortest time.
 */
export function float8Columns(
  { rowCluster, splits, residency }: WgmmaTile,
  rowTiles: number,
  tokenTiles: number,
  smCount: number,
): number {
  const resident = smCount * residency;
  const wholeClusters = (columns: number) => Math.ceil(columns / rowCluster) * rowCluster;
  if (splits > 1) return rowTiles;
  if (tokenTiles === 1) return wholeClusters(rowTiles / Math.ceil(rowTiles / resident));
  const costOf = (columns: number) =>
    Math.ceil((columns * tokenTiles) / resident) * Math.ceil(rowTiles / columns);
  const most = tokenTiles <= FEW_TOKEN_TILES ? resident : MOST_COLUMNS;
  let best = Math.min(wholeClusters(rowTiles), most - (most % rowCluster));
  for (let columns = best; columns >= LEAST_COLUMNS; columns -= rowCluster)
    if (costOf(columns) <= costOf(best)) best = columns;
  return best;
}
