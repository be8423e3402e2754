import { expect, setDefaultTimeout, test } from "bun:test";
import type { Communicator } from "../../../../src/backend/communicator.ts";
import { CpuBackend } from "../../../../src/backend/cpu/cpu-backend.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { expectClose } from "../../../contract/compare.ts";
import { Random } from "../../../contract/random.ts";
import * as reference from "../../../contract/reference.ts";

setDefaultTimeout(300_000);

const [TOKENS, QUERIES, KEYS] = [3, 8, 4];
const EPS = 1e-5;

/** Rank `rank` of two, to whom the other gives the sums of squares of `other`[TOKENS, QUERIES + 2·KEYS]. */
class OtherRank implements Communicator {
  readonly shard;

  constructor(
    rank: 0 | 1,
    private readonly other: Float32Array,
    private readonly backend: () => CpuBackend,
  ) {
    this.shard = { rank, size: 2 };
  }

  allReduceAdd(): void {
    throw new Error("nothing is to be summed");
  }

  allGather(out: Tensor, part: Tensor): void {
    const backend = this.backend();
    const own = new Float32Array(backend.download(part).slice().buffer);
    const width = QUERIES + 2 * KEYS;
    const squares = (from: number, count: number) =>
      this.other.subarray(from, from + count).reduce((sum, x) => sum + x * x, 0);
    const theirs = Array.from({ length: TOKENS }, (_, t) => [
      squares(t * width, QUERIES),
      squares(t * width + QUERIES, KEYS),
    ]).flat();
    backend.upload(out, Float32Array.from(this.shard.rank === 0 ? [...own, ...theirs] : [...theirs, ...own]));
  }
}

test("queries and keys are normalised over the heads of all ranks", () => {
  const random = new Random(3);
  const [query, key] = [random.normals(2 * QUERIES, 0.3, 1), random.normals(2 * KEYS, 0.3, 1)];
  const width = QUERIES + 2 * KEYS;
  // As different as parts of one token can be.
  const parts = [random.normals(TOKENS * width, 1), random.normals(TOKENS * width, 20)] as const;
  for (const rank of [0, 1] as const) {
    let backend: CpuBackend;
    const other = new OtherRank(rank, parts[1 - rank]!, () => backend);
    backend = new CpuBackend(undefined, other);
    const place = (values: Float32Array, shape: number[]) => {
      const tensor = backend.empty("float32", shape);
      backend.upload(tensor, values);
      return tensor;
    };
    const held = (all: Float32Array, size: number) => all.slice(rank * size, (rank + 1) * size);
    const qkv = place(parts[rank], [TOKENS, width]);
    backend.normProjections(qkv, {
      ...{ query: place(held(query, QUERIES), [QUERIES]), key: place(held(key, KEYS), [KEYS]), eps: EPS },
    });
    const out = new Float32Array(backend.download(qkv).slice().buffer);
    backend.dispose();
    for (let t = 0; t < TOKENS; t++) {
      for (const [weight, size, start] of [
        [query, QUERIES, 0],
        [key, KEYS, QUERIES],
      ] as const) {
        const at = t * width + start;
        const whole = Float32Array.from(parts.flatMap((part) => [...part.subarray(at, at + size)]));
        const expected = reference.rmsNorm(whole, weight, EPS);
        const own = {
          values: expected.values.slice(rank * size, (rank + 1) * size),
          magnitudes: expected.magnitudes.slice(rank * size, (rank + 1) * size),
        };
        expectClose("out", out.slice(at, at + size), own, { dtype: "float32", reduction: 2 * size });
      }
      const values = t * width + QUERIES + KEYS;
      expect(out.slice(values, values + KEYS)).toEqual(parts[rank].slice(values, values + KEYS));
    }
  }
});
