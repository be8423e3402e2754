import { Tensor } from "../src/backend/tensor.ts";
import { agree } from "./agree.ts";
import { Randomness } from "./randomness.ts";
import type { RankDevice } from "./rank-device.ts";
import { Summands } from "./summands.ts";

/** Elements of the largest sum: more than fits at once, so that some go in pieces. */
const LARGEST = 2 ** 21 + 2 ** 17;
/** Words of the largest gathering. */
const LARGEST_GATHER = 2 ** 17;
/** Sums in flight before their results are looked at. */
const IN_FLIGHT = 8;
/** Bytes of the longest delay: memory that the GPU fills meanwhile, some 30 µs. */
const DELAY_BYTES = 2 ** 26;
/** Sums of a captured graph. */
const GRAPH_SUMS = 32;
/** Elements of the largest of them: all of them fit into one tensor, side by side. */
const GRAPH_ELEMENTS = 2 ** 15;

/** Checks of one rank: what it gets is what was computed on the CPU, and what all other ranks got. */
export class RankChecks {
  readonly #summands: Summands;
  readonly #residuals: Tensor[];
  readonly #branches: Tensor[];
  readonly #delay: Tensor;
  /** Of this rank alone. */
  readonly #own: Randomness;

  /** @param largest elements of the largest sum, at least those of a captured graph's sums together */
  constructor(
    private readonly device: RankDevice,
    private readonly seed: number,
    private readonly largest = LARGEST,
  ) {
    const { rank, size } = device.ranks.shard;
    this.#summands = new Summands(largest, size, seed);
    const tensors = () => Array.from({ length: IN_FLIGHT }, () => device.tensor("bfloat16", largest));
    [this.#residuals, this.#branches] = [tensors(), tensors()];
    this.#delay = device.tensor("bfloat16", DELAY_BYTES / 2);
    this.#own = new Randomness(seed + 1000 * (rank + 1));
  }

  /** The largest distance of what is expected from float64, in units in the last place. */
  get expectedError(): number {
    return this.#summands.expectedError;
  }

  /** Sums of random sizes, of vectors and not, after random delays. Returns the number of elements. @throws Error at the first difference. */
  sums(rounds: number): number {
    const { device } = this;
    const random = new Randomness(this.seed);
    device.settle();
    let elements = 0;
    for (let first = 0; first < rounds; first += IN_FLIGHT) {
      const pieces = Array.from({ length: IN_FLIGHT }, () => {
        const size = random.size(this.largest);
        const whole = random.next() < 0.75 ? Math.max(8, size - (size % 8)) : size;
        return { start: Math.floor(random.next() * (this.largest - whole)), size: whole };
      });
      for (const [i, piece] of pieces.entries()) this.#fill(i, piece.start, piece.size);
      for (const [i, { size }] of pieces.entries()) {
        this.#wait();
        this.#sum(i, size);
      }
      const results = pieces.map(({ size }, i) => device.download(view(this.#residuals[i]!, size)));
      for (const [i, { start, size }] of pieces.entries()) {
        this.#summands.compare(results[i]!, start, `sum ${first + i} of ${size} elements`);
        elements += size;
      }
      agree(device.ranks, results, `sums ${first} to ${first + IN_FLIGHT - 1}`);
    }
    return elements;
  }

  /** The same sums, captured and replayed. */
  graphs(replays: number): void {
    const { device } = this;
    const random = new Randomness(this.seed + 1);
    const sizes = Array.from({ length: GRAPH_SUMS }, () => 8 * random.size(GRAPH_ELEMENTS / 8));
    const starts = sizes.map((_, i) => i * GRAPH_ELEMENTS);
    const slices = (tensor: Tensor) => sizes.map((size, i) => view(tensor, size, starts[i]!));
    const [residuals, branches] = [slices(this.#residuals[0]!), slices(this.#branches[0]!)];
    const { stream, peers, exchange } = device;
    this.#fill(0, 0, this.largest);
    device.settle();
    const enqueue = () => {
      for (const [i, residual] of residuals.entries())
        exchange.reduceAdd(stream.value, peers, residual, branches[i]!);
    };
    enqueue();
    device.settle();
    using graph = device.capture(enqueue);
    device.settle();
    for (let replay = 0; replay < replays; replay++) {
      this.#fill(0, 0, this.largest);
      this.#wait();
      graph.launch(stream);
      const results = residuals.map((residual) => device.download(residual));
      for (const [i, result] of results.entries())
        this.#summands.compare(result, starts[i]!, `replay ${replay}, sum ${i} of ${sizes[i]} elements`);
      agree(device.ranks, results, `replay ${replay}`);
    }
    device.settle();
  }

  /** Gatherings of random words, zeros among them. */
  gathers(rounds: number): void {
    const { device, seed } = this;
    const { rank, size: ranks } = device.ranks.shard;
    const random = new Randomness(seed + 2);
    const all = Array.from({ length: ranks }, (_, other) => {
      const words = new Randomness(seed + 17 * other);
      return Uint32Array.from({ length: LARGEST_GATHER }, (_, i) =>
        i % 5 === 0 ? 0 : words.next() * 2 ** 32,
      );
    });
    const [part, out] = [
      device.tensor("uint32", LARGEST_GATHER),
      device.tensor("uint32", ranks, LARGEST_GATHER),
    ];
    device.settle();
    for (let round = 0; round < rounds; round++) {
      // Some are of three rows.
      const rows = round % 2 === 0 ? 1 : 3;
      const width = random.size(LARGEST_GATHER / 3);
      const size = rows * width;
      const start = Math.floor(random.next() * (LARGEST_GATHER - size));
      device.upload(part, all[rank]!.slice(start, start + size));
      this.#wait();
      const [source, target] = [view(part, size), view(out, ranks * size)];
      device.exchange.gather(device.stream.value, device.peers, target, source, width);
      const words = new Uint32Array(device.download(target).buffer);
      for (let piece = 0; piece < rows * ranks; piece++) {
        const [row, other] = [Math.floor(piece / ranks), piece % ranks];
        const expected = all[other]!.subarray(start + row * width, start + (row + 1) * width);
        const actual = words.subarray(piece * width, (piece + 1) * width);
        if (Buffer.compare(bytesOf(actual), bytesOf(expected)) !== 0)
          throw new Error(`gathering ${round} of ${size} words: row ${row} of rank ${other} is wrong`);
      }
    }
    device.settle();
    for (const { buffer } of [part, out]) buffer.dispose();
  }

  /** NCCL's sums: the same bits on all ranks, and near. Returns the largest distance from float64, in units in the last place. */
  nccl(rounds: number): number {
    const { device } = this;
    const random = new Randomness(this.seed + 3);
    device.settle();
    let largest = 0;
    for (let round = 0; round < rounds; round++) {
      const size = Math.min(this.largest, 8 * random.size(this.largest / 8));
      const start = Math.floor(random.next() * (this.largest - size));
      this.#fill(0, start, size);
      this.#wait();
      const [residual, branch] = [view(this.#residuals[0]!, size), view(this.#branches[0]!, size)];
      device.nccl!.allReduce(branch.address, branch.address, size, "bfloat16", device.stream.value);
      device.exchange.add(device.stream.value, residual, branch);
      const result = device.download(residual);
      agree(device.ranks, [result], `NCCL's sum ${round} of ${size} elements`);
      largest = Math.max(largest, this.#summands.error(new Uint16Array(result.buffer), start));
    }
    return largest;
  }

  /**
   * Milliseconds in which the last rank allocates and frees memory while the GPUs of all others wait for it; 0 at those. Where
   * the driver waited for them, all would end with a trap when they have waited long enough.
   */
  freeing(): number {
    const { device } = this;
    const { rank, size } = device.ranks.shard;
    this.#fill(0, 0, 8);
    device.settle();
    let elapsed = 0;
    if (rank === size - 1) {
      Bun.sleepSync(20);
      const start = performance.now();
      device.tensor("bfloat16", DELAY_BYTES / 2).buffer.dispose();
      elapsed = performance.now() - start;
    }
    this.#sum(0, 8);
    device.settle();
    return elapsed;
  }

  #fill(i: number, start: number, size: number): void {
    const { device } = this;
    const { parts, residual } = this.#summands;
    const part = parts[device.ranks.shard.rank]!;
    device.upload(this.#branches[i]!, part.slice(start, start + size));
    device.upload(this.#residuals[i]!, residual.slice(start, start + size));
  }

  #sum(i: number, size: number): void {
    const { stream, peers, exchange } = this.device;
    exchange.reduceAdd(stream.value, peers, view(this.#residuals[i]!, size), view(this.#branches[i]!, size));
  }

  /** A while of work on this GPU alone, and now and then a pause of this thread. */
  #wait(): void {
    const bytes = Math.floor(this.#own.next() ** 4 * DELAY_BYTES);
    if (bytes > 0) this.device.stream.fill(this.#delay.address, 0, bytes);
    if (this.#own.next() < 0.01) Bun.sleepSync(this.#own.next() * 2);
  }
}

/** `size` elements from `start` on. */
function view({ buffer, dtype, byteOffset, byteLength, size: all }: Tensor, size: number, start = 0): Tensor {
  return new Tensor(buffer, dtype, [size], byteOffset + (start * byteLength) / all);
}

function bytesOf({ buffer, byteOffset, byteLength }: NodeJS.TypedArray): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
