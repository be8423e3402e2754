import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { TENSOR_MAP_BYTES, type TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { SampleRows, SlotTensors } from "../../backend.ts";
import { type DeviceBuffer, Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import type { DenseHead } from "./draw-small.ts";
import { KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";
import type { NormOps } from "./norm.ts";
import type { SamplingOps } from "./sampling.ts";
import { SLOT_CONSTANTS } from "./slot-layout.ts";

/** Weight rows of a tile, 64 for each of two warpgroups; one more warpgroup fetches. */
const TILE_ROWS = 128;
/** Of them, those that a warp scores. */
const WARP_ROWS = 16;
const THREADS = 3 * 4 * WARP;
/** Columns of a stage: a row of them is what the copy engine swizzles. */
const K_TILE = 64;
/** Shared memory besides the ring: sums that warps hand over, what is known of each token, barriers, alignment. */
const SUM_BYTES = 8 * 32 * 20 * 4;
const TOKEN_BYTES = 16 + 4 + 4 * 4;
const SLACK_BYTES = 1280;

const DRAW_WGMMA = {
  file: "draw_wgmma.cu",
  constants: { ...SLOT_CONSTANTS, TILE_ROWS },
  entry: "draw_wgmma",
  pointers: ["keys", "maps", "row_slots", "positions", "params"],
  scalars: ["tokens", "vocab", "first_token", "tiles", "k_tiles", "cap"],
} as const;

/** Tokens of a tile and stages of its ring. */
interface DrawTile {
  readonly tokens: number;
  readonly stages: number;
}

const DRAW_TILES: readonly DrawTile[] = [
  { tokens: 64, stages: 8 },
  { tokens: 128, stages: 6 },
  { tokens: 256, stages: 4 },
];
const MAX_TOKENS = 256;
const KEY_BYTES = 8;

export interface DrawWgmmaOptions extends KernelOptions {
  /** Given where ranks divide the vocabulary. */
  readonly ranks?: object | undefined;
  readonly smCount: number;
  readonly sharedBytesPerBlock: number;
  readonly upload: (address: number, bytes: Uint8Array) => void;
  readonly encodeTensorMap: (shape: TensorMapShape) => Uint8Array;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
  /** The same, filled with zeros. */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
  /** Enqueues zeros for all of the memory. */
  readonly clear: (memory: DeviceBuffer) => void;
}

/** A head's own memory on the device. */
interface HeadMemory {
  readonly address: number;
  readonly vocab: number;
  readonly width: number;
  /** Of x [MAX_TOKENS, K], normed. */
  readonly x: DeviceBuffer;
  /** Tensor maps of weights and x, for each of `DRAW_TILES`. */
  readonly maps: readonly DeviceBuffer[];
  /** uint64 [MAX_TOKENS], 0 between launches. */
  readonly keys: DeviceBuffer;
}

/** `Backend.drawTokens` on Hopper for more rows than `DrawSmall` takes: the draw in the head's epilogue, `draw_wgmma.cu`. */
export class DrawWgmma {
  readonly #kernels: KernelVariants<typeof DRAW_WGMMA>;
  /** Of the heads seen so far: a model has one. */
  readonly #heads: HeadMemory[] = [];

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly norm: NormOps,
    private readonly sampling: SamplingOps,
    private readonly options: DrawWgmmaOptions,
  ) {
    this.#kernels = new KernelVariants(library, DRAW_WGMMA, dtype, options);
  }

  /** Units for a normed head [vocabSize, hiddenSize]; none if the kernel cannot take it. @param isCapped see `LmHead.softCap` */
  units(vocabSize: number, hiddenSize: number, isCapped: boolean): KernelUnit[] {
    if (!takes(vocabSize, hiddenSize)) return [];
    const isPart = this.#isPart(vocabSize);
    return DRAW_TILES.map((tile) => this.#kernels.unit(defines(tile, isPart, isCapped)));
  }

  /**
   * Enqueues `Backend.drawTokens`, whose checks have passed, if the kernel can take it; else false. The first use of a head
   * allocates and uploads.
   */
  launch(
    stream: number,
    out: Tensor,
    hidden: Tensor,
    dense: DenseHead,
    samples: SampleRows,
    slots: SlotTensors,
  ): boolean {
    const { weight, norm } = dense;
    const [vocab, width] = weight.shape;
    if (norm === undefined || !takes(vocab, width) || weight.data.address % VECTOR_BYTES !== 0) return false;
    const head = this.#memoryOf(weight);
    for (let first = 0; first < hidden.dim(0); first += MAX_TOKENS) {
      const end = Math.min(first + MAX_TOKENS, hidden.dim(0));
      const part = (tensor: Tensor) => tensor.rows(first, end);
      const x = new Tensor(head.x, this.dtype, [end - first, width]);
      this.norm.rmsNorm(stream, x, part(hidden), norm.weight, norm.eps);
      const { tokenIndices, slots: rowSlots, positions } = samples;
      const some = { tokenIndices, slots: part(rowSlots), positions: part(positions) };
      this.#launch(stream, head, dense, end - first, some, slots);
      try {
        this.sampling.drawRows(stream, part(out), head.keys, 1, some, slots);
      } catch (error) {
        // It would have cleared them, and the next draw takes what is greater than a key.
        this.options.clear(head.keys);
        throw error;
      }
    }
    return true;
  }

  #launch(
    stream: number,
    { maps, keys }: HeadMemory,
    { weight, firstToken = 0, softCap }: DenseHead,
    tokens: number,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const [vocab, width] = weight.shape;
    const index = DRAW_TILES.findIndex((tile) => tile.tokens >= tokens);
    const tile = DRAW_TILES[index]!;
    const tiles = Math.ceil(vocab / TILE_ROWS);
    const blocks = Math.min(this.options.smCount, tiles);
    const isPart = this.#isPart(vocab);
    const isCapped = softCap !== undefined;
    const key = 4 * index + 2 * Number(isPart) + Number(isCapped);
    const kernel = this.#kernels.get(key, defines(tile, isPart, isCapped));
    kernel.launch(stream, blocks, 1, 1, THREADS, sharedBytes(tile), {
      ...{ keys, maps: maps[index]! },
      ...{ row_slots: samples.slots, positions: samples.positions, params: slots.params },
      ...{ tokens, vocab, first_token: firstToken, tiles, k_tiles: width / K_TILE },
      cap: softCap ?? 0,
    });
  }

  /** Whether the kernel is to look at where its tokens begin and end: not those of a whole vocabulary in whole tiles. */
  #isPart(vocab: number): boolean {
    return this.options.ranks !== undefined || vocab % TILE_ROWS !== 0;
  }

  /** New maps get memory of their own: the copy engine may remember what it read at an address. */
  #memoryOf(weight: DenseWeight): HeadMemory {
    const { address } = weight.data;
    const [vocab, width] = weight.shape;
    const known = this.#heads.find(
      (head) => head.address === address && head.vocab === vocab && head.width === width,
    );
    if (known !== undefined) return known;
    const { allocate, allocateZeroed, upload } = this.options;
    const x = allocate(MAX_TOKENS * width * dtypeSize(this.dtype));
    const maps = DRAW_TILES.map(({ tokens }) => {
      const bytes = new Uint8Array(2 * TENSOR_MAP_BYTES);
      bytes.set(this.#encode(address, vocab, width, TILE_ROWS));
      bytes.set(this.#encode(x.address, MAX_TOKENS, width, tokens), TENSOR_MAP_BYTES);
      const both = allocateZeroed(bytes.length);
      upload(both.address, bytes);
      return both;
    });
    const head = { address, vocab, width, x, maps, keys: allocateZeroed(MAX_TOKENS * KEY_BYTES) };
    this.#heads.push(head);
    return head;
  }

  #encode(address: number, rows: number, width: number, boxRows: number): Uint8Array {
    return this.options.encodeTensorMap({
      ...{ dtype: this.dtype === "float16" ? "float16" : "bfloat16", address },
      ...{ extents: [width, rows], strides: [width * dtypeSize(this.dtype)], box: [K_TILE, boxRows] },
    });
  }
}

function takes(vocabSize: number, hiddenSize: number): boolean {
  return vocabSize % WARP_ROWS === 0 && hiddenSize % K_TILE === 0;
}

function sharedBytes({ tokens, stages }: DrawTile): number {
  return stages * (TILE_ROWS + tokens) * K_TILE * 2 + SUM_BYTES + tokens * TOKEN_BYTES + SLACK_BYTES;
}

function defines(tile: DrawTile, isPart: boolean, isCapped: boolean): Macros {
  const { tokens, stages } = tile;
  const flags = { PART: Number(isPart), SOFT_CAP: Number(isCapped) };
  return { TOKENS: tokens, STAGES: stages, DRAW_SHARED_BYTES: sharedBytes(tile), ...flags };
}
