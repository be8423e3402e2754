import { type CallOptions, CallWriter } from "./call-writer.ts";
import type { CallSink, Reader, State, Step, ToolFormat, TurnDelta } from "./format.ts";
import { TrimmedText } from "./trimmed-text.ts";

export interface ParserOptions extends Omit<CallOptions, "onlyKnown"> {
  /** Markers that are tokens of their own: only as such do they count. Others are found in the text. */
  readonly tokenMarkers?: ReadonlySet<string>;
}

/** What was said or thought before decides where text goes that turns out to be nothing else. */
const CONTENT = "content";

/**
 * Reads a turn in the states of its format as the text comes, and hands out what is new. Nothing depends on how the text is
 * cut: a reply that is not streamed is the same text, fed at once.
 */
export class TurnParser {
  readonly #calls: CallWriter;
  readonly #sink: CallSink;
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
  #hasThought = false;
  #content = new TrimmedText(false);
  #reasoning = new TrimmedText(true);
  #said = "";
  #thought = "";

  /** @param beginning the part of the turn that the prompt has, in whose text all markers count. Nothing of it is handed out. */
  constructor(
    private readonly format: ToolFormat,
    options: ParserOptions,
    beginning = "",
  ) {
    this.#calls = new CallWriter({ ...options, onlyKnown: format.onlyKnown === true });
    this.#sink = {
      open: (name) => this.#open(name),
      arguments: (text) => this.#calls.arguments(text),
    };
    this.#tokenMarkers = new Set();
    this.#enter(format.start);
    this.push(beginning);
    this.#release();
    if (this.#tentative !== undefined) this.#tentative = "";
    this.#content = new TrimmedText(this.#content.trims);
    this.#reasoning = new TrimmedText(true);
    this.take();
    this.#tokenMarkers = options.tokenMarkers ?? this.#tokenMarkers;
  }

  /** True while the model thinks. */
  get isReasoning(): boolean {
    return this.#state.text === "reasoning";
  }

  get hasCalls(): boolean {
    return this.#calls.count > 0;
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
    const delta = { content: this.#said, reasoning: this.#thought, calls: this.#calls.take() };
    this.#said = "";
    this.#thought = "";
    return delta;
  }

  /**
   * Ends the turn; then `take` has the rest.
   * @param isWhole the model has ended it, so that a call that lacks nothing but its end is complete.
   */
  finish(isWhole: boolean): void {
    this.#release();
    if (this.#state.endsValue !== undefined) {
      this.#calls.endParameter();
      this.#tentative = undefined;
    }
    while (this.#tentative !== undefined) this.#fail();
    if (isWhole) this.#calls.close();
    this.#said += this.#content.finish();
    this.#thought += this.#reasoning.finish();
  }

  #open(name: string): boolean {
    if (!this.#calls.open(name)) return false;
    this.#tentative = undefined;
    this.#content.trims = true;
    this.#content.breakParagraph();
    return true;
  }

  #enter(name: string): void {
    const state = this.format.states[name]!;
    this.#state = state;
    this.#reader = typeof state.text === "function" ? state.text(this.#sink) : undefined;
    if (state.text === "content" || state.text === "reasoning") this.#origin = name;
    if (state.text === "word") this.#word = "";
    if (state.text === "reasoning") this.#hasThought = true;
    if (state.text === "content" && this.#hasThought) this.#content.trims = true;
    if (state.tentative || state.endsValue !== undefined) this.#tentative ??= "";
    else this.#tentative = undefined;
  }

  #read(reader: Reader, text: string): string {
    const taken = reader.read(text);
    if (this.#tentative !== undefined) this.#tentative += text.slice(0, taken);
    const rest = text.slice(taken);
    if (reader.status === "failed") this.#fail();
    else if (reader.status === "done") {
      this.#calls.close();
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
        this.#said += this.#content.push(text);
        break;
      case "reasoning":
        this.#thought += this.#reasoning.push(text);
        break;
      case "word":
        this.#word += text;
        break;
      case "arguments":
        this.#calls.arguments(text);
        break;
      case "value":
        this.#calls.value(text);
        break;
    }
  }

  /** Goes where a marker leads. Returns what of the marker is the beginning of the text there. */
  #step(to: string | Step | ((word: string) => Step), marker: string): string {
    const word = this.#word.trim();
    const step = typeof to === "string" ? { to } : typeof to === "function" ? to(word) : to;
    const isValue = this.#state.text === "value" || this.#state.endsValue !== undefined;
    if (isValue && this.format.states[step.to]!.endsValue === undefined) this.#calls.endParameter();
    if (step.call === "close") this.#calls.close();
    if (step.call === "open" && !this.#open(step.name ?? word)) {
      this.#fail();
      return marker;
    }
    if (step.paragraph) for (const text of [this.#content, this.#reasoning]) text.breakParagraph();
    const collected = (this.#state.text === "word" ? this.#word : "") + marker;
    this.#enter(step.to);
    if (step.collects) this.#word = collected;
    if (this.#state.text === "value") this.#calls.beginParameter(word);
    if (step.keepsMarker) return marker;
    if (this.#tentative !== undefined) this.#tentative += marker;
    return "";
  }

  /** Takes tentative text for what it is after all: no call, but said or thought; or no end of a value, but a part of it. */
  #fail(): void {
    const text = this.#tentative ?? "";
    const { endsValue } = this.#state;
    if (endsValue !== undefined) {
      this.#enter(endsValue);
      this.#place(text);
      return;
    }
    const to = this.#state.otherwise ?? this.#origin;
    if (this.format.states[to]?.tentative) {
      this.#enter(to);
      return;
    }
    this.#tentative = undefined;
    if (this.format.states[to]?.text !== "arguments") this.#calls.close();
    this.#enter(to);
    if (text !== "") this.#place(text);
  }
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
