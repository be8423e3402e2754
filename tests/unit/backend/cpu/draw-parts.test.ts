import { expect, setDefaultTimeout, test } from "bun:test";
import type { Communicator } from "../../../../src/backend/communicator.ts";
import { CpuBackend } from "../../../../src/backend/cpu/cpu-backend.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { NotDrawn } from "../../../../src/base/not-drawn.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { Random } from "../../../contract/random.ts";
import { type SlotParams, sampleRows, slotTensors } from "../../../contract/slot-table.ts";
import { thrown } from "../../../support.ts";

setDefaultTimeout(300_000);

/** Thrown by a rank that has shown its part, so that others can. */
class Shown extends Error {}

/** A communicator of ranks that are played one after the other: twice, the first time to see what each shows. */
class PlayedTwice implements Communicator {
  constructor(
    readonly shard: { readonly rank: number; readonly size: number },
    private readonly shown: Uint8Array[],
  ) {}

  allReduceAdd(): void {
    throw new Error("nothing is summed");
  }

  allGather(out: Tensor, part: Tensor): void {
    const backend = new CpuBackend();
    this.shown[this.shard.rank] = backend.download(part);
    if (this.shown.length < this.shard.size) throw new Shown();
    backend.upload(out, Buffer.concat(this.shown));
  }
}

/** Draws from logits that are a head's weights, on `size` ranks; the tokens and sequences of each. */
function drawn(logits: readonly number[], params: readonly SlotParams[], size: number) {
  const shown: Uint8Array[] = [];
  const draw = (rank: number) => {
    const communicator = size === 1 ? undefined : new PlayedTwice({ rank, size }, shown);
    const backend = new CpuBackend(undefined, communicator);
    const fixture = new Fixture(backend);
    const vocab = logits.length;
    const width = vocab / size;
    const slots = slotTensors(fixture, params, { vocab });
    const rows = params.map((_, i) => i);
    const samples = sampleRows(
      fixture,
      rows,
      rows.map((slot) => 5 + slot),
    );
    const part = Float32Array.from(logits.slice(rank * width, (rank + 1) * width));
    const weight = denseWeight(fixture.input(part, [width, 1]).tensor);
    const head = { weight, ...(size > 1 && { firstToken: rank * width }) };
    const hidden = fixture.input(new Float32Array(params.length).fill(1), [params.length, 1]).tensor;
    const [out, room] = [
      fixture.output("int32", [params.length]),
      fixture.output("float32", [params.length, vocab]),
    ];
    backend.drawTokens(out, hidden, head, room, samples, slots);
    return { tokens: [...fixture.readInts(out)], history: [...fixture.readInts(slots.tokens)] };
  };
  const ranks = Array.from({ length: size }, (_, rank) => rank);
  for (const rank of ranks.slice(0, -1)) expect(thrown(() => draw(rank))).toBeInstanceOf(Shown);
  const last = draw(size - 1);
  return [...ranks.slice(0, -1).map(draw), last];
}

const PARAMS: readonly SlotParams[] = [0, 0.3, 1, 1.7, 0].map((temperature, i) => ({
  ...{ temperature, seed: [i * 7 + 3, 11], tokens: [1, 2, 3].slice(0, 1 + (i % 3)) },
}));

test.each([2, 4])("%d ranks draw the tokens of one, from few distinct logits", (size) => {
  const random = new Random(5);
  for (let round = 0; round < 30; round++) {
    const logits = Array.from({ length: 52 }, () => random.int(4));
    const [expected] = drawn(logits, PARAMS, 1);
    expect(drawn(logits, PARAMS, size)).toEqual(Array(size).fill(expected));
  }
});

test.each([
  ["a NaN in the first part", [Number.NaN, 1, 2, 3], NotDrawn.notANumber],
  ["a NaN in the last", [5, 1, 2, Number.NaN], NotDrawn.notANumber],
  ["nothing in the first part", [-Infinity, -Infinity, -5, -6], 2],
  ["nothing in the last", [-7, -5, -Infinity, -Infinity], 1],
  ["nothing at all", Array(4).fill(-Infinity), NotDrawn.nothingAllowed],
  ["infinite logits in both", [0, Infinity, Infinity, 0], 1],
])("%s", (_, logits, token) => {
  const greedy = [{ temperature: 0, tokens: [1] }];
  expect(drawn(logits, greedy, 2).map(({ tokens }) => tokens)).toEqual([[token], [token]]);
  expect(drawn(logits, PARAMS, 2)).toEqual(Array(2).fill(drawn(logits, PARAMS, 1)[0]));
});

test("an embedding of a part gives zeros for other ids", () => {
  const backend = new CpuBackend();
  const fixture = new Fixture(backend);
  const table = fixture.input(Float32Array.of(1, 2, 3, 4), [2, 2]).tensor;
  const out = fixture.output("float32", [4, 2]);
  const ids = fixture.stateOf("int32", Int32Array.of(9, 10, 11, 12), [4]);
  backend.embedding(out, table, ids, 10);
  expect([...new Float32Array(backend.download(out).buffer)]).toEqual([0, 0, 1, 2, 3, 4, 0, 0]);
  expect(thrown(() => backend.embedding(out, table, ids))).toBeInstanceOf(InvariantError);
});
