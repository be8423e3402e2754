import type { CallDelta, CallSink, Reader, State, Step, ToolFormat, ToolSpec, TurnDelta } from "./format.ts";
import { TrimmedText } from "./trimmed-text.ts";
import { TypedArguments } from "./typed-arguments.ts";

export interface ParserOptions {
  /** The tools of the request. */
  readonly tools?: readonly ToolSpec[];
  /** Markers that are tokens of their own: only as such do they count. Others are found in the text. */
  readonly tokenMarkers?: ReadonlySet<string>;
  /** Deliver the first call only. Default false. */
  readonly firstCallOnly?: boolean;
  /** Names of calls. */
  readonly newId: () => string;
}

/** What was said or thought before decides where text goes that turns out to be nothing else. */
const CONTENT = "content";

/**
 * Reads a turn in the states of its format as the text comes, and hands out what is new. Nothing depends on how the text is
 * cut: a reply that is not streamed is the same text, fed at once.
 */
export class TurnParser implements CallSink {
  readonly #tools: ReadonlyMap<string, ToolSpec>;
  #tokenMarkers: ReadonlySet<string>;
  #state!: State;
  #reader: Reader | undefined;
  /** The state of content or reasoning that was left last. */
  #origin = CONTENT;
  /** The end of the text, as it may begin a marker. */
  #held = "";
  /** The text since it became uncertain if it is a call; undefined while it is certain. */
  #tentative: string | undefined;
  #word = "";
  /** The arguments of the open call, if its format has parameters of bare text and one has come. */
  #typed: TypedArguments | undefined;
  /** Of the open call. */
  #name = "";
  #numCalls = 0;
  #callIsOpen = false;
  #hasArguments = false;
  #hasThought = false;
  #content = new TrimmedText(false);
  #reasoning = new TrimmedText(true);
  #delta = new OpenDelta();

  /** @param beginning the part of the turn that the prompt has, in whose text all markers count. Nothing of it is handed out. */
  constructor(
    private readonly format: ToolFormat,
    private readonly options: ParserOptions,
    beginning = "",
  ) {
    this.#tools = new Map((options.tools ?? []).map((tool) => [tool.name, tool]));
    this.#tokenMarkers = new Set();
    this.#enter(format.start);
    this.push(beginning);
    this.#release();
    if (this.#tentative !== undefined) this.#tentative = "";
    this.#content = new TrimmedText(this.#content.trims);
    this.#reasoning = new TrimmedText(true);
    this.#delta = new OpenDelta();
    this.#tokenMarkers = options.tokenMarkers ?? this.#tokenMarkers;
  }

  /** True while the model thinks. */
  get isReasoning(): boolean {
    return this.#state.text === "reasoning";
  }

  get hasCalls(): boolean {
    return this.#numCalls > 0;
  }

  /** Takes text in. */
  push(text: string): void {
    let rest = this.#held + text;
    this.#held = "";
    while (rest !== "") rest = this.#reader ? this.#read(this.#reader, rest) : this.#scan(rest);
  }

  /** Takes a token in that is a marker of the format. */
  pushMarker(marker: string): void {
    this.#release();
    const step = this.#reader ? undefined : this.#state.on?.[marker];
    if (step === undefined) this.push(marker);
    else {
      const kept = this.#step(step, marker);
      if (kept !== "") this.push(kept);
    }
  }

  /** Hands out what has become certain since the last time. */
  take(): TurnDelta {
    const delta = this.#delta;
    this.#delta = new OpenDelta();
    return delta;
  }

  /**
   * Ends the turn; then `take` has the rest.
   * @param isWhole the model has ended it, so that a call that lacks nothing but its end is complete.
   */
  finish(isWhole: boolean): void {
    this.#release();
    while (this.#tentative !== undefined) this.#fail();
    if (isWhole) this.#closeCall();
    this.#delta.content += this.#content.finish();
    this.#delta.reasoning += this.#reasoning.finish();
  }

  open(name: string): boolean {
    const word = name.trim();
    if (word === "" || (this.format.onlyKnown && !this.#tools.has(word))) return false;
    this.#closeCall();
    const index = this.#numCalls++;
    this.#callIsOpen = true;
    this.#hasArguments = false;
    this.#tentative = undefined;
    this.#content.trims = true;
    this.#content.breakParagraph();
    this.#name = word;
    if (this.#isDelivered)
      this.#delta.calls.push({ index, id: this.options.newId(), name: word, arguments: "" });
    return true;
  }

  arguments(text: string): void {
    if (text === "") return;
    this.#hasArguments = true;
    if (!this.#isDelivered) return;
    const last = this.#delta.calls.at(-1);
    const index = this.#numCalls - 1;
    if (last?.index === index) last.arguments += text;
    else this.#delta.calls.push({ index, arguments: text });
  }

  get #isDelivered(): boolean {
    return this.#numCalls === 1 || !this.options.firstCallOnly;
  }

  #enter(name: string): void {
    const state = this.format.states[name]!;
    this.#state = state;
    this.#reader = typeof state.text === "function" ? state.text(this) : undefined;
    if (state.text === "content" || state.text === "reasoning") this.#origin = name;
    if (state.text === "word") this.#word = "";
    if (state.text === "reasoning") this.#hasThought = true;
    if (state.text === "content" && this.#hasThought) this.#content.trims = true;
    if (!state.tentative) this.#tentative = undefined;
    else this.#tentative ??= "";
  }

  #read(reader: Reader, text: string): string {
    const taken = reader.read(text);
    if (this.#tentative !== undefined) this.#tentative += text.slice(0, taken);
    const rest = text.slice(taken);
    if (reader.status === "failed") this.#fail();
    else if (reader.status === "done") {
      this.#closeCall();
      this.#enter(this.#state.done ?? CONTENT);
    }
    return rest;
  }

  /** Finds the next marker. Returns the text after it; what may begin one is held. */
  #scan(text: string): string {
    const all = Object.keys(this.#state.on ?? {});
    const markers = all.filter((marker) => !this.#tokenMarkers.has(marker));
    if (this.#state.text === "blank") return this.#scanBlank(text, markers);
    let at = text.length;
    let found: string | undefined;
    for (const marker of markers) {
      const index = text.indexOf(marker);
      if (index < 0 || index >= at) continue;
      at = index;
      found = marker;
    }
    if (found === undefined) {
      at -= beginningAtEnd(text, markers);
      this.#held = text.slice(at);
    }
    if (at > 0) this.#place(text.slice(0, at));
    if (found === undefined) return "";
    return this.#step(this.#state.on![found]!, found) + text.slice(at + found.length);
  }

  #scanBlank(text: string, markers: readonly string[]): string {
    const rest = text.trimStart();
    const blank = text.slice(0, text.length - rest.length);
    if (this.#tentative !== undefined) this.#tentative += blank;
    if (rest === "") return "";
    const found = markers.find((marker) => rest.startsWith(marker));
    if (found !== undefined) return this.#step(this.#state.on![found]!, found) + rest.slice(found.length);
    if (markers.some((marker) => marker.startsWith(rest))) {
      this.#held = rest;
      return "";
    }
    this.#fail();
    return rest;
  }

  /** Text that was held may not become a marker any more. */
  #release(): void {
    const text = this.#held;
    this.#held = "";
    if (text === "") return;
    if (this.#state.text !== "blank") this.#place(text);
    else {
      this.#fail();
      this.push(text);
      this.#release();
    }
  }

  /** Puts text where the state says. */
  #place(text: string): void {
    if (this.#tentative !== undefined) this.#tentative += text;
    switch (this.#state.text) {
      case "content":
        this.#delta.content += this.#content.push(text);
        break;
      case "reasoning":
        this.#delta.reasoning += this.#reasoning.push(text);
        break;
      case "word":
        this.#word += text;
        break;
      case "arguments":
        this.arguments(text);
        break;
      case "value":
        this.#typed?.value(text);
        break;
    }
  }

  /** Goes where a marker leads. Returns what of the marker is the beginning of the text there. */
  #step(to: string | Step | ((word: string) => Step), marker: string): string {
    const word = this.#word.trim();
    const step = typeof to === "string" ? { to } : typeof to === "function" ? to(word) : to;
    if (this.#state.text === "value") this.#typed?.end();
    if (step.call === "close") this.#closeCall();
    if (step.call === "open" && !this.open(step.name ?? word)) {
      this.#fail();
      return marker;
    }
    if (step.paragraph) for (const text of [this.#content, this.#reasoning]) text.breakParagraph();
    const collected = (this.#state.text === "word" ? this.#word : "") + marker;
    this.#enter(step.to);
    if (step.collects) this.#word = collected;
    if (this.#state.text === "value") this.#beginParameter(word);
    if (step.keepsMarker) return marker;
    if (this.#tentative !== undefined) this.#tentative += marker;
    return "";
  }

  /** What came is no call: it is said or thought. */
  #fail(): void {
    const text = this.#tentative ?? "";
    const to = this.#state.otherwise ?? this.#origin;
    if (this.format.states[to]?.tentative) {
      this.#enter(to);
      return;
    }
    this.#tentative = undefined;
    if (this.format.states[to]?.text !== "arguments") this.#closeCall();
    this.#enter(to);
    if (text !== "") this.#place(text);
  }

  #beginParameter(name: string): void {
    this.#typed ??= new TypedArguments(this.#tools.get(this.#name)?.parameters, (json) =>
      this.arguments(json),
    );
    this.#typed.begin(name);
  }

  #closeCall(): void {
    if (!this.#callIsOpen) return;
    this.#typed?.close();
    this.#typed = undefined;
    if (!this.#hasArguments) this.arguments("{}");
    this.#callIsOpen = false;
  }
}

class OpenDelta implements TurnDelta {
  content = "";
  reasoning = "";
  readonly calls: CallDelta[] = [];
}

/** The length of the longest end of a text that begins a marker, without being one. */
function beginningAtEnd(text: string, markers: readonly string[]): number {
  let longest = 0;
  for (const marker of markers) {
    for (let length = Math.min(marker.length - 1, text.length); length > longest; length--) {
      if (!text.endsWith(marker.slice(0, length))) continue;
      longest = length;
      break;
    }
  }
  return longest;
}
