import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { formatsOf } from "../../../src/formats/registry.ts";
import { TurnParser } from "../../../src/formats/turn-parser.ts";
import { type ReadOptions, readTurn, TOOLS, type Turn } from "./support.ts";

setDefaultTimeout(300_000);

const said = (content: string): Turn => ({ content, reasoning: "", calls: [] });
const called = (...calls: Turn["calls"]): Turn => ({ content: "", reasoning: "", calls });
const PARIS = '{"city": "Paris", "days": 2}';
const NOW = ["now", "{}"] as const;

type Case = readonly [name: string, text: string, turn: Turn, options?: ReadOptions];

function cases(parser: string, list: readonly Case[]): void {
  describe(parser, () => {
    for (const [name, text, turn, options] of list)
      test(name, () => expect(readTurn(parser, "none", text, options)).toEqual(turn));
  });
}

const hermes = (json: string) => `<tool_call>\n${json}\n</tool_call>`;
cases("hermes", [
  ["no call", "The weather is 5 < 7.\n", said("The weather is 5 < 7.\n")],
  ["a call", hermes(`{"name": "get_weather", "arguments": ${PARIS}}`), called(["get_weather", PARIS])],
  [
    "two calls with a line break between",
    `${hermes(`{"name": "get_weather", "arguments": ${PARIS}}`)}\n${hermes('{"name": "now", "arguments": {}}')}`,
    called(["get_weather", PARIS], NOW),
  ],
  [
    "text before a call",
    `Let me look.\n\n${hermes('{"name": "now", "arguments": {}}')}`,
    {
      ...called(NOW),
      content: "Let me look.",
    },
  ],
  [
    "text around calls",
    `One.\n${hermes('{"name": "now", "arguments": {}}')}\n\nTwo.`,
    {
      ...called(NOW),
      content: "One.\n\nTwo.",
    },
  ],
  ["no arguments", hermes('{"name": "now"}'), called(NOW)],
  [
    "arguments before the name",
    hermes(`{"arguments": ${PARIS}, "name": "get_weather"}`),
    called(["get_weather", PARIS]),
  ],
  [
    "parameters instead of arguments",
    hermes('{"name": "now", "parameters": {"a":1}}'),
    called(["now", '{"a":1}']),
  ],
  ["two arguments", hermes('{"name": "now", "arguments": {}, "arguments": {"a": 1}}'), called(NOW)],
  ["a tool that nobody knows", hermes('{"name": "other", "arguments": {}}'), called(["other", "{}"])],
  [
    "arguments of all types, spelled as they are",
    hermes('{"name": "now", "arguments": {"a":1.50,"b":[true,null,"}"],"c":{"d":"é\\n\\u00e9"} }}'),
    called(["now", '{"a":1.50,"b":[true,null,"}"],"c":{"d":"é\\n\\u00e9"} }']),
  ],
  [
    "quotes, brackets and markers in strings",
    hermes('{"name": "now", "arguments": {"a": "\\"}</tool_call><tool_call>{\\\\"}}'),
    called(["now", '{"a": "\\"}</tool_call><tool_call>{\\\\"}']),
  ],
  ["the end is missing", `<tool_call>{"name": "now", "arguments": {}}`, called(NOW)],
  [
    "the end is missing before the next",
    `<tool_call>{"name": "now"}\n<tool_call>{"name": "now"}`,
    called(NOW, NOW),
  ],
  ["no JSON", "a <tool_call>now()</tool_call> b", said("a <tool_call>now()</tool_call> b")],
  ["nothing", "<tool_call></tool_call>", said("<tool_call></tool_call>")],
  [
    "a name that is none",
    hermes('{"name": 5, "arguments": {}}'),
    said(hermes('{"name": 5, "arguments": {}}')),
  ],
  ["no name", hermes('{"arguments": {}}'), said(hermes('{"arguments": {}}'))],
  ["a marker that does not complete", "so <tool_ca", said("so <tool_ca")],
  ["a call that does not begin", 'so <tool_call>\n{"name": "n', said('so <tool_call>\n{"name": "n')],
  [
    "cut by the limit in the arguments",
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par',
    called(["get_weather", '{"city": "Par']),
    { isWhole: false },
  ],
  [
    "a call after something that was none",
    `<tool_call>x ${hermes('{"name": "now"}')}`,
    {
      ...called(NOW),
      content: "<tool_call>x",
    },
  ],
  [
    "only the first if no more are wanted",
    `${hermes(`{"name": "get_weather", "arguments": ${PARIS}}`)}\n${hermes('{"name": "now"}')}\nThere.`,
    { ...called(["get_weather", PARIS]), content: "There." },
    { firstCallOnly: true },
  ],
]);

const coder = (name: string, ...values: readonly (readonly [string, string])[]) =>
  `<tool_call>\n<function=${name}>\n${values.map(([key, value]) => `<parameter=${key}>\n${value}\n</parameter>\n`).join("")}</function>\n</tool_call>`;
cases("qwen3_coder", [
  ["no call", "if (a <b) {}", said("if (a <b) {}")],
  ["a call", coder("get_weather", ["city", "Paris"], ["days", "2"]), called(["get_weather", PARIS])],
  ["no parameters", coder("now"), called(NOW)],
  [
    "two calls",
    `${coder("get_weather", ["city", "Paris"], ["days", "2"])}\n${coder("now")}`,
    called(["get_weather", PARIS], NOW),
  ],
  ["text before", `Look:\n${coder("now")}`, { ...called(NOW), content: "Look:" }],
  [
    "types of the schema",
    coder(
      "get_weather",
      ["metric", "True"],
      ["limit", "null"],
      ["tags", '["a", 1]'],
      ["filter", '{"a": {}}'],
    ),
    called(["get_weather", '{"metric": true, "limit": null, "tags": ["a", 1], "filter": {"a": {}}}']),
  ],
  [
    "what does not have its type is a string",
    coder("get_weather", ["days", "two"], ["metric", "yes"], ["limit", "[1]"], ["tags", "a, b"]),
    called(["get_weather", '{"days": "two", "metric": "yes", "limit": "[1]", "tags": "a, b"}']),
  ],
  [
    "a number that looks like one",
    coder("get_weather", ["limit", "1.5e3"], ["city", "75001"]),
    called(["get_weather", '{"limit": 1.5e3, "city": "75001"}']),
  ],
  ["a parameter without schema is a string", coder("now", ["zone", "5"]), called(["now", '{"zone": "5"}'])],
  [
    "line breaks, quotes and brackets in a string",
    coder("get_weather", ["city", '\n a "b"\n</div>\\ \n']),
    called(["get_weather", JSON.stringify({ city: '\n a "b"\n</div>\\ \n' }).replace(":", ": ")]),
  ],
  ["an empty string", "<function=now><parameter=a></parameter></function>", called(["now", '{"a": ""}'])],
  [
    "a value with the marker that ends values",
    coder("get_weather", ["city", "<parameter>\n</parameter>\n\n</param\n</parameter> x"], ["days", "2"]),
    called([
      "get_weather",
      `{"city": ${JSON.stringify("<parameter>\n</parameter>\n\n</param\n</parameter> x")}, "days": 2}`,
    ]),
  ],
  [
    "a value that is nothing but such markers",
    coder("now", ["a", "</parameter></parameter>"]),
    called(["now", '{"a": "</parameter></parameter>"}']),
  ],
  ["without the outer marker", "<function=now>\n</function>", called(NOW)],
  [
    "ends of values are missing",
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n2\n</function>\n</tool_call>",
    called(["get_weather", PARIS]),
  ],
  [
    "the end is missing",
    "<tool_call>\n<function=get_weather>\n<parameter=days>\n2\n</parameter>\n",
    called(["get_weather", '{"days": 2}']),
  ],
  [
    "cut by the limit",
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
    called(["get_weather", '{"city": "Par']),
    { isWhole: false },
  ],
  ["something else in the marker", "<tool_call>{}</tool_call>", said("<tool_call>{}</tool_call>")],
]);

cases("llama3_json", [
  ["no call", "Hello {world}", said("Hello {world}")],
  ["a call", `{"name": "get_weather", "parameters": ${PARIS}}`, called(["get_weather", PARIS])],
  [
    "with the tag",
    `<|python_tag|>{"name": "get_weather", "arguments": ${PARIS}}`,
    called(["get_weather", PARIS]),
  ],
  ["with a type", '{"type": "function", "name": "now", "parameters": {}}', called(NOW)],
  [
    "several",
    `{"name": "now", "parameters": {}}; {"name": "get_weather", "parameters": ${PARIS}}`,
    called(NOW, ["get_weather", PARIS]),
  ],
  ["JSON that is no call", '\n{"name": "Bob", "age": 3}', said('\n{"name": "Bob", "age": 3}')],
  ["JSON of other keys", '{"answer": {"name": "now"}}', said('{"answer": {"name": "now"}}')],
  [
    "a tool that nobody knows",
    '{"name": "other", "parameters": {}}',
    said('{"name": "other", "parameters": {}}'),
  ],
  ["no JSON", "{name: now}", said("{name: now}")],
  ["cut short", '{"name": "now", "par', said('{"name": "now", "par')],
  [
    "a call in the middle of text",
    'So {"name": "now", "parameters": {}}',
    said('So {"name": "now", "parameters": {}}'),
  ],
  ["text after the call", '{"name": "now", "parameters": {}} ok', { ...called(NOW), content: "ok" }],
]);

cases("pythonic", [
  ["no call", "[1] is a list", said("[1] is a list")],
  ["a link", "[now](http://x)", said("[now](http://x)")],
  ["a call", "[get_weather(city='Paris', days=2)]", called(["get_weather", PARIS])],
  [
    "with tags",
    '<|python_start|>[get_weather(city="Paris", days=2)]<|python_end|>',
    called(["get_weather", PARIS]),
  ],
  ["several", '[now(), get_weather(city="Paris", days=2)]', called(NOW, ["get_weather", PARIS])],
  [
    "literals",
    "[now(a=-1.50, b=True, c=None, d=[1, 'x', {'k': false}], e={}, f=[], g='', h=1_000, i=.5)]",
    called([
      "now",
      '{"a": -1.50, "b": true, "c": null, "d": [1, "x", {"k": false}], "e": {}, "f": [], "g": "", "h": 1000, "i": 0.5}',
    ]),
  ],
  ["keys that are no strings", "[now(a={1: 2, None: 3})]", called(["now", '{"a": {"1": 2, "null": 3}}'])],
  ["commas at the end", "[now(a=[1,], b={'c': 1,},)]", called(["now", '{"a": [1], "b": {"c": 1}}'])],
  [
    "escapes",
    `[now(a='it\\'s \\x41\\u00e9\\U0001F600\\n"q" \\q', b="""x"y""")]`,
    called(["now", '{"a": "it\'s Aé😀\\n\\"q\\" \\\\q", "b": "x\\"y"}']),
  ],
  ["a tool that nobody knows", "[other(a=1)]", said("[other(a=1)]")],
  ["positional arguments", "[now(1)]", said("[now(1)]")],
  ["an expression", "[now(a=b)]", { content: ")]", reasoning: "", calls: [["now", '{"a": ']] }],
  ["cut short before anything is certain", "[now(", said("[now(")],
  ["in the middle of text", "So [now()]", said("So [now()]")],
]);

const gemma4 = (call: string) => `<|tool_call>call:${call}<tool_call|>`;
cases("gemma4", [
  ["no call", "<|tool> is not it", said("<|tool> is not it")],
  ["a call", gemma4('get_weather{city:<|"|>Paris<|"|>,days:2}'), called(["get_weather", PARIS])],
  [
    "two calls",
    gemma4("now{}") + gemma4('get_weather{city:<|"|>Paris<|"|>,days:2}'),
    called(NOW, ["get_weather", PARIS]),
  ],
  ["text around", `One.\n${gemma4("now{}")}Two.`, { ...called(NOW), content: "One.\n\nTwo." }],
  [
    "values of all types",
    gemma4('now{a:-1.5e3,b:[true,null,<|"|>}]<|"|>,[],{}],c:{d:<|"|>"é\n\\<|"|>,e:{}}}'),
    called(["now", '{"a": -1.5e3, "b": [true, null, "}]", [], {}], "c": {"d": "\\"é\\n\\\\", "e": {}}}']),
  ],
  [
    "spaces and quoted keys",
    gemma4('now{ a : 1 , <|"|>b:c<|"|>: [ 2 , 3 ] }'),
    called(["now", '{"a": 1, "b:c": [2, 3]}']),
  ],
  ["words that are no literals", gemma4("now{a:Paris,b:1.}"), called(["now", '{"a": "Paris", "b": "1."}'])],
  [
    "what begins like the end of a string",
    gemma4('now{a:<|"|><|"<|<|"|>}'),
    called(["now", '{"a": "<|\\"<|"}']),
  ],
  [
    "names and strings of JSON",
    gemma4('now{a:{"b,\\":":["}\\\\",{"c":"<|"}]}}'),
    called(["now", '{"a": {"b,\\":": ["}\\\\", {"c": "<|"}]}}']),
  ],
  ["the end is missing", "<|tool_call>call:now{}", called(NOW)],
  ["the end is missing before the next", "<|tool_call>call:now{}<|tool_call>call:now{}", called(NOW, NOW)],
  [
    "no call after the marker",
    "a <|tool_call>now{}<tool_call|> b",
    said("a <|tool_call>now{}<tool_call|> b"),
  ],
  ["no name", gemma4("{a:1}"), said(gemma4("{a:1}"))],
]);

cases("mistral", [
  ["no call", "[TOOL] is not it", said("[TOOL] is not it")],
  ["a list", `[TOOL_CALLS][{"name": "get_weather", "arguments": ${PARIS}}]`, called(["get_weather", PARIS])],
  [
    "a list of two",
    `[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdefghi"}, {"name": "get_weather", "arguments": ${PARIS}}]`,
    called(NOW, ["get_weather", PARIS]),
  ],
  ["an object", `[TOOL_CALLS]{"name": "get_weather", "arguments": ${PARIS}}`, called(["get_weather", PARIS])],
  [
    "text before",
    `Look: [TOOL_CALLS][{"name": "now", "arguments": {}}]`,
    { ...called(NOW), content: "Look:" },
  ],
  ["name and arguments", `[TOOL_CALLS]get_weather[ARGS]${PARIS}`, called(["get_weather", PARIS])],
  ["name and object", `[TOOL_CALLS]get_weather${PARIS}`, called(["get_weather", PARIS])],
  ["with an id", `[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]${PARIS}`, called(["get_weather", PARIS])],
  [
    "two names",
    `[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]get_weather[ARGS]${PARIS}`,
    called(NOW, ["get_weather", PARIS]),
  ],
  [
    "brackets in strings",
    '[TOOL_CALLS]now[ARGS]{"a": "[TOOL_CALLS]}"}',
    called(["now", '{"a": "[TOOL_CALLS]}"}']),
  ],
  ["no JSON", "[TOOL_CALLS][now]", said("[TOOL_CALLS][now]")],
  ["a name alone", "[TOOL_CALLS]now", said("[TOOL_CALLS]now")],
]);

const v3 = (name: string, json: string) =>
  `<｜tool▁call▁begin｜>function<｜tool▁sep｜>${name}\n\`\`\`json\n${json}\n\`\`\`<｜tool▁call▁end｜>`;
const v31 = (name: string, json: string) =>
  `<｜tool▁call▁begin｜>${name}<｜tool▁sep｜>${json}<｜tool▁call▁end｜>`;
for (const [parser, call, separator] of [
  ["deepseek_v3", v3, "\n"],
  ["deepseek_v31", v31, ""],
] as const) {
  const block = (...calls: readonly string[]) =>
    `<｜tool▁calls▁begin｜>${calls.join(separator)}<｜tool▁calls▁end｜>`;
  cases(parser, [
    ["no call", "<｜tool▁ is not it", said("<｜tool▁ is not it")],
    ["a call", block(call("get_weather", PARIS)), called(["get_weather", PARIS])],
    ["two calls", block(call("get_weather", PARIS), call("now", "{}")), called(["get_weather", PARIS], NOW)],
    ["text around", `A.\n${block(call("now", "{}"))} B.`, { ...called(NOW), content: "A.\n\nB." }],
    [
      "markers in strings",
      block(call("now", '{"a": "<｜tool▁call▁end｜>```"}')),
      called(["now", '{"a": "<｜tool▁call▁end｜>```"}']),
    ],
    ["the end is missing", `<｜tool▁calls▁begin｜>${call("now", "{}")}`, called(NOW)],
    [
      "arguments that are no object",
      block(call("now", "[5]").replace("\n[", "[").replace("]\n```", "]")),
      called(["now", "[5]"]),
    ],
    [
      "nothing begins",
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f",
      said("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f"),
    ],
  ]);
}

test("JSON that is no call is not held back", () => {
  const formats = formatsOf({ toolCallParser: "llama3_json", reasoningParser: "none" }, undefined);
  const parser = new TurnParser(formats.withCalls!, { tools: TOOLS, newId: () => "id" });
  parser.push('{"answer": 4');
  expect(parser.take().content).toBe('{"answer": 4');
});

describe("harmony", () => {
  const PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
  const thought = "<|channel|>analysis<|message|>Hm.<|end|>";
  const call = `<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>${PARIS}<|call|>`;
  const list: readonly Case[] = [
    ["an answer", "<|channel|>final<|message|>Hello.", said("Hello.")],
    [
      "a thought and an answer",
      `${thought}<|start|>assistant<|channel|>final<|message|>Hello.<|return|>`,
      {
        ...said("Hello."),
        reasoning: "Hm.",
      },
    ],
    ["a call", `${thought}${call}`, { ...called(["get_weather", PARIS]), reasoning: "Hm." }],
    ["the recipient first", ` to=functions.now<|channel|>commentary json<|message|>{}<|call|>`, called(NOW)],
    ["two thoughts", `${thought}<|start|>assistant${thought}`, { ...said(""), reasoning: "Hm.\n\nHm." }],
    [
      "a preamble",
      `<|channel|>commentary<|message|>Look:<|end|>${call}`,
      {
        ...called(["get_weather", PARIS]),
        content: "Look:",
      },
    ],
    [
      "a tool of its own",
      "<|channel|>analysis to=python code<|message|>1+1<|call|>",
      { ...said(""), reasoning: "1+1" },
    ],
    ["no channels at all", "Hello.", said("Hello.")],
    ["cut by the limit", "<|channel|>final<|message|>Hel", said("Hel"), { isWhole: false }],
    [
      "cut in a header",
      `${thought}<|start|>assistant<|channel|>fin`,
      { ...said(""), reasoning: "Hm." },
      { isWhole: false },
    ],
  ];
  for (const [name, text, turn, options] of list)
    test(name, () =>
      expect(readTurn("harmony", "harmony", text, { prompt: PROMPT, ...options })).toEqual(turn),
    );

  test("an answer that is continued", () => {
    const prompt = "<|start|>assistant<|channel|>final<|message|>Hel";
    expect(readTurn("harmony", "harmony", "lo.<|return|>", { prompt })).toEqual(said("lo."));
  });
});
