import { afterAll, beforeAll, expect } from "bun:test";
import { describeWith } from "../requirements.ts";
import { TestServer } from "../server/support.ts";
import { Chromium, findChromium, type Tab, type Viewport } from "./chromium.ts";

export const DESKTOP: Viewport = { width: 1280, height: 800 };

/** The field for the next message, a selector. */
export const MESSAGE = 'textarea[aria-label="Message"]';
/** True when the reply is complete, and can be made anew. */
export const DONE = `(() => {
  const labels = [...document.querySelectorAll("button")].map(({ innerText }) => innerText);
  return labels.includes("Regenerate") && labels.includes("Send");
})()`;
/** Parameters of a reply that is always the same. */
export const SHORT = { temperature: "0", max_tokens: "12" };

export interface Visit {
  /** Default: the page's first view. */
  readonly at?: string;
  /** Default: the group's server. */
  readonly on?: TestServer;
  /** Default: a desktop's. */
  readonly viewport?: Viewport;
  /** The parameters that the browser remembers. Default none. */
  readonly values?: Readonly<Record<string, string>>;
  /** Other tokens asked for at each place. Default 5. */
  readonly alternatives?: number;
  /** Errors that the console may have. Default none. */
  readonly expected?: RegExp;
}

/** A group of tests' server, of two model names, and its page in tabs of one Chromium. */
export interface Visits {
  readonly server: TestServer;
  /** Opens the page in a tab of its own, in which nothing may go wrong or astray. */
  visit(visiting: Visit, run: (tab: Tab) => Promise<void>): Promise<void>;
}

/** A group of tests of the page in Chromium; the server and the browser end with it. */
export function describeInChromium(title: string, body: (page: Visits) => void): void {
  describeWith("OCTAVO_REQUIRE_CHROMIUM", findChromium(), title, ({ path }) => {
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
    body({
      get server() {
        return server;
      },
      async visit(visiting, run) {
        const {
          at = "ui",
          on = server,
          viewport = DESKTOP,
          values = {},
          alternatives = 5,
          expected,
        } = visiting;
        await using tab = await browser.open(viewport);
        const url = new URL(at, on.running.url);
        await tab.prepare(`if (!localStorage["octavo.settings"])
          localStorage["octavo.settings"] = ${JSON.stringify(JSON.stringify({ values, alternatives }))}`);
        await tab.go(url);
        await run(tab);
        // What sees nothing would find nothing astray.
        expect(tab.requests).not.toBeEmpty();
        if (expected) expect(tab.errors.join("\n")).toMatch(expected);
        const astray = tab.requests.filter((request) => new URL(request).origin !== url.origin);
        const errors = tab.errors.filter((error) => !expected?.test(error));
        expect({ astray, errors }).toEqual({ astray: [], errors: [] });
      },
    });
  });
}

/** Types a message and sends it. */
export async function say(tab: Tab, text: string): Promise<void> {
  await tab.focus(MESSAGE);
  await tab.type(text);
  await tab.press("Enter");
}
