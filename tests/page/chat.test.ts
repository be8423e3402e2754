import { expect, setDefaultTimeout, test } from "bun:test";
import { Scripted } from "../server/scripted.ts";
import { TestServer } from "../server/support.ts";
import { eventually } from "../support.ts";
import type { Tab } from "./chromium.ts";
import { DONE, describeInChromium, MESSAGE, SHORT, say } from "./visits.ts";

setDefaultTimeout(300_000);

/** True when the browser keeps a conversation of so many turns, all of them complete. */
const KEPT_TURNS = `(count) => new Promise((resolve) => {
  indexedDB.open("octavo", 1).onsuccess = ({ target }) => {
    target.result.transaction("conversations").objectStore("conversations").getAll().onsuccess = ({ target }) =>
      resolve(target.result.some(({ turns }) => turns.length === count && turns.every(({ replies }) =>
        !replies || replies.every(({ finish }) => finish !== null))));
  };
})`;

const lastReply = (tab: Tab) =>
  tab.evaluate<string>(`[...document.querySelectorAll(".message.model .markdown")].at(-1)?.innerText ?? ""`);

const words = (text: string) => text.split(/\s+/).filter((word) => word !== "");

describeInChromium("the chat in Chromium", (page) => {
  /** What the API says to the same. */
  async function answer(messages: object[], fields: object): Promise<string> {
    const reply = await page.server.post("/v1/chat/completions", { messages, ...fields });
    const { choices } = (await reply.json()) as { choices: { message: { content: string } }[] };
    return choices[0]!.message.content;
  }

  test("a chat to its end, with parameters set by hand, kept over a reload", async () => {
    await page.visit({}, async (tab) => {
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
      expect(words(first)).toEqual(words(await answer(said, { temperature: 0, max_tokens: 12 })));
      expect(await tab.text(".facts")).toMatch(/^12 tokens ·( \d+ tok\/s ·)? first after \d+ ms · cut off/);
      await say(tab, "Go on.");
      await tab.until(`document.querySelectorAll(".facts").length === 2 && ${DONE}`);
      await tab.until(`await (${KEPT_TURNS})(4)`);
      await tab.go(new URL("ui", page.server.running.url));
      await tab.click("Tell me a story.");
      await tab.until(`document.querySelectorAll(".message.model").length === 2`);
      expect(await tab.text(".message.model .markdown")).toBe(first);
    });
  });

  test("what is stopped ends on the server, and what there is of it stays", async () => {
    await page.visit({ values: { ignore_eos: "true", max_tokens: "900" } }, async (tab) => {
      await say(tab, "Go on and on.");
      await tab.until(`document.querySelector(".message.model .markdown")?.innerText.length > 20`);
      expect(page.server.llm.stats.running).toBe(1);
      await tab.press("Escape");
      await tab.until(`document.querySelector(".facts").innerText.includes("stopped")`);
      await eventually(() => page.server.llm.numUnfinished === 0);
      expect((await lastReply(tab)).length).toBeGreaterThan(20);
    });
  });

  test("a reply made anew stands beside the one before, and an edited message takes the place of all after it", async () => {
    await page.visit({ values: { max_tokens: "8" } }, async (tab) => {
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
    await page.visit({ values: { n: "3", max_tokens: "6" } }, async (tab) => {
      await tab.until(`document.querySelector('select[aria-label="Model"]')`);
      await tab.evaluate(`(() => {
        const select = document.querySelector('select[aria-label="Model"]');
        select.value = "other";
        select.dispatchEvent(new Event("change", { bubbles: true }));
      })()`);
      await say(tab, "Hi.");
      await tab.until(`document.querySelector(".chooser")?.innerText.includes("1/3") && ${DONE}`);
      expect(page.server.lines.at(-1)).toContain('"model":"other"');
    });
  });

  test("a token shows what else could have stood there, by keyboard too", async () => {
    await page.visit({ values: SHORT }, async (tab) => {
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
    await page.visit({ on, alternatives: 0 }, async (tab) => {
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
    await page.visit({ on, alternatives: 0, values: { tools } }, async (tab) => {
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
});
