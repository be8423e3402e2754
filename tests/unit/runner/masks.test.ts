import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CapturedGraph } from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { DeviceError } from "../../../src/base/errors.ts";
import {
  logitsAfter,
  range,
  someTokens,
  toyBatch,
  toyJoin,
  toyRunner,
  toySampling,
  VOCAB,
} from "./toy-model.ts";

setDefaultTimeout(300_000);

/** Replays a step by computing it again, and notes how many graphs were launched. */
class CapturingBackend extends CpuBackend {
  replays = 0;

  capture(enqueue: () => void): CapturedGraph {
    const launch = () => {
      this.replays++;
      enqueue();
    };
    return { launch, dispose: () => {} };
  }
}

/** Allows these tokens. */
function maskOf(...ids: readonly number[]): Uint32Array {
  return Uint32Array.of(ids.reduce((bits, id) => bits | (1 << id), 0));
}

const masked = toySampling({ masked: true });
const joins = [0, 1, 2].map((slot) =>
  toyJoin(slot, someTokens(20 + slot, slot + 3), slot === 1 ? { sampling: masked } : {}),
);
const rows = [0, 1, 2].map((slot) => ({ slot, count: 1, sample: true, ...(slot === 1 && { masked: true }) }));
const prompts = rows.map((row, slot) => ({ ...row, count: 20 + slot }));
const bestAfter = (token: number, position: number, among = range(VOCAB)) => {
  const logits = logitsAfter(token, position);
  return among.toSorted((a, b) => logits[b]! - logits[a]!)[0]!;
};

describe.each([
  ["op by op", true],
  ["with captured steps", false],
])("%s", (_, enforceEager) => {
  test("a masked row draws what its mask allows, and its neighbours what they would without it", () => {
    const backend = new CapturingBackend();
    const runner = toyRunner(backend, { enforceEager });
    runner.launch(toyBatch(prompts, joins));
    runner.draw([{ row: 1, mask: maskOf(4, 9, 17) }]);
    const first = runner.collect().tokens;
    const lasts = joins.map(({ tokens }) => tokens.at(-1)!);
    expect([...first]).toEqual([
      bestAfter(lasts[0]!, 19),
      bestAfter(lasts[1]!, 20, [4, 9, 17]),
      bestAfter(lasts[2]!, 21),
    ]);
    // The step ahead is collected, and gives the next its mask, while that one has begun.
    runner.launch(toyBatch(rows));
    runner.draw([{ row: 1, mask: maskOf(2, 3) }]);
    runner.launch(toyBatch(rows));
    const second = runner.collect().tokens;
    expect(second[1]).toBe(bestAfter(first[1]!, 21, [2, 3]));
    runner.draw([{ row: 1, mask: maskOf(second[1]! + 1) }]);
    const third = runner.collect().tokens;
    expect([...third]).toEqual([bestAfter(second[0]!, 21), second[1]! + 1, bestAfter(second[2]!, 23)]);
    expect(backend.replays).toBe(enforceEager ? 0 : 4);
    runner.dispose();
    backend.dispose();
  });
});

test("a step that cannot draw is in flight no more, and the next one is as if it had not been", () => {
  class FailingBackend extends CpuBackend {
    fails = false;
    override processLogits(...operands: Parameters<CpuBackend["processLogits"]>): void {
      if (this.fails) throw new DeviceError("the logits cannot be processed");
      super.processLogits(...operands);
    }
  }
  const backend = new FailingBackend();
  const runner = toyRunner(backend);
  runner.launch(toyBatch(prompts, joins));
  backend.fails = true;
  expect(() => runner.draw([])).toThrow(DeviceError);
  backend.fails = false;
  runner.launch(toyBatch(prompts, joins));
  runner.draw([{ row: 1, mask: maskOf(5) }]);
  expect(runner.collect().tokens[1]).toBe(5);
  runner.dispose();
  backend.dispose();
});
