import { expect, setDefaultTimeout, test } from "bun:test";
import { ReplyWriter } from "../../../src/cli/reply-writer.ts";

setDefaultTimeout(300_000);

const PIECES = [
  { thought: "Let me th", text: "" },
  { thought: "ink", text: "" },
  { thought: "", text: "An answer" },
  { thought: "", text: " it is" },
];

function written(columns: (() => number) | undefined, isDim: boolean, pieces = PIECES): string {
  const out: string[] = [];
  const writer = new ReplyWriter((text) => out.push(text), columns, isDim);
  for (const piece of pieces) writer.push(piece);
  writer.end();
  return out.join("");
}

const visible = (text: string) => text.replaceAll("\x1b[2m", "|").replaceAll("\x1b[0m", "|");

test("in a terminal thoughts are dim, all of them, and the answer follows on a line of its own", () => {
  const text = written(() => 80, true);
  expect(visible(text).replaceAll("||", "")).toBe("|Let me think|\n\nAn answer it is\n");
  expect(text).toStartWith("\x1b[2m");
  expect(written(() => 80, false)).toBe("Let me think\n\nAn answer it is\n");
  expect(visible(written(() => 80, true, PIECES.slice(0, 2))).replaceAll("||", "")).toBe("|Let me think|\n");
});

test("elsewhere there is the answer alone", () => {
  expect(written(undefined, true)).toBe("An answer it is\n");
});

test("lines are as wide as the terminal, whoever speaks", () => {
  expect(written(() => 10, false)).toBe("Let me\nthink\n\nAn answer\nit is\n");
});

test("a terminal shows a model's control characters and does not obey them; other outputs get them", () => {
  const hostile = [
    { thought: "a\x1b[2J", text: "" },
    { thought: "", text: "b\x1b]52;c;eA==\x07\r\n\tc\x7f\x9b1A" },
  ];
  expect(written(() => 80, false, hostile)).toBe("a␛[2J\n\nb␛]52;c;eA==␇\n\tc␡\ufffd1A\n");
  expect(written(undefined, false, hostile)).toBe(`${hostile[1]!.text}\n`);
});
