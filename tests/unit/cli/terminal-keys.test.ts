import { expect, setDefaultTimeout, test } from "bun:test";
import { TerminalKeys } from "../../../src/cli/terminal-keys.ts";

setDefaultTimeout(300_000);

const BEGIN = "\x1b[200~";
const END = "\x1b[201~";

function terminal() {
  let interrupts = 0;
  const keys = new TerminalKeys(() => interrupts++);
  return {
    keys,
    interrupts: () => interrupts,
    /** What has reached the editor since the last call. */
    passed: () => {
      let text = "";
      for (let part = keys.editor.read(); part !== null; part = keys.editor.read()) text += part;
      return text;
    },
  };
}

test("keys wait until a line is asked for, and pass up to its end", () => {
  const { keys, passed } = terminal();
  keys.write("one\rtwo\r");
  expect(passed()).toBe("");
  keys.openLine();
  expect(passed()).toBe("one\r");
  keys.openLine();
  expect(passed()).toBe("two\r");
  keys.openLine();
  keys.write("th");
  keys.write("ree\x7f\x1b[D");
  keys.write("\rfour");
  expect(passed()).toBe("three\x7f\x1b[D\r");
  keys.openLine();
  expect(passed()).toBe("four");
});

test.each([1, 2, 3, 5, 100])("a pasted text does not end the line, in pieces of %d characters", (size) => {
  const { keys, passed } = terminal();
  keys.openLine();
  const text = `a ${BEGIN}b\r\nc\rd\x1b\x03e\n\tf${END} g\r${BEGIN}later${END}`;
  for (let at = 0; at < text.length; at += size) keys.write(text.slice(at, at + size));
  const line = passed();
  expect(line).toBe("a [pasted text 1: 4 lines] g\r");
  expect(keys.expand(line)).toBe("a b\nc\nde\n\tf g\r");
  keys.openLine();
  expect(passed()).toBe("later");
});

test("a short pasted line is shown as it is, a long one by its length, each under its own name", () => {
  const { keys, passed } = terminal();
  keys.openLine();
  keys.write(`${BEGIN}short${END} ${BEGIN}${"x".repeat(1001)}${END} ${BEGIN}1\n2${END}`);
  const line = passed();
  expect(line).toBe("short [pasted text 1: 1001 characters] [pasted text 2: 2 lines]");
  expect(keys.expand(line)).toBe(`short ${"x".repeat(1001)} 1\n2`);
  expect(keys.expand("[pasted text 9: 2 lines]")).toBe("[pasted text 9: 2 lines]");
});

test("Ctrl-C is the editor's while a line is edited; otherwise it drops what waits, unless it is pasted", () => {
  const { keys, passed, interrupts } = terminal();
  keys.openLine();
  keys.write("abc\x03");
  expect([passed(), interrupts()]).toEqual(["abc\x03", 0]);
  keys.write("\r");
  passed();
  keys.write(`dropped\r${BEGIN}\x03${END}`);
  expect(interrupts()).toBe(0);
  keys.write("\x03");
  expect(interrupts()).toBe(1);
  keys.write("kept\r");
  keys.openLine();
  expect(passed()).toBe("kept\r");
});
