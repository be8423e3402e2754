import { beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { createSHA256, type IHasher } from "hash-wasm";
import { type Summary, simulate } from "./simulate.ts";

setDefaultTimeout(300_000);

const RUNS = Number(process.env["OCTAVO_SIMULATION_RUNS"] ?? 2500);
const FIRST = Number(process.env["OCTAVO_SIMULATION_FIRST"] ?? 0);

let hasher: IHasher;
beforeAll(async () => {
  hasher = await createSHA256();
});

function run(seed: number): Summary {
  try {
    return simulate(seed, hasher);
  } catch (cause) {
    throw new Error(`seed ${seed}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
}

test(`${RUNS} random loads give the reference's outputs and leave nothing behind`, () => {
  const counts = { requests: 0, steps: 0, preemptions: 0, prefixHits: 0, errors: 0, aborts: 0, died: 0 };
  const total = { ...counts, drafts: 0, accepted: 0, late: 0, ranks: 0, rankDied: 0 };
  for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
    const summary = run(seed);
    for (const key of Object.keys(total) as (keyof Summary)[]) total[key] += Number(summary[key]);
  }
  if (process.env["OCTAVO_SIMULATION_RUNS"]) console.log(total);
  // The loads must reach what they are meant to test.
  for (const count of Object.values(total)) expect(count).toBeGreaterThan(RUNS / 100);
  expect(total.preemptions).toBeGreaterThan(RUNS / 4);
  expect(total.prefixHits).toBeGreaterThan(RUNS);
  expect(total.accepted).toBeGreaterThan(RUNS);
  expect(total.drafts).toBeGreaterThan(1.5 * total.accepted);
});

test("a run depends on its seed alone", () => {
  for (let seed = 0; seed < 20; seed++) expect(run(seed)).toEqual(run(seed));
});
