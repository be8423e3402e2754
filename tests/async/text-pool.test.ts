import { afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { rmSync } from "node:fs";
import { TextPool, type TextPoolOptions } from "../../src/async/text-pool.ts";
import { resolveEngineConfig } from "../../src/base/config.ts";
import { EngineDeadError, InvalidRequestError, ModelDataError } from "../../src/base/errors.ts";
import { embeddedModel } from "../../src/llm/embedded-model.ts";
import { temporaryFolder } from "../support.ts";
import { rejection } from "./support.ts";

setDefaultTimeout(300_000);

const CONFIG = resolveEngineConfig({});
const CLOSED = new EngineDeadError("closed");
/** Turns a text into a long one. */
const LONG = " ".repeat(100_000);
/** Longer than any of these tests. */
const NEVER = 1_000_000;

const pools: TextPool[] = [];
afterEach(() => Promise.all(pools.splice(0).map((pool) => pool.close(CLOSED))));

async function openPool(options: TextPoolOptions, folder = embeddedModel()): Promise<TextPool> {
  const pool = new TextPool(new URL("./failing-text-worker.ts", import.meta.url), CONFIG, options);
  pools.push(pool);
  await pool.open(folder);
  return pool;
}

const encode = (pool: TextPool, prompt: string) => pool.call("encode", { prompt, addSpecialTokens: true });
const textOf = async (pool: TextPool, prompt: string) => (await encode(pool, prompt)).text;
/** The worker that does a job of so many tokens. */
const workerOf = (pool: TextPool, tokens = 1) =>
  pool.call("detokenize", { ids: new Int32Array(tokens), skipSpecialTokens: true });

describe("a job that fails its worker", () => {
  test.each([
    ["a short one that crashes", "crash", "", { code: "text_failed" }],
    ["a short one that does not end", "hang", "", { code: "text_timeout" }],
    ["a long one that crashes", "crash", LONG, { code: "text_failed" }],
    ["a long one that does not end", "hang", LONG, { code: "text_timeout" }],
  ])("%s: those behind it are done, in their order", async (_, prompt, behind, expected) => {
    const pool = await openPool({ deadline: 1000, size: 2 });
    const failing = rejection(encode(pool, `${prompt}${behind}`));
    const done: (string | undefined)[] = [];
    const others = Array.from({ length: 20 }, async (_, i) => done.push(await textOf(pool, `${i}${behind}`)));
    await Promise.all(others);
    expect(done).toEqual(Array.from({ length: 20 }, (_, i) => `${i}${behind}`));
    expect(await failing).toMatchObject(expected);
  });

  test("fails alone even if all do but one", async () => {
    const pool = await openPool({ deadline: 1000, size: 2 });
    const failing = ["hang", "crash", "hang", `hang${LONG}`].map((prompt) => rejection(encode(pool, prompt)));
    expect(await textOf(pool, "good")).toBe("good");
    const codes = (await Promise.all(failing)).map((error) => (error as { code?: string }).code);
    expect(codes).toEqual(["text_timeout", "text_failed", "text_timeout", "text_timeout"]);
  });
});

describe("short jobs do not wait", () => {
  test("for long ones, however many of these there are", async () => {
    const pool = await openPool({ deadline: NEVER, size: 3 });
    const long = Array.from({ length: 8 }, () => rejection(encode(pool, `hang${LONG}`)));
    for (let i = 0; i < 20; i++) expect(await textOf(pool, `${i}`)).toBe(`${i}`);
    await pool.close(CLOSED);
    for (const error of await Promise.all(long)) expect(error).toBe(CLOSED);
  });

  test("for a short one that takes long", async () => {
    const pool = await openPool({ deadline: NEVER, size: 2 });
    const hanging = rejection(encode(pool, "hang"));
    expect(await textOf(pool, "good")).toBe("good");
    await pool.close(CLOSED);
    expect(await hanging).toBe(CLOSED);
  });
});

describe("workers", () => {
  test("are one as long as jobs are short, another for long jobs", async () => {
    const pool = await openPool({ deadline: NEVER, patience: NEVER, size: 4 });
    const first = await workerOf(pool);
    const burst = await Promise.all(Array.from({ length: 50 }, () => workerOf(pool)));
    expect(new Set(burst)).toEqual(new Set([first]));
    const second = await workerOf(pool, 100_000);
    expect(second).not.toBe(first);
    expect(await workerOf(pool, 100_000)).toBe(second);
  });

  test("are no more than allowed", async () => {
    const pool = await openPool({ deadline: NEVER, size: 3 });
    const workers = await Promise.all(Array.from({ length: 50 }, (_, i) => workerOf(pool, 50_000 * (i % 2))));
    expect(new Set(workers).size).toBeWithin(2, 4);
  });

  test("that cannot be started fail one job each, and leave the others theirs", async () => {
    using folder = temporaryFolder();
    await Bun.write(folder.file("model"), "");
    const pool = await openPool({ deadline: NEVER, size: 2 }, folder.file("model"));
    rmSync(folder.file("model"));
    const long = ["a", "b"].map((text) => rejection(encode(pool, `${text}${LONG}`)));
    expect(await textOf(pool, "good")).toBe("good");
    for (const error of await Promise.all(long)) expect(error).toBeInstanceOf(ModelDataError);
  });
});

describe("the input of a job", () => {
  test("is as it was when the job came, though it waits", async () => {
    const pool = await openPool({ deadline: NEVER, size: 2 });
    const inputs = Array.from({ length: 3 }, (_, i) => ({ prompt: `${i}`, addSpecialTokens: true }));
    const jobs = inputs.map((input) => pool.call("encode", input));
    for (const input of inputs) input.prompt = "changed";
    expect((await Promise.all(jobs)).map(({ text }) => text)).toEqual(["0", "1", "2"]);
  });

  test("is refused if it is no data, whether it waits or not", async () => {
    const pool = await openPool({ deadline: NEVER, size: 2 });
    const input = { prompt: (() => "x") as never, addSpecialTokens: true };
    const errors = await Promise.all([0, 1, 2].map(() => rejection(pool.call("encode", input))));
    for (const error of errors) expect(error).toBeInstanceOf(InvalidRequestError);
    const good = textOf(pool, "good");
    expect(await rejection(pool.call("encode", input))).toBeInstanceOf(InvalidRequestError);
    expect(await good).toBe("good");
  });
});
