import { afterEach, describe, expect, jest, setDefaultTimeout, test } from "bun:test";
import { RequestFailedError } from "../../../src/base/errors.ts";
import type { ApiError } from "../../../src/server/errors.ts";
import { DONE, event, eventStream } from "../../../src/server/replies/sse.ts";
import { eventually } from "../../support.ts";

setDefaultTimeout(300_000);

const sse = (data: object) => [...event([JSON.stringify(data)])].join("");

afterEach(() => void jest.useRealTimers());

/** A stream of these events, and what became of it. */
function open(events: AsyncGenerator<string, void, undefined>, writeStallSeconds = 30) {
  const seen = { aborted: [] as string[], ended: [] as string[] };
  const body = eventStream(events, {
    writeStallSeconds,
    abort: (reason: ApiError) => void seen.aborted.push(reason.code),
    onEnd: (told) => void seen.ended.push(told?.code ?? "well"),
  });
  return { body, seen };
}

/** Lets what needs no timer happen. */
async function microtasks(): Promise<void> {
  for (let i = 0; i < 20; i++) await Promise.resolve();
}

async function* fromList(list: readonly string[]): AsyncGenerator<string, void, undefined> {
  yield* list;
}

describe("eventStream", () => {
  test("passes events on and ends once", async () => {
    const { body, seen } = open(fromList([sse({ a: "x\ny" }), DONE]));
    expect(await new Response(body).text()).toBe('data: {"a":"x\\ny"}\n\ndata: [DONE]\n\n');
    expect(seen).toEqual({ aborted: [], ended: ["well"] });
  });

  test("an error is the last event", async () => {
    const failing = async function* () {
      yield sse({ a: 1 });
      throw new RequestFailedError("at 0x7fff1234", "numerical_error");
    };
    const { body, seen } = open(failing());
    const [, last] = (await new Response(body).text()).split("\n\n");
    expect(JSON.parse(last!.slice("data: ".length))).toEqual({
      error: {
        message: "the model's logits are not finite numbers",
        ...{ type: "server_error", param: null, code: "numerical_error" },
      },
    });
    expect(seen.ended).toEqual(["numerical_error"]);
  });

  test("takes an event only when it is asked for", async () => {
    let taken = 0;
    const counting = async function* () {
      for (;;) yield sse({ n: taken++ });
    };
    const { body } = open(counting());
    const reader = body.getReader();
    await Bun.sleep(5);
    expect(taken).toBe(0);
    await reader.read();
    await reader.read();
    await Bun.sleep(5);
    expect(taken).toBe(2);
    await reader.cancel();
  });

  test("comments keep a silent stream alive, and lose no event", async () => {
    jest.useFakeTimers();
    const { promise, resolve } = Promise.withResolvers<void>();
    const late = async function* () {
      await promise;
      yield sse({ a: 1 });
    };
    const reader = open(late()).body.getReader();
    const text = async () => Buffer.from((await reader.read()).value ?? []).toString();
    for (let i = 0; i < 2; i++) {
      const read = text();
      await microtasks();
      jest.advanceTimersByTime(5000);
      expect(await read).toBe(": keep-alive\n\n");
    }
    const read = text();
    resolve();
    expect(await read).toBe('data: {"a":1}\n\n');
    expect((await reader.read()).done).toBe(true);
  });

  test("a reader that leaves ends the request", async () => {
    let closed = false;
    const endless = async function* () {
      try {
        for (;;) yield sse({});
      } finally {
        closed = true;
      }
    };
    const { body, seen } = open(endless());
    const reader = body.getReader();
    await reader.read();
    await reader.cancel();
    expect(seen).toEqual({ aborted: ["client_closed_request"], ended: ["client_closed_request"] });
    await eventually(() => closed);
  });

  test("a reader that leaves is not found to be stalled later", async () => {
    jest.useFakeTimers();
    const endless = async function* () {
      for (;;) yield sse({});
    };
    const { body, seen } = open(endless(), 30);
    const reader = body.getReader();
    await reader.read();
    await reader.cancel();
    jest.advanceTimersByTime(60_000);
    await microtasks();
    expect(seen).toEqual({ aborted: ["client_closed_request"], ended: ["client_closed_request"] });
  });

  test("a reader that stalls is told once, however late it reads on", async () => {
    jest.useFakeTimers();
    const endless = async function* () {
      for (;;) yield sse({});
    };
    const { body, seen } = open(endless(), 30);
    const reader = body.getReader();
    await reader.read();
    jest.advanceTimersByTime(29_000);
    expect(seen.ended).toEqual([]);
    jest.advanceTimersByTime(1000);
    expect(await reader.read().catch((error: ApiError) => error)).toMatchObject({
      ...{ status: 499, code: "client_stalled" },
    });
    expect(seen).toEqual({ aborted: ["client_stalled"], ended: ["client_stalled"] });
  });
});

test("a client that never reads is dropped", async () => {
  let produced = 0;
  const flood = async function* () {
    for (;;) {
      produced++;
      yield `data: ${"x".repeat(64 * 1024)}\n\n`;
    }
  };
  const { body, seen } = open(flood(), 0.3);
  using server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response(body) });
  const socket = await Bun.connect({
    ...{ hostname: "127.0.0.1", port: server.port! },
    socket: { open: (opened) => void opened.pause(), data: () => {} },
  });
  socket.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
  await eventually(() => seen.ended.length === 1);
  expect(seen).toEqual({ aborted: ["client_stalled"], ended: ["client_stalled"] });
  // What the kernel's buffers and the stream's own hold.
  expect(produced).toBeLessThan(500);
  const before = produced;
  await Bun.sleep(50);
  expect(produced).toBe(before);
  socket.end();
});
