import { useState } from "preact/hooks";
import { useStore } from "../store.ts";
import type { Chat } from "./chat.ts";
import { titleOf } from "./conversation.ts";

/** The conversations that this browser keeps. @param onChoose called when one was chosen. */
export function ConversationList({ chat, onChoose }: { readonly chat: Chat; readonly onChoose: () => void }) {
  const list = useStore(chat.list);
  const open = useStore(chat.open);
  const isForgetful = useStore(chat.isForgetful);
  const [isRenaming, setRenaming] = useState(false);
  const isKept = list.some(({ id }) => id === open.id);
  return (
    <nav class="conversations" aria-label="Conversations">
      <button
        type="button"
        class="new"
        onClick={() => {
          chat.start();
          onChoose();
        }}
      >
        + New conversation
      </button>
      <ul>
        {list.map(({ id, title }) => (
          <li key={id} class={id === open.id ? "current" : undefined}>
            {id === open.id && isRenaming ? (
              <input
                aria-label="Title"
                defaultValue={titleOf(open)}
                ref={(input) => input?.focus()}
                onBlur={(event) => {
                  chat.rename(event.currentTarget.value);
                  setRenaming(false);
                }}
                onKeyDown={(event) => {
                  if (event.key === "Enter" || event.key === "Escape") event.currentTarget.blur();
                  event.stopPropagation();
                }}
              />
            ) : (
              <button
                type="button"
                class="title"
                aria-current={id === open.id ? "true" : undefined}
                onClick={() => {
                  void chat.show(id);
                  onChoose();
                }}
              >
                {title}
              </button>
            )}
          </li>
        ))}
      </ul>
      {isKept && (
        <div class="actions">
          <button type="button" class="quiet" onClick={() => setRenaming(true)}>
            Rename
          </button>
          <button type="button" class="quiet" onClick={() => void chat.remove(open.id)}>
            Delete
          </button>
        </div>
      )}
      <p class="muted note">
        {isForgetful ? "This browser keeps no conversations." : "Kept in this browser only."}
      </p>
    </nav>
  );
}
