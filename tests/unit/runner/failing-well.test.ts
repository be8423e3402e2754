import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Readback } from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { Workspace } from "../../../src/backend/workspace.ts";
import { resolveEngineConfig } from "../../../src/base/config.ts";
import { DeviceError, EngineDeadError, RequestFailedError } from "../../../src/base/errors.ts";
import type { Engine } from "../../../src/engine/engine.ts";
import type { RequestDraft } from "../../../src/engine/request.ts";
import { type LoadedModel, loadModel } from "../../../src/llm/load-model.ts";
import { type CompletionOutcome, Outcomes } from "../../simulation/outcomes.ts";
import { thrown } from "../../support.ts";
import { add, makeRequest } from "../engine/helpers.ts";

setDefaultTimeout(300_000);

class LostDevice extends DeviceError {
  override get fatal(): boolean {
    return true;
  }
}

/** The CPU backend on a bad day. */
class UnluckyBackend extends CpuBackend {
  /** How many allocations from now fails; 0 = none. */
  failingAllocation = 0;
  /** The slot whose logits are not numbers. */
  poisonedSlot = -1;
  /** Thrown by the next sampling, and by all that waits for the device after it. */
  loss: DeviceError | undefined;
  /** Copies to the host that nobody has waited for. */
  openReadbacks = 0;

  override readback(source: Tensor): Readback {
    const copy = super.readback(source);
    this.openReadbacks++;
    return {
      wait: () => {
        this.openReadbacks--;
        return copy.wait();
      },
    };
  }

  override allocate(byteLength: number) {
    if (this.failingAllocation > 0 && --this.failingAllocation === 0)
      throw new DeviceError(`no memory for ${byteLength} bytes`);
    return super.allocate(byteLength);
  }

  override sample(...[out, logits, processed, samples, slots]: Parameters<CpuBackend["sample"]>): void {
    if (this.loss !== undefined) throw this.loss;
    const rowSlots = new Int32Array(this.download(samples.slots).buffer);
    for (const [row, slot] of rowSlots.entries())
      if (slot === this.poisonedSlot) this.fill(logits.rows(row, row + 1), 0xff);
    super.sample(out, logits, processed, samples, slots);
  }
}

const PROMPTS = [
  [11, 12, 13],
  [21, 22, 23, 24, 25],
  [31, 32],
] as const;

let backend: UnluckyBackend;
let model: LoadedModel;
let engine: Engine;

beforeEach(async () => {
  backend = new UnluckyBackend();
  const config = resolveEngineConfig({
    ...{ device: "cpu", kvCacheMemoryBytes: 2 ** 24, maxNumSeqs: 3, maxNumBatchedTokens: 32 },
    ...{ skipTokenizerInit: true, maxModelLen: 64 },
  });
  model = await loadModel(undefined, config, { openBackend: () => backend });
  engine = model.engine;
});

afterEach(() => model.dispose());

const greedy = (prompt: readonly number[], fields = {}): RequestDraft =>
  makeRequest(prompt, { temperature: 0, maxTokens: 5, ...fields });

/** Runs everything to its end, checking the engine's books at every step. */
function drain(outcomes = new Outcomes()): Outcomes {
  while (engine.hasUnfinished) {
    outcomes.take(engine.step());
    engine.checkIntegrity();
  }
  return outcomes;
}

function run(...requests: RequestDraft[]): CompletionOutcome[] {
  for (const request of requests) add(engine, request);
  const outcomes = drain();
  return requests.map(({ id }) => outcomes.completion(id));
}

const tokens = ({ tokenIds }: CompletionOutcome) => tokenIds;

describe("no memory for what a step needs", () => {
  test("fails the requests of that step, not those that wait; a later one of its kind succeeds", () => {
    const expected = run(greedy(PROMPTS[2])).map(tokens);
    const [running, asking] = [greedy(PROMPTS[0]), greedy(PROMPTS[1], { logprobs: 5 })];
    const outcomes = new Outcomes();
    add(engine, running);
    outcomes.take(engine.step());
    add(engine, asking);
    const queued = [greedy(PROMPTS[2]), greedy(PROMPTS[2])];
    for (const request of queued) add(engine, request);
    backend.failingAllocation = 1;
    outcomes.take(engine.step()); // Three run: all but the last that was added.
    expect(backend.failingAllocation).toBe(0);
    drain(outcomes);

    for (const { id } of [running, asking, queued[0]!]) {
      const output = outcomes.completion(id);
      expect(output.finishReason).toBe("error");
      expect(output.error).toBeInstanceOf(RequestFailedError);
      expect(output.error).toMatchObject({ code: "step_failed", cause: expect.any(DeviceError) as Error });
    }
    expect(outcomes.completions(queued[1]!.id).map(tokens)).toEqual(expected);
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
    const [again] = run(greedy(PROMPTS[1], { logprobs: 5 }));
    expect(again!.logprobs).toHaveLength(5);
    expect(again!.finishReason).toBe("length");
  });

  test("whichever allocation it is, smaller steps go on", () => {
    const [plain, asking] = [greedy(PROMPTS[0]), greedy(PROMPTS[1], { logprobs: 5, promptLogprobs: 2 })];
    const expected = run(plain, asking).map(tokens);
    for (let nth = 1; nth < 40; nth++) {
      // Every buffer grows again, as the batch is wider than before.
      const asked = { logprobs: 6 + nth, promptLogprobs: 6 + nth };
      const wide = [0, 1, 2].map((i) => greedy([...PROMPTS[1], nth % 19, i], asked));
      backend.failingAllocation = nth;
      run(...wide);
      expect(backend.openReadbacks).toBe(0);
      const met = backend.failingAllocation === 0;
      backend.failingAllocation = 0;
      expect(run(greedy(PROMPTS[0]), greedy(PROMPTS[1])).map(tokens)).toEqual(expected);
      if (!met) return;
    }
    throw new Error("a step allocates without end");
  });

  test("a buffer that could not grow is not used at its old size", () => {
    const workspace = new Workspace(backend);
    workspace.tensor("x", "float32", [100]);
    backend.failingAllocation = 1;
    expect(() => workspace.tensor("x", "float32", [200])).toThrow(DeviceError);
    const again = workspace.tensor("x", "float32", [50]);
    backend.fill(again, 0);
    expect(backend.download(again)).toEqual(new Uint8Array(200));
    workspace.dispose();
  });
});

test("logits that are not numbers end their request alone; its peers draw what they would have drawn", () => {
  const expected = run(...PROMPTS.map((prompt) => greedy(prompt))).map(tokens);
  const requests = PROMPTS.map((prompt) => greedy(prompt));
  for (const request of requests) add(engine, request);
  const outcomes = new Outcomes();
  for (const slot of [-1, -1, 1]) {
    backend.poisonedSlot = slot;
    outcomes.take(engine.step());
  }
  backend.poisonedSlot = -1;
  drain(outcomes);

  const outputs = requests.map(({ id }) => outcomes.completion(id));
  const failed = outputs.filter(({ finishReason }) => finishReason === "error");
  expect(failed.map(({ error }) => error)).toEqual([expect.any(RequestFailedError) as Error]);
  expect(failed[0]!.error).toMatchObject({ code: "numerical_error" });
  expect(failed[0]!.tokenIds).toEqual(expected[outputs.indexOf(failed[0]!)]!.slice(0, 2));
  for (const [i, output] of outputs.entries())
    if (output !== failed[0]) expect(output.tokenIds).toEqual(expected[i]!);

  // Nothing of what the failed request computed is found in the cache, and its slot is clean.
  expect(run(...PROMPTS.map((prompt) => greedy(prompt))).map(tokens)).toEqual(expected);
});

test("a lost device ends every request, the waiting ones too, and the engine", () => {
  const requests = [...PROMPTS, ...PROMPTS].map((prompt) => greedy(prompt));
  for (const request of requests) add(engine, request);
  engine.step();
  backend.loss = new LostDevice("it fell off the bus");
  const death = thrown(() => engine.step());
  expect(death).toBeInstanceOf(EngineDeadError);
  expect(death).toMatchObject({
    cause: backend.loss,
    message: expect.stringContaining("it fell off the bus"),
  });
  expect(engine.hasUnfinished).toBe(false);
  engine.checkIntegrity();
  expect(() => engine.step()).toThrow(EngineDeadError);
});
