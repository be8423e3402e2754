import { expect, setDefaultTimeout, test } from "bun:test";
import axe from "axe-core";
import type { Viewport } from "./chromium.ts";
import { DESKTOP, DONE, describeInChromium, MESSAGE, SHORT, say } from "./visits.ts";

setDefaultTimeout(300_000);

const PHONE: Viewport = { width: 360, height: 740, phone: true };

describeInChromium("the page for every eye and hand, in Chromium", (page) => {
  test("all can be done by keyboard", async () => {
    await page.visit({ values: { max_tokens: "4" } }, async (tab) => {
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
    await page.visit({ viewport: PHONE, values: { max_tokens: "30" } }, async (tab) => {
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
    await page.visit({ viewport: { ...DESKTOP, dark: true } }, async (tab) => {
      const brightness = () =>
        tab.evaluate<number>(
          `Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))`,
        );
      expect(await brightness()).toBeLessThan(60);
      await tab.click("Theme: auto. Change to light");
      expect(await brightness()).toBeGreaterThan(200);
      await tab.go(new URL("ui", page.server.running.url));
      expect(await brightness()).toBeGreaterThan(200);
    });
  });

  test.each([["light", false] as const, ["dark", true] as const])(
    "axe finds nothing serious: %s",
    async (_, dark) => {
      await page.visit({ viewport: { ...DESKTOP, dark }, values: SHORT }, async (tab) => {
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
