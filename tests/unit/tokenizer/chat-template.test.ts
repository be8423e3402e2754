import { describe, expect, spyOn, test } from "bun:test";
import { ChatTemplateError, InvalidRequestError, ModelDataError } from "../../../src/base/errors.ts";
import { type ChatMessage, ChatTemplate, type RenderOptions } from "../../../src/tokenizer/chat-template.ts";
import { cpuClock, thrown } from "../../support.ts";
import { tokenizers } from "./models.ts";

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
    ["documents", "{{ documents is none }}{{ tools is none }}", "truetrue"],
    [
      "parts where the template iterates",
      "{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}",
      "[Hi]",
    ],
    [
      "parts through a variable",
      "{% set c = messages[0]['content'] %}{% for p in c %}{{ p.type }}{% endfor %}",
      "text",
    ],
    ["break", "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"],
  ])("%s", (_, source, expected) => {
    expect(new ChatTemplate(source).render([user("Hi")])).toBe(expected);
  });

  test("a content that is missing is empty, or none where the template asks", () => {
    const call: ChatMessage = { role: "assistant", content: null };
    expect(new ChatTemplate("[{{ messages[0].content + '' }}]").render([call])).toBe("[]");
    expect(new ChatTemplate("{{ messages[0].content is none }}").render([call])).toBe("true");
  });

  test("fields that are null or empty do not reach the template", () => {
    const message = { ...user("Hi"), name: null, tool_calls: [] };
    const source = "{{ 'name' in messages[0] }} {{ 'tool_calls' in messages[0] }}";
    expect(new ChatTemplate(source).render([message])).toBe("false false");
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
    ["raise_exception", "{{ raise_exception('roles must alternate') }}", "roles must alternate"],
    ["an unknown function", "{{ nope() }}", "Cannot call"],
    ["a message it does not render", "nothing", "final message"],
  ])("%s", (_, source, message) => {
    const render = () => new ChatTemplate(source).render([assistant("a")], { continueFinalMessage: true });
    expect(render).toThrow(ChatTemplateError);
    expect(render).toThrow(message);
  });
});

describe("hostile templates end within their limits", () => {
  const twice = (count: number) => "{% set s = s ~ s %}".repeat(count);
  const half = `{% set s = 'x' %}${twice(19)}`;
  const blanks = `{% set s = ' ' %}${twice(19)}`;
  const list = "{% set l = range(30000) %}";
  const laughs = `{% set a = ['lol'] %}${"{% set a = [a, a, a, a, a, a, a, a, a, a] %}".repeat(12)}`;
  const loop = (body: string) => `{% for i in range(30000) %}${body}{% endfor %}`;

  /** Refused for that reason, with no need of the clock; a generous limit on the time that takes. */
  const refused = (source: string, reason: string) => {
    const template = new ChatTemplate(source);
    const spent = cpuClock();
    const failure = thrown(() => template.render([user("Hi")]));
    expect(spent()).toBeLessThan(2);
    expect(failure).toBeInstanceOf(ChatTemplateError);
    expect((failure as Error).message).toBe(`the template ${reason}`);
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
    ["lists compared", `${list}${loop("{% if l == 'x' %}{% endif %}")}`],
    ["lists sorted", `${list}${loop("{% set x = l|sort %}")}`],
    ["lists unpacked", `${list}{% macro f() %}{{ varargs|length }}{% endmacro %}${loop("{{ f(*l) }}")}`],
    ["texts searched", `${half}${loop("{% if 'xy' in s %}{% endif %}")}`],
    ["texts tested", `${half}${loop("{% if s is upper %}{% endif %}")}`],
    ["texts converted", `${half}${loop("{% if s|upper|length %}{% endif %}")}`],
    ["texts stripped", `${blanks}${loop("{% set x = s.strip() %}")}`],
    ["a method, kept", `${blanks}{% set f = s.strip %}${loop("{% set x = f() %}")}`],
    ["texts sliced", `${half}${loop("{% set x = s[5:6] %}")}`],
    ["output", `${half}${loop("{{ s }}")}`],
    ["a filtered block", `${half}{% filter upper %}${"{{ s }}".repeat(5000)}{% endfilter %}`],
    ["a captured block", `${half}{% set q %}${"{{ s }}".repeat(5000)}{% endset %}{{ q|upper|length }}`],
  ])("too many steps: %s", (_, source) => refused(source, "takes more than 1048576 steps"));

  test.each([
    [
      "doubling",
      "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s|length }}",
    ],
    ["a long range", "{{ range(10000000)|length }}"],
    ["shared lists as JSON", `${laughs}{{ a|tojson|length }}`],
    ["shared lists compared", `${laughs}{{ a == 'x' }}`],
    ["replace", `${half}{{ s.replace('x', s)|length }}`],
    ["replace, kept", `${half}{% set f = s.replace %}{{ f('', s)|length }}`],
    ["the replace filter", `${half}{{ s|replace('x', s)|length }}`],
    ["join", `${half}{{ range(9999)|join(separator=s)|length }}`],
    ["join, unpacked", `${half}{{ range(9999)|join(*[s])|length }}`],
    ["indent", "{{ 'a\\nb'|indent(1000000000)|length }}"],
    ["indented JSON", "{{ range(9999)|tojson(indent=1000000)|length }}"],
    ["separators", `${half}{{ range(9999)|tojson(separators=(s, s))|length }}`],
  ])("too large a value: %s", (_, source) => refused(source, "makes a value that is too large"));

  test("endless recursion", () => {
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests more than 512 deep");
  });

  test("a namespace in itself", () => {
    const template = new ChatTemplate("{% set n = namespace() %}{% set n.n = n %}{{ n }}");
    expect(() => template.render([user("Hi")])).toThrow("a namespace cannot be an element");
  });

  test("the clock ends what the limits let pass", () => {
    const now = performance.now();
    using clock = spyOn(performance, "now");
    for (let i = 0; i < 100; i++) clock.mockImplementationOnce(() => now);
    clock.mockImplementation(() => now + 11_000);
    refused(loop(""), "ran for over 10000 ms");
  });

  test("a long conversation is within them", () => {
    const messages = Array.from({ length: 2000 }, (_, i) => (i % 2 ? assistant : user)("words ".repeat(50)));
    expect(qwen3.render(messages).length).toBeGreaterThan(2000 * 300);
  });
});
