import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { findRevision, makeRecord, type RunCommand, writeRecord } from "../../bench/record.ts";
import { temporaryFolder } from "../support.ts";

setDefaultTimeout(300_000);

const noGit: RunCommand = () => undefined;
const git =
  (changes: string): RunCommand =>
  ([, verb]) =>
    verb === "rev-parse" ? "0123abc\n" : changes;

describe("the revision of a record", () => {
  test("comes from git, and says whether tracked files differ", () => {
    expect(findRevision({}, git(""))).toEqual({ commit: "0123abc", dirty: false });
    // A copy may lie in some other repository, or in one that is behind.
    expect(findRevision({ OCTAVO_COMMIT: "other" }, git(""))).toEqual({ commit: "other", dirty: false });
    expect(findRevision({}, git(" M src/llm.ts\n"))).toEqual({ commit: "0123abc", dirty: true });
  });

  test("without git comes from OCTAVO_COMMIT", () => {
    expect(findRevision({ OCTAVO_COMMIT: "0123abc" }, noGit)).toEqual({ commit: "0123abc", dirty: false });
    expect(findRevision({ OCTAVO_COMMIT: "0123abc-dirty" }, noGit)).toEqual({
      commit: "0123abc",
      dirty: true,
    });
  });

  test("is null when nobody can tell", () => {
    expect(findRevision({}, noGit)).toEqual({ commit: null, dirty: null });
  });
});

test("a record holds run, machine, revision and results, and is written as JSON", () => {
  const machine = { platform: "linux x64", cpus: 2, bun: "1.4.5" };
  const run = { benchmark: "throughput", model: "tiny", options: { maxNumSeqs: 4 } };
  const record = makeRecord(run, { tokensPerSecond: 12 }, machine, { commit: "0123abc", dirty: true });
  expect(record).toMatchObject({
    ...run,
    machine,
    commit: "0123abc",
    dirty: true,
    results: { tokensPerSecond: 12 },
  });
  expect(Math.abs(Date.parse(record.date) - Date.now())).toBeLessThan(60_000);

  const folder = temporaryFolder();
  const file = folder.file("new/record.json");
  writeRecord(file, record);
  expect(JSON.parse(readFileSync(file, "utf8"))).toEqual(JSON.parse(JSON.stringify(record)));
});
