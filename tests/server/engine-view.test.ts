import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { blockOf, entriesOf, RUNNING_FIELDS } from "../../src/base/engine-view.ts";
import { applyRuns } from "../../src/base/word-runs.ts";
import { eventually } from "../support.ts";
import { ENDLESS, errorOf, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

interface View {
  readonly stats: { readonly running: number; readonly steps: number };
  readonly firstToken: { readonly count: number } | null;
  readonly interToken: { readonly count: number; readonly p50: number; readonly p99: number } | null;
  readonly blocks: string;
  readonly running: number[];
}

/** A watcher of a server's engine: reads events one by one. */
class Watcher implements AsyncDisposable {
  readonly #abort = new AbortController();
  #rest = "";

  private constructor(private readonly reader: ReadableStreamDefaultReader<Uint8Array>) {}

  static async open(on: TestServer, query = ""): Promise<Watcher> {
    const reply = await on.fetch(`/engine${query}`);
    if (reply.status !== 200) throw new Error(`${reply.status}`);
    return new Watcher(reply.body!.getReader() as never);
  }

  /** The type of the next event, and its data; undefined at the end. */
  async next(): Promise<{ readonly type: string; readonly data: never } | undefined> {
    for (;;) {
      const end = this.#rest.indexOf("\n\n");
      if (end >= 0) {
        const text = this.#rest.slice(0, end);
        this.#rest = this.#rest.slice(end + 2);
        const match = text.match(/^event: (\w+)\ndata: (.*)$/s);
        if (match) return { type: match[1]!, data: JSON.parse(match[2]!) as never };
        continue;
      }
      const { done, value } = await this.reader.read();
      if (done) return undefined;
      this.#rest += new TextDecoder().decode(value);
    }
  }

  async until(condition: (view: View) => boolean): Promise<View> {
    for (;;) {
      const event = await this.next();
      if (!event) throw new Error("the events ended");
      if (event.type === "view" && condition(event.data)) return event.data;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#abort.abort();
    await this.reader.cancel();
  }
}

/** Runs until it is aborted. */
function occupy(on: TestServer): Disposable {
  const abort = new AbortController();
  void on
    .post("/v1/completions", { ...ENDLESS, stream: true }, { signal: abort.signal })
    .then((reply) => reply.text())
    .catch(() => {});
  return { [Symbol.dispose]: () => abort.abort() };
}

test("the first event has what stays; views have blocks and sequences as they change, and what was measured", async () => {
  await using watcher = await Watcher.open(server);
  const first = (await watcher.next())!;
  expect(first).toMatchObject({
    type: "engine",
    data: { replica: 0, replicas: 1, blockSize: 16, device: "cpu" },
  });
  const { numBlocks } = first.data as { numBlocks: number };
  const words = new Uint32Array(numBlocks);
  const idle = await watcher.until(() => true);
  applyRuns(words, Buffer.from(idle.blocks, "base64"));
  expect([...words].every((word) => blockOf(word).holders === 0)).toBe(true);
  {
    using _ = occupy(server);
    const measured = { first: 0, inter: 0 };
    const busy = await watcher.until((view) => {
      applyRuns(words, Buffer.from(view.blocks, "base64"));
      measured.first += view.firstToken?.count ?? 0;
      measured.inter += view.interToken?.count ?? 0;
      return (entriesOf(view.running, RUNNING_FIELDS)[0]?.blocks ?? 0) > 1;
    });
    const [sequence] = entriesOf(busy.running, RUNNING_FIELDS);
    const held = [...words].filter((word) => blockOf(word).holders > 0);
    expect(held.length).toBe(sequence!.blocks);
    expect(held.every((word) => blockOf(word).slot === sequence!.slot)).toBe(true);
    expect(measured.first).toBeGreaterThan(0);
    expect(measured.inter).toBeGreaterThan(0);
  }
  await watcher.until((view) => {
    applyRuns(words, Buffer.from(view.blocks, "base64"));
    return view.stats.running === 0;
  });
  expect([...words].some((word) => blockOf(word).isCached)).toBe(true);
});

test("nobody is asked for views while nobody watches, and once a time for all who do", async () => {
  const [replica] = server.llm.replicas;
  const { view } = replica!;
  let asked = 0;
  (replica as { view: typeof view }).view = () => {
    asked++;
    return view.call(replica);
  };
  try {
    await server.post("/v1/completions", { prompt: PROMPT, max_tokens: 20 });
    expect(asked).toBe(0);
    {
      await using one = await Watcher.open(server);
      await using other = await Watcher.open(server);
      using _ = occupy(server);
      let views = 0;
      await Promise.all(
        [one, other].map((watcher) =>
          watcher.until(({ stats }) => {
            views++;
            return stats.running === 1;
          }),
        ),
      );
      // Each was sent those that there were, the other's too.
      expect(asked).toBeLessThanOrEqual(Math.ceil(views / 2) + 1);
    }
    await eventually(async () => {
      const before = asked;
      await Bun.sleep(250);
      return asked === before;
    });
  } finally {
    delete (replica as { view?: typeof view }).view;
  }
});

test("what cannot be watched is refused, and so is one watcher too many", async () => {
  for (const replica of ["1", "-1", "x", "0.5"])
    expect(await errorOf(server.fetch(`/engine?replica=${replica}`))).toMatchObject({
      status: 400,
      param: "replica",
    });
  expect(await errorOf(server.fetch("/engine", { method: "POST" }))).toMatchObject({ status: 405 });
  const watchers = await Promise.all(Array.from({ length: 16 }, () => Watcher.open(server)));
  expect(await errorOf(server.fetch("/engine"))).toMatchObject({ status: 503, code: "overloaded" });
  for (const watcher of watchers) await watcher[Symbol.asyncDispose]();
  await eventually(async () => {
    const reply = await server.fetch("/engine");
    await reply.body!.cancel();
    return reply.status === 200;
  });
});

test("a server that stops ends its watchers' events, and does not wait for them", async () => {
  const stopping = await TestServer.start();
  await using watcher = await Watcher.open(stopping);
  await watcher.until(() => true);
  await stopping[Symbol.asyncDispose]();
  while (await watcher.next());
});
