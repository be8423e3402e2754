/**
 * Block types of ggml whose elements Octavo knows, and what they stand for: `k-quants` (Q4_K and on) have blocks of 256 with
 * 6-bit or 8-bit scales for each 16 or 32 elements, the others blocks of 32 with one scale. Layouts and formulas are those
 * of ggml's `ggml-quants.c`, and so is the order of the float32 operations: the values are the same to the bit.
 */
export type BlockType = keyof typeof BLOCKS;

/** A block type's size, and the function that gives the elements of the block at `from` to `target`, from `to` on. */
interface Block {
  readonly elements: number;
  readonly bytes: number;
  readonly decode: (source: Uint8Array, from: number, target: Float32Array, to: number) => void;
}

/** float16 values by their bits. */
const HALF = new Float32Array(new Float16Array(Uint16Array.from({ length: 2 ** 16 }, (_, i) => i).buffer));
const half = (source: Uint8Array, at: number) => HALF[source[at]! | (source[at + 1]! << 8)]!;
const signed = (byte: number) => (byte << 24) >> 24;

const BLOCKS = {
  /** d, 32 nibbles: d · (n − 8). The low nibbles are the first half. */
  Q4_0: {
    ...{ elements: 32, bytes: 18 },
    decode: (source, from, target, to) => {
      const scale = half(source, from);
      for (let i = 0; i < 16; i++) {
        const byte = source[from + 2 + i]!;
        target[to + i] = scale * ((byte & 15) - 8);
        target[to + 16 + i] = scale * ((byte >> 4) - 8);
      }
    },
  },
  /** d, m, 32 nibbles: d · n + m. */
  Q4_1: {
    ...{ elements: 32, bytes: 20 },
    decode: (source, from, target, to) => {
      const scale = half(source, from);
      const least = half(source, from + 2);
      for (let i = 0; i < 16; i++) {
        const byte = source[from + 4 + i]!;
        target[to + i] = scale * (byte & 15) + least;
        target[to + 16 + i] = scale * (byte >> 4) + least;
      }
    },
  },
  /** d, 32 signed bytes: d · q. */
  Q8_0: {
    ...{ elements: 32, bytes: 34 },
    decode: (source, from, target, to) => {
      const scale = half(source, from);
      for (let i = 0; i < 32; i++) target[to + i] = scale * signed(source[from + 2 + i]!);
    },
  },
  /** d, dmin, 8 scales and 8 minima of 6 bits in 12 bytes, 256 nibbles: d · sc · n − dmin · m. */
  Q4_K: {
    ...{ elements: 256, bytes: 144 },
    decode: (source, from, target, to) => {
      const scale = half(source, from);
      const least = half(source, from + 2);
      for (let j = 0; j < 8; j++) {
        const factor = scale * scaleOf(source, from + 4, j);
        const offset = least * minimumOf(source, from + 4, j);
        const [nibbles, shift] = [from + 16 + 32 * (j >> 1), 4 * (j & 1)];
        for (let i = 0; i < 32; i++)
          target[to + 32 * j + i] = factor * ((source[nibbles + i]! >> shift) & 15) - offset;
      }
    },
  },
  /** As Q4_K, with 32 bytes before the nibbles, of which bit j is the fifth bit of sub-block j. */
  Q5_K: {
    ...{ elements: 256, bytes: 176 },
    decode: (source, from, target, to) => {
      const scale = half(source, from);
      const least = half(source, from + 2);
      for (let j = 0; j < 8; j++) {
        const factor = scale * scaleOf(source, from + 4, j);
        const offset = least * minimumOf(source, from + 4, j);
        const [nibbles, shift] = [from + 48 + 32 * (j >> 1), 4 * (j & 1)];
        for (let i = 0; i < 32; i++) {
          const high = ((source[from + 16 + i]! >> j) & 1) << 4;
          target[to + 32 * j + i] = factor * (((source[nibbles + i]! >> shift) & 15) | high) - offset;
        }
      }
    },
  },
  /** 256 nibbles, 256 pairs of upper bits, 16 signed scales, d: d · sc · (q − 32). */
  Q6_K: {
    ...{ elements: 256, bytes: 210 },
    decode: (source, from, target, to) => {
      const scale = half(source, from + 208);
      for (let n = 0; n < 2; n++) {
        for (let r = 0; r < 4; r++) {
          const [low, high] = [from + 64 * n + 32 * (r & 1), from + 128 + 32 * n];
          const [scales, first] = [from + 192 + 8 * n + 2 * r, to + 128 * n + 32 * r];
          for (let i = 0; i < 32; i++) {
            const factor = scale * signed(source[scales + (i >> 4)]!);
            const nibble = (source[low + i]! >> (r < 2 ? 0 : 4)) & 15;
            const bits = (source[high + i]! >> (2 * r)) & 3;
            target[first + i] = factor * ((nibble | (bits << 4)) - 32);
          }
        }
      }
    },
  },
} as const satisfies Readonly<Record<string, Block>>;

/** The 6-bit scale of sub-block j of Q4_K and Q5_K, from the first of the 12 bytes on: in bytes 0–3 for the first four; split between bytes 8–11 and 0–3 for the others. */
export function scaleOf(source: Uint8Array, at: number, j: number): number {
  if (j < 4) return source[at + j]! & 63;
  return (source[at + j + 4]! & 15) | ((source[at + j - 4]! >> 6) << 4);
}

/** Its 6-bit minimum: in bytes 4–7 for the first four; split between bytes 8–11 and 4–7 for the others. */
export function minimumOf(source: Uint8Array, at: number, j: number): number {
  if (j < 4) return source[at + j + 4]! & 63;
  return (source[at + j + 4]! >> 4) | ((source[at + j]! >> 6) << 4);
}

export const BLOCK_TYPES = Object.keys(BLOCKS) as readonly BlockType[];
/** The types of tensors that can be loaded. */
export const LOADABLE_TYPES: readonly string[] = ["F32", "F16", "BF16", ...BLOCK_TYPES];

export function isBlockType(type: string): type is BlockType {
  return Object.hasOwn(BLOCKS, type);
}

/** The size of a block. */
export function blockOf(type: BlockType): { readonly elements: number; readonly bytes: number } {
  return BLOCKS[type];
}

/** Fills `target` with the elements of `source`, whole blocks. */
export function dequantize(source: Uint8Array, type: BlockType, target: Float32Array): void {
  const { elements, bytes, decode }: Block = BLOCKS[type];
  for (let from = 0, to = 0; to < target.length; from += bytes, to += elements)
    decode(source, from, target, to);
}
