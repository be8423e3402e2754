import { expect, setDefaultTimeout, test } from "bun:test";
import { TestServer } from "../server/support.ts";
import { DONE, describeInChromium, MESSAGE, say } from "./visits.ts";

setDefaultTimeout(300_000);

describeInChromium("the page's connection to its server, in Chromium", (page) => {
  test("where a key is needed the page asks for one, keeps it for its tab, and can forget it", async () => {
    await using locked = TestServer.over(page.server.llm, { apiKeys: ["sk-right"] });
    await page.visit({ on: locked, values: { max_tokens: "4" }, expected: /401/ }, async (tab) => {
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
    const gone = TestServer.over(page.server.llm, {});
    const { port } = gone.running;
    await page.visit({ on: gone, expected: /ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY/ }, async (tab) => {
      await tab.until(`document.querySelector(".status.live")`);
      await gone[Symbol.asyncDispose]();
      await tab.until(`document.querySelector(".status.lost")`);
      await say(tab, "Hi.");
      await tab.until(`document.querySelector(".message .error")?.innerText.includes("cannot be reached")`);
      await using _ = TestServer.over(page.server.llm, { port });
      await tab.until(`document.querySelector(".status.live")`);
    });
  });
});
