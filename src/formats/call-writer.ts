import type { CallDelta, CallSink, ToolSpec } from "./format.ts";
import { TypedArguments } from "./typed-arguments.ts";

export interface CallOptions {
  /** The tools of the request. */
  readonly tools?: readonly ToolSpec[];
  /** Calls of other tools are none. Default false. */
  readonly onlyKnown?: boolean;
  /** Deliver the first call only. Default false. */
  readonly firstCallOnly?: boolean;
  /** Names of calls. */
  readonly newId: () => string;
}

/** Writes the calls of a turn down as deltas, one after the other. */
export class CallWriter implements CallSink {
  /** Calls that have begun. */
  count = 0;
  readonly #tools: ReadonlyMap<string, ToolSpec>;
  #deltas: CallDelta[] = [];
  /** The tool of the call that has begun and not ended. */
  #open: string | undefined;
  #hasArguments = false;
  /** The arguments of the open call, if they are parameters of bare text. */
  #typed: TypedArguments | undefined;

  constructor(private readonly options: CallOptions) {
    this.#tools = new Map((options.tools ?? []).map((tool) => [tool.name, tool]));
  }

  open(name: string): boolean {
    const word = name.trim();
    if (word === "" || (this.options.onlyKnown && !this.#tools.has(word))) return false;
    this.close();
    const index = this.count++;
    this.#open = word;
    this.#hasArguments = false;
    if (this.#isDelivered) this.#deltas.push({ index, id: this.options.newId(), name: word, arguments: "" });
    return true;
  }

  arguments(text: string): void {
    if (text === "") return;
    this.#hasArguments = true;
    if (!this.#isDelivered) return;
    const index = this.count - 1;
    const last = this.#deltas.at(-1);
    if (last?.index === index) last.arguments += text;
    else this.#deltas.push({ index, arguments: text });
  }

  /** Begins a parameter whose value comes as bare text. */
  beginParameter(name: string): void {
    const schema = this.#tools.get(this.#open ?? "")?.parameters;
    this.#typed ??= new TypedArguments(schema, (json) => this.arguments(json));
    this.#typed.begin(name);
  }

  /** Adds to the parameter's value. */
  value(text: string): void {
    this.#typed?.value(text);
  }

  endParameter(): void {
    this.#typed?.end();
  }

  /** Completes the call that has begun, if there is one. */
  close(): void {
    if (this.#open === undefined) return;
    this.#typed?.close();
    this.#typed = undefined;
    if (!this.#hasArguments) this.arguments("{}");
    this.#open = undefined;
  }

  /** Hands out what is new. */
  take(): readonly CallDelta[] {
    const deltas = this.#deltas;
    this.#deltas = [];
    return deltas;
  }

  get #isDelivered(): boolean {
    return this.count === 1 || !this.options.firstCallOnly;
  }
}
