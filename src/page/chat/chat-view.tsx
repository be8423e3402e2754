import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Unless, useStore } from "../store.ts";
import type { Chat } from "./chat.ts";
import { openCalls, type Turn } from "./conversation.ts";
import { ModelMessage, ToolMessage, UserMessage } from "./message.tsx";

/** Pixels from the end within which the view follows a growing text. */
const NEAR_END = 60;

/** The open conversation and the field to say something. */
export function ChatView({ chat, welcome }: { readonly chat: Chat; readonly welcome: ComponentChildren }) {
  const { turns, id } = useStore(chat.open);
  const writing = useStore(chat.writing);
  const announcement = useStore(chat.announcement);
  const [edited, setEdited] = useState<string | undefined>();
  const scroller = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const [isAway, setAway] = useState(false);
  const toEnd = () => {
    const { current } = scroller;
    if (current) current.scrollTop = current.scrollHeight;
  };
  useEffect(() => {
    follows.current = true;
    toEnd();
  }, [id]);
  useLayoutEffect(() => {
    if (follows.current) toEnd();
  });
  const unanswered = openCalls(chat.open.value);
  const editLast = () => setEdited(turns.findLast(({ role }) => role === "user")?.id);
  return (
    <section class="chat" aria-label="Conversation">
      <div
        class="scroller"
        ref={scroller}
        onScroll={() => {
          const { scrollHeight, scrollTop, clientHeight } = scroller.current!;
          follows.current = scrollHeight - scrollTop - clientHeight < NEAR_END;
          setAway(!follows.current);
        }}
      >
        <div class="turns">
          {turns.length === 0 && welcome}
          {turns.map((turn) => (
            <Unless
              key={turn.id}
              of={[
                turn,
                writing === turn.id,
                edited === turn.id,
                turn === turns.at(-1) ? unanswered.length : 0,
              ]}
            >
              {() => message(turn)}
            </Unless>
          ))}
        </div>
      </div>
      {isAway && (
        <button
          type="button"
          class="to-end"
          onClick={() => {
            follows.current = true;
            toEnd();
          }}
        >
          ↓ Latest
        </button>
      )}
      <Composer
        chat={chat}
        isWriting={writing !== undefined}
        onEditLast={editLast}
        onSend={() => (follows.current = true)}
      />
      <p class="hidden" role="status">
        {announcement}
      </p>
    </section>
  );

  function message(turn: Turn) {
    if (turn.role === "user")
      return <UserMessage chat={chat} turn={turn} isEdited={edited === turn.id} onEdit={setEdited} />;
    if (turn.role === "tool") return <ToolMessage turn={turn} />;
    return <ModelMessage chat={chat} turn={turn} isWriting={writing === turn.id} openCalls={unanswered} />;
  }
}

interface ComposerProps {
  readonly chat: Chat;
  readonly isWriting: boolean;
  readonly onEditLast: () => void;
  readonly onSend: () => void;
}

function Composer({ chat, isWriting, onEditLast, onSend }: ComposerProps) {
  const [text, setText] = useState("");
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => field.current?.focus(), []);
  useLayoutEffect(() => {
    const { current } = field;
    if (!current) return;
    current.style.height = "auto";
    current.style.height = `${current.scrollHeight}px`;
  });
  const send = () => {
    if (text.trim() === "" || isWriting) return;
    setText("");
    onSend();
    void chat.say(text);
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        if (isWriting) chat.stop();
        else send();
      }}
    >
      <textarea
        ref={field}
        rows={1}
        aria-label="Message"
        aria-describedby="composer-keys"
        placeholder="Say something"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          // Enter also ends the input of a composed character.
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
          else if (event.key === "ArrowUp" && text === "" && !isWriting) onEditLast();
          else return;
          event.preventDefault();
        }}
      />
      <button type="submit" class="primary" disabled={!isWriting && text.trim() === ""}>
        {isWriting ? "Stop" : "Send"}
      </button>
      <p class="keys" id="composer-keys">
        <kbd>Enter</kbd> sends, <kbd>Shift</kbd>+<kbd>Enter</kbd> breaks the line, <kbd>Esc</kbd> stops,{" "}
        <kbd>↑</kbd> edits the last message
      </p>
    </form>
  );
}
