import { ATTENTION_TILE, type KvHeads } from "../backend/attention-spec.ts";
import type { KvGroup } from "../base/kv-group.ts";
import type { CachedLayer } from "../models/kv-heads.ts";

/** The layers of a group, and what their block tables hold. */
export interface LayoutGroup extends KvGroup {
  /** Layers that share a column: block b is part `b · parts` of the column, and those behind it. */
  readonly parts: number;
}

/** Where a layer's keys and values lie. */
export interface CachePlace extends KvHeads {
  readonly group: number;
  /** A group has at most one of its layers, or `parts` of them, in a column. */
  readonly column: number;
  /** Of the layers of a group in one column, the number of this one. */
  readonly part: number;
}

/**
 * The order of the KV pool. It is a number of columns, each of which has memory for every block: as many elements for keys as
 * `columns` says for a token, and as many for values. A block belongs to one group of layers at a time, and these have its memory in the
 * columns among themselves; another group has other blocks in the same columns. So a group's layers are as many as fit into all columns:
 * layers with windows that are more numerous than those without become several groups, which give back blocks that those keep.
 */
export interface KvLayout {
  readonly groups: readonly LayoutGroup[];
  /** Elements of a token's keys in each column. */
  readonly columns: readonly number[];
  /** Of each layer with a cache. */
  readonly layers: readonly CachePlace[];
}

/** More would have prompts' steps wait for their block tables. */
const MOST_GROUPS = 16;
/** Share of the memory that a group must be worth. */
const GROUP_COST = 0.005;

/**
 * The layout of the pool for these layers. Where only some have a window, short of `maxModelLen`, and all sizes are a part of the largest,
 * layers with and without are in groups of their own, in as many columns as waste the least: of short sequences, of which every group
 * has all tokens, and of long ones, of which those without a window have most. Else all are one group.
 * @param maxModelLen tokens of the longest sequence
 */
export function kvLayout(layers: readonly CachedLayer[], maxModelLen: number): KvLayout {
  const windowed = layers.filter(({ window }) => window > 0);
  const reach = Math.max(...windowed.map(({ window }) => window)) + ATTENTION_TILE - 1;
  const isMixed = windowed.length > 0 && windowed.length < layers.length && reach < maxModelLen;
  const sizes = layers.map(elementsOf);
  const largest = Math.max(...sizes);
  const wholeParts = partsIn(
    largest,
    layers.filter(({ window }) => window === 0),
  );
  const windowParts = partsIn(largest, windowed);
  if (!isMixed || wholeParts === undefined || windowParts === undefined) {
    const everywhere = windowed.length === layers.length ? reach : Infinity;
    return {
      groups: [{ reach: everywhere, parts: 1 }],
      columns: sizes,
      layers: layers.map((heads, column) => ({ ...heads, group: 0, column, part: 0 })),
    };
  }
  const whole = { count: layers.length - windowed.length, parts: wholeParts };
  const columns = bestColumns(whole, { count: windowed.length, parts: windowParts });
  const wholeGroups = groupsOf(whole, columns);
  // In their order, so that layers that follow each other are in one group.
  let [wholeLayers, windowedLayers] = [0, 0];
  const place = (index: number, parts: number, first: number) => {
    const within = index % (columns * parts);
    const group = first + Math.floor(index / (columns * parts));
    return { group, column: Math.floor(within / parts), part: within % parts };
  };
  const places = layers.map(({ window, ...heads }) => ({
    ...heads,
    ...(window === 0
      ? place(wholeLayers++, wholeParts, 0)
      : place(windowedLayers++, windowParts, wholeGroups)),
  }));
  const numGroups = Math.max(...places.map(({ group }) => group)) + 1;
  return {
    groups: Array.from({ length: numGroups }, (_, group) =>
      group < wholeGroups ? { reach: Infinity, parts: wholeParts } : { reach, parts: windowParts },
    ),
    columns: Array<number>(columns).fill(largest),
    layers: places,
  };
}

interface Kind {
  readonly count: number;
  /** Layers in a column. */
  readonly parts: number;
}

/** The number of columns that wastes the least. */
function bestColumns(whole: Kind, windowed: Kind): number {
  const needed = ({ count, parts }: Kind) => count / parts;
  const most = Math.ceil(Math.max(needed(whole), needed(windowed)));
  let best = { columns: most, cost: Infinity };
  for (let columns = 1; columns <= most; columns++) {
    const groups = groupsOf(whole, columns) + groupsOf(windowed, columns);
    const short = (columns * groups) / (needed(whole) + needed(windowed));
    const long = (columns * groupsOf(whole, columns)) / needed(whole);
    const cost = short * long + GROUP_COST * groups;
    if (groups <= MOST_GROUPS && cost < best.cost) best = { columns, cost };
  }
  return best.columns;
}

function groupsOf({ count, parts }: Kind, columns: number): number {
  return Math.ceil(count / (columns * parts));
}

function elementsOf({ numKvHeads, headDim }: KvHeads): number {
  return numKvHeads * headDim;
}

/** Layers of one size that a column of `largest` elements has room for, to the last element; undefined: they are not alike, or leave a rest. */
function partsIn(largest: number, layers: readonly KvHeads[]): number | undefined {
  const [size] = layers.map(elementsOf);
  const isOne = size !== undefined && layers.every((layer) => elementsOf(layer) === size);
  return isOne && largest % size === 0 ? largest / size : undefined;
}
