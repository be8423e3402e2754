import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { ChatTemplateError, InvalidRequestError, ModelDataError } from "../../../src/base/errors.ts";
import { parseExactJson } from "../../../src/base/exact-json.ts";
import { type ChatMessage, ChatTemplate, type RenderOptions } from "../../../src/tokenizer/chat-template.ts";
import { cpuClock, thrown } from "../../support.ts";
import { tokenizers } from "./models.ts";

setDefaultTimeout(300_000);

const of = (name: keyof typeof tokenizers) =>
  new ChatTemplate(tokenizers[name].chatTemplate!, tokenizers[name].specialTokens);
const qwen3 = of("qwen3");
const chatml = of("tinyStories");
const user = (content: string): ChatMessage => ({ role: "user", content });
const assistant = (content: string): ChatMessage => ({ role: "assistant", content });
const turn = (role: string, content: string) => `<|im_start|>${role}\n${content}<|im_end|>\n`;
const prompt = "<|im_start|>assistant\n";

describe("renders", () => {
  test.each<[string, ChatTemplate, ChatMessage[], RenderOptions, string]>([
    ["ChatML", chatml, [user("Hi")], {}, turn("user", "Hi") + prompt],
    ["Qwen3", qwen3, [user("Hi")], {}, turn("user", "Hi") + prompt],
    ["no prompt", qwen3, [user("Hi")], { addGenerationPrompt: false }, turn("user", "Hi")],
    [
      "no thinking",
      qwen3,
      [user("Hi")],
      { enable_thinking: false },
      `${turn("user", "Hi")}${prompt}<think>\n\n</think>\n\n`,
    ],
    [
      "thoughts of earlier turns are left out",
      qwen3,
      [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")],
      {},
      turn("user", "a") + turn("assistant", "b") + turn("user", "c") + prompt,
    ],
    [
      "text parts",
      chatml,
      [
        {
          role: "user",
          content: [
            { type: "text", text: "a" },
            { type: "text", text: "b" },
          ],
        },
      ],
      {},
      turn("user", "a\nb") + prompt,
    ],
    [
      "continue",
      chatml,
      [user("a"), assistant("Once ")],
      { continueFinalMessage: true },
      `${turn("user", "a")}${prompt}Once `,
    ],
    [
      "continue nothing",
      chatml,
      [user("a"), assistant("")],
      { continueFinalMessage: true },
      turn("user", "a") + prompt,
    ],
    [
      "continue, the same text twice",
      qwen3,
      [user("yes"), assistant("yes")],
      { continueFinalMessage: true },
      `${turn("user", "yes")}${prompt}<think>\n\n</think>\n\nyes`,
    ],
  ])("%s", (_, template, messages, options, expected) => {
    expect(template.render(messages, options)).toBe(expected);
  });

  test("tools, calls and responses", () => {
    const tool = {
      type: "function",
      function: { name: "add", parameters: { type: "object", é: [1.5, true, null] } },
    };
    const call = { id: "1", type: "function", function: { name: "add", arguments: '{"a": 1, "b": [2]}' } };
    const rendered = qwen3.render(
      [
        user("1+2?"),
        { role: "assistant", content: null, tool_calls: [call] },
        { role: "tool", content: "3" },
      ],
      { tools: [tool] },
    );
    expect(rendered).toContain(
      '<tools>\n{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "é": [1.5, true, null]}}}\n</tools>',
    );
    expect(rendered).toContain('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>');
    expect(rendered).toEndWith(`${turn("user", "<tool_response>\n3\n</tool_response>")}${prompt}`);
  });

  test("Llama 3.2: special tokens and the date", () => {
    const rendered = of("llama32").render([user("Hi")], { date_string: "26 Jul 2024" });
    expect(rendered).toStartWith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>");
    expect(rendered).toContain("Today Date: 26 Jul 2024");
    expect(rendered).toEndWith("<|start_header_id|>assistant<|end_header_id|>\n\n");
  });

  test.each<[string, string, string]>([
    ["strftime_now", "{{ strftime_now('%Y %% %q') }}", `${new Date().getFullYear()} % %q`],
    ["tojson", "{{ {'a': [1, 'é<']}|tojson }}", '{"a": [1, "é<"]}'],
    ["tojson, indented", "{{ [1, {'a': 2}]|tojson(indent=2) }}", '[\n  1,\n  {\n    "a": 2\n  }\n]'],
    ["range", "{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}", "531"],
    [
      "replace, kept and called",
      "{% set f = 'aXa'.replace %}{{ f('a', 'bc') }}{{ 'aa'|replace('a', '') }}",
      "bcXbc",
    ],
    ["filter block", "{% filter upper %}a{{ 'b' }}{% endfilter %}", "AB"],
    ["join", "{{ ['a', 'b']|join(', ') }}", "a, b"],
    ["generation block", "{% generation %}x{% endgeneration %}", "x"],
    [
      "strip",
      "[{{ '  \\na '.lstrip() }}][{{ ' \\na\\n '.strip('\\n ') }}][{{ '\\n a\\n'.lstrip('\\n').rstrip('x') }}]",
      "[a ][a][ a\n]",
    ],
    ["documents", "{{ documents is none }}{{ tools is none }}", "TrueTrue"],
    [
      "parts where the template iterates",
      "{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}",
      "[Hi]",
    ],
    [
      "parts through a variable",
      "{% set c = messages[0]['content'] %}{% for p in c %}{{ p.type }}{{ p.text }}{% endfor %}",
      "textHi",
    ],
    ["break", "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"],
  ])("%s", (_, source, expected) => {
    expect(new ChatTemplate(source).render([user("Hi")])).toBe(expected);
  });

  test("a content that is missing is empty, or none where the template asks", () => {
    const call: ChatMessage = { role: "assistant", content: null };
    expect(new ChatTemplate("[{{ messages[0].content + '' }}]").render([call])).toBe("[]");
    expect(new ChatTemplate("{{ messages[0].content is none }}").render([call])).toBe("True");
  });

  test("content is a text unless the template needs parts, whatever it calls its variables", () => {
    const alias = "{% set tool_calls = messages[0].content %}{% for call in tool_calls %}{% endfor %}";
    expect(new ChatTemplate(`${alias}{{ messages[0].content }}`).render([user("Hi")])).toBe("Hi");
    const either =
      "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}{{ messages[0].content[0].text }}{% endif %}";
    expect(new ChatTemplate(`${either}{{ messages[0].content is string }}`).render([user("Hi")])).toBe(
      "HiTrue",
    );
    const parts = [
      { type: "text", text: "a" },
      { type: "text", text: "b" },
    ] as const;
    const turn: ChatMessage = { role: "user", content: parts };
    expect(new ChatTemplate(either).render([turn])).toBe("a");
    expect(new ChatTemplate("{{ messages[0].content }}").render([turn])).toBe("a\nb");
  });

  test("an empty content stays empty, and a system message with it", () => {
    const source =
      "{% for m in messages %}{{ m.role }}={{ m.content is none }}{{ m.content == '' }};{% endfor %}";
    const conversation = [{ role: "system", content: "" }, assistant("")];
    expect(new ChatTemplate(source).render(conversation)).toBe("system=FalseTrue;assistant=FalseTrue;");
  });

  test("numbers keep their spelling", () => {
    const json =
      '{"a": 1.0, "b": [1e3, 9007199254740993, -9223372036854775808, 0.10, 1], "c": -0.0, "d": 1e-7, "e": 1e16}';
    const arguments_ = {
      role: "assistant",
      content: "",
      tool_calls: [{ function: { name: "f", arguments: json } }],
    };
    const printed =
      '{"a": 1.0, "b": [1000.0, 9007199254740993, -9223372036854775808, 0.1, 1], "c": -0.0, "d": 1e-07, "e": 1e+16}';
    const template = new ChatTemplate(
      "{{ (tools or [messages[0].tool_calls[0].function.arguments])[0] | tojson }}",
    );
    expect(template.render([arguments_])).toBe(printed);
    expect(
      template.render([user("Hi")], { tools: structuredClone([parseExactJson(json)]) as unknown[] }),
    ).toBe(printed);
  });

  test("fields that are null or empty do not reach the template", () => {
    const message = { ...user("Hi"), name: null, tool_calls: [] };
    const source = "{{ 'name' in messages[0] }} {{ 'tool_calls' in messages[0] }}";
    expect(new ChatTemplate(source).render([message])).toBe("False False");
  });

  test("continuing a trimmed message cuts the blanks", () => {
    const template = new ChatTemplate("{{ messages[-1].content | trim }}<end>");
    expect(template.render([assistant("a  ")], { continueFinalMessage: true })).toBe("a");
  });
});

describe("refuses", () => {
  test.each<[string, ChatMessage[], RenderOptions, string]>([
    [
      "both ways to end",
      [user("a")],
      { addGenerationPrompt: true, continueFinalMessage: true },
      "continueFinalMessage",
    ],
    ["continuing nothing", [], { continueFinalMessage: true }, "messages"],
    ["images", [{ role: "user", content: [{ type: "image_url" }] as never }], {}, "messages"],
    ["a reserved variable", [user("a")], { messages: [] }, "chatTemplateKwargs"],
    [
      "arguments that are not JSON",
      [{ role: "assistant", tool_calls: [{ function: { arguments: "{" } }] }],
      {},
      "messages",
    ],
  ])("%s", (_, messages, options, param) => {
    expect(() => qwen3.render(messages, options)).toThrow(expect.objectContaining({ param }) as Error);
    expect(() => qwen3.render(messages, options)).toThrow(InvalidRequestError);
  });

  test.each(["{% if %}", "{{ 'a", `{{ ${"(".repeat(2 ** 17)}`, "\n".repeat(2 ** 16), "a".repeat(2 ** 19)])(
    "a source that does not parse (%#)",
    (source) => {
      const spent = cpuClock();
      expect(() => new ChatTemplate(source)).toThrow(ModelDataError);
      expect(spent()).toBeLessThan(1);
    },
  );

  test.each([
    ["what the template refuses", "{{ raise_exception('roles must alternate') }}", "roles must alternate"],
    ["an unknown function", "{{ nope() }}", "'nope' is undefined"],
    ["a message it does not render", "nothing", "final message"],
  ])("%s", (_, source, message) => {
    const template = new ChatTemplate(`{% if messages[0].content.startswith('a') %}${source}{% endif %}`);
    const render = () => template.render([assistant("a")], { continueFinalMessage: true });
    expect(render).toThrow(ChatTemplateError);
    expect(render).toThrow(message);
  });
});

test("a message's fields keep the client's order", () => {
  const template = new ChatTemplate("{{ messages[0] | tojson }}", {}, "template");
  const message = { role: "tool", content: "c", tool_call_id: "1", name: "n" };
  expect(template.render([message])).toBe(JSON.stringify(message).replace(/([:,])/g, "$1 "));
});

describe("hostile templates end within their limits", () => {
  const twice = (count: number) => "{% set s = s ~ s %}".repeat(count);
  const half = `{% set s = 'x' %}${twice(19)}`;
  const blanks = `{% set s = ' ' %}${twice(19)}`;
  const list = "{% set l = range(30000) %}";
  const laughs = `{% set a = ['lol'] %}${"{% set a = [a, a, a, a, a, a, a, a, a, a] %}".repeat(12)}`;
  const loop = (body: string) => `{% for i in range(30000) %}${body}{% endfor %}`;

  /** Refused for that reason: when it is loaded, and where it does not show then, when it renders. */
  const refused = (source: string, reason: string) => {
    const spent = cpuClock();
    const loading = thrown(() => new ChatTemplate(source, {}, "folder/chat_template.jinja"));
    const hidden = new ChatTemplate(`{% if messages | length == 0 %}${source}{% endif %}`);
    const rendering = thrown(() => hidden.render([]));
    expect(spent()).toBeLessThan(4);
    expect(loading).toBeInstanceOf(ModelDataError);
    expect((loading as Error).message).toStartWith("folder/chat_template.jinja: ");
    expect((loading as Error).message).toContain(`the template ${reason}`);
    expect(rendering).toBeInstanceOf(ChatTemplateError);
    expect((rendering as Error).message).toContain(`the template ${reason}`);
  };

  test.each([
    ["nested loops", loop(loop("{{ i }}"))],
    ["empty loops", loop(loop(""))],
    ["loops that are left", `${list}${loop("{% for j in l %}{% break %}{% endfor %}")}`],
    [
      "a tree of calls",
      "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
    ["macros in a loop", loop(`{% macro f() %}${"{{ a }}".repeat(30_000)}{% endmacro %}`)],
    ["unknown names", loop(loop("{{ nothing }}"))],
    ["many ranges", loop("{% set x = range(30000) %}")],
    ["lists searched", `${list}${loop("{% if 'x' in l %}{% endif %}")}`],
    ["lists compared", `${list}{% set m = range(30000) %}${loop("{% if l == m %}{% endif %}")}`],
    ["lists sorted", `${list}${loop("{% set x = l|sort %}")}`],
    ["lists unpacked", `${list}{% macro f() %}{{ varargs|length }}{% endmacro %}${loop("{{ f(*l) }}")}`],
    ["texts searched", `${half}${loop("{% if 'xy' in s %}{% endif %}")}`],
    ["texts tested", `${half}${loop("{% if s is upper %}{% endif %}")}`],
    ["texts converted", `${half}${loop("{% if s|upper|length %}{% endif %}")}`],
    ["texts stripped", `${blanks}${loop("{% set x = s.strip() %}")}`],
    ["a method, kept", `${blanks}{% set f = s.strip %}${loop("{% set x = f() %}")}`],
    ["texts sliced", `${half}${loop("{% set x = s[5:6] %}")}`],
    ["shared lists as JSON", `${laughs}{{ a|tojson|length }}`],
    ["shared lists compared", `${laughs}{% set b = a %}${laughs}{{ a == b }}`],
    ["output", `${half}${loop("{{ s }}")}`],
    ["a filtered block", `${half}{% filter upper %}${"{{ s }}".repeat(5000)}{% endfilter %}`],
    ["a captured block", `${half}{% set q %}${"{{ s }}".repeat(5000)}{% endset %}{{ q|upper|length }}`],
  ])("too many steps: %s", (_, source) => refused(source, "takes more than"));

  test.each([
    [
      "doubling",
      "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s|length }}",
    ],
    ["replace", `${half}{{ s.replace('x', s)|length }}`],
    ["replace, kept", `${half}{% set f = s.replace %}{{ f('', s)|length }}`],
    ["the replace filter", `${half}{{ s|replace('x', s)|length }}`],
    ["join", `${half}{{ range(9999)|join(d=s)|length }}`],
    ["join, unpacked", `${half}{{ range(9999)|join(*[s])|length }}`],
    ["indent", "{{ 'a\\nb'|indent(1000000000)|length }}"],
    ["indented JSON", "{{ range(9999)|list|tojson(indent=1000000)|length }}"],
    ["separators", `${half}{{ range(9999)|list|tojson(separators=(s, s))|length }}`],
  ])("too long a text: %s", (_, source) => refused(source, "makes a text that is too long"));

  test("endless recursion", () => {
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests more than 512 deep");
  });

  test.each([
    [
      "a namespace in itself",
      "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
      "nests more than 128 deep",
    ],
    ["a long range", "{{ range(10000000)|length }}", "cannot be longer than 100000"],
    ["a large integer", "{{ 7 ** 99999999 }}", "more than 256 bits"],
    ["a list that would change", "{{ messages.append(1) }}", "would change a value"],
    [
      "JavaScript",
      "{{ messages.constructor.constructor('return process')() }}",
      "no attribute 'constructor'",
    ],
    ["a prototype", "{{ messages['__proto__']['toString']() }}", "no attribute '__proto__'"],
    ["every conversation refused", "{{ raise_exception('no') }}", "renders no conversation: no"],
  ])("%s", (_, source, reason) => {
    const load = () => new ChatTemplate(source, {}, "folder/tokenizer_config.json");
    expect(load).toThrow(ModelDataError);
    expect(load).toThrow(reason);
    expect(load).toThrow("folder/tokenizer_config.json");
  });

  test.each([
    ["a system message", "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"],
    [
      "an answer at the end",
      "{% if messages[-1].role != 'assistant' %}{{ raise_exception('no') }}{% endif %}",
    ],
    ["tools", "{% for tool in tools %}{{ tool.function.name }}{% endfor %}"],
    ["a variable of the request's", "{{ functions + 'x' }}"],
    ["contents in parts", "{{ messages[0].content[0].text + 'x' }}"],
  ])("a template that wants %s is none of them", (_, source) => {
    expect(new ChatTemplate(source)).toBeInstanceOf(ChatTemplate);
  });

  test("a long conversation is within them", () => {
    const messages = Array.from({ length: 2000 }, (_, i) => (i % 2 ? assistant : user)("words ".repeat(50)));
    expect(qwen3.render(messages).length).toBeGreaterThan(2000 * 300);
  });
});

test("a template that joins arguments to its text gets them as text", () => {
  const source =
    "{% for call in messages[0].tool_calls %}{{ 'call ' + call.function.arguments }}{% endfor %}";
  const template = new ChatTemplate(`{{ messages[0].content or '' }}${source}`);
  const call = (json: unknown) => ({ type: "function", function: { name: "f", arguments: json } });
  const assistant = (json: unknown) => ({ role: "assistant", content: null, tool_calls: [call(json)] });
  expect(template.render([assistant('{"a": 1.0}')])).toBe('call {"a": 1.0}');
  expect(thrown(() => template.render([assistant({ a: 1 })]))).toBeInstanceOf(ChatTemplateError);
});
