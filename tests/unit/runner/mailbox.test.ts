import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import type { StepAreas } from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { DeviceError, InvariantError } from "../../../src/base/errors.ts";
import { Mailbox } from "../../../src/runner/mailbox.ts";
import { readInts, someTokens, toyBatch, toyJoin, toyRunner } from "./toy-model.ts";

setDefaultTimeout(300_000);

let backend: CpuBackend;

beforeEach(() => {
  backend = new CpuBackend();
});
afterEach(() => backend.dispose());

/** What the device does in a step: takes its area, answers with the words there plus 100. */
function runStep({ inbox, tokens, logprobs }: Mailbox): void {
  const step = readInts(backend, inbox.steps)[0]!;
  backend.upload(inbox.steps, Int32Array.of(step + 1));
  const told = readInts(backend, inbox.areas.rows(step % 4, (step % 4) + 1));
  const results = backend.empty("int32", [told.length]);
  backend.upload(
    results,
    told.map((word) => word + 100),
  );
  backend.post(tokens, results);
  backend.post(logprobs, results.rows(1, 2));
}

test.each([1, 2, 3, 4])(
  "a device that is up to %d steps behind reads and answers each step's own words",
  (lag) => {
    const mailbox = new Mailbox(backend, { depth: 4, inbox: 3, tokens: 3, logprobs: 1 });
    const late: (() => void)[] = [];
    const answers: number[][] = [];
    const collect = () => {
      late.shift()!();
      const answer = mailbox.take();
      answers.push([...answer.tokens, ...answer.logprobs]);
    };
    for (let step = 0; step < 50; step++) {
      if (late.length === lag) collect();
      mailbox.draft().set([step, 2 * step, -step]);
      late.push(() => runStep(mailbox));
      mailbox.send();
    }
    while (late.length > 0) collect();
    const expected = (step: number) => [100 + step, 100 + 2 * step, 100 - step, 100 + 2 * step];
    expect(answers).toEqual(Array.from({ length: 50 }, (_, step) => expected(step)));
  },
);

test("no step is written over one that is under way, and no answer is taken twice", () => {
  const mailbox = new Mailbox(backend, { depth: 2, inbox: 1, tokens: 1, logprobs: 1 });
  mailbox.draft();
  mailbox.send();
  mailbox.draft();
  mailbox.send();
  expect(() => mailbox.draft()).toThrow(InvariantError);
  mailbox.take();
  mailbox.draft();
  mailbox.take();
  expect(() => mailbox.take()).toThrow(InvariantError);
});

test("a step is recalled once all that is enqueued is done: what counts it may be under way", () => {
  const mailbox = new Mailbox(backend, { depth: 2, inbox: 1, tokens: 1, logprobs: 1 });
  mailbox.draft();
  mailbox.send();
  mailbox.draft();
  // Both steps have been enqueued, and are computed when somebody waits for them.
  const enqueued = [1, 2];
  backend.synchronize = () => {
    for (const steps of enqueued.splice(0)) backend.upload(mailbox.inbox.steps, Int32Array.of(steps));
  };
  mailbox.recall();
  backend.synchronize();
  expect(readInts(backend, mailbox.inbox.steps)[0]).toBe(1);
});

test("a step that fails after it began leaves those around it their areas", () => {
  const runner = toyRunner(backend);
  const decode = (slot: number) => ({ slot, count: 1, sample: true });
  const run = (slot: number) => runner.launch(toyBatch([decode(slot)]));
  const joins = [0, 1].map((slot) => toyJoin(slot, someTokens(5, slot + 2)));
  runner.launch(
    toyBatch(
      joins.map(({ slot }) => ({ slot, count: 5, sample: true })),
      joins,
    ),
  );
  const alone = toyRunner(new CpuBackend());
  alone.launch(
    toyBatch(
      joins.map(({ slot }) => ({ slot, count: 5, sample: true })),
      joins,
    ),
  );
  expect(runner.collect().tokens).toEqual(alone.collect().tokens);
  const { post } = backend;
  for (let i = 0; i < 7; i++) {
    run(0);
    // Slot 5 belongs to nobody. Its step reaches the device, and fails there before it ends.
    backend.post = () => {
      throw new DeviceError("the last op cannot be enqueued");
    };
    for (let j = 0; j < i % 3; j++) expect(() => run(5)).toThrow(DeviceError);
    backend.post = (outbox: StepAreas, results: Tensor) => post.call(backend, outbox, results);
    run(1);
    for (const slot of [0, 1]) {
      alone.launch(toyBatch([decode(slot)]));
      expect(runner.collect().tokens).toEqual(alone.collect().tokens);
    }
  }
  runner.dispose();
});
