import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { ConfigError } from "../../../src/base/errors.ts";
import { Admission } from "../../../src/server/admission.ts";
import { resolveServerOptions, type ServerOptions } from "../../../src/server/options.ts";

setDefaultTimeout(300_000);

const resolve = (options: object) => resolveServerOptions(options as ServerOptions, "model");

describe("server options", () => {
  test("have defaults", () => {
    expect(resolve({ port: undefined })).toMatchObject({
      ...{ host: "127.0.0.1", port: 8000, servedModelNames: ["model"], apiKeys: [], corsOrigins: [] },
      ...{ isolateCacheByKey: false, drainSeconds: 30, requestTimeoutSeconds: 600 },
    });
  });

  test("several keys keep their caches apart, unless told not to", () => {
    expect(resolve({ apiKeys: ["a", "b"] }).isolateCacheByKey).toBe(true);
    expect(resolve({ apiKeys: ["a"] }).isolateCacheByKey).toBe(false);
    expect(resolve({ apiKeys: ["a", "b"], isolateCacheByKey: false }).isolateCacheByKey).toBe(false);
  });

  test("without keys on a loopback address only local names are the server's, unless told so", () => {
    expect(resolve({}).allowedHosts).toEqual([]);
    expect(resolve({ host: "::1" }).allowedHosts).toEqual([]);
    expect(resolve({ apiKeys: ["a"] }).allowedHosts).toEqual(["*"]);
    expect(resolve({ host: "0.0.0.0" }).allowedHosts).toEqual(["*"]);
    expect(resolve({ allowedHosts: ["llm.test"] }).allowedHosts).toEqual(["llm.test"]);
  });

  test.each([
    ["port", 65536],
    ["port", 1.5],
    ["port", "80"],
    ["host", ""],
    ["servedModelNames", []],
    ["servedModelNames", "m"],
    ["apiKeys", [""]],
    ["maxRequestBytes", 0],
    ["drainSeconds", Number.POSITIVE_INFINITY],
    ["queueTimeoutSeconds", -1],
    ["logRequests", "yes"],
    ["streamInterval", 0],
    ["unheardOf", 1],
    ["toString", 1],
  ])("%s: %p is refused by name", (option, value) => {
    expect(() => resolve({ [option]: value })).toThrow(expect.objectContaining({ option }));
    expect(() => resolve({ [option]: value })).toThrow(ConfigError);
  });
});

describe("admission", () => {
  test("counts requests in and out once", () => {
    const admission = new Admission({ maxCompletions: 4, maxConcurrentPerKey: 0 });
    const leave = admission.admit("a", 4);
    expect(() => admission.admit("b", 1)).toThrow(expect.objectContaining({ code: "overloaded" }));
    leave();
    leave();
    expect(admission.numRequests).toBe(0);
    admission.admit("b", 4);
    expect(() => admission.admit("b", 5)).toThrow(expect.objectContaining({ status: 400 }));
  });

  test("counts jobs of the tokenizer apart", () => {
    const admission = new Admission({ maxCompletions: 1, maxConcurrentPerKey: 1 });
    admission.admit("a", 1);
    const leave = admission.admitText("a");
    expect(() => admission.admitText("b")).toThrow(expect.objectContaining({ code: "overloaded" }));
    expect(admission.numRequests).toBe(2);
    leave();
    admission.admitText("a");
  });

  test("is drained as soon as the last request has left", async () => {
    const admission = new Admission({ maxCompletions: 4, maxConcurrentPerKey: 0 });
    const leave = [admission.admit("a", 1), admission.admit("b", 2)];
    expect(admission.numRequests).toBe(2);
    const draining = admission.drain(1e6);
    leave[0]!();
    expect(await Promise.race([draining, Bun.sleep(5).then(() => "waits")])).toBe("waits");
    leave[1]!();
    await draining;
    expect(admission.cutoff.aborted).toBe(false);
  });

  test("cuts off what outlasts the drain, and refuses the rest", async () => {
    const admission = new Admission({ maxCompletions: 4, maxConcurrentPerKey: 0 });
    const leave = admission.admit("a", 1);
    admission.cutoff.addEventListener("abort", leave);
    const draining = admission.drain(0.01);
    expect(admission.ending).toBe(true);
    expect(() => admission.admit("b", 1)).toThrow(expect.objectContaining({ code: "shutting_down" }));
    expect(admission.cutoff.aborted).toBe(false);
    await draining;
    expect(admission.cutoff.reason).toMatchObject({ code: "shutting_down", status: 503 });
    expect(admission.numRequests).toBe(0);
  });
});
