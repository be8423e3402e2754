import { useEffect, useState } from "preact/hooks";
import type { Chat } from "./chat/chat.ts";
import { ChatView } from "./chat/chat-view.tsx";
import { ConversationList } from "./chat/conversation-list.tsx";
import { SettingsPanel } from "./chat/settings-panel.tsx";
import type { EngineFeed } from "./engine/engine-feed.ts";
import { EnginePanel } from "./engine/engine-panel.tsx";
import { KeyForm } from "./key-form.tsx";
import type { MetricsFeed } from "./metrics/metrics-feed.ts";
import { MetricsView } from "./metrics/metrics-view.tsx";
import type { Models } from "./models.ts";
import type { ServerAccess } from "./server-access.ts";
import { keptStore, useStore } from "./store.ts";
import { type ThemeChoice, themeChoice } from "./theme.ts";

/** The parts of the page. */
export interface Parts {
  readonly access: ServerAccess;
  readonly models: Models;
  readonly chat: Chat;
  readonly engine: EngineFeed;
  readonly metrics: MetricsFeed;
}

const VIEWS = ["chat", "engine", "metrics"] as const;
type View = (typeof VIEWS)[number];

/** The panel beside a chat. */
type Side = "engine" | "settings" | "none";
const sideChoice = keptStore<Side>("side", "engine");

/** From this width on there is room for something beside a chat. */
const WIDE = "(min-width: 68rem)";

export function App({ access, models, chat, engine, metrics }: Parts) {
  const view = useView();
  const isLocked = useStore(access.isLocked);
  const chosenSide = useStore(sideChoice);
  const isWide = useMedia(WIDE);
  const [overlay, setOverlay] = useState<"list" | "settings" | undefined>();
  useEscape(() => {
    if (overlay) setOverlay(undefined);
    else chat.stop();
  });
  useEffect(() => {
    if (!isLocked) void models.load();
  }, [isLocked, models]);
  if (isLocked) return <KeyForm access={access} />;
  const side = isWide ? chosenSide : overlay === "settings" ? "settings" : "none";
  const toggleSettings = () => {
    if (isWide) sideChoice.value = chosenSide === "settings" ? "none" : "settings";
    else setOverlay(overlay === "settings" ? undefined : "settings");
  };
  return (
    <div class={`app view-${view} side-${view === "chat" ? side : "none"}`}>
      <button type="button" class="skip" onClick={() => document.getElementById("main")?.focus()}>
        To the content
      </button>
      <header class="top">
        {view === "chat" && (
          <button
            type="button"
            class="quiet menu"
            aria-label="Conversations"
            aria-expanded={overlay === "list"}
            onClick={() => setOverlay(overlay === "list" ? undefined : "list")}
          >
            ☰
          </button>
        )}
        <h1>Octavo</h1>
        <nav class="views" aria-label="Views">
          {VIEWS.map((name) => (
            <a key={name} href={`#${name}`} aria-current={view === name ? "page" : undefined}>
              {name[0]!.toUpperCase() + name.slice(1)}
            </a>
          ))}
        </nav>
        <div class="tools">
          {view === "chat" && (
            <>
              <ModelChooser models={models} chat={chat} />
              <button type="button" class="quiet" aria-pressed={side === "settings"} onClick={toggleSettings}>
                Parameters
              </button>
              {isWide && (
                <button
                  type="button"
                  class="quiet"
                  aria-pressed={side === "engine"}
                  onClick={() => {
                    sideChoice.value = chosenSide === "engine" ? "none" : "engine";
                  }}
                >
                  Engine
                </button>
              )}
            </>
          )}
          <ThemeButton />
          {access.hasKey && (
            <button
              type="button"
              class="quiet"
              onClick={() => {
                access.forget();
                location.reload();
              }}
            >
              Forget key
            </button>
          )}
        </div>
      </header>
      {view === "chat" && (
        <div class={overlay === "list" ? "left shown" : "left"}>
          <ConversationList chat={chat} onChoose={() => setOverlay(undefined)} />
        </div>
      )}
      <main id="main" tabIndex={-1}>
        {view === "chat" && <ChatView chat={chat} welcome={<Welcome models={models} chat={chat} />} />}
        {view === "engine" && <EnginePanel feed={engine} isCompact={false} />}
        {view === "metrics" && <MetricsView feed={metrics} />}
      </main>
      {view === "chat" && side !== "none" && (
        <aside class="right" aria-label={side === "engine" ? "Engine" : "Parameters"}>
          {side === "engine" ? <EnginePanel feed={engine} isCompact={true} /> : <SettingsPanel chat={chat} />}
          {!isWide && (
            <button type="button" class="primary close" onClick={() => setOverlay(undefined)}>
              Done
            </button>
          )}
        </aside>
      )}
    </div>
  );
}

function ModelChooser({ models, chat }: { readonly models: Models; readonly chat: Chat }) {
  const { names } = useStore(models.served);
  const { settings } = useStore(chat.open);
  if (names.length === 0) return null;
  if (names.length === 1) return <span class="model-name">{names[0]}</span>;
  const isServed = names.includes(settings.model);
  return (
    <select
      aria-label="Model"
      value={isServed ? settings.model : names[0]!}
      onChange={(event) => chat.configure({ model: event.currentTarget.value })}
    >
      {names.map((name) => (
        <option key={name} value={name}>
          {name}
        </option>
      ))}
    </select>
  );
}

const THEMES: readonly ThemeChoice[] = ["auto", "light", "dark"];
const THEME_SIGNS = { auto: "◐", light: "○", dark: "●" } as const;

function ThemeButton() {
  const choice = useStore(themeChoice);
  const next = THEMES[(THEMES.indexOf(choice) + 1) % THEMES.length]!;
  return (
    <button
      type="button"
      class="quiet icon"
      aria-label={`Theme: ${choice}. Change to ${next}`}
      title={`Theme: ${choice}`}
      onClick={() => {
        themeChoice.value = next;
      }}
    >
      {THEME_SIGNS[choice]}
    </button>
  );
}

const SUGGESTIONS = [
  "Tell me a story about a cat.",
  "Explain paged attention to a child.",
  "List three uses of a paper bag.",
];

function Welcome({ models, chat }: { readonly models: Models; readonly chat: Chat }) {
  const { names, problem, context } = useStore(models.served);
  return (
    <div class="welcome">
      <h2>{names[0] ?? "Octavo"}</h2>
      {problem !== "" ? (
        <p class="error" role="alert">
          {problem}.{" "}
          <button type="button" onClick={() => void models.load()}>
            Try again
          </button>
        </p>
      ) : (
        <p class="muted">
          {context > 0
            ? `A context of ${context.toLocaleString("en")} tokens.`
            : "Asking what is served here."}
        </p>
      )}
      <ul>
        {SUGGESTIONS.map((text) => (
          <li key={text}>
            <button type="button" onClick={() => void chat.say(text)}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function useView(): View {
  const read = () => VIEWS.find((view) => location.hash === `#${view}`) ?? "chat";
  const [view, setView] = useState<View>(read);
  useEffect(() => {
    const onChange = () => setView(read());
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  return view;
}

function useMedia(query: string): boolean {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const list = matchMedia(query);
    const onChange = () => setMatches(list.matches);
    list.addEventListener("change", onChange);
    return () => list.removeEventListener("change", onChange);
  }, [query]);
  return matches;
}

function useEscape(run: () => void): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape") run();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });
}
