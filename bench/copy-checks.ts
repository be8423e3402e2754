import type { CopiedSums } from "../src/backend/cuda/copied-sums.ts";
import { Tensor } from "../src/backend/tensor.ts";
import { agree } from "./agree.ts";
import { Randomness } from "./randomness.ts";
import type { RankDevice } from "./rank-device.ts";
import { withoutSigns } from "./sum-reference.ts";
import { Summands } from "./summands.ts";

/** Elements of the largest sum that the CPU checks. */
const LARGEST = 2 ** 20;
/** Small enough that those sums are of several groups of several pieces. */
const SMALL = { pieceBytes: 2 ** 16, groupBytes: 2 ** 19 };
const WIDTHS = [8, 200, 1024];
/** Sums in flight before their results are looked at. */
const IN_FLIGHT = 4;
/** Bytes of the longest delay between two pieces: memory that the GPU fills meanwhile. */
const DELAY_BYTES = 2 ** 25;
/** Of random values that make up larger messages. */
const TILE = 2 ** 20;

/** Checks of `CopiedSums` at one of two ranks: branches that are computed piece by piece, after random delays. */
export class CopyChecks {
  readonly #summands: Summands;
  readonly #delay: Tensor;
  /** Of this rank alone. */
  readonly #own: Randomness;

  constructor(
    private readonly device: RankDevice,
    private readonly seed: number,
  ) {
    const { rank, size } = device.ranks.shard;
    this.#summands = new Summands(LARGEST, size, seed);
    this.#delay = device.tensor("bfloat16", DELAY_BYTES / 2);
    this.#own = new Randomness(seed + 1000 * (rank + 1));
  }

  /** Sums of random shapes. Returns the number of elements. @throws Error at the first difference. */
  sums(rounds: number): number {
    const { device } = this;
    const part = this.#summands.parts[device.ranks.shard.rank]!;
    const copied = device.copiedSums(SMALL);
    const tensors = () => Array.from({ length: IN_FLIGHT }, () => device.tensor("bfloat16", LARGEST));
    const [residuals, branches, sources] = [tensors(), tensors(), tensors()];
    device.settle();
    let elements = 0;
    for (let first = 0; first < rounds; first += IN_FLIGHT) {
      const shapes = Array.from({ length: IN_FLIGHT }, (_, i) => {
        const width = WIDTHS[(first + i) % WIDTHS.length]!;
        // The same at all ranks.
        const share = ((first + i + 1) * 0.618 * this.seed) % 1;
        return [Math.max(1, Math.floor((share * LARGEST) / width)), width] as const;
      });
      for (const [i, [rows, width]] of shapes.entries()) {
        device.upload(sources[i]!, part.slice(0, rows * width));
        device.upload(residuals[i]!, this.#summands.residual.slice(0, rows * width));
        device.stream.fill(branches[i]!.address, 0xff, rows * width * 2);
      }
      for (const [i, shape] of shapes.entries()) {
        const [residual, branch, source] = [residuals, branches, sources].map((all) => view(all[i]!, shape));
        this.#sum(copied, residual!, branch!, source!);
      }
      const results = shapes.map((shape, i) => device.download(view(residuals[i]!, shape)));
      for (const [i, [rows, width]] of shapes.entries()) {
        this.#summands.compare(results[i]!, 0, `copied sum ${first + i} of [${rows}, ${width}]`);
        elements += rows * width;
      }
      agree(device.ranks, results, `copied sums ${first} to ${first + IN_FLIGHT - 1}`);
    }
    device.settle();
    for (const { buffer } of [...residuals, ...branches, ...sources]) buffer.dispose();
    return elements;
  }

  /** A sum of a message of so many bytes, in pieces as the engine has them: what the kernel for small ones makes of it. */
  large(copied: CopiedSums, bytes: number, width = 4096): void {
    const { device } = this;
    const { exchange, peers, stream, ranks } = device;
    const shape = [bytes / 2 / width, width] as const;
    const tensors = Array.from({ length: 4 }, () => device.tensor("bfloat16", ...shape));
    const [residual, branch, source, reference] = tensors as [Tensor, Tensor, Tensor, Tensor];
    const fill = ({ address }: Tensor, values: Uint16Array) => {
      for (let start = 0; start < bytes; start += 2 * TILE) {
        const count = Math.min(2 * TILE, bytes - start);
        stream.upload(address + start, values, count);
      }
    };
    const part = this.#summands.parts[ranks.shard.rank]!;
    fill(source, part);
    for (const tensor of [residual, reference]) fill(tensor, this.#summands.residual);
    stream.fill(branch.address, 0xff, bytes);
    this.#sum(copied, residual, branch, source);
    exchange.reduceAdd(stream.value, peers, reference, source);
    const [sums, expected] = [residual, reference].map((tensor) =>
      withoutSigns(new Uint16Array(device.download(tensor).buffer)),
    );
    const at = sums!.findIndex((value, i) => value !== expected![i]);
    if (at >= 0) throw new Error(`a copied sum of ${bytes} bytes differs at element ${at}`);
    agree(device.ranks, [new Uint8Array(sums!.buffer)], `a copied sum of ${bytes} bytes`);
    device.settle();
    for (const { buffer } of tensors) buffer.dispose();
  }

  /** With a branch that is a copy of `source`, made piece by piece. */
  #sum(copied: CopiedSums, residual: Tensor, branch: Tensor, source: Tensor): void {
    const { stream } = this.device;
    copied.reduceAdd(residual, branch, ({ start, end }) => {
      const delay = Math.floor(this.#own.next() ** 4 * DELAY_BYTES);
      if (delay > 0) stream.fill(this.#delay.address, 0, delay);
      const rows = branch.rows(start, end);
      stream.copy(rows.address, source.rows(start, end).address, rows.byteLength);
    });
    stream.fill(branch.address, 0xee, branch.byteLength);
  }
}

/** The first elements, in rows. */
function view({ buffer, dtype }: Tensor, [rows, width]: readonly [number, number]): Tensor {
  return new Tensor(buffer, dtype, [rows, width]);
}
