import type { Backend } from "../../src/backend/backend.ts";
import type { Communicator } from "../../src/backend/communicator.ts";
import { Random } from "./random.ts";

const SLEEPING = new Int32Array(new SharedArrayBuffer(4));
/** What sums and copies must come through unchanged, or give as they should. */
const SPECIAL = [0, -0, 1e-45, -1e-40, 3e38, Infinity, -Infinity, Number.NaN];

/** What a rank got in all rounds: the same on every rank, bit by bit, but for the kind of NaN. */
export interface RoundsResult {
  readonly digest: string;
  /** Rounds in which it was not what the definition gives. */
  readonly wrong: readonly string[];
}

/** Values that rank `rank` brings to a round. */
function valuesOf(rank: number, round: number, length: number): Float32Array {
  const random = new Random(1 + rank + 64 * round);
  const values = random.normals(length);
  if (round % 3 === 0)
    for (let i = random.int(5); i < length; i += 5) values[i] = SPECIAL[random.int(SPECIAL.length)]!;
  return values;
}

/** The bits of values, of which every NaN has the same: which one arithmetic gives, no language promises. */
function bitsOf(values: Float32Array): Uint32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return bits.map((word, i) => (Number.isNaN(values[i]) ? 0x7fc00000 : word));
}

/** Takes part in rounds of random lengths, now and then late: a sum, then a gathering. */
export function takePart(backend: Backend, communicator: Communicator, rounds: number): RoundsResult {
  const { rank, size } = communicator.shard;
  const lengths = new Random(3);
  const delays = new Random(1000 + rank);
  const hash = new Bun.CryptoHasher("sha256");
  const wrong: string[] = [];
  const check = (what: string, actual: Float32Array, expected: (i: number) => number) => {
    const at = actual.findIndex((value, i) => !Object.is(value, expected(i)));
    if (at >= 0)
      wrong.push(`${what}: element ${at} of ${actual.length} is ${actual[at]}, not ${expected(at)}`);
  };
  for (let round = 0; round < rounds; round++) {
    const length = 1 + lengths.int(round % 25 === 0 ? 80_000 : 600);
    if (delays.uniform() < 0.05) Atomics.wait(SLEEPING, 0, 0, delays.uniform() * 5);
    const all = Array.from({ length: size }, (_, r) => valuesOf(r, round, length));
    const start = valuesOf(63, round, length);
    const [residual, branch] = [backend.empty("float32", [1, length]), backend.empty("float32", [1, length])];
    backend.upload(residual, start);
    backend.upload(branch, all[rank]!);
    communicator.allReduceAdd(residual, branch);
    const sums = new Float32Array(backend.download(residual).buffer);
    hash.update(bitsOf(sums));
    check(`sum ${round}`, sums, (i) => {
      const sum = all.reduce((total, values) => total + values[i]!, 0);
      return Math.fround(start[i]! + Math.fround(sum));
    });
    backend.upload(branch, all[rank]!);
    const gathered = backend.empty("float32", [size, 1, length]);
    communicator.allGather(gathered, branch);
    const parts = new Float32Array(backend.download(gathered).buffer);
    hash.update(bitsOf(parts));
    check(`gathering ${round}`, parts, (i) => all[Math.floor(i / length)]![i % length]!);
    for (const { buffer } of [residual, branch, gathered]) buffer.dispose();
  }
  return { digest: hash.digest("hex"), wrong };
}
