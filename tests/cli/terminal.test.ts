import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { octavo } from "./support.ts";
import { TerminalSession } from "./terminal.ts";

setDefaultTimeout(300_000);

const RED = "\x1b[31m";
const CHAT = ["chat", "--temperature", "0", "--max-tokens", "40"];
const DONE = "tokens/s";

const chat = (columns?: number, args: readonly string[] = CHAT) =>
  new TerminalSession("src/cli/main.ts", args, columns);

/** The replies that the same messages get through a pipe. */
async function piped(...messages: readonly string[]): Promise<readonly string[]> {
  const { stdout } = await octavo([...CHAT, "--no-timing"], {
    stdin: messages.map((text) => `${text}\n`).join(""),
  });
  return stdout.split("\n").slice(0, messages.length);
}

/** The lines of a session between the first that is `from` and the next that is a timing, as one text. */
function replyTo(from: string, lines: readonly string[]): string {
  const rest = lines.slice(lines.findIndex((line) => line.endsWith(from)) + 1);
  return rest
    .slice(
      0,
      rest.findIndex((line) => line.includes(DONE)),
    )
    .join(" ");
}

test("notes and errors are not red", async () => {
  using note = new TerminalSession("generate.ts", ["--max-tokens", "3", "--swap-space", "4"]);
  expect(await note.ended()).toBe(0);
  expect(note.output).toContain("--swap-space has no effect");
  expect(note.output).toContain("tokens/s");
  using error = new TerminalSession("generate.ts", ["--temperature", "9"]);
  expect(await error.ended()).toBe(64);
  expect(error.lines).toEqual(["octavo: --temperature must be a number from 0 to 2, not 9", ""]);
  expect(note.output + error.output).not.toContain(RED);
});

describe("octavo chat in a terminal", () => {
  test("a pasted text is one message, whatever line breaks it has", async () => {
    const [reply] = await piped('"""One day\n/reset\na dog and more"""');
    using session = chat();
    await session.shows("> ");
    session.type("\x1b[200~One day\r/reset\r\na dog\x1b[201~ and more\r");
    await session.shows(DONE);
    session.type("/bye\r");
    expect(await session.ended()).toBe(0);
    expect(replyTo("[pasted text 1: 3 lines] and more", session.lines)).toBe(reply!.trimEnd());
    expect(session.output.split(DONE)).toHaveLength(2);
  });

  test('lines between """ are one message', async () => {
    const [reply] = await piped('"""A cat\nand a dog"""');
    using session = chat();
    await session.shows("> ");
    session.type('"""A cat\rand a dog\r"""\r');
    await session.shows(DONE);
    session.type("/bye\r");
    expect(await session.ended()).toBe(0);
    expect(session.output).toContain("... ");
    expect(replyTo('... """', session.lines)).toBe(reply!.trimEnd());
  });

  test("words are not cut at the margin", async () => {
    const [reply] = await piped("A story about a cat");
    using session = chat(30);
    await session.shows("> ");
    session.type("A story about a cat\r");
    await session.shows(DONE);
    session.type("/bye\r");
    await session.ended();
    expect(replyTo("A story about a cat", session.lines)).toBe(reply!.trimEnd());
    const rows = session.lines.filter((line) => reply!.includes(line));
    expect(rows.length).toBeGreaterThan(3);
    for (const row of rows) expect(row.length).toBeLessThanOrEqual(30);
  });

  test("what is typed during a reply waits for it, and is answered after it", async () => {
    const messages = ["A story about a cat", "and a dog", "and a bird"];
    const replies = await piped(...messages);
    using session = chat();
    await session.shows("> ");
    session.type("A story about a cat\rand a dog\rand a bi");
    await session.shows(DONE, 2);
    session.type("rd\r");
    await session.shows(DONE, 3);
    session.type("/bye\r");
    expect(await session.ended()).toBe(0);
    for (const [i, message] of messages.entries())
      expect(replyTo(`> ${message}`, session.lines)).toBe(replies[i]!.trimEnd());
  });

  test("Ctrl-C ends a reply and drops what was typed meanwhile; at the prompt it clears the line", async () => {
    using session = chat(80, ["chat", "--ignore-eos", "--max-tokens", "900"]);
    await session.shows("> ");
    session.type("A cat\r");
    await session.shows("\n", 4);
    session.type("never sent\r\x03");
    await session.shows(DONE);
    session.type('nonsense"""\x03');
    await session.shows("Ctrl-C again leaves");
    session.type("/bye\r");
    expect(await session.ended()).toBe(0);
    expect(session.output.split(DONE)).toHaveLength(2);
    expect(session.output).not.toContain("never sent");
    expect(session.lines.at(-2)).toBe("> /bye");
    expect(session.output.lastIndexOf("> ")).toBeGreaterThan(session.output.lastIndexOf("nonsense"));
  });

  test("a parameter out of range is told before the model is loaded", async () => {
    using session = chat(80, ["chat", "--top-p", "3"]);
    expect(await session.ended()).toBe(64);
    expect(session.lines).toEqual(["octavo: --top-p must be a number from 0 to 1, not 3", ""]);
  });

  test("Ctrl-D leaves; the terminal no longer marks what is pasted", async () => {
    using session = chat();
    await session.shows("> ");
    session.type("\x04");
    expect(await session.ended()).toBe(0);
    expect(session.output.lastIndexOf("\x1b[?2004l")).toBeGreaterThan(
      session.output.lastIndexOf("\x1b[?2004h"),
    );
  });
});
