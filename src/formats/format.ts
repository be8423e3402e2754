import type { Mark, WrittenCalls } from "./written-turn.ts";

/** A function that the model may call, as far as its calls must be read. */
export interface ToolSpec {
  readonly name: string;
  /** JSON schema of the arguments; undefined: none was given. */
  readonly parameters: Readonly<Record<string, unknown>> | undefined;
}

/** New text of one tool call. Concatenated by `index`, the pieces are the call. */
export interface CallDelta {
  /** Place among the calls of the turn, from 0 without gaps. */
  readonly index: number;
  /** With the first piece of the call only. */
  readonly id?: string;
  readonly name?: string;
  /** JSON text. */
  arguments: string;
}

/** New parts of a turn: what the model says, thinks and calls. */
export interface TurnDelta {
  readonly content: string;
  readonly reasoning: string;
  /** At most one of each index, in order. */
  readonly calls: readonly CallDelta[];
}

/** Takes the calls that a reader finds. */
export interface CallSink {
  /** Begins a call. False if that cannot be one: nothing has happened then. */
  open(name: string): boolean;
  /** Adds JSON text to the arguments of the call that was begun last. */
  arguments(text: string): void;
}

/** Reads text with a structure of its own, such as JSON. What it does depends on the characters, not on how they are cut. */
export interface Reader {
  readonly status: "reading" | "done" | "failed";
  /** Takes text in; returns how many UTF-16 units of it: all, unless it is done or has failed. Text is cut between code points. */
  read(text: string): number;
}

/**
 * The place of a state's text that is no marker:
 * - "content", "reasoning": the turn's;
 * - "blank": white space, which is dropped. Anything else leads to `otherwise`;
 * - "ignored": nowhere;
 * - "word": kept for the step that leaves the state, trimmed: a name, or a header;
 * - "arguments": the open call's, as it stands;
 * - "value": the value of the parameter that the word before it names, converted as the tool's schema says.
 */
export type TextPlace = "content" | "reasoning" | "blank" | "ignored" | "word" | "arguments" | "value";

/** The way from one state to another. */
export interface Step {
  readonly to: string;
  /** The marker is the beginning of the next state's text. Default false: it is consumed. */
  readonly keepsMarker?: boolean;
  /** The marker becomes part of the word, which the next state goes on with. Default false. */
  readonly collects?: boolean;
  /** "open": a call begins. "close": it is complete. */
  readonly call?: "open" | "close";
  /** The tool of a call that begins. Default: the word. */
  readonly name?: string;
  /** What is said or thought next is a paragraph of its own. Default false. */
  readonly paragraph?: boolean;
}

export interface State {
  readonly text: TextPlace | ((sink: CallSink) => Reader);
  /** Markers that lead on. None is the beginning of another of the same state. */
  readonly on?: Readonly<Record<string, string | Step | ((word: string) => Step)>>;
  /** Where a reader that is done leads. */
  readonly done?: string;
  /** Where text leads that is not blank, or that the reader does not take. Default: to what was said or thought before. */
  readonly otherwise?: string;
  /**
   * It is not certain yet that there is a call: the text is kept until one begins or a marker leads to a state that is
   * certain, and if it comes otherwise, it is said or thought. Default false.
   */
  readonly tentative?: boolean;
  /**
   * A "blank" state after the marker that ends a value. It does only if one of this state's markers follows, or the end of the turn;
   * otherwise it is a part of the value, which goes on in this state.
   */
  readonly endsValue?: string;
}

/** The form of a turn: the states of a machine that reads it. It has a state "content". */
export interface TurnFormat {
  readonly start: string;
  readonly states: Readonly<Record<string, State>>;
}

/** The form in which a model calls tools. */
export interface ToolFormat extends TurnFormat {
  /** The way in which calls are written, for turns that are held to it. Default: there are none, or it is one of a turn's own. */
  readonly written?: (mark: Mark) => WrittenCalls;
  /** Calls of tools that the request does not have are none: the form has no marker, so that other text may look like it. */
  readonly onlyKnown?: boolean;
  /** How calls are named. Default "call": `call_` and 24 random characters. "short": 9 letters and digits, as Mistral's templates ask. */
  readonly ids?: "call" | "short";
}

/** The form in which a model thinks before it answers. */
export interface ReasoningFormat {
  readonly open: string;
  /** A line after `open` that is no thought. */
  readonly header?: string;
  readonly close: string;
  /** The turn begins with reasoning, `open` or not, unless the prompt has closed it. Default false: `open` must come first. */
  readonly startsInside?: boolean;
}

/** The markers of a format. */
export function markersOf({ states }: TurnFormat): ReadonlySet<string> {
  return new Set(Object.values(states).flatMap(({ on }) => Object.keys(on ?? {})));
}
