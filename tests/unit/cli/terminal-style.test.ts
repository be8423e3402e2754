import { afterEach, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { say } from "../../../src/cli/command.ts";
import { dim, hasStyle, isLive, modelText } from "../../../src/cli/terminal-style.ts";
import { titledLines } from "../../../src/cli/titled-lines.ts";

setDefaultTimeout(300_000);

const before = { TERM: process.env["TERM"], NO_COLOR: process.env["NO_COLOR"] };
afterEach(() => {
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
});

test.each([
  [true, "xterm", "", true, true],
  [true, "xterm", "1", true, false],
  [true, "dumb", "", false, false],
  [false, "xterm", "", false, false],
])(
  "where isTTY is %j, TERM %j and NO_COLOR %j, bars are drawn: %j, and text is dim: %j",
  (isTTY, term, no, live, style) => {
    Object.assign(process.env, { TERM: term, NO_COLOR: no });
    expect([isLive({ isTTY }), hasStyle({ isTTY })]).toEqual([live, style]);
    expect(dim("a", { isTTY }) !== "a").toBe(style);
  },
);

test("a model's text is made harmless for terminals alone", () => {
  expect(modelText("a\x1b[31m\n", { isTTY: true })).toBe("a␛[31m\n");
  expect(modelText("a\x1b[31m\n", { isTTY: false })).toBe("a\x1b[31m\n");
});

test("what errors and descriptions quote of a model's files is harmless", () => {
  expect(titledLines([["model", "Foo\x1b[2J"]])).toBe("  model     Foo␛[2J");
  const written = spyOn(process.stderr, "write").mockImplementation(() => true);
  try {
    say("no model\nis \x1b]0;Foo\x07");
    expect(written.mock.calls).toEqual([["octavo: no model is ␛]0;Foo␇\n"]]);
  } finally {
    written.mockRestore();
  }
});
