import { useEffect, useRef, useState } from "preact/hooks";
import type { Chat } from "./chat.ts";
import {
  type ModelTurn,
  type Reply,
  replyOf,
  type ToolCall,
  type ToolTurn,
  type UserTurn,
} from "./conversation.ts";
import { CopyButton } from "./copy-button.tsx";
import { Markdown } from "./markdown.tsx";
import { TokenView } from "./token-view.tsx";

interface UserMessageProps {
  readonly chat: Chat;
  readonly turn: UserTurn;
  readonly isEdited: boolean;
  readonly onEdit: (id: string | undefined) => void;
}

/** The user's turn, and a form to say something else instead. */
export function UserMessage({ chat, turn, isEdited, onEdit }: UserMessageProps) {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (!isEdited) return;
    const { current } = field;
    current?.focus();
    current?.setSelectionRange(current.value.length, current.value.length);
  }, [isEdited]);
  const send = () => {
    const text = field.current!.value;
    onEdit(undefined);
    if (text.trim() !== "") void chat.edit(turn.id, text);
  };
  if (!isEdited)
    return (
      <article class="message user" aria-label="You">
        <div class="bubble">{turn.text}</div>
        <div class="actions">
          <CopyButton text={turn.text} what="your message" />
          <button type="button" class="quiet" onClick={() => onEdit(turn.id)}>
            Edit
          </button>
        </div>
      </article>
    );
  return (
    <article class="message user editing" aria-label="Edit your message">
      <textarea
        ref={field}
        aria-label="Your message"
        rows={Math.min(12, turn.text.split("\n").length + 1)}
        defaultValue={turn.text}
        onKeyDown={(event) => {
          if (event.key === "Escape") onEdit(undefined);
          else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
          else return;
          event.preventDefault();
          event.stopPropagation();
        }}
      />
      <div class="actions">
        <button type="button" class="primary" onClick={send}>
          Send
        </button>
        <button type="button" onClick={() => onEdit(undefined)}>
          Cancel
        </button>
        <span class="muted">What came after it goes.</span>
      </div>
    </article>
  );
}

interface ModelMessageProps {
  readonly chat: Chat;
  readonly turn: ModelTurn;
  readonly isWriting: boolean;
  /** Calls of it that have no result. */
  readonly openCalls: readonly ToolCall[];
}

/** The model's turn: thoughts, text, calls, and what can be done with them. */
export function ModelMessage({ chat, turn, isWriting, openCalls }: ModelMessageProps) {
  const [showsTokens, setShowsTokens] = useState(false);
  const reply = replyOf(turn);
  const isEmpty = reply.text === "" && reply.reasoning === "" && reply.calls.length === 0;
  return (
    <article class="message model" aria-label="Model" aria-busy={isWriting}>
      {reply.reasoning !== "" && <Reasoning reply={reply} isWriting={isWriting} />}
      {showsTokens && reply.tokens.length > 0 ? (
        <TokenView tokens={reply.tokens} />
      ) : (
        <Markdown text={reply.text} />
      )}
      {isWriting && isEmpty && <p class="waiting">Waiting for the first token</p>}
      {reply.calls.map((call) => (
        <CallCard key={call.id} chat={chat} call={call} isOpen={!isWriting && openCalls.includes(call)} />
      ))}
      {reply.error !== undefined && (
        <p class="error" role="alert">
          {reply.error}
        </p>
      )}
      <div class="actions">
        {!isWriting && (
          <>
            <CopyButton text={reply.text} what="reply" />
            <button type="button" class="quiet" onClick={() => void chat.regenerate(turn.id)}>
              Regenerate
            </button>
          </>
        )}
        {reply.tokens.length > 0 && (
          <button
            type="button"
            class="quiet"
            aria-pressed={showsTokens}
            onClick={() => setShowsTokens(!showsTokens)}
          >
            Tokens
          </button>
        )}
        {turn.replies.length > 1 && <Chooser chat={chat} turn={turn} isDisabled={isWriting} />}
        <ReplyFacts reply={reply} isWriting={isWriting} />
      </div>
    </article>
  );
}

function Reasoning({ reply, isWriting }: { readonly reply: Reply; readonly isWriting: boolean }) {
  const isThinking = isWriting && reply.text === "" && reply.calls.length === 0;
  return (
    <details class="reasoning">
      <summary>
        {isThinking ? <span class="waiting">Thinking</span> : "Thoughts"}
        <span class="muted"> · {reply.reasoning.trim().split(/\s+/).length} words</span>
      </summary>
      <Markdown text={reply.reasoning} />
    </details>
  );
}

function Chooser({
  chat,
  turn,
  isDisabled,
}: {
  readonly chat: Chat;
  readonly turn: ModelTurn;
  readonly isDisabled: boolean;
}) {
  const { chosen, replies, id } = turn;
  return (
    <fieldset class="chooser" disabled={isDisabled}>
      <legend class="hidden">Replies</legend>
      <button
        type="button"
        class="quiet"
        aria-label="Reply before"
        disabled={chosen === 0}
        onClick={() => chat.choose(id, chosen - 1)}
      >
        ‹
      </button>
      <span>
        {chosen + 1}/{replies.length}
      </span>
      <button
        type="button"
        class="quiet"
        aria-label="Next reply"
        disabled={chosen === replies.length - 1}
        onClick={() => chat.choose(id, chosen + 1)}
      >
        ›
      </button>
    </fieldset>
  );
}

const ENDINGS: Readonly<Record<string, string>> = {
  length: "cut off: most tokens",
  aborted: "stopped",
  error: "failed",
  tool_calls: "calls",
};

/** Numbers of a reply: tokens, speed, time to its first token, and why it ended if not by itself. */
function ReplyFacts({ reply, isWriting }: { readonly reply: Reply; readonly isWriting: boolean }) {
  const { usage, tokens, firstTokenMs, totalMs, finish } = reply;
  const count = usage?.completion ?? tokens.length;
  const facts: string[] = [];
  if (count > 0) facts.push(`${count} tokens`);
  if (count > 1 && firstTokenMs !== undefined && totalMs !== undefined && totalMs > firstTokenMs + 100)
    facts.push(`${Math.round((1000 * (count - 1)) / (totalMs - firstTokenMs))} tok/s`);
  if (firstTokenMs !== undefined) facts.push(`first after ${Math.round(firstTokenMs)} ms`);
  const ending = !isWriting && finish !== null ? ENDINGS[finish] : undefined;
  if (ending) facts.push(ending);
  return facts.length === 0 ? null : <span class="facts">{facts.join(" · ")}</span>;
}

/** A call that the model makes, and a form for its result: this page runs no tools. */
function CallCard({
  chat,
  call,
  isOpen,
}: {
  readonly chat: Chat;
  readonly call: ToolCall;
  readonly isOpen: boolean;
}) {
  const [result, setResult] = useState("");
  return (
    <section class="call" aria-label={`Call of ${call.name}`}>
      <header>
        <span class="muted">calls</span> <code>{call.name}</code>
      </header>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable */}
      <pre tabIndex={0}>
        <code>{indented(call.arguments)}</code>
      </pre>
      {isOpen && (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            void chat.answer(call, result);
          }}
        >
          <textarea
            aria-label={`Result of ${call.name}`}
            placeholder="Its result, which the model goes on with"
            rows={2}
            value={result}
            onInput={(event) => setResult(event.currentTarget.value)}
          />
          <button type="submit">Send result</button>
        </form>
      )}
    </section>
  );
}

export function ToolMessage({ turn }: { readonly turn: ToolTurn }) {
  return (
    <article class="message tool" aria-label={`Result of ${turn.name}`}>
      <span class="muted">
        result of <code>{turn.name}</code>
      </span>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable */}
      <pre tabIndex={0}>{turn.text}</pre>
    </article>
  );
}

function indented(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
