import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import axe from "axe-core";
import { describeWith } from "../requirements.ts";
import { Scripted } from "../server/scripted.ts";
import { ENDLESS, TestServer } from "../server/support.ts";
import { eventually } from "../support.ts";
import { Chromium, findChromium, type Tab, type Viewport } from "./chromium.ts";

setDefaultTimeout(300_000);

const DESKTOP: Viewport = { width: 1280, height: 800 };
const PHONE: Viewport = { width: 360, height: 740, phone: true };

const MESSAGE = 'textarea[aria-label="Message"]';
/** The reply is complete, and can be made anew. */
const DONE = `(() => {
  const labels = [...document.querySelectorAll("button")].map(({ innerText }) => innerText);
  return labels.includes("Regenerate") && labels.includes("Send");
})()`;

/** True when the browser keeps a conversation of so many turns, all of them complete. */
const KEPT_TURNS = `(count) => new Promise((resolve) => {
  indexedDB.open("octavo", 1).onsuccess = ({ target }) => {
    target.result.transaction("conversations").objectStore("conversations").getAll().onsuccess = ({ target }) =>
      resolve(target.result.some(({ turns }) => turns.length === count && turns.every(({ replies }) =>
        !replies || replies.every(({ finish }) => finish !== null))));
  };
})`;

describeWith("OCTAVO_REQUIRE_CHROMIUM", findChromium(), "the page in Chromium", ({ path }) => {
  let browser: Chromium;
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start({ servedModelNames: ["tiny", "other"] }, { maxNumSeqs: 8 });
    browser = await Chromium.launch(path);
  });
  afterAll(async () => {
    await browser[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  interface Visit {
    readonly at?: string;
    readonly on?: TestServer;
    readonly viewport?: Viewport;
    /** The parameters that the browser remembers. */
    readonly values?: Readonly<Record<string, string>>;
    readonly alternatives?: number;
    /** Errors that the console may have. Default none. */
    readonly expected?: RegExp;
  }

  /** Opens the page in a tab of its own, in which nothing may go wrong or astray. */
  async function visit(visiting: Visit, run: (tab: Tab) => Promise<void>): Promise<void> {
    const { at = "ui", on = server, viewport = DESKTOP, values = {}, alternatives = 5, expected } = visiting;
    await using tab = await browser.open(viewport);
    const url = new URL(at, on.running.url);
    await tab.prepare(`if (!localStorage["octavo.settings"])
      localStorage["octavo.settings"] = ${JSON.stringify(JSON.stringify({ values, alternatives }))}`);
    await tab.go(url);
    await run(tab);
    const astray = tab.requests.filter((request) => new URL(request).origin !== url.origin);
    const errors = tab.errors.filter((error) => !expected?.test(error));
    expect({ astray, errors }).toEqual({ astray: [], errors: [] });
  }

  async function say(tab: Tab, text: string): Promise<void> {
    await tab.focus(MESSAGE);
    await tab.type(text);
    await tab.press("Enter");
  }

  const lastReply = (tab: Tab) =>
    tab.evaluate<string>(
      `[...document.querySelectorAll(".message.model .markdown")].at(-1)?.innerText ?? ""`,
    );

  /** What the API says to the same. */
  async function answer(messages: object[], fields: object): Promise<string> {
    const reply = await server.post("/v1/chat/completions", { messages, ...fields });
    const { choices } = (await reply.json()) as { choices: { message: { content: string } }[] };
    return choices[0]!.message.content;
  }

  const SHORT = { temperature: "0", max_tokens: "12" };
  const SHORT_FIELDS = { temperature: 0, max_tokens: 12 };
  const words = (text: string) => text.split(/\s+/).filter((word) => word !== "");

  test("a chat to its end, with parameters set by hand, kept over a reload", async () => {
    await visit({}, async (tab) => {
      await tab.click("Parameters");
      await tab.focus("#p-temperature");
      await tab.type("0");
      await tab.evaluate(
        `[...document.querySelectorAll("details")].forEach((details) => { details.open = true; })`,
      );
      await tab.focus("#p-max_tokens");
      await tab.type("12");
      await say(tab, "Tell me a story.");
      await tab.until(DONE);
      const said = [{ role: "user", content: "Tell me a story." }];
      const first = await lastReply(tab);
      expect(words(first)).toEqual(words(await answer(said, SHORT_FIELDS)));
      expect(await tab.text(".facts")).toMatch(/^12 tokens ·( \d+ tok\/s ·)? first after \d+ ms · cut off/);
      await say(tab, "Go on.");
      await tab.until(`document.querySelectorAll(".facts").length === 2 && ${DONE}`);
      await tab.until(`await (${KEPT_TURNS})(4)`);
      await tab.go(new URL("ui", server.running.url));
      await tab.click("Tell me a story.");
      await tab.until(`document.querySelectorAll(".message.model").length === 2`);
      expect(await tab.text(".message.model .markdown")).toBe(first);
    });
  });

  test("what is stopped ends on the server, and what there is of it stays", async () => {
    await visit({ values: { ignore_eos: "true", max_tokens: "900" } }, async (tab) => {
      await say(tab, "Go on and on.");
      await tab.until(`document.querySelector(".message.model .markdown")?.innerText.length > 20`);
      expect(server.llm.stats.running).toBe(1);
      await tab.press("Escape");
      await tab.until(`document.querySelector(".facts").innerText.includes("stopped")`);
      await eventually(() => server.llm.numUnfinished === 0);
      expect((await lastReply(tab)).length).toBeGreaterThan(20);
    });
  });

  test("a reply made anew stands beside the one before, and an edited message takes the place of all after it", async () => {
    await visit({ values: { max_tokens: "8" } }, async (tab) => {
      await say(tab, "Tell me a story.");
      await tab.until(DONE);
      const first = await lastReply(tab);
      await tab.click("Regenerate");
      await tab.until(`document.querySelector(".chooser")?.innerText.includes("2/2") && ${DONE}`);
      await tab.click("Reply before");
      await tab.until(`document.querySelector(".chooser").innerText.includes("1/2")`);
      expect(await lastReply(tab)).toBe(first);
      await say(tab, "And then?");
      await tab.until(`document.querySelectorAll(".message.model").length === 2 && ${DONE}`);
      await tab.focus(MESSAGE);
      await tab.press("ArrowUp");
      await tab.until(`document.activeElement.getAttribute("aria-label") === "Your message"`);
      await tab.evaluate(`document.activeElement.select()`);
      await tab.type("Why?");
      await tab.press("Enter");
      await tab.until(`document.querySelectorAll(".bubble")[1]?.innerText === "Why?" && ${DONE}`);
      expect(await tab.count(".message.model")).toBe(2);
      expect(await tab.text(".message.model .chooser")).toContain("1/2");
    });
  });

  test("several replies at once are for choosing from; the model is that which was chosen", async () => {
    await visit({ values: { n: "3", max_tokens: "6" } }, async (tab) => {
      await tab.until(`document.querySelector('select[aria-label="Model"]')`);
      await tab.evaluate(`(() => {
        const select = document.querySelector('select[aria-label="Model"]');
        select.value = "other";
        select.dispatchEvent(new Event("change", { bubbles: true }));
      })()`);
      await say(tab, "Hi.");
      await tab.until(`document.querySelector(".chooser")?.innerText.includes("1/3") && ${DONE}`);
      expect(server.lines.at(-1)).toContain('"model":"other"');
    });
  });

  test("a token shows what else could have stood there, by keyboard too", async () => {
    await visit({ values: SHORT }, async (tab) => {
      await say(tab, "Tell me a story.");
      await tab.until(DONE);
      await tab.click("Tokens");
      await tab.until(`document.querySelectorAll(".token").length === 12`);
      await tab.focus(".token");
      await tab.press("ArrowRight");
      await tab.until(`document.activeElement === document.querySelectorAll(".token")[1]`);
      expect(await tab.count(".alternatives tr")).toBe(5);
      expect(await tab.count(".alternatives tr.chosen")).toBe(1);
      const before = await tab.text(".alternatives");
      await tab.hover(".token:nth-child(8)");
      await tab.until(`document.querySelector(".alternatives").innerText !== ${JSON.stringify(before)}`);
    });
  });

  test("a reply nested deeper than any page draws is shown, and its turn ends", async () => {
    await using scripted = await Scripted.start("qwen3");
    scripted.reply = () => ">".repeat(1500);
    await using on = TestServer.over(scripted.llm, {});
    await visit({ on, alternatives: 0 }, async (tab) => {
      await say(tab, "Quote.");
      await tab.until(DONE);
      expect(await tab.count(".message.model blockquote")).toBeGreaterThan(10);
    });
  });

  test("what a model says becomes no HTML: code, tables and links do, thoughts are folded, calls wait for results", async () => {
    const HOSTILE = `<script>alert(1)</script> <img src="http://x.test/a.png" onerror="alert(1)">

**bold** [good](https://x.test/) [bad](javascript:alert(1)) ![picture](http://x.test/b.png)

| a | b |
|---|---|
| 1 | 2 |

\`\`\`js
if (1 < 2) alert("<b>");
\`\`\`
<iframe srcdoc="<script>parent.alert(1)</script>"></iframe>`;
    const texts = [
      `<think>Let me <b>see</b>.</think>${HOSTILE}`,
      `<tool_call>\n{"name": "weather", "arguments": {"city": "<i>Oslo</i>"}}\n</tool_call>`,
      "It is cold.",
    ];
    await using scripted = await Scripted.start("qwen3");
    scripted.reply = () => texts.shift()!;
    await using on = TestServer.over(scripted.llm, {});
    const tools = `[{ "type": "function", "function": { "name": "weather", "parameters": { "type": "object" } } }]`;
    await visit({ on, alternatives: 0, values: { tools } }, async (tab) => {
      await say(tab, "Try.");
      await tab.until(DONE);
      expect(await tab.text(".message .error")).toBe("");
      const made = await tab.evaluate<string[]>(
        `[...document.querySelectorAll(".message.model .markdown *")].map(({ tagName }) => tagName)`,
      );
      for (const tag of ["SCRIPT", "IMG", "IFRAME", "B", "I"]) expect(made).not.toContain(tag);
      for (const tag of ["STRONG", "TABLE", "PRE"]) expect(made).toContain(tag);
      expect(await lastReply(tab)).toContain("<script>alert(1)</script>");
      expect(await lastReply(tab)).toContain('if (1 < 2) alert("<b>");');
      const links = await tab.evaluate<string[]>(
        `[...document.querySelectorAll(".markdown a")].map(({ href, rel }) => href + " " + rel)`,
      );
      expect(links).toEqual([
        "https://x.test/ noopener noreferrer",
        "http://x.test/b.png noopener noreferrer",
      ]);
      expect(await tab.evaluate(`document.querySelector(".reasoning").open`)).toBe(false);
      expect(await tab.evaluate(`document.querySelector(".reasoning .markdown").textContent`)).toContain(
        "<b>see</b>",
      );
      await say(tab, "Call.");
      await tab.until(`document.querySelector(".call form")`);
      expect(await tab.text(".call")).toContain('"city": "<i>Oslo</i>"');
      await tab.focus(".call textarea");
      await tab.type("-3 degrees");
      await tab.click("Send result");
      await tab.until(`document.querySelector(".message.tool")?.innerText.includes("-3 degrees")`);
      await tab.until(`[...document.querySelectorAll(".markdown")].at(-1).innerText === "It is cold."`);
    });
  });

  test("the map, the batch and the figures follow what runs", async () => {
    await visit({ at: "ui#engine" }, async (tab) => {
      await tab.until(`document.querySelector(".readout")?.innerText.includes(" 0 held")`);
      const picture = () => tab.evaluate<string>(`document.querySelector("canvas").toDataURL()`);
      const empty = await picture();
      const abort = new AbortController();
      const { signal } = abort;
      const prompt =
        "Once upon a time there was a cat who lived in a house with a dog and a bird and a fish.";
      const send = () => {
        const body = { ...ENDLESS, prompt, stream: true };
        return server.post("/v1/completions", body, { signal }).then((reply) => reply.text());
      };
      const first = send();
      // Only a prompt that has been computed is shared.
      await tab.until(`/^[1-9]/.test(document.querySelector(".batch li .figure")?.innerText)`);
      const ends = Promise.allSettled([first, send(), send()]);
      await tab.until(`document.querySelectorAll(".batch li").length === 3`);
      await tab.until(`/[1-9]\\d* shared/.test(document.querySelector(".readout").innerText)`);
      const busy = await picture();
      expect(busy).not.toBe(empty);
      await tab.until(`document.querySelector("canvas").toDataURL() !== ${JSON.stringify(busy)}`);
      await tab.focus(".map-area");
      await tab.press("ArrowRight");
      await tab.until(`/^Block 0: (held|free)/.test(document.querySelector(".readout").innerText)`);
      await tab.evaluate(`document.activeElement.blur()`);
      await tab.hover(".batch li");
      await tab.until(`document.querySelectorAll(".batch li.focus").length === 1`);
      expect(Number.parseInt(await tab.text(".figures dd"), 10)).toBeGreaterThan(0);
      abort.abort();
      await ends;
      await tab.until(`document.querySelectorAll(".batch li").length === 0`);
      await tab.until(`document.querySelector(".events").innerText.includes("ended after")`);
    });
  });

  test("preemptions are shown as they happen, and who waits for them", async () => {
    await using tiny = await TestServer.start(
      {},
      { kvCacheMemoryBytes: 2 ** 20, maxNumSeqs: 4, maxModelLen: 128 },
    );
    const { numBlocks } = tiny.llm.cacheConfig;
    expect(numBlocks).toBeLessThan(4 * 8);
    await visit({ on: tiny, at: "ui#engine" }, async (tab) => {
      await tab.until(`document.querySelector(".readout")?.innerText.startsWith("${numBlocks} blocks")`);
      await Promise.all(
        Array.from({ length: 6 }, async () => {
          const reply = await tiny.post("/v1/completions", { ...ENDLESS, max_tokens: 120 });
          return reply.text();
        }),
      );
      expect(tiny.llm.stats.preemptions).toBeGreaterThan(0);
      await tab.until(
        `document.querySelector(".figures .alarming dd").innerText === "${tiny.llm.stats.preemptions}"`,
      );
      await tab.until(`document.querySelector(".events .preempted")`);
    });
  });

  test("all can be done by keyboard", async () => {
    await visit({ values: { max_tokens: "4" } }, async (tab) => {
      await tab.until(`document.activeElement?.matches(${JSON.stringify(MESSAGE)})`);
      await tab.type("Hi.");
      await tab.press("Enter");
      await tab.until(DONE);
      const seen: string[] = [];
      await tab.focus(".skip");
      const name = `(() => {
        const { activeElement } = document;
        if (activeElement === document.body) return "end";
        const style = getComputedStyle(activeElement);
        const name = activeElement.getAttribute("aria-label") ?? activeElement.innerText;
        return (style.outlineStyle === "none" ? "unseen: " : "") + (name || activeElement.tagName);
      })()`;
      for (let i = 0; i < 40 && seen.at(-1) !== "end"; i++) {
        await tab.press("Tab");
        seen.push((await tab.evaluate<string>(name)).trim());
      }
      expect(seen.filter((one) => one.startsWith("unseen"))).toEqual([]);
      for (const control of [
        "Chat",
        "Engine",
        "Metrics",
        "Model",
        "Parameters",
        "+ New conversation",
        "Hi.",
        "Edit",
      ])
        expect(seen).toContain(control);
      for (const control of ["Regenerate", "Tokens", "Message"]) expect(seen).toContain(control);
      expect(seen.some((one) => one.startsWith("KV cache:"))).toBe(true);
      await tab.evaluate(
        `[...document.querySelectorAll("button")].find(({ innerText }) => innerText === "To the content").focus()`,
      );
      await tab.press("Enter");
      expect(await tab.evaluate(`document.activeElement.id`)).toBe("main");
    });
  });

  test("on a phone nothing is wider than the screen, and what stands beside the chat comes over it", async () => {
    await visit({ viewport: PHONE, values: { max_tokens: "30" } }, async (tab) => {
      const fits = `document.documentElement.scrollWidth <= innerWidth &&
        [...document.querySelectorAll("button, textarea, a, h1, h2, dd, canvas")].every((element) => {
          if (!element.checkVisibility() || element.closest(".scroll, .skip, .hidden") || element.matches(".skip")) return true;
          const { left, right } = element.getBoundingClientRect();
          return left >= 0 && right <= innerWidth + 1;
        })`;
      await say(tab, "Tell me a story.");
      await tab.until(DONE);
      expect(await tab.evaluate(fits)).toBe(true);
      await tab.click("Parameters");
      await tab.until(`document.querySelector(".settings")?.checkVisibility()`);
      expect(await tab.evaluate(fits)).toBe(true);
      await tab.click("Done");
      await tab.click("Conversations");
      await tab.until(`document.querySelector(".left.shown")`);
      await tab.click("+ New conversation");
      await tab.until(`!document.querySelector(".left.shown") && document.querySelector(".welcome")`);
      await tab.click("Engine");
      await tab.until(`document.querySelector(".readout")?.innerText.includes("blocks")`);
      expect(await tab.evaluate(fits)).toBe(true);
      await tab.click("Metrics");
      await tab.until(`document.querySelector(".figures-table")`);
      expect(await tab.evaluate(fits)).toBe(true);
    });
  });

  test("dark where the system is, unless the user chose; the choice is kept", async () => {
    await visit({ viewport: { ...DESKTOP, dark: true } }, async (tab) => {
      const brightness = () =>
        tab.evaluate<number>(
          `Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))`,
        );
      expect(await brightness()).toBeLessThan(60);
      await tab.click("Theme: auto. Change to light");
      expect(await brightness()).toBeGreaterThan(200);
      await tab.go(new URL("ui", server.running.url));
      expect(await brightness()).toBeGreaterThan(200);
    });
  });

  test("where a key is needed the page asks for one, keeps it for its tab, and can forget it", async () => {
    await using locked = TestServer.over(server.llm, { apiKeys: ["sk-right"] });
    await visit({ on: locked, values: { max_tokens: "4" }, expected: /401/ }, async (tab) => {
      await tab.until(`document.activeElement?.id === "key"`);
      await tab.type("sk-wrong");
      await tab.press("Enter");
      await tab.until(
        `document.querySelector(".key-form [role=alert]")?.innerText.includes("does not take")`,
      );
      await tab.evaluate(`document.querySelector("#key").select()`);
      await tab.type("sk-right");
      await tab.press("Enter");
      await tab.until(`document.querySelector(${JSON.stringify(MESSAGE)})`);
      await tab.until(`document.querySelector(".status.live")`);
      await say(tab, "Hi.");
      await tab.until(DONE);
      expect(await tab.evaluate(`[localStorage["octavo.key"] ?? null, document.cookie]`)).toEqual([null, ""]);
      await tab.go(new URL("ui", locked.running.url));
      await tab.until(`document.querySelector(".status.live")`);
      await tab.click("Forget key");
      await tab.until(`document.querySelector("#key")`);
    });
  });

  test("a server that is gone is said to be, and the page goes on when another has taken its place", async () => {
    const gone = TestServer.over(server.llm, {});
    const { port } = gone.running;
    await visit({ on: gone, expected: /ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY/ }, async (tab) => {
      await tab.until(`document.querySelector(".status.live")`);
      await gone[Symbol.asyncDispose]();
      await tab.until(`document.querySelector(".status.lost")`);
      await say(tab, "Hi.");
      await tab.until(`document.querySelector(".message .error")?.innerText.includes("cannot be reached")`);
      await using _ = TestServer.over(server.llm, { port });
      await tab.until(`document.querySelector(".status.live")`);
    });
  });

  test.each([["light", false] as const, ["dark", true] as const])(
    "axe finds nothing serious: %s",
    async (_, dark) => {
      await visit({ viewport: { ...DESKTOP, dark }, values: SHORT }, async (tab) => {
        const found: string[] = [];
        const check = async (what: string) => {
          const { violations } = await tab.evaluate<axe.AxeResults>(`${axe.source}; axe.run()`);
          for (const { id, impact, nodes } of violations)
            if (impact === "serious" || impact === "critical")
              found.push(`${what}: ${id} at ${nodes.map(({ target }) => target.join(" ")).join(", ")}`);
        };
        await say(tab, "Tell me a story.");
        await tab.until(DONE);
        await tab.until(`document.querySelector(".readout")`);
        await check("chat");
        await tab.click("Tokens");
        await tab.click("Parameters");
        await tab.until(`document.querySelector(".settings")`);
        await check("tokens and parameters");
        await tab.evaluate(`location.hash = "#engine"`);
        await tab.until(`document.querySelector(".readout")`);
        await check("engine");
        await tab.evaluate(`location.hash = "#metrics"`);
        await tab.until(`document.querySelector(".figures-table")`);
        await check("metrics");
        expect(found).toEqual([]);
      });
    },
  );
});
