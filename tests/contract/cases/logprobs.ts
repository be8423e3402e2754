import type { LogprobTensors } from "../../../src/backend/backend.ts";
import type { Case } from "../backend.contract.ts";
import { expectClose, expectEqual } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import { logSumExp } from "../reference.ts";

const PRECISION = { dtype: "float32", reduction: 1 } as const;

function outputs(fixture: Fixture, rows: number, top: number): LogprobTensors {
  return {
    chosen: fixture.output("float32", [rows]),
    ranks: fixture.output("int32", [rows]),
    topIds: fixture.output("int32", [rows, top]),
    topLogprobs: fixture.output("float32", [rows, top]),
  };
}

export function logprobsCases(addCase: Case): void {
  for (const [rows, vocab, top] of [
    [1, 1, 1],
    [3, 7, 7],
    [17, 4096, 0],
    [17, 4096, 5],
    [3, 151_936, 20],
  ] as const) {
    addCase("logprobs", `${rows} rows of ${vocab}, top ${top}`, (fixture) => {
      const { tensor, values } = fixture.input(
        fixture.random.normals(rows * vocab, 4, 10),
        [rows, vocab],
        "float32",
      );
      const rowOf = (row: number) => values.subarray(row * vocab, (row + 1) * vocab);
      const orders = Array.from({ length: rows }, (_, row) => {
        const logits = rowOf(row);
        return [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b);
      });
      const chosenRanks = orders.map((order, row) => (row === 0 ? 0 : fixture.random.int(order.length)));
      const chosen = orders.map((order, row) => order[chosenRanks[row]!]!);
      const out = outputs(fixture, rows, top);
      fixture.backend.logprobs(out, tensor, fixture.ints(chosen));

      const ranks = orders.map((_, row) => {
        const logits = rowOf(row);
        return logits.filter((logit) => logit > logits[chosen[row]!]!).length;
      });
      expectEqual("ranks", fixture.readInts(out.ranks), ranks);
      const topIds = orders.flatMap((order) => order.slice(0, top));
      expectEqual("topIds", fixture.readInts(out.topIds), topIds);
      const logprob = (row: number, id: number) => rowOf(row)[id]! - logSumExp(rowOf(row));
      const near = (expected: number[]) => ({
        values: Float64Array.from(expected),
        magnitudes: Float64Array.from(expected, (value) => Math.abs(value) + 40),
      });
      const chosenLogprobs = chosen.map((id, row) => logprob(row, id));
      expectClose("chosen", fixture.readFloats(out.chosen), near(chosenLogprobs), PRECISION);
      const topLogprobs = topIds.map((id, i) => logprob(Math.floor(i / top), id));
      expectClose("topLogprobs", fixture.readFloats(out.topLogprobs), near(topLogprobs), PRECISION);
    });
  }

  addCase("logprobs", "of some rows, in any order; entries below 0 leave their outputs alone", (fixture) => {
    const [samples, vocab, top] = [6, 700, 4];
    const logits = fixture.input(fixture.random.normals(samples * vocab, 4), [samples, vocab], "float32");
    const tokens = fixture.ints(Array.from({ length: samples }, () => fixture.random.int(vocab)));
    const all = outputs(fixture, samples, top);
    fixture.backend.logprobs(all, logits.tensor, tokens);
    const rows = [4, -1, 0, 5, -1];
    const some = outputs(fixture, rows.length, top);
    fixture.backend.logprobs(some, logits.tensor, tokens, fixture.ints(rows));
    for (const name of ["chosen", "ranks", "topIds", "topLogprobs"] as const) {
      const [actual, expected] = [some, all].map((out) => fixture.readWords(out[name]));
      const width = actual!.length / rows.length;
      for (const [i, row] of rows.entries()) {
        const poison = new Uint32Array(width).fill(0xffffffff);
        const right = row < 0 ? poison : expected!.subarray(row * width, (row + 1) * width);
        expectEqual(`${name} of entry ${i}`, actual!.subarray(i * width, (i + 1) * width), right);
      }
    }
  });

  addCase("logprobs", "ties: the lowest id comes first, and tied tokens share a rank", (fixture) => {
    const logits = fixture.input(Float32Array.of(1, 3, 2, 3, 3, 2), [1, 6], "float32");
    const out = outputs(fixture, 1, 5);
    fixture.backend.logprobs(out, logits.tensor, fixture.ints([5]));
    expectEqual("topIds", fixture.readInts(out.topIds), [1, 3, 4, 2, 5]);
    expectEqual("ranks", fixture.readInts(out.ranks), [3]);
  });

  addCase("logprobs", "a failed row (token −1) has no logprob and leaves other rows alone", (fixture) => {
    const values = Float32Array.of(Number.NaN, 1, 2, -Infinity, 0, 0);
    const logits = fixture.input(values, [2, 3], "float32");
    const out = outputs(fixture, 2, 0);
    fixture.backend.logprobs(out, logits.tensor, fixture.ints([-1, 2]));
    expectEqual("ranks", fixture.readInts(out.ranks), [-1, 0]);
    const expected = {
      values: Float64Array.of(Number.NaN, -Math.LN2),
      magnitudes: Float64Array.of(1, 1),
    };
    expectClose("chosen", fixture.readFloats(out.chosen), expected, PRECISION);
  });
}
