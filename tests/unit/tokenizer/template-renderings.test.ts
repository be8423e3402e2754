import { afterAll, beforeAll, describe, expect, setDefaultTimeout, setSystemTime, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseExactJson } from "../../../src/base/exact-json.ts";
import { type ChatMessage, ChatTemplate } from "../../../src/tokenizer/chat-template.ts";

setDefaultTimeout(300_000);

/** What `fixtures/make-renderings.py` has transformers render. */
const FIXTURES = join(import.meta.dir, "fixtures");
const SPECIAL_TOKENS = { bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>", pad_token: "<pad>" };

interface Conversation {
  readonly messages: readonly ChatMessage[];
  readonly tools?: readonly unknown[];
  readonly add_generation_prompt?: boolean;
  readonly continue_final_message?: boolean;
  readonly kwargs?: Readonly<Record<string, unknown>>;
}

const read = (name: string) => readFileSync(join(FIXTURES, name));
const conversations = parseExactJson(read("conversations.json").toString()) as Record<string, Conversation>;
const renderings = JSON.parse(
  new TextDecoder().decode(Bun.gunzipSync(read("renderings.json.gz") as Buffer<ArrayBuffer>)),
) as Record<string, Record<string, string | null>>;

function render(template: ChatTemplate, conversation: Conversation): string {
  const { messages, tools, kwargs, add_generation_prompt: prompt = true } = conversation;
  const end = conversation.continue_final_message
    ? { continueFinalMessage: true }
    : { addGenerationPrompt: prompt };
  return template.render(messages, { ...kwargs, tools, ...end });
}

beforeAll(() => {
  setSystemTime(new Date(2024, 6, 26, 12));
});
afterAll(() => {
  setSystemTime();
});

describe("as transformers renders", () => {
  test.each(Object.keys(renderings))("%s", (name) => {
    const template = new ChatTemplate(read(`templates/${name}.jinja`).toString(), SPECIAL_TOKENS);
    for (const [title, conversation] of Object.entries(conversations)) {
      const expected = renderings[name]![title]!;
      const { messages } = conversation;
      const inParts = messages.some(({ content }) => Array.isArray(content));
      // Octavo renders a content that is missing, and joins parts, where the template could not.
      const isLenient = inParts || messages.some(({ content }) => content === null);
      if (expected === null) {
        if (!isLenient) expect(() => render(template, conversation), title).toThrow();
        continue;
      }
      const rendered = { title, text: render(template, conversation) };
      const joined = inParts
        ? render(template, { ...conversation, messages: messages.map(joinParts) })
        : expected;
      expect([
        { title, text: expected },
        { title, text: joined },
      ]).toContainEqual(rendered);
    }
  });
});

function joinParts(message: ChatMessage): ChatMessage {
  const { content } = message;
  return typeof content === "object" && content !== null
    ? { ...message, content: content.map((part) => part.text).join("\n") }
    : message;
}

describe("as Jinja prints", () => {
  const snippets = JSON.parse(read("snippets.json").toString()) as [string, string | null][];
  // A template must render the user's message that it is tried with, and none of these snippets looks at it.
  const wrap = (source: string) => `{% if messages | length == 0 %}${source}{% endif %}`;
  test.each(snippets)("%s", (source, expected) => {
    const print = () => new ChatTemplate(wrap(source)).render([]);
    if (expected === null) expect(print).toThrow();
    else expect(print()).toBe(expected);
  });
});
