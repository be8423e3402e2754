import { expect, setDefaultTimeout, test } from "bun:test";
import { ENDLESS, TestServer } from "../server/support.ts";
import { describeInChromium } from "./visits.ts";

setDefaultTimeout(300_000);

describeInChromium("the engine's view in Chromium", (page) => {
  test("the map, the batch and the figures follow what runs", async () => {
    await page.visit({ at: "ui#engine" }, async (tab) => {
      await tab.until(`document.querySelector(".readout")?.innerText.includes(" 0 held")`);
      const picture = () => tab.evaluate<string>(`document.querySelector("canvas").toDataURL()`);
      const empty = await picture();
      const abort = new AbortController();
      const { signal } = abort;
      const prompt =
        "Once upon a time there was a cat who lived in a house with a dog and a bird and a fish.";
      const send = () => {
        const body = { ...ENDLESS, prompt, stream: true };
        return page.server.post("/v1/completions", body, { signal }).then((reply) => reply.text());
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
    await page.visit({ on: tiny, at: "ui#engine" }, async (tab) => {
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
});
