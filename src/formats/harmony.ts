import type { TextShape } from "../grammar/text-shape.ts";
import type { Step, ToolFormat } from "./format.ts";
import {
  freeText,
  inSequence,
  jsonArguments,
  type Mark,
  oneOfThese,
  type TurnDemands,
  written,
} from "./written-turn.ts";

const START = "<|start|>";
const CHANNEL = "<|channel|>";
const CONSTRAIN = "<|constrain|>";
const MESSAGE = "<|message|>";

const HEADER: Step = { to: "header", collects: true };
const ENDS = { "<|end|>": "between", "<|return|>": "between", "<|call|>": "between", [START]: "header" };

/** Tokens that end the turn, whether or not the model's configuration says so. */
export const HARMONY_STOPS: readonly string[] = ["<|return|>", "<|call|>"];

/** Where a message's text goes, by its header, such as `assistant<|channel|>commentary to=functions.f <|constrain|>json`. */
function body(header: string): Step {
  const channel = /<\|channel\|>\s*(\w+)/.exec(header)?.[1];
  const recipient = /\bto=([^\s<]+)/.exec(header)?.[1];
  const tool = /^functions\.(.+)/.exec(recipient ?? "")?.[1];
  if (tool !== undefined) return { to: "tool", call: "open", name: tool };
  // Tools of the model's own are part of its thoughts, as nobody else can answer them.
  const isThought = channel === "analysis" || recipient !== undefined;
  return { to: isThought ? "reasoning" : "content", paragraph: true };
}

/**
 * gpt-oss: messages of channels. `<|channel|>analysis<|message|>…<|end|>` is thought, the channels `final` and, to nobody,
 * `commentary` are said, `<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>`
 * is a call. The prompt ends within the first header.
 */
export const HARMONY: ToolFormat = {
  start: "beginning",
  states: {
    beginning: { text: "blank", on: { [START]: "first", [CHANNEL]: HEADER }, otherwise: "content" },
    // Text without any channel may be all that comes.
    first: { text: "word", on: { [CHANNEL]: HEADER, [MESSAGE]: body }, tentative: true },
    between: { text: "blank", on: { [START]: "header", [CHANNEL]: HEADER }, otherwise: "content" },
    header: { text: "word", on: { [CHANNEL]: HEADER, [CONSTRAIN]: HEADER, [MESSAGE]: body } },
    content: { text: "content", on: ENDS },
    reasoning: { text: "reasoning", on: ENDS },
    tool: { text: "arguments", on: ENDS },
  },
};

/** The same where no call counts as one: it is said. */
export const HARMONY_WITHOUT_CALLS: ToolFormat = {
  ...HARMONY,
  states: { ...HARMONY.states, tool: HARMONY.states["content"]! },
};

/** The beginning of the turn, which the prompt has: what follows its last `<|start|>`. */
export function harmonyBegun(prompt: string): string {
  const at = prompt.lastIndexOf(START);
  return at < 0 ? "" : prompt.slice(at);
}

const END = "<|end|>";
const ASSISTANT = "assistant";

/**
 * A turn in this form: thoughts and preambles, and then a call or what is said at last. Its last message is left open: the token that
 * ends it ends the turn.
 * @param begun as `harmonyBegun` has it; behind the header of a message only what is said may come.
 */
export function harmonyShape(demands: TurnDemands, mark: Mark, begun: string): TextShape {
  const { tools, mustCall, answer } = demands;
  const [channel, message] = [mark(CHANNEL), mark(MESSAGE)];
  const any = freeText(mark, Object.keys(ENDS));
  if (begun.includes(CHANNEL)) return answer ?? any;
  const before = (name: string) =>
    inSequence(channel, written(name), message, any, mark(END), mark(START), written(ASSISTANT));
  const called = tools.map((tool) => {
    const header = written(`commentary to=functions.${tool.name} `);
    return inSequence(channel, header, mark(CONSTRAIN), written("json"), message, jsonArguments(tool));
  });
  const json = oneOfThese(inSequence(written(" "), mark(CONSTRAIN), written("json")), written(""));
  const said = inSequence(channel, written("final"), ...(answer ? [json] : []), message, answer ?? any);
  const first = oneOfThese(
    before("analysis"),
    ...(tools.length > 0 && !mustCall ? [before("commentary")] : []),
  );
  const some: TextShape = { kind: "repeat", part: first, separator: written("") };
  return inSequence(oneOfThese(some, written("")), oneOfThese(...(mustCall ? [] : [said]), ...called));
}
