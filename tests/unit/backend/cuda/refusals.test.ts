import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { dtypeSize } from "../../../../src/base/dtype.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { refusals } from "../../../contract/refusal-tables.ts";
import { acceptedOf, callsOf } from "../../../contract/refusals.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeOperands } from "./fake-operands.ts";

setDefaultTimeout(300_000);

const machine = new FakeMachine();
const backend = machine.backend();
afterAll(() => machine[Symbol.dispose]());
const operands = new FakeOperands();
const { bf16, f32, i32 } = operands;

/** How many kernels and matrix products `run` enqueues. */
function enqueued(run: () => void): number {
  machine.cuda.launches.length = 0;
  machine.cublas.matmuls.length = 0;
  run();
  return machine.cuda.launches.length + machine.cublas.matmuls.length;
}

/** All but those of what the kernels do not take. */
const TABLES = refusals("bfloat16").filter(({ title }) => title !== "of a cache that is only read");

test.each(TABLES.map((table) => [[table.op, table.title ?? ""].join(" "), table] as const))(
  "wrong calls of %s are refused and enqueue nothing",
  (_name, table) => {
    const { right, wrong } = callsOf(backend, table, (words) => i32(words.length));
    expect(enqueued(right)).toBeGreaterThan(0);
    expect(enqueued(() => expect(acceptedOf(table.op, wrong)).toEqual([]))).toBe(0);
  },
);

test("neighbours in one buffer do not overlap", () => {
  const pair = bf16(2, 64);
  const [first, second] = [pair.rows(0, 1), pair.rows(1, 2)];
  expect(enqueued(() => backend.rmsNorm(first, second, bf16(64), 1e-6))).toBe(1);
  expect(enqueued(() => backend.rmsNorm(second, first, bf16(64), 1e-6))).toBe(1);
});

test("rows that do not fit a block's registers are refused", () => {
  const [row, weight] = [bf16(1, 2 ** 18), bf16(2 ** 18)];
  expect(() => backend.rmsNorm(bf16(1, 2 ** 18), row, weight, 1e-6)).toThrow(InvariantError);
  const [fitting, scale] = [bf16(1, 2 ** 17), bf16(2 ** 17)];
  expect(enqueued(() => backend.rmsNorm(bf16(1, 2 ** 17), fitting, scale, 1e-6))).toBe(1);
});

test("what attention cannot access by vectors is refused", () => {
  const batch = operands.batch({ decodeRows: 2, prefill: [] });
  const right = {
    ...{ qkv: bf16(2, 256), keys: bf16(9, 2, 16, 32), values: bf16(9, 2, 16, 32) },
    ...{ cosSin: f32(9, 16), query: bf16(32), key: bf16(32) },
  };
  const attend = (changes: Partial<typeof right>) => {
    const { qkv, keys, values, cosSin, query, key } = { ...right, ...changes };
    backend.attend(bf16(2, 128), qkv, { keys, values }, batch, {
      ...{ numHeads: 4, numKvHeads: 2, headDim: 32, scale: 1, window: 0 },
      ...{ cosSin, headNorm: { query, key, eps: 1e-6 } },
    });
  };
  expect(enqueued(() => attend({}))).toBe(1);
  for (const [name, { dtype, shape }] of Object.entries(right)) {
    const { buffer } = operands.of(dtype, ...shape, 2);
    const run = () => attend({ [name]: new Tensor(buffer, dtype, shape, dtypeSize(dtype)) });
    expect(run).toThrow(InvariantError);
    expect(run).toThrow("is not 16-byte aligned");
  }
});
