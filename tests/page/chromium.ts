import { eventually, temporaryFolder } from "../support.ts";

/** Names of the browser in distributions' packages. */
const NAMES = ["chromium", "chromium-browser", "google-chrome"];

/** The browser's path, or why there is none. */
export function findChromium(): { readonly path: string } | string {
  const path = NAMES.map((name) => Bun.which(name)).find((found) => found !== null);
  return path ? { path } : `none of ${NAMES.join(", ")} is installed`;
}

export interface Viewport {
  readonly width: number;
  readonly height: number;
  readonly dark?: boolean;
  /** A touch screen with so many pixels a CSS pixel. */
  readonly phone?: boolean;
  readonly scale?: number;
}

type Params = Readonly<Record<string, unknown>>;
interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly sessionId?: string;
  readonly params?: Record<string, never>;
  readonly result?: Record<string, never>;
  readonly error?: { readonly message: string };
}

/** Chromium without a window, driven over the DevTools protocol. */
export class Chromium implements AsyncDisposable {
  #nextId = 1;
  readonly #answers = new Map<number, PromiseWithResolvers<Record<string, never>>>();
  readonly #listeners = new Set<(message: Message) => void>();

  private constructor(
    private readonly process: Bun.Subprocess<"ignore", "ignore", "ignore">,
    private readonly socket: WebSocket,
    private readonly folder: Disposable,
  ) {
    socket.onmessage = ({ data }) => this.#receive(JSON.parse(String(data)) as Message);
    socket.onclose = () => {
      for (const answer of this.#answers.values()) answer.reject(new Error("Chromium has gone"));
    };
  }

  static async launch(path: string): Promise<Chromium> {
    const folder = temporaryFolder();
    const flags = [
      ...["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"],
      ...[
        "--disable-background-networking",
        "--disable-component-update",
        "--mute-audio",
        "--hide-scrollbars",
      ],
      ...["--remote-debugging-port=0", `--user-data-dir=${folder.path}`, "about:blank"],
    ];
    const child = Bun.spawn([path, ...flags], { stdin: "ignore", stdout: "ignore", stderr: "ignore" });
    const socket = new WebSocket(await debuggerAddress(folder.file("DevToolsActivePort")));
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      socket.onerror = reject;
    });
    return new Chromium(child, socket, folder);
  }

  /** A tab of its own, that shares nothing with others. */
  async open(viewport: Viewport): Promise<Tab> {
    const { browserContextId } = await this.send("Target.createBrowserContext");
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank", browserContextId });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const tab = new Tab(this, sessionId!, browserContextId!);
    await tab.start(viewport);
    return tab;
  }

  async send(method: string, params: Params = {}, sessionId?: string): Promise<Record<string, never>> {
    // A socket that is closed takes messages and answers none.
    if (this.socket.readyState !== WebSocket.OPEN) throw new Error("Chromium has gone");
    const id = this.#nextId++;
    const answer = Promise.withResolvers<Record<string, never>>();
    this.#answers.set(id, answer);
    this.socket.send(JSON.stringify({ id, method, params, sessionId }));
    return answer.promise;
  }

  onEvent(sessionId: string, listener: (method: string, params: Record<string, never>) => void): void {
    this.#listeners.add((message) => {
      if (message.sessionId === sessionId && message.method) listener(message.method, message.params ?? {});
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.socket.close();
    this.process.kill("SIGKILL");
    await this.process.exited;
    this.folder[Symbol.dispose]();
  }

  #receive(message: Message): void {
    if (message.id === undefined) {
      for (const listener of this.#listeners) listener(message);
      return;
    }
    const answer = this.#answers.get(message.id);
    this.#answers.delete(message.id);
    if (message.error) answer?.reject(new Error(message.error.message));
    else answer?.resolve(message.result ?? {});
  }
}

/** The address that Chromium writes into a file of its profile when it listens: a port and a path. */
async function debuggerAddress(file: string): Promise<string> {
  let lines: string[] = [];
  await eventually(async () => {
    lines = (await Bun.file(file).exists()) ? (await Bun.file(file).text()).split("\n") : [];
    return lines.length > 1;
  });
  return `ws://127.0.0.1:${lines[0]}${lines[1]}`;
}

/** Keys that are more than their character. */
const KEYS: Readonly<Record<string, readonly [code: string, number: number, text?: string]>> = {
  ...{ Enter: ["Enter", 13, "\r"], Tab: ["Tab", 9], Escape: ["Escape", 27], " ": ["Space", 32, " "] },
  ...{ ArrowUp: ["ArrowUp", 38], ArrowDown: ["ArrowDown", 40] },
  ...{ ArrowLeft: ["ArrowLeft", 37], ArrowRight: ["ArrowRight", 39] },
};

/** Time that a document has for an answer. */
const ANSWER_MS = 5000;

/** A tab, and what went wrong or astray in it. */
export class Tab implements AsyncDisposable {
  /** Errors on the console, exceptions, and what the policy blocked. */
  readonly errors: string[] = [];
  readonly requests: string[] = [];

  constructor(
    private readonly browser: Chromium,
    private readonly session: string,
    private readonly context: string,
  ) {}

  async start({ width, height, dark = false, phone = false, scale = 1 }: Viewport): Promise<void> {
    this.browser.onEvent(this.session, (method, params) => this.#note(method, params));
    for (const domain of ["Page", "Runtime", "Network", "Log"]) await this.#send(`${domain}.enable`);
    const metrics = { width, height, deviceScaleFactor: scale, mobile: phone };
    await this.#send("Emulation.setDeviceMetricsOverride", metrics);
    if (phone) await this.#send("Emulation.setTouchEmulationEnabled", { enabled: true });
    await this.#send("Emulation.setEmulatedMedia", {
      features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }],
    });
  }

  /** Runs a script in every document from now on, before its own. */
  async prepare(source: string): Promise<void> {
    await this.#send("Page.addScriptToEvaluateOnNewDocument", { source });
  }

  async focus(selector: string): Promise<void> {
    await this.until(`document.querySelector(${JSON.stringify(selector)})`);
    await this.evaluate(`document.querySelector(${JSON.stringify(selector)}).focus()`);
  }

  async go(url: string | URL): Promise<void> {
    await this.#send("Page.navigate", { url: String(url) });
    await this.until("document.readyState === 'complete' && document.querySelector('#app')?.firstChild");
  }

  /** The value of an expression, or of a promise. @throws Error what it throws. */
  async evaluate<T = unknown>(expression: string): Promise<T> {
    const given = { expression, awaitPromise: true, returnByValue: true, userGesture: true };
    const { result, exceptionDetails } = (await this.#send("Runtime.evaluate", given)) as {
      result: { value: T };
      exceptionDetails?: { exception?: { description?: string }; text: string };
    };
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression, or what it promises, is true. A document that goes away meanwhile may never answer. */
  async until(expression: string): Promise<void> {
    const isTrue = () =>
      Promise.race([
        this.evaluate<boolean>(`(async () => Boolean(${expression}))()`),
        Bun.sleep(ANSWER_MS).then(() => false),
      ]).catch((error: unknown) => {
        if (/navigated|context|collected/.test(String(error))) return false;
        throw error;
      });
    await eventually(isTrue).catch((error) => {
      throw new Error(`${expression}: ${error instanceof Error ? error.message : error}`);
    });
  }

  /** The text of an element as it is seen. */
  text(selector: string): Promise<string> {
    return this.evaluate(`document.querySelector(${JSON.stringify(selector)})?.innerText ?? ""`);
  }

  count(selector: string): Promise<number> {
    return this.evaluate(`document.querySelectorAll(${JSON.stringify(selector)}).length`);
  }

  /** Clicks the first button or link of that name, where it is seen. */
  async click(name: string): Promise<void> {
    await this.until(`(${FIND_BUTTON})(${JSON.stringify(name)})`);
    await this.evaluate(`(${FIND_BUTTON})(${JSON.stringify(name)}).click()`);
  }

  async type(text: string): Promise<void> {
    await this.#send("Input.insertText", { text });
  }

  async press(key: string, modifiers: { readonly shift?: boolean } = {}): Promise<void> {
    const [code, number, text] = KEYS[key] ?? [
      `Key${key.toUpperCase()}`,
      key.toUpperCase().charCodeAt(0),
      key,
    ];
    const event = { key, code, windowsVirtualKeyCode: number, modifiers: modifiers.shift ? 8 : 0 };
    await this.#send("Input.dispatchKeyEvent", { type: "keyDown", ...event, ...(text && { text }) });
    await this.#send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  /** Moves the pointer to the middle of an element. */
  async hover(selector: string): Promise<void> {
    const { x, y } = await this.evaluate<{ x: number; y: number }>(`(() => {
      const { x, y, width, height } = document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect();
      return { x: x + width / 2, y: y + height / 2 };
    })()`);
    await this.#send("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
  }

  /** PNG. */
  async screenshot(path: string): Promise<void> {
    const { data } = (await this.#send("Page.captureScreenshot")) as { data: string };
    await Bun.write(path, Buffer.from(data, "base64"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.browser.send("Target.disposeBrowserContext", { browserContextId: this.context });
  }

  #send(method: string, params: Params = {}): Promise<object> {
    return this.browser.send(method, params, this.session);
  }

  #note(method: string, params: object): void {
    if (method === "Network.requestWillBeSent")
      this.requests.push((params as { request: { url: string } }).request.url);
    else if (method === "Runtime.exceptionThrown")
      this.errors.push(JSON.stringify((params as { exceptionDetails: unknown }).exceptionDetails));
    else if (method === "Runtime.consoleAPICalled" && (params as { type: string }).type === "error")
      this.errors.push(JSON.stringify((params as { args: unknown }).args));
    else if (method === "Log.entryAdded" && (params as { entry: { level: string } }).entry.level === "error")
      this.errors.push(JSON.stringify((params as { entry: unknown }).entry));
  }
}

const FIND_BUTTON = `(name) => [...document.querySelectorAll("button, a, summary")].find((element) =>
  element.checkVisibility() && !element.disabled &&
  (element.getAttribute("aria-label") ?? element.innerText).trim() === name)`;
