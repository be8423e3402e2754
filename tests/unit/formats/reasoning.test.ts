import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { type ReadOptions, readTurn, type Turn } from "./support.ts";

setDefaultTimeout(300_000);

const turn = (reasoning: string, content = "", ...calls: Turn["calls"]): Turn => ({
  content,
  reasoning,
  calls,
});
const CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>';
const NOW = ["now", "{}"] as const;
const OPENED: ReadOptions = { prompt: "<|im_start|>assistant\n<think>\n" };
const CLOSED: ReadOptions = { prompt: "<|im_start|>assistant\n<think>\n\n</think>\n\n" };

type Case = readonly [name: string, text: string, turn: Turn, options?: ReadOptions];

function cases(parser: string, list: readonly Case[]): void {
  describe(parser, () => {
    for (const [name, text, expected, options] of list)
      test(name, () => expect(readTurn("hermes", parser, text, options)).toEqual(expected));
  });
}

cases("qwen3", [
  ["a thought and an answer", "<think>\nHm.\n\nYes.\n</think>\n\nHello\n", turn("Hm.\n\nYes.", "Hello")],
  ["an answer alone", "\nHello\n", turn("", "\nHello\n")],
  ["an answer about the marker", "Write <think> for that.", turn("", "Write <think> for that.")],
  ["a thought alone", "<think>Hm.</think>", turn("Hm.")],
  ["a thought that does not end", "<think>Hm. 1 < 2", turn("Hm. 1 < 2")],
  ["a thought that ends in the end marker", "<think>Hm.</thi", turn("Hm.</thi")],
  ["an empty thought", "<think>\n\n</think>\n\nHello", turn("", "Hello")],
  ["begun by the prompt", "Hm.\n</think>\n\nHello", turn("Hm.", "Hello"), OPENED],
  ["begun by the prompt and again", "<think>\nHm.\n</think>\nHello", turn("Hm.", "Hello"), OPENED],
  ["begun by the prompt, without end", "Hm.", turn("Hm."), OPENED],
  ["ended by the prompt", "Hello", turn("", "Hello"), CLOSED],
  ["ended by the prompt and again", "</think>\n\nHello", turn("", "Hello"), CLOSED],
  ["ended twice", "<think>Hm.</think></think>Hello", turn("Hm.", "Hello")],
  [
    "a user's word at the end of a prompt",
    "Hello",
    turn("", "Hello"),
    {
      prompt: "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n",
    },
  ],
  ["an answer that is continued", " there", turn("", " there"), { continued: "Hello" }],
  ["after what could be the beginning of a marker", " 5", turn("", " 5"), { continued: "4 <" }],
  ["a thought that is continued", " so.</think>Hello", turn("so.", "Hello"), { continued: "<think>Hm," }],
  ["a call after the thought", `<think>Hm.</think>\n\n${CALL}`, turn("Hm.", "", NOW)],
  ["an answer and a call", `<think>Hm.</think>\n\nLook:\n${CALL}`, turn("Hm.", "Look:", NOW)],
  ["a call without thought", CALL, turn("", "", NOW)],
  ["a call that ends the thought", `<think>\nI call it.\n${CALL}`, turn("I call it.", "", NOW)],
  [
    "a marker of calls in the thought",
    "<think>Use <tool_call> here.</think>Hello",
    turn("Use <tool_call> here.", "Hello"),
  ],
]);

cases("deepseek_r1", [
  ["without the first marker", "Hm.</think>Hello", turn("Hm.", "Hello")],
  ["with it", "<think>\nHm.\n</think>\nHello", turn("Hm.", "Hello")],
  ["without end", "Hm.", turn("Hm.")],
  ["begun by the prompt", "Hm.</think>Hello", turn("Hm.", "Hello"), OPENED],
  ["ended by the prompt", "Hello", turn("", "Hello"), CLOSED],
]);

cases("mistral", [
  ["a thought and an answer", "[THINK]Hm.[/THINK]Hello", turn("Hm.", "Hello")],
  ["an answer alone", "Hello [THINK]", turn("", "Hello [THINK]")],
]);

describe("without reasoning", () => {
  test("thoughts are text", () => {
    expect(readTurn("hermes", "none", "<think>Hm.</think>Hello")).toEqual(
      turn("", "<think>Hm.</think>Hello"),
    );
  });
});

test("JSON at the beginning of an answer is a call after a thought, too", () => {
  const text = '<think>Hm.</think>\n\n{"name": "now", "parameters": {}}';
  expect(readTurn("llama3_json", "qwen3", text)).toEqual(turn("Hm.", "", NOW));
  const list = "<think>Hm.</think>\n\n[now()]";
  expect(readTurn("pythonic", "qwen3", list)).toEqual(turn("Hm.", "", NOW));
  expect(readTurn("pythonic", "qwen3", "<think>[now()]</think>no")).toEqual(turn("[now()]", "no"));
});

describe("gemma4", () => {
  const read = (text: string, options?: ReadOptions) => readTurn("gemma4", "gemma4", text, options);
  const CALLED = "<|tool_call>call:now{}<tool_call|>";

  test.each([
    ["a thought and an answer", "<|channel>thought\nHm.\nYes.\n<channel|>Hello", turn("Hm.\nYes.", "Hello")],
    ["an answer alone", "Hello", turn("", "Hello")],
    ["an empty thought", "<|channel>thought\n<channel|>Hello", turn("", "Hello")],
    ["a thought that does not end", "<|channel>thought\nHm.", turn("Hm.")],
    ["a thought whose line does not end", "<|channel>thought<channel|>Hello", turn("", "Hello")],
    ["a call after the thought", `<|channel>thought\nHm.\n<channel|>${CALLED}`, turn("Hm.", "", NOW)],
    ["a call that ends the thought", `<|channel>thought\nHm.\n${CALLED}`, turn("Hm.", "", NOW)],
  ])("%s", (_, text, expected) => expect(read(text)).toEqual(expected));

  test("begun, or ended, by the prompt", () => {
    const prompt = "<|turn>model\n<|channel>thought\n";
    expect(read("Hm.\n<channel|>Hello", { prompt })).toEqual(turn("Hm.", "Hello"));
    expect(read("Hello", { prompt: `${prompt}<channel|>` })).toEqual(turn("", "Hello"));
  });
});
