import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { temporaryFolder } from "../support.ts";
import { HubServer } from "../unit/loader/hub-server.ts";
import { expectRefusal, MODEL, octavo } from "./support.ts";
import { TerminalSession } from "./terminal.ts";

setDefaultTimeout(300_000);

const FEW = ["--temperature", "0", "--max-tokens", "8"];
const SHOW = ["--chat-template", "{{ messages[0].content }}"];

/** What `octavo complete` writes after a text. */
async function after(text: string): Promise<string> {
  const { code, stdout, stderr } = await octavo(["complete", "tiny-stories", ...FEW], { stdin: text });
  expect([code, stderr]).toEqual([0, ""]);
  return stdout;
}

describe("octavo complete", () => {
  test("writes what comes after a text, which is words or piped in, and nothing else", async () => {
    const { code, stdout, stderr } = await octavo(["complete", MODEL, "Once", "upon a time", ...FEW]);
    expect([code, stdout, stderr]).toEqual([0, expect.stringMatching(/^, there was a .+\n$/), ""]);
    // A line break at the end is the shell's, those before it are the text's.
    expect(await after("Once upon a time\n")).toBe(stdout);
    expect(await after("Once upon a time\n\n")).not.toBe(stdout);
  });

  test("refuses nothing, and a model that is none", async () => {
    expectRefusal(await octavo(["complete"]), 64, "no text to continue");
    expectRefusal(await octavo(["complete", MODEL], { stdin: "" }), 64, "no text to continue");
    expectRefusal(await octavo(["complete", "../no-such", "Hello"]), 66, "../no-such");
    expectRefusal(await octavo(["complete", "no such id", "Hello"]), 66, "no such id");
    expectRefusal(await octavo(["complete", MODEL, "Hello", "--top-p", "7"]), 64, "--top-p");
  });
});

describe("octavo run", () => {
  test("answers a prompt, what is piped in, or both, once", async () => {
    const args = ["run", "tiny-stories", ...FEW, ...SHOW, "--no-timing"];
    const words = await octavo([...args, "The", "dog"]);
    expect(words).toEqual({ code: 0, stderr: "", stdout: await after("The dog") });
    expect((await octavo(args, { stdin: "The dog\n" })).stdout).toBe(words.stdout);
    const both = await octavo([...args, "The"], { stdin: "dog\n" });
    expect(both.stdout).toBe(await after("The\n\ndog"));
    const timed = await octavo([...args.slice(0, -1), "The dog"]);
    expect(timed.stderr).toMatch(/^8 tokens, first after/);
  });

  test("refuses what is no message, or cannot be answered", async () => {
    expectRefusal(await octavo(["run", "tiny-stories"]), 64, "no message");
    expectRefusal(await octavo(["run", "tiny-stories"], { stdin: " \n" }), 64, "no message");
    expectRefusal(await octavo(["run", "./no-such", "Hello"]), 66, "./no-such");
    const long = await octavo(["run", "tiny-stories", "word ".repeat(3000)]);
    expectRefusal(long, 64, "1024");
  });

  test("downloads a model first", async () => {
    using hub = new HubServer("org/model", {
      "config.json": Buffer.from("{}"),
      "model.safetensors": Buffer.alloc(99),
    });
    using folder = temporaryFolder();
    const env = { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: folder.path, HF_TOKEN: "", HF_HUB_OFFLINE: "" };
    expectRefusal(await octavo(["run", "org/model", "Hello"], { env }), 65, "config.json");
    expect((await octavo(["list", "--quiet"], { env })).stdout).toContain("org/model\n");
    hub.refuseWith = 404;
    expectRefusal(await octavo(["run", "org/other", "Hello"], { env }), 66, "org/other", "404");
  });

  test("in a terminal is a conversation", async () => {
    using terminal = new TerminalSession("src/cli/main.ts", ["run", "tiny-stories", ...FEW]);
    await terminal.shows("/help lists the commands");
    terminal.type("A cat\r");
    await terminal.shows("8 tokens, first after");
    terminal.type("/bye\r");
    expect(await terminal.ended()).toBe(0);
  });
});
