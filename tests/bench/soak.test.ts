import { expect, setDefaultTimeout, test } from "bun:test";
import { SoakRequests } from "../../bench/soak.ts";

setDefaultTimeout(300_000);

const MAX = 1024;

test("random requests are of all kinds, fit the context, and are the same for a seed", () => {
  const [requests, again] = [new SoakRequests(3, MAX), new SoakRequests(3, MAX)];
  const kinds = new Map<string, number>();
  const prefixes = new Set<string>();
  for (let i = 0; i < 500; i++) {
    const request = requests.next();
    expect(again.next()).toEqual(request);
    const {
      prompt,
      max_tokens,
      n = 1,
    } = request.body as {
      prompt: number[];
      max_tokens: number;
      n?: number;
    };
    expect(prompt.length).toBeGreaterThan(0);
    expect(prompt.length + max_tokens).toBeLessThanOrEqual(MAX);
    expect(request.tokens).toBe(n * max_tokens);
    if (request.kind === "long") expect(prompt.length + max_tokens).toBeGreaterThan(MAX - 16);
    if (request.kind === "prefix") prefixes.add(prompt.slice(0, 16).join());
    if (request.leavesAfter !== undefined) expect(request.leavesAfter).toBeLessThan(max_tokens);
    kinds.set(request.kind, (kinds.get(request.kind) ?? 0) + 1);
  }
  expect([...kinds.keys()].sort()).toEqual([
    ...["filtered", "left", "logprobs", "long", "plain", "prefix", "several"],
  ]);
  expect(Math.min(...kinds.values())).toBeGreaterThan(20);
  expect(prefixes.size).toBe(4);
});
