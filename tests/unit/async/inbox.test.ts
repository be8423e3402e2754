import { expect, setDefaultTimeout, test } from "bun:test";
import { Inbox } from "../../../src/async/inbox.ts";
import { checkRequest } from "../../../src/engine/request.ts";
import type { StepOutput } from "../../../src/engine/step-output.ts";
import { StepLoop } from "../../../src/llm/step-loop.ts";
import { eventually } from "../../support.ts";
import { makeEngine, makeRequest } from "../engine/helpers.ts";

setDefaultTimeout(300_000);

test("messages are handled as they come, and all of them in their order when the inbox is drained", async () => {
  const { port1, port2 } = new MessageChannel();
  const handled: number[] = [];
  const inbox = new Inbox<number>(port2, (message) => handled.push(message));
  port1.postMessage(0);
  await eventually(() => handled.length === 1);
  for (let i = 1; i <= 5000; i++) port1.postMessage(i);
  inbox.drain();
  expect(handled).toEqual(Array.from({ length: 5001 }, (_, i) => i));
  port1.close();
});

test("a busy step loop takes in all that has arrived before it steps again", async () => {
  const { engine } = makeEngine();
  const { port1, port2 } = new MessageChannel();
  const count = 3000;
  const steps: StepOutput[] = [];
  const sink = {
    deliver(step: StepOutput) {
      // All aborts arrive during the first step.
      if (steps.length === 0) for (let i = 0; i < count; i++) port1.postMessage([String(i)]);
      steps.push(step);
    },
    fail: () => {},
  };
  const loop: StepLoop = new StepLoop(engine, sink, () => inbox.drain());
  const inbox = new Inbox<readonly string[]>(port2, (ids) => loop.abort(ids));
  const requests = Array.from({ length: count }, (_, i) =>
    checkRequest(makeRequest([1, 2, 3], { maxTokens: 16 }, { id: String(i) }), engine.limits),
  );
  loop.add(requests);
  await eventually(() => !engine.hasUnfinished);
  expect(steps.map(({ finished }) => finished.length)).toEqual([0, count]);
  port1.close();
});
