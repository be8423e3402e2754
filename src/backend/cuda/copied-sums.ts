import { invariant } from "../../base/errors.ts";
import type { Shard, Span } from "../../base/shard.ts";
import type { Context } from "../../cuda/context.ts";
import { Event, Stream } from "../../cuda/stream.ts";
import { byteLengthOf, type Tensor } from "../tensor.ts";
import { accessWidth, VECTOR_BYTES } from "./ops/kernel-variants.ts";
import type { PeerExchange } from "./ops/peer-exchange.ts";
import type { CopyArea, PeerMemory } from "./peer-memory.ts";

/** Bytes of a piece, at least: fewer leave the product of it multiprocessors with nothing to do. */
const PIECE_BYTES = 2 ** 24;
/** Pieces that are under way together, at most. More make products slower than they hide of the last copy. */
const MOST_PIECES = 4;
/** Rows of pieces are multiples of it, but for the last: products of such have whole tiles. */
const ROW_STEP = 128;
/** Buffers that groups take in turn: enough by the order that peers.cuh states for rounds. */
const BUFFERS = 2;

export interface CopiedSumsOptions {
  readonly context: Context;
  /** The stream of what computes branches, and of sums; work that is held back is on it when it is asked for. */
  readonly stream: () => Stream;
  readonly ops: PeerExchange;
  /** With an area for copies. */
  readonly memory: PeerMemory;
  readonly shard: Shard;
  /** Default 16 MiB. */
  readonly pieceBytes?: number;
  /** Bytes of the pieces that are under way together. Default: as many as the memory holds. */
  readonly groupBytes?: number;
}

/**
 * Sums over two ranks of branches so large that computing them takes as long as sending them: rows that are computed are on their
 * way to the other rank while the next are computed. Copy engines bring them, on a stream of its own, so that no multiprocessor
 * waits for the link; when all of a group are computed, they are added (`add_copied`), the last copy beside the first additions.
 *
 * Not for captured steps: where a message goes, and its number, is counted on the host. Every rank makes the same sums in the
 * same order.
 */
export class CopiedSums {
  readonly #copies: Stream;
  readonly #area: CopyArea;
  readonly #computed: Event[];
  readonly #copied: Event[];
  readonly #pieceBytes: number;
  readonly #groupBytes: number;
  #groups = 0;
  #sequence = 0;

  /** Its stream and events are the context's, which disposes of them. */
  constructor(private readonly options: CopiedSumsOptions) {
    const { context, memory, shard, pieceBytes = PIECE_BYTES } = options;
    invariant(memory.copies !== undefined && shard.size === 2, `copies among ${shard.size} ranks`);
    this.#area = memory.copies;
    this.#pieceBytes = pieceBytes;
    this.#groupBytes = options.groupBytes ?? this.#area.capacity * VECTOR_BYTES;
    this.#copies = Stream.create(context);
    const events = () => Array.from({ length: MOST_PIECES }, () => Event.create(context));
    [this.#computed, this.#copied] = [events(), events()];
  }

  /** Whether a sum is of pieces enough that sending some hides behind computing others, in whole vectors. */
  suits(residual: Tensor, branch: Tensor): boolean {
    const isWhole = accessWidth(this.options.ops.dtype, residual.dim(1), residual, branch) > 1;
    return isWhole && residual.byteLength >= 2 * this.#pieceBytes && this.#groupRows(branch) > 0;
  }

  /**
   * residual[T, H] += the sum over ranks of branch[T, H], as `PeerExchange.reduceAdd` has it, of whole aligned vectors.
   * @param compute enqueues rows of the branch; it is called for one piece after another
   */
  reduceAdd(residual: Tensor, branch: Tensor, compute: (rows: Span) => void): void {
    const rows = branch.dim(0);
    const groupRows = this.#groupRows(branch);
    invariant(groupRows > 0, `rows of ${branch} for copies`);
    for (const group of divided({ start: 0, end: rows }, Math.ceil(rows / groupRows)))
      this.#sumGroup(residual, branch, group, compute);
  }

  /** Rows that the memory has room for, in steps; 0 where that is none. */
  #groupRows(branch: Tensor): number {
    const rowBytes = byteLengthOf(branch.dtype, [branch.dim(1)]);
    return Math.floor(this.#groupBytes / rowBytes / ROW_STEP) * ROW_STEP;
  }

  #sumGroup(residual: Tensor, branch: Tensor, group: Span, compute: (rows: Span) => void): void {
    const { memory, shard } = this.options;
    const { offset, capacity } = this.#area;
    const buffer = offset + (this.#groups++ % BUFFERS) * capacity * VECTOR_BYTES;
    const { address: first, byteLength: bytes } = branch.rows(group.start, group.end);
    const count = Math.floor(bytes / this.#pieceBytes);
    const pieces = divided(group, Math.min(MOST_PIECES, Math.max(1, count)));
    for (const [i, piece] of pieces.entries()) {
      compute(piece);
      const { address, byteLength } = branch.rows(piece.start, piece.end);
      this.#computed[i]!.record(this.options.stream());
      this.#copies.waitFor(this.#computed[i]!);
      this.#copies.copy(memory.base(1 - shard.rank) + buffer + address - first, address, byteLength);
      this.#copied[i]!.record(this.#copies);
    }
    // All but the last piece at once, beside which the last one is copied.
    const last = pieces.length - 1;
    const { start } = pieces[last]!;
    const add = (rows: Span, copied: number) => {
      const copies = memory.base(shard.rank) + buffer + branch.rows(rows.start, rows.end).address - first;
      this.#add(
        residual.rows(rows.start, rows.end),
        branch.rows(rows.start, rows.end),
        copies,
        this.#copied[copied]!,
      );
    };
    if (last > 0) add({ start: group.start, end: start }, last - 1);
    add({ start, end: group.end }, last);
  }

  /** Before this rank waits for the other's copies, its own are done: neither can keep the other from them. And the branch is free. */
  #add(residual: Tensor, branch: Tensor, copies: number, copied: Event): void {
    const { memory, ops } = this.options;
    const stream = this.options.stream();
    stream.waitFor(copied);
    this.#sequence = (this.#sequence + 1) | 0;
    ops.addCopied(stream.value, memory, residual, branch, copies, this.#sequence);
  }
}

/** So many parts, or fewer: of a multiple of `ROW_STEP` rows but for the last. */
function divided({ start, end }: Span, parts: number): Span[] {
  const step = Math.ceil((end - start) / parts / ROW_STEP) * ROW_STEP;
  return Array.from({ length: Math.ceil((end - start) / step) }, (_, i) => ({
    start: start + i * step,
    end: Math.min(end, start + (i + 1) * step),
  }));
}
