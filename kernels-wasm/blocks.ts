/** Blocks of columns whose products are summed as integers; see layout.ts. A group of columns with one scale is one or more of them. */
import * as layout from "./layout";

/** Columns of a block, but for the last of a group. */
export function blockOf(group: i32): i32 {
  return min(group, layout.BLOCK);
}

export function blocksOfGroup(group: i32): i32 {
  return (group + layout.BLOCK - 1) / layout.BLOCK;
}

/** Columns of a block with the zeros that it is padded with. */
export function paddedBlock(group: i32): i32 {
  return (blockOf(group) + layout.CODES - 1) & -layout.CODES;
}
