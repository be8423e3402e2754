/** How a parameter is typed in. */
export type ParameterKind = "number" | "integer" | "flag" | "text" | "lines" | "json" | "choice";

/** A field of `/v1/chat/completions` that the user may set; left empty, the server's default holds. */
export interface Parameter {
  readonly name: string;
  readonly label: string;
  readonly kind: ParameterKind;
  readonly hint: string;
  readonly min?: number;
  readonly max?: number;
  readonly step?: number;
  readonly choices?: readonly string[];
  readonly example?: string;
}

export interface ParameterGroup {
  readonly title: string;
  readonly parameters: readonly Parameter[];
}

/** The user's settings of a conversation, as typed. */
export interface Settings {
  readonly system: string;
  /** A served name; empty: the first. */
  readonly model: string;
  /** Ask for the probabilities of each token and of so many others at its place; 0: do not. */
  readonly alternatives: number;
  /** Parameters by their name; those left out are the server's. */
  readonly values: Readonly<Record<string, string>>;
}

export const DEFAULT_SETTINGS: Settings = { system: "", model: "", alternatives: 5, values: {} };

type Bounds = Pick<Parameter, "min" | "max" | "step">;
const number = (name: string, label: string, bounds: Bounds, hint: string): Parameter => ({
  ...{ name, label, kind: "number", hint },
  ...bounds,
});
const integer = (name: string, label: string, hint: string, bounds: Bounds = {}): Parameter => ({
  ...{ name, label, kind: "integer", hint },
  ...bounds,
});
const flag = (name: string, label: string, hint: string): Parameter => ({ name, label, kind: "flag", hint });
const lines = (name: string, label: string, hint: string): Parameter => ({
  name,
  label,
  kind: "lines",
  hint,
});
const json = (name: string, label: string, hint: string, example: string): Parameter => ({
  ...{ name, label, kind: "json", hint, example },
});
const choice = (name: string, label: string, choices: readonly string[], hint: string): Parameter => ({
  ...{ name, label, kind: "choice", hint, choices },
});

const PENALTY = { min: -2, max: 2, step: 0.1 };
const SHARE = { min: 0, max: 1, step: 0.01 };

/** Every field that a chat takes, but for those that the page sets itself. */
export const PARAMETER_GROUPS: readonly ParameterGroup[] = [
  {
    title: "Sampling",
    parameters: [
      number(
        "temperature",
        "Temperature",
        { min: 0, max: 2, step: 0.05 },
        "0 takes the likeliest token each time",
      ),
      number("top_p", "Top p", SHARE, "Draw from the likeliest tokens that make up this share"),
      integer("top_k", "Top k", "Draw from so many of the likeliest tokens; 0: from all", { min: 0 }),
      number("min_p", "Min p", SHARE, "Leave out tokens below this share of the likeliest one's probability"),
      integer("seed", "Seed", "The same seed repeats a reply"),
      integer("n", "Replies", "So many at once, to choose from", { min: 1, max: 16 }),
    ],
  },
  {
    title: "Length and stops",
    parameters: [
      integer("max_tokens", "Most tokens", "Default: what the context holds", { min: 1 }),
      integer("min_tokens", "Fewest tokens", "No end before", { min: 0 }),
      lines("stop", "Stop strings", "One a line"),
      json("stop_token_ids", "Stop tokens", "A list of ids", "[1, 2]"),
      flag("include_stop_str_in_output", "Keep the stop string", "In the reply"),
      flag("ignore_eos", "Ignore the end", "Go on after the model's end-of-text token"),
    ],
  },
  {
    title: "Penalties and bans",
    parameters: [
      number("presence_penalty", "Presence", PENALTY, "For tokens that have come"),
      number("frequency_penalty", "Frequency", PENALTY, "For each time that a token has come"),
      number(
        "repetition_penalty",
        "Repetition",
        { min: 0.5, max: 2, step: 0.05 },
        "Divides the odds of tokens that have come, in the prompt too",
      ),
      json("logit_bias", "Logit bias", "Token id → what is added", '{ "50256": -100 }'),
      json("allowed_token_ids", "Allowed tokens", "Only these ids", "[1, 2, 3]"),
      lines("bad_words", "Bad words", "Never said; one a line"),
    ],
  },
  {
    title: "Thinking",
    parameters: [
      choice(
        "reasoning_effort",
        "Effort",
        ["none", "minimal", "low", "medium", "high", "xhigh"],
        "Handed to the chat template",
      ),
      integer("thinking_token_budget", "Most tokens of thought", "Then the model must reply", { min: 0 }),
      flag("include_reasoning", "Show thoughts", "Off: the reply comes without them"),
    ],
  },
  {
    title: "Form",
    parameters: [
      json("response_format", "Response format", "JSON that keeps to a schema", '{ "type": "json_object" }'),
      json(
        "structured_outputs",
        "Structured outputs",
        "json, regex, choice or grammar",
        '{ "choice": ["yes", "no"] }',
      ),
    ],
  },
  {
    title: "Tools",
    parameters: [
      json(
        "tools",
        "Tools",
        "Functions that the model may call",
        '[{ "type": "function", "function": { "name": "weather", "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } } }]',
      ),
      json("tool_choice", "Tool choice", '"auto", "none", "required" or one function', '"auto"'),
      flag("parallel_tool_calls", "Several calls", "Off: the first only"),
    ],
  },
  {
    title: "Prompt",
    parameters: [
      json(
        "chat_template_kwargs",
        "Template arguments",
        "Handed to the chat template",
        '{ "enable_thinking": false }',
      ),
      json("documents", "Documents", "Handed to the chat template", '[{ "title": "…", "text": "…" }]'),
      integer("truncate_prompt_tokens", "Truncate", "Keep the last tokens only; −1: what fits", { min: -1 }),
      flag("add_special_tokens", "Special tokens", "Add the tokenizer's to the rendered prompt"),
      flag("add_generation_prompt", "Generation prompt", "Begin the model's turn in the prompt"),
      flag("continue_final_message", "Continue", "Go on with the last message instead of answering it"),
      flag("echo", "Echo", "Repeat the final message in the reply"),
      {
        name: "cache_salt",
        label: "Cache salt",
        kind: "text",
        hint: "Prefixes are shared within one salt only",
      },
    ],
  },
  {
    title: "Text",
    parameters: [
      flag("skip_special_tokens", "Skip special tokens", "Leave them out of the text"),
      flag("spaces_between_special_tokens", "Spaces between them", "Where they are shown"),
      integer("stream_interval", "Tokens per event", "After the first", { min: 1 }),
    ],
  },
];

/** Fields that a chat takes and the page does not offer, and why. A test holds that there are no others. */
export const NOT_OFFERED: Readonly<Record<string, string>> = {
  model: "its own control",
  messages: "the conversation",
  stream: "always",
  stream_options: "always with usage",
  logprobs: "its own control",
  top_logprobs: "its own control",
  max_completion_tokens: "the same as max_tokens",
  prompt_logprobs: "cannot be streamed",
  request_id: "for logs of programs",
  return_token_ids: "for programs",
  return_tokens_as_token_ids: "for programs",
  guided_json: "older name of structured_outputs",
  guided_json_object: "older name of structured_outputs",
  guided_regex: "older name of structured_outputs",
  guided_choice: "older name of structured_outputs",
  guided_grammar: "older name of structured_outputs",
  regex: "older name of structured_outputs",
  ebnf: "older name of structured_outputs",
};

/** A parameter's value is not of its kind. */
export class ParameterError extends Error {
  constructor(
    readonly parameter: Parameter,
    message: string,
  ) {
    super(`${parameter.label}: ${message}`);
  }
}

/** The parameter's value in a request, as JSON; undefined: it is left out. @throws ParameterError */
export function parameterJson(parameter: Parameter, typed: string): string | undefined {
  const text = typed.trim();
  if (text === "") return undefined;
  switch (parameter.kind) {
    case "number":
      if (!Number.isFinite(Number(text))) throw new ParameterError(parameter, "must be a number");
      return String(Number(text));
    case "integer":
      // As it stands: seeds have 64 bits, numbers of JavaScript 53.
      if (!/^-?\d+$/.test(text)) throw new ParameterError(parameter, "must be an integer");
      return String(BigInt(text));
    case "flag":
      return text;
    case "lines":
      return JSON.stringify(typed.split("\n").filter((line) => line !== ""));
    case "json":
      try {
        return JSON.stringify(JSON.parse(text));
      } catch (cause) {
        throw new ParameterError(parameter, `must be JSON (${cause instanceof Error ? cause.message : ""})`);
      }
    default:
      return JSON.stringify(text);
  }
}

/** The JSON of a request. @throws ParameterError */
export function requestJson(settings: Settings, messages: readonly object[]): string {
  const fields = new Map<string, string>([
    ["messages", JSON.stringify(messages)],
    ["stream", "true"],
    ["stream_options", '{"include_usage":true}'],
  ]);
  if (settings.model !== "") fields.set("model", JSON.stringify(settings.model));
  for (const parameter of PARAMETER_GROUPS.flatMap(({ parameters }) => parameters)) {
    const json = parameterJson(parameter, settings.values[parameter.name] ?? "");
    if (json !== undefined) fields.set(parameter.name, json);
  }
  // The two exclude each other, as a reply without thoughts has no tokens of them.
  if (settings.alternatives > 0 && fields.get("include_reasoning") !== "false") {
    fields.set("logprobs", "true");
    fields.set("top_logprobs", String(settings.alternatives));
  }
  return `{${Array.from(fields, ([name, json]) => `${JSON.stringify(name)}:${json}`).join()}}`;
}
