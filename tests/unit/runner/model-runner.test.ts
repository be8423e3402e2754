import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type {
  CapturedGraph,
  Fence,
  Readback,
  SampleRows,
  SlotTensors,
  StepAreas,
  StepBatch,
} from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { rowWords } from "../../../src/backend/row-words.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { DeviceError, InvariantError } from "../../../src/base/errors.ts";
import type { ForwardContext } from "../../../src/layers/forward-context.ts";
import type { ModelRunner } from "../../../src/runner/model-runner.ts";
import type { LogprobRows, ScheduledRow, SlotJoin } from "../../../src/runner/types.ts";
import {
  logitsAfter,
  logprobOf,
  range,
  someTokens,
  ToyModel,
  toyBatch,
  toyJoin,
  toyRunner,
  toySampling,
  VOCAB,
} from "./toy-model.ts";

setDefaultTimeout(300_000);

/** Counts how often each copy to the host is waited for. */
class CopyCounter extends CpuBackend {
  readonly waits: number[] = [];
  /** How many copies from now one fails; 0 = none. */
  failing = 0;

  override readback(source: Tensor): Readback {
    if (this.failing > 0 && --this.failing === 0) throw new DeviceError("the copy cannot be enqueued");
    const copy = super.readback(source);
    const index = this.waits.push(0) - 1;
    return {
      wait: () => {
        this.waits[index]!++;
        return copy.wait();
      },
    };
  }
}

let backend: CopyCounter;
let runner: ModelRunner;

beforeEach(() => {
  backend = new CopyCounter();
  runner = toyRunner(backend);
});
afterEach(() => {
  runner.dispose();
  backend.dispose();
});

function run(rows: readonly ScheduledRow[], joins: readonly SlotJoin[] = []) {
  runner.launch(toyBatch(rows, joins));
  return runner.collect();
}

const decode = (slot: number, fields: Partial<ScheduledRow> = {}): ScheduledRow => {
  return { slot, count: 1, sample: true, ...fields };
};

/** The most likely ids, best first. */
function best(logits: readonly number[], count: number): number[] {
  const ids = range(VOCAB).sort((a, b) => logits[b]! - logits[a]!);
  return ids.slice(0, count);
}

/** Fails unless each row of `actual` is the log-softmax of the logits after one of `after`, [token, position]. */
function expectLogprobs(
  actual: LogprobRows,
  after: readonly (readonly [token: number, position: number])[],
  chosen: readonly number[],
  topCount: number,
): void {
  const logits = after.map(([token, position]) => logitsAfter(token, position));
  const top = logits.flatMap((row) => best(row, topCount));
  const close = (values: number[]) => values.map((value) => expect.closeTo(value, 4) as number);
  expect(actual.topCount).toBe(topCount);
  expect([...actual.chosenIds]).toEqual([...chosen]);
  expect([...actual.chosenLogprobs]).toEqual(close(logits.map((row, i) => logprobOf(row, chosen[i]!))));
  expect([...actual.chosenRanks]).toEqual(logits.map((row, i) => best(row, VOCAB).indexOf(chosen[i]!) + 1));
  expect([...actual.topIds]).toEqual(top);
  expect([...actual.topLogprobs]).toEqual(
    close(top.map((id, i) => logprobOf(logits[Math.floor(i / topCount)]!, id))),
  );
}

describe("a sequence", () => {
  // What was drawn gains so much that it is drawn again, what is in the prompt loses.
  const penalised = toySampling({ frequencyPenalty: -1, presencePenalty: 0.5, repetitionPenalty: 1.3 });
  const prompt = [3, 3, 8, 1];

  function continued(slot: number, count: number): number[] {
    return range(count).flatMap(() => [...run([decode(slot)]).tokens]);
  }

  test("draws after preemption what it would have drawn: the tokens that it brings are counted as its own", () => {
    const drawn = [
      ...run([decode(0, { count: 4 })], [toyJoin(0, prompt, { sampling: penalised })]).tokens,
      ...continued(0, 11),
    ];
    expect(new Set(drawn).size).toBeGreaterThan(6);
    for (const known of [1, 5, 9]) {
      // Another sequence leaves counts behind in the slot.
      run([decode(1, { count: 3 })], [toyJoin(1, [9, 9, 4], { sampling: penalised })]);
      continued(1, 3);
      const tokens = [...prompt, ...drawn.slice(0, known)];
      const join = toyJoin(1, tokens, { promptLength: prompt.length, sampling: penalised });
      const resumed = [...run([decode(1, { count: tokens.length })], [join]).tokens];
      expect([...resumed, ...continued(1, 11 - known)]).toEqual(drawn.slice(known));
    }
  });

  test("starts after its cached prefix, and goes on where each chunk ended", () => {
    const tokens = someTokens(40, 5);
    const asked = { logits: true, promptLogprobs: 0, sample: false };
    const first = run([{ slot: 2, count: 7, ...asked }], [toyJoin(2, tokens, { numComputedTokens: 16 })]);
    const second = run([{ slot: 2, count: 17, ...asked, sample: true }]);
    const third = run([decode(2, { logits: true })]);
    const logits = [first, second, third].flatMap((result) => [...result.logits.get(0)!]);
    const predicted = [first, second].flatMap((result) => [...result.promptLogprobs.get(0)!.chosenIds]);
    expect(predicted).toEqual(tokens.slice(17));
    const known = [...tokens, second.tokens[0]!];
    expect(logits).toEqual(range(25).flatMap((i) => logitsAfter(known[16 + i]!, 16 + i)));
    expect(third.tokens[0]).toBe(best(logitsAfter(second.tokens[0]!, 40), 1)[0]!);
  });
});

describe("log-probabilities", () => {
  test("belong to the sampled rows that asked, whatever the others ask for", () => {
    const prompts = range(6).map((slot) => someTokens(slot < 4 ? 3 + slot : 7, slot + 2));
    const prefill = prompts.map((tokens, slot) => ({ slot, count: tokens.length, sample: true }));
    const joins = prompts.map((tokens, slot) => toyJoin(slot, tokens));
    const { tokens: drawn } = run(prefill.slice(0, 4), joins.slice(0, 4));
    const rows: ScheduledRow[] = [
      decode(3),
      decode(1, { logprobs: 2 }),
      decode(0, { logprobs: 0 }),
      { slot: 4, count: 3, sample: false },
      { slot: 5, count: 7, sample: true, logprobs: 5 },
    ];
    const { tokens, offsets, logprobs } = run(rows, joins.slice(4));
    expect([...offsets]).toEqual([0, 1, 2, 3, 3, 4]);
    const after = (slot: number): [number, number] => {
      return slot < 4 ? [drawn[slot]!, 3 + slot] : [prompts[slot]!.at(-1)!, 6];
    };
    const slots = [3, 1, 0, 5];
    expect([...tokens]).toEqual(slots.map((slot) => best(logitsAfter(...after(slot)), 1)[0]!));
    // No token is what one that is missing would be read as.
    expect(tokens).not.toContain(0);
    expect([...logprobs.keys()].sort()).toEqual([1, 2, 4]);
    for (const [row, slot, topCount] of [
      [1, 1, 2],
      [2, 0, 0],
      [4, 5, 5],
    ] as const)
      expectLogprobs(logprobs.get(row)!, [after(slot)], [tokens[offsets[row]!]!], topCount);
  });

  test("of prompts come from the right tokens, in chunks that are not the reader's and among other rows", () => {
    const [prompt, other] = [someTokens(330, 3), someTokens(260, 4)];
    const expected = (tokens: number[], start: number, end: number) =>
      range(end - start).map((i) => [tokens[start + i]!, start + i] as const);
    const joins = [toyJoin(0, [5, 6]), toyJoin(1, prompt), toyJoin(2, other)];
    const chunks: [number, number][] = [
      [140, 1],
      [133, 200],
      [57, 59],
    ];
    let [first, second] = [0, 0];
    for (const [i, [ofPrompt, ofOther]] of chunks.entries()) {
      const rows: ScheduledRow[] = [
        i === 0 ? { slot: 0, count: 2, sample: true } : decode(0),
        { slot: 1, count: ofPrompt, sample: i === 2, promptLogprobs: 2 },
        { slot: 2, count: ofOther, sample: i === 2, promptLogprobs: 0 },
      ];
      const { promptLogprobs } = run(rows, i === 0 ? joins : []);
      for (const [row, tokens, start, count, top] of [
        [1, prompt, first, ofPrompt, 2],
        [2, other, second, ofOther, 0],
      ] as const) {
        // The prompt's last token predicts no token of it.
        const end = Math.min(start + count, tokens.length - 1);
        const predicted = tokens.slice(start + 1, end + 1);
        expectLogprobs(promptLogprobs.get(row)!, expected(tokens, start, end), predicted, top);
      }
      [first, second] = [first + ofPrompt, second + ofOther];
    }
    expect([first, second]).toEqual([330, 260]);
    // The slot's next sequence starts anew.
    const { promptLogprobs } = run(
      [{ slot: 1, count: 9, sample: true, promptLogprobs: 1 }],
      [toyJoin(1, someTokens(9, 6))],
    );
    expectLogprobs(promptLogprobs.get(0)!, expected(someTokens(9, 6), 0, 8), someTokens(9, 6).slice(1), 1);
  });
});

test("a failed launch waits for its own copies alone, and each copy is waited for once", () => {
  const prompt = someTokens(300, 3);
  const rows = [{ slot: 0, count: 300, sample: true, logits: true, promptLogprobs: 1 }];
  runner.launch(toyBatch(rows, [toyJoin(0, prompt)]));
  const inFlight = backend.waits.length;
  expect(inFlight).toBeGreaterThan(5);
  backend.failing = 6;
  const failing = toyBatch(
    rows.map((row) => ({ ...row, slot: 1 })),
    [toyJoin(1, prompt)],
  );
  expect(() => runner.launch(failing)).toThrow("the copy cannot be enqueued");
  expect(backend.waits).toEqual([...Array(inFlight).fill(0), ...Array(5).fill(1)]);
  expect(runner.collect().promptLogprobs.get(0)!.topCount).toBe(1);
  expect(backend.waits.every((count) => count === 1)).toBe(true);
  expect(run([decode(0)]).tokens).toHaveLength(1);
});

test("log-probabilities come whole whether the mailbox has room for them or not", () => {
  const tokens = someTokens(6, 5);
  for (const topCount of [0, 20, VOCAB]) {
    const slots = range(6);
    const rows = slots.map((slot) => ({ slot, count: 6, sample: true, logprobs: topCount }));
    backend.waits.length = 0;
    const { tokens: drawn, logprobs } = run(
      rows,
      slots.map((slot) => toyJoin(slot, tokens)),
    );
    expect(backend.waits.length).toBe(topCount === VOCAB ? 1 : 0);
    for (const slot of slots)
      expectLogprobs(logprobs.get(slot)!, [[tokens[5]!, 5]], [drawn[slot]!], topCount);
  }
});

test("what a step says of log-probabilities leaves the records of its rows as they were", () => {
  const { prepareBatch } = backend;
  let inbox: StepAreas | undefined;
  backend.prepareBatch = (batch: StepBatch, samples: SampleRows, areas: StepAreas, slots: SlotTensors) => {
    inbox = areas;
    prepareBatch.call(backend, batch, samples, areas, slots);
    told = records();
  };
  const records = () => new Int32Array(inbox!.areas.buffer.host!).slice(0, 2 * rowWords(1));
  let told = new Int32Array();
  const tokens = someTokens(6, 5);
  const joins = [0, 1].map((slot) => toyJoin(slot, tokens));
  runner.launch(
    toyBatch(
      joins.map(({ slot }) => ({ slot, count: 6, sample: true, logprobs: 2 })),
      joins,
    ),
  );
  // The device may read them any time until the step is done.
  expect(records()).toEqual(told);
  runner.collect();
});

test("a step whose end cannot be waited for does not shift the answers of those after it", () => {
  const joins = [0, 1, 2].map((slot) => toyJoin(slot, someTokens(5 + slot, slot)));
  const rows = joins.map(({ slot, tokens }) => ({ slot, count: tokens.length, sample: true }));
  run(rows, joins);
  const { fence } = backend;
  backend.fence = (): Fence => ({
    wait: () => {
      throw new DeviceError("not now");
    },
  });
  runner.launch(toyBatch([decode(0)]));
  backend.fence = fence.bind(backend);
  expect(() => runner.collect()).toThrow("not now");
  const alone = toyRunner(new CpuBackend());
  alone.launch(toyBatch(rows, joins));
  alone.collect();
  for (const slot of [1, 2, 1, 2]) {
    alone.launch(toyBatch([decode(slot)]));
    expect(run([decode(slot)]).tokens).toEqual(alone.collect().tokens);
  }
  alone.dispose();
});

describe("with captured steps", () => {
  /** Replays a step by computing it again. */
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

  const joins = [0, 1, 2].map((slot) => toyJoin(slot, someTokens(20 + slot, slot)));
  const prompt = (slot: number, fields: Partial<ScheduledRow> = {}): ScheduledRow => {
    return { slot, count: 20 + slot, sample: true, ...fields };
  };
  /** Draws token 3, if its logits are processed. */
  const biased = toyJoin(1, someTokens(21, 1), { sampling: toySampling({ logitBias: [[3, 50]] }) });

  test.each<[string, number, readonly ScheduledRow[], readonly SlotJoin[]]>([
    ["a prompt", 2, [prompt(1)], [joins[1]!]],
    ["a prompt whose slot asks for a token", 2, [prompt(1)], [biased]],
    ["a prompt with log-probabilities of its token", 2, [prompt(1, { logprobs: 2 })], [joins[1]!]],
    ["a prompt with log-probabilities of its own", 0, [prompt(1, { promptLogprobs: 2 })], [joins[1]!]],
    ["a prompt whose logits are asked for", 0, [prompt(1, { logits: true })], [joins[1]!]],
    ["a prompt that is cut", 0, [prompt(1, { count: 9, sample: false })], [joins[1]!]],
    ["two prompts", 0, [prompt(0), prompt(2)], [joins[0]!, joins[2]!]],
    ["two prompts of one token", 3, [0, 2].map((slot) => decode(slot)), [toyJoin(0, [5]), toyJoin(2, [6])]],
  ])("%s is answered as without", (_, replays, rows, joining) => {
    const capturing = new CapturingBackend();
    const captured = toyRunner(capturing, { enforceEager: false });
    for (let time = 0; time < 3; time++) {
      captured.launch(toyBatch(rows, joining));
      const result = captured.collect();
      expect(result).toEqual(run(rows, joining));
      if (joining[0] === biased) expect([...result.tokens]).toEqual([3]);
    }
    expect(capturing.replays).toBe(replays);
    // What comes after a padded step is right, too.
    const after = rows.filter(({ sample }) => sample).map(({ slot }) => decode(slot));
    captured.launch(toyBatch(after));
    expect(captured.collect().tokens).toEqual(run(after).tokens);
    captured.dispose();
  });

  /** Lends memory as a GPU does: all that steps need is allocated at the start. */
  class FiniteBackend extends CapturingBackend {
    readonly events: string[] = [];

    memory() {
      return { free: 2 ** 30, total: 2 ** 30 };
    }

    tuneLinear(tokenCounts: readonly number[]): void {
      this.events.push(`tune ${tokenCounts}`);
    }
  }

  /** Has memory of its own in the workspace. */
  class HungryModel extends ToyModel {
    constructor(
      readonly events: string[],
      public words = 100,
    ) {
      super();
    }

    /** Tokens, rows, and tokens of the longest row, of each step. */
    readonly steps: [number, number, number][] = [];

    override forward(context: ForwardContext): Tensor {
      const { numTokens, numRows, maxQueryLen } = context.batch;
      this.events.push("forward");
      this.steps.push([numTokens, numRows, maxQueryLen]);
      context.workspace.tensor("own", "uint32", [this.words]);
      return super.forward(context);
    }
  }

  test.each([
    [6, 300, "tune 1,2,4,6,300"],
    [6, 5, "tune 1,2,4,5,5"],
    [1, 64, "tune 1,64"],
  ])(
    "of up to %d rows and %d tokens, products of their sizes and of a full step's are tuned, ahead of the pool",
    (maxNumSeqs, maxNumBatchedTokens, tuned) => {
      for (const enforceEager of [false, true]) {
        const finite = new FiniteBackend();
        const { events } = finite;
        const planBlocks = () => events.push("plan") && 150;
        const options = { maxNumSeqs, maxNumBatchedTokens, enforceEager, planBlocks };
        toyRunner(finite, options, new HungryModel(events)).dispose();
        // The weights that are tuned are those that the warm-up has used.
        expect(events[0]).toBe("forward");
        const starts = events.filter((event) => event !== "forward");
        expect(starts).toEqual([tuned, "plan"]);
      }
    },
  );

  test.each([
    // All sequences have room for the budget: in six rows, of which two are shorter.
    [6, 400, 298, [298, 6, 50]],
    // They have not: as much as they have, or as a prompt is padded to.
    [2, 70, 1000, [256, 2, 70]],
    [2, 300, 1000, [600, 2, 300]],
  ] as const)(
    "of up to %d rows of %d tokens, and %d of a step, follow one of as many tokens as any step, in as many rows as there can be",
    (maxNumSeqs, maxModelLen, maxNumBatchedTokens, largest) => {
      const model = new HungryModel([]);
      const options = { maxNumSeqs, maxModelLen, maxNumBatchedTokens, enforceEager: false };
      toyRunner(new FiniteBackend(), options, model).dispose();
      expect(model.steps[0]).toEqual([...largest]);
      expect(Math.max(...model.steps.map(([tokens]) => tokens))).toBe(largest[0]);
    },
  );

  test("what they hold of the workspace never grows", () => {
    for (const enforceEager of [false, true]) {
      const model = new HungryModel([]);
      const hungry = toyRunner(new FiniteBackend(), { enforceEager }, model);
      const step = () => hungry.launch(toyBatch([prompt(1)], [joins[1]!]));
      step();
      hungry.collect();
      model.words++;
      if (enforceEager) expect(step).not.toThrow();
      else expect(step).toThrow(InvariantError);
      hungry.dispose();
    }
  });
});
